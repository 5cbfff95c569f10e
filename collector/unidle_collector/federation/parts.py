"""What a report is made of, read from one live collector: all of a site, or one shard of it.

It holds names and small groups, so it stays within the site; `sending` makes of it what crosses.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from unidle_agent.wire import Owner
from unidle_collector import reading
from unidle_collector.accounts.buckets import HOUR_NS
from unidle_collector.federation.report import GROUPED, HOURS_OF_S, Now, Wellness
from unidle_collector.inventory import Tenure
from unidle_collector.live import Live
from unidle_collector.model import Account, Finding, Fleet, Health, Recommendation
from unidle_collector.pergpu import SECOND_NS

NOBODY_SAYS = "?"
"""All who use GPUs without anybody saying who they are: they may be one person, so they count as one."""
SETTLED_NS = 2 * HOUR_NS
"""After this an hour changes by late rows only: longer than any state is booked back."""
FREE_STATES = ("unallocated", "unknown")
"""Time in these is nobody's."""


@dataclass(frozen=True, slots=True)
class Part:
    """The accounts of one window, all of the same instant."""

    by: dict[str, tuple[Account, ...]]
    """Dimension -> accounts."""
    persons: dict[str, dict[str, tuple[str, ...]]]
    """Dimension of GROUPED -> key -> who had time in it that was not free, as pseudonyms."""


@dataclass(frozen=True, slots=True)
class About:
    """A site as it is now, beside its accounts."""

    site_id: str
    site: str
    simulated: bool
    sent_ns: int
    as_of_ns: int | None
    now: Now
    findings: Sequence[Finding]
    recommendations: Sequence[Recommendation]
    health: Wellness


def site_id(data_dir: Path) -> str:
    """The id of this collector, made on first use and kept beside its store."""
    path = data_dir / "site.id"
    if not path.is_file():
        path.write_text(uuid.uuid4().hex + "\n", encoding="ascii")
    return path.read_text(encoding="ascii").strip()


def about(live: Live) -> About:
    """The whole of a collector; runs in the thread that owns `live`."""
    return About(
        site_id=site_id(live.settings.data_dir),
        site=live.settings.site,
        simulated=reading.simulated(live),
        sent_ns=live.clock_ns(),
        as_of_ns=live.window.time_ns,
        now=now_of(reading.fleet(live, 0.0)),
        findings=live.engine.findings(),
        recommendations=reading.recommendations(live),
        health=wellness_of(reading.health(live)),
    )


def now_of(fleet: Fleet) -> Now:
    """Its numbers."""
    return Now(fleet.nodes, fleet.gpus, fleet.simulated_gpus, fleet.jobs, fleet.states)


def wellness_of(health: Health) -> Wellness:
    """Without the words."""
    return Wellness(health.ok, len(health.problems), health.lag_s)


def part(live: Live, window_s: float, dimensions: Collection[str], hours: Hours) -> Part:
    """The accounts of a window by these of DIMENSIONS; runs in the thread that owns `live`."""
    by: dict[str, tuple[Account, ...]] = {}
    persons: dict[str, dict[str, tuple[str, ...]]] = {}
    for dimension in dimensions:
        if dimension == "hour":
            if window_s == HOURS_OF_S:
                by[dimension] = tuple(hours.accounts(live))
            continue
        by[dimension] = tuple(reading.accounts(live, dimension, window_s))
        if dimension in GROUPED:
            found = _persons(live, reading.key_of(live, dimension), window_s)
            persons[dimension] = {key: tuple(sorted(who)) for key, who in found.items()}
    return Part(by, persons)


class Hours:
    """The whole site by hours of the clock, the same hours at every site; a key is the begin in ns.

    An hour that has long been over is added up once an hour only: late rows show in it that much later.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[int, list[Account]]] = {}
        """Begin of an hour -> event time when it was added up, and its account, if any."""

    def accounts(self, live: Live) -> list[Account]:
        """The last day; runs in the thread that owns `live`."""
        end_ns = live.window.time_ns
        if end_ns is None:
            return []
        first = (end_ns - int(HOURS_OF_S * SECOND_NS)) // HOUR_NS * HOUR_NS
        before, self._kept = self._kept, {}
        for begin in range(first, end_ns, HOUR_NS):
            made_ns, found = before.get(begin, (0, []))
            open_still = begin + HOUR_NS + SETTLED_NS > made_ns
            if open_still or end_ns - made_ns >= HOUR_NS:
                key, stop_ns = str(begin), min(begin + HOUR_NS, end_ns)
                found = live.engine.ledger.accounts(lambda _, key=key: key, begin, stop_ns)  # type: ignore[misc]
                made_ns = end_ns
            self._kept[begin] = (made_ns, found)
        return [account for _, found in self._kept.values() for account in found]


def _persons(live: Live, key_of: Callable[[Tenure], str | None], window_s: float) -> dict[str, set[str]]:
    """Key -> who had time in it that was not free, within the window."""
    end_ns = live.window.time_ns
    if end_ns is None:
        return {}

    def key_and_person(tenure: Tenure) -> str | None:
        key = key_of(tenure)
        return None if key is None else f"{_person(tenure.owner)}\0{key}"

    start_ns = end_ns - int(window_s * SECOND_NS)
    tally = live.engine.ledger.tally(key_and_person, start_ns, end_ns)
    used = [number for number, (state, _) in enumerate(tally.codes) if state not in FREE_STATES]
    found: dict[str, set[str]] = {}
    for column, both in enumerate(tally.keys):
        person, _, key = both.partition("\0")
        if tally.seconds[used, column].any():
            found.setdefault(key, set()).add(person)
    return found


def _person(owner: Owner) -> str:
    return owner.user or NOBODY_SAYS
