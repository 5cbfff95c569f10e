"""An API server that lists pods and nodes: pages, tokens, and failures by plan."""

from __future__ import annotations

import json
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeKubernetes:
    """Serves `items` of /api/v1/pods and /api/v1/nodes; `plan` holds (status, headers) to answer first."""

    def __init__(self, pods: list[dict[str, Any]], nodes: list[dict[str, Any]], token: str = "") -> None:
        self.items = {"/api/v1/pods": pods, "/api/v1/nodes": nodes}
        self.token = token
        self.plan: list[tuple[int, dict[str, str]] | None] = []
        self.page = 500
        self.asked: list[tuple[str, dict[str, str]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                status, headers, body = outer.answer(self.path, self.headers.get("Authorization", ""))
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def answer(self, target: str, authorization: str) -> tuple[int, dict[str, str], bytes]:
        url = urllib.parse.urlsplit(target)
        query = dict(urllib.parse.parse_qsl(url.query))
        self.asked.append((url.path, query))
        planned = self.plan.pop(0) if self.plan else None
        if planned is not None:
            return planned[0], planned[1], b'{"kind": "Status"}'
        if self.token and authorization != f"Bearer {self.token}":
            return 401, {}, b'{"kind": "Status", "code": 401}'
        items, begin = self.items[url.path], int(query.get("continue", 0))
        end = begin + min(self.page, int(query["limit"]))
        onward = {"continue": str(end)} if end < len(items) else {}
        return 200, {}, json.dumps({"metadata": onward, "items": items[begin:end]}).encode()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FakeKubernetes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
