"""The same steps with delays taken away: which operations the lost time goes back to.

A case says which operations keep the length that they had; all others get that of their kind in an even
job: the mean over all ranks and steps of what a rank does by itself, the median of a transfer, since a
transfer has no length of its own doing but outliers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unidle_collector.timeline.operations import COMPUTE, SENDS, Operations
from unidle_collector.timeline.schedule import Plan, plans

MOST_STEPS_AT_ONCE = 512
"""Bounds the memory of a replay: 8 bytes x this x operations of a step."""


@dataclass(frozen=True, slots=True)
class Replays:
    """A job whose steps can be replayed with other lengths."""

    operations: Operations
    plans: tuple[Plan, ...]
    misfits: int
    """Steps that could not be replayed."""
    actual_s: NDArray[np.float64]
    """[operations]: the length of each, without waiting for others; NaN in steps that do not fit."""
    even_s: NDArray[np.float64]
    """[operations]: the length of its kind in an even job."""

    @property
    def steps(self) -> int:
        """How many steps are replayed."""
        return sum(len(plan.rows) for plan in self.plans)

    def step_s(self, lengths_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """[steps]: their lengths when the operations take `lengths_s` [operations]."""
        return np.concatenate(
            [
                plan.replay_s(lengths_s[plan.rows[first : first + MOST_STEPS_AT_ONCE].T])
                for plan in self.plans
                for first in range(0, len(plan.rows), MOST_STEPS_AT_ONCE)
            ]
        )

    def slowdown(self, kept: NDArray[np.bool_]) -> float:
        """Mean step with only `kept` [operations] as they were, over the mean even step."""
        return self.slowdown_of(np.where(kept, self.actual_s, self.even_s))

    def slowdown_of(self, lengths_s: NDArray[np.float64]) -> float:
        """Mean step with these lengths [operations] over the mean even step."""
        return float(self.step_s(lengths_s).mean() / self.even_step_s)

    @property
    def even_step_s(self) -> float:
        """Mean length of a step of an even job."""
        return float(self.step_s(self.even_s).mean())


def prepare(operations: Operations) -> Replays:
    """Plan the replay of all steps; raises TimelineError when none fits together."""
    planned, misfits = plans(operations)
    actual_s = np.full(len(operations), np.nan)
    for plan in planned:
        actual_s[plan.rows.T] = plan.transfers_s(operations)
    return Replays(operations, tuple(planned), misfits, actual_s, _even(operations, actual_s))


def _even(operations: Operations, actual_s: NDArray[np.float64]) -> NDArray[np.float64]:
    even_s = np.full(len(operations), np.nan)
    receives = {receive: send for send, receive in SENDS.items()}
    seen = set()
    for name in operations.kinds:
        kind = receives.get(name, name)  # both ends of a transfer are one thing
        if kind in seen:
            continue
        seen.add(kind)
        rows = operations.of(kind, SENDS.get(kind, kind)) & np.isfinite(actual_s)
        if rows.any():
            even_s[rows] = actual_s[rows].mean() if kind in COMPUTE else np.median(actual_s[rows])
    return even_s


def means(actual_s: NDArray[np.float64], *groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """[operations]: the mean length of those that are in the same group in every one of `groups`."""
    codes = np.zeros(len(actual_s), dtype=np.int64)
    for group in groups:
        values = np.unique(group, return_inverse=True)[1]
        codes = codes * (int(values.max()) + 1) + values
    codes = np.unique(codes, return_inverse=True)[1]
    known = np.isfinite(actual_s)
    count = np.bincount(codes[known], minlength=int(codes.max()) + 1)
    total = np.bincount(codes[known], actual_s[known], minlength=len(count))
    with np.errstate(invalid="ignore"):
        return np.asarray((total / count)[codes])
