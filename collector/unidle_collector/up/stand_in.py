"""The demo's stand-in for Slack: takes what would be posted, on this machine, and keeps it in a file."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LONGEST_BODY = 1 << 20


class StandIn:
    """A loopback server that answers as an incoming webhook does; a context."""

    def __init__(self, keep: Path, tell: Callable[[str], None]) -> None:
        self._keep, self._tell = keep, tell
        self._lock = threading.Lock()
        self.delivered = 0
        """Messages that were taken."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="slack-stand-in", daemon=True)

    @property
    def url(self) -> str:
        """The webhook's address."""
        return f"http://127.0.0.1:{self._server.server_port}/services/simulated"

    def __enter__(self) -> StandIn:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def take(self, body: bytes) -> tuple[int, str]:
        """Keep one message; (status, answer) as Slack gives them."""
        try:
            message = json.loads(body)
            text = str(message["text"])
        except (ValueError, TypeError, KeyError):
            return 400, "invalid_payload"
        with self._lock:
            with self._keep.open("a", encoding="utf-8") as out:
                out.write(json.dumps(message) + "\n")
            self.delivered += 1
        self._tell(text.partition("\n")[0])
        return 200, "ok"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        take = self.take

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30

            def do_POST(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                if not 0 < size <= LONGEST_BODY:
                    self.close_connection = True
                    status, answer = 400, "invalid_payload"
                else:
                    status, answer = take(self.rfile.read(size))
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer.encode())

            def log_message(self, *args: object) -> None:
                """Every message is kept in a file already."""

        return Handler
