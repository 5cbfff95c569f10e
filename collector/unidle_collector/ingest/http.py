"""POST /api/v1/push, in front of the API on the same port.

Plain ASGI: this is the one path that 1,250 nodes take every five seconds. Who pushes is known before a
byte of the body is read; the answers of a group of pushes come with one wake-up of the event loop.

| answer | when |
|---|---|
| 200 `{"ack", "send_facts", "duplicate"}` | the rows are on disk |
| 400 | the bytes are no batch; it says what was expected |
| 401 | no token or certificate that lets one write |
| 403 | the rows are another node's; nothing is stored |
| 413 | more than MAX_BODY_BYTES |
| 429, Retry-After | this node has MOST_OF_ONE batches waiting already |
| 503, Retry-After | too much waits, event time has to advance, or the disk is full |
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from unidle_agent.errors import UnidleError, WireError
from unidle_agent.wire import CLOCK_HEADER
from unidle_collector.ingest.tls import CLIENT_NAMES
from unidle_collector.ingest.tokens import NOBODY, Tokens
from unidle_collector.live import Live
from unidle_collector.store import StoreFull
from unidle_collector.taking import Ack, BusyError, ForbiddenError, Push

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

PATH = "/api/v1/push"
MAX_BODY_BYTES = 8 * 1024 * 1024
"""Most bytes of a push as it travels: a 60 s batch of 16 GPUs is about 0.3 MB."""
MOST_WAITING_BYTES = 128 * 1024 * 1024
"""Of all pushes that are being received or wait; beyond that a push is answered 503."""
MOST_OF_ONE = 8
"""Pushes of one node at a time: an agent sends one after the other."""
FULL_RETRY_S = 10

_CLOCK = CLOCK_HEADER.lower().encode()
_WHO = (
    "expected the header 'Authorization: Bearer TOKEN' with a write token (unidle tokens create --node NODE, "
    "or the collector's push_token), or a client certificate of the node"
)


@dataclass(slots=True, eq=False)
class _Push(Push):
    answered: asyncio.Future[None] | None = None


class PushDoor:
    """ASGI application: takes pushes itself and hands everything else to `app`."""

    def __init__(self, live: Live, tokens: Tokens, app: App) -> None:
        self._live = live
        self._tokens = tokens
        self._app = app
        self._waiting_bytes = 0
        self._waiting_of: dict[Collection[str], int] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tell_group = self._tell  # one object, by which pushes are grouped

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (or run the lifespan of `app`)."""
        if scope["type"] != "http" or scope["path"] != PATH:
            await self._app(scope, receive, send)
            return
        status, document, headers = await self._answer(scope, receive)
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        length = (b"content-length", str(len(body)).encode())
        await send({"type": "http.response.start", "status": status, "headers": [_JSON, length, *headers]})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Scope, receive: Receive) -> Reply:
        if scope["method"] != "POST":
            return 405, {"detail": f"expected POST, came {scope['method']}"}, [(b"allow", b"POST")]
        headers = dict(scope["headers"])
        nodes = self._writes_for(scope, headers)
        if nodes == NOBODY:
            self._live.counters["requests_unauthorized"] += 1
            return 401, {"detail": _WHO}, [(b"www-authenticate", b"Bearer")]
        if nodes is not None and self._waiting_of.get(nodes, 0) >= MOST_OF_ONE:
            self._live.counters["pushes_busy"] += 1
            text = f"{MOST_OF_ONE} batches of {', '.join(nodes)} wait already: send one after the other"
            return 429, {"detail": text}, _retry(1)
        if nodes is None:
            return await self._receive(headers, receive, None)
        self._waiting_of[nodes] = self._waiting_of.get(nodes, 0) + 1
        try:
            return await self._receive(headers, receive, nodes)
        finally:
            self._waiting_of[nodes] -= 1
            if not self._waiting_of[nodes]:
                del self._waiting_of[nodes]

    def _writes_for(self, scope: Scope, headers: Mapping[bytes, bytes]) -> frozenset[str] | None:
        """The nodes that the sender may write; None: any. A token counts before a certificate."""
        authorization = headers.get(b"authorization")
        if authorization is not None:
            return self._tokens.may_write(authorization.decode("latin-1"))
        names: frozenset[str] = scope.get("state", {}).get(CLIENT_NAMES, NOBODY)
        return names

    async def _receive(
        self, headers: Mapping[bytes, bytes], receive: Receive, nodes: frozenset[str] | None
    ) -> Reply:
        if self._waiting_bytes > MOST_WAITING_BYTES:
            self._live.counters["pushes_busy"] += 1
            return 503, {"detail": f"{MOST_WAITING_BYTES} bytes wait already"}, _retry(1)
        body = await self._body(headers, receive)
        if body is None:
            self._live.counters["batches_too_large"] += 1
            text = f"expected at most {MAX_BODY_BYTES} bytes, there are more: send shorter batches"
            return 413, {"detail": text}, []
        self._waiting_bytes += len(body)
        try:
            return await self._submit(body, headers.get(_CLOCK, b""), nodes)
        finally:
            self._waiting_bytes -= len(body)

    async def _body(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes | None:
        """The body, None when it is too large; never holds more than the limit."""
        declared = headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared) > MAX_BODY_BYTES:
            return None
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            part: bytes = message.get("body", b"")
            size += len(part)
            if size > MAX_BODY_BYTES:
                return None
            parts.append(part)
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _submit(self, body: bytes, clock: bytes, nodes: frozenset[str] | None) -> Reply:
        loop = self._loop = asyncio.get_running_loop()
        push = _Push(
            body,
            self._live.clock_ns(),
            int(clock) if clock.isdigit() else None,
            self._tell_group,
            nodes,
            answered=loop.create_future(),
        )
        assert push.answered is not None
        try:
            self._live.submit(push)
        except BusyError as error:
            return _reply(error)
        await push.answered
        return _reply(push.answer)

    def _tell(self, pushes: list[Push]) -> None:
        """In the thread of the collector: wake the event loop once for a whole group."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(_wake, pushes)


Reply = tuple[int, "Mapping[str, Any] | bytes", list[tuple[bytes, bytes]]]
"""Status, JSON, further headers."""

_JSON = (b"content-type", b"application/json")


def _wake(pushes: list[Push]) -> None:
    for push in pushes:
        assert isinstance(push, _Push)
        if push.answered is not None and not push.answered.done():  # the sender may have gone
            push.answered.set_result(None)


def _reply(answer: Ack | UnidleError | None) -> Reply:
    if isinstance(answer, Ack):
        facts, again = (b"true" if flag else b"false" for flag in (answer.send_facts, answer.duplicate))
        return 200, b'{"ack":%d,"send_facts":%b,"duplicate":%b}' % (answer.ack, facts, again), []
    text = {"detail": str(answer)}
    if isinstance(answer, WireError):
        return 400, text, []
    if isinstance(answer, ForbiddenError):
        return 403, text, []
    return 503, text, _retry(FULL_RETRY_S if isinstance(answer, StoreFull) else 1)


def _retry(after_s: int) -> list[tuple[bytes, bytes]]:
    return [(b"retry-after", str(after_s).encode())]
