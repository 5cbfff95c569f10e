"""A local HTTP server that behaves as a Slack incoming webhook does, by a plan.

with FakeSlack([Answer(429, retry_after="3"), Answer(500)]) as slack:
    ...  # point slack_webhook_url at slack.url, slack_hosts at slack.host
    slack.messages  # the payloads that were accepted
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "T0FAKE/B0FAKE/sEcReTsEcReTsEcReT"
"""What must never be seen in a log."""

TEXTS = {
    200: "ok",
    400: "invalid_payload",
    403: "action_prohibited",
    404: "no_service",
    410: "channel_is_archived",
    429: "rate_limited",
    500: "rollup_error",
}
"""Bodies as Slack documents them."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of the plan."""

    status: int = 200
    retry_after: str = ""
    location: str = ""
    hang: bool = False
    """Never answer: the caller's time-out has to end it."""
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """What came, and what it was answered."""

    path: str
    content_type: str
    document: dict[str, Any]
    status: int
    """0 where no answer was given."""


class FakeSlack:
    """Answers by `plan`, then 200 "ok" for ever. `on_request` runs before an answer, `on_answered` after."""

    def __init__(
        self,
        plan: Iterable[Answer] = (),
        on_request: Callable[[], None] = lambda: None,
        on_answered: Callable[[], None] = lambda: None,
    ) -> None:
        self.plan = list(plan)
        self.requests: list[Request] = []
        self.on_request, self.on_answered = on_request, on_answered
        self._let_go = threading.Event()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                fake._post(self)

            def do_GET(self) -> None:
                fake._get(self)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    host = "127.0.0.1"

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """The webhook: as Slack's, a secret."""
        return f"http://{self.host}:{self.port}/services/{TOKEN}"

    @property
    def messages(self) -> list[dict[str, Any]]:
        """Payloads of the messages that were accepted, in order."""
        return [each.document for each in self.requests if each.status == 200]

    def __enter__(self) -> FakeSlack:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._let_go.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _post(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        answer = self.plan.pop(0) if self.plan else Answer()
        try:
            document = json.loads(body)
        except ValueError:
            document, answer = {}, Answer(400)
        status = 0 if answer.hang else answer.status
        kind = handler.headers.get("Content-Type", "")
        self.requests.append(Request(handler.path, kind, document, status))
        self.on_request()
        if answer.hang:
            self._let_go.wait(60)
            return
        text = TEXTS.get(answer.status, "") if answer.text is None else answer.text
        handler.send_response(answer.status)
        for name, value in (("Retry-After", answer.retry_after), ("Location", answer.location)):
            if value:
                handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(text.encode())))
        handler.end_headers()
        handler.wfile.write(text.encode())
        handler.wfile.flush()
        self.on_answered()

    def _get(self, handler: BaseHTTPRequestHandler) -> None:
        """Nobody has a reason to read here: a redirect that was followed shows up as a request."""
        self.requests.append(Request(handler.path, "", {}, 0))
        handler.send_response(404)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
