"""Numbers, times and names as people read them. Unknown is the word "unknown", never a zero."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from urllib.parse import quote

from unidle_agent.fields import BY_NAME

UNKNOWN = "unknown"
GIB = 1024.0**3

DISPLAY_UNITS: dict[str, tuple[str, float]] = {
    "1": ("%", 100.0),
    "By": ("GiB", 1 / GIB),
    "By/s": ("GB/s", 1e-9),
    "Hz": ("MHz", 1e-6),
    "Cel": ("°C", 1.0),
    "W": ("W", 1.0),
    "J": ("kWh", 1 / 3.6e6),
    "s": ("s", 1.0),
    "s/s": ("%", 100.0),
}
"""Unit of the fields' table -> what a person reads, and the factor to it."""


def known(value: float | None) -> bool:
    """Is there a number at all."""
    return value is not None and math.isfinite(value)


def number(value: float | None) -> str:
    """Three digits or so: 1,204; 31; 6.2; 0.04."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    size = abs(value)
    if size >= 10 or size == 0:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 1 else f"{value:.2g}"


def amount(value: float | None, unit: str) -> str:
    """A number with its unit: "186 EUR", "31 GPU-h"; "EUR unknown"."""
    return f"{number(value)} {unit}" if known(value) else f"{unit} {UNKNOWN}"


def percent(ratio: float | None) -> str:
    """A ratio 0-1 as percent: "62 %"."""
    return f"{100 * ratio:.0f} %" if ratio is not None and math.isfinite(ratio) else UNKNOWN


def many(count: int, noun: str) -> str:
    """A count with its noun: "1 node", "64 nodes"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def quoted(text: str) -> str:
    """A text as part of an address."""
    return quote(text, safe="")


def utc(time_ns: int | None) -> str:
    """A moment: "2026-11-21 14:02:10 UTC"."""
    if time_ns is None:
        return UNKNOWN
    return moment(time_ns).strftime("%Y-%m-%d %H:%M:%S UTC")


def clock(time_ns: int | None) -> str:
    """A moment of today: "14:02:10 UTC"."""
    return UNKNOWN if time_ns is None else moment(time_ns).strftime("%H:%M:%S UTC")


def moment(time_ns: int) -> datetime:
    """The UTC datetime of nanoseconds since the epoch."""
    return datetime.fromtimestamp(time_ns / 1e9, UTC)


def duration(seconds: float | None) -> str:
    """A length of time in its two largest units: "40 ms", "45 s", "3 min 20 s", "2 h 5 min", "4 d 6 h"."""
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    sign = "−" if seconds < 0 else ""
    if 0 < abs(seconds) < 1:
        return f"{sign}{1000 * abs(seconds):.0f} ms"
    if abs(seconds) < 10 and seconds != int(seconds):
        return f"{sign}{abs(seconds):.1f} s"
    left = int(abs(seconds))
    parts: list[str] = []
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        if left >= size or (unit == "s" and not parts):
            parts.append(f"{left // size} {unit}")
            left %= size
        elif parts:
            break
    return sign + " ".join(parts[:2])


def clock_off(skew_s: float | None) -> str:
    """A node's clock: "clock 8.0 s ahead"; `skew_s` is the collector's clock less the node's."""
    if skew_s is None:
        return f"clock {UNKNOWN}"
    return f"clock {duration(abs(skew_s))} {'behind' if skew_s > 0 else 'ahead'}"


def shown_unit(unit: str) -> tuple[str, float]:
    """What a person reads a unit of the fields' table in, and the factor to it."""
    return DISPLAY_UNITS.get(unit, (unit.replace("{", "").replace("}", ""), 1.0))


def measured(field_name: str, value: float | None, unit: str = "") -> str:
    """A value in `unit` (by default the field's own) with the unit that a person reads it in."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    field = BY_NAME.get(field_name)
    if field is not None and field.kind == "state":
        return f"{int(value):#x}" if "bits" in field.unit else f"{int(value)}"
    unit = unit or (field.unit if field else "")
    if unit == "1/min":
        return f"{number(value)} a minute"
    shown, factor = shown_unit(unit)
    if unit in DISPLAY_UNITS or value != int(value):
        return f"{number(value * factor)} {shown}".strip()
    ending = "" if value == 1 or not unit.endswith("}") else "es" if shown.endswith("s") else "s"
    return f"{value:,.0f} {shown}{ending}".strip()


def label(field_name: str) -> str:
    """The name of a field without its unit suffix: "sm active", "host memory available"."""
    name = field_name
    for suffix in ("_bytes_per_s", "_ratio", "_bytes", "_hz", "_w", "_c", "_j", "_s"):
        if name.endswith(suffix):
            name = name.removesuffix(suffix)
            break
    for short, long in (
        ("gpu util", "GPU util"),
        ("cpu ", "CPU "),
        ("sm ", "SM "),
        ("pcie", "PCIe"),
        ("nvlink", "NVLink"),
        ("ib ", "InfiniBand "),
    ):
        name = name.replace("_", " ").replace(short, long)
    return name
