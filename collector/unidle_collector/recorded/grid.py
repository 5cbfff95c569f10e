"""Puts rows, in any order and rhythm, on one regular grid of time.

The grid's step is the sampling period, found from the data: the usual distance between two samples of
a GPU, never below one second (faster samples are averaged, so none is lost). Each GPU keeps its own
phase: its samples land in the slots that they are nearest to. What was not sampled stays unknown; of a
hole of hours an instant an hour is kept, so that runs of several days can lie in one recording.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unidle_agent.fields import BY_NAME
from unidle_collector.model import GpuRef
from unidle_collector.recorded.rows import NOT_SAID, RecordingError, Rows
from unidle_collector.recording import Recording

MAX_CELLS = 200_000_000
"""Most values that a grid may have, over all its columns: 1.6 GB."""

MIN_PERIOD_S = 1.0

HOLE_S = 200.0
"""After this long without a sample, when no window holds one, an instant is kept per minute only ..."""
LEAST_IN_HOLE = 10
"""... and not before this many; ..."""
FORGOTTEN_S = 2000.0
"""... and after this long, when what was seen is forgotten, one per hour."""
BEFORE_NEXT = 4
"""As many are kept before the next sample, which may speak for them."""
MINUTE_NS = 60_000_000_000
HOUR_NS = 60 * MINUTE_NS
STRAY_NS = 366 * 24 * HOUR_NS
"""A time further than this from all others is no run of another day."""

MAX_BOARD_W = 5_000.0
"""No GPU board draws as much (GB300: 1,400 W): an energy counter that rises faster has jumped."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def to_grid(rows: Rows, period_s: float | None = None) -> Recording:
    """`rows` on a grid of `period_s`, or of the period found. Raises RecordingError when it would be
    absurdly large, or when there is nothing. The values of `rows` are given up one by one, as they are put on
    the grid: a day of 64 GPUs is a gigabyte of them."""
    notes = list(rows.notes)
    rows = _ordered(_without_unknown(rows))
    if not len(rows.time_ns):
        raise RecordingError("expected samples with at least one known value, came none")
    rows, repeated, mean = _one_per_instant(rows)
    if repeated:
        counts = "their means count" if mean else "the last value counts"
        notes.append(f"{repeated} rows repeat a GPU and an instant: {counts}")
    spacing_s, uneven = _spacing(rows)
    notes += [uneven] if uneven else []
    if period_s is None:
        period_s = max(MIN_PERIOD_S, spacing_s or MIN_PERIOD_S)
    elif period_s < MIN_PERIOD_S:
        notes.append(f"the period of {period_s:g} s was raised to {MIN_PERIOD_S:g} s, the finest grid")
        period_s = MIN_PERIOD_S
    finer = spacing_s is not None and spacing_s < 0.75 * period_s
    if finer:
        notes.append(f"sampled every {spacing_s:g} s: averaged to a grid of {period_s:g} s")
    grid = _without_holes(_windows(rows, period_s) if finer else _slots(rows, period_s), period_s)
    _check_size(rows, grid, period_s)
    if grid.merged and not finer:
        notes.append(f"{grid.merged} samples share a slot of {period_s:g} s with another: averaged")
    columns = {name: _column(rows, name, grid, notes) for name in list(rows.values)}
    _derive_memory(columns, notes)
    sampled = np.zeros(grid.shape, dtype=np.bool_)
    sampled[grid.slot, rows.gpu] = True
    job = np.full(grid.shape, NOT_SAID, dtype=np.int32)
    job[grid.slot, rows.gpu] = rows.job
    order = sorted(range(len(rows.gpus)), key=lambda at: _rank(rows.gpus[at]))
    return Recording(
        start_ns=grid.start_ns,
        period_s=period_s,
        gpus=tuple(rows.gpus[at] for at in order),
        columns={name: _in_order(columns.pop(name), order) for name in list(columns)},
        sampled=_in_order(sampled, order),
        jobs=rows.jobs,
        job=_in_order(job, order),
        notes=tuple(dict.fromkeys(notes)),
        simulated=rows.simulated,
        kept=grid.kept,
    )


def _in_order(column: NDArray[Any], order: list[int]) -> NDArray[Any]:
    return column if order == sorted(order) else column[:, order]


def _rank(ref: GpuRef) -> tuple[str, int, str]:
    return (ref.node, ref.index if ref.index is not None else 1 << 30, ref.gpu)


# Rows


def _pick(rows: Rows, chosen: NDArray[np.bool_] | Ints) -> Rows:
    return Rows(
        time_ns=rows.time_ns[chosen],
        gpu=rows.gpu[chosen],
        gpus=rows.gpus,
        values={name: rows.values.pop(name)[chosen] for name in list(rows.values)},
        job=rows.job[chosen],
        jobs=rows.jobs,
        notes=rows.notes,
        simulated=rows.simulated,
    )


def _without_unknown(rows: Rows) -> Rows:
    """Rows in which at least one field is known: the others are no samples."""
    known = np.zeros(len(rows.time_ns), dtype=np.bool_)
    for column in rows.values.values():
        known |= ~np.isnan(column)
    return rows if known.all() else _pick(rows, known)


def _ordered(rows: Rows) -> Rows:
    """By GPU, then time; rows of the same instant in the order in which they were written."""
    order = np.lexsort((rows.time_ns, rows.gpu))
    return rows if (order == np.arange(len(order))).all() else _pick(rows, order)


def _one_per_instant(rows: Rows) -> tuple[Rows, int, bool]:
    """One row per GPU and time, how many rows repeated a value, and whether means were taken: per field the
    last known value; or the mean of a gauge where most rows repeat, three times or more, as samples within a
    second do whose times are written in whole seconds."""
    same = (np.diff(rows.time_ns) == 0) & (np.diff(rows.gpu) == 0)
    if not same.any():
        return rows, 0, False
    group = np.concatenate([[0], np.cumsum(~same)])
    last = np.flatnonzero(np.append(~same, True))
    repeated = np.zeros(len(same), dtype=np.bool_)
    for column in rows.values.values():
        known = ~np.isnan(column)
        repeated |= same & known[1:] & known[:-1]
    count = int(np.count_nonzero(repeated))
    mean = count > 0.66 * len(rows.time_ns)
    merged = {}
    for name in list(rows.values):
        column = rows.values.pop(name)
        known = ~np.isnan(column)
        out = np.full(len(last), np.nan)
        if mean and BY_NAME[name].kind == "gauge":
            number = np.bincount(group[known], minlength=len(last))
            total = np.bincount(group[known], column[known], len(last))
            np.divide(total, number, out=out, where=number > 0)
        else:
            out[group[known]] = column[known]  # ascending order: the last write stays
        merged[name] = out
    said = rows.job != NOT_SAID
    job = rows.job[last]
    job[group[said]] = rows.job[said]
    return replace(rows, time_ns=rows.time_ns[last], gpu=rows.gpu[last], values=merged, job=job), count, mean


# Time


def _spacing(rows: Rows) -> tuple[float | None, str]:
    """The usual distance in s between samples of a GPU, and a note where GPUs differ; None for a
    recording of single instants."""
    fullest = max(rows.values.values(), key=lambda column: np.count_nonzero(~np.isnan(column)))
    known = ~np.isnan(fullest)
    gpu, time_ns = rows.gpu[known], rows.time_ns[known]
    step = np.diff(time_ns)
    inside = np.diff(gpu) == 0
    if not inside.any():
        return None, ""
    medians, spans = [], []
    for mine in np.split(step[inside], np.flatnonzero(np.diff(gpu[1:][inside])) + 1):
        medians.append(float(np.median(mine)))
        spans.append(len(mine) * medians[-1])
    # A GPU that was seen for a moment only does not decide.
    regular = [m for m, span in zip(medians, spans, strict=True) if span >= 0.5 * max(spans)]
    slowest = max(regular)
    spacing = _exact_period(gpu, time_ns, step[inside], slowest) / 1e9
    if min(regular) < 0.67 * slowest:
        return spacing, (
            f"GPUs were sampled at different periods, {min(regular) / 1e9:g} to {slowest / 1e9:g} s: "
            f"the grid is {spacing:g} s"
        )
    return spacing, ""


def _exact_period(gpu: NDArray[np.int32], time_ns: Ints, step: Ints, usual: float) -> float:
    """`usual` distance in ns between samples made exact: a median of jittery steps would drift away from
    the samples over a long recording."""
    exact = usual
    for _ in range(4):
        periods = np.rint(step / exact)
        near = (periods >= 1) & (periods <= 10)
        if not near.any():
            break
        # Elapsed time over elapsed periods, missed samples counted: jitter cancels out.
        exact = float(step[near].sum()) / float(periods[near].sum())
    nice = max(1.0, round(exact / 1e9)) * 1e9
    in_step = abs(nice - exact) < 0.1 * exact and _in_step(gpu, time_ns, nice) > 0.5
    return nice if in_step else float(round(exact / 1_000) * 1_000)


def _in_step(gpu: NDArray[np.int32], time_ns: Ints, period_ns: float) -> float:
    """How well each GPU's samples keep one phase of a period: 1 is always the same, 0 anywhere."""
    angle = 2 * np.pi * np.mod(time_ns - time_ns.min(), period_ns) / period_ns
    count = int(gpu.max()) + 1
    strength = np.hypot(np.bincount(gpu, np.cos(angle), count), np.bincount(gpu, np.sin(angle), count))
    return float(strength.sum()) / len(gpu)


@dataclass(frozen=True, slots=True)
class _Grid:
    """Where each row goes."""

    start_ns: int
    shape: tuple[int, int]
    slot: Ints
    """[N]"""
    merged: int
    """Samples that share their slot with an earlier one."""
    kept: Ints | None = None
    """[instants] which step of the whole grid each is, where some are left out."""


def _windows(rows: Rows, period_s: float) -> _Grid:
    """The period that each row lies in, from its first moment to just before the next: for samples that
    come faster than the grid."""
    period_ns = round(period_s * 1e9)
    start_ns = int(rows.time_ns.min()) // 1_000_000_000 * 1_000_000_000
    slot = (rows.time_ns - start_ns) // period_ns
    same = (np.diff(slot) == 0) & (np.diff(rows.gpu) == 0)
    return _Grid(start_ns, (int(slot.max()) + 1, len(rows.gpus)), slot, int(np.count_nonzero(same)))


def _slots(rows: Rows, period_s: float) -> _Grid:
    """Nearest slot per row, each GPU by its own phase; `rows` are ordered by GPU and time."""
    period_ns = round(period_s * 1e9)
    anchor_ns = _anchor(rows, period_ns)
    offset = (rows.time_ns - anchor_ns).astype(np.float64)
    phase = _phases(rows.gpu, offset, period_ns, len(rows.gpus))
    slot = np.rint((offset - phase[rows.gpu]) / period_ns).astype(np.int64)
    least = int(slot.min())
    slot -= least
    same = (np.diff(slot) == 0) & (np.diff(rows.gpu) == 0)
    shape = (int(slot.max()) + 1, len(rows.gpus))
    return _Grid(anchor_ns + least * period_ns, shape, slot, int(np.count_nonzero(same)))


def _without_holes(grid: _Grid, period_s: float) -> _Grid:
    """`grid` without most instants of long holes, in which no GPU has a sample."""
    period_ns = round(period_s * 1e9)
    lead = max(round(HOLE_S / period_s), LEAST_IN_HOLE)
    taken = np.unique(grid.slot)
    after = np.flatnonzero(np.diff(taken) * period_ns > lead * period_ns + HOUR_NS)
    if not after.size or int(np.diff(taken)[after].max()) * period_ns > STRAY_NS:
        return grid
    parts, begin = [], 0
    for before, following in zip(taken[after].tolist(), taken[after + 1].tolist(), strict=True):
        first, last = before + lead + 1, following - BEFORE_NEXT
        parts.append(np.arange(begin, first))
        forgotten = max(first, before + round(FORGOTTEN_S / period_s))
        for each_ns, since, until in ((MINUTE_NS, first, forgotten), (HOUR_NS, forgotten, last)):
            edges = grid.start_ns + np.array([since, until]) * period_ns
            full = np.arange(*(edges // each_ns + 1)) * each_ns
            parts.append((full - grid.start_ns) // period_ns)
        begin = last
    kept = np.unique(np.concatenate([*parts, np.arange(begin, grid.shape[0])]))
    shape = (len(kept), grid.shape[1])
    return replace(grid, shape=shape, slot=np.searchsorted(kept, grid.slot), kept=kept)


def _anchor(rows: Rows, period_ns: int) -> int:
    """One instant of the grid: the first sample, moved onto the phase that samples have on the whole
    and to the full second where that is near."""
    first_ns = int(rows.time_ns.min())
    offset = (rows.time_ns - first_ns).astype(np.float64)
    everyone = np.zeros(len(offset), dtype=np.int32)
    anchor_ns = first_ns + round(float(_phases(everyone, offset, period_ns, 1)[0]))
    second_ns = round(anchor_ns, -9)
    return second_ns if abs(second_ns - anchor_ns) < 0.1 * period_ns else anchor_ns


def _phases(gpu: NDArray[np.int32], offset: Floats, period_ns: int, count: int) -> Floats:
    """Per group the distance of its samples from the grid, within half a period: the circular mean."""
    angle = 2 * np.pi * np.mod(offset, period_ns) / period_ns
    real = np.bincount(gpu, np.cos(angle), count)
    imaginary = np.bincount(gpu, np.sin(angle), count)
    strength = np.hypot(real, imaginary) / np.maximum(np.bincount(gpu, minlength=count), 1)
    phase = np.arctan2(imaginary, real) / (2 * np.pi) * period_ns
    # Samples that lie anywhere have no phase.
    return np.where(strength > 0.2, phase, 0.0)


def _check_size(rows: Rows, grid: _Grid, period_s: float) -> None:
    instants, gpus = grid.shape
    cells = instants * gpus * (len(rows.values) + 2)
    if cells > MAX_CELLS:
        first, last = (np.datetime64(int(at), "ns").astype("datetime64[s]") for at in _ends(rows))
        raise RecordingError(
            f"expected at most {MAX_CELLS:,} cells, came {cells:,}: {instants:,} instants of {period_s:g} s "
            f"from {first} to {last} x {gpus:,} GPUs x {len(rows.values)} fields; "
            "check for a stray time, give fewer files, or a longer --period"
        )


def _ends(rows: Rows) -> tuple[int, int]:
    return int(rows.time_ns.min()), int(rows.time_ns.max())


# Values


def _column(rows: Rows, name: str, grid: _Grid, notes: list[str]) -> Floats:
    """One field on the grid: mean of a gauge, last of a state, all bits of a mask, sum of increases."""
    spec = BY_NAME[name]
    values = rows.values.pop(name)
    if spec.kind == "counter":
        values = _increases(rows, name, values, notes)
    known = ~np.isnan(values)
    out = np.full(grid.shape, np.nan)
    at = grid.slot[known] * grid.shape[1] + rows.gpu[known]
    flat = out.reshape(-1)
    if spec.kind == "state" and spec.unit == "{bits}":
        bits = np.zeros(out.size, dtype=np.uint64)
        np.bitwise_or.at(bits, at, values[known].astype(np.uint64))
        flat[at] = bits[at].astype(np.float64)
    elif spec.kind == "state" or not grid.merged:
        flat[at] = values[known]
    else:
        total = np.bincount(at, values[known], out.size)
        count = np.bincount(at, minlength=out.size)
        seen = count > 0
        flat[seen] = total[seen] if spec.kind == "counter" else total[seen] / count[seen]
    return out


def _increases(rows: Rows, name: str, values: Floats, notes: list[str]) -> Floats:
    """A counter's rise since the GPU's last known value; NaN at the first and at a reset."""
    out = np.full(values.shape, np.nan)
    at = np.flatnonzero(~np.isnan(values))
    rise = np.diff(values[at])
    inside = np.diff(rows.gpu[at]) == 0
    reset = inside & (rise < 0)
    if reset.any():
        notes.append(f"{name}: {np.count_nonzero(reset)} counter resets, the increase there is unknown")
    jump = np.zeros_like(reset)
    if name == "energy_j":
        jump = inside & (rise > MAX_BOARD_W * np.diff(rows.time_ns[at]) / 1e9 + 1_000.0)
        if jump.any():
            notes.append(
                f"{name}: {np.count_nonzero(jump)} increases beyond {MAX_BOARD_W:g} W per GPU are unknown; "
                "is the column in J (DCGM's TOTAL_ENERGY_CONSUMPTION is in mJ)?"
            )
    out[at[1:]] = np.where(inside & ~reset & ~jump, rise, np.nan)
    return out


def _derive_memory(columns: dict[str, Floats], notes: list[str]) -> None:
    """Fill in memory_total_bytes from used + free (+ reserved), where it was not recorded."""
    if "memory_used_bytes" not in columns or "memory_free_bytes" not in columns:
        return
    total = columns["memory_used_bytes"] + columns["memory_free_bytes"]
    if (reserved := columns.get("memory_reserved_bytes")) is not None:
        total = total + np.nan_to_num(reserved)
    known = columns.get("memory_total_bytes")
    if known is None:
        notes.append("memory_total_bytes is memory_used_bytes + memory_free_bytes (+ reserved)")
    columns["memory_total_bytes"] = total if known is None else np.where(np.isnan(known), total, known)
