"""POST /api/v1/push as ASGI, in front of the API; `protocol` is the short way for a node's own connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import replace
from typing import Any

from unidle_collector.ingest.door import CLOCK, MAX_BODY_BYTES, PATH, Door, Reply, refusal, unauthorized
from unidle_collector.ingest.tokens import NOBODY

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class PushApp:
    """ASGI application: takes pushes itself and hands everything else to `app`."""

    def __init__(self, door: Door, app: App) -> None:
        self.door = door
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request (or run the lifespan of `app`)."""
        if scope["type"] != "http" or scope["path"] != PATH:
            await self._app(scope, receive, send)
            return
        reply = await self._push(scope, receive)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(reply.body)).encode()),
            *reply.headers,
        ]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})

    async def _push(self, scope: MutableMapping[str, Any], receive: Receive) -> Reply:
        if scope["method"] != "POST":
            wrong = refusal(405, f"expected POST, came {scope['method']}")
            return replace(wrong, headers=((b"allow", b"POST"),))
        headers = dict(scope["headers"])
        nodes = self.door.writes_for(headers.get(b"authorization"))
        if nodes == NOBODY:
            return unauthorized()
        body = await _body(headers.get(b"content-length", b""), receive)
        if body is None:
            return self.door.too_large()
        answered: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

        def answer(reply: Reply) -> None:
            if not answered.done():  # the sender may have gone
                answered.set_result(reply)

        self.door.submit(body, headers.get(CLOCK, b""), nodes, answer)
        return await answered


async def _body(declared: bytes, receive: Receive) -> bytes | None:
    """The body, None when it is too large; never holds more than the limit."""
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
            return b"".join(parts)
