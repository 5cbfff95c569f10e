"""Numbers, times and money as people read them, each with its unit; unknown is said, never shown as 0."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime

from unidle_collector.model import Cost, Finding
from unidle_collector.spoken import cause_words, kind_words

SECOND_NS = 1_000_000_000


def clean(text: str) -> str:
    """One line of visible characters: control, bidi and zero-width characters go, a backtick becomes '.

    Names come from people and jobs; this is what makes them harmless on a terminal and in a code block.
    """
    kept = []
    for char in text:
        category = unicodedata.category(char)
        if char.isspace() or category in ("Zl", "Zp"):
            kept.append(" ")
        elif not category.startswith("C"):
            kept.append("'" if char == "`" else char)
    return " ".join("".join(kept).split())


def is_plain(text: str) -> bool:
    """Can `text` stand in a code block as it is: visible characters of one line, no backtick."""
    return not any(
        char == "`"
        or unicodedata.category(char).startswith("C")
        or unicodedata.category(char) in ("Zl", "Zp")
        for char in text
    )


def shorten(text: str, limit: int) -> str:
    """At most `limit` characters, the last an ellipsis where something is missing."""
    return text if len(text) <= limit else text[: max(limit - 1, 0)].rstrip() + "…"


def sentence(text: str) -> str:
    """Begins with a capital."""
    return text[:1].upper() + text[1:]


def utc(time_ns: int) -> str:
    """`2026-11-21 14:02 UTC`"""
    return f"{datetime.fromtimestamp(time_ns / SECOND_NS, UTC):%Y-%m-%d %H:%M} UTC"


def clock(time_ns: int) -> str:
    """`14:02`"""
    return f"{datetime.fromtimestamp(time_ns / SECOND_NS, UTC):%H:%M}"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 05 min`, `2 d 4 h`"""
    seconds = max(seconds, 0.0)
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def span(start_ns: int, end_ns: int) -> str:
    """The time from one instant to another."""
    return duration((end_ns - start_ns) / SECOND_NS)


def plural(count: int, word: str) -> str:
    """`1 GPU`, `10,000 GPUs`"""
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def percent(ratio: float) -> str:
    """A ratio as people read it."""
    return f"{ratio * 100:.0f} %" if ratio == 0 or ratio >= 0.1 else f"{ratio * 100:.2g} %"


def amount(value: float | None, unit: str) -> str:
    """A value in base units (UCUM, as in the field table) in the unit that people use."""
    if value is None or value != value:
        return "unknown"
    if unit == "1":
        return percent(value)
    if unit == "s":
        return duration(value)
    if unit == "Cel":
        return f"{value:.0f} °C"
    if unit == "bits":
        return f"{int(value):#x}"
    if unit == "s/s":
        return f"{value:.1f} s per second"
    for base, shown, factor in (("By", "GiB", 2**30), ("By/s", "GB/s", 1e9), ("Hz", "MHz", 1e6)):
        if unit == base:
            return f"{value / factor:,.1f} {shown}" if base != "Hz" else f"{value / factor:,.0f} {shown}"
    return f"{value:,.4g} {unit.strip('{}')}".strip()


def rate(cost: Cost) -> str:
    """What an hour of it costs: `24.00 EUR/h, 5.2 kW`."""
    if not cost.gpu_h and not cost.eur:
        return "nothing lost yet"
    money = f"{cost.eur:,.2f} EUR/h" if cost.eur is not None else "EUR/h unknown (no price)"
    power = f"{cost.kwh:,.1f} kW" if cost.kwh is not None else "kW unknown"
    return f"{money}, {power}"


def total(cost: Cost) -> str:
    """What it has cost: `12.40 EUR, 4.1 GPU-h, 2.6 kWh`."""
    if not cost.gpu_h and not cost.eur:
        return "nothing lost yet"
    money = f"{cost.eur:,.2f} EUR" if cost.eur is not None else "EUR unknown (no price)"
    energy = f"{cost.kwh:,.1f} kWh" if cost.kwh is not None else "kWh unknown"
    return f"{money}, {cost.gpu_h:,.1f} GPU-h, {energy}"


def what(finding: Finding) -> str:
    """`starvation: storage too slow`: the words for its ids, which no person can have named."""
    kind, cause = kind_words(finding.kind), cause_words(finding.cause)
    return f"{kind}: {cause}" if cause and finding.cause != finding.kind and cause != kind else kind


def size(finding: Finding) -> str:
    """`96 GPUs on 12 nodes`, as far as it is known."""
    nodes = where(finding)
    parts = [plural(len(finding.gpus), "GPU")] if finding.gpus else []
    if nodes:
        parts.append(nodes[0] if len(nodes) == 1 else plural(len(nodes), "node"))
    return " on ".join(parts) or "size unknown"


def where(finding: Finding) -> tuple[str, ...]:
    """The nodes of a finding, each once."""
    return tuple(dict.fromkeys((*finding.nodes, *(gpu.node for gpu in finding.gpus))))
