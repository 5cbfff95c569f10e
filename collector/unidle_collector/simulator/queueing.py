"""The queue and the allocator of a simulated cluster: who gets which GPUs, when, after what wait.

Jobs come at random and are placed in the order in which they came; one that fits passes those that do not
(as schedulers that backfill without reservations do). A job of up to a node's GPUs gets them on one node,
the one that it leaves the fewest free on; a larger one whole nodes. What is free in small pieces is
fragmentation: it is measured, not assumed.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from unidle_collector.simulator.clusters import LONG_S, Jobs, LogNormal

Ints = NDArray[np.int64]
LOOK_AHEAD = 64
"""Jobs of the queue that are tried when something becomes free."""
DAY_S = 86_400.0
DAY_SWING = 0.5
"""Arrivals are this much above and below their mean over the day: assumption."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A job as it is submitted."""

    number: int
    submitted_s: float
    gpus: int
    runs_s: float


@dataclass(frozen=True, slots=True)
class Placed:
    """A job that has run, or runs."""

    job: Wanted
    start_s: float
    gpus: Ints
    """Positions in the cluster: node * GPUs per node + index."""

    @property
    def end_s(self) -> float:
        """When it gives them back."""
        return self.start_s + self.job.runs_s

    @property
    def waited_s(self) -> float:
        """In the queue."""
        return self.start_s - self.job.submitted_s


@dataclass(slots=True)
class Run:
    """What became of the jobs."""

    placed: list[Placed] = field(default_factory=list)
    waiting: int = 0
    """Jobs that still wait in the end."""
    times_s: list[float] = field(default_factory=list)
    """Of each change."""
    free: list[int] = field(default_factory=list)
    """GPUs free from then on."""
    stranded: list[float] = field(default_factory=list)
    """GPUs free from then on, but in pieces too small for the next job: mean over the mix of sizes."""


def draw_sizes(jobs: Jobs, count: int, rng: np.random.Generator) -> Ints:
    """[count] GPUs of each job."""
    return rng.choice(np.array(jobs.sizes, dtype=np.int64), count, p=np.array(jobs.size_shares))


def draw_durations(jobs: Jobs, sizes: Ints, rng: np.random.Generator) -> NDArray[np.float64]:
    """[jobs] run times in s, short and long ones."""
    long = rng.random(sizes.size) < jobs.long_share
    out = np.empty(sizes.size)
    out[~long] = _mixture(jobs.short, int((~long).sum()), 0.0, LONG_S, rng)
    for size, parts in jobs.long.items():
        mine = long & (sizes == size)
        out[mine] = LONG_S + _mixture(parts, int(mine.sum()), 0.0, jobs.longest_s - LONG_S, rng)
    return out


def _mixture(
    parts: Sequence[LogNormal], count: int, low: float, high: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """[count] draws between `low` and `high`; what falls outside is drawn again."""
    weights = np.array([part.weight for part in parts])
    out = np.empty(count)
    due = np.arange(count)
    while due.size:
        which = rng.choice(len(parts), due.size, p=weights / weights.sum())
        median = np.array([part.median_s for part in parts])[which]
        spread = np.array([part.spread for part in parts])[which]
        out[due] = median * np.exp(spread * rng.standard_normal(due.size))
        due = due[(out[due] <= low) | (out[due] >= high)]
    return out


def arrivals(jobs: Jobs, gpus: int, load: float, seconds: float, rng: np.random.Generator) -> list[Wanted]:
    """Jobs that ask for `load` of the GPU time of `gpus` GPUs, more of them by day than by night."""
    mean_gpu_s = _mean_gpu_s(jobs)
    count = int(rng.poisson(load * gpus * seconds / mean_gpu_s))
    due_s = np.sort(rng.uniform(0.0, seconds, count))
    # Half of the arrivals are moved towards noon of their day: a sine around the mean rate.
    phase = due_s % DAY_S / DAY_S
    due_s = np.sort(due_s + DAY_SWING * DAY_S / (2 * np.pi) * np.sin(2 * np.pi * phase))
    sizes = draw_sizes(jobs, count, rng)
    runs_s = draw_durations(jobs, sizes, rng)
    return [Wanted(n, float(due_s[n]), int(sizes[n]), float(runs_s[n])) for n in range(count)]


def _mean_gpu_s(jobs: Jobs) -> float:
    """Mean GPU seconds of a job, from many draws that have nothing to do with the play."""
    rng = np.random.default_rng(1)
    sizes = draw_sizes(jobs, 400_000, rng)
    return float((sizes * draw_durations(jobs, sizes, rng)).mean())


class Allocator:
    """Which GPUs are free."""

    def __init__(self, nodes: int, gpus_per_node: int) -> None:
        self._width = gpus_per_node
        self._free = [list(range(gpus_per_node)) for _ in range(nodes)]
        self.count: Ints = np.full(nodes, gpus_per_node, dtype=np.int64)
        """[nodes] free GPUs."""

    def take(self, gpus: int) -> Ints | None:
        """Positions for a job, or None where it does not fit."""
        if gpus <= self._width:
            fits = np.flatnonzero(self.count >= gpus)
            if not fits.size:
                return None
            return self._of_nodes(fits[[self.count[fits].argmin()]], gpus)
        whole = np.flatnonzero(self.count == self._width)[: -(-gpus // self._width)]
        return None if whole.size * self._width < gpus else self._of_nodes(whole, gpus)

    def _of_nodes(self, nodes: NDArray[np.intp], gpus: int) -> Ints:
        out: list[int] = []
        for node in nodes.tolist():
            free = self._free[node]
            take = min(len(free), gpus - len(out))
            out += [node * self._width + free.pop(0) for _ in range(take)]
            self.count[node] -= take
        return np.array(out, dtype=np.int64)

    def give_back(self, gpus: Ints) -> None:
        """They are free again."""
        for position in gpus.tolist():
            node, index = divmod(position, self._width)
            heapq.heappush(self._free[node], index)
            self.count[node] += 1

    def stranded(self, sizes: Sequence[int], shares: Sequence[float]) -> float:
        """GPUs free on nodes that have too few for a job, mean over the mix of sizes."""
        return sum(
            share * float(self.count[self.count < min(size, self._width)].sum())
            for size, share in zip(sizes, shares, strict=True)
        )


def schedule(wanted: Sequence[Wanted], jobs: Jobs, nodes: int, gpus_per_node: int, until_s: float) -> Run:
    """Run the jobs through queue and allocator until `until_s`; `wanted` in order of time."""
    allocator, run = Allocator(nodes, gpus_per_node), Run()
    queue: deque[Wanted] = deque()
    ends: list[tuple[float, int, Ints]] = []
    ahead = deque(wanted)
    while ahead or ends:
        next_s = min(ahead[0].submitted_s if ahead else np.inf, ends[0][0] if ends else np.inf)
        if next_s > until_s:
            break
        while ends and ends[0][0] <= next_s:
            allocator.give_back(heapq.heappop(ends)[2])
        while ahead and ahead[0].submitted_s <= next_s:
            queue.append(ahead.popleft())
        for job in list(queue)[:LOOK_AHEAD]:
            gpus = allocator.take(job.gpus)
            if gpus is not None:
                queue.remove(job)
                run.placed.append(Placed(job, next_s, gpus))
                heapq.heappush(ends, (next_s + job.runs_s, job.number, gpus))
        run.times_s.append(next_s)
        run.free.append(int(allocator.count.sum()))
        run.stranded.append(allocator.stranded(jobs.sizes, jobs.size_shares))
    run.waiting = len(queue)
    return run


def over_time(run: Run, values: Sequence[float], begin_s: float, end_s: float) -> float:
    """Mean over [begin_s, end_s) of what changed at `run.times_s`."""
    times = np.clip(np.array([*run.times_s, end_s]), begin_s, end_s)
    return float((np.array(values) * np.diff(times)).sum() / (end_s - begin_s))
