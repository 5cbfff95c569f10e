"""What the API answers, read from the live collector; every function runs in its owning thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Literal

import numpy as np

from unidle_agent.errors import UnidleError
from unidle_agent.fields import BY_NAME, GPU_FIELDS
from unidle_collector.inventory import Tenure
from unidle_collector.live import Live
from unidle_collector.model import (
    Account,
    Finding,
    Fleet,
    GpuNow,
    Health,
    Incident,
    JobNow,
    NodeNow,
    Queue,
    Recommendation,
    Series,
    Waiting,
)
from unidle_collector.pergpu import SECOND_NS
from unidle_collector.recommend import recommend
from unidle_collector.series import SeriesStore

MOST_POINTS = 1500
UNKNOWN = "unknown"
"""Key of the time of which nobody has said to whom it belongs: a row like any other, never left out."""
STALE_S = 60.0
"""Values older than this are not shown as those of now."""


class AskedWrongError(UnidleError):
    """The question itself is at fault."""


def fleet(live: Live, window_s: float) -> Fleet:
    """Everything at a glance."""
    inventory, time_ns = live.engine.inventory, live.window.time_ns
    states: dict[str, int] = {}
    for position in range(len(inventory)):
        state, _ = live.engine.ledger.now(position)
        states[state] = states.get(state, 0) + 1
    found = accounts(live, "fleet", window_s)
    end_ns = time_ns or live.clock_ns()
    empty = Account("fleet", end_ns - int(window_s * SECOND_NS), end_ns, len(inventory), {})
    return Fleet(
        site=live.settings.site,
        time_ns=time_ns,
        simulated=simulated(live),
        nodes=len({ref.node for ref in inventory.refs}),
        gpus=len(inventory),
        jobs=inventory.jobs,
        states=states,
        account=found[0] if found else empty,
        open_incidents=len(live.store.state.open_incidents()),
        recommendations=len(recommendations(live)),
    )


def simulated(live: Live) -> bool:
    """Is anything simulated shown here."""
    return any(live.engine.inventory.simulated) or any(node.simulated for node in live.nodes.values())


def gpus(live: Live) -> list[GpuNow]:
    """Every GPU as it is now."""
    inventory, last = live.engine.inventory, live.engine.last
    now = {field.name: last.get(field.name) for field in GPU_FIELDS} if last is not None else {}
    out = []
    for position, ref in enumerate(inventory.refs):
        state, cause = live.engine.ledger.now(position)
        owner = inventory.owner(position)
        sampled = live.window.last_sample_ns(position)
        fresh = last is not None and sampled is not None and last.end_ns - sampled <= STALE_S * SECOND_NS
        values = {name: _known(column[position]) for name, column in now.items()} if fresh else {}
        out.append(
            GpuNow(
                node=ref.node,
                gpu=ref.gpu,
                index=ref.index,
                model=ref.model,
                state=state,
                cause=cause,
                inferred=owner.allocated is None or owner.confidence == "inferred",
                sampled_ns=sampled,
                job=owner.job,
                user=owner.user,
                values=values,
                simulated=inventory.simulated[position],
                owner_source=owner.source,
                owner_confidence=owner.confidence,
                owner_note=owner.note,
                used_by=owner.used_by,
            )
        )
    return out


CONFIDENCES = ("low", "inferred", "medium", "high")
"""From the least."""


def jobs(live: Live) -> list[JobNow]:
    """Every job that holds GPUs now, by either word: the most GPUs first."""
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
    found = [_job(live, job, positions) for job, positions in held.items()]
    return sorted(found, key=lambda job: (-len(job.gpus), -(job.granted_gpus or 0), job.job))


def _job(live: Live, job: str, positions: list[int]) -> JobNow:
    inventory, ownership = live.engine.inventory, live.attribution.ownership
    owners = [inventory.owner(position) for position in positions]
    known, dimensions = ownership.job(job), ownership.dimensions(job)
    grants = known.grants if known else ()
    granted = [grant.gpus for grant in grants]
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
        granted_gpus=sum(count for count in granted if count) if known and None not in granted else None,
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


def nodes(live: Live) -> list[NodeNow]:
    """Every node as it is now."""
    inventory, last = live.engine.inventory, live.engine.last
    members: dict[str, list[int]] = {name: [] for name in live.nodes}
    for position, ref in enumerate(inventory.refs):
        members.setdefault(ref.node, []).append(position)
    out = []
    for name, positions in members.items():
        book = live.nodes.get(name)
        samples = [s for s in (live.window.last_sample_ns(p) for p in positions) if s is not None]
        values = {}
        if last is not None:
            values = live.window.host_values(name)
        out.append(
            NodeNow(
                node=name,
                gpus=len(positions),
                last_sample_ns=max(samples, default=None),
                last_push_ns=live.window.nodes.last_push_ns(name),
                clock_skew_s=book.clock_skew_s if book else None,
                rows=book.rows if book else 0,
                duplicates=book.duplicates if book else 0,
                late_rows=book.late_rows if book else 0,
                counter_resets=book.counter_resets if book else 0,
                values=values,
                simulated=book.simulated if book else all(inventory.simulated[p] for p in positions),
            )
        )
    return out


def accounts(live: Live, by: str, window_s: float) -> list[Account]:
    """Accounts over the last `window_s` seconds of event time, whole buckets of five minutes."""
    end_ns = live.window.time_ns
    if end_ns is None:
        return []
    start_ns = end_ns - int(window_s * SECOND_NS)
    ledger = live.engine.ledger
    if by == "hour":
        span_ns = ledger.buckets.resolution_ns(start_ns, end_ns)
        first = start_ns // span_ns * span_ns
        out = []
        step_ns = max(span_ns, int(window_s * SECOND_NS / 96) // span_ns * span_ns)
        for begin in range(first, end_ns, step_ns):
            end = min(end_ns, begin + step_ns)
            out += ledger.accounts(lambda _, key=str(begin): key, begin, end)  # type: ignore[misc]
        return out
    return ledger.accounts(key_of(live, by), start_ns, end_ns)


def key_of(live: Live, by: str) -> Callable[[Tenure], str | None]:
    """The account that a tenure counts in, by any dimension but `hour`; raises AskedWrongError."""
    refs, dimensions = live.engine.inventory.refs, live.attribution.ownership.dimensions
    keys: dict[str, Callable[[Tenure], str | None]] = {
        "fleet": lambda _: "fleet",
        "gpu": lambda tenure: f"{refs[tenure.gpu].node}/{refs[tenure.gpu].gpu}",
        "node": lambda tenure: refs[tenure.gpu].node,
        "model": lambda tenure: refs[tenure.gpu].model or "unknown",
        "job": lambda tenure: tenure.owner.job or None,
        "user": lambda tenure: tenure.owner.user or None,
        "team": lambda tenure: dimensions(tenure.owner.job).team or UNKNOWN,
        "partition": lambda tenure: dimensions(tenure.owner.job).partition or UNKNOWN,
        "site": lambda _: live.settings.site,
    }
    if by not in keys:
        raise AskedWrongError(f"by: expected {', '.join((*keys, 'hour'))}, came {by!r}")
    return keys[by]


def recommendations(live: Live) -> list[Recommendation]:
    """What to do now."""
    return recommend(live.engine.findings(), live.window.time_ns or live.clock_ns())


def incidents(live: Live, state: Literal["open", "resolved", "all"], limit: int) -> list[Incident]:
    """Incidents, newest first; open ones with their finding and recommendations as of now."""
    now = {finding.id: finding for finding in live.engine.findings()}
    return [_as_of_now(live, incident, now) for incident in live.store.state.incidents(state, limit)]


def incident(live: Live, incident_id: str) -> Incident:
    """One incident, as of now while it is open."""
    found = live.store.state.incident(incident_id)
    if found is None:
        raise AskedWrongError(f"no incident {incident_id!r}; /api/v1/incidents?state=all lists them")
    return _as_of_now(live, found, {finding.id: finding for finding in live.engine.findings()})


def _as_of_now(live: Live, kept: Incident, now: dict[str, Finding]) -> Incident:
    finding = now.get(kept.id)
    if kept.state != "open" or finding is None:
        return kept
    advised = recommend([finding], live.window.time_ns or live.clock_ns())
    return replace(kept, finding=finding, recommendations=tuple(advised))


@dataclass(frozen=True, slots=True)
class Recent:
    """The newest minutes of one field, as the live window has them, of what was asked for."""

    start_ns: int
    end_ns: int
    """What was asked for: start_ns <= time < end_ns."""
    series: Series
    """Times and values of the live window only."""


def recent(live: Live, node: str, gpu: str, field: str, window_s: float) -> Recent:
    """One field over time, as far as the live window reaches back; `with_stored` adds the rest."""
    spec = BY_NAME.get(field)
    if spec is None:
        raise AskedWrongError(f"field: expected a field of docs/telemetry.md, came {field!r}")
    position = live.engine.inventory.find(node, gpu) if spec.scope == "gpu" else None
    if spec.scope == "gpu" and position is None:
        raise AskedWrongError(f"expected a GPU that has sent something, came node {node!r}, GPU {gpu!r}")
    end_ns = (live.window.time_ns or live.clock_ns()) + 1
    start_ns = end_ns - int(window_s * SECOND_NS)
    step_s = max(1.0, window_s / MOST_POINTS)
    times, values = live.window.recent(field, position, node)
    if spec.kind == "counter":
        values = [value / live.engine.period_s for value in values]
    step = max(1, round(step_s / live.engine.period_s))
    times, values = times[::step], _means(values, step)
    keep = [n for n, t in enumerate(times) if t >= start_ns]
    found = Series(
        node=node,
        gpu=gpu,
        field=field,
        unit=f"{spec.unit}/s" if spec.kind == "counter" else spec.unit,
        step_s=step_s,
        times_ns=tuple(times[n] for n in keep),
        values=tuple(_known(values[n]) for n in keep),
        simulated=simulated(live),
    )
    return Recent(start_ns, end_ns, found)


def with_stored(store: SeriesStore, now: Recent) -> Series:
    """`now` with what lies before it in the series store; may take long and runs in any thread."""
    found = now.series
    reach_ns = found.times_ns[0] if found.times_ns else now.end_ns
    if reach_ns - now.start_ns < found.step_s * SECOND_NS:  # no whole step is missing
        return found
    stored = store.steps(found.node, found.gpu, found.field, now.start_ns, now.end_ns, found.step_s)
    older = stored.times_ns < reach_ns
    return replace(
        found,
        times_ns=(*stored.times_ns[older].tolist(), *found.times_ns),
        values=(*(_known(value) for value in stored.values[older].tolist()), *found.values),
    )


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


def _means(values: list[float], step: int) -> list[float]:
    if step == 1:
        return values
    chunks = [np.array(values[n : n + step]) for n in range(0, len(values), step)]
    return [
        float(chunk[~np.isnan(chunk)].mean()) if (~np.isnan(chunk)).any() else float("nan")
        for chunk in chunks
    ]


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
