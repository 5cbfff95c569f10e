"""The calls into NVML: what is asked of a GPU, in base units, and what a return code means.

A call that is asked at every pass is a function: the device in, fields of the table out. All raise
pynvml.NVMLError. Units, value types and return codes are those of nvml.h as nvidia-ml-py 13.615.71
declares it. An NVMLError cannot be hashed: its `value` is the code.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pynvml

from unidle_agent.errors import SourceError
from unidle_agent.fields import GPU_FIELDS, Field
from unidle_agent.sample import Value
from unidle_agent.sources.nvml_direct import Direct
from unidle_agent.wire import GpuFacts

LOST = pynvml.NVML_ERROR_GPU_IS_LOST

REFUSALS = {
    pynvml.NVML_ERROR_NOT_SUPPORTED: "this GPU or driver does not have it",
    pynvml.NVML_ERROR_NO_PERMISSION: "the driver refuses it to this user: run the agent as root or, for "
    "GPM, load the module nvidia with NVreg_RestrictProfilingToAdminUsers=0",
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: "the driver is older than this call: update it",
    pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH: "driver and nvidia-ml-py differ on it: update the older",
    pynvml.NVML_ERROR_DEPRECATED: "this driver has given it up",
}
"""Return codes that mean "never", and why."""

ABSENCES = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "libnvidia-ml.so.1 not found: install the NVIDIA driver, or start "
    "this container with the NVIDIA runtime",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "the NVIDIA driver is not loaded: try `modprobe nvidia`, then look "
    "at `nvidia-smi` and `dmesg`",
    pynvml.NVML_ERROR_NO_PERMISSION: "no permission to talk to the NVIDIA driver: the agent's user must be "
    "able to read and write /dev/nvidiactl and /dev/nvidia*",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "the NVIDIA library and kernel module differ in version (the "
    "driver was updated while it was loaded): reload the module or reboot",
}
"""What keeps the library from opening, and what to do."""

FIELD_IDS: dict[str, tuple[int, Field]] = {
    item.name: (int(item.nvml.removeprefix("field ")), item)
    for item in GPU_FIELDS
    if item.nvml.startswith("field ")
}
"""Field name -> its id in NVML's batch call, and the field."""

Values = dict[str, Value]
Ask = Callable[[Direct], Values]


@dataclass(slots=True)
class Problems:
    """What goes wrong, in words: errors as often as they come, a refusal once."""

    errors: list[str] = field(default_factory=list)
    refusals: dict[tuple[str, int], int] = field(default_factory=dict)
    """(What, return code) -> number of devices that refused it since `take`."""
    told: set[str] = field(default_factory=set)

    def error(self, what: str, error: Any) -> None:
        self.errors.append(f"{what}: {error} (NVML error {error.value})")

    def refusal(self, what: str, code: int) -> None:
        self.refusals[what, code] = self.refusals.get((what, code), 0) + 1

    def once(self, subject: str, text: str) -> None:
        if subject not in self.told:
            self.told.add(subject)
            self.errors.append(text)

    def take(self) -> tuple[str, ...]:
        """All that is new since the last call."""
        for (what, code), count in self.refusals.items():
            why = REFUSALS.get(code, "the driver does not know it")
            where = "1 GPU" if count == 1 else f"{count} GPUs"
            self.once(f"{what} {code}", f"{what}: unsupported on {where}, because {why} (NVML error {code})")
        texts = tuple(self.errors)
        self.refusals.clear()
        self.errors.clear()
        return texts


def absence(error: Any) -> SourceError:
    """Why there is nothing to read, and what to do."""
    text = ABSENCES.get(error.value, "the NVIDIA driver does not open: look at `nvidia-smi` and `dmesg`")
    return SourceError(f"{text} (NVML error {error.value}: {error})")


def quietly(call: Callable[..., Any], *arguments: Any) -> Any:
    """What `call` answers, or None: for facts that may be unknown, and for letting go."""
    try:
        return call(*arguments)
    except pynvml.NVMLError:
        return None


# Facts


def gpu_facts(handle: Any, uuid: str, index: int, driver: str) -> GpuFacts:
    """Who the GPU behind `handle` is."""
    return GpuFacts(
        uuid=uuid,
        index=index,
        model=quietly(pynvml.nvmlDeviceGetName, handle) or "",
        pci_bus_id=pci_bus_id(quietly(lambda: pynvml.nvmlDeviceGetPciInfo(handle).busId) or ""),
        minor=quietly(pynvml.nvmlDeviceGetMinorNumber, handle),
        driver=driver,
    )


def pci_bus_id(text: str) -> str:
    """As Linux writes it, `0000:9b:00.0`: NVML gives eight digits of domain, in capitals."""
    domain, colon, rest = text.lower().partition(":")
    return f"{int(domain, 16):04x}:{rest}" if colon else ""


def mig_is_on(handle: Any) -> bool:
    """Whether the GPU is in MIG mode now; one that has no MIG is not."""
    return bool((quietly(pynvml.nvmlDeviceGetMigMode, handle) or (0,))[0])


def instance_facts(handle: Any, gpu: GpuFacts, place: int, places: int) -> tuple[GpuFacts, int]:
    """Facts and GPU instance id of the MIG device at `place` of the `places` of a GPU."""
    instance = pynvml.nvmlDeviceGetGpuInstanceId(handle)
    size = pynvml.nvmlDeviceGetAttributes_v2(handle)
    # Several compute instances in one GPU instance are told apart by their place.
    several = size.computeInstanceSliceCount < size.gpuInstanceSliceCount
    facts = replace(
        gpu,
        uuid=f"{gpu.uuid}/GI{instance}" + (f"/{place}" if several else ""),
        mig_profile=pynvml.nvmlDeviceGetName(handle).rpartition(" MIG ")[2],
        mig_uuid=quietly(pynvml.nvmlDeviceGetUUID, handle) or "",
        # There are as many places as a GPU has compute slices: 7, on an A30 4.
        share=size.computeInstanceSliceCount / places,
    )
    return facts, instance


def address(handle: Any) -> int | None:
    """Two handles are the same device when they point to the same place."""
    return ctypes.cast(handle, ctypes.c_void_p).value


# What is asked at every pass


def utilization_rates(device: Direct) -> Values:
    rates = device.utilization()
    return {"gpu_util_ratio": rates.gpu / 100, "memory_util_ratio": rates.memory / 100}


def memory_info(device: Direct) -> Values:
    # Version 2, because version 1 counts what the driver reserves as used.
    memory = device.memory()
    return {
        "memory_total_bytes": memory.total,
        "memory_reserved_bytes": memory.reserved,
        "memory_free_bytes": memory.free,
        "memory_used_bytes": memory.used,
    }


def pcie_link(device: Direct) -> Values:
    return {
        "pcie_width": device.number("nvmlDeviceGetCurrPcieLinkWidth"),
        "pcie_width_max": device.number("nvmlDeviceGetMaxPcieLinkWidth"),
        "pcie_generation": device.number("nvmlDeviceGetCurrPcieLinkGeneration"),
        "pcie_generation_max": device.number("nvmlDeviceGetMaxPcieLinkGeneration"),
    }


def fabric(device: Direct) -> Values:
    info = pynvml.c_nvmlGpuFabricInfo_v2_t()
    pynvml.nvmlDeviceGetGpuFabricInfoV(device.handle, ctypes.byref(info))
    return {"fabric_state": info.state, "fabric_health": info.healthMask}


def sram_errors(device: Direct) -> Values:
    status = pynvml.c_nvmlEccSramErrorStatus_v1_t()
    pynvml.nvmlDeviceGetSramEccErrorStatus(device.handle, ctypes.byref(status))
    return {"sram_threshold_exceeded": status.bThresholdExceeded}


def running_processes(device: Direct) -> tuple[int, ...]:
    """The ids of the compute processes that hold a context."""
    return tuple(process.pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses_v3(device.handle))


def enforced_power_limit(device: Direct) -> Values:
    return {"power_limit_w": device.number("nvmlDeviceGetEnforcedPowerLimit") / 1000}


def sm_clock(device: Direct) -> Values:
    return {"sm_clock_hz": device.number("nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_SM) * 1e6}


def memory_clock(device: Direct) -> Values:
    return {"memory_clock_hz": device.number("nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_MEM) * 1e6}


def temperature(device: Direct) -> Values:
    return {"temperature_c": device.temperature_c()}


def temperature_of_older_drivers(device: Direct) -> Values:
    return {"temperature_c": device.number("nvmlDeviceGetTemperature", pynvml.NVML_TEMPERATURE_GPU)}


def margin_temperature(device: Direct) -> Values:
    return {"thermal_margin_c": device.margin_c()}


def clock_event_reasons(device: Direct) -> Values:
    return {"clock_event_reasons": device.bits("nvmlDeviceGetCurrentClocksEventReasons")}


def clock_throttle_reasons(device: Direct) -> Values:
    return {"clock_event_reasons": device.bits("nvmlDeviceGetCurrentClocksThrottleReasons")}


def power_usage(device: Direct) -> Values:
    return {"power_w": device.number("nvmlDeviceGetPowerUsage") / 1000}


def total_energy_consumption(device: Direct) -> Values:
    return {"energy_j": device.bits("nvmlDeviceGetTotalEnergyConsumption")}


OWN_CALLS: tuple[tuple[Ask, ...], ...] = ((utilization_rates,), (memory_info,))
"""For whole GPUs and MIG instances. An entry is a call, and what stands in for it where it is refused."""

BOARD_CALLS: tuple[tuple[Ask, ...], ...] = (
    (sm_clock,),
    (memory_clock,),
    (temperature, temperature_of_older_drivers),
    (margin_temperature,),
    (clock_event_reasons, clock_throttle_reasons),
)
"""For physical GPUs."""

LOOKS: tuple[tuple[frozenset[str], tuple[Ask, ...]], ...] = (
    (frozenset({"sm_clock_hz"}), (sm_clock,)),
    (frozenset({"clock_event_reasons"}), (clock_event_reasons, clock_throttle_reasons)),
)
"""What a look gives, and the calls that give it, for physical GPUs several times between two passes ..."""
OWN_LOOK: tuple[frozenset[str], tuple[Ask, ...]] = (
    frozenset({"gpu_util_ratio", "memory_util_ratio"}),
    (utilization_rates,),
)
"""... and where MIG does not cut them this too."""
LOOKS_OF_WHOLE = (*LOOKS, OWN_LOOK)
LOOK_FIELDS = ("power_instant_w",)

SLOW_CALLS: tuple[tuple[Ask, ...], ...] = ((enforced_power_limit,), (fabric,), (sram_errors,))
"""For physical GPUs, once in many passes; their links too."""
SLOW_FIELDS = tuple(
    name
    for name, (number, _) in FIELD_IDS.items()
    if number in (3, 4, 5, 6, 94, 142, 143, 144, 145, 230, *range(303, 308))
)
"""Fields of errors and repairs: they change rarely, and the driver takes longer over them."""
FIELDS_OF_A_PASS = tuple(name for name in FIELD_IDS if name not in SLOW_FIELDS)

WITH_ANOTHER = frozenset(
    {"bank_remaps_active", "bank_remaps_inactive", "bank_groups_all_spares", "bank_groups_no_spares"}
)
"""Fields that a GPU has if it has bank_remap_pending: of their absence that one is said."""

INSTEAD_OF_FIELD: dict[str, Ask] = {"power_w": power_usage, "energy_j": total_energy_consumption}
"""For GPUs that do not answer these in the batch of fields."""
