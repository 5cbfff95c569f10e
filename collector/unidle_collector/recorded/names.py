"""Names that tools give to columns, and units that they write: what `columns` knows.

From the documents and outputs of NVIDIA's tools (nvidia-smi, dcgmi, dcgm_fields.h) and of common collectors.
"""

from __future__ import annotations

from typing import Literal

from unidle_agent.fields import MIB, Field

Role = Literal[
    "time", "node", "uuid", "gpu", "instance", "model", "job", "namespace", "metric", "value", "simulated"
]

# For each role the names that give it, best first.
ROLES: dict[Role, tuple[str, ...]] = {
    "time": (
        *("time_ns", "timestamp_ns", "ts_ns", "time_us", "timestamp_us", "time_ms", "timestamp_ms", "ts_ms"),
        *("time", "timestamp", "ts", "datetime", "time_s", "timestamp_s", "epoch", "epoch_s", "epoch_ms"),
        *("unix_time", "unix_timestamp", "epoch_time", "wall_time", "walltime", "sample_time", "sampled_at"),
        *("collected_at", "query_time", "recorded_at", "date_time", "elapsed_s", "elapsed_ms", "elapsed"),
        *("elapsed_time", "relative_time", "relative_time_s", "runtime", "seconds", "sec", "t", "date"),
    ),
    "node": (
        *("node", "node_name", "nodename", "node_id", "hostname", "host", "host_name", "kubernetes_node"),
        *("machine", "machine_id", "server", "server_name", "instance"),
    ),
    "uuid": ("gpu_uuid", "uuid", "device_uuid", "gpuuuid"),
    "gpu": (
        *("gpu", "gpu_index", "gpu_id", "gpu_idx", "gpu_num", "gpu_number", "gpuid", "gpuindex", "gpu_no"),
        *("index", "idx", "device", "device_index", "device_id", "device_idx", "entity", "entity_id"),
        *("entityid", "minor_number", "card", "cuda_device", "local_rank", "rank"),
    ),
    "instance": ("gpu_i_id", "gpu_instance_id", "gpu_instance"),
    "model": ("gpu_model", "model_name", "modelname", "gpu_name", "model", "name", "product_name"),
    "job": (
        *("hpc_job", "slurm_job_id", "slurm_jobid", "job_id", "jobid", "job_name", "jobname", "exported_pod"),
        *("pod", "pod_name", "workload", "job"),
    ),
    "namespace": ("exported_namespace", "namespace", "pod_namespace"),
    "metric": (
        *("metric", "metric_name", "__name__", "field_name", "field_id", "fieldid", "fieldname", "field"),
        *("counter", "counter_name", "measurement", "name", "key", "tag"),
    ),
    "value": ("value", "metric_value", "field_value", "val"),
    "simulated": ("simulated",),
}  # fmt: skip

# What tells runs apart that were put into one table, besides jobs.
RUNS = (
    "run",
    "run_id",
    "run_name",
    "runid",
    "experiment",
    "experiment_id",
    "trial",
    "scenario",
    "file",
    "source",
)

# Names of nvidia-smi queries and of common tools, without unit, as `normal` writes them.
ALIASES: dict[str, str] = {
    "utilization_gpu": "gpu_util_ratio",
    "gpu_utilization": "gpu_util_ratio",
    "gpu_utilisation": "gpu_util_ratio",
    "gpu_util": "gpu_util_ratio",
    "utilization": "gpu_util_ratio",
    "util": "gpu_util_ratio",
    "utilization_memory": "memory_util_ratio",
    "memory_utilization": "memory_util_ratio",
    "mem_copy_util": "memory_util_ratio",
    "mem_util": "memory_util_ratio",
    "memory_util": "memory_util_ratio",
    "utilization_encoder": "encoder_util_ratio",
    "utilization_decoder": "decoder_util_ratio",
    "gr_engine_active": "graphics_active_ratio",
    "graphics_engine_active": "graphics_active_ratio",
    "sm_active": "sm_active_ratio",
    "sm_activity": "sm_active_ratio",
    "sm_occupancy": "sm_occupancy_ratio",
    "tensor_active": "tensor_active_ratio",
    "pipe_tensor_active": "tensor_active_ratio",
    "tensor_core_active": "tensor_active_ratio",
    "dram_active": "dram_active_ratio",
    "sm": "sm_active_ratio",
    "tensor": "tensor_active_ratio",
    "dram": "dram_active_ratio",
    "pipe_fp64_active": "fp64_active_ratio",
    "fp64_active": "fp64_active_ratio",
    "pipe_fp32_active": "fp32_active_ratio",
    "fp32_active": "fp32_active_ratio",
    "pipe_fp16_active": "fp16_active_ratio",
    "fp16_active": "fp16_active_ratio",
    "memory_total": "memory_total_bytes",
    "fb_total": "memory_total_bytes",
    "memory_used": "memory_used_bytes",
    "mem_used": "memory_used_bytes",
    "gpu_memory_used": "memory_used_bytes",
    "fb_used": "memory_used_bytes",
    "memory_free": "memory_free_bytes",
    "fb_free": "memory_free_bytes",
    "memory_reserved": "memory_reserved_bytes",
    "power_draw": "power_w",
    "power_draw_average": "power_w",
    "power_usage": "power_w",
    "power": "power_w",
    "gpu_power": "power_w",
    "power_draw_instant": "power_instant_w",
    "enforced_power_limit": "power_limit_w",
    "power_limit": "power_limit_w",
    "total_energy_consumption": "energy_j",
    "energy": "energy_j",
    "clocks_sm": "sm_clock_hz",
    "clocks_current_sm": "sm_clock_hz",
    "sm_clock": "sm_clock_hz",
    "clocks_mem": "memory_clock_hz",
    "clocks_current_memory": "memory_clock_hz",
    "mem_clock": "memory_clock_hz",
    "memory_clock": "memory_clock_hz",
    "temperature_gpu": "temperature_c",
    "gpu_temp": "temperature_c",
    "gpu_temperature": "temperature_c",
    "temperature": "temperature_c",
    "temp": "temperature_c",
    "temperature_memory": "memory_temperature_c",
    "memory_temp": "memory_temperature_c",
    "memory_temperature": "memory_temperature_c",
    "temperature_gpu_tlimit": "thermal_margin_c",
    "clocks_event_reasons_active": "clock_event_reasons",
    "clocks_throttle_reasons_active": "clock_event_reasons",
    "clocks_event_reasons": "clock_event_reasons",
    "throttle_reasons": "clock_event_reasons",
    "pcie_tx": "pcie_tx_bytes_per_s",
    "pcie_rx": "pcie_rx_bytes_per_s",
    "pcie_tx_bytes": "pcie_tx_bytes_per_s",
    "pcie_rx_bytes": "pcie_rx_bytes_per_s",
    "nvlink_tx": "nvlink_tx_bytes_per_s",
    "nvlink_rx": "nvlink_rx_bytes_per_s",
    "nvlink_tx_bytes": "nvlink_tx_bytes_per_s",
    "nvlink_rx_bytes": "nvlink_rx_bytes_per_s",
    "num_processes": "process_count",
    "processes": "process_count",
    "xid": "last_xid",
    "xid_errors": "last_xid",
    "remapped_rows_correctable": "rows_remapped_correctable",
    "remapped_rows_uncorrectable": "rows_remapped_uncorrectable",
    "remapped_rows_failure": "row_remap_failed",
    "util_gpu": "gpu_util_ratio",
    "gpuutil": "gpu_util_ratio",
    "gpu_usage": "gpu_util_ratio",
    "gpu_load": "gpu_util_ratio",
    "gpu_busy": "gpu_util_ratio",
    "gpu_active": "gpu_util_ratio",
    "gpu_activity": "gpu_util_ratio",
    "gpu_utilization_rate": "gpu_util_ratio",
    "device_utilization": "gpu_util_ratio",
    "util_memory": "memory_util_ratio",
    "memory_controller_utilization": "memory_util_ratio",
    "smact": "sm_active_ratio",
    "sm_act": "sm_active_ratio",
    "sm_active_avg": "sm_active_ratio",
    "sm_activity_avg": "sm_active_ratio",
    "streaming_multiprocessor_active": "sm_active_ratio",
    "prof_sm_active": "sm_active_ratio",
    "tensor_util": "tensor_active_ratio",
    "tensor_utilization": "tensor_active_ratio",
    "tensor_activity": "tensor_active_ratio",
    "tensor_core_util": "tensor_active_ratio",
    "tensor_core_utilization": "tensor_active_ratio",
    "tensor_core_activity": "tensor_active_ratio",
    "tensor_cores": "tensor_active_ratio",
    "tensor_pipe_active": "tensor_active_ratio",
    "tensor_cores_active": "tensor_active_ratio",
    "dram_util": "dram_active_ratio",
    "dram_utilization": "dram_active_ratio",
    "dram_activity": "dram_active_ratio",
    "hbm_active": "dram_active_ratio",
    "hbm_util": "dram_active_ratio",
    "dram_bandwidth_utilization": "dram_active_ratio",
    "memory_bandwidth_utilization": "dram_active_ratio",
    "mem_bw_util": "dram_active_ratio",
    "dram_bw_util": "dram_active_ratio",
    "smocc": "sm_occupancy_ratio",
    "occupancy": "sm_occupancy_ratio",
    "mem_total": "memory_total_bytes",
    "gpu_memory_total": "memory_total_bytes",
    "gpu_mem_total": "memory_total_bytes",
    "vram_total": "memory_total_bytes",
    "framebuffer_total": "memory_total_bytes",
    "total_memory": "memory_total_bytes",
    "gpu_mem_used": "memory_used_bytes",
    "vram_used": "memory_used_bytes",
    "framebuffer_used": "memory_used_bytes",
    "fbused": "memory_used_bytes",
    "memory_allocated": "memory_used_bytes",
    "used_memory": "memory_used_bytes",
    "mem_allocated": "memory_used_bytes",
    "gpu_memory_allocated": "memory_used_bytes",
    "mem_free": "memory_free_bytes",
    "gpu_memory_free": "memory_free_bytes",
    "gpu_mem_free": "memory_free_bytes",
    "vram_free": "memory_free_bytes",
    "framebuffer_free": "memory_free_bytes",
    "gpu_power_draw": "power_w",
    "gpu_power_usage": "power_w",
    "board_power": "power_w",
    "board_power_draw": "power_w",
    "power_consumption": "power_w",
    "power_avg": "power_w",
    "power_average": "power_w",
    "pwr": "power_w",
    "power_usage_instant": "power_instant_w",
    "instantaneous_power": "power_instant_w",
    "enforced_power_limit_w": "power_limit_w",
    "power_cap": "power_limit_w",
    "power_management_limit": "power_limit_w",
    "energy_consumption": "energy_j",
    "gpu_energy": "energy_j",
    "total_energy": "energy_j",
    "clock_sm": "sm_clock_hz",
    "smclock": "sm_clock_hz",
    "smclk": "sm_clock_hz",
    "sm_clocks": "sm_clock_hz",
    "pclk": "sm_clock_hz",
    "clock_mem": "memory_clock_hz",
    "clock_memory": "memory_clock_hz",
    "mclk": "memory_clock_hz",
    "memclk": "memory_clock_hz",
    "memory_clocks": "memory_clock_hz",
    "gtemp": "temperature_c",
    "core_temp": "temperature_c",
    "core_temperature": "temperature_c",
    "temp_gpu": "temperature_c",
    "mtemp": "memory_temperature_c",
    "hbm_temp": "memory_temperature_c",
    "hbm_temperature": "memory_temperature_c",
    "mem_temp": "memory_temperature_c",
    "temp_memory": "memory_temperature_c",
    "clocks_throttle_reasons": "clock_event_reasons",
    "throttle_reasons_bitmask": "clock_event_reasons",
    "clock_throttle_reasons": "clock_event_reasons",
    "clocks_event_reasons_bitmask": "clock_event_reasons",
    "throttle_bits": "clock_event_reasons",
    "pcie_tx_throughput": "pcie_tx_bytes_per_s",
    "pcie_tx_rate": "pcie_tx_bytes_per_s",
    "pcie_tx_bandwidth": "pcie_tx_bytes_per_s",
    "pcie_tx_bw": "pcie_tx_bytes_per_s",
    "txpci": "pcie_tx_bytes_per_s",
    "tx_pci": "pcie_tx_bytes_per_s",
    "pcie_rx_throughput": "pcie_rx_bytes_per_s",
    "pcie_rx_rate": "pcie_rx_bytes_per_s",
    "pcie_rx_bandwidth": "pcie_rx_bytes_per_s",
    "pcie_rx_bw": "pcie_rx_bytes_per_s",
    "rxpci": "pcie_rx_bytes_per_s",
    "rx_pci": "pcie_rx_bytes_per_s",
    "nvlink_tx_throughput": "nvlink_tx_bytes_per_s",
    "nvlink_tx_rate": "nvlink_tx_bytes_per_s",
    "nvlink_tx_bandwidth": "nvlink_tx_bytes_per_s",
    "nvlink_tx_bw": "nvlink_tx_bytes_per_s",
    "nvltx": "nvlink_tx_bytes_per_s",
    "nvl_tx": "nvlink_tx_bytes_per_s",
    "nvlink_rx_throughput": "nvlink_rx_bytes_per_s",
    "nvlink_rx_rate": "nvlink_rx_bytes_per_s",
    "nvlink_rx_bandwidth": "nvlink_rx_bytes_per_s",
    "nvlink_rx_bw": "nvlink_rx_bytes_per_s",
    "nvlrx": "nvlink_rx_bytes_per_s",
    "nvl_rx": "nvlink_rx_bytes_per_s",
    "nvlink": "nvlink_bytes_per_s",
    "nvlink_bandwidth": "nvlink_bytes_per_s",
    "nvlink_total": "nvlink_bytes_per_s",
    "nvlink_throughput": "nvlink_bytes_per_s",
    "nvlink_bandwidth_total": "nvlink_bytes_per_s",
    "nprocs": "process_count",
    "num_procs": "process_count",
    "n_processes": "process_count",
    "compute_processes": "process_count",
    "sm_util": "sm_active_ratio",
    "sm_utilization": "sm_active_ratio",
    "sm_usage": "sm_active_ratio",
    "smutil": "sm_active_ratio",
    "host_cpu": "cpu_busy_ratio",
    "host_cpu_util": "cpu_busy_ratio",
    "host_cpu_utilization": "cpu_busy_ratio",
    "host_cpu_usage": "cpu_busy_ratio",
    "cpu_util": "cpu_busy_ratio",
    "cpu_utilization": "cpu_busy_ratio",
    "cpu_usage": "cpu_busy_ratio",
    "iowait": "cpu_iowait_ratio",
    "io_wait": "cpu_iowait_ratio",
    "cpu_io_wait": "cpu_iowait_ratio",
    "host_iowait": "cpu_iowait_ratio",
    "framebuffer_mem_used": "memory_used_bytes",
    "pipe_tensor": "tensor_active_ratio",
    "memory_usage": "memory_used_bytes",
}

# What totals of a link are called: their rise by the time is the rate.
TOTALS: dict[str, str] = {
    f"{before}{link}_{way}_bytes_total": f"{link}_{way}_bytes_per_s"
    for link in ("nvlink", "pcie")
    for way in ("tx", "rx")
    for before in ("", "dcgm_fi_dev_")
} | {
    f"{before}nvlink_count_{way}_bytes": f"nvlink_{way}_bytes_per_s"
    for way in ("tx", "rx")
    for before in ("", "dcgm_fi_dev_")
}

# "SM" alone is SM activity beside GPU utilization or other profiling counters, and GPU utilization where it
# is the only one: so nvidia-smi dmon and pmon, NVML's process samples and scripts over them call that.
SM_OR_UTIL = frozenset({"sm", "sm_util", "sm_utilization", "sm_usage", "smutil"})

# Names of the share of its memory that a GPU uses, where the unit says that it is a share: `fb_used_percent`.
# MEMORY_SHARE is no field of the table: with the size of memory it becomes memory_used_bytes.
SHARES = frozenset(
    (
        *(
            "fb_used",
            "memory_used",
            "mem_used",
            "gpu_memory",
            "gpu_mem",
            "gpu_memory_used",
            "gpu_mem_used",
            "memory",
        ),
        *(
            "mem",
            "vram",
            "vram_used",
            "memory_allocated",
            "gpu_memory_allocated",
            "memory_usage",
            "mem_usage",
        ),
    )
)
MEMORY_SHARE = Field("memory_used_share", "gpu", "gauge", "f8", "1", 0.0001, "framebuffer used over its size")
SHARE_IDS = frozenset({"254", "dcgm_fi_dev_fb_used_percent", "dcgm_fi_dev_fb_used_ratio"})
"""DCGM's own: 0-1 in spite of its name, and decided by the values."""

# What dcgmi dmon calls its columns -> DCGM's name, whose unit they have.
DMON: dict[str, str] = {
    "SMCLK": "DEV_SM_CLOCK", "MMCLK": "DEV_MEM_CLOCK", "MMTMP": "DEV_MEMORY_TEMP", "TMPTR": "DEV_GPU_TEMP",
    "POWER": "DEV_POWER_USAGE", "TOTEC": "DEV_TOTAL_ENERGY_CONSUMPTION", "GPUTL": "DEV_GPU_UTIL",
    "MCUTL": "DEV_MEM_COPY_UTIL", "FBFRE": "DEV_FB_FREE", "FBUSD": "DEV_FB_USED",
    "GRACT": "PROF_GR_ENGINE_ACTIVE", "SMACT": "PROF_SM_ACTIVE", "SMOCC": "PROF_SM_OCCUPANCY",
    "TENSO": "PROF_PIPE_TENSOR_ACTIVE", "DRAMA": "PROF_DRAM_ACTIVE", "FP64A": "PROF_PIPE_FP64_ACTIVE",
    "FP32A": "PROF_PIPE_FP32_ACTIVE", "FP16A": "PROF_PIPE_FP16_ACTIVE", "PCITX": "PROF_PCIE_TX_BYTES",
    "PCIRX": "PROF_PCIE_RX_BYTES", "NVLTX": "PROF_NVLINK_TX_BYTES", "NVLRX": "PROF_NVLINK_RX_BYTES",
}  # fmt: skip

# DCGM's field id (dcgm_fields.h; from 1600 on, DCGM 4.7) -> its name, whose unit it has.
FIELD_IDS: dict[int, str] = {
    100: "DEV_SM_CLOCK", 101: "DEV_MEM_CLOCK", 112: "DEV_CLOCK_THROTTLE_REASONS", 140: "DEV_MEMORY_TEMP",
    150: "DEV_GPU_TEMP", 153: "DEV_GPU_TEMP_LIMIT", 155: "DEV_POWER_USAGE",
    156: "DEV_TOTAL_ENERGY_CONSUMPTION", 157: "DEV_POWER_USAGE_INSTANT", 164: "DEV_ENFORCED_POWER_LIMIT",
    202: "DEV_PCIE_REPLAY_COUNTER", 203: "DEV_GPU_UTIL", 204: "DEV_MEM_COPY_UTIL", 206: "DEV_ENC_UTIL",
    207: "DEV_DEC_UTIL", 230: "DEV_XID_ERRORS", 240: "DEV_POWER_VIOLATION", 241: "DEV_THERMAL_VIOLATION",
    250: "DEV_FB_TOTAL", 251: "DEV_FB_FREE", 252: "DEV_FB_USED", 253: "DEV_FB_RESERVED",
    310: "DEV_ECC_SBE_VOL_TOTAL", 311: "DEV_ECC_DBE_VOL_TOTAL", 312: "DEV_ECC_SBE_AGG_TOTAL",
    313: "DEV_ECC_DBE_AGG_TOTAL", 393: "DEV_UNCORRECTABLE_REMAPPED_ROWS",
    394: "DEV_CORRECTABLE_REMAPPED_ROWS", 395: "DEV_ROW_REMAP_FAILURE", 396: "DEV_ROW_REMAP_PENDING",
    449: "DEV_NVLINK_BANDWIDTH_TOTAL", 1001: "PROF_GR_ENGINE_ACTIVE", 1002: "PROF_SM_ACTIVE",
    1003: "PROF_SM_OCCUPANCY", 1004: "PROF_PIPE_TENSOR_ACTIVE", 1005: "PROF_DRAM_ACTIVE",
    1006: "PROF_PIPE_FP64_ACTIVE", 1007: "PROF_PIPE_FP32_ACTIVE", 1008: "PROF_PIPE_FP16_ACTIVE",
    1009: "PROF_PCIE_TX_BYTES", 1010: "PROF_PCIE_RX_BYTES", 1011: "PROF_NVLINK_TX_BYTES",
    1012: "PROF_NVLINK_RX_BYTES", 1603: "DEV_SM_CLOCK_HERTZ", 1604: "DEV_MEMORY_CLOCK_HERTZ",
    1611: "DEV_GPU_ENERGY_JOULES_TOTAL", 1613: "DEV_GPU_UTIL_RATIO", 1614: "DEV_MEMORY_UTIL_RATIO",
    1625: "DEV_FB_CAPACITY_BYTES", 1626: "DEV_FB_FREE_BYTES", 1627: "DEV_FB_USED_BYTES",
    1628: "DEV_FB_RESERVED_BYTES", 1648: "DEV_NVLINK_THROUGHPUT_BYTES_PER_SECOND",
}  # fmt: skip

# Unit as written -> factor to the base unit, per base unit of a field. NVIDIA's tools print binary
# multiples under "MB" too, so for memory MB and GB are read as MiB and GiB.
UNITS: dict[str, dict[str, float]] = {
    "1": (
        dict.fromkeys(("%", "pct", "percent", "perc", "percentage"), 0.01)
        | dict.fromkeys(("ratio", "fraction", "frac"), 1.0)
    ),
    "By": (
        dict.fromkeys(("b", "byte", "bytes"), 1.0)
        | dict.fromkeys(("kib", "kb"), 1024.0)
        | dict.fromkeys(("mib", "mb"), MIB)
        | {"megabytes": 1e6, "gigabytes": 1e9}
        | dict.fromkeys(("gib", "gb"), 1024 * MIB)
    ),
    "W": {"w": 1.0, "watt": 1.0, "watts": 1.0, "mw": 1e-3, "milliwatts": 1e-3, "kw": 1e3},
    "J": {"j": 1.0, "joules": 1.0, "mj": 1e-3, "millijoules": 1e-3, "kj": 1e3, "wh": 3600.0, "kwh": 3.6e6},
    "Hz": {"hz": 1.0, "hertz": 1.0, "khz": 1e3, "mhz": 1e6, "ghz": 1e9},
    "Cel": {"c": 1.0, "celsius": 1.0, "degc": 1.0, "deg_c": 1.0, "°c": 1.0},
    "s": {"s": 1.0, "seconds": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9},
    "By/s": (
        dict.fromkeys(("b/s", "bytes/s", "bytes_per_s", "bytes_per_sec"), 1.0)
        | dict.fromkeys(("kb/s", "kb_s", "kbps"), 1e3)
        | dict.fromkeys(("kib/s", "kib_s"), 1024.0)
        | dict.fromkeys(("mb/s", "mb_s", "mbs", "mbps", "mb_per_s"), 1e6)
        | dict.fromkeys(("mib/s", "mib_s", "mib_per_s"), MIB)
        | dict.fromkeys(("gb/s", "gb_s", "gbs", "gbps", "gb_per_s"), 1e9)
        | dict.fromkeys(("gib/s", "gib_s", "gib_per_s"), 1024 * MIB)
    ),
}  # fmt: skip
