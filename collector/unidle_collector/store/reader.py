"""Read the segments with DuckDB: one field over time, and export.

Only what has become a segment is here. The newest minutes, whose rows are still in the log, are served
by the collector's live window.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import numpy as np
from numpy.typing import NDArray

from unidle_agent.fields import BY_NAME, FIELDS
from unidle_collector.store.errors import StoreError
from unidle_collector.store.segments import TEMPORARY, Segment, SegmentKind, Segments

MOST_POINTS = 1_500
LOOK_BACK_NS = 60_000_000_000
"""How far before the window a counter's previous sample is looked for."""

TRIES = 3
"""A query starts again when the files it was given were merged, or set aside as damaged, meanwhile."""

T = TypeVar("T")

# The last value of a state, the mean of a gauge. A counter's rate is its increases over the time that
# they took; where it falls it was reset, and what it counted across the reset is unknown.
_SAMPLES = """
    SELECT time_ns, (time_ns - $start_ns) // $step_ns AS step, {field} AS value
    FROM read_parquet($files, union_by_name = true)
    WHERE node = $node {and_gpu} AND time_ns >= $from_ns AND time_ns < $end_ns AND {field} IS NOT NULL
"""
_BY_KIND = {
    "gauge": "SELECT step, avg(value)::DOUBLE FROM samples GROUP BY step",
    "state": "SELECT step, arg_max(value, time_ns)::DOUBLE FROM samples GROUP BY step",
    "counter": """
        SELECT step, sum(value - before)::DOUBLE / (sum(time_ns - before_ns) / 1e9)
        FROM (
            SELECT *, lag(value) OVER in_time AS before, lag(time_ns) OVER in_time AS before_ns
            FROM samples WINDOW in_time AS (ORDER BY time_ns)
        )
        WHERE value >= before AND time_ns > before_ns AND step >= 0 GROUP BY step
    """,
}


class Reader:
    """Queries over `segments`. Safe to use from several threads."""

    def __init__(self, segments: Segments, *, threads: int = 1, memory_bytes: int = 1 << 30) -> None:
        self._segments = segments
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

        Returns the start of every step (ns) and the value in it, NaN where nothing is known: the mean of
        a gauge, the last value of a state, the increase per second of a counter. A field of the host
        belongs to the node; `gpu` is not looked at. Raises StoreError.
        """
        spec = BY_NAME.get(field)
        if spec is None:
            raise StoreError(f"expected a field of docs/telemetry.md, came {field!r}")
        if end_ns <= start_ns or not step_s > 0:
            raise StoreError(
                f"expected a window and a step longer than 0 s, came {start_ns} to {end_ns} by {step_s} s"
            )
        step_ns = max(1, round(step_s * 1e9), math.ceil((end_ns - start_ns) / MOST_POINTS))
        times = np.arange(start_ns, end_ns, step_ns, dtype=np.int64)
        values = np.full(len(times), np.nan)
        from_ns = start_ns - max(step_ns, LOOK_BACK_NS) if spec.kind == "counter" else start_ns
        parameters: dict[str, object] = {
            "node": node, "from_ns": from_ns, "start_ns": start_ns, "end_ns": end_ns, "step_ns": step_ns
        }  # fmt: skip
        if spec.scope == "gpu":
            parameters["gpu"] = gpu
        samples = _SAMPLES.format(field=field, and_gpu="AND gpu = $gpu" if spec.scope == "gpu" else "")
        sql = f"WITH samples AS ({samples}) {_BY_KIND[spec.kind]}"  # the field is one of the table

        def query(files: Sequence[Segment]) -> list[tuple[int, float]]:
            paths = _paths(files, spec.scope)
            if not paths:
                return []
            try:
                return self._rows(sql, files=paths, **parameters)
            except duckdb.BinderException as error:
                if f'"{field}" not found' in str(error):  # none of these files has the column
                    return []
                raise

        for step, value in self._over(from_ns, end_ns, query):
            values[step] = value
        return times, values

    def export(self, path: Path, start_ns: int, end_ns: int) -> int:
        """Write the rows with start_ns <= time < end_ns to a .parquet or .csv file; returns how many.

        One row per GPU and instant with the host's fields beside it, numbers in base units as plain
        floats and whole numbers, sorted by node, GPU and time: what `unidle diagnose` reads.
        """
        formats = {".parquet": "FORMAT parquet, COMPRESSION zstd", ".csv": "FORMAT csv, HEADER"}
        if path.suffix not in formats:
            raise StoreError(f"expected a file name that ends in .parquet or .csv, came {path.name!r}")
        temporary = path.with_name(path.name + TEMPORARY)

        def query(files: Sequence[Segment]) -> int:
            gpus, hosts = _paths(files, "gpu"), _paths(files, "host")
            if not gpus:
                raise StoreError(f"expected rows between {start_ns} and {end_ns} ns, the store has none")
            paths = {"gpus": gpus, "hosts": hosts} if hosts else {"gpus": gpus}
            columns = "time_ns, node, gpu, job, simulated" + self._plain_columns("g", gpus)
            joined = ""
            if hosts:
                columns += self._plain_columns("h", hosts)
                joined = (
                    "LEFT JOIN (SELECT DISTINCT ON (node, time_ns) * EXCLUDE (simulated)"
                    " FROM read_parquet($hosts, union_by_name = true)) h USING (node, time_ns)"
                )
            sql = f"""
                COPY (
                    SELECT {columns} FROM read_parquet($gpus, union_by_name = true) g {joined}
                    WHERE time_ns >= $start_ns AND time_ns < $end_ns ORDER BY node, gpu, time_ns
                ) TO $path ({formats[path.suffix]})
            """  # noqa: S608  # made of names of the field table
            rows = self._rows(sql, path=str(temporary), start_ns=start_ns, end_ns=end_ns, **paths)
            return int(rows[0][0])

        try:
            written = self._over(start_ns, end_ns, query)
            temporary.rename(path)
        except OSError as error:
            raise StoreError(f"{path}: expected to write the export: {error}") from error
        finally:
            temporary.unlink(missing_ok=True)
        return written

    def close(self) -> None:
        """Let go of the database."""
        self._database.close()

    def _plain_columns(self, table: str, files: list[str]) -> str:
        """Every field that the files have, as SQL that gives floats for decimals."""
        described = self._rows(
            "DESCRIBE SELECT * FROM read_parquet($files, union_by_name = true)", files=files
        )
        present = {row[0]: row[1] for row in described}
        columns = ""
        for spec in FIELDS:
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
            except duckdb.Error as error:
                merged = not all(file.path.exists() for file in files)
                if last or not (merged or self._segments.set_aside_damaged(files)):
                    raise StoreError(
                        f"{self._segments.directory}: the segments could not be read: {error}"
                    ) from error
        raise AssertionError("the last try answers or raises")


def _paths(files: Sequence[Segment], kind: SegmentKind) -> list[str]:
    return [str(file.path) for file in files if file.kind == kind]
