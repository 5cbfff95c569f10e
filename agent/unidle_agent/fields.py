"""The one table of fields. The wire, the live window, the Parquet schema, the API, the names on
/metrics and docs/telemetry.md are derived from it; adding a field is one line here.

Values are in base units (ratio 0-1, bytes, W, J, Hz, s). Unknown is NaN, or `UNKNOWN_U8` in an
unsigned column; it is never 0. Sources of the NVML and DCGM names: nvidia-ml-py 13.615.71 and the
DCGM 4.6 and 4.7 field lists.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Scope = Literal["gpu", "host"]
Kind = Literal["gauge", "counter", "state"]
Dtype = Literal["f4", "f8", "u8"]

UNKNOWN_U8 = 2**64 - 1
"""What "unknown" is in a u8 column: counters and bit masks have no NaN."""

MIB = 1_048_576.0
NVLINK_OLD_UNIT = 1_024_000.0
"""dcgm-exporter before 4.9 prints NVLink throughput as KiB/s divided by 1000."""


@dataclass(frozen=True, slots=True)
class Field:
    """One measured quantity of a GPU (or MIG instance) or of its host.

    A gauge is the value at the instant, or its mean over the time since the row before where `stats` is
    set; a state is an enumeration or bit mask; a counter travels as a whole number of `resolution` (so it
    stays exact in 64 bits) and is differenced by the collector.
    """

    name: str
    scope: Scope
    kind: Kind
    dtype: Dtype
    unit: str
    resolution: float
    """Smallest step that is kept, in `unit`."""
    doc: str
    nvml: str = ""
    dcgm: tuple[tuple[str, float], ...] = ()
    """Names on dcgm-exporter pages without their DCGM_FI_ prefix, each with the factor to base units.

    The oldest comes first and the newest last: /metrics with `names = dcgm` and `dcgm49` prints these.
    """
    otel: str = ""
    stats: bool = False
    """Whether columns `.min`, `.max` and `.zero` (share of the time at zero) may travel beside it.

    For what moves within a second and can be seen to. `power_w` is the driver's own mean of a second: its
    extremes are those of `power_instant_w`. Used memory would cost the looks a quarter more, and allocators
    hold on to what they have, so that a second's last value misses little. GPM's ratios and link rates are
    means over the whole second as they come; more samples of it would cost more than all looks together.
    """


def _dev(old: str, factor: float, new: str = "", new_factor: float = 1.0) -> tuple[tuple[str, float], ...]:
    pairs = ((f"DEV_{old}", factor),)
    return (*pairs, (f"DEV_{new}", new_factor)) if new else pairs


def _prof(old: str, new: str = "") -> tuple[tuple[str, float], ...]:
    pairs = ((f"PROF_{old}", 1.0),)
    return (*pairs, (f"PROF_{new}", 1.0)) if new else pairs


# fmt: off
FIELDS: tuple[Field, ...] = (
    # What the GPU does.
    Field("gpu_util_ratio", "gpu", "gauge", "f4", "1", 0.01, "share of the driver's own window (1/6 to 1 s) in which any kernel was resident; says nothing about how full the GPU was", "UtilizationRates.gpu", _dev("GPU_UTIL", 0.01, "GPU_UTIL_RATIO"), "hw.gpu.utilization", stats=True),
    Field("memory_util_ratio", "gpu", "gauge", "f4", "1", 0.01, "share of the driver's window in which memory was read or written", "UtilizationRates.memory", _dev("MEM_COPY_UTIL", 0.01, "MEMORY_UTIL_RATIO"), stats=True),
    Field("encoder_util_ratio", "gpu", "gauge", "f4", "1", 0.01, "video encoder busy", "EncoderUtilization", _dev("ENC_UTIL", 0.01, "ENC_UTIL_RATIO")),
    Field("decoder_util_ratio", "gpu", "gauge", "f4", "1", 0.01, "video decoder busy", "DecoderUtilization", _dev("DEC_UTIL", 0.01, "DEC_UTIL_RATIO")),
    Field("graphics_active_ratio", "gpu", "gauge", "f4", "1", 0.0001, "share of cycles in which the graphics or compute engine was active", "GPM 1", _prof("GR_ENGINE_ACTIVE", "GR_ENGINE_UTIL_RATIO")),
    Field("sm_active_ratio", "gpu", "gauge", "f4", "1", 0.0001, "share of cycles with a warp resident, averaged over all SMs", "GPM 2", _prof("SM_ACTIVE", "SM_UTIL_RATIO")),
    Field("sm_occupancy_ratio", "gpu", "gauge", "f4", "1", 0.0001, "resident warps over the most that fit, averaged over all SMs", "GPM 3", _prof("SM_OCCUPANCY", "SM_OCCUPANCY_RATIO")),
    Field("tensor_active_ratio", "gpu", "gauge", "f4", "1", 0.0001, "share of cycles in which any tensor pipe was active", "GPM 5", _prof("PIPE_TENSOR_ACTIVE", "TENSOR_UTIL_RATIO")),
    Field("dram_active_ratio", "gpu", "gauge", "f4", "1", 0.0001, "device memory bandwidth over its theoretical maximum", "GPM 10", _prof("DRAM_ACTIVE", "DRAM_UTIL_RATIO")),
    Field("fp64_active_ratio", "gpu", "gauge", "f4", "1", 0.0001, "share of cycles in which the FP64 pipe was active", "GPM 11", _prof("PIPE_FP64_ACTIVE", "FP64_UTIL_RATIO")),
    Field("fp32_active_ratio", "gpu", "gauge", "f4", "1", 0.0001, "share of cycles in which the FP32 pipe was active", "GPM 12", _prof("PIPE_FP32_ACTIVE", "FP32_UTIL_RATIO")),
    Field("fp16_active_ratio", "gpu", "gauge", "f4", "1", 0.0001, "share of cycles in which the FP16 pipe (not tensor) was active", "GPM 13", _prof("PIPE_FP16_ACTIVE", "FP16_UTIL_RATIO")),
    Field("gpu_busy_s", "gpu", "counter", "u8", "s", 1e-6, "gpu_util_ratio integrated over time, since the agent started", "integral of UtilizationRates.gpu"),
    Field("sm_active_s", "gpu", "counter", "u8", "s", 1e-6, "sm_active_ratio integrated over time, since the agent started", "integral of GPM 2"),
    Field("tensor_active_s", "gpu", "counter", "u8", "s", 1e-6, "tensor_active_ratio integrated over time, since the agent started", "integral of GPM 5"),
    # Memory.
    Field("memory_total_bytes", "gpu", "gauge", "f8", "By", 1, "framebuffer size", "MemoryInfo_v2.total", _dev("FB_TOTAL", MIB, "FB_CAPACITY_BYTES"), "hw.gpu.memory.limit"),
    Field("memory_used_bytes", "gpu", "gauge", "f8", "By", 1, "framebuffer used by processes, without what the driver reserves", "MemoryInfo_v2.used", _dev("FB_USED", MIB, "FB_USED_BYTES"), "hw.gpu.memory.usage"),
    Field("memory_free_bytes", "gpu", "gauge", "f8", "By", 1, "framebuffer free", "MemoryInfo_v2.free", _dev("FB_FREE", MIB, "FB_FREE_BYTES")),
    Field("memory_reserved_bytes", "gpu", "gauge", "f8", "By", 1, "framebuffer reserved by the driver", "MemoryInfo_v2.reserved", _dev("FB_RESERVED", MIB, "FB_RESERVED_BYTES")),
    Field("process_count", "gpu", "gauge", "f4", "{process}", 1, "compute processes that hold a context on the GPU", "ComputeRunningProcesses_v3"),
    # Power, clocks, heat.
    Field("power_w", "gpu", "gauge", "f4", "W", 0.1, "board power, the driver's average (1 s on Ampere and newer, instant on GA100)", "field 185", _dev("POWER_USAGE", 1, "BOARD_POWER_WATTS"), "hw.power"),
    Field("power_instant_w", "gpu", "gauge", "f4", "W", 0.1, "board power, instant", "field 186", _dev("POWER_USAGE_INSTANT", 1, "BOARD_POWER_RAW_WATTS"), stats=True),
    Field("power_limit_w", "gpu", "gauge", "f4", "W", 0.1, "enforced power limit", "EnforcedPowerLimit", _dev("ENFORCED_POWER_LIMIT", 1, "BOARD_POWER_LIMIT_ENFORCED_WATTS")),
    Field("energy_j", "gpu", "counter", "u8", "J", 0.001, "energy since the driver was loaded", "field 83", _dev("TOTAL_ENERGY_CONSUMPTION", 1e-3, "GPU_ENERGY_JOULES_TOTAL"), "hw.energy"),
    Field("sm_clock_hz", "gpu", "gauge", "f4", "Hz", 1e6, "SM clock", "ClockInfo(SM)", _dev("SM_CLOCK", 1e6, "SM_CLOCK_HERTZ"), stats=True),
    Field("memory_clock_hz", "gpu", "gauge", "f4", "Hz", 1e6, "memory clock", "ClockInfo(MEM)", _dev("MEM_CLOCK", 1e6, "MEMORY_CLOCK_HERTZ")),
    Field("temperature_c", "gpu", "gauge", "f4", "Cel", 1, "GPU core temperature", "TemperatureV(GPU)", _dev("GPU_TEMP", 1, "GPU_TEMP_CELSIUS"), "hw.temperature"),
    Field("memory_temperature_c", "gpu", "gauge", "f4", "Cel", 1, "HBM temperature", "field 82", _dev("MEMORY_TEMP", 1, "MEMORY_TEMP_CELSIUS")),
    Field("thermal_margin_c", "gpu", "gauge", "f4", "Cel", 1, "signed distance to the thermal limit: negative is over it", "MarginTemperature", _dev("GPU_TEMP_LIMIT", 1, "GPU_TEMP_MARGIN_CELSIUS")),
    Field("clock_event_reasons", "gpu", "state", "u8", "{bits}", 1, "why clocks are below the maximum; 0x4 software power cap, 0x8 hardware slowdown, 0x20 and 0x40 thermal, 0x80 power brake", "CurrentClocksEventReasons", _dev("CLOCK_THROTTLE_REASONS", 1, "CLOCKS_EVENT_REASONS")),
    Field("power_cap_s", "gpu", "counter", "u8", "s", 1e-9, "time below the requested clocks because of the power cap", "field 74", _dev("POWER_VIOLATION", 1e-9, "GPU_POWER_THROTTLE_SECONDS_TOTAL")),
    Field("thermal_throttle_s", "gpu", "counter", "u8", "s", 1e-9, "time in software thermal slowdown", "field 269", _dev("THERMAL_VIOLATION", 1e-9, "GPU_THERMAL_THROTTLE_SECONDS_TOTAL")),
    Field("hw_thermal_throttle_s", "gpu", "counter", "u8", "s", 1e-9, "time in hardware thermal slowdown", "field 270"),
    Field("power_brake_s", "gpu", "counter", "u8", "s", 1e-9, "time in hardware power brake", "field 271"),
    # Links.
    Field("pcie_tx_bytes_per_s", "gpu", "gauge", "f4", "By/s", 1, "PCIe traffic from the GPU", "GPM 20", _prof("PCIE_TX_BYTES")),
    Field("pcie_rx_bytes_per_s", "gpu", "gauge", "f4", "By/s", 1, "PCIe traffic to the GPU", "GPM 21", _prof("PCIE_RX_BYTES")),
    Field("nvlink_tx_bytes_per_s", "gpu", "gauge", "f4", "By/s", 1, "NVLink traffic from the GPU, all links", "GPM 61", _prof("NVLINK_TX_BYTES")),
    Field("nvlink_rx_bytes_per_s", "gpu", "gauge", "f4", "By/s", 1, "NVLink traffic to the GPU, all links", "GPM 60", _prof("NVLINK_RX_BYTES")),
    Field("nvlink_bytes_per_s", "gpu", "gauge", "f4", "By/s", 1, "NVLink traffic, both directions, all links", "", (("DEV_NVLINK_BANDWIDTH_TOTAL", NVLINK_OLD_UNIT), ("DEV_NVLINK_THROUGHPUT_TOTAL", NVLINK_OLD_UNIT), ("DEV_NVLINK_THROUGHPUT_BYTES_PER_SECOND", 1.0))),
    Field("pcie_replays", "gpu", "counter", "u8", "{replay}", 1, "PCIe retries", "field 94", _dev("PCIE_REPLAY_COUNTER", 1, "PCIE_REPLAY_TOTAL")),
    Field("pcie_width", "gpu", "gauge", "f4", "{lane}", 1, "PCIe lanes in use", "CurrPcieLinkWidth", _dev("PCIE_LINK_WIDTH", 1)),
    Field("pcie_width_max", "gpu", "gauge", "f4", "{lane}", 1, "PCIe lanes that GPU and slot can use", "MaxPcieLinkWidth", _dev("PCIE_MAX_LINK_WIDTH", 1)),
    Field("pcie_generation", "gpu", "gauge", "f4", "{generation}", 1, "PCIe generation in use; an idle GPU may lower it", "CurrPcieLinkGeneration", _dev("PCIE_LINK_GEN", 1)),
    Field("pcie_generation_max", "gpu", "gauge", "f4", "{generation}", 1, "PCIe generation that GPU and slot can use", "MaxPcieLinkGeneration", _dev("PCIE_MAX_LINK_GEN", 1)),
    Field("nvlink_links", "gpu", "gauge", "f4", "{link}", 1, "NVLinks that the GPU has", "NvLink count, field 91"),
    Field("nvlink_links_up", "gpu", "gauge", "f4", "{link}", 1, "NVLinks that are active", "NvLink state, field 165"),
    Field("nvlink_errors", "gpu", "counter", "u8", "{error}", 1, "NVLink errors and discards, all links", "NvLink sum of fields 206-212"),
    Field("nvlink_recoveries_failed", "gpu", "counter", "u8", "{event}", 1, "NVLinks that did not recover, all links", "NvLink sum of field 214"),
    Field("nvlink_recoveries", "gpu", "counter", "u8", "{event}", 1, "NVLink recoveries begun, all links", "NvLink sum of field 215"),
    # Health.
    Field("last_xid", "gpu", "state", "u8", "{code}", 1, "the last XID that the driver reported; sticky, 0 is none", "XID event", _dev("XID_ERRORS", 1, "XID_ERROR")),
    Field("rows_remapped_correctable", "gpu", "counter", "u8", "{row}", 1, "rows remapped for correctable errors", "field 142", _dev("CORRECTABLE_REMAPPED_ROWS", 1, "ROW_REMAP_CORRECTABLE_TOTAL")),
    Field("rows_remapped_uncorrectable", "gpu", "counter", "u8", "{row}", 1, "rows remapped for uncorrectable errors", "field 143", _dev("UNCORRECTABLE_REMAPPED_ROWS", 1, "ROW_REMAP_UNCORRECTABLE_TOTAL")),
    Field("row_remap_failed", "gpu", "state", "u8", "{flag}", 1, "1 when remapping a row has failed", "field 145", _dev("ROW_REMAP_FAILURE", 1, "ROW_REMAP_FAILED")),
    Field("row_remap_pending", "gpu", "state", "u8", "{flag}", 1, "1 when a row waits for a GPU reset to be remapped", "field 144", _dev("ROW_REMAP_PENDING", 1)),
    Field("bank_remap_pending", "gpu", "state", "u8", "{flag}", 1, "1 when a bank of memory waits for a GPU reset to be remapped", "field 307"),
    Field("bank_remaps_active", "gpu", "state", "u8", "{bank}", 1, "banks of memory that are remapped", "field 303"),
    Field("bank_remaps_inactive", "gpu", "state", "u8", "{bank}", 1, "remappings of banks that are recorded and not in force", "field 304"),
    Field("bank_groups_all_spares", "gpu", "state", "u8", "{group}", 1, "groups of banks that have all their spare banks", "field 305"),
    Field("bank_groups_no_spares", "gpu", "state", "u8", "{group}", 1, "groups of banks that have no spare bank left", "field 306"),
    Field("sram_threshold_exceeded", "gpu", "state", "u8", "{flag}", 1, "1 when uncorrectable errors of the on-chip memory (SRAM) have passed the driver's threshold", "SramEccErrorStatus.bThresholdExceeded"),
    Field("ecc_corrected_volatile", "gpu", "counter", "u8", "{error}", 1, "single-bit memory errors since the driver was loaded", "field 3", _dev("ECC_SBE_VOL_TOTAL", 1)),
    Field("ecc_uncorrected_volatile", "gpu", "counter", "u8", "{error}", 1, "double-bit memory errors since the driver was loaded", "field 4", _dev("ECC_DBE_VOL_TOTAL", 1)),
    Field("ecc_corrected_aggregate", "gpu", "counter", "u8", "{error}", 1, "single-bit memory errors in the GPU's life", "field 5", _dev("ECC_SBE_AGG_TOTAL", 1)),
    Field("ecc_uncorrected_aggregate", "gpu", "counter", "u8", "{error}", 1, "double-bit memory errors in the GPU's life", "field 6", _dev("ECC_DBE_AGG_TOTAL", 1)),
    Field("recovery_action", "gpu", "state", "u8", "{action}", 1, "what the driver asks for: 0 nothing, 1 GPU reset, 2 node reboot, 3 drain P2P, 4 drain and reset, 5 recover the IMEX domain, 6 bus reset, 7 system reboot", "field 230", _dev("GET_GPU_RECOVERY_ACTION", 1, "GPU_RECOVERY_ACTION")),
    Field("fabric_state", "gpu", "state", "u8", "{state}", 1, "joining the NVLink fabric: 0 has none, 1 not started, 2 in progress, 3 completed", "GpuFabricInfoV.state"),
    Field("fabric_health", "gpu", "state", "u8", "{code}", 1, "two bits each, 1 yes, 2 no: 0x3 degraded bandwidth, 0xc route recovery, 0x30 route unhealthy, 0xc0 access timeout", "GpuFabricInfoV.healthMask"),
    Field("vgpu_license_status", "gpu", "state", "u8", "{flag}", 1, "vGPU licence state as the exporter prints it", "", _dev("VGPU_LICENSE_STATUS", 1)),
    Field("gpu_state", "gpu", "state", "u8", "{state}", 1, "0 answers, 1 lost (NVML error 15), 2 the driver does not answer", "return codes"),
    # Inside the job: told by the reporter of a PyTorch process, of all such processes on the GPU.
    Field("torch_allocated_bytes", "gpu", "gauge", "f8", "By", 1, "memory in live tensors at the last step or batch, by torch's allocator"),
    Field("torch_reserved_bytes", "gpu", "gauge", "f8", "By", 1, "memory that torch's allocator holds from the driver; near all of it is normal"),
    Field("torch_inactive_split_bytes", "gpu", "gauge", "f8", "By", 1, "free memory in torch's allocator that cannot go back to the driver: high is fragmentation"),
    Field("torch_alloc_retries", "gpu", "counter", "u8", "{retry}", 1, "allocations that first had to flush torch's cache: out of memory is near"),
    Field("torch_ooms", "gpu", "counter", "u8", "{error}", 1, "out-of-memory errors of torch's allocator"),
    Field("steps", "gpu", "counter", "u8", "{step}", 1, "steps of the optimizer that sets the pace"),
    Field("step_time_s", "gpu", "gauge", "f4", "s", 1e-6, "mean time between those steps since the last message; mean of the processes"),
    Field("data_wait_s", "gpu", "counter", "u8", "s", 1e-6, "time in which the training thread waited for its DataLoader, summed over the processes"),
    Field("dtype_code", "gpu", "state", "u8", "{code}", 1, "number format in use: 0 unknown or another, 1 float32, 2 float32 with TF32 products, 3 float16, 4 bfloat16, 5 float64, 6 float8, 7 int8"),
    # The job that holds the GPU, whole on this node: the same on each of its GPUs, not to be summed over them.
    Field("job_cpu_s", "gpu", "counter", "u8", "s", 1e-6, "CPU time of the job's cgroup on this node"),
    Field("job_cpu_throttled_s", "gpu", "counter", "u8", "s", 1e-6, "time in which the job's cgroup was held back by its CPU quota"),
    Field("job_memory_bytes", "gpu", "gauge", "f8", "By", 1, "main memory of the job's cgroup, its page cache included"),
    Field("job_memory_limit_bytes", "gpu", "gauge", "f8", "By", 1, "limit of the job's cgroup; unknown where there is none"),
    Field("job_oom_kills", "gpu", "counter", "u8", "{process}", 1, "processes of the job's cgroup that the kernel killed for want of memory"),
    # The host.
    Field("cpu_busy_ratio", "host", "gauge", "f4", "1", 0.0001, "share of all CPU time that was not idle and not waiting for I/O"),
    Field("cpu_iowait_ratio", "host", "gauge", "f4", "1", 0.0001, "share of all CPU time idle with I/O outstanding"),
    Field("load_1m", "host", "gauge", "f4", "{task}", 0.01, "load average over one minute"),
    Field("host_memory_total_bytes", "host", "gauge", "f8", "By", 1, "main memory"),
    Field("host_memory_available_bytes", "host", "gauge", "f8", "By", 1, "main memory available without swapping"),
    Field("page_cache_bytes", "host", "gauge", "f8", "By", 1, "page cache"),
    Field("psi_cpu_some_s", "host", "counter", "u8", "s", 1e-6, "time in which some task waited for a CPU"),
    Field("psi_io_some_s", "host", "counter", "u8", "s", 1e-6, "time in which some task waited for I/O"),
    Field("psi_io_full_s", "host", "counter", "u8", "s", 1e-6, "time in which every task waited for I/O"),
    Field("psi_memory_some_s", "host", "counter", "u8", "s", 1e-6, "time in which some task waited for memory"),
    Field("psi_memory_full_s", "host", "counter", "u8", "s", 1e-6, "time in which every task waited for memory"),
    Field("disk_read_bytes", "host", "counter", "u8", "By", 1, "bytes read from local disks"),
    Field("disk_written_bytes", "host", "counter", "u8", "By", 1, "bytes written to local disks"),
    Field("net_received_bytes", "host", "counter", "u8", "By", 1, "bytes received on all interfaces but loopback"),
    Field("net_sent_bytes", "host", "counter", "u8", "By", 1, "bytes sent on all interfaces but loopback"),
    Field("cpus_online", "host", "gauge", "f4", "{cpu}", 1, "CPUs that are online"),
    Field("tasks_running", "host", "gauge", "f4", "{task}", 1, "tasks that run or wait for a CPU"),
    Field("tasks_blocked", "host", "gauge", "f4", "{task}", 1, "tasks in uninterruptible sleep, mostly for I/O"),
    Field("page_cache_refaults", "host", "counter", "u8", "{page}", 1, "file pages read again soon after the page cache gave them up: the data no longer fits"),
    Field("major_faults", "host", "counter", "u8", "{fault}", 1, "page faults that waited for a disk"),
    Field("allocation_stalls", "host", "counter", "u8", "{stall}", 1, "allocations that had to free memory first"),
    Field("nfs_read_bytes", "host", "counter", "u8", "By", 1, "bytes read from NFS servers"),
    Field("nfs_written_bytes", "host", "counter", "u8", "By", 1, "bytes written to NFS servers"),
    Field("nfs_retransmits", "host", "counter", "u8", "{request}", 1, "NFS requests that were sent again"),
    Field("ib_received_bytes", "host", "counter", "u8", "By", 1, "bytes received on all InfiniBand and RoCE ports"),
    Field("ib_sent_bytes", "host", "counter", "u8", "By", 1, "bytes sent on all InfiniBand and RoCE ports"),
    Field("ib_transmit_waits", "host", "counter", "u8", "{tick}", 1, "ticks in which a port had data and no credit to send it: congestion"),
    Field("ib_link_errors", "host", "counter", "u8", "{error}", 1, "symbol, link, receive, discard and overrun errors of all ports"),
    Field("ib_ports_active", "host", "gauge", "f4", "{port}", 1, "ports whose link is active"),
    Field("ib_ports_inactive", "host", "gauge", "f4", "{port}", 1, "ports whose link is not active, without cable included"),
    Field("ib_ports_slow", "host", "gauge", "f4", "{port}", 1, "active ports slower than the node's fastest active one of the same kind of link"),
)
# fmt: on

BY_NAME: dict[str, Field] = {field.name: field for field in FIELDS}
GPU_FIELDS: tuple[Field, ...] = tuple(field for field in FIELDS if field.scope == "gpu")
HOST_FIELDS: tuple[Field, ...] = tuple(field for field in FIELDS if field.scope == "host")


def _statistics(field: Field) -> tuple[Field, ...]:
    """The columns that may travel beside `field`, as fields that no source gives by themselves."""
    if not field.stats:
        return ()
    bare = replace(field, nvml="", dcgm=(), otel="", stats=False)
    return (
        replace(bare, name=f"{field.name}.min", doc=f"smallest {field.name} since the row before"),
        replace(bare, name=f"{field.name}.max", doc=f"largest {field.name} since the row before"),
        replace(
            bare,
            name=f"{field.name}.zero",
            unit="1",
            resolution=0.01,
            doc=f"share of the time since the row before with {field.name} at zero",
        ),
    )


COLUMNS: dict[str, Field] = {
    column.name: column for field in FIELDS for column in (field, *_statistics(field))
}
"""Every column that a batch may hold: the fields, and the statistics of those that ask for them."""
