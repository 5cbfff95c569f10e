"""Four rules for a comparison of engines, in PromQL and in NumPy: same windows, same thresholds.

They are not unidle's detectors: PromQL has no bitwise operators, no states and no owners, so these keep to
what every engine can say. The thresholds lie where the noise of `benchmarks.generator` crosses them, on
both sides and close by, so that engines which agree have seen the same rows.

A pass is of one second T and looks at the WINDOW_S rows up to it. Engines are asked for half a second
later, so that no row lies on a window's edge, which some count in and some out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unidle_collector.pergpu import Bools, Floats

WINDOW_S = 45
"""No part of the generator's minute, so that each pass sees other rows."""
HORIZON_S = 3600
AFTER_S = 0.5
"""From the last row of a window to the instant that is asked for."""

# No mean of 45 readings lies on a threshold, where the last bit of a float would decide.
STARVED_RATIO, HOLDS_BYTES = 0.2999, 10e9
THROTTLED_RATIO = 0.9001
HOT_C, HOT_MEMORY_C = 65.13, 66
FULL_RATIO = 0.45

PROMQL = {
    "starved": (
        f"avg_over_time(gpu_gpu_util_ratio[{WINDOW_S}s]) < {STARVED_RATIO} "
        f"and avg_over_time(gpu_memory_used_bytes[{WINDOW_S}s]) > {HOLDS_BYTES:.0f}"
    ),
    "throttled": (
        f"avg_over_time(gpu_sm_clock_hz[{WINDOW_S}s]) "
        f"< {THROTTLED_RATIO} * max_over_time(gpu_sm_clock_hz[{WINDOW_S}s])"
    ),
    "thermal": (
        f"avg_over_time(gpu_temperature_c[{WINDOW_S}s]) > {HOT_C} "
        f"and max_over_time(gpu_memory_temperature_c[{WINDOW_S}s]) > {HOT_MEMORY_C}"
    ),
    "oom_risk": (
        f"predict_linear(gpu_memory_used_bytes[{WINDOW_S}s], {HORIZON_S}) "
        f"> {FULL_RATIO} * gpu_memory_total_bytes"
    ),
}
"""Name -> expression whose result has one series per GPU that the rule is true of."""

Read = Callable[[str], NDArray[Any]]
"""Field -> [WINDOW_S, GPUs], the oldest row first."""


def numpy_pass(read: Read) -> Mapping[str, Bools]:
    """Name -> [GPUs] is the rule true; never where a value that it needs is unknown."""
    used, clock = _wide(read("memory_used_bytes")), _wide(read("sm_clock_hz"))
    utilized, hot = read("gpu_util_ratio").mean(0, np.float64), read("temperature_c").mean(0, np.float64)
    return {
        "starved": (utilized < STARVED_RATIO) & (used.mean(0) > HOLDS_BYTES),
        "throttled": clock.mean(0) < THROTTLED_RATIO * clock.max(0),
        "thermal": (hot > HOT_C) & (read("memory_temperature_c").max(0) > HOT_MEMORY_C),
        "oom_risk": predicted(used) > FULL_RATIO * read("memory_total_bytes")[-1],
    }


def predicted(values: Floats) -> Floats:
    """[GPUs] where the line of least squares through [WINDOW_S, GPUs] is after HORIZON_S, as Prometheus
    counts: from the instant that is asked for."""
    x = np.arange(1 - len(values), 1, dtype=np.float64) - AFTER_S
    about = x - x.mean()
    mean = values.mean(0)
    slope = about @ (values - mean) / (about @ about)
    out: Floats = mean + slope * (HORIZON_S - x.mean())
    return out


def _wide(values: NDArray[Any]) -> Floats:
    return values.astype(np.float64)
