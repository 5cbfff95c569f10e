"""What is asked of a push before it goes in, and what is answered; the same behind every way to bring one.

| answer | when |
|---|---|
| 200 `{"ack", "send_facts", "duplicate"}` | the rows are on disk; `"flight"` asks for recordings |
| 400 | the bytes are no batch; it says what was expected |
| 401 | no token or certificate that lets one write |
| 403 | the rows are another node's; nothing is stored |
| 413 | more than MAX_BODY_BYTES |
| 429, Retry-After | this node has MOST_OF_ONE batches waiting already |
| 500 | something unexpected broke at this batch; it is in the log and in health |
| 503, Retry-After | too much waits, event time has to advance, or the disk is full |
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from unidle_agent.errors import UnidleError, WireError
from unidle_agent.wire import CLOCK_HEADER
from unidle_collector.ingest.tokens import NOBODY, Tokens
from unidle_collector.live import Live
from unidle_collector.store import StoreFull
from unidle_collector.taking import Ack, BrokenError, BusyError, ForbiddenError, Push

PATH = "/api/v1/push"
CLOCK = CLOCK_HEADER.lower().encode()
MAX_BODY_BYTES = 8 * 1024 * 1024
"""Most bytes of a push as it travels: a 60 s batch of 16 GPUs is about 0.3 MB."""
MOST_WAITING_BYTES = 128 * 1024 * 1024
"""Of all pushes that wait; beyond that a push is answered 503."""
MOST_OF_ONE = 8
"""Pushes of one node that wait at a time: an agent sends one after the other."""
FULL_RETRY_S = 10

_WHO = (
    "expected the header 'Authorization: Bearer TOKEN' with a write token (unidle tokens create --node NODE, "
    "or the collector's push_token), or a client certificate of the node"
)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer by HTTP; the body is JSON."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(slots=True, eq=False)
class _Push(Push):
    answer_to: Callable[[Reply], None] = lambda _: None


class Door:
    """Lets pushes in. Belongs to one event loop; only `_tell` is called by another thread."""

    def __init__(self, live: Live, tokens: Tokens) -> None:
        self._live = live
        self._tokens = tokens
        self._waiting_bytes = 0
        self._waiting_of: dict[frozenset[str], int] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tell_group = self._tell  # one object, by which pushes are grouped

    def writes_for(
        self, authorization: bytes | None, names: frozenset[str] = NOBODY
    ) -> frozenset[str] | None:
        """The nodes that a sender may write, NOBODY or some; None: any.

        `names` are those of its verified certificate; a token counts before it.
        """
        nodes = names if authorization is None else self._tokens.may_write(authorization.decode("latin-1"))
        if nodes == NOBODY:
            self._live.counters["requests_unauthorized"] += 1
        return nodes

    def too_large(self) -> Reply:
        """The answer to a body of more than MAX_BODY_BYTES; counts it."""
        self._live.counters["batches_too_large"] += 1
        return refusal(413, f"expected at most {MAX_BODY_BYTES} bytes, there are more: send shorter batches")

    def submit(
        self,
        body: bytes,
        clock: bytes,
        nodes: frozenset[str] | None,
        answer_to: Callable[[Reply], None],
        *,
        hurried: bool = False,
    ) -> None:
        """Take a body from a sender who may write `nodes`; `answer_to` is called once, in the event loop.

        `hurried`: see Push.
        """
        self._loop = asyncio.get_running_loop()
        if nodes is not None and self._waiting_of.get(nodes, 0) >= MOST_OF_ONE:
            self._live.counters["pushes_busy"] += 1
            text = f"{MOST_OF_ONE} batches of {', '.join(sorted(nodes))} wait already: send one at a time"
            answer_to(refusal(429, text, retry_after_s=1))
            return
        if self._waiting_bytes > MOST_WAITING_BYTES:
            self._live.counters["pushes_busy"] += 1
            answer_to(refusal(503, f"{MOST_WAITING_BYTES} bytes wait already", retry_after_s=1))
            return
        sent_ns = int(clock) if clock.isdigit() else None
        push = _Push(
            body, self._live.clock_ns(), sent_ns, self._tell_group, nodes, hurried, answer_to=answer_to
        )
        try:
            self._live.submit(push)
        except BusyError as error:
            answer_to(_reply(error))
            return
        self._count(push, 1)

    def _count(self, push: Push, sign: int) -> None:
        """A push waits (+1), or does no more (-1)."""
        self._waiting_bytes += sign * len(push.data)
        if isinstance(push.writes_for, frozenset):
            waiting = self._waiting_of.pop(push.writes_for, 0) + sign
            if waiting:
                self._waiting_of[push.writes_for] = waiting

    def _tell(self, pushes: list[Push]) -> None:
        """In the thread of the collector: wake the event loop once for a whole group."""
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
            self._loop.call_soon_threadsafe(self._answer, pushes)

    def _answer(self, pushes: list[Push]) -> None:
        for push in pushes:
            self._count(push, -1)
            assert isinstance(push, _Push)
            push.answer_to(_reply(push.answer))


def unauthorized() -> Reply:
    """The answer to a sender who may write nothing."""
    return replace(refusal(401, _WHO), headers=((b"www-authenticate", b"Bearer"),))


def refusal(status: int, detail: str, retry_after_s: int | None = None) -> Reply:
    """An answer that says what is wrong, and when to come again."""
    headers = () if retry_after_s is None else ((b"retry-after", str(retry_after_s).encode()),)
    return Reply(status, json.dumps({"detail": detail}).encode(), headers)


def _reply(answer: Ack | UnidleError | None) -> Reply:
    if isinstance(answer, Ack):
        facts, again = (b"true" if flag else b"false" for flag in (answer.send_facts, answer.duplicate))
        body = b'{"ack":%d,"send_facts":%b,"duplicate":%b}' % (answer.ack, facts, again)
        return Reply(200, _asking(body, answer.flights) if answer.flights else body)
    if isinstance(answer, WireError):
        return refusal(400, str(answer))
    if isinstance(answer, ForbiddenError):
        return refusal(403, str(answer))
    if isinstance(answer, BrokenError):
        return refusal(500, str(answer))
    return refusal(503, str(answer), FULL_RETRY_S if isinstance(answer, StoreFull) else 1)


def _asking(body: bytes, flights: Sequence[tuple[str, str]]) -> bytes:
    """`body` with the windows of the flight recorder that are asked for."""
    wanted = [{"gpu": gpu, "request": request} for gpu, request in flights]
    return body[:-1] + b',"flight":' + json.dumps(wanted).encode() + b"}"
