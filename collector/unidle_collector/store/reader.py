"""Read the segments: one field over time of a GPU, a host or the fleet, a job's quantiles, and export.

Only what has become a segment is here. The newest minutes, whose rows are still in the log, are served
by the collector's live window. Series are read as columns of the row groups that hold a node; DuckDB
writes the exports.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from unidle_agent.fields import BY_NAME, FIELDS, Field
from unidle_collector.store import histograms
from unidle_collector.store.columns import flags, texts_of
from unidle_collector.store.compaction import may_hold
from unidle_collector.store.covering import Scope, cover, whole_buckets
from unidle_collector.store.errors import StoreError
from unidle_collector.store.histograms import Quantile
from unidle_collector.store.segments import TEMPORARY, Segment, SegmentKind, Segments
from unidle_collector.store.sheets import from_table
from unidle_collector.store.steps import MOST_POINTS, Steps, steps_of_fleet, steps_of_parts

LOOK_BACK_NS = 60_000_000_000
"""How far before the window a counter's previous sample is looked for."""

TRIES = 3
"""A query starts again when the files it was given were merged, or set aside as damaged, meanwhile."""

FOOTERS_KEPT = 256
"""Footers of Parquet files kept in memory, about 0.1 MB each."""

T = TypeVar("T")


class Reader:
    """Queries over `segments`. Safe to use from several threads."""

    def __init__(self, segments: Segments, *, threads: int = 1, memory_bytes: int = 1 << 30) -> None:
        self._segments = segments
        self._footers: OrderedDict[Path, Any] = OrderedDict()
        self._footers_lock = threading.Lock()
        self._database = duckdb.connect(
            ":memory:",
            config={
                "threads": threads,
                "memory_limit": f"{memory_bytes // 2**20}MiB",
                "temp_directory": str(segments.directory / "sort"),
                # Parquet is built in; nothing is ever fetched.
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
            },
        )

    def series(
        self, node: str, gpu: str, field: str, start_ns: int, end_ns: int, step_s: float
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """One field of one GPU over start_ns <= time < end_ns, in steps of `step_s` or as long as 1,500 need.

        Steps that are nearly a bucket of a roll-up, or longer, are made whole buckets. Returns the start
        of every step (ns) and the value in it, NaN where nothing is known: the mean of a gauge, the last
        value of a state, the increase per second of a counter. A field of the host belongs to the node;
        `gpu` is not looked at. Raises StoreError.
        """
        steps = self.steps(node, gpu, field, start_ns, end_ns, step_s)
        return steps.times_ns, steps.values

    def steps(self, node: str, gpu: str, field: str, start_ns: int, end_ns: int, step_s: float) -> Steps:
        """As `series`, with the extremes and the number of rows of each step.

        Read from the coarsest roll-up that fits a step. A bucket that lies in two steps counts where its
        first row is: choose the window by whole steps to have none.
        """
        spec, step_ns = _asked(field, start_ns, end_ns, step_s)
        from_ns = start_ns - max(step_ns, LOOK_BACK_NS) if spec.kind == "counter" else start_ns
        scope: Scope = "gpu" if spec.scope == "gpu" else "host"

        def query(files: Sequence[Segment]) -> Steps:
            tables = [self._rows_of(file, node, gpu, spec) for file in cover(files, scope, step_ns)]
            parts = [from_table(table, [spec]) for table in tables if table is not None]
            return steps_of_parts(spec, parts, start_ns, end_ns, step_ns)

        return self._over(from_ns, end_ns, query)

    def fleet(
        self, field: str, start_ns: int, end_ns: int, step_s: float, *, simulated: bool = False
    ) -> Steps:
        """One field of all GPUs together, in steps of a minute or more: the mean over GPUs and time.

        Of a counter, the mean rate of one GPU. Simulated GPUs are never mixed with real ones.
        """
        spec, step_ns = _asked(field, start_ns, end_ns, max(step_s, 60.0))
        if spec.scope != "gpu" or spec.kind == "state":
            raise StoreError(f"expected a gauge or a counter of GPUs, came {field!r}")

        def query(files: Sequence[Segment]) -> Steps:
            keys = ("time_ns", "simulated")
            tables = [self._columns(file, keys, spec) for file in cover(files, "fleet", step_ns)]
            parts = [from_table(table, [spec]) for table in tables if table is not None]
            return steps_of_fleet(spec, parts, start_ns, end_ns, step_ns, simulated=simulated)

        return self._over(start_ns, end_ns, query)

    def job_quantile(self, job: str, field: str, share: float) -> Quantile | None:
        """The `share` quantile (0.95: p95) of a gauge over all that is kept of a job, None when none is."""
        return histograms.quantile(BY_NAME[field], self.job_counts(job, field), share)

    def job_counts(self, job: str, field: str) -> dict[int, int]:
        """Bin -> how often, of one gauge over all that is kept of a job; see histograms.bounds_of."""
        spec = BY_NAME.get(field)
        if spec is None or spec not in histograms.FIELDS:
            raise StoreError(f"expected a gauge of GPUs, came {field!r}")

        def query(files: Sequence[Segment]) -> dict[int, int]:
            counts: dict[int, int] = {}
            for file in files:
                if file.kind == "jobs":
                    with pq.ParquetFile(file.path, metadata=self._footer(file)) as parquet:
                        for number, count in histograms.read_cells(parquet, job, field):
                            counts[number] = counts.get(number, 0) + count
            return counts

        return self._over(0, 2**63 - 1, query)

    def export(
        self,
        path: Path,
        start_ns: int,
        end_ns: int,
        *,
        nodes: Sequence[str] = (),
        gpus: Sequence[str] = (),
        fields: Sequence[str] = (),
    ) -> int:
        """Write the rows with start_ns <= time < end_ns to a .parquet or .csv file; returns how many.

        Only those of `nodes` and `gpus` and only `fields`, where any are given.

        One row per GPU and instant with the host's fields beside it, numbers in base units as plain
        floats and whole numbers, sorted by node, GPU and time: what `unidle diagnose` reads.
        """
        formats = {".parquet": "FORMAT parquet, COMPRESSION zstd", ".csv": "FORMAT csv, HEADER"}
        if path.suffix not in formats:
            raise StoreError(f"expected a file name that ends in .parquet or .csv, came {path.name!r}")
        for name in fields:
            if name not in BY_NAME:
                raise StoreError(f"expected a field of docs/telemetry.md, came {name!r}")
        temporary = path.with_name(path.name + TEMPORARY)
        where = "time_ns >= $start_ns AND time_ns < $end_ns"
        asked: dict[str, Any] = {"path": str(temporary), "start_ns": start_ns, "end_ns": end_ns}
        for column, wanted in (("node", nodes), ("gpu", gpus)):
            if wanted:
                where += f" AND list_contains($only_{column}, {column})"
                asked[f"only_{column}"] = list(wanted)

        def query(files: Sequence[Segment]) -> int:
            if not _paths(files, "gpu"):
                ends = (datetime.fromtimestamp(at_ns / 1e9, UTC) for at_ns in (start_ns, end_ns))
                first, last = (f"{end:%Y-%m-%d %H:%M:%S}" for end in ends)
                raise StoreError(f"expected rows from {first} to {last} UTC, the store has none")
            select, paths = self._with_hosts(files, fields, where)
            copied = self._rows(f"COPY ({select}) TO $path ({formats[path.suffix]})", **asked, **paths)
            return int(copied[0][0])

        try:
            written = self._over(start_ns, end_ns, query)
            temporary.rename(path)
        except OSError as error:
            raise StoreError(f"{path}: expected to write the export: {error}") from error
        finally:
            temporary.unlink(missing_ok=True)
        return written

    def _with_hosts(
        self, files: Sequence[Segment], fields: Sequence[str], where: str
    ) -> tuple[str, dict[str, list[str]]]:
        """SQL of the rows of GPUs with their host's beside them, and the files that it names."""
        gpus, hosts = _paths(files, "gpu"), _paths(files, "host")
        columns = "time_ns, node, gpu, job, simulated" + self._plain_columns("g", gpus, fields)
        paths, joined = {"gpus": gpus}, ""
        if hosts:
            paths["hosts"] = hosts
            columns += self._plain_columns("h", hosts, fields)
            joined = (
                "LEFT JOIN (SELECT DISTINCT ON (node, time_ns) * EXCLUDE (simulated)"
                " FROM read_parquet($hosts, union_by_name = true)) h USING (node, time_ns)"
            )
        sql = f"""
            SELECT {columns} FROM read_parquet($gpus, union_by_name = true) g {joined}
            WHERE {where} ORDER BY node, gpu, time_ns
        """  # noqa: S608  # made of names of the field table
        return sql, paths

    def close(self) -> None:
        """Let go of the database."""
        self._database.close()

    def _rows_of(self, file: Segment, node: str, gpu: str, spec: Field) -> Any | None:
        """The rows of one GPU (or host) in one file, with the columns of `spec`; None when it has none."""
        keys = (
            ("time_ns", "node", "gpu", "simulated")
            if spec.scope == "gpu"
            else ("time_ns", "node", "simulated")
        )
        metadata = self._footer(file)
        groups = [group for group in range(metadata.num_row_groups) if may_hold(metadata, group, node, node)]
        table = self._columns(file, keys, spec, groups) if groups else None
        if table is None:
            return None
        wanted = _is(table.column("node"), node)
        if spec.scope == "gpu":
            wanted &= _is(table.column("gpu"), gpu)
        places = np.flatnonzero(wanted)
        if not len(places):
            return None
        first, last = int(places[0]), int(places[-1]) + 1
        part = table.slice(first, last - first)
        return part if len(places) == last - first else part.filter(flags(wanted[first:last]))

    def _columns(
        self, file: Segment, keys: Sequence[str], spec: Field, groups: Sequence[int] | None = None
    ) -> Any | None:
        metadata = self._footer(file)
        present = metadata.schema.names
        rolled = [name for name in ("first_ns", "last_ns", "rows", "span_ns") if name in present]
        of_spec = [name for name in present if name == spec.name or name.startswith(f"{spec.name}.")]
        if not of_spec:
            return None
        with pq.ParquetFile(file.path, metadata=metadata) as parquet:
            wanted = [*keys, *rolled, *of_spec]
            every = range(metadata.num_row_groups) if groups is None else groups
            return parquet.read_row_groups(list(every), columns=wanted, use_threads=False)

    def _footer(self, file: Segment) -> Any:
        """The metadata of a file; names of files are never used again for other content."""
        with self._footers_lock:
            if file.path in self._footers:
                self._footers.move_to_end(file.path)
                return self._footers[file.path]
        metadata = pq.read_metadata(file.path)
        with self._footers_lock:
            self._footers[file.path] = metadata
            while len(self._footers) > FOOTERS_KEPT:
                self._footers.popitem(last=False)
        return metadata

    def _plain_columns(self, table: str, files: list[str], fields: Sequence[str]) -> str:
        """Every field that the files have and that is asked for, as SQL that gives floats for decimals."""
        described = self._rows(
            "DESCRIBE SELECT * FROM read_parquet($files, union_by_name = true)", files=files
        )
        present = {row[0]: row[1] for row in described}
        columns = ""
        for spec in FIELDS:
            if fields and spec.name not in fields:
                continue
            kind = present.get(spec.name, "")
            value = f"{table}.{spec.name}"
            if kind.startswith("DECIMAL"):
                value = f"{value}::DOUBLE AS {spec.name}"
            columns += f", {value}" if kind else ""
        return columns

    def _rows(self, sql: str, **parameters: object) -> list[Any]:
        with self._database.cursor() as cursor:
            return list(cursor.execute(sql, parameters).fetchall())

    def _over(self, start_ns: int, end_ns: int, query: Callable[[Sequence[Segment]], T]) -> T:
        """What `query` answers over the segments of the window."""
        for last in (False,) * (TRIES - 1) + (True,):
            files = self._segments.overlapping(start_ns, end_ns)
            try:
                return query(files)
            except (duckdb.Error, pa.ArrowException, OSError) as error:
                merged = not all(file.path.exists() for file in files)
                if last or not (merged or self._segments.set_aside_damaged(files)):
                    raise StoreError(
                        f"{self._segments.directory}: the segments could not be read: {error}"
                    ) from error
        raise AssertionError("the last try answers or raises")


def _asked(field: str, start_ns: int, end_ns: int, step_s: float) -> tuple[Field, int]:
    """The field, and the step in ns that gives at most MOST_POINTS; raises StoreError."""
    spec = BY_NAME.get(field)
    if spec is None:
        raise StoreError(f"expected a field of docs/telemetry.md, came {field!r}")
    if end_ns <= start_ns or not step_s > 0:
        raise StoreError(
            f"expected a window and a step longer than 0 s, came {start_ns} to {end_ns} by {step_s} s"
        )
    step_ns = max(1, round(step_s * 1e9), math.ceil((end_ns - start_ns) / MOST_POINTS))
    return spec, whole_buckets(step_ns)


def _is(column: Any, text: str) -> NDArray[np.bool_]:
    codes, texts = texts_of(column)
    return np.equal(codes, texts.index(text) if text in texts else -1)


def _paths(files: Sequence[Segment], kind: SegmentKind) -> list[str]:
    return [str(file.path) for file in files if file.kind == kind]
