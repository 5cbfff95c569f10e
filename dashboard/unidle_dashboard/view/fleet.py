"""The fleet map: one byte per GPU, and the words beside it."""

from __future__ import annotations

import base64
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from unidle_agent.fields import BY_NAME, GPU_FIELDS
from unidle_collector.model import STATES, GpuNow, State
from unidle_collector.owner_words import owner_words
from unidle_collector.spoken import cause_words
from unidle_dashboard.view import words
from unidle_dashboard.view.palette import LOOKS, SEQUENTIAL, WORST_FIRST

UNKNOWN_CELL = 255
TOP_CELL = 250
"""Values are spread over 0-250; 255 is unknown and drawn hatched, never as 0."""

MOST_CELLS = 20_000
"""Above it one tile stands for a node: more cells than pixels only make moire."""


@dataclass(frozen=True, slots=True)
class Colouring:
    """A quantity that the map can show: where it comes from, and the values at both ends of the scale."""

    unit: str
    low: float
    high: float
    value: Callable[[GpuNow], float | None]


def _field(name: str) -> Callable[[GpuNow], float | None]:
    return lambda gpu: gpu.values.get(name)


def _of_limit(gpu: GpuNow) -> float | None:
    power_w, limit_w = gpu.values.get("power_w"), gpu.values.get("power_limit_w")
    return power_w / limit_w if power_w is not None and limit_w else None


BY_STATE = "State"
COLOURINGS: dict[str, Colouring] = {
    "GPU utilization": Colouring("%", 0, 1, _field("gpu_util_ratio")),
    "SM activity": Colouring("%", 0, 1, _field("sm_active_ratio")),
    "Temperature": Colouring("°C", 25, 95, _field("temperature_c")),
    "Power of its limit": Colouring("%", 0, 1, _of_limit),
}
"""What the map can be coloured by, beside the state: by the name that people choose and that links hold."""


MAP_FIELDS = ("gpu_util_ratio", "sm_active_ratio", "temperature_c", "power_w", "power_limit_w")
"""All that COLOURINGS read: of a large fleet nothing else is asked for."""


@dataclass(frozen=True, slots=True)
class FleetMap:
    """The map as the canvas component wants it.

    `cells` has one byte per tile, in the order of `nodes`: the index of a state in `STATES`, or a value
    spread over 0-250, or 255 for unknown. A tile is a GPU, or a whole node when `by_node`.
    """

    nodes: tuple[str, ...]
    counts: tuple[int, ...]
    """Tiles per node."""
    cells: bytes
    labels: tuple[str, ...]
    """What hovering tells beside the node, per tile."""
    by_node: bool
    colouring: str


def build(gpus: list[GpuNow], colouring: str = BY_STATE, most_cells: int = MOST_CELLS) -> FleetMap:
    """The map of all `gpus`, coloured by state or a key of COLOURINGS."""
    grouped = by_node(gpus)
    whole = len(gpus) > most_cells
    tiles = list(grouped.values()) if whole else [[gpu] for group in grouped.values() for gpu in group]
    return FleetMap(
        nodes=tuple(grouped),
        counts=tuple(1 if whole else len(group) for group in grouped.values()),
        cells=bytes(_cell(tile, colouring) for tile in tiles),
        labels=tuple(_tile_label(tile) for tile in tiles),
        by_node=whole,
        colouring=colouring,
    )


def packed(shown: FleetMap, selected: str) -> dict[str, Any]:
    """What travels to the browser: deflated JSON, and the node that a click selected."""
    scale = COLOURINGS.get(shown.colouring)
    facts: dict[str, Any] = {
        "nodes": shown.nodes,
        "counts": shown.counts,
        "cells": base64.b64encode(shown.cells).decode("ascii"),
        "labels": shown.labels,
    }
    if scale is None:
        facts["colours"] = [LOOKS[state].colour for state in STATES]
        facts |= {"unknown": STATES.index("unknown"), "failed": STATES.index("failed"), "scale": None}
    else:
        percent = 100 if scale.unit == "%" else 1
        facts |= {"colours": SEQUENTIAL, "unknown": UNKNOWN_CELL, "failed": None}
        facts["scale"] = {
            "name": shown.colouring,
            "unit": scale.unit,
            "low": scale.low * percent,
            "high": scale.high * percent,
            "top": TOP_CELL,
        }
    body = json.dumps(facts, separators=(",", ":"), ensure_ascii=False)
    squeezed = zlib.compress(body.encode("utf-8"), 9)
    return {"packed": base64.b64encode(squeezed).decode("ascii"), "selected": selected}


def by_node(gpus: list[GpuNow]) -> dict[str, list[GpuNow]]:
    """Node -> its GPUs by index; nodes in the order people count them (node2 before node10)."""
    ordered = sorted(gpus, key=lambda gpu: (natural(gpu.node), gpu.node, _position(gpu)))
    return {node: list(group) for node, group in groupby(ordered, key=lambda gpu: gpu.node)}


def natural(text: str) -> tuple[tuple[int, int | str], ...]:
    """A sort key under which runs of digits count as numbers."""
    return tuple(
        (0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", text) if part
    )


def gpu_name(gpu: GpuNow) -> str:
    """ "GPU 3", or the UUID where there is no index."""
    return f"GPU {gpu.index}" if gpu.index is not None else gpu.gpu


def state_counts(gpus: list[GpuNow]) -> dict[State, int]:
    """GPUs per state, every state present."""
    counts = Counter(gpu.state for gpu in gpus)
    return {state: counts.get(state, 0) for state in STATES}


def age_s(sampled_ns: int | None, now_ns: int | None) -> float | None:
    """Age of a sample in seconds; None where either is not known."""
    return (now_ns - sampled_ns) / 1e9 if sampled_ns is not None and now_ns is not None else None


TABLE_FIELDS = (
    "gpu_util_ratio", "sm_active_ratio", "tensor_active_ratio", "memory_used_bytes", "memory_total_bytes",
    "power_w", "power_limit_w", "temperature_c", "sm_clock_hz",
)  # fmt: skip
"""Fields of the table of one node; the table of one GPU shows them all."""


def node_table(gpus: list[GpuNow], now_ns: int | None) -> list[dict[str, Any]]:
    """One row per GPU of a node; numbers stay numbers, in the unit that the column's name says."""
    rows = []
    for gpu in gpus:
        row: dict[str, Any] = {
            "GPU": gpu_name(gpu),
            "State": LOOKS[gpu.state].name + (" (inferred)" if gpu.inferred else ""),
            "Cause": cause_words(gpu.cause),
            "Job": gpu.job,
        }
        for name in TABLE_FIELDS:
            unit, factor = words.shown_unit(BY_NAME[name].unit)
            row[f"{words.label(name)}, {unit}"] = _scaled(gpu.values.get(name), factor)
        row["sample age, s"] = age_s(gpu.sampled_ns, now_ns)
        rows.append(row)
    return rows


def owner_notes(gpus: list[GpuNow]) -> list[str]:
    """A sentence for GPUs of a node of whose owner the same is to be said: "GPU 3, GPU 4: ..."."""
    said: dict[str, list[str]] = {}
    for gpu in gpus:
        if told := owner_words(gpu.job, gpu.owner_note, gpu.used_by):
            said.setdefault(told, []).append(gpu_name(gpu))
    return [f"{', '.join(names)}: {told}." for told, names in said.items()]


def gpu_table(gpu: GpuNow) -> list[dict[str, Any]]:
    """Every field that the GPU reports: name, value, unit, meaning."""
    rows = []
    for field in GPU_FIELDS:
        if field.name in gpu.values:
            unit, factor = words.shown_unit(field.unit)
            rows.append(
                {
                    "Field": field.name,
                    "Value": _scaled(gpu.values[field.name], factor),
                    "Unit": unit,
                    "Meaning": field.doc,
                }
            )
    return rows


def _scaled(value: float | None, factor: float) -> float | None:
    return value * factor if value is not None and math.isfinite(value) else None


def _position(gpu: GpuNow) -> tuple[int, str]:
    return (gpu.index if gpu.index is not None else 1 << 30, gpu.gpu)


def _cell(tile: list[GpuNow], colouring: str) -> int:
    if colouring == BY_STATE:
        present = {gpu.state for gpu in tile}
        return STATES.index(next(state for state in WORST_FIRST if state in present))
    scale = COLOURINGS[colouring]
    values = [value for gpu in tile if (value := scale.value(gpu)) is not None and math.isfinite(value)]
    if not values:
        return UNKNOWN_CELL
    share = (sum(values) / len(values) - scale.low) / (scale.high - scale.low)
    return round(TOP_CELL * min(1.0, max(0.0, share)))


def _tile_label(tile: list[GpuNow]) -> str:
    """State and job of a GPU; of a node, how many GPUs are in which state."""
    if len(tile) == 1:
        gpu = tile[0]
        job = f"job {gpu.job}" if gpu.job else "no job"
        said = owner_words(gpu.job, gpu.owner_note, gpu.used_by)
        return f"{gpu_name(gpu)}: {LOOKS[gpu.state].name}, {said or job}"
    counts = Counter(gpu.state for gpu in tile)
    return ", ".join(f"{counts[state]} {LOOKS[state].name.lower()}" for state in WORST_FIRST if counts[state])
