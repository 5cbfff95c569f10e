"""How often each value came, per job and field: mergeable, so p95 over a job's life is exact to its bins.

The bins are fixed and follow from the field: a ratio has one per point (0.01, or its resolution where that
is coarser), every other gauge 128 per power of two, each at most 0.8 % wide, and one for all below half its
resolution. Rows are counted in memory as log files become segments and leave it once an hour as a segment
of kind `jobs`; what a crash takes from memory is counted again from the row segments of that hour.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from unidle_agent.fields import GPU_FIELDS, Field
from unidle_collector.store.columns import NAME, arrow, flags, names, texts_of
from unidle_collector.store.rollup import Rolled
from unidle_collector.store.sheets import from_table, write_sheet

Bins = NDArray[np.int32]
FIELDS: tuple[Field, ...] = tuple(spec for spec in GPU_FIELDS if spec.kind == "gauge")
SCHEMA = pa.schema(
    [("job", NAME), ("field", NAME), ("bin", pa.int32()), ("count", pa.int64())],
    metadata={"unidle.format": "1"},
)
_DROPPED_BITS = 16  # of a float32: what is left is sign, exponent and 7 bits of the mantissa


@dataclass(frozen=True, slots=True)
class Quantile:
    """A quantile to the width of its bin, in base units: it is at least `low` and at most `high`."""

    low: float
    high: float
    samples: int
    """Rows of all GPUs of the job in which the field was known."""


def bins_of(spec: Field, values: NDArray[Any]) -> Bins:
    """The bin of each value; all must be finite."""
    if spec.unit == "1":
        return np.rint(values * np.float32(1 / _ratio_step(spec))).astype(np.int32)
    single = np.ascontiguousarray(values, np.float32)
    size = (single.view(np.int32) & 0x7FFFFFFF) >> _DROPPED_BITS
    size -= _first_bin(spec) - 1
    np.maximum(size, 0, out=size)
    return np.where(single < 0, -size, size) if single.size and single.min() < 0 else size


def bounds_of(spec: Field, number: int) -> tuple[float, float]:
    """The values between which bin `number` lies, in base units."""
    if spec.unit == "1":
        step = _ratio_step(spec)
        return (number - 0.5) * step, (number + 0.5) * step
    if number == 0:
        high = _edge(_first_bin(spec))
        return -high, high
    low, high = _edge(abs(number) + _first_bin(spec) - 1), _edge(abs(number) + _first_bin(spec))
    return (low, high) if number > 0 else (-high, -low)


class Histograms:
    """What was counted since the last segment of kind `jobs`; for one thread."""

    def __init__(self) -> None:
        self._jobs: dict[str, int] = {}
        self._counts: dict[str, tuple[int, NDArray[np.uint32]]] = {}
        """Field -> (bin of the first column, [jobs, bins])."""
        self.first = self.last = 0
        """Ids of the log files that are counted; 0 when none is."""

    def count(self, rows: Rolled, specs: Iterable[Field]) -> None:
        """Take sorted rows in; those of no job are left out."""
        of = rows.names["job"]
        number = np.array([self._job(text) for text in of.texts] + [-1], np.int64)[of.codes]
        if len(number) == 0 or number.max() < 0:
            return
        held = number >= 0
        every = bool(held.all())
        local, place = np.unique(number if every else number[held], return_inverse=True)
        for spec in specs:
            if spec.kind == "gauge":
                values = rows.values[spec.name]
                self._count(spec, values if every else values[held], local, place)

    def count_segment(self, path: Path) -> None:
        """Take all rows of a segment of kind `gpu` in, a row group at a time."""
        with pq.ParquetFile(path) as file:
            present = set(file.schema_arrow.names)
            specs = [spec for spec in FIELDS if spec.name in present]
            columns = ["time_ns", "node", "gpu", "job", "simulated", *(spec.name for spec in specs)]
            for group in range(file.num_row_groups):
                self.count(from_table(file.read_row_group(group, columns=columns), specs), specs)

    def add(self, other: Histograms) -> None:
        """Take in what `other` counted."""
        rows = np.array([self._job(name) for name in other._jobs], np.int64)
        for name, (low, counts) in other._counts.items():
            high = low + counts.shape[1]
            first, room = self._room(name, low, high)
            room[rows[: len(counts)], low - first : high - first] += counts

    def cells(self, job: str, field: str) -> list[tuple[int, int]]:
        """(bin, count) of one job and field."""
        first, counts = self._counts.get(field, (0, np.zeros((0, 0), np.uint32)))
        row = self._jobs.get(job, len(counts))
        if row >= len(counts):
            return []
        found = np.flatnonzero(counts[row])
        return list(zip((found + first).tolist(), counts[row][found].tolist(), strict=True))

    def covered(self, number: int) -> None:
        """Say that the log file of this id is in."""
        self.first, self.last = self.first or number, number

    def write(self, path: Path) -> Path:
        """Write all of it to `path`, by job, field and bin."""
        jobs, fields = sorted(self._jobs), sorted(self._counts)
        cells: list[tuple[NDArray[Any], ...]] = []
        for rank, name in enumerate(fields):
            first, counts = self._counts[name]
            row, column = np.nonzero(counts)
            cells.append((row, np.full(len(row), rank), column + first, counts[row, column]))
        nothing = (np.empty(0, np.int64),) * 4
        job, field, bins, count = (np.concatenate(column) for column in zip(nothing, *cells, strict=True))
        place = np.empty(len(jobs), np.int64)
        place[[self._jobs[name] for name in jobs]] = np.arange(len(jobs))
        return write_cells(path, jobs, fields, place[job], field, bins, count)

    def _job(self, name: str) -> int:
        return self._jobs.setdefault(name, len(self._jobs)) if name else -1

    def _count(self, spec: Field, values: NDArray[Any], jobs: NDArray[Any], place: NDArray[Any]) -> None:
        known = np.isfinite(values)
        if not known.all():
            values, place = values[known], place[known]
        if not len(values):
            return
        bins = bins_of(spec, values)
        low, high = int(bins.min()), int(bins.max()) + 1
        width = high - low
        if width == 1:
            found = np.bincount(place, minlength=len(jobs))[:, None]
        else:
            found = np.bincount(place * width + (bins - low), minlength=len(jobs) * width)
        first, counts = self._room(spec.name, low, high)
        counts[jobs, low - first : high - first] += found.reshape(len(jobs), width).astype(np.uint32)

    def _room(self, name: str, low: int, high: int) -> tuple[int, NDArray[np.uint32]]:
        """The counts of a field, with a row for every job and a column for low <= bin < high."""
        first, counts = self._counts.get(name, (low, np.zeros((0, 0), np.uint32)))
        end = first + counts.shape[1]
        if len(self._jobs) > len(counts) or low < first or high > end:
            wider = np.zeros((len(self._jobs), max(high, end) - min(low, first)), np.uint32)
            wider[: len(counts), first - min(low, first) :][:, : counts.shape[1]] = counts
            first, counts = min(low, first), wider
            self._counts[name] = first, counts
        return first, counts


def write_cells(
    path: Path,
    jobs: Sequence[str],
    fields: Sequence[str],
    job: NDArray[Any],
    field: NDArray[Any],
    bins: NDArray[Any],
    count: NDArray[Any],
) -> Path:
    """Write (job, field, bin, count), given by numbers into sorted `jobs` and `fields`, adding up doubles."""
    order = np.lexsort((bins, field, job))
    job, field, bins, count = job[order], field[order], bins[order], count[order]
    changes = (np.diff(job) != 0) | (np.diff(field) != 0) | (np.diff(bins) != 0)
    starts = np.concatenate(([0], np.flatnonzero(changes) + 1)) if len(job) else np.empty(0, np.int64)
    columns = [
        names(job[starts].astype(np.int32), jobs),
        names(field[starts].astype(np.int32), fields),
        arrow(pa.int32(), bins[starts].astype(np.int32)),
        arrow(pa.int64(), np.add.reduceat(count.astype(np.int64), starts) if len(starts) else count),
    ]
    table = pa.Table.from_arrays(columns, schema=SCHEMA)
    slices = (table.slice(begin, 65_536) for begin in range(0, max(1, table.num_rows), 65_536))
    return write_sheet(path, SCHEMA, slices)


def merge(files: Sequence[Path], path: Path) -> Path:
    """Write the histograms of several files to `path` as one."""
    table = pa.concat_tables([pq.ParquetFile(file).read() for file in files])
    columns: list[NDArray[Any]] = []
    texts: list[list[str]] = []
    for name in ("job", "field"):
        codes, found = texts_of(table.column(name))
        sorted_texts = sorted(found)
        rank = {text: number for number, text in enumerate(sorted_texts)}
        place = np.array([rank[text] for text in found] or [0], np.int64)
        columns.append(place[codes])
        texts.append(sorted_texts)
    bins, count = (table.column(name).combine_chunks() for name in ("bin", "count"))
    return write_cells(
        path,
        texts[0],
        texts[1],
        columns[0],
        columns[1],
        np.frombuffer(bins.buffers()[1], "<i4", len(bins), bins.offset * 4),
        np.frombuffer(count.buffers()[1], "<i8", len(count), count.offset * 8),
    )


def read_cells(file: Any, job: str, field: str) -> list[tuple[int, int]]:
    """(bin, count) of one job and field in an open file of histograms."""
    place = file.metadata.schema.names.index("job")
    groups = []
    for group in range(file.num_row_groups):
        statistics = file.metadata.row_group(group).column(place).statistics
        if statistics is None or not statistics.has_min_max or statistics.min <= job <= statistics.max:
            groups.append(group)
    if not groups:
        return []
    table = file.read_row_groups(groups, use_threads=False)
    wanted = np.ones(table.num_rows, bool)
    for name, text in (("job", job), ("field", field)):
        codes, texts = texts_of(table.column(name))
        wanted &= codes == (texts.index(text) if text in texts else -1)
    found = table.select(["bin", "count"]).filter(flags(wanted))
    return list(zip(found.column("bin").to_pylist(), found.column("count").to_pylist(), strict=True))


def quantile(spec: Field, counts: dict[int, int], share: float) -> Quantile | None:
    """The `share` quantile (0-1) of what `counts`, bin -> count, holds; None when that is nothing."""
    samples = sum(counts.values())
    if not samples:
        return None
    rank = max(1, int(np.ceil(share * samples)))
    reached = 0
    for number in sorted(counts):
        reached += counts[number]
        if reached >= rank:
            return Quantile(*bounds_of(spec, number), samples)
    raise AssertionError("the last bin reaches every rank")


def _ratio_step(spec: Field) -> float:
    return max(0.01, spec.resolution)


def _first_bin(spec: Field) -> int:
    """The bin, among those of all numbers, that half the field's resolution lies in."""
    return int(np.float32(spec.resolution / 2).view(np.int32)) >> _DROPPED_BITS


def _edge(number: int) -> float:
    return float(np.int32(number << _DROPPED_BITS).view(np.float32))
