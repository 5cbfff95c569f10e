"""Who runs what, where and when: jobs, and the endless queue of them on each set of GPUs.

All times are whole seconds since the fleet's first sample; a job may have begun before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

FOREVER_S = 30 * 86_400
"""Longer than any demo runs."""
SETTLES_WITHIN_S = 120
"""A healthy job's memory reaches its high water this long after its start-up."""
KINDS_BY_SIZE = {
    1: ("memory_bound", "inference_server"),
    8: ("compute_bound", "tensor_parallel", "memory_bound", "inference_server"),
    16: ("compute_bound", "tensor_parallel"),
    64: ("compute_bound", "tensor_parallel"),
}
"""GPUs of a job -> what such jobs do."""
MEDIAN_DURATION_S = {1: 2700, 8: 4200, 16: 6000, 64: 14_400}
MEMORY_RATIO = {
    "compute_bound": 0.87,
    "memory_bound": 0.72,
    "tensor_parallel": 0.80,
    "inference_server": 0.95,
}
"""Share of the GPU's memory that a healthy job settles at."""
FLOAT32, BFLOAT16 = 1, 4
"""`dtype_code` of the field table."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A workload from `start_s` until `end_s`."""

    start_s: int
    end_s: int
    workload: str
    odd: tuple[str, int, int] | None = None
    """Another workload of some of the job's GPUs: what it is, the first of them, the one after the last."""


@dataclass(frozen=True, slots=True)
class Staircase:
    """Memory over time as an allocator takes it: from `times_s[i]` on `ratios[i]` of the total."""

    times_s: Ints
    ratios: NDArray[np.float64]

    def at(self, times_s: Ints) -> NDArray[np.float64]:
        """[len(times_s)] ratio at each time."""
        place = np.searchsorted(self.times_s, times_s, side="right") - 1
        return self.ratios[np.maximum(place, 0)]


@dataclass(frozen=True, slots=True)
class Job:
    """One job on a set of GPUs."""

    name: str
    user: str
    gpus: Ints
    """Positions of its GPUs in the fleet."""
    start_s: int
    end_s: int
    segments: tuple[Segment, ...]
    memory: Staircase
    checkpoint_every_s: int
    """0: it writes none."""
    checkpoint_s: int
    seed: int
    """Of what is peculiar to this job, such as its saw-tooth."""
    interactive: bool = False
    """Does a person sit at it."""
    dtype_code: int | None = None
    """What the reporter inside the job says of its number format; None: there is no reporter."""

    def checkpointing(self, times_s: Ints) -> NDArray[np.bool_]:
        """[len(times_s)] is it writing a checkpoint."""
        if not self.checkpoint_every_s:
            return np.zeros(len(times_s), dtype=np.bool_)
        phase = (times_s - self.start_s) % self.checkpoint_every_s
        return phase >= self.checkpoint_every_s - self.checkpoint_s


class Timeline:
    """The jobs of one set of GPUs, one after the other, made as time reaches them."""

    def __init__(self, jobs: Iterator[Job]) -> None:
        self._jobs = jobs
        self._ahead: deque[Job] = deque()

    def within(self, start_s: int, end_s: int) -> list[Job]:
        """The jobs that run at some time in [start_s, end_s); `start_s` never goes back."""
        while self._ahead and self._ahead[0].end_s <= start_s:
            self._ahead.popleft()
        while not self._ahead or self._ahead[-1].start_s < end_s:
            self._ahead.append(next(self._jobs))
        return [job for job in self._ahead if job.start_s < end_s and job.end_s > start_s]


def queue(place: str, gpus: Ints, rng: np.random.Generator, start_s: int | None = None) -> Iterator[Job]:
    """Healthy jobs on `gpus` for ever; from the middle of one where `start_s` is None."""
    size = len(gpus)
    number = 0
    while True:
        kind = str(rng.choice(KINDS_BY_SIZE.get(size, KINDS_BY_SIZE[8])))
        duration_s = _duration_s(size, rng)
        if start_s is None:
            start_s = -int(rng.integers(600, max(601, duration_s - 600)))
        job = healthy(f"{place}-{number:02d}", kind, gpus, start_s, start_s + duration_s, rng)
        yield job
        number += 1
        start_s = job.end_s + _gap_s(size, rng)


def healthy(
    name: str, kind: str, gpus: Ints, start_s: int, end_s: int, rng: np.random.Generator, steady: bool = False
) -> Job:
    """A job without a fault: start-up, work with short checkpoints, a few seconds of ending.

    `steady` leaves out the checkpoints.
    """
    up_s = start_s + int(rng.integers(60, 281))
    down_s = max(up_s, end_s - int(rng.integers(5, 16)))
    trains = kind != "inference_server" and not steady
    return Job(
        name=name,
        user=f"user{int(rng.integers(1, 25)):02d}",
        gpus=gpus,
        start_s=start_s,
        end_s=end_s,
        segments=(
            Segment(start_s, up_s, "start_up"),
            Segment(up_s, down_s, kind),
            Segment(down_s, end_s, "held"),
        ),
        memory=settled(start_s, up_s, MEMORY_RATIO[kind] * rng.uniform(0.97, 1.0), rng),
        checkpoint_every_s=int(rng.integers(600, 1801)) if trains else 0,
        checkpoint_s=int(rng.integers(5, 20)),
        seed=int(rng.integers(2**31)),
        dtype_code=BFLOAT16 if kind == "compute_bound" else None,
    )


def settled(start_s: int, up_s: int, ratio: float, rng: np.random.Generator) -> Staircase:
    """Memory that is loaded in steps, rises a little once work begins, and stays."""
    loading = np.sort(rng.integers(start_s + 5, max(start_s + 6, up_s), 12))
    settling = np.sort(rng.integers(up_s, up_s + SETTLES_WITHIN_S, 6))
    rises = np.concatenate([np.linspace(0.02, 0.85, 12), np.linspace(0.88, 1.0, 6)]) * ratio
    return Staircase(
        np.concatenate([[start_s], loading, settling]).astype(np.int64), np.concatenate([[0.002], rises])
    )


def sawtooth(
    busy_s: tuple[float, float], idle_s: tuple[float, float], seed: int, seconds: int = 997
) -> NDArray[np.float32]:
    """[seconds] share of each second in which a starved job runs: bursts with waits between them."""
    rng = np.random.default_rng(seed)
    turns = int(seconds / (busy_s[0] + idle_s[0])) + 2
    lengths = np.column_stack([rng.uniform(*idle_s, turns), rng.uniform(*busy_s, turns)])
    edges = np.concatenate([[0.0], np.cumsum(lengths.ravel())])
    run = np.concatenate([[0.0], np.cumsum((lengths * [0.0, 1.0]).ravel())])
    ran_until = np.interp(np.arange(seconds + 1), edges, run)
    out: NDArray[np.float32] = np.diff(ran_until).astype(np.float32)
    return out


def _duration_s(size: int, rng: np.random.Generator) -> int:
    median = MEDIAN_DURATION_S.get(size, MEDIAN_DURATION_S[8])
    return int(np.clip(median * rng.lognormal(0.0, 0.7), 1800, 86_400))


def _gap_s(size: int, rng: np.random.Generator) -> int:
    """How long GPUs stay with nobody: mostly under a minute, sometimes until somebody wants them."""
    if size > 8 or rng.random() < 0.75:
        return int(rng.integers(10, 56))
    return int(rng.integers(300, 1801))
