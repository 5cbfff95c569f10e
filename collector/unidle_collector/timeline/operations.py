"""The operations of a job, from a Parquet or CSV file.

One row is one operation of one rank in one training step. Columns: `dp_rank`, `stage` (pipeline stage),
`rank`, `step`, `optype` (see KINDS), `start_ts` (s, any origin per step), `duration` (s), and optionally
`mc` (model chunk) and `mb_id` (micro-batch). These are the columns of the traces of the repository
ByteDance-Seed/StragglerAnalysis.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from unidle_agent.errors import UnidleError, reason

COMPUTE = frozenset({"forward-compute", "backward-compute", "optimizer", "first-op"})
"""What a rank does by itself, and whose length is its own doing."""

LOCAL = COMPUTE | {"layernorm-grads-all-reduce", "gc"}
"""What waits for no other recorded rank; the layer norms are reduced within a rank's tensor-parallel group,
of which a timeline holds one."""

SENDS = {"forward-send": "forward-recv", "backward-send": "backward-recv"}
"""Kind of a send -> kind of its receive."""

TOGETHER = {
    "params-all-gather": "stage",
    "grads-reduce-scatter": "stage",
    "embedding-grads-all-reduce": "dp_rank",
    "optimizer-clip-main-grad": "all",
}
"""Collective -> the ranks that do it together: those of a stage, of a data-parallel rank, or all."""

KINDS = LOCAL | SENDS.keys() | set(SENDS.values()) | TOGETHER.keys()

SAME_INSTANT_S = 2e-5
"""Operations of a rank whose starts are no further apart are one call, a batched send and receive. Starts
are often kept as 32-bit floats, which are 4 us apart at a minute; the shortest operations seen take 30 us."""

NEEDED = ("dp_rank", "stage", "rank", "step", "optype", "start_ts", "duration")
MOST_ROWS = 50_000_000


class TimelineError(UnidleError):
    """The file is no timeline that can be replayed."""


@dataclass(frozen=True, slots=True)
class Operations:
    """The operations in the order of (step, rank, call, kind); each array has one entry per operation."""

    step: NDArray[np.int64]
    rank: NDArray[np.int64]
    """0, 1, ... without gaps."""
    dp_rank: NDArray[np.int64]
    stage: NDArray[np.int64]
    kind: NDArray[np.int64]
    """Index into `kinds`."""
    kinds: tuple[str, ...]
    start_s: NDArray[np.float64]
    end_s: NDArray[np.float64]
    begins: NDArray[np.bool_]
    """Whether the operation begins a call; the others of its call start at the same instant as it."""
    chunk: NDArray[np.int64]
    microbatch: NDArray[np.int64]
    """-1 where an operation is of none."""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.step)

    def of(self, *kinds: str) -> NDArray[np.bool_]:
        """Which operations are of one of these kinds."""
        return np.isin(self.kind, [index for index, name in enumerate(self.kinds) if name in kinds])


def read(path: Path) -> Operations:
    """The operations in a .parquet, .csv or .csv.gz file; raises TimelineError saying what is wrong."""
    try:
        is_csv = path.name.endswith((".csv", ".csv.gz"))
        table = pa_csv.read_csv(path) if is_csv else pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise TimelineError(
            f"{path}: expected a Parquet or CSV file with a timeline, came: {reason(error)}"
        ) from error
    try:
        return operations(table)
    except TimelineError as error:
        raise TimelineError(f"{path}: {error}. Columns found: {', '.join(table.column_names)}") from error


def operations(table: pa.Table) -> Operations:
    """The operations in a table; raises TimelineError saying what is wrong with it."""
    if missing := [name for name in NEEDED if name not in table.column_names]:
        raise TimelineError(f"expected the columns {', '.join(NEEDED)}; missing: {', '.join(missing)}")
    if not 0 < table.num_rows <= MOST_ROWS:
        raise TimelineError(f"expected 1 to {MOST_ROWS} operations, came {table.num_rows}")
    kinds, kind = _kinds(table["optype"])
    start_s, duration_s = _seconds(table, "start_ts"), _seconds(table, "duration")
    if (duration_s < 0).any():
        raise TimelineError("duration: expected seconds, came a negative number")
    columns = {name: _whole(table, name) for name in ("step", "rank", "dp_rank", "stage")}
    rank = np.unique(columns["rank"], return_inverse=True)[1]
    _one_place_per_rank(rank, columns)
    extra = {name: _optional(table, name) for name in ("mc", "mb_id")}
    # What takes no time and waits for nobody changes nothing, but its place in the order is chance.
    idle = (duration_s == 0) & np.isin(kind, [number for number, name in enumerate(kinds) if name in LOCAL])
    order = np.lexsort((start_s, rank, columns["step"]))
    order = order[~idle[order]]
    if not len(order):
        raise TimelineError("expected operations that take time, all durations are 0")
    begins = _begins(columns["step"][order], rank[order], start_s[order])
    order = order[np.lexsort((kind[order], np.cumsum(begins)))]
    return Operations(
        step=columns["step"][order],
        rank=rank[order],
        dp_rank=columns["dp_rank"][order],
        stage=columns["stage"][order],
        kind=kind[order],
        kinds=kinds,
        start_s=start_s[order],
        end_s=(start_s + duration_s)[order],
        begins=begins,
        chunk=extra["mc"][order],
        microbatch=extra["mb_id"][order],
        notes=_notes(kinds),
    )


def _begins(
    step: NDArray[np.int64], rank: NDArray[np.int64], start_s: NDArray[np.float64]
) -> NDArray[np.bool_]:
    same_rank = (np.diff(step, prepend=step[0] - 1) == 0) & (np.diff(rank, prepend=-1) == 0)
    return np.asarray(~(same_rank & (np.diff(start_s, prepend=-np.inf) < SAME_INSTANT_S)))


def _kinds(column: Any) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    text = column.cast(pa.string()).combine_chunks()
    if text.null_count:
        raise TimelineError("optype: expected the kind of every operation, some are missing")
    encoded = pc.dictionary_encode(text)
    return tuple(encoded.dictionary.to_pylist()), encoded.indices.to_numpy().astype(np.int64)


def _notes(kinds: tuple[str, ...]) -> tuple[str, ...]:
    unknown = sorted(set(kinds) - KINDS)
    if not unknown:
        return ()
    names = ", ".join(unknown)
    return (f"operations of the kinds {names} are not known: each was taken as waiting for no other rank",)


def _seconds(table: pa.Table, name: str) -> NDArray[np.float64]:
    try:
        values = table[name].cast(pa.float64()).to_numpy()
    except pa.ArrowException as error:
        raise TimelineError(f"{name}: expected seconds, came {table[name].type}") from error
    if not np.isfinite(values).all():
        raise TimelineError(f"{name}: expected seconds, some are missing or not finite")
    return np.asarray(values, dtype=np.float64)


def _whole(table: pa.Table, name: str) -> NDArray[np.int64]:
    try:
        column = table[name].cast(pa.int64())
    except pa.ArrowException as error:
        raise TimelineError(f"{name}: expected whole numbers, came {table[name].type}") from error
    if column.null_count:
        raise TimelineError(f"{name}: expected a whole number for every operation, some are missing")
    return np.asarray(column.to_numpy(), dtype=np.int64)


def _optional(table: pa.Table, name: str) -> NDArray[np.int64]:
    if name not in table.column_names:
        return np.full(table.num_rows, -1, dtype=np.int64)
    return _whole(table, name)


def _one_place_per_rank(rank: NDArray[np.int64], columns: dict[str, NDArray[np.int64]]) -> None:
    for name in ("dp_rank", "stage"):
        pairs = np.unique(np.stack([rank, columns[name]]), axis=1)
        if pairs.shape[1] != rank.max() + 1:
            raise TimelineError(f"expected one {name} per rank, some rank has several")
