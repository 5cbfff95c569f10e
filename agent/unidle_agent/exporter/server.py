"""Serves /metrics and /health.

One request per connection, each in a thread of its own, at most `MOST_CONNECTIONS` at a time for at most
`DEADLINE_S`: where one more comes, the oldest is cut. So no client, however slow, keeps another waiting.
"""

from __future__ import annotations

import contextlib
import hmac
import http.server
import ipaddress
import json
import logging
import socket
import ssl
import sys
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

from unidle_agent.config import NAMES
from unidle_agent.errors import SettingError, UnidleError
from unidle_agent.exporter.render import OPENMETRICS_TYPE, PROMETHEUS_TYPE
from unidle_agent.exporter.tls import Certificate
from unidle_agent.settings import Secret

log = logging.getLogger("unidle.agent")

MOST_CONNECTIONS = 16
DEADLINE_S = 10.0

Page = Callable[[str, bool], str]
"""(names, openmetrics) -> text; empty names are those of the settings."""


@dataclass(frozen=True, slots=True)
class Health:
    """What /health says."""

    ok: bool
    document: Mapping[str, object]


def health_of(
    last_tick_s: float | None, period_s: float, document: Mapping[str, object], now_s: float | None = None
) -> Health:
    """Healthy is: a tick came within the last three periods and two seconds."""
    now_s = time.monotonic() if now_s is None else now_s
    age_s = None if last_tick_s is None else now_s - last_tick_s
    ok = age_s is not None and age_s <= 3 * period_s + 2
    return Health(ok, {"last_tick_age_s": age_s, **document})


class Exporter:
    """Serves `page` and `health` on `bind`:`port` (0: a free one) in threads of its own.

    With a `token`, /metrics and the particulars of /health need it as a bearer token. Raises SettingError
    for an address that others can reach and no token, UnidleError where it cannot listen.
    """

    def __init__(
        self,
        bind: str,
        port: int,
        page: Page,
        health: Callable[[], Health],
        *,
        token: Secret = Secret(),  # noqa: B008 - it cannot change
        certificate: Certificate | None = None,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        if not token and not _is_loopback(bind):
            raise SettingError(
                "agent.metrics_token",
                "a token (--metrics-token-file), because others reach the address that the page is bound to",
                "",
                f"bind = {bind!r}",
            )
        if not (token.reveal().isascii() and token.reveal().isprintable()):
            raise SettingError("agent.metrics_token", "printable ASCII without line ends", "***", "settings")
        if token and certificate is None and not _is_loopback(bind):
            log.warning("/metrics on %s has no TLS: its token travels in clear text", bind)

        class Handler(_Handler):
            render_page = staticmethod(page)
            render_health = staticmethod(health)
            token_bytes = token.reveal().encode()
            timeout = deadline_s

        family = socket.AF_INET6 if ":" in bind else socket.AF_INET
        server_class = type("_Server", (_Server,), {"address_family": family})
        try:
            self._server = server_class((bind, port), Handler, certificate, deadline_s)
        except OSError as error:
            raise UnidleError(
                f"cannot listen on {bind}:{port} ({error.strerror or error}); is another agent running? "
                "Choose another with --port, or --port 0 for a free one"
            ) from error
        host, self.port = self._server.server_address[:2]
        scheme = "http" if certificate is None else "https"
        self.url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"
        self._thread = threading.Thread(target=self._server.serve, name="exporter", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.leave()
        self._thread.join()
        self._server.server_close()


def _is_loopback(bind: str) -> bool:
    try:
        return ipaddress.ip_address(bind).is_loopback
    except ValueError:
        return bind == "localhost"


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = MOST_CONNECTIONS

    def __init__(
        self,
        address: tuple[str, int],
        handler: type[_Handler],
        certificate: Certificate | None,
        deadline_s: float,
    ) -> None:
        self._certificate = certificate
        self._deadline_s = deadline_s
        self._lock = threading.Lock()
        self._open: dict[socket.socket, float] = {}
        """Connection -> when it came, oldest first."""
        self._leaving = False
        super().__init__(address, handler)

    def serve(self) -> None:
        """Take connections until `leave`.

        Not `serve_forever`, which wakes twice a second to see whether it shall stop: this wakes when
        somebody comes or has stayed too long.
        """
        while not self._leaving:
            self.timeout = self._cut_late()
            self.handle_request()

    def leave(self) -> None:
        """Let `serve` return. May be called by any other thread."""
        self._leaving = True
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)  # wakes it; what it then takes is no connection

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        if self._certificate is not None:
            self._certificate.renew()
            # The handshake waits for the client: that is for the connection's own thread.
            connection = self._certificate.context.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        return connection, address

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            if len(self._open) >= MOST_CONNECTIONS:
                self._cut(next(iter(self._open)))
            self._open[request] = time.monotonic()
        super().process_request(request, client_address)

    def _cut_late(self) -> float | None:
        """Cut who has stayed too long; the seconds until the next has, None where nobody is there."""
        with self._lock:
            now_s = time.monotonic()
            for connection in [
                one for one, came_s in self._open.items() if now_s - came_s >= self._deadline_s
            ]:
                self._cut(connection)
            oldest_s = next(iter(self._open.values()), None)
        return None if oldest_s is None else oldest_s + self._deadline_s - now_s

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def _cut(self, connection: socket.socket) -> None:
        """End what its thread waits for; the thread itself closes it."""
        del self._open[connection]
        with contextlib.suppress(OSError):
            socket.socket.shutdown(connection, socket.SHUT_RDWR)  # not the TLS one: it forgets its state

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002
        """A scraper that hangs up in the middle is its own affair; anything else is a bug to be seen."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError | ssl.SSLError):
            log.exception("a request from %s could not be answered", client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "unidle"
    sys_version = ""
    render_page: Page
    render_health: Callable[[], Health]
    token_bytes: bytes

    def setup(self) -> None:
        super().setup()
        if isinstance(self.connection, ssl.SSLSocket):
            self.connection.do_handshake()

    def do_GET(self) -> None:  # the name that http.server calls
        url = urlsplit(self.path)
        if url.path == "/metrics":
            self._metrics(url.query)
        elif url.path == "/health":
            self._health()
        else:
            self._say(404, "there are /metrics and /health")

    def _metrics(self, query: str) -> None:
        names = parse_qs(query).get("names", [""])[-1]
        if not self._may_read():
            self._say(401, "expected the header Authorization: Bearer TOKEN with the agent's metrics_token")
        elif names and names not in NAMES:
            self._say(400, f"names: expected one of {', '.join(NAMES)}")
        else:
            openmetrics = prefers_openmetrics(self.headers.get("Accept", ""))
            kind = OPENMETRICS_TYPE if openmetrics else PROMETHEUS_TYPE
            self._answer(200, kind, self.render_page(names, openmetrics).encode())

    def _health(self) -> None:
        """A probe has no token: it is told whether, not why."""
        health = self.render_health()
        document = health.document if self._may_read() else {}
        body = json.dumps({"ok": health.ok, **document}).encode()
        self._answer(200 if health.ok else 503, "application/json", body)

    def _may_read(self) -> bool:
        came = self.headers.get("Authorization", "").encode("utf-8", "replace")
        return not self.token_bytes or hmac.compare_digest(came, b"Bearer " + self.token_bytes)

    def _say(self, status: int, text: str) -> None:
        self._answer(status, "text/plain; charset=utf-8", f"{text}\n".encode())

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Vary", "Accept, Accept-Encoding")
        if status == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        if weight(self.headers.get("Accept-Encoding", ""), "gzip") > 0:
            packer = zlib.compressobj(1, wbits=31)  # 31 is gzip; level 1 makes a sixth of it already
            body = packer.compress(body) + packer.flush()
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Scrapes each few seconds are no news."""


def prefers_openmetrics(accept: str) -> bool:
    """Does an Accept header want OpenMetrics at least as much as plain text."""
    wanted = weight(accept, "application/openmetrics-text")
    return wanted > 0 and wanted >= weight(accept, "text/plain")


def weight(header: str, name: str) -> float:
    """The weight, 0-1, that an Accept or Accept-Encoding header gives `name`; 0 where it is not named."""
    best = 0.0
    for item in header.lower().split(","):
        kind, *parameters = (part.strip() for part in item.split(";"))
        if kind == name:
            given = [text[2:] for text in parameters if text.startswith("q=")] or ["1"]
            with contextlib.suppress(ValueError):
                best = max(best, float(given[0]))
    return best
