"""Counters of the wire (whole numbers that only grow) as increases, exact in 64 bits, reset-aware."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unidle_agent.fields import UNKNOWN_U8
from unidle_collector.pergpu import Bools, Floats

Counts = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Increases:
    """What some counters did; every array is [R], as the raw values came."""

    values: Floats
    """In base units; NaN where unknown, at the first value and at a reset."""
    last: Counts
    """The last known raw value up to and with each row."""
    reset: Bools
    """Where a counter went back."""


def increases(raw: Counts, before: Counts, begin: NDArray[np.intp], resolution: Any = 1.0) -> Increases:
    """`raw` is [R], the series of several counters one after the other; UNKNOWN_U8 is unknown.

    `before` is [R] the last known value of the row's counter before its series, `begin` [R] where its
    series begins. An unknown value is bridged: the next known one counts from the last known one.
    """
    here = np.arange(raw.size)
    latest = np.maximum.accumulate(np.where(raw == UNKNOWN_U8, -1, here))
    prior_at = np.concatenate((np.full(min(1, raw.size), -1), latest[:-1]))
    prior = np.where(prior_at >= begin, raw[prior_at], before)
    known = (raw != UNKNOWN_U8) & (prior != UNKNOWN_U8)
    reset = known & (raw < prior)
    values = np.where(known & ~reset, (raw - prior).astype(np.float64) * resolution, np.nan)
    return Increases(values, np.where(latest >= begin, raw[latest], before), reset)
