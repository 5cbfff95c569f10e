"""The reference e_ref of docs/accounting.md: what useful activity could be.

The 90th percentile of the GPU's own productive minutes under its present job once there are 30,
else the default of the GPU model from data/gpus.toml.
"""

from __future__ import annotations

import numpy as np

from unidle_collector.catalogue import catalogue
from unidle_collector.pergpu import SECOND_NS, Bools, Floats, PerGpu, Positions
from unidle_collector.signals import View

BINS = 50
"""Of the histogram of productive minutes: 2 points each."""
ENOUGH_MINUTES = 30
PERCENTILE = 0.90
MINUTE_NS = 60 * SECOND_NS


class Reference:
    """Reference activity per GPU, learnt from its own productive minutes."""

    def __init__(self, size: int) -> None:
        self._defaults = catalogue().reference
        self.tensor = self._defaults.tensor
        self._a = PerGpu(size)
        self._a.at["minute"] = 0
        self._a.make("histogram", np.int32, 0, BINS)
        self._a.make("own", np.float64, np.nan)

    def of(self, view: View) -> Floats:
        """[GPUs] the reference, of the same grade as `view.useful`."""
        own = self._a["own"]
        default = np.where(view.sm_grade, self._defaults.sm, self._defaults.util)
        out: Floats = np.where(np.isnan(own), default, own)
        return out

    def learn(self, view: View, productive: Bools) -> None:
        """Once a minute, count the minute's mean where it was productive."""
        minute = view.step.end_ns // MINUTE_NS
        if minute == self._a.at["minute"]:
            return
        self._a.at["minute"] = minute
        chosen = np.flatnonzero(productive & ~np.isnan(view.useful))
        if not chosen.size:
            return
        histogram = self._a["histogram"]
        bins = np.clip((view.useful[chosen] * BINS).astype(np.intp), 0, BINS - 1)
        histogram[bins, chosen] += 1
        total = histogram[:, chosen].sum(axis=0)
        above = (histogram[:, chosen].cumsum(axis=0) >= PERCENTILE * total).argmax(axis=0)
        own = np.where(total >= ENOUGH_MINUTES, (above + 0.5) / BINS, np.nan)
        self._a["own"][chosen] = own

    def source(self, gpus: Positions) -> str:
        """Where the reference of these GPUs comes from, in words."""
        if bool(np.isnan(self._a["own"][gpus]).all()):
            return "default reference"
        return "reference: 90th percentile of the job's own productive minutes"

    def reset(self, gpus: Bools) -> None:
        """Another job is another reference."""
        self._a["histogram"][:, gpus] = 0
        self._a["own"][gpus] = np.nan

    def resize(self, size: int) -> None:
        """Grow."""
        self._a.resize(size)
