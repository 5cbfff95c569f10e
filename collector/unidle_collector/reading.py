"""What the API answers, read from the live collector.

Every function that takes a `Live` runs in its owning thread, and is short at 10,000 GPUs; those without one
may run anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from unidle_agent.errors import UnidleError
from unidle_collector.accounts.buckets import FINE_NS, HOUR_NS
from unidle_collector.accounts.dimensions import NOTHING
from unidle_collector.accounts.grouping import Grouping, KeyOf
from unidle_collector.accounts.past_hours import Asked, RefKey
from unidle_collector.accounts.tally import Tally
from unidle_collector.gpu_sheet import STALE_S
from unidle_collector.live import Live
from unidle_collector.model import (
    Account,
    Finding,
    Fleet,
    Health,
    Incident,
    JobNow,
    NodeNow,
    Queue,
    Recommendation,
    Waiting,
)
from unidle_collector.pergpu import SECOND_NS
from unidle_collector.recommend import recommend
from unidle_collector.scheduler import Job

HOUR = "hour"
UNKNOWN = "unknown"
"""Key of the time of which nobody has said to whom it belongs: a row like any other, never left out."""


class AskedWrongError(UnidleError):
    """The question itself is at fault."""


class NotHereError(UnidleError):
    """What is asked for does not exist, or not any more."""


def fleet(live: Live, window_s: float) -> Fleet:
    """Everything at a glance."""
    inventory, time_ns, ledger = live.engine.inventory, live.window.time_ns, live.engine.ledger
    states: dict[str, int] = {}
    codes, counts = np.unique(ledger.codes_now(np.arange(len(inventory))), return_counts=True)
    for code, count in zip(codes.tolist(), counts.tolist(), strict=True):
        state = ledger.codes[code].state if code >= 0 else UNKNOWN
        states[state] = states.get(state, 0) + count
    found = accounts(live, "fleet", window_s)
    end_ns = time_ns or live.clock_ns()
    empty = Account("fleet", end_ns - int(window_s * SECOND_NS), end_ns, len(inventory), {})
    return Fleet(
        site=live.settings.site,
        time_ns=time_ns,
        simulated=simulated(live),
        nodes=len(inventory.node_names),
        gpus=len(inventory),
        jobs=inventory.jobs,
        states=states,
        account=found[0] if found else empty,
        open_incidents=live.state.open_count(),
        recommendations=len(recommendations(live)),
        simulated_gpus=simulated_gpus(live),
    )


def simulated(live: Live) -> bool:
    """Is anything simulated shown here."""
    return simulated_gpus(live) > 0 or any(node.simulated for node in live.nodes.values())


def simulated_gpus(live: Live) -> int:
    """How many GPUs are simulated."""
    return live.engine.inventory.simulated.count(True)


def positions(live: Live, node: str = "") -> NDArray[np.intp]:
    """Of all GPUs (of one node where it is named) in every per-GPU array, in the order of their arrival."""
    inventory = live.engine.inventory
    if not node:
        return np.arange(len(inventory))
    if node not in inventory.node_names:
        raise NotHereError(f"node: expected one that has sent something, came {node!r}")
    return np.flatnonzero(inventory.a["node"][: len(inventory)] == inventory.node_names.index(node))


CONFIDENCES = ("low", "inferred", "medium", "high")
"""From the least."""


@dataclass(frozen=True, slots=True)
class Holding:
    """A job that holds GPUs now."""

    job: str
    positions: tuple[int, ...]
    """Of its GPUs that send samples."""
    granted: int
    """GPUs that the scheduler gave it; 0 where nobody says."""

    @property
    def key(self) -> tuple[int, int, str]:
        """The most GPUs first."""
        return -len(self.positions), -self.granted, self.job


def holdings(live: Live) -> list[Holding]:
    """Every job that holds GPUs now, by either word, in the order of their keys."""
    inventory, ownership = live.engine.inventory, live.attribution.ownership
    held: dict[str, list[int]] = {}
    for position in range(len(inventory)):
        owner = inventory.owner(position)
        for job in owner.job.split(",") if owner.allocated is not False else ():
            if job:
                held.setdefault(job, []).append(position)
    snapshot = ownership.snapshot
    for known in snapshot.jobs if snapshot else ():
        if any(grant.gpus != 0 for grant in known.grants):
            held.setdefault(known.id, [])
    found = [Holding(job, tuple(mine), _granted(ownership.job(job)) or 0) for job, mine in held.items()]
    return sorted(found, key=lambda holding: holding.key)


def jobs(live: Live, held: Sequence[Holding]) -> list[JobNow]:
    """What is known of those jobs."""
    return [_job(live, holding.job, list(holding.positions)) for holding in held]


def _granted(job: Job | None) -> int | None:
    """GPUs that the scheduler gave a job; None where it does not say."""
    counts = [grant.gpus for grant in job.grants] if job else [None]
    return None if None in counts else sum(count for count in counts if count)


def _job(live: Live, job: str, positions: list[int]) -> JobNow:
    inventory, ownership = live.engine.inventory, live.attribution.ownership
    owners = [inventory.owner(position) for position in positions]
    known, dimensions = ownership.job(job), ownership.dimensions(job)
    grants = known.grants if known else ()
    scheduler = ownership.snapshot.scheduler if known and ownership.snapshot else ""
    words = [word for owner in owners for word in owner.source.split("+") if word]
    certain = [owner.confidence for owner in owners if owner.confidence in CONFIDENCES]
    return JobNow(
        job=job,
        array=known.array if known else "",
        user=next((owner.user for owner in owners if owner.user), known.user if known else ""),
        team=dimensions.team,
        partition=dimensions.partition,
        state=known.state if known else "running",
        granted_gpus=_granted(known),
        requested_gpus=known.requested_gpus * known.tasks
        if known and known.requested_gpus is not None
        else None,
        gpus=tuple(inventory.refs[position] for position in positions),
        nodes=tuple(
            dict.fromkeys((*(grant.node for grant in grants), *(inventory.refs[p].node for p in positions)))
        ),
        started_ns=known.started_ns if known else None,
        time_limit_s=known.time_limit_s if known else None,
        interactive=known.interactive if known else True if any(o.interactive for o in owners) else None,
        source="+".join(dict.fromkeys((*words, *([scheduler] if scheduler else ())))),
        confidence=min(certain, key=CONFIDENCES.index) if certain else "high" if known else "",
        notes=tuple(sorted({owner.note for owner in owners if owner.note})),
        simulated=any(inventory.simulated[position] for position in positions),
    )


def queue(live: Live) -> Queue:
    """What waits for GPUs, the longest first."""
    snapshot = live.attribution.ownership.snapshot
    if snapshot is None:
        return Queue(live.attribution.status(), None, None)
    pending = [job for job in snapshot.jobs if job.state == "pending" and job.requested_gpus != 0]
    waiting = [
        Waiting(
            job=job.id,
            array=job.array,
            tasks=job.tasks,
            user=job.user,
            team=job.team,
            partition=job.partition,
            requested_gpus=job.requested_gpus,
            requested_cpus=job.requested_cpus,
            requested_memory_bytes=job.requested_memory_bytes,
            features=job.features,
            submitted_ns=job.submitted_ns,
            eligible_ns=job.eligible_ns,
            time_limit_s=job.time_limit_s,
            reason=job.reason,
        )
        for job in sorted(pending, key=lambda job: (job.submitted_ns or 0, job.id))
    ]
    asked = [job.requested_gpus for job in pending]
    total = None if None in asked else sum((job.requested_gpus or 0) * job.tasks for job in pending)
    return Queue(live.attribution.status(), tuple(waiting), total)


def node_names(live: Live) -> list[str]:
    """Every node that has sent anything, sorted."""
    return sorted({*live.nodes, *live.engine.inventory.node_names})


def nodes(live: Live, names: Sequence[str]) -> list[NodeNow]:
    """Those nodes as they are now."""
    inventory = live.engine.inventory
    every = np.arange(len(inventory))
    numbers, sampled_ns = inventory.a["node"][every], live.window.last_samples_ns(every)
    gpus = np.bincount(numbers, minlength=len(inventory.node_names))
    newest_ns = np.full(gpus.shape, -1)
    np.maximum.at(newest_ns, numbers, sampled_ns)
    real = np.bincount(numbers, weights=~np.array(inventory.simulated, dtype=bool), minlength=gpus.size)
    number_of = {name: number for number, name in enumerate(inventory.node_names)}
    known, columns = live.window.hosts_now(names)
    rows = (
        zip(*(column.tolist() for column in columns.values()), strict=True) if columns else [()] * len(names)
    )
    out = []
    for name, there, row in zip(names, known.tolist(), rows, strict=True):
        book, number = live.nodes.get(name), number_of.get(name)
        sample_ns = -1 if number is None else int(newest_ns[number])
        out.append(
            NodeNow(
                node=name,
                gpus=0 if number is None else int(gpus[number]),
                last_sample_ns=None if sample_ns < 0 else sample_ns,
                last_push_ns=live.window.nodes.last_push_ns(name),
                clock_skew_s=book.clock_skew_s if book else None,
                rows=book.rows if book else 0,
                duplicates=book.duplicates if book else 0,
                late_rows=book.late_rows if book else 0,
                counter_resets=book.counter_resets if book else 0,
                values={n: _known(v) for n, v in zip(columns, row, strict=True)} if there else {},
                simulated=book.simulated if book else number is not None and not real[number],
            )
        )
    return out


def accounts(live: Live, by: str, window_s: float) -> list[Account]:
    """Accounts over the last `window_s` seconds of event time, whole buckets of five minutes."""
    if by == HOUR:
        return [account for span in spans(live, window_s) for account in hour(live, span).accounts()]
    found = tally(live, by, window_s)
    return list(found.accounts()) if found is not None else []


def tally(live: Live, by: str, window_s: float) -> Tally | None:
    """The accounts by anything but the hour as columns, as far as they are in memory; None before there was
    any time."""
    groups, end_ns = grouping(live, by), live.window.time_ns
    if end_ns is None:
        return None
    return live.engine.ledger.tally(groups, end_ns - int(window_s * SECOND_NS), end_ns)


def asked(live: Live, by: str, window_s: float) -> Asked | None:
    """The same for `Live.past` to complete."""
    found, end_ns = tally(live, by, window_s), live.window.time_ns
    if found is None or end_ns is None:
        return None
    return _asked(live, by, end_ns - int(window_s * SECOND_NS), end_ns, found)


def asked_hour(live: Live, span: tuple[int, int]) -> Asked:
    """One of the `spans` for `Live.past` to complete."""
    return _asked(live, "fleet", *span, live.engine.ledger.tally(grouping(live, "fleet"), *span))


def _asked(live: Live, by: str, start_ns: int, end_ns: int, now: Tally) -> Asked:
    held_ns = live.engine.ledger.buckets.first_ns(0, 2**63 - 1)
    until_ns = end_ns if held_ns is None else min(end_ns, held_ns // HOUR_NS * HOUR_NS)
    return Asked(
        by, dimension(live, by), _told(live, by), start_ns, until_ns, live.engine.inventory.find, now
    )


def spans(live: Live, window_s: float) -> list[tuple[int, int]]:
    """(begin, end) in ns of the at most 97 spans that the accounts by hour are of.

    They begin at multiples of their length, so that those of all shards of a site are the same.
    """
    end_ns = live.window.time_ns
    if end_ns is None:
        return []
    window_ns = int(window_s * SECOND_NS)
    span_ns = live.engine.ledger.buckets.resolution_ns(end_ns - window_ns, end_ns)
    if window_ns > FINE_NS:  # it may reach back to hours that are not in memory
        span_ns = HOUR_NS
    step_ns = span_ns * max(1, -(-window_ns // (96 * span_ns)))
    first = (end_ns - window_ns) // step_ns * step_ns
    return [(begin, min(end_ns, begin + step_ns)) for begin in range(first, end_ns, step_ns)]


def hour(live: Live, span: tuple[int, int]) -> Tally:
    """All time of one of the `spans` that is in memory; its key is its begin."""
    return named(asked_hour(live, span).now, span)


def named(whole: Tally, span: tuple[int, int]) -> Tally:
    """The tally of one of the `spans` with its begin as key."""
    return replace(whole, keys=[str(span[0])] * len(whole.keys))


def grouping(live: Live, by: str) -> Grouping:
    """Which account of a dimension each tenure counts in, as of now."""
    as_of = (live.engine.inventory.renamed, _told(live, by))
    kept = live.groupings.get(by)
    if kept is None or kept[0] != as_of:
        kept = live.groupings[by] = as_of, Grouping(key_of(live, by))
    return kept[1]


def _told(live: Live, by: str) -> int | None:
    """The word of the scheduler that a dimension rests on, by its time."""
    snapshot = live.attribution.ownership.snapshot
    return snapshot.taken_ns if snapshot and by in ("team", "partition") else None


def key_of(live: Live, by: str) -> KeyOf:
    """The account that a tenure counts in, by any dimension but `hour`; raises AskedWrongError."""
    refs, key = live.engine.inventory.refs, dimension(live, by)
    return lambda tenure: key(refs[tenure.gpu], tenure.owner, NOTHING)


def dimension(live: Live, by: str) -> RefKey:
    """The account that the time of a GPU under an owner counts in; as `key_of`.

    What is known of a job now comes before what was kept with an hour of it.
    """
    of_job, site = live.attribution.ownership.dimensions, live.settings.site
    keys: dict[str, RefKey] = {
        "fleet": lambda _ref, _owner, _kept: "fleet",
        "gpu": lambda ref, _owner, _kept: f"{ref.node}/{ref.gpu}",
        "node": lambda ref, _owner, _kept: ref.node,
        "model": lambda ref, _owner, _kept: ref.model or UNKNOWN,
        "job": lambda _ref, owner, _kept: owner.job or None,
        "user": lambda _ref, owner, _kept: owner.user or None,
        "team": lambda _ref, owner, kept: of_job(owner.job).team or kept.team or UNKNOWN,
        "partition": lambda _ref, owner, kept: of_job(owner.job).partition or kept.partition or UNKNOWN,
        "site": lambda _ref, _owner, _kept: site,
    }
    if by not in keys:
        raise AskedWrongError(f"by: expected {', '.join((*keys, HOUR))}, came {by!r}")
    return keys[by]


def recommendations(live: Live) -> list[Recommendation]:
    """What to do now."""
    return recommend(live.engine.findings(), live.window.time_ns or live.clock_ns())


def as_of_now(kept: Incident, now: Mapping[str, Finding], time_ns: int) -> Incident:
    """An incident as the state database has it, brought up to date by the findings of `now` (by id)."""
    finding = now.get(kept.id)
    if kept.state != "open" or finding is None:
        return kept
    advised = recommend([finding], time_ns)
    return replace(kept, finding=finding, recommendations=tuple(advised))


def health(live: Live) -> Health:
    """Can this collector be trusted now."""
    now, time_ns = live.clock_ns(), live.window.time_ns
    live_nodes = [book for book in live.nodes.values() if now - book.last_push_ns < STALE_S * SECOND_NS]
    problems = list(live.problems.values())
    if unsaid := live.attribution.problem():
        problems.append(unsaid)
    if live.nodes and not live_nodes:
        problems.append(f"no node has pushed for {STALE_S:.0f} s")
    counters = {name: float(count) for name, count in live.counters.items()}
    counters |= {f"store_{name}": float(count) for name, count in live.store.counters().items()}
    counters |= {f"store_bytes_{name}": float(size) for name, size in live.store.sizes().items()}
    if live.feed is not None:
        problems += [live.feed.problem] if live.feed.problem else []
        counters |= {f"series_{name}": float(count) for name, count in live.feed.counters.items()}
    counters.setdefault("rows_ingested", 0.0)
    return Health(
        ok=not problems,
        problems=tuple(problems),
        version=version("unidle"),
        simulated=simulated(live),
        uptime_s=(now - live.started_ns) / SECOND_NS,
        event_time_ns=time_ns,
        lag_s=None if time_ns is None else (now - time_ns) / SECOND_NS,
        counters=counters,
        scheduler=live.attribution.status(),
    )


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
