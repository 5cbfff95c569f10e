"""What the families on dcgm-exporter pages mean, and what the numbers printed there are worth.

Names and units come from the field table; the rest (names of exporter 1.x, DCGM's "no value" numbers)
from gpu-monitoring-tools and dcgm_fields.h.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from unidle_agent.fields import FIELDS, Field
from unidle_agent.sample import Value

PREFIX = "DCGM_FI_"
UNIT_BY_EVIDENCE = frozenset(f"{PREFIX}DEV_{name}_UTIL_RATIO" for name in ("GPU", "MEMORY", "ENC", "DEC"))
"""Up to DCGM 4.6 an alias of a percentage (integer 0-100), from 4.7 on a ratio (double 0-1)."""

GENERATION_1 = {
    "dcgm_sm_clock": "DEV_SM_CLOCK",
    "dcgm_memory_clock": "DEV_MEM_CLOCK",
    "dcgm_mem_clock": "DEV_MEM_CLOCK",
    "dcgm_gpu_temp": "DEV_GPU_TEMP",
    "dcgm_memory_temp": "DEV_MEMORY_TEMP",
    "dcgm_power_usage": "DEV_POWER_USAGE",
    "dcgm_total_energy_consumption": "DEV_TOTAL_ENERGY_CONSUMPTION",
    "dcgm_gpu_utilization": "DEV_GPU_UTIL",
    "dcgm_mem_copy_utilization": "DEV_MEM_COPY_UTIL",
    "dcgm_enc_utilization": "DEV_ENC_UTIL",
    "dcgm_dec_utilization": "DEV_DEC_UTIL",
    "dcgm_fb_total": "DEV_FB_TOTAL",
    "dcgm_fb_free": "DEV_FB_FREE",
    "dcgm_fb_used": "DEV_FB_USED",
    "dcgm_pcie_replay_counter": "DEV_PCIE_REPLAY_COUNTER",
    "dcgm_xid_errors": "DEV_XID_ERRORS",
    "dcgm_power_violation": "DEV_POWER_VIOLATION",
    "dcgm_thermal_violation": "DEV_THERMAL_VIOLATION",
    "dcgm_nvlink_bandwidth_total": "DEV_NVLINK_BANDWIDTH_TOTAL",
}
"""Names of exporter 1.x (gpu-monitoring-tools) that are not just the later ones in lower case."""

MAX_DIGITS = 25
"""Longer integers are read as floats: no counter has them, and Python refuses thousands of digits."""

INT32_BLANK, INT64_BLANK, DOUBLE_BLANK = 0x7FFFFFF0, 0x7FFFFFFFFFFFFFF0, 2.0**47
"""DCGM's blank values (dcgm_fields.h); the next three say why: not found, not supported, no permission."""
REASONS = ("blank", "not found", "not supported", "no permission")


@dataclass(frozen=True, slots=True)
class Metric:
    """What one family on a page carries: a field, and the factor from the printed unit to base units."""

    field: Field
    factor: float
    by_evidence: bool = False
    """The unit depends on the exporter's generation, see `UNIT_BY_EVIDENCE`."""


def _metrics() -> dict[str, Metric]:
    out = {}
    for spec in FIELDS:
        for name, factor in spec.dcgm:
            full = PREFIX + name
            out[full] = out[full.lower()] = Metric(spec, factor, full in UNIT_BY_EVIDENCE)
    return out | {old: out[PREFIX + new] for old, new in GENERATION_1.items()}


METRICS: dict[str, Metric] = _metrics()
"""Family name as printed, of any generation -> what it carries."""


def number(text: str) -> Value | str | None:
    """The number that `text` is, an integer where it is written as one, "blank" for DCGM's blank text,
    None when it is no number. Integers stay exact: DCGM's 64-bit blanks collapse as floats."""
    if text.isdecimal() and text.isascii() and len(text) <= MAX_DIGITS:
        return int(text)
    if text.startswith("<<<") and text.endswith(">>>"):
        return "blank"
    if "_" in text or not text.isascii():
        return None
    try:
        return float(text)
    except ValueError:
        return None


def missing(metric: Metric, value: Value) -> str:
    """Why `value` is none: DCGM's sentinels, NaN, infinity, below zero where there is no such thing."""
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if value != value else "inf"
    if INT32_BLANK <= value <= 0x7FFFFFFF:
        return _reason(int(value) - INT32_BLANK)
    if value >= INT64_BLANK:
        # As a float all four are 2^63, beyond any of them: the reason is lost, not the fact.
        return _reason(int(value) - INT64_BLANK if isinstance(value, int) else 0)
    # A 64-bit counter may rightly pass 2^47 (39 h in ns); what is printed as a double may not.
    whole = metric.field.dtype == "u8" and isinstance(value, int)
    if value >= DOUBLE_BLANK and not whole:
        return _reason(int(value - DOUBLE_BLANK))
    return "negative" if value < 0 and metric.field.unit != "Cel" else ""


def _reason(offset: int) -> str:
    return REASONS[offset] if offset < len(REASONS) else REASONS[0]


def base_value(metric: Metric, value: Value) -> Value:
    """In base units; a counter as a whole number of its resolution, a state as an integer."""
    spec, factor = metric.field, metric.factor
    if spec.kind == "counter":
        factor = factor / spec.resolution
    if spec.dtype == "u8":
        return int(value) if factor == 1 else round(value * round(factor, 6))
    # Dividing by 100 is exact to the last digit where multiplying by 0.01 is not.
    return value / round(1 / factor) if factor < 1 else float(value * factor)
