"""The constants of the simulated hardware and workloads, read from the two data files beside this one."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIGNALS = (
    "gpu_util",
    "sm",
    "occupancy",
    "tensor",
    "dram",
    "fp32",
    "fp16",
    "demand",
    "pcie_rx",
    "pcie_tx",
    "nvlink",
    "cpu",
    "iowait",
    "psi_cpu",
    "psi_io_some",
    "psi_io_full",
    "disk_read",
    "disk_written",
    "net_received",
    "net_sent",
    "ib",
)
"""Quantities that workloads.toml gives a level for."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """One GPU model and its host; the names carry the units, b200.toml the sources."""

    model: str
    power_limit_w: float
    memory_total_bytes: int
    memory_reserved_bytes: int
    sm_clock_max_hz: float
    sm_clock_empty_hz: float
    sm_clock_step_hz: float
    memory_clock_hz: float
    idle_low_w: float
    idle_high_w: float
    empty_ratio: float
    power_hold_ratio: float
    power_exponent: float
    temperature_limit_c: float
    slowdown_margin_c: float
    shutdown_margin_c: float
    inlet_c: float
    odd_slot_warmer_c: float
    thermal_resistance_c_per_w: float
    thermal_time_constant_s: float
    cooling_lost_time_constant_s: float
    cooling_lost_c: float
    thermal_clock_ratio: float
    brake_clock_ratio: float
    host_memory_bytes: int
    host_cores: int


@dataclass(frozen=True, slots=True)
class Levels:
    """The workloads as lookup tables: index of a workload -> level of each signal."""

    index: dict[str, int]
    signal: dict[str, NDArray[np.float32]]
    """Signal -> [workloads]."""
    idle: NDArray[np.bool_]
    """[workloads] nothing can run, by the workload's nature."""
    empty: NDArray[np.bool_]
    """[workloads] no process has the GPU open."""
    sawtooth_s: dict[int, tuple[tuple[float, float], tuple[float, float]]]
    """Workload -> (shortest, longest) burst and (shortest, longest) wait of a starved one."""


@cache
def hardware() -> Hardware:
    """The simulated GPU."""
    rows = _read("b200.toml")
    return Hardware(**{field.name: rows[field.name]["value"] for field in fields(Hardware)})


@cache
def levels() -> Levels:
    """The simulated workloads."""
    rows = _read("workloads.toml")
    names = list(rows)
    return Levels(
        index={name: position for position, name in enumerate(names)},
        signal={
            signal: np.array([rows[name].get(signal, 0.0) for name in names], dtype=np.float32)
            for signal in SIGNALS
        },
        idle=np.array([rows[name].get("idle", False) for name in names]),
        empty=np.array([rows[name].get("empty", False) for name in names]),
        sawtooth_s={
            position: (tuple(rows[name]["sawtooth_busy_s"]), tuple(rows[name]["sawtooth_idle_s"]))
            for position, name in enumerate(names)
            if "sawtooth_busy_s" in rows[name]
        },
    )


def _read(name: str) -> dict[str, dict[str, Any]]:
    return tomllib.loads(files(__package__).joinpath(name).read_text(encoding="utf-8"))
