"""Profiling counters that are silent: they say 0 while the GPU works, and so they say nothing.

Seen where another profiler holds the counters, or a driver or hypervisor hides them. Taken at their word
they would make a busy GPU an idle one; so they are unknown at such a step, and useful activity is graded
by GPU_UTIL.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping

import numpy as np

from unidle_collector.pergpu import Bools, Floats

PROFILED = (
    "sm_active_ratio",
    "sm_occupancy_ratio",
    "tensor_active_ratio",
    "dram_active_ratio",
    "fp64_active_ratio",
    "fp32_active_ratio",
    "fp16_active_ratio",
    "graphics_active_ratio",
)
SAY_WORK = ("sm_active_ratio", "graphics_active_ratio", "dram_active_ratio", "tensor_active_ratio")
"""All of these that are known have to be 0: a resident kernel leaves a trace in one of them."""
WORKS_RATIO = 0.20
"""GPU_UTIL from here on is work, ..."""
DRAWS_RATIO = 0.25
"""... where power, if it is known, is at least this share of its limit: an idle H100 or B200 draws less."""


def silent(columns: Mapping[str, Floats], size: int) -> Bools:
    """[size] do the profiling counters say 0 while utilization and power say that the GPU works."""
    nothing = np.zeros(size, dtype=np.bool_)
    if "gpu_util_ratio" not in columns or "sm_active_ratio" not in columns:
        return nothing
    quiet = columns["sm_active_ratio"] == 0
    if not quiet.any():
        return nothing
    out: Bools = quiet & (columns["gpu_util_ratio"] >= WORKS_RATIO)
    if not out.any():
        return nothing
    for field in SAY_WORK:
        if field in columns:
            out &= ~(columns[field] > 0)
    if "power_w" in columns and "power_limit_w" in columns:
        out &= ~(columns["power_w"] < DRAWS_RATIO * columns["power_limit_w"])
    return out


def believed(columns: Mapping[str, Floats], quiet: Bools) -> Mapping[str, Floats]:
    """The columns with the profiling counters unknown where they are silent."""
    if not quiet.any():
        return columns
    unknown = {name: np.where(quiet, np.nan, columns[name]) for name in PROFILED if name in columns}
    return ChainMap(unknown, columns)  # type: ignore[arg-type]
