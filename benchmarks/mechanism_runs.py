"""SIMULATED runs of one mechanism each, scored by the GPU-minute: part of `python -m benchmarks.diagnosis`.

Each run is seen in several views: sampled rarely, with samples missing, with few fields. In all of them
samples are late as in life: now and then two fall into one second and none into the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray

from benchmarks import scoring
from benchmarks.scoring import CANNOT_TELL, Minutes
from unidle_collector import detectors
from unidle_collector.engine import Engine
from unidle_collector.model import Finding
from unidle_collector.recording import Recording
from unidle_collector.replay import enter, play
from unidle_collector.simulator.mechanisms import variants
from unidle_collector.simulator.mechanisms.variant import HEALTHY, Set, Variant
from unidle_collector.simulator.recordings import (
    SECOND_NS,
    START_NS,
    Truth,
    as_exporter,
    every,
    lateness,
    node_of,
    standing,
    together,
    with_missing,
)
from unidle_collector.simulator.trial import trial

RUN_S = 2400
GPUS_PER_RUN = 8
RUNS_AT_ONCE = 30
"""Nodes of one recording: what memory allows, and enough that a step's fixed cost is shared."""
CHANGES_S, REREAD_S = 1200, 300
"""The account of the last 20 minutes still changes, and all of it is read again this often: what is known
after 15 minutes only (a session left open) has to be read before its begin is older than those 20."""
UNALLOCATED = "unallocated"
SILENT = (HEALTHY, UNALLOCATED, CANNOT_TELL)
"""Answers that name no cause."""
ACCOUNTED = ("idle", "starvation")
"""Kinds whose delay is that of the account: a person is told after a grace by design."""
COSTS = 0.97
"""Throttling is in the data from the first sample in which a clock is below this part of what it was."""
USUAL_S = 60

View = Callable[[Recording, np.random.Generator], Recording]


def _each(steps: int) -> View:
    return lambda recording, rng: every(recording, steps, lateness(recording, steps, rng))


VIEWS: dict[str, View] = {
    "full": _each(1),
    "sampling_5s": _each(5),
    "sampling_15s": _each(15),
    "sampling_30s": _each(30),
    "missing_30pct": lambda recording, rng: with_missing(_each(1)(recording, rng), 0.3, rng),
    "exporter_30s_read_5s": lambda recording, rng: standing(recording, 30, 5, rng),
    "exporter_10s_read_5s": lambda recording, rng: standing(recording, 10, 5, rng),
    "gpu_util_only": lambda recording, rng: as_exporter(_each(1)(recording, rng)),
}


@dataclass(frozen=True, slots=True)
class Watched:
    """What the engine made of a recording."""

    answer: NDArray[np.int16]
    """[T, G] index into `labels`, as the account stands in the end."""
    live: NDArray[np.int16]
    """[T, G] the same as it stood at each step."""
    labels: tuple[str, ...]
    told: tuple[Finding, ...]


@dataclass(slots=True)
class Seen:
    """What one view of all runs gave."""

    parts: list[Minutes] = field(default_factory=list)
    delays_s: dict[str, list[float]] = field(default_factory=dict)
    """By kind, and by `kind.cause`."""
    onset_delays_s: dict[str, list[float]] = field(default_factory=dict)
    """Of throttling, from the mechanism's begin: clocks may fall for a while before that costs anything."""
    sure: list[scoring.Said] = field(default_factory=list)
    """Of each finding when it was told, the causes that it named."""
    by_variant: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    """Of each variant, (right, scored) GPU-minutes per run."""

    @property
    def minutes(self) -> Minutes:
        """Of all runs."""
        return scoring.joined(self.parts)


@dataclass(slots=True)
class Alarms:
    """Healthy GPU-hours among the runs, and what was told in them."""

    gpu_hours: float = 0.0
    told: list[str] = field(default_factory=list)


def watch(recording: Recording) -> Watched:
    """Put a recording through the engine and keep each step's account."""
    engine = Engine(recording.period_s, keep_accounts_ns=None)
    positions = enter(recording, engine)
    period_ns = round(recording.period_s * SECOND_NS)
    ends = recording.start_ns + period_ns * np.arange(recording.instants)
    codes, labels = _labels(engine)
    live = np.zeros((recording.instants, len(positions)), dtype=np.int16)
    answer = np.zeros_like(live)
    told: list[Finding] = []
    reread, changes_in = (max(1, round(span / recording.period_s)) for span in (REREAD_S, CHANGES_S))
    for instant, changes in enumerate(play(recording, engine, positions)):
        told += [change.finding for change in changes if change.what == "told"]
        live[instant] = codes[engine.ledger.booked_steps(ends[instant : instant + 1])[0][0, positions]]
        if instant % reread == reread - 1 or instant == recording.instants - 1:
            begin = max(0, instant + 1 - changes_in)
            booked, _ = engine.ledger.booked_steps(ends[begin : instant + 1])
            answer[begin : instant + 1] = codes[booked[:, positions]]
    return Watched(answer, live, labels, tuple(told))


@cache
def _every_detector() -> tuple[detectors.Detector, ...]:
    return tuple(make(1, 1.0) for make in detectors.makers())


@cache
def _label(kind: str, cause: str) -> str:
    """A truth, by the account: who starves does so whatever finding says it."""
    starved = any(one.kind == kind and one.state == "starved" for one in _every_detector())
    return f"{'starvation' if starved else kind}.{cause}"


def _labels(engine: Engine) -> tuple[NDArray[np.int16], tuple[str, ...]]:
    """(code of the ledger -> label number, labels); the code -1 is the last entry."""
    kinds = {
        (detector.state, cause): _label(detector.kind, cause)
        for detector in _every_detector()
        for cause in detector.causes
    }
    fixed = {"productive": HEALTHY, "unallocated": UNALLOCATED}
    names = [
        CANNOT_TELL
        if code.cause == "undetermined"
        else kinds.get((code.state, code.cause)) or fixed.get(code.state, CANNOT_TELL)
        for code in engine.ledger.codes
    ]
    labels = tuple(dict.fromkeys((*SILENT, *names)))
    return np.array([*(labels.index(name) for name in names), labels.index(CANNOT_TELL)], np.int16), labels


def runs(which: Set, repeats: int, only: str = "") -> Iterator[list[tuple[int, Variant]]]:
    """(number, variant) of every run, some at a time; `only` those of one kind."""
    chosen = [v for v in variants(which) if v.truth.startswith(only)]
    numbered = list(enumerate(variant for _ in range(repeats) for variant in chosen))
    for first in range(0, len(numbered), RUNS_AT_ONCE):
        yield numbered[first : first + RUNS_AT_ONCE]


def score_runs(
    which: Set, repeats: int, views: Sequence[str], seed: int, only: str = ""
) -> tuple[dict[str, Seen], Alarms]:
    """Every run in every view; and what was told on the healthy ones among them, in full view."""
    seen, alarms = {name: Seen() for name in views}, Alarms()
    for chunk in runs(which, repeats, only):
        trials = [
            trial(variant, RUN_S, GPUS_PER_RUN, np.random.default_rng([seed, number]))
            for number, variant in chunk
        ]
        recording, truth = together(trials, first=chunk[0][0])
        for name in views:
            worse = VIEWS[name](recording, np.random.default_rng([seed, chunk[0][0], 7]))
            watched = watch(worse)
            _note(seen[name], worse, truth, watched, chunk)
            if name == "full":
                healthy = [(n, v) for n, v in chunk if v.truth == HEALTHY]
                nodes = {node_of(n, place) for n, v in healthy for place in range(v.nodes)}
                _alarms(alarms, worse, watched, nodes)
    return seen, alarms


def _note(
    seen: Seen, recording: Recording, truth: Truth, watched: Watched, chunk: list[tuple[int, Variant]]
) -> None:
    first = chunk[0][0]
    labels = tuple(dict.fromkeys((*watched.labels, *truth.labels)))
    number = np.array([labels.index(label) for label in truth.labels], dtype=np.int16)
    label = np.where(truth.label >= 0, number[truth.label], -1).astype(np.int16)
    minutes = Minutes(
        labels,
        *scoring.whole_minutes(label, watched.answer, round(60 / recording.period_s), truth.run + first),
    )
    seen.parts.append(minutes)
    seen.sure += _sure(recording, truth, watched.told)
    for run, variant in chunk:
        mine = minutes.run == run
        right = int((minutes.truth == minutes.answer)[mine].sum())
        seen.by_variant.setdefault(variant.name, []).append((right, int(mine.sum())))
        if variant.truth != HEALTHY and variant.before[1] > 0:
            delay_s = _delay_s(recording, truth, watched, run - first, variant, labels)
            if delay_s is None:
                continue
            costs_s = _costs_after_s(recording, truth, run - first) if variant.slow is not None else 0.0
            for name in (variant.truth.split(".")[0], variant.truth):
                seen.delays_s.setdefault(name, []).append(delay_s - costs_s)
                if variant.slow is not None:
                    seen.onset_delays_s.setdefault(name, []).append(delay_s)


def _sure(recording: Recording, truth: Truth, told: Sequence[Finding]) -> list[scoring.Said]:
    """The causes that each finding names; true is what was wrong in its time."""
    place = {(ref.node, ref.gpu): at for at, ref in enumerate(recording.gpus)}
    out = []
    for finding in told:
        gpus = [place[ref.node, ref.gpu] for ref in finding.gpus]
        times = (finding.since_ns, finding.told_ns or finding.updated_ns)
        first, last = ((at - START_NS) // SECOND_NS for at in times)
        labels = truth.label[max(first, 0) : max(last, first + 1), gpus]
        wrong = labels[labels > 0]  # what is healthy comes first, and has the period before the onset, too
        true = truth.labels[int(np.bincount(wrong).argmax())] if wrong.size else HEALTHY
        causes = [(finding.cause, finding.confidence)]
        causes += [(other.cause, other.probability) for other in finding.runners_up]
        named = [(share, cause) for cause, share in causes if cause != "undetermined"]
        out.append(tuple((share, true == _label(finding.kind, cause)) for share, cause in named))
    return out


def _delay_s(
    recording: Recording, truth: Truth, watched: Watched, place: int, variant: Variant,
    labels: tuple[str, ...],
) -> float | None:  # fmt: skip
    """From the onset, in running work, to the first right account or to the finding; None: it never came."""
    kind = variant.truth.split(".")[0]
    onset_ns = START_NS + truth.onset_s[place] * SECOND_NS
    gpus = truth.run == place
    if kind not in ACCOUNTED:
        node = recording.gpus[int(np.argmax(gpus))].node
        times = [
            f.told_ns for f in watched.told if f.kind == kind and node in f.nodes and f.told_ns is not None
        ]
        return (min(times) - onset_ns) / SECOND_NS if times else None
    right = (watched.live[:, gpus] == labels.index(variant.truth)).any(axis=1)
    if not right.any():
        return None
    end_ns = recording.start_ns + int(np.argmax(right)) * round(recording.period_s * SECOND_NS)
    return (end_ns - onset_ns) / SECOND_NS


def _costs_after_s(recording: Recording, truth: Truth, place: int) -> float:
    """Seconds from the onset to the first sample in which the clock of a throttled GPU is below COSTS of its
    usual one."""
    period_s = recording.period_s
    onset = round(truth.onset_s[place] / period_s)
    slow = np.flatnonzero((truth.run == place) & (truth.label > 0).any(axis=0))
    clock = recording.columns["sm_clock_hz"][:, slow]
    usual = np.nanmedian(clock[max(0, onset - round(USUAL_S / period_s)) : onset], axis=0)
    costs = (clock[onset:] <= COSTS * usual).any(axis=1)
    return float(np.argmax(costs)) * period_s if costs.any() else 0.0


def _alarms(alarms: Alarms, recording: Recording, watched: Watched, nodes: set[str]) -> None:
    gpus = sum(ref.node in nodes for ref in recording.gpus)
    alarms.gpu_hours += gpus * recording.instants * recording.period_s / 3600
    alarms.told += [
        f"{finding.kind}.{finding.cause}: {finding.title}"
        for finding in watched.told
        if nodes.intersection(finding.nodes)
    ]
