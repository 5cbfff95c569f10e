"""Turn a closed log file into segments: decode its batches, sort by node, GPU and time, write Parquet.

The result is a draft: files under temporary names, synced. The caller makes the batches' sequence
numbers and facts durable, publishes the draft, and only then deletes the log file.
"""

from __future__ import annotations

import contextlib
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unidle_agent.errors import WireError
from unidle_agent.fields import GPU_FIELDS, HOST_FIELDS, UNKNOWN_U8, Field
from unidle_agent.wire import Batch, GpuFacts, Owner, decode
from unidle_collector.store.columns import (
    DTYPES,
    KEYS,
    arrow,
    flags,
    names,
    ordered,
    schema,
    to_arrow,
    write_options,
)
from unidle_collector.store.log import LogFile, log_id
from unidle_collector.store.segments import TEMPORARY, SegmentKind, segment_name

SLICE_ROWS = 65_536
"""Rows that are a table at once, and in a row group: keeps memory flat and lets readers skip."""

FactsKey = tuple[str, str, int]
"""Node, boot and facts_id of a batch."""

FactsOf = Callable[[FactsKey], Sequence[GpuFacts] | None]
"""The facts that an earlier log file brought under a key; None when they are not known."""

_UNKNOWN = {
    "f4": struct.pack("<f", math.nan),
    "f8": struct.pack("<d", math.nan),
    "u8": struct.pack("<Q", UNKNOWN_U8),
}
# Statistics (`power_instant_w.max`) are left to the log: the segments hold the mean of each row.
_SPECS: dict[SegmentKind, tuple[Field, ...]] = {"gpu": GPU_FIELDS, "host": HOST_FIELDS}
_KEYS: dict[SegmentKind, tuple[str, ...]] = {"gpu": tuple(KEYS), "host": ("time_ns", "node", "simulated")}


@dataclass(frozen=True, slots=True)
class Draft:
    """One log file as segments that have no name yet."""

    files: tuple[tuple[Path, str], ...]
    """(temporary file, name it is to get), in the order in which they are to be published."""
    sequences: tuple[tuple[str, str, int], ...]
    """(node, boot, seq) of every batch."""
    facts: dict[FactsKey, tuple[GpuFacts, ...]]
    """Those that the batches brought."""
    rows: int
    """Rows of GPUs."""
    torn_bytes: int
    damaged: int
    """Records that could not be read: a wrong checksum, or bytes that are no batch."""


def convert(log: Path, directory: Path, facts_of: FactsOf) -> Draft:
    """Write the segments of `log` into `directory` under temporary names; raises OSError when it cannot."""
    file = LogFile(log)
    batches: dict[tuple[str, str, int], Batch] = {}
    undecodable = 0
    for record in file:
        try:
            batch = decode(record.data)
        except WireError:
            undecodable += 1
        else:
            batches.setdefault((batch.node, batch.boot, batch.seq), batch)
    facts = {_facts_key(b): b.facts for b in batches.values() if b.facts is not None}
    filled = sorted((b for b in batches.values() if len(b.times_ns)), key=lambda b: b.node)
    files: list[tuple[Path, str]] = []
    if filled:
        jobs = _jobs(filled, facts, facts_of)
        start_ns, end_ns = min(min(b.times_ns) for b in filled), max(max(b.times_ns) for b in filled)
        for kind in ("host", "gpu"):  # the gpu segment, though it be empty, completes the conversion
            if kind == "gpu" or any(b.host for b in filled):
                name = segment_name(kind, start_ns, end_ns, log_id(log), log_id(log))
                files.append((_write(directory / (name + TEMPORARY), kind, filled, jobs), name))
    return Draft(
        files=tuple(files),
        sequences=tuple(batches),
        facts=facts,
        rows=sum(len(b.times_ns) * len(b.gpus) for b in filled),
        torn_bytes=file.torn_bytes,
        damaged=file.damaged + undecodable,
    )


def write_segment(path: Path, table_schema: Any, tables: Iterable[Any]) -> None:
    """Write `tables`, a row group each, and sync; leaves nothing behind when that fails."""
    try:
        with pq.ParquetWriter(path, table_schema, **write_options(table_schema)) as writer:
            for table in tables:
                writer.write_table(table, row_group_size=max(1, table.num_rows))
        with path.open("rb") as file:
            os.fsync(file.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        raise


def _facts_key(batch: Batch) -> FactsKey:
    return (batch.node, batch.boot, batch.facts_id)


def _jobs(
    batches: Iterable[Batch], facts: dict[FactsKey, tuple[GpuFacts, ...]], facts_of: FactsOf
) -> dict[FactsKey, dict[str, str | None]]:
    """For every facts_id in use: GPU -> job."""
    found: dict[FactsKey, dict[str, str | None]] = {}
    for key in {_facts_key(batch) for batch in batches}:
        known = facts.get(key) or facts_of(key) or ()
        found[key] = {gpu.uuid: _job(gpu.owner) for gpu in known}
    return found


def _job(owner: Owner) -> str | None:
    """The job; empty where the GPU is known to be free, None where nobody says."""
    return owner.job or ("" if owner.allocated is False else None)


def _write(
    path: Path, kind: SegmentKind, batches: Sequence[Batch], jobs: dict[FactsKey, dict[str, str | None]]
) -> Path:
    brought = {name for b in batches for name in (b.columns if kind == "gpu" else b.host)}
    specs = [spec for spec in _SPECS[kind] if spec.name in brought]
    table_schema = schema(_KEYS[kind], specs)
    tables = (ordered(_table(table_schema, kind, specs, part, jobs)) for part in _slices(kind, batches))
    write_segment(path, table_schema, tables)
    return path


def _slices(kind: SegmentKind, batches: Sequence[Batch]) -> Iterator[list[Batch]]:
    """Batches of whole nodes, about SLICE_ROWS rows at a time; those without rows are left out."""
    part: list[Batch] = []
    rows = 0
    for _, group in groupby(batches, key=lambda b: b.node):
        of_node = [b for b in group if _rows(kind, b)]
        part += of_node
        rows += sum(_rows(kind, b) for b in of_node)
        if rows >= SLICE_ROWS:
            yield part
            part, rows = [], 0
    if part:
        yield part


def _rows(kind: SegmentKind, batch: Batch) -> int:
    if kind == "gpu":
        return len(batch.times_ns) * len(batch.gpus)
    return len(batch.times_ns) if batch.host else 0


def _table(
    table_schema: Any,
    kind: SegmentKind,
    specs: Sequence[Field],
    batches: Sequence[Batch],
    jobs: dict[FactsKey, dict[str, str | None]],
) -> Any:
    """The rows of some batches, unsorted."""
    counts = [_rows(kind, b) for b in batches]
    times = [np.repeat(b.times_ns, len(b.gpus) if kind == "gpu" else 1) for b in batches]
    arrays = [arrow(pa.int64(), np.concatenate(times)), _names([[b.node] for b in batches], counts)]
    if kind == "gpu":
        owners = [jobs[_facts_key(b)] for b in batches]
        arrays.append(_names([b.gpus for b in batches], counts))
        arrays.append(
            _names([[of.get(gpu) for gpu in b.gpus] for b, of in zip(batches, owners, strict=True)], counts)
        )
    arrays.append(flags(np.repeat([b.simulated for b in batches], counts)))
    for spec in specs:
        parts = [
            (b.columns if kind == "gpu" else b.host).get(spec.name) or _UNKNOWN[spec.dtype] * count
            for b, count in zip(batches, counts, strict=True)
        ]
        arrays.append(to_arrow(spec, np.frombuffer(b"".join(parts), DTYPES[spec.dtype])))
    return pa.Table.from_arrays(arrays, schema=table_schema)


def _names(texts: Sequence[Sequence[str | None]], counts: Sequence[int]) -> Any:
    """A dictionary column: each batch's texts, over and over until they fill its rows; None is null."""
    codes: dict[str | None, int] = {None: -1}
    parts = []
    for of_batch, count in zip(texts, counts, strict=True):
        part = [codes.setdefault(text, len(codes) - 1) for text in of_batch]
        parts.append(np.tile(np.asarray(part, np.int32), count // len(part)))
    del codes[None]
    return names(np.concatenate(parts), [text for text in codes if text is not None])
