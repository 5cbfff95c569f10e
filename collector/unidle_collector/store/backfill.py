"""Put rows of the past into a store: they go through its log like pushed ones, and into every roll-up.

    backfill(store, batches)                  # from any source that can make wire.Batch of its rows
    backfill(store, batches_of_export(path))  # from a file of `unidle store export`

A batch counts once by (node, boot, seq), so a source that names its batches by what is in them may be
filled in again and again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from unidle_agent.fields import FIELDS, Field
from unidle_agent.wire import Batch, GpuFacts, Owner, encode
from unidle_collector.store import Store
from unidle_collector.store.columns import DTYPES
from unidle_collector.store.compaction import HOUR_NS
from unidle_collector.store.errors import StoreError
from unidle_collector.store.sheets import unknown_of

SYNC_BATCHES = 256
"""Batches that share one write to the disk."""


@dataclass(frozen=True, slots=True)
class Backfilled:
    """What came of it."""

    batches: int
    rows: int
    """Rows of GPUs that were stored."""
    known: int
    """Batches that the store had already."""


def backfill(
    store: Store,
    batches: Iterable[Batch],
    *,
    clock_ns: Callable[[], int] = time.time_ns,
    progress: Callable[[int], None] = lambda _: None,
    told: Callable[[Batch], None] = lambda _: None,
) -> Backfilled:
    """Store `batches` and roll them up; returns when they can be queried. `progress` is told the rows so far,
    `told` every batch, known or not.

    For a store that no collector runs on. Raises StoreFull when the disk takes no more: what was taken
    stays, and filling in again goes on from there.
    """
    stored = rows = known = 0
    waiting: list[tuple[str, str, int]] = []

    def settle() -> None:
        store.sync()
        store.state.remember(waiting)
        waiting.clear()
        store.upkeep(clock_ns())

    for batch in batches:
        told(batch)
        key = (batch.node, batch.boot, batch.seq)
        if store.state.seen(*key) or key in waiting:
            known += 1
            continue
        store.append(encode(batch), clock_ns(), batch=batch)
        waiting.append(key)
        stored, rows = stored + 1, rows + len(batch.times_ns) * len(batch.gpus)
        if len(waiting) >= SYNC_BATCHES:
            settle()
            progress(rows)
    settle()
    store.convert_all(clock_ns())
    progress(rows)
    return Backfilled(stored, rows, known)


def batches_of_export(path: Path) -> Iterator[Batch]:
    """The rows of a .parquet or .csv file of `unidle store export`, an hour of a node at a time."""
    if path.suffix not in (".parquet", ".csv") or not path.is_file():
        raise StoreError(f"{path}: expected a .parquet or .csv file of `unidle store export`, there is none")
    boot = "export-" + _digest(path)
    table = "read_parquet(?)" if path.suffix == ".parquet" else "read_csv(?, types={'job': 'VARCHAR'})"
    with duckdb.connect(":memory:") as database:
        try:
            found = database.execute(f"SELECT min(time_ns), max(time_ns) FROM {table}", [str(path)])  # noqa: S608
            first_ns, last_ns = found.fetchone() or (None, None)
            if first_ns is None:
                return
            for start_ns in range(first_ns // HOUR_NS * HOUR_NS, last_ns + 1, HOUR_NS):
                sql = f"SELECT * FROM {table} WHERE time_ns >= ? AND time_ns < ? ORDER BY node, time_ns, gpu"  # noqa: S608
                columns = database.execute(sql, [str(path), start_ns, start_ns + HOUR_NS]).fetchnumpy()
                yield from _batches_of_hour(columns, boot)
        except duckdb.Error as error:
            raise StoreError(f"{path}: expected a file of `unidle store export`: {error}") from error
        except KeyError as error:
            raise StoreError(
                f"{path}: expected the columns time_ns, node, gpu, job and simulated, {error} is missing"
            ) from error


def _batches_of_hour(columns: dict[str, Any], boot: str) -> Iterator[Batch]:
    nodes = columns["node"]
    if not len(nodes):
        return
    edges = np.flatnonzero(np.append(True, nodes[1:] != nodes[:-1]))
    for begin, end in zip(edges, [*edges[1:], len(nodes)], strict=True):
        part = {name: values[begin:end] for name, values in columns.items()}
        yield from _batches_of_node(str(nodes[begin]), part, boot)


def _batches_of_node(node: str, columns: dict[str, Any], boot: str) -> Iterator[Batch]:
    """A batch for every stretch in which no GPU changes its job."""
    times, instant = np.unique(np.asarray(columns["time_ns"], np.int64), return_inverse=True)
    gpus, place = np.unique(np.asarray(columns["gpu"], str), return_inverse=True)
    jobs = np.full((len(times), len(gpus)), None, object)
    jobs[instant, place] = _filled(columns["job"], None)
    changed = np.append(True, (jobs[1:] != jobs[:-1]).any(axis=1))
    edges = np.flatnonzero(changed)
    for begin, end in zip(edges, [*edges[1:], len(times)], strict=True):
        rows = np.flatnonzero((instant >= begin) & (instant < end))
        shape = (end - begin, len(gpus))
        at = (instant[rows] - begin, place[rows])
        of_gpus, of_host = {}, {}
        for spec in FIELDS:
            if spec.name in columns:
                sent = np.asarray(unknown_of(spec, shape[0] * shape[1])).reshape(shape)
                sent[at] = _as_sent(spec, columns[spec.name][rows])
                if spec.scope == "gpu":
                    of_gpus[spec.name] = sent.tobytes()
                else:
                    of_host[spec.name] = sent[at[0], at[1]][np.unique(at[0], return_index=True)[1]].tobytes()
        owners = tuple(
            GpuFacts(gpu, owner=Owner(None if job is None else bool(job), job or ""))
            for gpu, job in zip(gpus.tolist(), jobs[begin].tolist(), strict=True)
        )
        first_ns = int(times[begin])
        yield Batch(
            node=node,
            boot=boot,
            seq=first_ns // 1_000_000,
            sent_ns=int(times[end - 1]),
            period_s=1.0,
            times_ns=times[begin:end].tolist(),
            gpus=tuple(gpus.tolist()),
            columns=of_gpus,
            host=of_host,
            facts_id=first_ns // 1_000_000,
            facts=owners,
            simulated=bool(columns["simulated"][begin]),
        )


def _as_sent(spec: Field, values: Any) -> NDArray[Any]:
    """A column as it travels, from one in base units that may be masked."""
    if spec.dtype != "u8":
        return np.asarray(_filled(values, np.nan), DTYPES[spec.dtype])
    known = ~np.ma.getmaskarray(values)
    out: NDArray[Any] = unknown_of(spec, len(values))
    plain = np.ma.getdata(values)
    if plain.dtype.kind == "f":
        known &= np.isfinite(plain)
        plain = np.rint(np.where(known, plain, 0) / spec.resolution)
    out[known] = plain[known].astype(np.uint64)
    return out


def _filled(values: Any, unknown: object) -> Any:
    plain = np.ma.getdata(values)
    if not np.ma.getmaskarray(values).any():
        return plain
    filled = plain.astype(object)
    filled[np.ma.getmaskarray(values)] = unknown
    return filled


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
