"""Reads Parquet files, and Arrow files, which pandas calls Feather."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as arrow_dataset

from unidle_collector.recorded.rows import RecordingError, Rows
from unidle_collector.recorded.tables import rows_of_table

MAGIC = b"PAR1"
ARROW_MAGIC = b"ARROW1"


def read(path: Path, node: str) -> Rows:
    """Rows of one Parquet file; `key=value` folders above it (`node=n1/`) become columns."""
    try:
        table = arrow_dataset.dataset(path, format="parquet", partitioning="hive").to_table()
    except (pa.ArrowException, OSError) as error:
        raise RecordingError(f"{path}: expected a whole Parquet file: {error}") from error
    return rows_of_table(table, str(path), node)


def read_arrow(path: Path, node: str) -> Rows:
    """Rows of one Arrow file."""
    try:
        table = arrow_dataset.dataset(path, format="ipc", partitioning="hive").to_table()
    except (pa.ArrowException, OSError) as error:
        raise RecordingError(f"{path}: expected a whole Arrow file: {error}") from error
    return rows_of_table(table, str(path), node)
