"""From an Arrow table, wide or long, to rows.

Wide: one row per GPU and instant, a column per field. Long: one row per GPU, instant and field, with
the columns `metric` and `value`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from unidle_agent.fields import BY_NAME
from unidle_collector.recorded.cells import numbers, texts
from unidle_collector.recorded.columns import (
    Meaning,
    meaning,
    nearest,
    normal,
    role_columns,
    without_unit,
)
from unidle_collector.recorded.identity import Roles, Texts, gpus_of, nodes_of, runs_within, text_column
from unidle_collector.recorded.names import MEMORY_SHARE, ROLES, SM_OR_UTIL
from unidle_collector.recorded.rows import NOBODY, NOT_SAID, RecordingError, Rows
from unidle_collector.recorded.times import NOT_A_TIME, of_day, times
from unidle_collector.recorded.totals import rates_of_totals
from unidle_collector.recorded.unpivot import UNNAMED, by_gpu

ASSUMED_MEMORY_BYTES = 80.0 * 2**30
"""Of a GPU of which only the share in use is known: it decides whether memory is held at all."""
MAX_NAMED = 40
"""Columns that are named in a message."""


def rows_of_table(table: pa.Table, where: str, node: str) -> Rows:
    """Rows of `table`; `where` names it in messages, `node` is the node where no column says one.

    Raises RecordingError: no rows, no time column, no known field, several GPUs but no GPU column,
    values that contradict the unit of their column.
    """
    table = _unique_names(table)
    try:
        return _rows(table, where, node)
    except RecordingError as error:
        found = ", ".join(table.column_names[:MAX_NAMED]) or "none"
        found += (
            f" and {len(table.column_names) - MAX_NAMED} more" if len(table.column_names) > MAX_NAMED else ""
        )
        raise RecordingError(f"{where}: {error}. Columns found: {found}") from error


def _rows(table: pa.Table, where: str, node: str) -> Rows:
    if table.num_rows == 0:
        raise RecordingError("expected samples, came a table without rows")
    notes: list[str] = []
    table = by_gpu(table, where, notes)
    roles = role_columns(table.column_names)
    time_column, time_ns = _times(table, roles, notes)
    keep = time_ns != NOT_A_TIME
    if not keep.all():
        notes.append(f"{np.count_nonzero(~keep)} rows without a time in {time_column!r} were left out")
    nodes, node_names = nodes_of(table, roles, node)
    keep &= nodes >= 0
    gpu, gpus, known = gpus_of(table, roles, where, nodes, node_names, time_ns, notes)
    gpu, gpus = runs_within(table, roles, gpu, gpus, time_ns, notes)
    known &= gpu >= 0
    if not (keep & known).all():
        lost = np.count_nonzero(keep & ~known)
        notes += [f"{lost} rows that name no GPU were left out"] if lost else []
        keep &= known
    job, jobs = _jobs(table, roles, notes)
    totals: set[str] = set()
    if roles["metric"] and roles["value"]:
        values, keep = _long_values(table, roles, keep, gpu, time_ns, notes, totals)
    else:
        wide = _wide_values(table.drop_columns([time_column]), roles, notes, totals)
        values = wide if keep.all() else {name: wide.pop(name)[keep] for name in list(wide)}
    _bytes_of_share(values, notes)
    rates_of_totals(values, gpu[keep], time_ns[keep], totals, notes)
    if not values:
        raise RecordingError(
            "expected at least one column with a known field (gpu_util_ratio, power_w, DCGM_FI_DEV_GPU_UTIL, "
            f"utilization.gpu [%], ...), came none; {'; '.join(notes)}"
        )
    return Rows(
        time_ns=time_ns[keep],
        gpu=gpu[keep],
        gpus=gpus,
        values=values,
        job=job[keep],
        jobs=jobs,
        notes=tuple(notes),
        simulated=_simulated(table, roles),
    )


def _times(table: pa.Table, roles: Roles, notes: list[str]) -> tuple[str, NDArray[np.int64]]:
    """The column with the time, the first that holds times, and nanoseconds per row."""
    wrong = None
    by_name = {normal(name): name for name in reversed(table.column_names)}
    if {"date", "time"} <= by_name.keys() and of_day(table[by_name["time"]]):
        day, clock = (table[by_name[name]].cast(pa.string()) for name in ("date", "time"))
        return by_name["time"], times(pc.binary_join_element_wise(day, clock, " "), by_name["time"], notes)
    below = [name for role in ROLES["time"] for name in table.column_names if name.endswith(f"/{role}")]
    for name in (*roles["time"], *below):
        try:
            return name, times(table[name], name, notes)
        except RecordingError as error:
            wrong = wrong or error
    for name in table.column_names:  # an index that a frame was written with
        kind = table.schema.field(name).type
        if pa.types.is_timestamp(kind) or (name in UNNAMED and not pa.types.is_integer(kind)):
            try:
                found = times(table[name], name, notes)
            except RecordingError:
                continue
            notes.append(f"column {name!r} was taken as the time: no other is named so")
            return name, found
    raise wrong or RecordingError(
        "expected a column with the time (time, timestamp, ts, time_ns, ...), came none: name it time"
    )


def _unique_names(table: pa.Table) -> pa.Table:
    """Names stripped of the blanks that `, ` leaves, and made unique: the second `x` is `x (2)`."""
    seen: dict[str, int] = {}
    names = []
    for raw in table.column_names:
        name = raw.strip().lstrip("#").strip().removeprefix("\ufeff")
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return table.rename_columns(names)


def _jobs(table: pa.Table, roles: Roles, notes: list[str]) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """Per row an index into the jobs; the first column that names jobs counts."""
    for name in roles["job"]:
        codes, names = texts(table[name])
        if names and all("exporter" in text or "dcgm" in text.lower() for text in names):
            # In what Prometheus exports, `job` is the scrape, not the workload.
            notes.append(f"column {name!r} names the scrape ({names[0]}), not a job: not used")
            continue
        space = text_column(table, roles["namespace"]) if "pod" in name.lower() else None
        if space is not None:
            return _pods(codes, names, space)
        none = {"0"} if name.lower() in ("hpc_job", "slurm_job_id", "slurm_jobid") else {"-1"}
        jobs = [text for text in names if text not in none]
        place = np.array([jobs.index(text) + 1 if text not in none else NOBODY for text in names] + [NOBODY])
        return place[codes].astype(np.int32), ("", *jobs)
    return np.full(table.num_rows, NOT_SAID, dtype=np.int32), ("",)


def _pods(
    codes: NDArray[np.int64], names: list[str], space: Texts
) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """Jobs named namespace/pod."""
    pairs, inverse = np.unique(np.stack([space[0], codes], axis=1), axis=0, return_inverse=True)
    jobs: dict[str, int] = {"": NOBODY}
    place = []
    for inside, pod in pairs:
        text = "" if pod < 0 else f"{space[1][inside]}/{names[pod]}" if inside >= 0 else names[pod]
        place.append(jobs.setdefault(text, len(jobs)))
    return np.asarray(place, dtype=np.int32)[inverse.reshape(-1)], tuple(jobs)


def _wide_values(
    table: pa.Table, roles: Roles, notes: list[str], totals: set[str]
) -> dict[str, NDArray[np.float64]]:
    """Field -> column in base units. A field that several columns give is taken from the best, which
    fills from the others what it does not know. `totals` takes the rates of which the total is given."""
    used = {names[0] for role, names in roles.items() if names and role not in ("metric", "value")}
    named = {name for names in roles.values() for name in names}
    found: dict[str, list[tuple[int, str, NDArray[np.float64]]]] = {}
    meant = meanings(table.column_names, notes)
    for name, means in meant.items():
        if means is None:
            if (
                name not in named
                and name not in used
                and not pa.types.is_nested(table.schema.field(name).type)
            ):
                notes.append(f"column {name!r} is no known field: not used{_hint(name)}")
            continue
        column = numbers(table[name], name, means, notes)
        if column is not None:
            rank = 3 if means.total else 0 if means.own else 1 if means.unit_told else 2
            found.setdefault(means.field.name, []).append((rank, name, column))
    out = {}
    for field, columns in found.items():
        columns.sort(key=lambda item: item[0])
        best = columns[0][2]
        if columns[0][0] == 3:
            totals.add(field)
        elif columns[-1][0] == 3:
            columns = [column for column in columns if column[0] < 3]
        if len(columns) > 1:
            notes.append(f"{field} is given by {', '.join(item[1] for item in columns)}: the first counts")
            for _, _, other in columns[1:]:
                best = np.where(np.isnan(best), other, best)
        out[field] = best
    return out


def meanings(names: list[str], notes: list[str]) -> dict[str, Meaning | None]:
    """What each column carries. "SM" that stands alone is GPU utilization (see SM_OR_UTIL)."""
    out = {name: meaning(name) for name in names}
    given = {means.field.name for means in out.values() if means is not None}
    if given.isdisjoint(
        ("gpu_util_ratio", "graphics_active_ratio", "tensor_active_ratio", "dram_active_ratio")
    ):
        for name in names:
            means = out[name]
            if means is not None and without_unit(name) in SM_OR_UTIL:
                out[name] = replace(means, field=BY_NAME["gpu_util_ratio"])
                notes.append(
                    f"column {name!r} is read as GPU utilization, as nvidia-smi calls it, for want of other "
                    "counters beside it; if it is SM activity, name it sm_active_ratio"
                )
    return out


def _bytes_of_share(values: dict[str, NDArray[np.float64]], notes: list[str]) -> None:
    """The share of memory in use as bytes, where these were not recorded."""
    share = values.pop(MEMORY_SHARE.name, None)
    if share is None or "memory_used_bytes" in values:
        return
    total = values.get("memory_total_bytes")
    if total is None:
        total = np.full(share.shape, ASSUMED_MEMORY_BYTES)
        notes.append(
            "memory in use was recorded as a share of a size that nothing says: bytes are as of "
            f"{ASSUMED_MEMORY_BYTES / 2**30:.0f} GiB; a column memory_total_bytes makes them right"
        )
    values["memory_used_bytes"] = share * total


def _hint(name: str) -> str:
    near = nearest(name)
    return f" (did you mean {near}?)" if near else ""


def _long_values(
    table: pa.Table,
    roles: Roles,
    keep: NDArray[np.bool_],
    gpu: NDArray[np.int32],
    time_ns: NDArray[np.int64],
    notes: list[str],
    totals: set[str],
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.bool_]]:
    """Field -> values per GPU and instant, and the one row of each that stands for it."""
    metric, value = roles["metric"][0], roles["value"][0]
    codes, names = texts(table[metric])
    pieces: list[tuple[str, NDArray[np.bool_], NDArray[np.float64]]] = []
    for at, (name, means) in enumerate(meanings(names, notes).items()):
        if means is None:
            notes.append(f"metric {name!r} is no known field: not used{_hint(name)}")
            continue
        mine = (codes == at) & keep
        column = numbers(table[value].filter(pa.array(mine)), name, means, notes)
        if column is not None:
            pieces.append((means.field.name, mine, column))
            totals |= {means.field.name} if means.total else set()
    useful = np.any([mine for _, mine, _ in pieces], axis=0) if pieces else np.zeros_like(keep)
    rows = np.flatnonzero(useful)
    keys = np.stack([gpu[rows].astype(np.int64), time_ns[rows]], axis=1)
    _, first, place = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    slot = np.zeros(table.num_rows, dtype=np.int64)
    slot[rows] = place.reshape(-1)
    out: dict[str, NDArray[np.float64]] = {}
    for field, mine, column in pieces:
        full = out.setdefault(field, np.full(len(first), np.nan))
        known = np.isfinite(column)
        full[slot[np.flatnonzero(mine)[known]]] = column[known]
    chosen = np.zeros_like(keep)
    chosen[rows[first]] = True
    # `chosen` picks rows in table order, the columns are in order of (gpu, time): bring them together.
    order = np.argsort(rows[first], kind="stable")
    return {field: column[order] for field, column in out.items()}, chosen


def _simulated(table: pa.Table, roles: Roles) -> bool:
    """Does the recording say of itself that it is simulated."""
    if (table.schema.metadata or {}).get(b"simulated", b"").lower() in (b"1", b"true"):
        return True
    return any(
        text.lower() in ("1", "true", "yes") for name in roles["simulated"] for text in texts(table[name])[1]
    )
