"""Small recordings for tests: constant or callable columns on a regular grid."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from unidle_collector.model import GpuRef
from unidle_collector.recording import Recording

Column = float | None | Callable[[int, int], NDArray[np.float64]]

START_NS = 1_700_000_000_000_000_000
H100 = "NVIDIA H100 80GB HBM3"
GIB = 2.0**30


def recording(
    columns: dict[str, Column],
    *,
    minutes: float,
    period_s: float = 1.0,
    gpus: int = 8,
    job: str | None = None,
    model: str = H100,
    keep: NDArray[np.bool_] | None = None,
) -> Recording:
    """`gpus` GPUs of one node; `job` None: the recording does not say, "": nobody, else the job's name."""
    instants = round(minutes * 60 / period_s)
    shape = (instants, gpus)
    sampled = np.ones(shape, dtype=np.bool_) if keep is None else keep
    arrays = {}
    for name, value in columns.items():
        array = value(*shape) if callable(value) else np.full(shape, np.nan if value is None else value)
        arrays[name] = np.where(sampled, array, np.nan)
    code = -1 if job is None else 0 if job == "" else 1
    return Recording(
        start_ns=START_NS + round(period_s * 1e9),
        period_s=period_s,
        gpus=tuple(GpuRef("node-1", f"GPU-{number}", number, model) for number in range(gpus)),
        columns=arrays,
        sampled=sampled,
        jobs=("", job) if job else ("",),
        job=np.full(shape, code, dtype=np.int32),
        notes=(),
    )


def noisy(mean: float, spread: float, seed: int = 1) -> Column:
    """A gauge with normal noise, never below zero."""
    random = np.random.default_rng(seed)
    return lambda instants, gpus: np.clip(random.normal(mean, spread, (instants, gpus)), 0, None)


def between(
    inside: float, outside: float, first_min: float, last_min: float, period_s: float = 1.0
) -> Column:
    """`inside` from minute `first_min` to `last_min`, else `outside`."""

    def build(instants: int, gpus: int) -> NDArray[np.float64]:
        minute = np.arange(instants) * period_s / 60
        column = np.where((minute >= first_min) & (minute < last_min), inside, outside)
        return np.repeat(column[:, None], gpus, axis=1)

    return build


BASE: dict[str, Column] = {"memory_total_bytes": 80e9, "power_limit_w": 700.0}
HEALTHY: dict[str, Column] = BASE | {
    "gpu_util_ratio": 1.0,
    "sm_active_ratio": noisy(0.877, 0.02),
    "tensor_active_ratio": 0.583,
    "dram_active_ratio": 0.369,
    "power_w": noisy(689.0, 4.0),
    "memory_used_bytes": 70e9,
    "sm_clock_hz": noisy(1.75e9, 2e7),
    "clock_event_reasons": float(0x4),
    "temperature_c": 62.0,
    "nvlink_tx_bytes_per_s": 1.5e9,
}
HELD: dict[str, Column] = BASE | {
    "gpu_util_ratio": 0.0,
    "sm_active_ratio": 0.0,
    "power_w": noisy(120.0, 0.3),
    "memory_used_bytes": 16e9,
}
EMPTY: dict[str, Column] = BASE | {"gpu_util_ratio": 0.0, "power_w": 70.0, "memory_used_bytes": 5e6}
