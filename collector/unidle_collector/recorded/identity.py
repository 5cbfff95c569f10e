"""Which GPU of which node each row of a table is of."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from unidle_collector.model import GpuRef
from unidle_collector.recorded.cells import texts
from unidle_collector.recorded.columns import meaning, normal
from unidle_collector.recorded.names import RUNS, Role
from unidle_collector.recorded.rows import A_YEAR_NS, RecordingError

Roles = dict[Role, list[str]]
Texts = tuple[NDArray[np.int64], list[str]]
"""Per row an index into the distinct texts, -1 for none; and the texts."""

MAX_INDICES = 1_024
"""No node has as many GPUs."""
_OF_HOST = re.compile(r"(?!(?:gpu|cuda|device|card|rank)[:/])[a-z][^\s:/]*[:/]\d{1,3}", re.IGNORECASE)
_GPU_IN_NAME = re.compile(r"(?:^|[^a-zA-Z])(?:gpu|cuda|device|rank)[_.-]?(\d{1,3})(?!\d)", re.IGNORECASE)


def nodes_of(table: pa.Table, roles: Roles, node: str) -> tuple[NDArray[np.int64], list[str]]:
    """Per row an index into the names of nodes."""
    for name in roles["node"]:
        if meaning(name) is None:
            codes, names = texts(table[name])
            if names:
                return np.where(codes < 0, len(names), codes), [*names, node or "node"]
    return np.zeros(table.num_rows, dtype=np.int64), [node or "node"]


def gpus_of(
    table: pa.Table,
    roles: Roles,
    where: str,
    nodes: NDArray[np.int64],
    node_names: list[str],
    time_ns: NDArray[np.int64],
    notes: list[str],
) -> tuple[NDArray[np.int32], tuple[GpuRef, ...], NDArray[np.bool_]]:
    """Per row an index into the GPUs, the GPUs, and whether the row names one."""
    uuid = text_column(table, roles["uuid"])
    index = text_column(table, roles["gpu"])
    if index is not None and len(node_names) == 1 and all(_OF_HOST.fullmatch(text) for text in index[1]):
        nodes, node_names, index = _hosts(index)
    if uuid is not None and index is not None and len(index[1]) > MAX_INDICES:
        index = None  # a counter of rows, not of GPUs
    metric = roles["metric"][:1] if roles["value"] else []
    if uuid is None and index is None:
        instant = [nodes, time_ns, *(texts(table[name])[0] for name in metric)]
        uuid = None if _tells_apart(instant) else _one_each(table, roles, instant, notes)
        if uuid is None:
            return _only_gpu(where, nodes, node_names, instant, notes)
    instance = text_column(table, roles["instance"])
    model = text_column(table, [name for name in roles["model"] if name not in metric])
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


def runs_within(
    table: pa.Table,
    roles: Roles,
    gpu: NDArray[np.int32],
    gpus: tuple[GpuRef, ...],
    time_ns: NDArray[np.int64],
    notes: list[str],
) -> tuple[NDArray[np.int32], tuple[GpuRef, ...]]:
    """Per row an index into the GPUs, and these: where times begin at 0 and a column names runs (or jobs)
    that have the same GPU at the same time, each run has nodes of its own, named after node and run."""
    metric = [texts(table[name])[0] for name in roles["metric"][:1] if roles["value"]]
    instant = [gpu.astype(np.int64), time_ns, *metric]
    if not len(gpu) or time_ns.max() >= A_YEAR_NS or _tells_apart(instant):
        return gpu, gpus
    named = [name for name in table.column_names if normal(name) in RUNS]
    for name in (*named, *roles["job"]):
        codes, runs = texts(table[name])
        if len(runs) < 2 or not _tells_apart([*instant, codes]):
            continue
        pairs, place = np.unique(np.stack([codes, gpu], axis=1), axis=0, return_inverse=True)
        refs = [
            replace(gpus[at], node=f"{gpus[at].node}/{runs[run]}") if run >= 0 and at >= 0 else None
            for run, at in pairs.tolist()
        ]
        known = [ref for ref in refs if ref is not None]
        at_of = np.array([-1 if ref is None else known.index(ref) for ref in refs], dtype=np.int32)
        notes.append(f"the times begin at 0 in each {name!r}: taken as runs of their own")
        return at_of[place.reshape(-1)], tuple(known)
    return gpu, gpus


def text_column(table: pa.Table, names: list[str]) -> Texts | None:
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


def _hosts(index: Texts) -> tuple[NDArray[np.int64], list[str], Texts]:
    """`n1:3` -> node n1, GPU 3."""
    parts = [text.replace("/", ":").rpartition(":") for text in index[1]]
    hosts = list(dict.fromkeys(host for host, _, _ in parts))
    gpus = list(dict.fromkeys(gpu for _, _, gpu in parts))
    host = np.array([hosts.index(part[0]) for part in parts] + [-1], dtype=np.int64)
    gpu = np.array([gpus.index(part[2]) for part in parts] + [-1], dtype=np.int64)
    return host[index[0]], hosts, (gpu[index[0]], gpus)


def gpu_in_name(where: str) -> str:
    """The index of the GPU that a file is of, by its name; empty where it says none."""
    found = _GPU_IN_NAME.search(Path(where).name)
    return found.group(1) if found else ""


def _tells_apart(keys: list[NDArray[np.int64]]) -> bool:
    """Do these columns together tell all rows apart, but for a tenth that was written twice."""
    return len(np.unique(np.stack(keys, axis=1), axis=0)) >= 0.9 * len(keys[0])


def _one_each(
    table: pa.Table, roles: Roles, instant: list[NDArray[np.int64]], notes: list[str]
) -> Texts | None:
    """The column of jobs or pods that tells rows of one instant apart, as what is recorded of them has it."""
    for name in roles["job"]:
        found = text_column(table, [name])
        if found is not None and _tells_apart([*instant, found[0]]):
            notes.append(f"no column names the GPU: each {name!r} is taken as one")
            return found
    return None


def _only_gpu(
    where: str,
    nodes: NDArray[np.int64],
    node_names: list[str],
    instant: list[NDArray[np.int64]],
    notes: list[str],
) -> tuple[NDArray[np.int32], tuple[GpuRef, ...], NDArray[np.bool_]]:
    """No column names a GPU: right only if each node has one."""
    if not _tells_apart(instant):
        distinct = len(np.unique(np.stack(instant, axis=1), axis=0))
        raise RecordingError(
            "expected a column that names the GPU (gpu_uuid, uuid, gpu, gpu_index), came none, and "
            f"{len(nodes)} rows have only {distinct} different times per node: several GPUs? "
            "nvidia-smi: add index or uuid to --query-gpu"
        )
    gpu = gpu_in_name(where)
    notes.append(
        f"{where}: no column names the GPU: taken as GPU {gpu}, as the file is called"
        if gpu
        else "no column names the GPU: taken as one GPU per node"
    )
    gpu = gpu or "0"
    present = np.unique(nodes)
    place = np.zeros(len(node_names), dtype=np.int32)
    place[present] = np.arange(len(present))
    refs = tuple(GpuRef(node_names[at], gpu, int(gpu)) for at in present)
    return place[nodes], refs, np.ones(len(nodes), dtype=np.bool_)
