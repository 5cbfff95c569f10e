"""A node's connection: pushes are parsed and answered right here, without a task or an ASGI call each.

1,250 nodes push 250 times a second; this is where most of a push's cost would be. A connection whose
request is anything else is handed to uvicorn's own protocol, with the bytes that have come.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from unidle_collector.ingest.door import CLOCK, MAX_BODY_BYTES, PATH, Door, Reply, refusal, unauthorized
from unidle_collector.ingest.tokens import NOBODY

START = f"POST {PATH} HTTP/1.1\r\n".encode()
"""How every push of an agent begins; what begins otherwise is uvicorn's."""
IDLE_S = 75.0
"""A connection is kept open for this long without a byte: more than the longest batch, 60 s."""
HURRIED_S = 0.3
"""A push that follows so soon on the answer to the last one is of a sender that catches up."""
PIPELINED = 2
"""Pushes of one connection that are read before the first is answered."""


@dataclass(slots=True, eq=False)
class _Exchange:
    """One request and its answer."""

    keep_open: bool = True
    reply: Reply | None = None
    whole: bool = False
    """Has the request come to its end."""
    written: bool = False


class PushProtocol(asyncio.Protocol):
    """Given to uvicorn as its HTTP protocol: `Config(http=partial(PushProtocol, door))`."""

    def __init__(
        self,
        door: Door,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._door = door
        self._connections = server_state.connections
        self._make_other = partial(HttpToolsProtocol, config, server_state, app_state, _loop)
        self._loop = _loop or asyncio.get_event_loop()
        self._transport: asyncio.Transport | None = None
        self._names = NOBODY
        self._parser = httptools.HttpRequestParser(self)
        self._begun = b""
        """The first bytes of a request, too few to tell what it is."""
        self._inside = False
        """Has a request begun that is not whole yet: the following are its parts."""
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._nodes: frozenset[str] | None = NOBODY
        self._parts: list[bytes] = []
        self._size = 0
        self._exchange = _Exchange()
        self._exchanges: deque[_Exchange] = deque()
        """Those not yet answered, in order."""
        self._heard_s = self._loop.time()
        self._answered_s = -HURRIED_S
        """When the last answer was written."""
        self._idle: asyncio.TimerHandle | None = None

    # -- asyncio ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called once, after the handshake."""
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]  # uvloop's are of no common class
        self._names = certificate_names(transport.get_extra_info("peercert"))
        self._connections.add(self)  # type: ignore[arg-type]  # it wants `shutdown` of them, nothing else
        self._idle = self._loop.call_later(IDLE_S, self._end_when_idle)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """The other side has gone, or we have closed."""
        self._let_go()
        self._transport = None

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        self._heard_s = self._loop.time()
        if not self._inside:
            data = self._begun + data
            self._begun = b""
            if len(data) < len(START) and START.startswith(data):
                self._begun = data
                return
            if not data.startswith(START):
                self._hand_over(data)
                return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self._inside:
                self._exchanges.append(self._exchange)
            self._exchange.whole = True
            self._refuse(refusal(400, f"expected HTTP/1.1: {error}"))

    def shutdown(self) -> None:
        """The server ends: answer what waits, and close."""
        if self._exchanges:
            self._exchanges[-1].keep_open = False
        elif self._transport is not None:
            self._transport.close()

    # -- httptools -------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins."""
        self._inside = True
        self._url = b""
        self._headers = {}
        self._parts = []
        self._size = 0
        self._exchange = _Exchange()
        self._exchanges.append(self._exchange)

    def on_url(self, url: bytes) -> None:
        """A part of the request's target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Who it is and how much comes is known: refuse before the body."""
        if self._url != PATH.encode() or self._parser.get_method() != b"POST":
            self._refuse(refusal(400, f"expected POST {PATH} behind a push that is not answered yet"))
            return
        self._nodes = self._door.writes_for(self._headers.get(b"authorization"), self._names)
        declared = self._headers.get(b"content-length", b"")
        if self._nodes == NOBODY:
            self._refuse(unauthorized())
        elif declared.isdigit() and int(declared) > MAX_BODY_BYTES:
            self._refuse(self._door.too_large())
        elif self._headers.get(b"expect", b"").lower() == b"100-continue" and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, part: bytes) -> None:
        """A part of the body; that of a refused push is dropped."""
        if self._exchange.reply is None:
            self._size += len(part)
            self._parts.append(part)
            if self._size > MAX_BODY_BYTES:
                self._refuse(self._door.too_large())

    def on_message_complete(self) -> None:
        """The push is whole."""
        self._inside = False
        exchange, body = self._exchange, b"".join(self._parts)
        self._parts = []
        exchange.whole = True
        if exchange.reply is not None:
            if exchange.written and self._transport is not None:
                self._transport.close()
            return
        exchange.keep_open = exchange.keep_open and self._parser.should_keep_alive()
        clock = self._headers.get(CLOCK, b"")
        hurried = self._loop.time() - self._answered_s < HURRIED_S
        self._door.submit(body, clock, self._nodes, partial(self._answered, exchange), hurried=hurried)
        if len(self._exchanges) >= PIPELINED and self._transport is not None:
            self._transport.pause_reading()

    # -- answers ---------------------------------------------------------------------------------

    def _refuse(self, reply: Reply) -> None:
        """Answer now; the rest of the request is read and dropped, and ends the connection."""
        self._parts = []
        self._exchange.keep_open = False
        self._answered(self._exchange, reply)

    def _answered(self, exchange: _Exchange, reply: Reply) -> None:
        exchange.reply = reply
        self._flush()

    def _flush(self) -> None:
        """Write the answers whose turn it is."""
        paused = len(self._exchanges) >= PIPELINED
        while self._exchanges and (reply := self._exchanges[0].reply) is not None:
            exchange = self._exchanges.popleft()
            exchange.written = True
            self._answered_s = self._loop.time()
            if self._transport is not None:
                self._transport.write(_bytes(reply, exchange.keep_open))
                if exchange.whole and not exchange.keep_open:
                    self._transport.close()
        if paused and self._transport is not None and len(self._exchanges) < PIPELINED:
            self._transport.resume_reading()

    # -- the end ---------------------------------------------------------------------------------

    def _hand_over(self, data: bytes) -> None:
        """Let uvicorn's protocol have the connection."""
        assert self._transport is not None
        if self._exchanges:  # its answer would overtake ours
            self._transport.close()
            return
        other, transport = self._make_other(), self._transport
        self._let_go()
        transport.set_protocol(other)
        other.connection_made(transport)
        other.data_received(data)

    def _end_when_idle(self) -> None:
        """Close a connection that has been silent for too long, between two pushes or within one."""
        left_s = self._heard_s + IDLE_S - self._loop.time()
        if left_s > 0 or (self._exchanges and not self._inside):
            self._idle = self._loop.call_later(max(left_s, 1.0), self._end_when_idle)
        elif self._transport is not None:
            self._transport.close()

    def _let_go(self) -> None:
        self._connections.discard(self)
        if self._idle is not None:
            self._idle.cancel()


def certificate_names(certificate: Mapping[str, Any] | None) -> frozenset[str]:
    """DNS names and the common name of a certificate, as `ssl` gives it."""
    if not certificate:
        return NOBODY
    common = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    others = [value for key, value in certificate.get("subjectAltName", ()) if key == "DNS"]
    return frozenset((*common, *others))


def _bytes(reply: Reply, keep_open: bool) -> bytes:
    head = b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n" % (
        reply.status,
        HTTPStatus(reply.status).phrase.encode(),
        len(reply.body),
    )
    further = b"".join(b"%b: %b\r\n" % pair for pair in reply.headers)
    return head + further + (b"" if keep_open else b"connection: close\r\n") + b"\r\n" + reply.body
