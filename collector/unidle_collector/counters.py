"""Counters of the wire (whole numbers that only grow) as increases, exact in 64 bits, reset-aware."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unidle_agent.fields import UNKNOWN_U8
from unidle_collector.pergpu import Floats

Counts = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Increases:
    """What some counters did over some instants."""

    values: Floats
    """[instants, counters] in base units; NaN where unknown, at the first value and at a reset."""
    last: Counts
    """[counters] the last known raw value."""
    resets: int


def increases(raw: Counts, before: Counts, resolution: Any) -> Increases:
    """`raw` is [instants, counters], `before` [counters] their last known values; UNKNOWN_U8 is unknown.

    An unknown value is bridged: the next known one counts from the last known one.
    """
    whole = np.concatenate((before[None, :], raw))
    rows = np.arange(whole.shape[0])[:, None]
    index = np.maximum.accumulate(np.where(whole == UNKNOWN_U8, 0, rows), axis=0)
    filled = np.take_along_axis(whole, index, axis=0)
    after, prior = filled[1:], filled[:-1]
    known = (raw != UNKNOWN_U8) & (prior != UNKNOWN_U8)
    reset = known & (after < prior)
    values = np.where(known & ~reset, (after - prior).astype(np.float64) * resolution, np.nan)
    return Increases(values, filled[-1], int(np.count_nonzero(reset)))
