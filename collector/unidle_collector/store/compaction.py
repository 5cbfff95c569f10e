"""Merge the many small segments of an hour into one, in slices of nodes, so that memory stays flat.

Only small ones: a segment of BIG_BYTES is long enough to be read at once, and a fleet that fills one each
minute pays for no second encoding. Roll-ups of 1 h are made here, from those of 1 min of hours that are over.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unidle_agent.fields import FIELDS
from unidle_collector.store import histograms
from unidle_collector.store.columns import flags, ordered, texts_of
from unidle_collector.store.rollup import WIDTHS_NS, across, combine
from unidle_collector.store.segments import TEMPORARY, Segment, SegmentKind, Segments, segment_name
from unidle_collector.store.sheets import (
    GROUP_ROWS,
    aligned,
    from_table,
    merged_schema,
    ordered_parts,
    to_table,
    write_sheet,
)

HOUR_NS = 3_600_000_000_000
DAY_NS = 24 * HOUR_NS
SLICE_ROWS = 262_144
"""Rows that are merged at once."""
BIG_BYTES = 2 * 1024 * 1024
"""A segment of this size is merged no further."""
_HOURS: tuple[tuple[SegmentKind, SegmentKind], ...] = (
    ("gpu_1m", "gpu_1h"),
    ("host_1m", "host_1h"),
    ("fleet_1m", "fleet_1h"),
)


def compact(segments: Segments, before_ns: int, between: Callable[[], None] = lambda: None) -> int:
    """Merge what was received within the same hour (histograms: day), for hours that ended by `before_ns`.

    Returns how many segments went into larger ones. `between` is called between two slices, for what
    must not wait. Segments that prove unreadable are set aside.
    """
    merged = 0
    for parts in _runs(segments.counting(), before_ns):
        if _carefully(segments, parts, partial(_publish_merged, segments, parts, between)):
            merged += len(parts)
    for minutes, kind in _hours_due(segments.counting(), before_ns):
        _carefully(segments, [minutes], partial(_publish_hour, segments, minutes, kind, between))
    return merged


def _publish_merged(segments: Segments, parts: Sequence[Segment], between: Callable[[], None]) -> None:
    name = _name(parts[0].kind, parts)
    temporary = segments.directory / (name + TEMPORARY)
    paths = [part.path for part in parts]
    if parts[0].kind == "jobs":
        histograms.merge(paths, temporary)
    else:
        _merge(parts, temporary, between)
    segments.publish([(temporary, name)], paths)


def _publish_hour(
    segments: Segments, minutes: Segment, kind: SegmentKind, between: Callable[[], None]
) -> None:
    name = _name(kind, [minutes])
    temporary = segments.directory / (name + TEMPORARY)
    _merge([minutes], temporary, between, width_ns=WIDTHS_NS["1h"])
    segments.publish([(temporary, name)])


def _carefully(segments: Segments, parts: Sequence[Segment], work: Callable[[], None]) -> bool:
    try:
        work()
    except (pa.ArrowException, OSError):
        if not segments.set_aside_damaged(parts, thorough=True):  # else the next call merges the rest
            raise
        return False
    return True


def _runs(present: Sequence[Segment], before_ns: int) -> Iterator[list[Segment]]:
    """Small segments that follow each other within a span that is over, two at least."""

    def span(segment: Segment) -> int:
        return DAY_NS if segment.kind == "jobs" else HOUR_NS

    past = [s for s in present if s.last // span(s) < before_ns // span(s)]
    by_kind = sorted(past, key=lambda s: (s.kind, s.first))
    key = lambda s: (s.kind, s.first // span(s), _is_big(s))  # noqa: E731
    for (_, _, big), group in groupby(by_kind, key=key):
        parts = list(group)
        if len(parts) > 1 and not big:
            yield parts


def _is_big(segment: Segment) -> bool:
    """Those of a minute or more are merged whatever their size: few rows, read over days."""
    return segment.kind in ("gpu", "host", "gpu_10s", "host_10s") and segment.size_bytes >= BIG_BYTES


def _hours_due(present: Sequence[Segment], before_ns: int) -> Iterator[tuple[Segment, SegmentKind]]:
    """Roll-ups of 1 min, of hours that are over, that are not in one of 1 h."""
    for kind, hourly in _HOURS:
        done = [s for s in present if s.kind == hourly]
        for segment in present:
            over = segment.last // HOUR_NS < before_ns // HOUR_NS
            if segment.kind == kind and over and not any(s.covers(segment) for s in done):
                yield segment, hourly


def _name(kind: SegmentKind, parts: Sequence[Segment]) -> str:
    return segment_name(
        kind,
        min(part.start_ns for part in parts),
        max(part.end_ns for part in parts),
        parts[0].first,
        max(part.last for part in parts),
    )


def _merge(
    parts: Sequence[Segment], temporary: Any, between: Callable[[], None], width_ns: int | None = None
) -> None:
    """Write the rows of `parts` as one file; roll-ups put together in their own width, or in `width_ns`."""
    with ExitStack() as opened:
        files = [opened.enter_context(pq.ParquetFile(part.path)) for part in parts]
        table_schema = merged_schema([file.schema_arrow for file in files])
        width = width_ns or WIDTHS_NS.get(parts[0].level)
        tables = _slices(files, table_schema, between)
        if width is None:
            write_sheet(temporary, table_schema, map(ordered, tables), SLICE_ROWS)
            return
        present, fleet = set(table_schema.names), parts[0].kind.startswith("fleet")
        specs = [s for s in FIELDS if s.name in present or (fleet and f"{s.name}.increase" in present)]
        put = across if fleet else combine
        rolled = (put(ordered_parts(from_table(table, specs)), specs, width) for table in tables)
        write_sheet(
            temporary, table_schema, (to_table(one, table_schema, specs) for one in rolled), GROUP_ROWS
        )


def _slices(files: Sequence[Any], table_schema: Any, between: Callable[[], None]) -> Iterator[Any]:
    """The rows of all files, nodes in order, about SLICE_ROWS at a time; those of a fleet at once."""
    if "node" not in table_schema.names:
        yield pa.concat_tables([aligned(file.read(use_threads=False), table_schema) for file in files])
        return
    nodes = pa.concat_tables([file.read(columns=["node"], use_threads=False) for file in files])
    codes, texts = texts_of(nodes.column("node"))
    counted = dict(zip(texts, np.bincount(codes, minlength=len(texts)), strict=True))
    names = sorted(counted)
    ends = np.cumsum([counted[name] for name in names])
    start = 0
    while start < len(names):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, bisect_right(ends, before + SLICE_ROWS))
        parts = [_rows(file, names[start], names[stop - 1], table_schema) for file in files]
        yield pa.concat_tables([part for part in parts if part is not None])
        start = stop
        between()


def _rows(file: Any, first: str, last: str, table_schema: Any) -> Any | None:
    """The rows of the nodes `first` to `last` of one file, in `table_schema`; None when there are none."""
    groups = [group for group in range(file.num_row_groups) if may_hold(file.metadata, group, first, last)]
    if not groups:
        return None
    table = file.read_row_groups(groups, use_threads=False)
    codes, texts = texts_of(table.column("node"))
    wanted = np.array([first <= text <= last for text in texts], bool)
    some = table if wanted.all() else table.filter(flags(wanted[codes]))
    return aligned(some, table_schema)


def may_hold(metadata: Any, group: int, first: str, last: str) -> bool:
    """Can a row group hold nodes from `first` to `last`?"""
    chunks = metadata.row_group(group)
    place = metadata.schema.names.index("node")
    statistics = chunks.column(place).statistics
    if statistics is None or not statistics.has_min_max:
        return True
    return bool(statistics.min <= last and statistics.max >= first)
