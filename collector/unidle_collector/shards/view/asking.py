"""Asks shards: those that are held here within this process, the others over HTTP with the reader's token."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode

from pydantic import TypeAdapter, ValidationError

from unidle_agent import fetch
from unidle_agent.errors import UnidleError
from unidle_agent.shards import SHARDS
from unidle_collector.client import JSON, following
from unidle_collector.reading import AskedWrongError
from unidle_collector.shards.leases import Lease

DEADLINE_S = 5.0
"""A shard that takes longer is named instead; clients wait 10 s for the whole answer."""
TABLE_HOLDS_S = 1.0
MOST_BYTES = 256 * 1024 * 1024
AT_ONCE = 64
"""Questions to other collectors that are under way at a time."""
MOST_ITEMS = 10_000
"""Of one page, where all of a list are wanted."""
HOST = b"host"
PASSED_ON = (b"authorization", HOST)
"""Headers of the reader that shards see; of those that are held elsewhere, the host is another one."""
SIMULATED = "x-unidle-simulated"

T = TypeVar("T")
Query = Sequence[tuple[str, str | float]]
Headers = dict[bytes, bytes]
App = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]


class NoAnswerError(UnidleError):
    """A shard did not answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one shard answered."""

    shard: int
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def detail(self) -> str:
        """Why it is no answer, in a collector's words; empty where they are not a collector's."""
        try:
            return str(json.loads(self.body)["detail"])
        except (ValueError, KeyError, TypeError):
            return ""


@dataclass(slots=True)
class Reader:
    """Who asks, and what became of the questions to the shards."""

    headers: Headers
    """PASSED_ON of the request."""
    gaps: dict[int, str] = field(default_factory=dict)
    """Shard -> why it did not answer."""
    silent: dict[str, str] = field(default_factory=dict)
    """Holder -> why it did not answer: it is not asked again, else many questions in a row take too long."""
    simulated: bool = False
    """Did any of the answers say so."""


class Asking:
    """Asks on behalf of readers."""

    def __init__(
        self,
        holder: str,
        table: Callable[[], list[Lease]],
        here: Callable[[int], App | None],
        ca_file: str = "",
        deadline_s: float = DEADLINE_S,
    ) -> None:
        """`here`: the whole API of a shard that this collector, `holder`, holds; None while it is opened."""
        self._holder = holder
        self._table, self._here = table, here
        self._ca_file, self._deadline_s = ca_file, deadline_s
        self._known: tuple[float, dict[int, Lease]] | None = None
        self._threads = ThreadPoolExecutor(AT_ONCE, "shards")

    async def each(
        self,
        reader: Reader,
        path: str,
        query: Query = (),
        shards: Iterable[int] = range(SHARDS),
        accept: str = JSON,
    ) -> list[Answer]:
        """What the shards answer, by shard; one that does not is a gap of `reader`.

        One that has nothing of the kind (404) is no gap. Raises AskedWrongError where the question is at
        fault, which every shard says alike.
        """
        found = await asyncio.gather(*(self._one(reader, shard, path, query, accept) for shard in shards))
        answers = [answer for answer in found if answer is not None]
        for answer in answers:
            if answer.status == 422:
                raise AskedWrongError(answer.detail)
        return [answer for answer in answers if answer.status == 200]

    async def one(
        self, reader: Reader, shard: int, path: str, query: Query = (), accept: str = JSON
    ) -> Answer:
        """What that shard answers, be it that there is no such thing; raises NoAnswerError."""
        answer = await self._one(reader, shard, path, query, accept)
        if answer is None:
            raise NoAnswerError(f"{gap_words(shard, reader.gaps[shard])}: ask again")
        return answer

    async def records(
        self,
        reader: Reader,
        kind: type[T],
        path: str,
        query: Query = (),
        shards: Iterable[int] = range(SHARDS),
    ) -> dict[int, T]:
        """One record of each shard that answers, by shard."""
        answers = await self.each(reader, path, query, shards)
        found = {answer.shard: self.parsed(reader, kind, answer) for answer in answers}
        return {shard: record for shard, record in found.items() if record is not None}

    async def lists(self, reader: Reader, kind: type[T], path: str, query: Query = ()) -> list[T]:
        """The records of every page of a list, of all shards that answer, by shard.

        Raises NoAnswerError where none does: an empty list would say that there is nothing.
        """

        async def of_one(shard: int) -> list[T]:
            found: list[T] = []
            asked: Query = [*query, ("limit", MOST_ITEMS)]
            while asked:
                pages = await self.each(reader, path, asked, [shard])
                page = self.parsed(reader, list[kind], pages[0]) if pages else None  # type: ignore[valid-type]
                if page is None:
                    return []  # a part of it would look like all of it
                found += page
                asked = parse_qsl(following(pages[0].headers.get("link", "")))
            return found

        lists = await asyncio.gather(*map(of_one, range(SHARDS)))
        if len(reader.gaps) == SHARDS:
            raise none_answers(reader)
        return [item for items in lists for item in items]

    def parsed(self, reader: Reader, kind: Any, answer: Answer) -> Any:
        """What an answer holds; None, and a gap, where it is another version's."""
        try:
            return _adapter(kind).validate_json(answer.body)
        except ValidationError as error:
            reader.gaps[answer.shard] = (
                f"its answer does not fit this version of unidle ({error.error_count()} places): "
                "bring all collectors to one version"
            )
            return None

    async def _one(self, reader: Reader, shard: int, path: str, query: Query, accept: str) -> Answer | None:
        try:
            answer = await self._asked(reader, shard, path, query, accept)
            if answer.status not in (200, 404, 422) or (answer.status != 200 and not answer.detail):
                raise NoAnswerError(answer.detail or f"HTTP {answer.status}")
        except UnidleError as error:
            reader.gaps[shard] = str(error)
            return None
        reader.simulated = reader.simulated or SIMULATED in answer.headers
        return answer

    async def _asked(self, reader: Reader, shard: int, path: str, query: Query, accept: str) -> Answer:
        headers = {**reader.headers, b"accept": accept.encode()}
        for _ in range(2):
            lease = (await self._leases()).get(shard)
            if lease is None or not lease.holder:
                raise NoAnswerError("no collector holds it")
            if lease.holder != self._holder:
                if lease.holder in reader.silent:
                    raise NoAnswerError(reader.silent[lease.holder])
                answer = await self._elsewhere(reader, lease, path, query, headers)
            elif (app := self._here(shard)) is not None:
                answer = await self._inside(app, lease, path, query, headers)
            else:
                raise NoAnswerError("it is being taken up")
            if answer.status != 307:
                return answer
            self._known = None  # it has changed hands since we looked
        raise NoAnswerError("it is changing hands")

    async def _leases(self) -> dict[int, Lease]:
        """Who holds what; the last that was known while the database is away."""
        known = self._known
        if known is not None and time.monotonic() - known[0] < TABLE_HOLDS_S:
            return known[1]
        try:
            leases = {lease.shard: lease for lease in await asyncio.to_thread(self._table)}
        except UnidleError:
            if known is None:
                raise
            leases = known[1]
        self._known = (time.monotonic(), leases)
        return leases

    async def _inside(self, app: App, lease: Lease, path: str, query: Query, headers: Headers) -> Answer:
        try:
            asked = _call(app, lease.shard, path, query, headers)
            return await asyncio.wait_for(asked, self._deadline_s)
        except TimeoutError as error:
            raise NoAnswerError(f"no answer within {self._deadline_s:g} s") from error

    async def _elsewhere(
        self, reader: Reader, lease: Lease, path: str, query: Query, headers: Headers
    ) -> Answer:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, self._fetch, lease, path, query, headers)
        except UnidleError as error:
            reader.silent[lease.holder] = f"{lease.holder} at {lease.url}: {error}"
            raise NoAnswerError(reader.silent[lease.holder]) from error

    def _fetch(self, lease: Lease, path: str, query: Query, headers: Headers) -> Answer:
        to = fetch.target(lease.url, "collector.advertise_url")
        over = fetch.connection(to, self._deadline_s, self._ca_file)
        try:
            answer = fetch.exchange(
                over,
                "GET",
                f"{to.path}/shards/{lease.shard}{path}?{urlencode(query)}",
                deadline_s=self._deadline_s,
                max_bytes=MOST_BYTES,
                headers={
                    name.decode(): value.decode("latin-1") for name, value in headers.items() if name != HOST
                },
            )
        finally:
            over.close()
        if not answer.whole:
            raise NoAnswerError("expected a whole answer, came a part of it")
        return Answer(lease.shard, answer.status, dict(answer.headers), answer.body)


def gap_words(shard: int, reason: str) -> str:
    """A shard that is not in an answer, in words."""
    return f"shard {shard}: {reason}"


def none_answers(reader: Reader) -> NoAnswerError:
    """What to raise where no shard that was asked answers."""
    words = "; ".join(gap_words(*gap) for gap in sorted(reader.gaps.items()))
    return NoAnswerError(f"no shard answers: {words}")


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


async def _call(app: App, shard: int, path: str, query: Query, headers: Headers) -> Answer:
    """One GET of an ASGI application, without a server."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": urlencode(query).encode(),
        "headers": list(headers.items()),
        "client": None,
        "server": None,
    }
    asked, over = False, asyncio.Event()
    status, answered, body = 500, {}, bytearray()

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if asked:  # who waits for this waits for the reader to leave
            await over.wait()
            return {"type": "http.disconnect"}
        asked = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status, answered
        if message["type"] == "http.response.start":
            status = message["status"]
            answered = {name.decode().lower(): value.decode("latin-1") for name, value in message["headers"]}
        else:
            body.extend(message.get("body", b""))
            if not message.get("more_body", False):
                over.set()

    try:
        await app(scope, receive, send)
    except Exception:  # it was answered with 500 and is in the log, as over HTTP
        if not over.is_set():
            raise
    return Answer(shard, status, answered, bytes(body))
