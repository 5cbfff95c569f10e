"""What every format is read into before it is put on a grid, and what can be wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unidle_agent.errors import UnidleError
from unidle_collector.model import GpuRef

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
