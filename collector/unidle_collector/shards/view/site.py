"""What a site in shards answers: every shard asked, their answers merged."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import pyarrow as pa
from pydantic_core import from_json

from unidle_agent.shards import SHARDS
from unidle_collector import reading
from unidle_collector.api import arrow
from unidle_collector.api.pages import Cut, Page
from unidle_collector.client import ARROW, JSON, following
from unidle_collector.detectors import plural
from unidle_collector.flights import MOST_OF_INCIDENT
from unidle_collector.model import (
    Account,
    Finding,
    Fleet,
    FlightRecording,
    Health,
    Incident,
    JobNow,
    NodeNow,
    Queue,
    Recommendation,
)
from unidle_collector.recommend import recommend
from unidle_collector.shards.view import merging
from unidle_collector.shards.view.asking import (
    Answer,
    Asking,
    NoAnswerError,
    Query,
    Reader,
    gap_words,
    none_answers,
)
from unidle_collector.shards.view.findings import of_site
from unidle_collector.shards.view.incidents import SiteIncidents
from unidle_collector.shards.view.merging import Away
from unidle_collector.store import State
from unidle_collector.store.errors import StoreError

T = TypeVar("T")
API = "/api/v1"
IN_A_ROW = 4
"""Shards that are asked at once for the next items of such a list."""


@dataclass(frozen=True, slots=True)
class _Held:
    """Of a job, what it takes to count it."""

    job: str
    gpus: tuple[Any, ...]


class Site:
    """The site, as far as its shards tell."""

    def __init__(
        self,
        asking: Asking,
        state: State,
        incidents: SiteIncidents,
        site: str,
        series: str,
        problems: Callable[[], tuple[str, ...]],
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """`state`: what all collectors share; `problems`: what is wrong with this one."""
        self.asking, self.state, self.incidents = asking, state, incidents
        self.site, self.series = site, series
        self.problems, self.clock_ns = problems, clock_ns
        self._started_s = time.monotonic()

    # -- now -------------------------------------------------------------------------------------

    async def health(self, reader: Reader) -> Health:
        """Can the site be trusted now."""
        found = await self.asking.records(reader, Health, f"{API}/health")
        uptime_s = time.monotonic() - self._started_s
        return merging.health(found, self.problems(), await self.away(reader), uptime_s=uptime_s)

    async def fleet(
        self, reader: Reader, window_s: float, findings: Sequence[Finding] | None = None
    ) -> Fleet:
        """Everything at a glance; `findings` where they were asked for already."""
        if findings is None:
            findings = await self.findings(reader)
        parts, held, open_incidents = await asyncio.gather(
            self.asking.records(reader, Fleet, f"{API}/fleet", [("window_s", window_s)]),
            self.asking.lists(reader, _Held, f"{API}/jobs"),
            asyncio.to_thread(self.state.open_count),
        )
        return merging.fleet(
            [part for shard, part in parts.items() if shard not in reader.gaps],
            await self.away(reader),
            site=self.site,
            window_s=window_s,
            now_ns=self.clock_ns(),
            jobs=len({one.job for one in held if one.gpus}),
            open_incidents=open_incidents,
            recommendations=len(advised(findings)),
        )

    async def nodes(self, reader: Reader, page: Page) -> Cut[NodeNow]:
        """A page of all nodes: the name that it begins behind means the same in every shard."""
        query: Query = [("limit", page.limit)]
        if page.after is not None:
            query = [*query, ("after", page.cursor(page.after))]
        answers = await self.asking.each(reader, f"{API}/nodes", query)
        if not answers:
            raise none_answers(reader)
        lists = [self.asking.parsed(reader, list[NodeNow], answer) or [] for answer in answers]
        here: list[NodeNow] = sorted((one for found in lists for one in found), key=lambda one: one.node)
        more = len(here) > page.limit or any(answer.headers.get("link") for answer in answers)
        here = here[: page.limit]
        return Cut(here, page.cursor((here[-1].node,)) if more else "")

    async def away(self, reader: Reader) -> list[Away]:
        """The shards that did not answer, with what they have by their last checkpoint."""

        def look(shard: int, reason: str) -> Away:
            words = gap_words(shard, reason)
            try:
                kept = self.incidents.kept(shard)
            except StoreError:
                return Away(f"{words}; how many GPUs it has is unknown")
            if kept is None:
                return Away(words)
            return Away(f"{words}; its {plural(kept[1], 'GPU')} count as unknown", *kept)

        asked = [asyncio.to_thread(look, *gap) for gap in sorted(reader.gaps.items())]
        return list(await asyncio.gather(*asked))

    async def accounts(self, reader: Reader, by: str, window_s: float) -> list[Account]:
        """Where the time went, by what can be in several shards; in the order of the keys."""
        query: Query = [("by", by), ("window_s", window_s)]
        merged = merging.accounts(await self.asking.lists(reader, Account, f"{API}/accounts", query))
        if by in merging.WHOLE and reader.gaps and merged:
            gpus = sum(shard.gpus for shard in await self.away(reader))
            merged = [merging.with_unknown(account, gpus, window_s) for account in merged]
        return sorted(merged, key=account_key(by))

    async def jobs(self, reader: Reader) -> list[JobNow]:
        """Every job that holds GPUs now, the most GPUs first."""
        found = merging.jobs(await self.asking.lists(reader, JobNow, f"{API}/jobs"))
        return sorted(found, key=merging.job_key)

    async def queue(self, reader: Reader) -> Queue:
        """What waits for GPUs."""
        return merging.queue(list((await self.asking.records(reader, Queue, f"{API}/queue")).values()))

    # -- wrong -----------------------------------------------------------------------------------

    async def findings(self, reader: Reader) -> list[Finding]:
        """Everything that is wrong now; what several shards find about one job is one finding."""
        found, parts = await asyncio.gather(
            self.asking.lists(reader, Finding, f"{API}/findings"), asyncio.to_thread(self.incidents.parts)
        )
        return of_site(found, parts)

    async def as_of_now(self, reader: Reader, kept: Sequence[Incident]) -> list[Incident]:
        """Incidents with what is known now of those that are open."""
        reader.simulated = reader.simulated or any(one.finding.simulated for one in kept)
        if all(one.state != "open" for one in kept):
            return list(kept)
        try:
            findings = await self.findings(reader)
        except NoAnswerError:  # then they are as they were last
            return list(kept)
        now, time_ns = {finding.id: finding for finding in findings}, _time_ns(findings)
        return [reading.as_of_now(one, now, time_ns) for one in kept]

    async def incident(self, reader: Reader, incident_id: str) -> Incident:
        """One incident, as of now; raises NotHereError."""
        kept = await asyncio.to_thread(self.state.incident, incident_id)
        if kept is None:
            raise reading.NotHereError(f"no incident {incident_id!r}; {API}/incidents?state=all lists them")
        return (await self.as_of_now(reader, [kept]))[0]

    async def flights(self, reader: Reader, incident_id: str) -> list[FlightRecording]:
        """What the flight recorders of all its GPUs held, newest first; raises NotHereError."""
        await self.incident(reader, incident_id)
        parts = await asyncio.to_thread(self.incidents.parts_of, incident_id)
        found = await asyncio.gather(
            *(
                self.asking.records(
                    reader, list[FlightRecording], f"{API}/incidents/{part}/flights", shards=[shard]
                )
                for shard, part in parts
            )
        )
        every = [recording for answers in found for told in answers.values() for recording in told]
        return sorted(every, key=lambda one: -one.taken_ns)[:MOST_OF_INCIDENT]

    async def over_all(self, reader: Reader, kind: type[T], path: str, query: Query) -> list[T]:
        """What is answered over all shards; raises NotHereError where nobody has anything.

        An engine that all write to is asked once: each shard reads the whole site from it.
        """
        found: dict[int, T] = {}
        if self.series == "embedded":
            found = await self.asking.records(reader, kind, f"{API}/{path}", query)
        else:
            for shard in range(SHARDS):
                found = await self.asking.records(reader, kind, f"{API}/{path}", query, [shard])
                if shard not in reader.gaps:
                    reader.gaps.clear()  # whoever answers knows it all
                    break
        if not found and reader.gaps:
            raise none_answers(reader)
        if not found:
            raise reading.NotHereError(f"{path}: nothing is kept of it (yet: it takes a minute or two)")
        return list(found.values())

    # -- lists that are as long as the fleet -----------------------------------------------------

    async def by_shard(
        self, reader: Reader, page: Page, path: str, query: Query, as_arrow: bool
    ) -> tuple[bytes, str]:
        """A page of a list whose items are each in one shard, encoded, and the cursor of the next one.

        Shard by shard, in the order of each; the cursor is (shard, cursor there). A page ends before the
        first shard whose items do not fit.
        """
        bodies, behind = await self._page(reader, page, f"{API}/{path}", query, as_arrow)
        if not bodies:
            raise none_answers(reader)
        return await asyncio.to_thread(_joined, bodies, as_arrow), behind

    async def _page(
        self, reader: Reader, page: Page, path: str, query: Query, as_arrow: bool
    ) -> tuple[list[bytes], str]:
        first, inner = _place(page)
        bodies: list[bytes] = []
        left = page.limit
        for begin in range(first, SHARDS, IN_A_ROW):
            asked = [(shard, inner if shard == first else "") for shard in range(begin, SHARDS)[:IN_A_ROW]]
            for answer in await self._row(reader, path, [*query, ("limit", page.limit)], asked, as_arrow):
                count = _count(answer.body, as_arrow)
                if count > left:
                    return bodies, page.cursor((answer.shard, ""))
                bodies.append(answer.body)
                left -= count
                if behind := dict(parse_qsl(following(answer.headers.get("link", "")))).get("after"):
                    return bodies, page.cursor((answer.shard, behind))
        return bodies, ""

    async def _row(
        self, reader: Reader, path: str, query: Query, asked: Sequence[tuple[int, str]], as_arrow: bool
    ) -> list[Answer]:
        accept = ARROW if as_arrow else JSON
        queries = [(shard, [*query, ("after", after)] if after else query) for shard, after in asked]
        found = await asyncio.gather(
            *(self.asking.each(reader, path, query, [shard], accept) for shard, query in queries)
        )
        return [answer for answers in found for answer in answers]


def account_key(by: str) -> Callable[[Account], tuple[Any, ...]]:
    """The order of accounts by that dimension."""
    if by == reading.HOUR:
        return lambda account: (int(account.key),)
    return lambda account: (account.key,)


def _time_ns(findings: Sequence[Finding]) -> int:
    """The newest word of any of them: the same whichever collector is asked."""
    return max((finding.updated_ns for finding in findings), default=0)


def advised(findings: Sequence[Finding]) -> list[Recommendation]:
    """What to do about the findings of the site."""
    return recommend(findings, _time_ns(findings))


def _place(page: Page) -> tuple[int, str]:
    """Shard, and cursor there, that a page of such a list begins behind."""
    match page.after:
        case None:
            return 0, ""
        case (int(shard), str(inner)) if 0 <= shard < SHARDS:
            return shard, inner
        case _:
            raise page.wrong()


def _count(body: bytes, as_arrow: bool) -> int:
    return int(_table(body).num_rows) if as_arrow else len(from_json(body))


def _joined(bodies: Sequence[bytes], as_arrow: bool) -> bytes:
    """The lists of several answers as one; a column that some do not have is unknown there."""
    if as_arrow:
        tables = [_table(body) for body in bodies]
        return arrow.stream(pa.concat_tables(tables, promote_options="default"))
    return b"[" + b",".join(inside for body in bodies if (inside := body.strip()[1:-1])) + b"]"


def _table(body: bytes) -> Any:
    return pa.ipc.open_stream(body).read_all()
