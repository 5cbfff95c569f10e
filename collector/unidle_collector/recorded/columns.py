"""What a column of somebody else's table means: time, node, GPU, job, or a field and its unit.

A name is understood, in this order: our own field names; DCGM's names of both generations with that
name's unit; the roles below; and the names that nvidia-smi and common tools use, with the unit in the
name (`_pct`, `_mib`, `[W]`) or beside the values (`45 %`). Everything else is reported, never dropped
in silence.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Literal

from unidle_agent.dcgm_values import METRICS, PREFIX
from unidle_agent.fields import BY_NAME, FIELDS, MIB, Field

Role = Literal[
    "time", "node", "uuid", "gpu", "instance", "model", "job", "namespace", "metric", "value", "simulated"
]

# For each role the names that give it, best first.
ROLES: dict[Role, tuple[str, ...]] = {
    "time": (
        *("time_ns", "timestamp_ns", "ts_ns", "time_us", "timestamp_us", "time_ms", "timestamp_ms", "ts_ms"),
        *("time", "timestamp", "ts", "datetime", "time_s", "timestamp_s", "epoch", "epoch_s", "epoch_ms"),
        *("unix_time", "sample_time", "sampled_at", "collected_at", "date_time", "elapsed_s", "t"),
    ),
    "node": (
        *("node", "node_name", "nodename", "node_id", "hostname", "host", "host_name", "kubernetes_node"),
        *("machine", "machine_id", "server", "instance"),
    ),
    "uuid": ("gpu_uuid", "uuid", "device_uuid"),
    "gpu": (
        *("gpu", "gpu_index", "gpu_id", "gpu_idx", "gpu_num", "index", "device", "device_index", "device_id"),
        "local_rank",
    ),
    "instance": ("gpu_i_id", "gpu_instance_id", "gpu_instance"),
    "model": ("gpu_model", "model_name", "modelname", "gpu_name", "model", "name", "product_name"),
    "job": (
        *("hpc_job", "slurm_job_id", "slurm_jobid", "job_id", "jobid", "job_name", "jobname", "exported_pod"),
        *("pod", "pod_name", "workload", "job"),
    ),
    "namespace": ("exported_namespace", "namespace", "pod_namespace"),
    "metric": ("metric", "metric_name", "__name__", "field", "measurement", "name"),
    "value": ("value", "metric_value", "val"),
    "simulated": ("simulated",),
}  # fmt: skip

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
}

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

# Unit as written -> factor to the base unit, per base unit of a field. NVIDIA's tools print binary
# multiples under "MB" too, so for memory MB and GB are read as MiB and GiB.
UNITS: dict[str, dict[str, float]] = {
    "1": (
        dict.fromkeys(("%", "pct", "percent", "perc"), 0.01)
        | dict.fromkeys(("ratio", "fraction", "frac"), 1.0)
    ),
    "By": (
        dict.fromkeys(("b", "byte", "bytes"), 1.0)
        | dict.fromkeys(("kib", "kb"), 1024.0)
        | dict.fromkeys(("mib", "mb"), MIB)
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
        | dict.fromkeys(("mb/s", "mb_s", "mbps", "mb_per_s"), 1e6)
        | dict.fromkeys(("mib/s", "mib_s", "mib_per_s"), MIB)
        | dict.fromkeys(("gb/s", "gb_s", "gbps", "gb_per_s"), 1e9)
        | dict.fromkeys(("gib/s", "gib_s", "gib_per_s"), 1024 * MIB)
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Meaning:
    """A column that carries a field: multiply by `factor` for base units."""

    field: Field
    factor: float
    unit_told: bool
    """False when neither the field's own name nor the column's says the unit: the values must."""
    own: bool = False
    """It bears our own name for the field."""


def normal(name: str) -> str:
    """`Utilization.GPU [%]` -> `utilization_gpu`: lower case, words joined by "_", no unit in brackets."""
    bare = re.sub(r"[\[(].*?[\])]", "", name)
    return re.sub(r"[^a-z0-9]+", "_", bare.lower()).strip("_") if bare.strip() != "__name__" else "__name__"


def unit_in_brackets(name: str) -> str:
    """`power.draw [W]` -> `w`; empty when there is none."""
    found = re.search(r"[\[(]\s*(.+?)\s*[\])]", name)
    return found.group(1).lower() if found else ""


def factor_of(spec: Field, unit: str) -> float | None:
    """Factor from `unit`, as somebody wrote it, to the field's base unit; None when it is no such unit."""
    return UNITS.get(spec.unit, {}).get(unit.strip().lower())


def meaning(name: str) -> Meaning | None:
    """The field that a column of this name carries, or None."""
    text = name.strip()
    own = BY_NAME.get(text.lower())
    if own is not None:
        return Meaning(own, 1.0, unit_told=True, own=True)
    upper = text.upper()
    if text in DMON:
        upper = text = PREFIX + DMON[text]
    spellings = [upper, text.lower(), PREFIX + upper]
    if text == upper:  # SM_ACTIVE is DCGM's, sm_active may be anybody's
        spellings += [f"{PREFIX}DEV_{upper}", f"{PREFIX}PROF_{upper}"]
    for spelling in spellings:
        if (metric := METRICS.get(spelling)) is not None:
            return Meaning(metric.field, metric.factor, unit_told=not metric.by_evidence)
    return _by_alias(normal(text), unit_in_brackets(text))


def _by_alias(base: str, unit: str) -> Meaning | None:
    spec = _spec(base)
    if spec is not None:
        factor = factor_of(spec, unit) if unit else None
        dimensionless = spec.unit not in UNITS
        return Meaning(spec, 1.0 if factor is None else factor, factor is not None or dimensionless)
    # The unit as last word or words of the name: power_mw, memory_used_mib, pcie_tx_bytes_per_s.
    words = base.split("_")
    for count in (1, 2, 3):
        if len(words) <= count:
            break
        spec = _spec("_".join(words[:-count]))
        factor = factor_of(spec, "_".join(words[-count:])) if spec else None
        if spec is not None and factor is not None:
            return Meaning(spec, factor, unit_told=True)
    return None


def _spec(base: str) -> Field | None:
    return BY_NAME.get(base) or BY_NAME.get(ALIASES.get(base, "")) or BY_NAME.get(_WITHOUT_UNIT.get(base, ""))


# Our own names without their unit: `power_mw` is power_w in another unit.
_WITHOUT_UNIT = {
    re.sub(r"_(ratio|bytes|w|j|hz|c|s|bytes_per_s)$", "", spec.name): spec.name for spec in FIELDS
}


def role_columns(names: list[str]) -> dict[Role, list[str]]:
    """Role -> the columns that give it, best first. A name may stand in several roles."""
    written = {normal(name) if normal(name) else name: name for name in reversed(names)}
    return {
        role: [written[candidate] for candidate in candidates if candidate in written]
        for role, candidates in ROLES.items()
    }


def nearest(name: str) -> str:
    """The known name closest to `name`, for a hint; empty when nothing is close."""
    known = [*BY_NAME, *ALIASES]
    found = difflib.get_close_matches(normal(name), known, 1, 0.6)
    return ALIASES.get(found[0], found[0]) if found else ""
