"""From an Arrow table, wide or long, to rows.

Wide: one row per GPU and instant, a column per field. Long: one row per GPU, instant and field, with
the columns `metric` and `value`.
"""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from unidle_collector.model import GpuRef
from unidle_collector.recorded.cells import numbers, texts
from unidle_collector.recorded.columns import Role, meaning, nearest, role_columns
from unidle_collector.recorded.rows import NOBODY, NOT_SAID, RecordingError, Rows
from unidle_collector.recorded.times import NOT_A_TIME, times

Roles = dict[Role, list[str]]
Texts = tuple[NDArray[np.int64], list[str]]
"""Per row an index into the distinct texts, -1 for none; and the texts."""

MAX_INDICES = 1_024
"""No node has as many GPUs."""


def rows_of_table(table: pa.Table, where: str, node: str) -> Rows:
    """Rows of `table`; `where` names it in messages, `node` is the node where no column says one.

    Raises RecordingError: no rows, no time column, no known field, several GPUs but no GPU column,
    values that contradict the unit of their column.
    """
    table = _unique_names(table)
    try:
        return _rows(table, node)
    except RecordingError as error:
        found = ", ".join(table.column_names) or "none"
        raise RecordingError(f"{where}: {error}. Columns found: {found}") from error


def _rows(table: pa.Table, node: str) -> Rows:
    if table.num_rows == 0:
        raise RecordingError("expected samples, came a table without rows")
    notes: list[str] = []
    roles = role_columns(table.column_names)
    if not roles["time"]:
        raise RecordingError(
            "expected a column with the time (time, timestamp, ts, time_ns, ...), came none: name it time"
        )
    time_column = roles["time"][0]
    time_ns = times(table[time_column], time_column, notes)
    keep = time_ns != NOT_A_TIME
    if not keep.all():
        notes.append(f"{np.count_nonzero(~keep)} rows without a time in {time_column!r} were left out")
    nodes, node_names = _nodes(table, roles, node)
    keep &= nodes >= 0
    gpu, gpus, known = _gpus(table, roles, nodes, node_names, time_ns, notes)
    if not (keep & known).all():
        lost = np.count_nonzero(keep & ~known)
        notes += [f"{lost} rows that name no GPU were left out"] if lost else []
        keep &= known
    job, jobs = _jobs(table, roles, notes)
    if roles["metric"] and roles["value"]:
        values, keep = _long_values(table, roles, keep, gpu, time_ns, notes)
    else:
        wide = _wide_values(table, roles, notes)
        values = {name: column[keep] for name, column in wide.items()}
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


def _unique_names(table: pa.Table) -> pa.Table:
    """Names stripped of the blanks that `, ` leaves, and made unique: the second `x` is `x (2)`."""
    seen: dict[str, int] = {}
    names = []
    for raw in table.column_names:
        name = raw.strip().lstrip("#").strip().removeprefix("\ufeff")
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return table.rename_columns(names)


def _nodes(table: pa.Table, roles: Roles, node: str) -> tuple[NDArray[np.int64], list[str]]:
    """Per row an index into the names of nodes."""
    for name in roles["node"]:
        if meaning(name) is None:
            codes, names = texts(table[name])
            if names:
                return np.where(codes < 0, len(names), codes), [*names, node or "node"]
    return np.zeros(table.num_rows, dtype=np.int64), [node or "node"]


def _gpus(
    table: pa.Table,
    roles: Roles,
    nodes: NDArray[np.int64],
    node_names: list[str],
    time_ns: NDArray[np.int64],
    notes: list[str],
) -> tuple[NDArray[np.int32], tuple[GpuRef, ...], NDArray[np.bool_]]:
    """Per row an index into the GPUs, the GPUs, and whether the row names one."""
    uuid = _text_column(table, roles["uuid"])
    index = _text_column(table, roles["gpu"])
    if uuid is not None and index is not None and len(index[1]) > MAX_INDICES:
        index = None  # a counter of rows, not of GPUs
    if uuid is None and index is None:
        return _only_gpu(roles, nodes, node_names, time_ns, notes)
    instance = _text_column(table, roles["instance"])
    metric = roles["metric"][:1] if roles["value"] else []
    model = _text_column(table, [name for name in roles["model"] if name not in metric])
    parts = [nodes, *(codes for codes, _ in (part for part in (uuid, index, instance, model) if part))]
    # Identity by whole combinations: far fewer than rows.
    combos, inverse = np.unique(np.stack(parts, axis=1), axis=0, return_inverse=True)
    place: dict[tuple[str, str], int] = {}
    refs: list[GpuRef] = []
    table_of_places = []
    for combo in combos:
        codes = list(combo[1:])
        named = [_named(part, codes) for part in (uuid, index, instance, model)]
        ref = _ref(node_names[combo[0]], *named)
        if ref is None:
            table_of_places.append(-1)
            continue
        at = place.setdefault((ref.node, ref.gpu), len(refs))
        if at == len(refs):
            refs.append(ref)
        table_of_places.append(at)
    gpu = np.asarray(table_of_places, dtype=np.int32)[inverse.reshape(-1)]
    return gpu, tuple(refs), gpu >= 0


def _text_column(table: pa.Table, names: list[str]) -> Texts | None:
    """The first of `names` that is a column with text in it and carries no field."""
    for name in names:
        if meaning(name) is None:
            found = texts(table[name])
            if found[1]:
                return found
    return None


def _named(part: Texts | None, codes: list[int]) -> str:
    """Take the next code for `part` and give its text; empty where there is none."""
    if part is None:
        return ""
    code = codes.pop(0)
    return part[1][code] if code >= 0 else ""


def _ref(node: str, uuid: str, index: str, instance: str, model: str) -> GpuRef | None:
    gpu = uuid or index
    if not gpu:
        return None
    if instance:
        gpu += f"/GI{instance}"
    digits = re.search(r"(\d+)$", index)
    short = digits and (len(index) < 12 and not index.startswith(("GPU-", "MIG-")))
    return GpuRef(node, gpu, int(digits.group(1)) if digits and short else None, model)


def _only_gpu(
    roles: Roles,
    nodes: NDArray[np.int64],
    node_names: list[str],
    time_ns: NDArray[np.int64],
    notes: list[str],
) -> tuple[NDArray[np.int32], tuple[GpuRef, ...], NDArray[np.bool_]]:
    """No column names a GPU: right only if each node has one."""
    keys = np.stack([nodes, time_ns], axis=1)
    distinct = len(np.unique(keys, axis=0))
    if distinct < 0.9 * len(keys) and not roles["value"]:
        raise RecordingError(
            "expected a column that names the GPU (gpu_uuid, uuid, gpu, gpu_index), came none, and "
            f"{len(keys)} rows have only {distinct} different times per node: several GPUs?"
        )
    notes.append("no column names the GPU: taken as one GPU per node")
    present = np.unique(nodes)
    place = np.zeros(len(node_names), dtype=np.int32)
    place[present] = np.arange(len(present))
    refs = tuple(GpuRef(node_names[at], "0", 0) for at in present)
    return place[nodes], refs, np.ones(len(nodes), dtype=np.bool_)


def _jobs(table: pa.Table, roles: Roles, notes: list[str]) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """Per row an index into the jobs; the first column that names jobs counts."""
    for name in roles["job"]:
        codes, names = texts(table[name])
        if names and all("exporter" in text or "dcgm" in text.lower() for text in names):
            # In what Prometheus exports, `job` is the scrape, not the workload.
            notes.append(f"column {name!r} names the scrape ({names[0]}), not a job: not used")
            continue
        space = _text_column(table, roles["namespace"]) if "pod" in name.lower() else None
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


def _wide_values(table: pa.Table, roles: Roles, notes: list[str]) -> dict[str, NDArray[np.float64]]:
    """Field -> column in base units. A field that several columns give is taken from the best, which
    fills from the others what it does not know."""
    used = {names[0] for role, names in roles.items() if names and role not in ("metric", "value")}
    named = {name for names in roles.values() for name in names}
    found: dict[str, list[tuple[int, str, NDArray[np.float64]]]] = {}
    for name in table.column_names:
        means = meaning(name)
        if means is None:
            if name not in named and name not in used:
                notes.append(f"column {name!r} is no known field: not used{_hint(name)}")
            continue
        column = numbers(table[name], name, means, notes)
        if column is not None:
            rank = 0 if means.own else 1 if means.unit_told else 2
            found.setdefault(means.field.name, []).append((rank, name, column))
    out = {}
    for field, columns in found.items():
        columns.sort(key=lambda item: item[0])
        best = columns[0][2]
        if len(columns) > 1:
            notes.append(f"{field} is given by {', '.join(item[1] for item in columns)}: the first counts")
            for _, _, other in columns[1:]:
                best = np.where(np.isnan(best), other, best)
        out[field] = best
    return out


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
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.bool_]]:
    """Field -> values per GPU and instant, and the one row of each that stands for it."""
    metric, value = roles["metric"][0], roles["value"][0]
    codes, names = texts(table[metric])
    pieces: list[tuple[str, NDArray[np.bool_], NDArray[np.float64]]] = []
    for at, name in enumerate(names):
        means = meaning(name)
        if means is None:
            notes.append(f"metric {name!r} is no known field: not used{_hint(name)}")
            continue
        mine = (codes == at) & keep
        column = numbers(table[value].filter(pa.array(mine)), name, means, notes)
        if column is not None:
            pieces.append((means.field.name, mine, column))
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
