"""Who or what holds a training job back: one worker, one stage, uneven micro-batches, the network.

The length of a compute operation is taken apart into factors: that of its stage against the other
stages, that of its worker against the other workers of the stage, and what is left, which changes from
micro-batch to micro-batch. Each factor alone is put on an otherwise even job; the slowdown that follows
is the factor's, and its share of the whole says how much of the lost time it explains.

The best half of a stage's workers is taken as its ordinary pace (the lower median), so that one slow
worker of two is seen as the slow one. Whether uneven micro-batches are uneven in their content is told
by forward and backward: longer sequences take longer in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from unidle_collector.timeline.operations import COMPUTE, Operations
from unidle_collector.timeline.whatif import Replays, means, prepare

Class = Literal[
    "none", "worker", "stage", "sequence_lengths", "uneven_compute", "communication", "undetermined"
]

WORTH_TELLING = 1.05
"""A slowdown below this is the ordinary unevenness of a healthy job (ours)."""
EXPLAINS = 0.5
"""A factor is the cause when it alone explains this share of the lost time (ours)."""
CLEARLY = 0.1
"""... and by this share more than the next (ours)."""
SAME_CONTENT = 0.9
"""Correlation of forward and backward from which on they are taken to depend on the same content (ours)."""
PASSES = ("forward-compute", "backward-compute")

CAUSES: dict[Class, str] = {
    "none": "",
    "worker": "straggler",
    "stage": "pipeline_imbalance",
    "sequence_lengths": "straggler",
    "uneven_compute": "straggler",
    "communication": "communication",
    "undetermined": "undetermined",
}
"""Class -> the cause of the accounts that it belongs to."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """One factor alone, put on an otherwise even job."""

    name: Class
    slowdown: float
    """Step time over even step time."""
    share: float
    """Part of the lost time that it explains; the shares of several need not add up to 1."""


@dataclass(frozen=True, slots=True)
class Place:
    """A worker of the job, or a stage (`dp_rank` None)."""

    dp_rank: int | None
    stage: int
    factor: float
    """Length of its compute over that of its peers: 2 takes twice as long."""
    slowdown: float
    """Of the job, from it alone."""


@dataclass(frozen=True, slots=True)
class Report:
    """What was found about one job."""

    slowdown: float
    """Mean step as it was, without the time between operations, over the mean even step."""
    steps: int
    ranks: int
    dp_ranks: int
    stages: int
    measured_step_s: float
    """Mean step as recorded, the time between operations included."""
    step_s: float
    """Mean step as replayed, without the time between operations."""
    even_step_s: float
    lost_rank_hours: float
    """Hours of all recorded ranks together over all steps that an even job would not have needed."""
    name: Class
    worker: Place | None
    stage: Place | None
    explanations: tuple[Explanation, ...]
    """The most telling first."""
    correlation: float | None
    """Of a micro-batch's forward and backward length, each against its worker's mean; None when unknown."""
    notes: tuple[str, ...]

    @property
    def cause(self) -> str:
        """The cause as the accounts name it; empty when nothing is lost."""
        return CAUSES[self.name]


def analyse(operations: Operations) -> Report:
    """Replay the job and say what slows it down; raises TimelineError when it cannot be replayed."""
    replays = prepare(operations)
    factors = _factors(replays)
    slowdown = replays.slowdown_of(replays.actual_s)
    correlation = _correlation(replays, factors.worker_mean_s)
    uneven: Class = (
        "uneven_compute" if correlation is None or correlation < SAME_CONTENT else "sequence_lengths"
    )
    compute = operations.of(*COMPUTE)
    cases: dict[Class, NDArray[np.float64]] = {
        "worker": replays.even_s * factors.worker,
        "stage": replays.even_s * factors.stage,
        uneven: replays.even_s * factors.rest,
        "communication": np.where(compute, replays.even_s, replays.actual_s),
    }
    alone = {name: replays.slowdown_of(lengths_s) for name, lengths_s in cases.items()}
    lost = slowdown - 1
    explanations = tuple(
        Explanation(name, value, (value - 1) / lost if lost > 0 else 0.0)
        for name, value in sorted(alone.items(), key=lambda item: -item[1])
    )
    best = explanations[0]
    name: Class = "none"
    if slowdown >= WORTH_TELLING:
        clear = best.share >= EXPLAINS and best.share - explanations[1].share >= CLEARLY
        name = best.name if clear else "undetermined"
    worker, stage = _slowest_worker(replays, factors), _slowest_stage(replays, factors, name)
    measured_s = np.concatenate([_span_s(operations, plan.rows) for plan in replays.plans])
    step_s = replays.even_step_s * slowdown
    ranks = int(operations.rank.max()) + 1
    return Report(
        slowdown=slowdown,
        steps=replays.steps,
        ranks=ranks,
        dp_ranks=len(np.unique(operations.dp_rank)),
        stages=len(np.unique(operations.stage)),
        measured_step_s=float(measured_s.mean()),
        step_s=step_s,
        even_step_s=replays.even_step_s,
        lost_rank_hours=max(0.0, step_s - replays.even_step_s) * replays.steps * ranks / 3600,
        name=name,
        worker=worker if name == "worker" else None,
        stage=stage if name in ("stage", "sequence_lengths", "uneven_compute") else None,
        explanations=explanations,
        correlation=correlation,
        notes=_notes(replays),
    )


@dataclass(frozen=True, slots=True)
class _Factors:
    """[operations] each, 1 for what is no pass. Stage, worker and rest have the mean 1 over a kind."""

    stage: NDArray[np.float64]
    worker: NDArray[np.float64]
    rest: NDArray[np.float64]
    over_peers: NDArray[np.float64]
    """Mean length of the worker over that of an ordinary one of its stage."""
    worker_mean_s: NDArray[np.float64]


def _factors(replays: Replays) -> _Factors:
    operations, actual_s = replays.operations, replays.actual_s
    ones = np.ones(len(operations))
    stage, worker, rest, over = (ones.copy() for _ in range(4))
    worker_mean_s = means(actual_s, operations.kind, operations.rank)
    for kind in PASSES:
        rows = operations.of(kind) & np.isfinite(actual_s)
        if not rows.any():
            continue
        of_rank = np.full(int(operations.rank.max()) + 1, np.nan)
        of_rank[operations.rank[rows]] = worker_mean_s[rows]
        stage_of_rank = np.zeros(len(of_rank), dtype=np.int64)
        stage_of_rank[operations.rank] = operations.stage
        pace = {
            number: _lower_median(of_rank[(stage_of_rank == number) & np.isfinite(of_rank)])
            for number in np.unique(operations.stage[rows]).tolist()
        }
        whole = float(np.mean(list(pace.values())))
        pace_s = np.array([pace[number] for number in operations.stage[rows].tolist()])
        with np.errstate(divide="ignore", invalid="ignore"):
            stage[rows] = pace_s / whole
            worker[rows] = worker_mean_s[rows] / pace_s
            rest[rows] = actual_s[rows] / worker_mean_s[rows]
        over[rows] = worker[rows]
        stage[rows] /= np.nanmean(stage[rows])  # the same work, otherwise spread
        worker[rows] /= np.nanmean(worker[rows])
    filled = [np.nan_to_num(each, nan=1.0) for each in (stage, worker, rest, over)]
    return _Factors(filled[0], filled[1], filled[2], filled[3], worker_mean_s)


def _lower_median(values: NDArray[np.float64]) -> float:
    return float(np.quantile(values, 0.5, method="lower"))


def _correlation(replays: Replays, worker_mean_s: NDArray[np.float64]) -> float | None:
    """Of forward and backward of the same micro-batch, over all that have both."""
    operations = replays.operations
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = replays.actual_s / worker_mean_s
    sides = []
    for kind in PASSES:
        rows = np.flatnonzero(operations.of(kind) & np.isfinite(relative) & (operations.microbatch >= 0))
        keys = (operations.step, operations.rank, operations.chunk, operations.microbatch)
        sides.append((np.stack([key[rows] for key in keys]), relative[rows]))
    (forward_keys, forward), (backward_keys, backward) = sides
    both = np.concatenate([forward_keys, backward_keys], axis=1)
    codes = np.unique(both, axis=1, return_inverse=True)[1].ravel()
    _, at_forward, at_backward = np.intersect1d(
        codes[: len(forward)], codes[len(forward) :], return_indices=True
    )
    x, y = forward[at_forward], backward[at_backward]
    if len(x) < 3 or not x.std() or not y.std():
        return None
    return float(np.corrcoef(x, y)[0, 1])


def _slowest_worker(replays: Replays, factors: _Factors) -> Place:
    operations = replays.operations
    passes = operations.of(*PASSES)
    ranks = np.unique(operations.rank[passes])
    mean = [float(factors.over_peers[passes & (operations.rank == rank)].mean()) for rank in ranks]
    slowest = operations.rank == ranks[int(np.argmax(mean))]
    alone = replays.slowdown_of(np.where(slowest, replays.even_s * factors.worker, replays.even_s))
    first = int(np.argmax(slowest))
    return Place(int(operations.dp_rank[first]), int(operations.stage[first]), max(mean), alone)


def _slowest_stage(replays: Replays, factors: _Factors, name: Class) -> Place:
    """The stage that costs most by its pace, or, where micro-batches are uneven, by all that it did."""
    operations = replays.operations
    passes = operations.of(*PASSES)
    lengths_s = replays.even_s * factors.stage if name == "stage" else replays.actual_s
    best = None
    for number in np.unique(operations.stage[passes]).tolist():
        there = operations.stage == number
        alone = replays.slowdown_of(np.where(there & passes, lengths_s, replays.even_s))
        mean = float(factors.stage[passes & there].mean())
        if best is None or alone > best.slowdown:
            best = Place(None, number, mean, alone)
    assert best is not None
    return best


def _span_s(operations: Operations, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(operations.end_s[rows].max(axis=1) - operations.start_s[rows].min(axis=1))


def _notes(replays: Replays) -> tuple[str, ...]:
    notes = list(replays.operations.notes)
    if replays.misfits:
        notes.append(
            f"{replays.misfits} of {replays.misfits + replays.steps} steps were left out: their operations "
            "do not fit together, so their record has holes"
        )
    if len(np.unique(replays.operations.dp_rank)) == 1:
        notes.append("there is one data-parallel rank: a slow worker cannot be told from a slow stage")
    return tuple(notes)
