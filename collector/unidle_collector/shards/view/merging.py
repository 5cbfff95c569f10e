"""What several shards answer, as one answer. Pure; a job can be in several shards, a node or GPU in one only.

Seconds and costs are added, ratios worked out anew; nothing averages averages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, TypeVar

from unidle_collector.federation.adding import add_accounts
from unidle_collector.model import (
    STATES,
    Account,
    Fleet,
    FleetSeries,
    Health,
    JobNow,
    JobQuantile,
    Queue,
    SchedulerNow,
)
from unidle_collector.pergpu import SECOND_NS
from unidle_collector.reading import CONFIDENCES

T = TypeVar("T")
WHOLE = ("fleet", "site")
"""Dimensions whose one account holds the unknown time of shards that do not answer."""


@dataclass(frozen=True, slots=True)
class Away:
    """A shard that did not answer, and what its last checkpoint says it has."""

    words: str
    nodes: int = 0
    gpus: int = 0


def fleet(
    parts: Sequence[Fleet],
    away: Sequence[Away],
    *,
    site: str,
    window_s: float,
    now_ns: int,
    jobs: int,
    open_incidents: int,
    recommendations: int,
) -> Fleet:
    """The site at a glance; the GPUs of a shard that does not answer are there, in state unknown."""
    states: dict[str, int] = {}
    for state, count in (item for part in parts for item in part.states.items()):
        states[state] = states.get(state, 0) + count
    lost = sum(shard.gpus for shard in away)
    if lost:
        states["unknown"] = states.get("unknown", 0) + lost
    end_ns = max((part.account.end_ns for part in parts), default=now_ns)
    empty = Account("fleet", end_ns - int(window_s * SECOND_NS), end_ns, 0, dict.fromkeys(STATES, 0.0))
    account = add_accounts("fleet", [part.account for part in parts if part.gpus] or [empty])
    return Fleet(
        site=site,
        time_ns=min((part.time_ns for part in parts if part.time_ns is not None), default=None),
        simulated=any(part.simulated for part in parts),
        nodes=sum(part.nodes for part in parts) + sum(shard.nodes for shard in away),
        gpus=sum(part.gpus for part in parts) + lost,
        jobs=jobs,
        states=states,
        account=with_unknown(account, lost, window_s),
        open_incidents=open_incidents,
        recommendations=recommendations,
        gaps=tuple(shard.words for shard in away),
        simulated_gpus=sum(part.simulated_gpus for part in parts),
    )


def with_unknown(account: Account, gpus: int, window_s: float) -> Account:
    """The account with that many GPUs of which nobody knows anything in the whole window."""
    unknown_s = account.seconds.get("unknown", 0.0) + gpus * window_s
    return replace(account, gpus=account.gpus + gpus, seconds=account.seconds | {"unknown": unknown_s})


def accounts(parts: Iterable[Account]) -> list[Account]:
    """One account per key."""
    found = grouped(parts, lambda account: account.key)
    return [members[0] if len(members) == 1 else add_accounts(key, members) for key, members in found.items()]


def jobs(parts: Iterable[JobNow]) -> list[JobNow]:
    """One record per job: the scheduler's word is in every shard, its GPUs each in its own."""
    found = grouped(parts, lambda job: job.job)
    return [members[0] if len(members) == 1 else _job(members) for members in found.values()]


def _job(members: Sequence[JobNow]) -> JobNow:
    seen = sorted(members, key=lambda one: not one.gpus)  # who has GPUs of it knows more
    first = seen[0]
    sure = [one.confidence for one in members if one.gpus and one.confidence in CONFIDENCES]
    words = [word for one in seen for word in one.source.split("+") if word]
    return replace(
        first,
        user=next((one.user for one in seen if one.user), ""),
        gpus=tuple(ref for one in seen for ref in one.gpus),
        nodes=tuple(dict.fromkeys(name for one in seen for name in one.nodes)),
        interactive=_known_or(one.interactive for one in seen),
        source="+".join(dict.fromkeys(words)),
        confidence=min(sure, key=CONFIDENCES.index) if sure else first.confidence,
        notes=tuple(sorted({note for one in members for note in one.notes})),
        simulated=any(one.simulated for one in members),
    )


def job_key(job: JobNow) -> tuple[int, int, str]:
    """The order of a list of jobs: the most GPUs first (see reading.Holding)."""
    return -len(job.gpus), -(job.granted_gpus or 0), job.job


def queue(parts: Sequence[Queue]) -> Queue:
    """What waits: every shard asks the same scheduler, the newest word holds."""
    return max(parts, key=lambda part: _taken_ns(part.scheduler), default=Queue(None, None, None))


def health(
    parts: Mapping[int, Health],
    own: Sequence[str],
    away: Sequence[Away],
    *,
    uptime_s: float,
) -> Health:
    """Can the site be trusted now. `own`: what is wrong with the collector that answers."""
    told: dict[str, list[int]] = {}
    for shard, part in parts.items():
        for text in part.problems:
            told.setdefault(text, []).append(shard)
    problems = (
        *own,
        *(f"shard {', '.join(map(str, shards))}: {text}" for text, shards in told.items()),
        *(shard.words for shard in away),
    )
    counters: dict[str, float] = {"shards_answering": len(parts), "shards_away": len(away)}
    for part in parts.values():
        for name, count in part.counters.items():
            counters[name] = counters.get(name, 0.0) + count
    known = [part for part in parts.values() if part.event_time_ns is not None]
    schedulers = [part.scheduler for part in parts.values() if part.scheduler is not None]
    return Health(
        ok=not problems,
        problems=problems,
        version=version("unidle"),
        simulated=any(part.simulated for part in parts.values()),
        uptime_s=uptime_s,
        event_time_ns=min((part.event_time_ns for part in known if part.event_time_ns), default=None),
        lag_s=max((part.lag_s for part in known if part.lag_s is not None), default=None),
        counters=counters,
        scheduler=max(schedulers, key=_taken_ns, default=None),
    )


def fleet_series(parts: Sequence[FleetSeries]) -> FleetSeries:
    """One field of all GPUs: a mean weighs by the rows it rests on; every part has the same steps' begins."""
    steps: dict[int, list[tuple[float, float, float | None, float | None]]] = {}
    for part in parts:
        for at, value, low, high, rows in zip(
            part.times_ns, part.values, part.low, part.high, part.rows, strict=True
        ):
            known = steps.setdefault(at, [])
            if value is not None and rows > 0:
                known.append((value, rows, low, high))
    ordered = sorted(steps.items())
    sums = [sum(rows for _, rows, _, _ in step) for _, step in ordered]
    return replace(
        parts[0],
        times_ns=tuple(at for at, _ in ordered),
        values=tuple(
            sum(value * rows for value, rows, _, _ in step) / total if total else None
            for (_, step), total in zip(ordered, sums, strict=True)
        ),
        low=tuple(min((low for *_, low, _ in step if low is not None), default=None) for _, step in ordered),
        high=tuple(max((high for *_, high in step if high is not None), default=None) for _, step in ordered),
        rows=tuple(sums),
    )


def quantile(parts: Sequence[JobQuantile]) -> JobQuantile:
    """Of a job in several shards: the quantile of the whole lies between the least and the most of theirs."""
    return replace(
        parts[0],
        low=min(part.low for part in parts),
        high=max(part.high for part in parts),
        samples=sum(part.samples for part in parts),
    )


def grouped(items: Iterable[T], key: Callable[[T], Any]) -> dict[Any, list[T]]:
    """Items by their key, in the order of the first of each."""
    found: dict[Any, list[T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def _taken_ns(scheduler: SchedulerNow | None) -> int:
    return (scheduler.taken_ns or 0) if scheduler is not None else -1


def _known_or(values: Iterable[bool | None]) -> bool | None:
    """True where anybody says so, else what is known."""
    said = set(values)
    return True if True in said else False if False in said else None
