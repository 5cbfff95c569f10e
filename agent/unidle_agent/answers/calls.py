"""What a GPU can be asked by NVML, and the key of the file under which its answer stands.

One row per C function. `unidle_agent.answers.record` asks through nvidia-ml-py and writes the keys,
`unidle_agent.answers.stand_in` is the C function and reads them. What has a shape of its own (fields,
processes, GPM, events, MIG devices) is code on both sides. Ids and names: nvidia-ml-py 13.615.71.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pynvml

Tier = Literal["static", "fast", "slow"]
"""Asked once; at every instant; every 10 s."""


@dataclass(frozen=True, slots=True)
class Call:
    """A C function of one GPU and what it answers."""

    function: str
    tier: Tier
    keys: tuple[str, ...]
    """Where its numbers stand, in the order of its out-parameters; those without a key get the last."""
    members: tuple[str, ...] = ()
    """Where it fills a structure: the members that the keys stand for."""
    argument: int | None = None
    """What it takes beside the GPU: which clock, which threshold."""
    text: bool = False
    ask: Callable[[Any], Any] | None = None
    """Asks through nvidia-ml-py where that has no function of the same name and arguments."""


def _number(function: str, tier: Tier, *keys: str) -> Call:
    return Call(f"nvmlDeviceGet{function}", tier, keys)


def _text(function: str, key: str) -> Call:
    return Call(f"nvmlDeviceGet{function}", "static", (key,), text=True)


CLOCKS = ("graphics_mhz", "sm_mhz", "memory_mhz", "video_mhz")
"""By nvmlClockType_t."""


def _fabric(handle: Any) -> Any:
    info = pynvml.c_nvmlGpuFabricInfo_v2_t()
    pynvml.nvmlDeviceGetGpuFabricInfoV(handle, ctypes.byref(info))
    return info


def _sram(handle: Any) -> Any:
    status = pynvml.c_nvmlEccSramErrorStatus_v1_t()
    pynvml.nvmlDeviceGetSramEccErrorStatus(handle, ctypes.byref(status))
    return status


class _Platform(ctypes.Structure):
    """nvmlPlatformInfo_v2: nvidia-ml-py has its numbers as characters."""

    _fields_ = (
        *(("version", ctypes.c_uint), ("ib_guid", ctypes.c_char * 16), ("chassis", ctypes.c_char * 16)),
        *((name, ctypes.c_ubyte) for name in ("slot", "tray", "host", "peer", "module")),
    )


def _platform(handle: Any) -> Any:
    # Two of its members name the machine and are left.
    info = _Platform(version=pynvml.nvmlPlatformInfo_v2)
    pynvml.nvmlDeviceGetPlatformInfo(handle, ctypes.byref(info))
    return info


CALLS: tuple[Call, ...] = (
    _text("Name", "name"),
    _text("UUID", "uuid"),
    _text("Serial", "serial"),
    _text("VbiosVersion", "vbios"),
    _text("BoardPartNumber", "board_part"),
    Call("nvmlDeviceGetPciInfo_v3", "static", ("pci_bus_id",), members=("busId",), text=True),
    _number("MinorNumber", "static", "minor"),
    Call(
        "nvmlDeviceGetPlatformInfo",
        "static",
        ("platform.slot", "platform.tray", "platform.host", "platform.peer", "platform.module"),
        members=("slot", "tray", "host", "peer", "module"),
        ask=_platform,
    ),
    _number("NumGpuCores", "static", "cores"),
    _number("MemoryBusWidth", "static", "memory.bus_bits"),
    _number("CudaComputeCapability", "static", "compute_capability.major", "compute_capability.minor"),
    _number("Architecture", "static", "architecture"),
    _number("NumaNodeId", "static", "numa_node"),
    _number("PersistenceMode", "static", "persistence_mode"),
    _number("ComputeMode", "static", "compute_mode"),
    _number("EccMode", "static", "ecc_mode", "ecc_mode_pending"),
    _number("MigMode", "static", "mig_mode"),
    _number("MaxMigDeviceCount", "static", "mig_max"),
    _number("MaxPcieLinkGeneration", "static", "pcie.generation_max"),
    _number("MaxPcieLinkWidth", "static", "pcie.width_max"),
    _number("PowerManagementLimitConstraints", "static", "power_limit_min_mw", "power_limit_max_mw"),
    _number("PowerManagementDefaultLimit", "static", "power_limit_default_mw"),
    _number("SupportedEventTypes", "static", "supported_events"),
    *(
        Call("nvmlDeviceGetMaxClockInfo", "static", (f"max_clock.{name}",), argument=kind)
        for kind, name in enumerate(CLOCKS)
    ),
    *(
        Call("nvmlDeviceGetTemperatureThreshold", "static", (f"threshold.{kind}_c",), argument=kind)
        for kind in range(4)
    ),
    Call("nvmlGpmQueryDeviceSupport", "static", ("gpm_supported",), members=("isSupportedDevice",)),
    Call(
        "nvmlDeviceGetUtilizationRates",
        "fast",
        ("utilization.gpu", "utilization.memory"),
        members=("gpu", "memory"),
    ),
    Call(
        "nvmlDeviceGetMemoryInfo_v2",
        "fast",
        ("memory.total", "memory.reserved", "memory.free", "memory.used"),
        members=("total", "reserved", "free", "used"),
        ask=lambda handle: pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2),
    ),
    _number("PowerUsage", "fast", "power_mw"),
    _number("EnforcedPowerLimit", "fast", "power_limit_mw"),
    _number("TotalEnergyConsumption", "fast", "energy_mj"),
    *(
        Call("nvmlDeviceGetClockInfo", "fast", (f"clock.{name}",), argument=kind)
        for kind, name in enumerate(CLOCKS)
    ),
    Call(
        "nvmlDeviceGetTemperatureV",
        "fast",
        ("temperature_c",),
        members=("temperature",),
        ask=lambda handle: pynvml.nvmlDeviceGetTemperatureV(handle, pynvml.NVML_TEMPERATURE_GPU),
    ),
    Call("nvmlDeviceGetTemperature", "fast", ("temperature_c",), argument=pynvml.NVML_TEMPERATURE_GPU),
    Call(
        "nvmlDeviceGetMarginTemperature",
        "fast",
        ("margin_c",),
        members=("marginTemperature",),
        ask=lambda handle: pynvml.nvmlDeviceGetMarginTemperature(handle),
    ),
    _number("CurrentClocksEventReasons", "fast", "event_reasons"),
    _number("CurrentClocksThrottleReasons", "fast", "event_reasons"),
    _number("PerformanceState", "fast", "performance_state"),
    _number("CurrPcieLinkGeneration", "slow", "pcie.generation"),
    _number("CurrPcieLinkWidth", "slow", "pcie.width"),
    Call(
        "nvmlDeviceGetGpuFabricInfoV",
        "slow",
        ("fabric.state", "fabric.health"),
        members=("state", "healthMask"),
        ask=_fabric,
    ),
    Call(
        "nvmlDeviceGetSramEccErrorStatus",
        "slow",
        ("sram.uncorrected_parity", "sram.uncorrected_sec_ded", "sram.corrected", "sram.threshold_exceeded"),
        members=("aggregateUncParity", "aggregateUncSecDed", "aggregateCor", "bThresholdExceeded"),
        ask=_sram,
    ),
    _number("RemappedRows", "slow", "rows.corrected", "rows.uncorrected", "rows.pending", "rows.failed"),
)
"""Where two stand for the same key, the second is asked where the first is refused."""

INSTANCE_CALLS = frozenset(
    {
        *("nvmlDeviceGetName", "nvmlDeviceGetUUID", "nvmlDeviceGetMemoryInfo_v2"),
        "nvmlDeviceGetUtilizationRates",
    }
)
"""Those of CALLS that a MIG device is asked as well."""

INSTANCE_OWN = (
    Call("nvmlDeviceGetGpuInstanceId", "static", ("gpu_instance_id",)),
    Call(
        "nvmlDeviceGetAttributes_v2",
        "static",
        ("gpu_slices", "compute_slices", "memory_mib"),
        members=("gpuInstanceSliceCount", "computeInstanceSliceCount", "memorySizeMB"),
    ),
)
"""What only a MIG device is asked."""

# Deprecated fields are never read: 205, 216-218, 226, 227.
FAST_FIELDS: tuple[int, ...] = (
    *(82, 83, 185, 186, 191, 74, 75, 76, 77, 78, 79, 80, 81),
    *(269, 270, 271, 197, 198, 297),
)
SLOW_FIELDS: tuple[int, ...] = (
    *(187, 188, 189, 190, 192, 193, 194, 195, 196),
    *(3, 4, 5, 6, 91, 94, *range(173, 184)),
    *(142, 143, 144, 145, 301, 302, *range(303, 308), 230),
    *(*range(251, 269), 272, 273, 274, *range(275, 289), 300),
)
LINK_FIELDS: tuple[int, ...] = (
    *(138, 139, 140, 141, 164, 165, 166, 201, 202, 203, 204),
    *(*range(206, 216), *range(219, 223), *range(235, 251), 291, 292, 293),
)
"""Asked once per NVLink, by scope."""
LINKS = range(18)
"""NVLinks of a Hopper or Blackwell GPU; one that is not there says so."""

GPM_METRICS: tuple[int, ...] = (1, 2, 3, 5, 10, 11, 12, 13, 20, 21, 60, 61)
MORE_GPM_METRICS: tuple[int, ...] = (4, 6, 7, 8, 9, *range(160, 166), *range(248, 255), *range(257, 261))
"""Asked in a call of their own: a driver that does not know one of them may refuse them all."""

SAMPLE_TYPES: tuple[int, ...] = (0, 1, 2, 5, 6, 7)
"""The driver's ring buffers: power, GPU and memory utilization, SM and memory clock, module power."""

XID = pynvml.nvmlEventTypeXidCriticalError
EVENTS = XID | 0x2 | 0x100 | 0x200 | 0x400 | 0x800 | 0x1000 | 0x2000 | 0x4000 | 0x8000
"""What is listened to, as far as a GPU has it: errors, MIG changes, recovery; not clocks, there are many."""

VALUE_TYPES: tuple[tuple[str, str], ...] = (
    *(("d", "dVal"), ("u", "uiVal"), ("ul", "ulVal"), ("ull", "ullVal")),
    *(("sll", "sllVal"), ("i", "siVal"), ("us", "usVal")),
)
"""How a field's value is written, and its member of nvmlValue_t, by nvmlValueType_t."""
