"""Recorded telemetry through the same engine as live telemetry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from unidle_agent.fields import BY_NAME
from unidle_agent.wire import Owner
from unidle_collector.accounts.spans import Booked, Span
from unidle_collector.detectors import duration, idle, plural
from unidle_collector.engine import Engine
from unidle_collector.findings import Change
from unidle_collector.inventory import Tenure
from unidle_collector.model import Account, Finding, Recommendation
from unidle_collector.pergpu import SECOND_NS, Positions
from unidle_collector.recommend import recommend
from unidle_collector.recording import Recording
from unidle_collector.ring import ENERGY
from unidle_collector.signals import ACTIVITY, HELD_BYTES, NOTHING_RAN, Happened, Step

COVER_STEPS = 3
"""A sample speaks for up to this many periods before it: single missing samples leave no hole."""


@dataclass(frozen=True, slots=True)
class GpuResult:
    """One GPU over the whole recording."""

    node: str
    gpu: str
    index: int | None
    states: dict[str, float]
    """State -> seconds."""
    causes: dict[str, float]
    """`state.cause` -> seconds."""
    findings: list[str]
    """Ids."""
    spans: tuple[Span, ...] = ()
    """The same time, in order."""
    inactive_s: float | None = None
    """Time of samples in which nothing ran (activity below 1 %), however it was booked; None unknown."""
    inactive_held_s: float | None = None
    """Of that, with memory held or a process on the GPU; None where neither is known."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a recording says."""

    gpus: list[GpuResult]
    jobs: list[Account]
    findings: list[Finding]
    """Told, and (with `told_ns` None) still developing when the recording ends."""
    account: Account | None
    recommendations: list[Recommendation]
    notes: list[str]
    """About the input, in words."""
    cannot_tell: list[str] = field(default_factory=list)
    """What the recording leaves open, in words."""


def replay(recording: Recording, progress: Callable[[float], None] | None = None) -> Result:
    """Run all detectors and accounts over a recording; `progress` is told the share done, 0-1."""
    engine = Engine(recording.period_s, keep_accounts_ns=None, steps=int(recording.steps[-1]) + 1)
    positions = enter(recording, engine)
    ended: dict[str, Finding] = {}
    period_ns = round(recording.period_s * SECOND_NS)
    booked = Booked(engine.ledger, positions, recording.ends_ns, period_ns)
    report_each = max(1, recording.instants // 100)
    for instant, changes in enumerate(play(recording, engine, positions)):
        for change in changes:
            if change.what == "ended":
                ended[change.finding.id] = change.finding
        booked.follow(instant)
        if progress is not None and instant % report_each == 0:
            progress(instant / recording.instants)
    open_now = {finding.id: finding for finding in engine.findings()}
    return _result(engine, recording, positions, booked, [*ended.values(), *open_now.values()])


def enter(recording: Recording, engine: Engine) -> Positions:
    """[G] where each of the recording's GPUs is in the engine's arrays; they are added to it."""
    return np.array([engine.add(ref, simulated=recording.simulated) for ref in recording.gpus], dtype=np.intp)


def play(
    recording: Recording,
    engine: Engine,
    positions: Positions,
    meanwhile: Callable[[int], tuple[Happened, ...]] = lambda _: (),
) -> Iterator[list[Change]]:
    """Give the engine one instant after the other; yields what each changed.

    `meanwhile` is asked before each instant what its samples do not say: the events in it.
    """
    covering, columns = _covering(recording), _spread(recording)
    previous = np.full(len(positions), -2, dtype=np.int64)
    ends_ns, period_ns = recording.ends_ns, round(recording.period_s * SECOND_NS)
    lasted_ns = np.diff(ends_ns, prepend=ends_ns[:1] - period_ns)
    for instant in range(recording.instants):
        row = covering[instant]
        present = np.flatnonzero(row >= 0)
        _own(engine, recording, positions, previous, row, present)
        values, sampled = _values(columns, engine, positions, row, present)
        step = Step(int(ends_ns[instant]), int(lasted_ns[instant]), values, sampled, meanwhile(instant))
        yield engine.step(step)


def _covering(recording: Recording) -> NDArray[np.int64]:
    """[T, G] instant whose sample speaks for each instant: its own, else one soon after; -1 none."""
    instants = recording.instants
    own = np.where(recording.sampled, np.arange(instants)[:, None], np.iinfo(np.int64).max)
    following = np.minimum.accumulate(own[::-1], axis=0)[::-1]
    near = following - np.arange(instants)[:, None] < COVER_STEPS
    before = np.logical_or.accumulate(recording.sampled, axis=0)
    return np.where(recording.sampled | (near & before), following, -1)


def _spread(recording: Recording) -> dict[str, NDArray[np.float64]]:
    """The columns, a counter's increase shared by the periods since the sample before, and that of energy by
    those since it grew before: one that stands still has not been read anew."""
    columns = dict(recording.columns)
    periods = _since(recording.sampled, recording.steps)
    if (recording.sampled & (periods > 1)).any():
        counters = [name for name in columns if name in BY_NAME and BY_NAME[name].kind == "counter"]
        columns |= {name: columns[name] / periods for name in counters}
    if ENERGY in columns:
        energy = recording.columns[ENERGY]
        grew, stood = energy > 0, np.logical_or.accumulate(energy == 0, axis=0)
        first = grew & (np.cumsum(grew, axis=0) == 1)  # of how long that is, is not known
        columns[ENERGY] = np.where(grew & ~(first & stood), energy, np.nan) / _since(grew, recording.steps)
    return columns


def _since(there: NDArray[np.bool_], steps: NDArray[np.int64]) -> NDArray[np.int64]:
    """[T, G] periods since the instant before that is `there`, 1 where there was none."""
    at = np.where(there, steps[:, None], -1)
    before = np.concatenate((np.full((1, at.shape[1]), -1), np.maximum.accumulate(at, axis=0)[:-1]))
    return np.where((before >= 0) & there, steps[:, None] - before, 1)


def _values(
    values_of: dict[str, NDArray[np.float64]],
    engine: Engine,
    positions: Positions,
    row: np.ndarray[tuple[int], np.dtype[np.int64]],
    present: Positions,
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.bool_]]:
    """The columns of a step, and which GPUs have a sample."""
    size = engine.inventory.capacity
    sampled = np.zeros(size, dtype=np.bool_)
    sampled[positions[present]] = True
    columns = {}
    for name, values in values_of.items():
        column = np.full(size, np.nan)
        column[positions[present]] = values[row[present], present]
        columns[name] = column
    return columns, sampled


def _own(
    engine: Engine,
    recording: Recording,
    positions: Positions,
    previous: NDArray[np.int64],
    row: NDArray[np.int64],
    present: Positions,
) -> None:
    """Tell the engine whose GPU is whose, where that has changed."""
    jobs = recording.job[row[present], present]
    for gpu, job in zip(present[jobs != previous[present]], jobs[jobs != previous[present]], strict=True):
        previous[gpu] = job
        if job < 0:
            owner = Owner()
        else:
            owner = Owner(
                allocated=bool(job > 0), job=recording.jobs[job], source="recording", confidence="high"
            )
        engine.own(int(positions[gpu]), owner)


def _result(
    engine: Engine,
    recording: Recording,
    positions: Positions,
    booked: Booked,
    findings: list[Finding],
) -> Result:
    of_gpu: dict[tuple[str, str], list[str]] = {}
    for finding in findings:
        for ref in finding.gpus:
            of_gpu.setdefault((ref.node, ref.gpu), []).append(finding.id)
    gpus = []
    durations = engine.ledger.durations()
    inactive_s, held_s = inactive(recording)
    for place, (ref, position) in enumerate(zip(recording.gpus, positions, strict=True)):
        states, causes = durations[int(position)]
        ids = of_gpu.get((ref.node, ref.gpu), [])
        spans = booked.spans(place)
        gpus.append(
            GpuResult(
                ref.node, ref.gpu, ref.index, states, causes, ids, spans, inactive_s[place], held_s[place]
            )
        )
    end_ns = int(recording.ends_ns[-1])
    start_ns = recording.start_ns - round(recording.period_s * SECOND_NS)
    whole = engine.ledger.accounts(lambda _: "all", start_ns, end_ns)
    jobs = engine.ledger.accounts(_job, start_ns, end_ns)
    return Result(
        gpus=gpus,
        jobs=jobs,
        findings=sorted(findings, key=lambda finding: (finding.since_ns, finding.id)),
        account=whole[0] if whole else None,
        recommendations=recommend([finding for finding in findings if finding.ended_ns is None], end_ns),
        notes=[*recording.notes, *too_young(recording, engine, findings)],
        cannot_tell=[*recording.cannot_tell, *too_short(recording, gpus)],
    )


def too_young(recording: Recording, engine: Engine, findings: list[Finding]) -> list[str]:
    """Which findings nobody was told of because the recording ends before their delay is over, in words."""
    lasted_s = recording.lasts_s
    waits = {f.kind: engine.finding_delay_s(f.kind, f.cause) for f in findings if f.told_ns is None}
    late = {kind: delay_s for kind, delay_s in sorted(waits.items()) if delay_s > lasted_s}
    if not late:
        return []
    told = ", ".join(f"of {kind} after {duration(delay_s)}" for kind, delay_s in late.items())
    said = (
        f"the recording lasts {duration(lasted_s)}, and people are told {told}: such findings are all that "
        "it shows, but still developing"
    )
    return [said]


def too_short(recording: Recording, gpus: list[GpuResult]) -> list[str]:
    """What the recording is too short to tell."""
    lasted_s, grace_s = recording.lasts_s, idle.grace_s(recording.period_s)
    if grace_s <= lasted_s:
        return []
    quiet = _did_nothing(recording)
    still = sum(gpu.states["productive"] > 0 for gpu, nothing in zip(gpus, quiet, strict=True) if nothing)
    if not still:
        return []
    said = (
        f"Whether {plural(still, 'GPU')} that did nothing in the whole recording were idle: idle is what "
        f"lasts {duration(grace_s)} at this sampling period (or all of {idle.Settings().few_samples} samples "
        f"or more at steady power), and the recording lasts {duration(lasted_s)}. They count as productive."
    )
    return [said]


def _activity(recording: Recording) -> NDArray[np.float64]:
    """[T, G] the most that any counter says of whether something ran; NaN unknown."""
    known = [recording.columns[name] for name in ACTIVITY if name in recording.columns]
    most: NDArray[np.float64] = np.fmax.reduce([np.full(recording.sampled.shape, np.nan), *known])
    return most


def _did_nothing(recording: Recording) -> NDArray[np.bool_]:
    """[G] whose activity is known, and is none."""
    most = _activity(recording)
    ran, known = (most >= NOTHING_RAN).any(axis=0), ~np.isnan(most).all(axis=0)
    return np.asarray(known & ~ran)


def inactive(recording: Recording) -> tuple[list[float | None], list[float | None]]:
    """Per GPU the time of its samples in which nothing ran, and that in which it was held meanwhile."""
    most = _activity(recording)
    quiet = most < NOTHING_RAN
    unknown = np.full(most.shape, np.nan)
    used, processes = (
        recording.columns.get(name, unknown) for name in ("memory_used_bytes", "process_count")
    )
    held = (used > HELD_BYTES) | (processes > 0)

    def seconds(chosen: NDArray[np.bool_], known: NDArray[np.bool_]) -> list[float | None]:
        sums, told = (np.count_nonzero(each, axis=0).tolist() for each in (chosen, known))
        return [count * recording.period_s if of else None for count, of in zip(sums, told, strict=True)]

    activity_known, use_known = ~np.isnan(most), ~np.isnan(used) | ~np.isnan(processes)
    return seconds(quiet, activity_known), seconds(quiet & held, activity_known & use_known)


def _job(tenure: Tenure) -> str | None:
    return tenure.owner.job or None
