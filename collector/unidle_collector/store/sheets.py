"""Write sorted rows and roll-ups as Parquet, a row group at a time, and read roll-ups back."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unidle_agent.fields import FIELDS, UNKNOWN_U8, Field
from unidle_collector.store.columns import (
    DTYPES,
    KEYS,
    arrow,
    flags,
    names,
    schema,
    texts_of,
    to_arrow,
    to_numpy,
    write_options,
)
from unidle_collector.store.rollup import Names, Rolled, mean_step, parts

RAW_KEYS = ("time_ns", "node", "gpu", "job", "simulated")
HOST_KEYS = ("time_ns", "node", "simulated")
FLEET_KEYS = ("time_ns", "simulated")
ROLLED_KEYS = ("first_ns", "last_ns", "rows", "span_ns")
GROUP_ROWS = 65_536
UNKNOWN = np.uint64(UNKNOWN_U8)


class Sheet:
    """A Parquet file that is being written under a temporary name; `close` syncs it.

    Small tables are put together until they are GROUP_ROWS long; a sheet of one such table is written
    without the columns that say nothing. Leaves nothing behind when it fails.
    """

    def __init__(self, path: Path, table_schema: Any, *, group_rows: int = GROUP_ROWS) -> None:
        self.path, self._schema, self._group_rows = path, table_schema, group_rows
        self._waiting: list[Any] = []
        self._writer: Any = None

    def __enter__(self) -> Sheet:
        return self

    def write(self, table: Any) -> None:
        """Add rows of the sheet's schema."""
        self._waiting.append(table)
        if sum(part.num_rows for part in self._waiting) >= self._group_rows:
            self._flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush(last=True)
                if self._writer is None:
                    self._open(self._schema)
            if self._writer is not None:
                self._writer.close()
            if kind is None:
                with self.path.open("rb") as file:
                    os.fsync(file.fileno())
        except BaseException:
            self._remove()
            raise
        if kind is not None:
            self._remove()

    def _flush(self, *, last: bool = False) -> None:
        if not self._waiting:
            return
        table = self._waiting[0] if len(self._waiting) == 1 else pa.concat_tables(self._waiting)
        if self._writer is None:
            if last and table.num_rows:
                table = table.select([name for name in table.column_names if _says_something(table, name)])
            self._open(table.schema)
        if table.num_rows:
            self._writer.write_table(table, row_group_size=table.num_rows)
        self._waiting = []

    def _open(self, table_schema: Any) -> None:
        self._writer = pq.ParquetWriter(self.path, table_schema, **write_options(table_schema))

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)


def _says_something(table: Any, name: str) -> bool:
    return name in KEYS or table.column(name).null_count < table.num_rows


def write_sheet(path: Path, table_schema: Any, tables: Iterable[Any], group_rows: int = GROUP_ROWS) -> Path:
    """Write `tables` to `path`."""
    with Sheet(path, table_schema, group_rows=group_rows) as sheet:
        for table in tables:
            sheet.write(table)
    return path


def rolled_schema(keys: Sequence[str], specs: Iterable[Field]) -> Any:
    """The schema of roll-ups of `specs`, all columns that they can have."""
    fleet = "node" not in keys
    return schema((*keys, *ROLLED_KEYS), [part for spec in specs for part in kept_parts(spec, fleet)])


def kept_parts(spec: Field, fleet: bool) -> tuple[Field, ...]:
    """The columns of a roll-up of `spec`: of a GPU or host, or of the whole fleet."""
    if not fleet or spec.kind == "gauge":
        return parts(spec)
    return (parts(spec)[2],) if spec.kind == "counter" else ()


def to_table(rolled: Rolled, table_schema: Any, specs: Iterable[Field]) -> Any:
    """Roll-ups, or rows, as a table of `table_schema`."""
    size = len(rolled.time_ns)
    columns: dict[str, Any] = {
        "time_ns": arrow(pa.int64(), rolled.time_ns),
        "first_ns": arrow(pa.int64(), rolled.first_ns),
        "last_ns": arrow(pa.int64(), rolled.last_ns),
        "rows": arrow(pa.int64(), rolled.rows),
        "span_ns": arrow(pa.int64(), rolled.span_ns),
        "simulated": flags(rolled.simulated),
    }
    columns |= {name: names(of.codes, of.texts) for name, of in rolled.names.items()}
    wanted = set(table_schema.names)
    rolled_up = "rows" in wanted
    for spec in specs:
        for part in parts(spec) if rolled_up else (spec,):
            if part.name not in wanted:
                continue
            values = rolled.values.get(part.name)
            if values is None:
                continue
            if rolled_up and part is spec and spec.kind == "gauge" and spec.resolution >= 1:
                step = mean_step(spec)
                values = np.rint(values / step) * step
            elif rolled_up and part.name == f"{spec.name}.first" and spec.name in rolled.values:
                values = _told(rolled.values, spec)
            columns[part.name] = to_arrow(part, values)
    arrays = [
        columns[field.name] if field.name in columns else pa.nulls(size, field.type) for field in table_schema
    ]
    return pa.Table.from_arrays(arrays, schema=table_schema)


def from_table(table: Any, specs: Sequence[Field]) -> Rolled:
    """What `to_table` wrote of roll-ups or rows, as far as `table` has it; in the table's order."""
    size, place = table.num_rows, {name: number for number, name in enumerate(table.column_names)}
    time_ns = _whole(table, "time_ns")
    texts = {name: _names(table.column(name)) for name in ("node", "gpu", "job") if name in place}
    series = np.zeros(size, np.int64)
    for name in ("node", "gpu"):
        if name in texts:
            series = series * (len(texts[name].texts) + 1) + texts[name].places()
    rolled_up = "rows" in place
    rows = _whole(table, "rows") if rolled_up else np.ones(size, np.int64)
    values: dict[str, Any] = {}
    for spec in specs:
        for part in parts(spec):
            if part.name in place:
                values[part.name] = to_numpy(part, table.column(place[part.name]))
        if spec.kind == "gauge":
            _complete(values, spec, rows, rolled_up)
        elif spec.kind == "counter" and spec.name in values and rolled_up:
            _tell(values, spec)
    simulated = table.column("simulated").combine_chunks()
    bits = np.unpackbits(np.frombuffer(simulated.buffers()[1], np.uint8), bitorder="little")
    return Rolled(
        time_ns=time_ns,
        first_ns=_whole(table, "first_ns") if rolled_up else time_ns,
        last_ns=_whole(table, "last_ns") if rolled_up else time_ns,
        rows=rows,
        span_ns=_whole(table, "span_ns") if rolled_up else np.zeros(size, np.int64),
        series=series,
        names=texts,
        simulated=bits[simulated.offset : simulated.offset + size].astype(bool),
        values=values,
    )


def ordered_parts(of: Rolled) -> Rolled:
    """`of` sorted by GPU and first instant."""
    return of.take(np.lexsort((of.first_ns, of.series)))


def aligned(table: Any, table_schema: Any) -> Any:
    """`table` with the columns of `table_schema`, null where it lacks one."""
    present = set(table.column_names)
    columns = [
        _as(table.column(field.name), field.type)
        if field.name in present
        else pa.nulls(table.num_rows, field.type)
        for field in table_schema
    ]
    return pa.Table.from_arrays(columns, schema=table_schema)


def _as(column: Any, kind: Any) -> Any:
    """A cast copies, and loads all of Arrow's functions."""
    return column if column.type == kind else column.cast(kind, safe=False)


def merged_schema(schemas: Sequence[Any]) -> Any:
    """Every column that any of the files has: known ones as this version keeps them, others as they are."""
    columns = {field.name: field for table_schema in schemas for field in table_schema}
    keys = [name for name in KEYS if name in columns]
    known = {part.name: part for spec in FIELDS for part in parts(spec)}
    target = schema(keys, [part for name, part in known.items() if name in columns])
    for name in columns.keys() - set(target.names):
        target = target.append(columns[name])
    return target


def _complete(values: dict[str, Any], spec: Field, rows: Any, rolled_up: bool) -> None:
    """Give a gauge the `.count` that is left out where it is the number of rows."""
    if spec.name not in values:
        return
    known = np.isfinite(values[spec.name])
    count = values.pop(f"{spec.name}.count", None)
    if rolled_up and not known.all():
        whole = np.where(known, rows, 0).astype(np.uint64)
        values[f"{spec.name}.count"] = whole if count is None else np.where(count == UNKNOWN_U8, whole, count)
    elif rolled_up and count is not None and (count != UNKNOWN_U8).any():
        values[f"{spec.name}.count"] = np.where(count == UNKNOWN_U8, rows.astype(np.uint64), count)


def _told(values: Mapping[str, Any], spec: Field) -> Any:
    """The first values of a counter, unknown where they follow from the others."""
    last, increase, first = (values[f"{spec.name}{end}"] for end in ("", ".increase", ".first"))
    return np.where(last - increase == first, UNKNOWN, first)


def _tell(values: dict[str, Any], spec: Field) -> None:
    """Put in the first values that `_told` left out."""
    last, increase = values[spec.name], values[f"{spec.name}.increase"]
    first = values.get(f"{spec.name}.first", UNKNOWN)
    follows = (first == UNKNOWN) & (last != UNKNOWN)
    values[f"{spec.name}.first"] = np.where(follows, last - increase, first)


def _names(column: Any) -> Names:
    whole = column.unify_dictionaries().combine_chunks()
    codes, texts = texts_of(column)
    if whole.indices.null_count:
        valid = np.unpackbits(np.frombuffer(whole.indices.buffers()[0], np.uint8), bitorder="little")
        offset = whole.indices.offset
        codes = np.where(valid[offset : offset + len(codes)] == 1, codes, np.int32(-1))
    return Names(codes, texts)


def _whole(table: Any, name: str) -> Any:
    column = table.column(name)
    parts_of = [np.frombuffer(c.buffers()[1], "<i8", len(c), c.offset * 8) for c in column.chunks if len(c)]
    return np.concatenate(parts_of) if parts_of else np.empty(0, np.int64)


def unknown_of(spec: Field, size: int) -> Any:
    """A column of the wire in which nothing is known."""
    return np.full(size, UNKNOWN_U8 if spec.dtype == "u8" else np.nan, DTYPES[spec.dtype])
