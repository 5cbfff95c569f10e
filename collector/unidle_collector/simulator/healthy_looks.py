"""How the nodes of a fleet are looked at: late, now and then not at all, some with few fields."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unidle_agent.fields import BY_NAME
from unidle_collector.simulator.fault_trial import PUSH_EACH_S
from unidle_collector.simulator.healthy_jobs import PER_NODE
from unidle_collector.simulator.mechanisms.variant import Range
from unidle_collector.simulator.recordings import EXPORTER, LATE_S, VERY_LATE_S, VERY_LATE_SHARE

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Doubles = NDArray[np.float64]

COVER = 3
"""A sample speaks for up to this many periods before it, as in the live window."""
MIG_BLANK = (
    "gpu_util_ratio", "memory_util_ratio", "pcie_rx_bytes_per_s", "pcie_tx_bytes_per_s",
    "nvlink_tx_bytes_per_s", "nvlink_rx_bytes_per_s",
)  # fmt: skip
"""What the driver does not say of a MIG instance."""


@dataclass(frozen=True, slots=True)
class Slips:
    """What goes wrong with looking; assumptions."""

    missing: Range = (0.0, 0.3)
    """Share of the samples that are lost, on every second node."""
    restarts_per_h: float = 0.05
    restart_s: Range = (5.0, 75.0)
    """An agent does not push meanwhile."""


@dataclass(frozen=True, slots=True)
class Looked:
    """The next samples; arrays are [T, nodes]."""

    sampled: Bools
    """Is there a sample in the period; the last one of each node is there."""
    times_s: Doubles
    """When it was taken, ..."""
    before_s: Doubles
    """... and the one before it."""
    heard_s: Doubles
    """When the node was heard of last."""


class Looks:
    """The agents of some nodes, or the scraper where `exporter` [nodes], each `period_s`."""

    def __init__(self, exporter: Bools, period_s: float, slips: Slips, rng: np.random.Generator) -> None:
        nodes = exporter.size
        self._exporter, self._period_s, self._slips, self._rng = exporter, period_s, slips, rng
        self._missing = rng.uniform(*slips.missing, nodes) * (rng.random(nodes) < 0.5)
        self._late_s = rng.uniform(*LATE_S, nodes)
        self._before_s = np.zeros(nodes)
        self._away_from_s = np.zeros(nodes)
        self._away_until_s = np.zeros(nodes)

    def at(self, ends_s: Doubles) -> Looked:
        """The samples of the periods that end at `ends_s` [T].

        What is late by half a period or more falls into the next one, as the second sample there.
        """
        shape = (ends_s.size, self._exporter.size)
        late_s = self._rng.exponential(self._late_s, shape)
        very_late = self._rng.random(shape) < VERY_LATE_SHARE
        late_s += very_late * self._rng.uniform(0.0, VERY_LATE_S, shape)
        away, silent_since_s = self._restarts(ends_s)
        sampled = ~self._lost(shape) & ~away & (late_s < self._period_s / 2)
        sampled[-1] = True
        times_s = ends_s[:, None] + np.where(sampled, np.minimum(late_s, self._period_s / 2), 0.0)
        before_s = np.empty(shape)
        for tick in range(ends_s.size):
            before_s[tick] = self._before_s
            self._before_s = np.where(sampled[tick], times_s[tick], self._before_s)
        pushed_s = ends_s[:, None] - self._rng.uniform(0.0, PUSH_EACH_S, shape)
        pushed_s = np.where(away, silent_since_s, pushed_s)
        scraped_s = np.where(sampled, times_s, before_s)
        return Looked(sampled, times_s, before_s, np.where(self._exporter, scraped_s, pushed_s))

    def _lost(self, shape: tuple[int, int]) -> Bools:
        """[T, nodes] half of them one by one, half in gaps; of a scraper never three in a row."""
        rng = self._rng
        lost = rng.random(shape) < self._missing * 0.5
        begins = rng.random(shape) < self._missing * 0.1
        length = rng.integers(2, 9, shape)
        for back in range(8):
            lost[back:] |= (begins & (length > back))[: shape[0] - back]
        for tick in range(2, shape[0]):
            lost[tick] &= ~(self._exporter & lost[tick - 1] & lost[tick - 2])
        return lost

    def _restarts(self, ends_s: Doubles) -> tuple[Bools, Doubles]:
        """[T, nodes] each: is the agent away, and since when."""
        rng, per_period = self._rng, self._slips.restarts_per_h * self._period_s / 3600.0
        shape = (ends_s.size, self._exporter.size)
        begins = (rng.random(shape) < per_period) & ~self._exporter
        away, since_s = np.zeros(shape, dtype=np.bool_), np.zeros(shape)
        for tick, end_s in enumerate(ends_s.tolist()):
            fresh = begins[tick] & (end_s >= self._away_until_s)
            self._away_from_s[fresh] = end_s
            self._away_until_s[fresh] = end_s + rng.uniform(*self._slips.restart_s, int(fresh.sum()))
            away[tick], since_s[tick] = end_s < self._away_until_s, self._away_from_s
        return away, since_s


def cover(columns: dict[str, Floats], sampled: Bools) -> Bools:
    """[T, G] is there a sample, or one soon after that speaks for this period, too; else all is unknown.

    `sampled` is [T, nodes]. A counter's increase is shared by the periods since the sample before.
    """
    ticks, nodes = sampled.shape
    tick = np.arange(ticks)[:, None]
    own = np.where(sampled, tick, ticks)
    following = np.minimum.accumulate(own[::-1], axis=0)[::-1]
    last = np.maximum.accumulate(np.where(sampled, tick, -1), axis=0)
    prior = np.concatenate((np.full((1, nodes), -1), last[:-1]))
    periods = np.repeat(following - prior, PER_NODE, axis=1).astype(np.float32)
    covered = following - tick < COVER
    for name, values in columns.items():
        if BY_NAME[name].kind == "counter":
            values /= periods
    for at in range(ticks - 2, -1, -1):
        gpus = np.flatnonzero(np.repeat(~sampled[at] & covered[at], PER_NODE))
        gone = np.flatnonzero(np.repeat(~covered[at], PER_NODE))
        for values in columns.values():
            values[at, gpus] = values[at + 1, gpus]
        for values in columns.values():
            values[at, gone] = np.nan
    return np.repeat(covered, PER_NODE, axis=1)


def blank(columns: dict[str, Floats], exporter: Bools, mig: Bools) -> None:
    """Leave out what an exporter does not send, and the driver does not say of MIG instances; both [GPUs]."""
    for gpus, names in (
        (np.flatnonzero(exporter), columns.keys() - {*EXPORTER, "nvlink_bytes_per_s"}),
        (np.flatnonzero(mig), MIG_BLANK),
    ):
        for name in names:
            columns[name][:, gpus] = np.nan
