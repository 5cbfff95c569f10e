"""What every format is read into before it is put on a grid, and what can be wrong with it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unidle_agent.errors import UnidleError
from unidle_collector.model import GpuRef

LONG_ID = 12
"""Names of GPUs from this length on are UUIDs: no two GPUs have the same."""
A_YEAR_NS = 366 * 86_400 * 10**9
"""Times before this count from the begin of the recording, not from 1970."""
NOT_SAID, NOBODY = -1, 0
"""Job indices with a meaning of their own, as in `Recording.job`."""


class RecordingError(UnidleError):
    """A recording cannot be read: says what was expected, what came, and what to do."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Samples as they were written, in any order: N rows, each of one GPU at one instant."""

    time_ns: NDArray[np.int64]
    """[N]"""
    gpu: NDArray[np.int32]
    """[N]: index into `gpus`."""
    gpus: tuple[GpuRef, ...]
    values: dict[str, NDArray[np.float64]]
    """Field -> [N] in base units; NaN is unknown; a counter as it was read, not yet differenced."""
    job: NDArray[np.int32]
    """[N]: index into `jobs`; 0 nobody, -1 not said."""
    jobs: tuple[str, ...]
    """`jobs[0]` is empty."""
    notes: tuple[str, ...]
    simulated: bool = False


def told_apart(parts: Sequence[tuple[Path, Rows]], unnamed: str) -> list[tuple[Path, Rows]]:
    """Each file with its rows. Where files that name no node say the same fields of GPUs with the same index
    at the same time, they are of several nodes: each is then named after its file."""
    silent = [at for at, (_, rows) in enumerate(parts) if all(ref.node == unnamed for ref in rows.gpus)]
    clash = any(_clash(parts[one][1], parts[other][1]) for one, other in pairwise_of(silent))
    out = list(parts)
    if not clash:
        return out
    names = _names([parts[at][0] for at in silent])
    for at, name in zip(silent, names, strict=True):
        path, rows = out[at]
        gpus = tuple(replace(ref, node=name) for ref in rows.gpus)
        note = f"{path}: names no node, and others have the same GPUs: taken as node {name}"
        out[at] = path, replace(rows, gpus=gpus, notes=(*rows.notes, note))
    return out


def runs_apart(parts: Sequence[tuple[Path, Rows]]) -> list[tuple[Path, Rows]]:
    """The same, where files whose times begin at 0 say the same fields of the same GPUs of one node: these
    are runs of different hours, and each gets a node of its own, named after node and file."""
    begun = [at for at, (_, rows) in enumerate(parts) if rows.time_ns.size and rows.time_ns.max() < A_YEAR_NS]
    if not any(_same_gpus(parts[one][1], parts[other][1]) for one, other in pairwise_of(begun)):
        return list(parts)
    names = dict(zip(begun, _names([parts[at][0] for at in begun]), strict=True))
    out = []
    for at, (path, rows) in enumerate(parts):
        if at in names:
            gpus = tuple(replace(ref, node=f"{ref.node}/{names[at]}") for ref in rows.gpus)
            note = f"{path}: its times begin at 0, as those of others with the same GPUs: a run of its own"
            rows = replace(rows, gpus=gpus, notes=(*rows.notes, note))
        out.append((path, rows))
    return out


def _same_gpus(one: Rows, other: Rows) -> bool:
    here, there = ({(ref.node, ref.gpu) for ref in rows.gpus} for rows in (one, other))
    return not here.isdisjoint(there) and _at_once(one, other)


def pairwise_of(places: list[int]) -> Iterator[tuple[int, int]]:
    """Neighbours, and the first with all others: enough to see files of a kind, few where they are many."""
    yield from pairwise(places)
    yield from ((places[0], other) for other in places[2:])


def _clash(one: Rows, other: Rows) -> bool:
    short = {ref.gpu for ref in one.gpus if len(ref.gpu) < LONG_ID}
    return not short.isdisjoint(ref.gpu for ref in other.gpus) and _at_once(one, other)


def _at_once(one: Rows, other: Rows) -> bool:
    """Do they say the same fields of the same time."""
    return (
        not one.values.keys().isdisjoint(other.values)
        and bool(one.time_ns.size and other.time_ns.size)
        and int(max(one.time_ns.min(), other.time_ns.min()))
        < int(min(one.time_ns.max(), other.time_ns.max()))
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """The names of the files, or where these are not enough those of their folders, too."""
    names = [path.name.split(".")[0] for path in paths]
    bare = [
        re.sub(r"[_.-]?(?:gpu|cuda|device|rank)[_.-]?\d{1,3}$", "", name, flags=re.IGNORECASE)
        for name in names
    ]
    if len(set(bare)) > 1 and all(bare):
        return bare
    return names if len(set(names)) == len(names) else ["/".join(path.parts[-2:]) for path in paths]


def joined(parts: Sequence[Rows]) -> Rows:
    """Rows of several files as one: the same GPU of the same node becomes one GPU."""
    if len(parts) == 1:
        return parts[0]
    gpus: dict[tuple[str, str], GpuRef] = {}
    jobs: dict[str, int] = {"": NOBODY}
    for part in parts:
        for ref in part.gpus:
            known = gpus.get((ref.node, ref.gpu))
            gpus[ref.node, ref.gpu] = ref if known is None else _fuller(known, ref)
        for name in part.jobs:
            jobs.setdefault(name, len(jobs))
    place = {key: at for at, key in enumerate(gpus)}
    names = sorted({name for part in parts for name in part.values})
    return Rows(
        time_ns=np.concatenate([part.time_ns for part in parts]),
        gpu=np.concatenate([_remap(part.gpu, [place[r.node, r.gpu] for r in part.gpus]) for part in parts]),
        gpus=tuple(gpus.values()),
        values={name: np.concatenate([_column(part, name) for part in parts]) for name in names},
        job=np.concatenate([_remap(part.job, [jobs[name] for name in part.jobs]) for part in parts]),
        jobs=tuple(jobs),
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
        simulated=any(part.simulated for part in parts),
    )


def _fuller(first: GpuRef, second: GpuRef) -> GpuRef:
    index = first.index if first.index is not None else second.index
    return GpuRef(first.node, first.gpu, index, first.model or second.model)


def _remap(values: NDArray[np.int32], table: list[int]) -> NDArray[np.int32]:
    """`values` through `table`; negative values stay."""
    if not table:
        return values
    mapped = np.asarray(table, dtype=np.int32)[np.maximum(values, 0)]
    return np.where(values < 0, values, mapped).astype(np.int32)


def _column(part: Rows, name: str) -> NDArray[np.float64]:
    found = part.values.get(name)
    return np.full(part.time_ns.shape, np.nan) if found is None else found
