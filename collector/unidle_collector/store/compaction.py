"""Merge the many small segments of an hour into one, in slices of nodes, so that memory stays flat."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unidle_agent.fields import FIELDS
from unidle_collector.store.columns import KEYS, flags, ordered, schema, texts_of
from unidle_collector.store.conversion import write_segment
from unidle_collector.store.segments import TEMPORARY, Segment, Segments, segment_name

HOUR_NS = 3_600_000_000_000
SLICE_ROWS = 262_144
"""Rows that are merged at once, and in a row group."""


def compact(segments: Segments, before_ns: int, between: Callable[[], None] = lambda: None) -> int:
    """Merge what was received within the same hour, for hours that ended by `before_ns`.

    Returns how many segments went into larger ones. `between` is called between two slices, for what
    must not wait. Segments that prove unreadable are set aside.
    """
    merged = 0
    past = [s for s in segments.counting() if s.last // HOUR_NS < before_ns // HOUR_NS]
    by_kind = sorted(past, key=lambda s: (s.kind, s.first))
    for _, group in groupby(by_kind, key=lambda s: (s.kind, s.first // HOUR_NS)):
        parts = list(group)
        if len(parts) < 2:
            continue
        try:
            _merge(segments, parts, between)
            merged += len(parts)
        except (pa.ArrowException, OSError):
            if not segments.set_aside_damaged(parts, thorough=True):  # else the next call merges the rest
                raise
    return merged


def _merge(segments: Segments, parts: Sequence[Segment], between: Callable[[], None]) -> None:
    name = segment_name(
        parts[0].kind,
        min(part.start_ns for part in parts),
        max(part.end_ns for part in parts),
        parts[0].first,
        max(part.last for part in parts),
    )
    temporary = segments.directory / (name + TEMPORARY)
    with ExitStack() as opened:
        files = [opened.enter_context(pq.ParquetFile(part.path)) for part in parts]
        table_schema = _schema([file.schema_arrow for file in files])
        write_segment(temporary, table_schema, _slices(files, table_schema, between))
    segments.publish([(temporary, name)], [part.path for part in parts])


def _slices(files: Sequence[Any], table_schema: Any, between: Callable[[], None]) -> Iterator[Any]:
    nodes = pa.concat_tables([file.read(columns=["node"]) for file in files]).column("node")
    codes, texts = texts_of(nodes)
    counted = dict(zip(texts, np.bincount(codes, minlength=len(texts)), strict=True))
    names = sorted(counted)
    ends = np.cumsum([counted[name] for name in names])
    start = 0
    while start < len(names):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, bisect_right(ends, before + SLICE_ROWS))
        parts = [_rows(file, names[start], names[stop - 1], table_schema) for file in files]
        yield ordered(pa.concat_tables([part for part in parts if part is not None]))
        start = stop
        between()


def _rows(file: Any, first: str, last: str, table_schema: Any) -> Any | None:
    """The rows of the nodes `first` to `last` of one file, in `table_schema`; None when there are none."""
    groups = [group for group in range(file.num_row_groups) if _may_hold(file, group, first, last)]
    if not groups:
        return None
    table = file.read_row_groups(groups)
    codes, texts = texts_of(table.column("node"))
    wanted = np.array([first <= text <= last for text in texts], bool)
    table = table.filter(flags(wanted[codes]))
    columns = [
        table.column(field.name).cast(field.type, safe=False)
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in table_schema
    ]
    return pa.Table.from_arrays(columns, schema=table_schema)


def _may_hold(file: Any, group: int, first: str, last: str) -> bool:
    place = file.schema_arrow.get_field_index("node")
    statistics = file.metadata.row_group(group).column(place).statistics
    if statistics is None or not statistics.has_min_max:
        return True
    return bool(statistics.min <= last and statistics.max >= first)


def _schema(schemas: Sequence[Any]) -> Any:
    """Every column that any of the files has: known fields as this version keeps them, others as they are."""
    columns = {field.name: field for table_schema in schemas for field in table_schema}
    target = schema(
        [name for name in KEYS if name in columns], [spec for spec in FIELDS if spec.name in columns]
    )
    for name in columns.keys() - set(target.names):
        target = target.append(columns[name])
    return target
