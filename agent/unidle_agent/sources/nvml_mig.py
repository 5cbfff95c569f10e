"""The instances that MIG cuts a GPU into: which there are, and what of the GPU is true of them.

Each instance is a row of its own, named `GPU-UUID/GI<id>` as the rows of dcgm-exporter are, so that both
sources meet. Its share of the GPU is its compute slices over all there are, so that shares never add up to
more than the GPU (its part of the memory may be larger). Memory, processes and GPM are the instance's own;
clocks, temperatures and throttling are its GPU's; the board's power and energy are split by share.

Within a second only the GPU is looked at: power, SM clock and clock events have statistics, which an
instance inherits. Utilization is unknown, because the driver has none under MIG, neither as a gauge nor in
its buffers. How busy an instance was between two rows GPM says, which counts and misses nothing: its ratios
are means over the whole time, and `sm_active_s` and `tensor_active_s` their integrals. They have no
extremes, because GPM's samples are more than 100 ms apart and one pair a row is all that is asked.
"""

from __future__ import annotations

import pynvml

from unidle_agent.dcgm import SPLIT_BY_SHARE
from unidle_agent.sample import Value
from unidle_agent.sources import nvml_calls as calls
from unidle_agent.sources.nvml_calls import LOST, Values, quietly
from unidle_agent.sources.nvml_device import Device
from unidle_agent.sources.nvml_direct import Direct

SHARED_BY_INSTANCES = frozenset(
    {
        *SPLIT_BY_SHARE,
        *("sm_clock_hz", "memory_clock_hz", "temperature_c", "memory_temperature_c", "thermal_margin_c"),
        *("clock_event_reasons", "power_cap_s", "thermal_throttle_s", "hw_thermal_throttle_s"),
        *("power_brake_s", "last_xid", "row_remap_pending", "bank_remap_pending", "recovery_action"),
        *("fabric_state", "fabric_health"),
    }
)
"""Fields of a physical GPU that are true of its MIG instances too."""


def find_instances(gpu: Device) -> None:
    """Note which instances the GPU is cut into, if any, keeping what is remembered of each."""
    gpu.mig = calls.mig_is_on(gpu.handle)
    before = {old.facts.uuid: old for old in gpu.instances}
    found = []
    places = (quietly(pynvml.nvmlDeviceGetMaxMigDeviceCount, gpu.handle) or 0) if gpu.mig else 0
    for place in range(places):
        try:
            handle = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu.handle, place)
            facts, instance = calls.instance_facts(handle, gpu.facts, place, places)
        except pynvml.NVMLError as error:
            if error.value not in (pynvml.NVML_ERROR_NOT_FOUND, LOST):  # 6 is a free place
                gpu.problems.error(f"{gpu.facts.uuid}: MIG device {place}", error)
            continue
        device = before.get(facts.uuid)
        if device is None or device.facts != facts:
            device = Device(Direct(handle), facts, gpu.problems, gpu_instance=instance)
        device.hold(handle)
        found.append(device)
    for old in before.values():
        if all(old is not device for device in found):
            old.let_go_of_gpm()
    gpu.instances = tuple(found)


def share_of(board: Values, part: float) -> Values:
    """What is true of an instance that is `part` of its GPU, from what is true of the GPU."""
    out: Values = {}
    for name, value in board.items():
        field_name, _, statistic = name.partition(".")
        if field_name in SHARED_BY_INSTANCES:
            split = field_name in SPLIT_BY_SHARE and statistic != "zero"
            out[name] = _part(value, part) if split else value
    return out


def _part(value: Value, part: float) -> Value:
    return int(value * part) if isinstance(value, int) else value * part
