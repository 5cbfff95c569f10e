"""From what a GPU does to what NVML and GPM would say of it: the columns of the field table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unidle_agent.fields import BY_NAME, GPU_FIELDS
from unidle_agent.sample import HW_SLOWDOWN, HW_THERMAL, POWER_BRAKE, SW_POWER_CAP, SW_THERMAL
from unidle_agent.subsecond import INTEGRALS
from unidle_collector.simulator.hardware import hardware, levels
from unidle_collector.simulator.noise import Draw
from unidle_collector.simulator.physics import Motion

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
Bools = NDArray[np.bool_]

GPU_IDLE = 0x1
"""Of the bits of clock_event_reasons (nvml.h)."""
SEGMENT_BYTES = 2 * 1024 * 1024
"""Memory is taken from the driver in multiples of this."""
SECOND_NS = 1_000_000_000
REPLAY_SHARE = 2e-6
"""Share of seconds with a PCIe replay: assumption."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What every GPU does; every array is [seconds, GPUs]."""

    workload: NDArray[np.int16]
    """Row of the level tables."""
    running: Floats32
    """Share of the second in which it runs: below 1 for a starved one."""
    memory_ratio: Floats
    """Memory used by processes over the total."""
    demand_w: Floats
    """Power that it would draw at full clocks."""
    floor_w: Floats
    """Power that it draws when nothing runs."""
    cooling_lost: Bools
    brake: Bools
    silent: Bools
    """The profiling counters say 0."""
    dtype_code: NDArray[np.uint64]
    """What the reporter inside the job says, UNKNOWN_U8 where there is none."""

    @classmethod
    def of(
        cls,
        workload: NDArray[np.int16],
        running: Floats32,
        memory_ratio: Floats,
        cooling_lost: Bools,
        brake: Bools,
        silent: Bools,
        dtype_code: NDArray[np.uint64],
        idle_w: Floats,
        lot: Floats,
    ) -> Scene:
        """The scene with its power; `idle_w` and `lot` (power for the same work) are [GPUs]."""
        hw, table = hardware(), levels()
        floor_w = np.where(table.empty[workload], hw.empty_ratio, 1.0) * idle_w
        full_w = np.maximum(table.signal["demand"][workload] * lot * hw.power_limit_w, floor_w)
        demand_w = floor_w + (full_w - floor_w) * running
        return cls(
            workload, running, memory_ratio, demand_w, floor_w, cooling_lost, brake, silent, dtype_code
        )

    def level(self, signal: str) -> Floats32:
        """The workload's level of `signal`."""
        out: Floats32 = levels().signal[signal][self.workload]
        return out


def gpu_columns(
    scene: Scene, motion: Motion, noise: Draw, counters: dict[str, NDArray[np.int64]]
) -> dict[str, NDArray[np.generic]]:
    """Every GPU field that NVML and GPM give -> [n, G]; `counters` [G] are moved on."""
    columns: dict[str, NDArray[np.generic]] = {
        **_activity(scene, noise),
        **_memory(scene),
        **_power_and_heat(scene, motion, noise),
        **_links(scene, noise),
        "dtype_code": scene.dtype_code,
    }
    rises = {
        "energy_j": np.rint(motion.power_w * 1000.0).astype(np.int64),
        "power_cap_s": motion.capped * SECOND_NS,
        "thermal_throttle_s": motion.sw_thermal * SECOND_NS,
        "hw_thermal_throttle_s": motion.hw_thermal * SECOND_NS,
        "power_brake_s": scene.brake * SECOND_NS,
        "pcie_replays": (noise.lost > 1.0 - REPLAY_SHARE).astype(np.int64),
    }
    for name, ratio in INTEGRALS.items():
        rises[name] = np.rint(columns[ratio].astype(np.float64) / BY_NAME[name].resolution).astype(np.int64)
    for name, rise in rises.items():
        total = counters.get(name, np.int64(0)) + np.cumsum(rise, axis=0, dtype=np.int64)
        counters[name] = total[-1]
        columns[name] = total.astype(np.uint64)
    shape = scene.workload.shape
    for name, value in LINKS.items():
        columns[name] = np.full(shape, value, dtype=np.float32)
    for spec in GPU_FIELDS:
        if spec.nvml and spec.name not in columns:  # nothing uses it and nothing is broken
            columns[spec.name] = np.zeros(shape, dtype=spec.dtype)
    return columns


LINKS = {
    "pcie_width": 16,
    "pcie_width_max": 16,
    "pcie_generation": 5,
    "pcie_generation_max": 5,
    "nvlink_links": 18,
    "nvlink_links_up": 18,
}
"""Links that are as they should be (H100 and B200 SXM: NVIDIA data sheets)."""


def _activity(scene: Scene, noise: Draw) -> dict[str, NDArray[np.generic]]:
    together = (1.0 + 0.015 * noise.activity) * scene.running
    apart = 1.0 + 0.03 * noise.pipe

    def share(values: Floats32, step: float) -> NDArray[np.float32]:
        out: NDArray[np.float32] = (np.rint(np.clip(values, 0.0, 1.0) / step) * step).astype(np.float32)
        return out

    busy = scene.level("gpu_util") * scene.running
    sm = scene.level("sm") * together
    dram = scene.level("dram") * together * apart
    profiled = {
        "graphics_active_ratio": share(np.minimum(busy, 0.995) * (1.0 + 0.002 * noise.pipe), 0.0001),
        "sm_active_ratio": share(sm, 0.0001),
        "sm_occupancy_ratio": share(np.minimum(scene.level("occupancy") * together * apart, sm), 0.0001),
        "tensor_active_ratio": share(np.minimum(scene.level("tensor") * together * apart, sm), 0.0001),
        "dram_active_ratio": share(dram, 0.0001),
        "fp32_active_ratio": share(scene.level("fp32") * together * apart, 0.0001),
        "fp16_active_ratio": share(scene.level("fp16") * together * apart, 0.0001),
    }
    if scene.silent.any():
        for values in profiled.values():
            values[scene.silent] = 0.0
    return {
        "gpu_util_ratio": share(busy * np.minimum(1.0, 1.0 + 0.01 * noise.pipe), 0.01),
        "memory_util_ratio": share(dram * 0.9, 0.01),
        **profiled,
    }


def _memory(scene: Scene) -> dict[str, NDArray[np.generic]]:
    hw = hardware()
    total = np.full(scene.memory_ratio.shape, float(hw.memory_total_bytes))
    most = hw.memory_total_bytes - hw.memory_reserved_bytes
    used = np.minimum(scene.memory_ratio * hw.memory_total_bytes, most)
    used = np.floor(used / SEGMENT_BYTES) * SEGMENT_BYTES
    return {
        "memory_total_bytes": total,
        "memory_used_bytes": used,
        "memory_reserved_bytes": np.full_like(total, float(hw.memory_reserved_bytes)),
        "memory_free_bytes": most - used,
        "process_count": (~levels().empty[scene.workload]).astype(np.float32),
    }


def _power_and_heat(scene: Scene, motion: Motion, noise: Draw) -> dict[str, NDArray[np.generic]]:
    hw, table = hardware(), levels()
    empty, idle = table.empty[scene.workload], table.idle[scene.workload]
    wobble = np.where(idle, 0.0015, 0.004) * noise.meter
    power_w = motion.power_w * (1.0 + wobble)
    clock_hz = np.rint(motion.clock_ratio * hw.sm_clock_max_hz / hw.sm_clock_step_hz) * hw.sm_clock_step_hz
    temperature_c = np.rint(motion.temperature_c + 0.1 * noise.meter)
    reasons = (
        GPU_IDLE * idle
        + SW_POWER_CAP * motion.capped
        + SW_THERMAL * motion.sw_thermal
        + HW_THERMAL * motion.hw_thermal
        + (POWER_BRAKE + HW_SLOWDOWN) * scene.brake
    )
    shape = scene.workload.shape
    return {
        "power_w": power_w.astype(np.float32),
        "power_instant_w": (power_w * (1.0 + wobble * scene.running)).astype(np.float32),
        "power_limit_w": np.full(shape, hw.power_limit_w, dtype=np.float32),
        "sm_clock_hz": np.where(empty, hw.sm_clock_empty_hz, clock_hz).astype(np.float32),
        "memory_clock_hz": np.full(shape, hw.memory_clock_hz, dtype=np.float32),
        "temperature_c": temperature_c.astype(np.float32),
        "memory_temperature_c": np.rint(motion.temperature_c + 4.0 + 6.0 * scene.level("dram")).astype(
            np.float32
        ),
        "thermal_margin_c": (hw.temperature_limit_c - temperature_c).astype(np.float32),
        "clock_event_reasons": reasons.astype(np.uint64),
    }


def _links(scene: Scene, noise: Draw) -> dict[str, NDArray[np.generic]]:
    """Rates in whole bytes per second; a waiting data loader still copies a little."""
    uneven = np.maximum(0.0, 1.0 + 0.12 * noise.link) * scene.running
    other = np.maximum(0.0, 1.0 - 0.12 * noise.link) * scene.running
    return {
        "pcie_tx_bytes_per_s": np.rint(scene.level("pcie_tx") * uneven).astype(np.float32),
        "pcie_rx_bytes_per_s": np.rint(scene.level("pcie_rx") * other).astype(np.float32),
        "nvlink_tx_bytes_per_s": np.rint(scene.level("nvlink") * uneven).astype(np.float32),
        "nvlink_rx_bytes_per_s": np.rint(scene.level("nvlink") * other).astype(np.float32),
    }
