"""The clock that a GPU would run at: that of unthrottled siblings on the same work, else its own."""

from __future__ import annotations

import numpy as np

from unidle_collector.pergpu import Bools, Floats, PerGpu, Times
from unidle_collector.signals import NOTHING_RAN, View

FADE_PER_STEP = 0.0002
"""The GPU's own best clock fades slowly, so that a change of clock settings is followed."""
SIBLINGS = 3
"""Fewest unthrottled GPUs of one model in one job (else on one node) that a median is taken of."""


class ReferenceClock:
    """Keeps each GPU's own unthrottled clock."""

    def __init__(self, size: int) -> None:
        self._a = PerGpu(size)
        self._a.make("own", np.float64, np.nan)

    def of(self, view: View, slowed: Bools, asked: Bools) -> tuple[Floats, Floats]:
        """[GPUs] clock in Hz by siblings, and by the GPU itself; NaN where nothing is known.

        `slowed` are GPUs that cannot serve as a reference now. Siblings are looked at of those that are
        `asked` for; of the others it is NaN.
        """
        clock = view.step.get("sm_clock_hz")
        healthy = view.alive & ~slowed & ~np.isnan(clock) & (view.activity >= NOTHING_RAN)
        own = self._a["own"]
        own *= 1 - FADE_PER_STEP
        np.fmax(own, np.where(healthy, clock, np.nan), out=own)
        return sibling_median(view, np.where(healthy, clock, np.nan), asked), own

    def reset(self, gpus: Bools) -> None:
        """Another job may run at another clock."""
        self._a["own"][gpus] = np.nan

    def resize(self, size: int) -> None:
        """Grow to `size` GPUs."""
        self._a.resize(size)


def sibling_median(view: View, values: Floats, asked: Bools) -> Floats:
    """[GPUs] median of what is known of the GPU's group, NaN where that is of fewer than SIBLINGS."""
    out = np.full(values.shape, np.nan)
    if not asked.any():
        return out
    group = view.once(_groups)
    looked_at = np.zeros(int(group.max()) + 1, dtype=np.bool_)
    looked_at[group[asked]] = True
    here = np.flatnonzero(looked_at[group])
    group, values = group[here], values[here]
    order = np.lexsort((values, group))  # NaN sorts last within its group
    bounds = np.flatnonzero(np.diff(group[order], prepend=group[order[0]] - 1))
    known = np.add.reduceat((~np.isnan(values[order])).astype(np.int64), bounds)
    middle = np.minimum(bounds + np.maximum(known - 1, 0) // 2, order.size - 1)
    median = np.where(known >= SIBLINGS, values[order][middle], np.nan)
    out[here[order]] = np.repeat(median, np.diff(bounds, append=order.size))
    return out


def _groups(view: View) -> Times:
    """[GPUs] a number for those of one model in one job, else on one node."""
    a = view.inventory.a
    job, node, model = (a[name].astype(np.int64) for name in ("job", "node", "model"))
    owner = np.where(job > 0, job, job.max() + 2 + node)
    found: Times = owner * (model.max() + 2) + model + 1
    return found
