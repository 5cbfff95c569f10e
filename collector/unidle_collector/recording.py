"""Recorded telemetry of some GPUs on one grid of time: what `unidle diagnose` works on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unidle_collector.model import GpuRef


@dataclass(frozen=True, slots=True)
class Recording:
    """Samples on a regular grid: T instants x G GPUs.

    Instants at which a GPU has no sample hold NaN in every column: unknown, never zero. Of long holes, as
    between runs of different days, most instants are left out.
    """

    start_ns: int
    """Time of the first instant."""
    period_s: float
    """The inferred sampling period: the grid's step."""
    gpus: tuple[GpuRef, ...]
    columns: dict[str, NDArray[np.float64]]
    """Field of the table -> array [T, G] in base units; NaN is unknown. A counter is the increase since
    the GPU's sample before (never negative: a reset gives NaN). Host fields are repeated per GPU."""
    sampled: NDArray[np.bool_]
    """[T, G]: is there a sample at all."""
    jobs: tuple[str, ...]
    """Names of jobs; index 0 is the empty name."""
    job: NDArray[np.int32]
    """[T, G]: index into `jobs`; 0 allocated to nobody, -1 the recording does not say."""
    notes: tuple[str, ...]
    """What was skipped, guessed or converted, in words."""
    simulated: bool = False
    cannot_tell: tuple[str, ...] = ()
    """What its source cannot say at all, in words: open questions, and what would answer them."""
    kept: NDArray[np.int64] | None = None
    """[T]: which step of the grid each instant is, from 0 up; None: each is kept."""

    @property
    def instants(self) -> int:
        """T."""
        return int(self.sampled.shape[0])

    @property
    def steps(self) -> NDArray[np.int64]:
        """[T]: which step of the grid each instant is."""
        return np.arange(self.instants, dtype=np.int64) if self.kept is None else self.kept

    @property
    def ends_ns(self) -> NDArray[np.int64]:
        """[T]: time of each instant."""
        return self.start_ns + self.steps * round(self.period_s * 1e9)

    @property
    def lasts_s(self) -> float:
        """From a period before the first instant to the last."""
        return float(self.steps[-1] + 1) * self.period_s if self.instants else 0.0
