"""Recorded telemetry from files that people already have: Parquet, text tables, dcgm-exporter pages.

    paths -> files -> (format by content) -> rows -> one grid -> Recording

Formats are told by what is in a file, not by its name. What was skipped, guessed or converted is in
`Recording.notes`.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from unidle_collector.recorded import csvs, pages, parquet
from unidle_collector.recorded.cannot_tell import cannot_tell
from unidle_collector.recorded.grid import to_grid
from unidle_collector.recorded.rows import RecordingError, Rows, joined
from unidle_collector.recording import Recording

__all__ = ["RecordingError", "load"]

GZIP_MAGIC = b"\x1f\x8b"
HEAD_BYTES = 65_536
MAX_TEXT_BYTES = 4 * 1024**3
"""Most bytes that a text file may have, unpacked: it is held in memory."""


def load(
    paths: Sequence[Path],
    *,
    node: str = "",
    period_s: float | None = None,
    progress: Callable[[Path], None] = lambda _path: None,
) -> Recording:
    """One recording from files and folders, together. `node` names the node where the files do not;
    `period_s` sets the grid's step instead of finding it; `progress` is told each file before it is read.

    Raises RecordingError: says what was expected, what came, and what to do.
    """
    if period_s is not None and not 0 < period_s < 86_400:
        raise RecordingError(f"expected a period above 0 and below 86400 s, came {period_s:g}")
    tables: list[Rows] = []
    scrapes: list[pages.SavedPage] = []
    notes: list[str] = []
    for path, listed in _files(paths):
        progress(path)
        try:
            found = _read(path, node, period_s)
        except RecordingError as error:
            if listed:
                raise
            notes.append(f"left out: {error}")
            continue
        if isinstance(found, Rows):
            tables.append(found)
        else:
            scrapes += found[0]
            notes += found[1]
    if scrapes:
        tables.append(pages.rows_of_pages(scrapes, node, period_s, notes))
    if not tables:
        raise RecordingError("; ".join(notes))
    rows = joined(tables)
    recording = to_grid(replace(rows, notes=(*notes, *rows.notes)), period_s)
    return replace(recording, cannot_tell=cannot_tell(recording, recording.period_s, recording.period_s))


def _files(paths: Sequence[Path]) -> list[tuple[Path, bool]]:
    """Every file to read, in order, and whether it was named itself: what lies in a folder may be
    something else."""
    out: list[tuple[Path, bool]] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(
                each
                for each in path.rglob("*")
                if each.is_file()
                and not any(part.startswith((".", "_")) for part in each.relative_to(path).parts)
            )
            if not inside:
                raise RecordingError(f"{path}: expected files in the folder, came none")
            out += [(each, False) for each in inside]
        elif path.exists():
            out.append((path, True))
        else:
            raise RecordingError(f"{path}: expected a file or a folder, there is none")
    if not out:
        raise RecordingError("expected at least one file")
    return out


def _read(path: Path, node: str, period_s: float | None) -> Rows | tuple[list[pages.SavedPage], list[str]]:
    """What one file holds, by its content."""
    try:
        with path.open("rb") as file:
            if file.read(len(parquet.MAGIC)) == parquet.MAGIC:
                return parquet.read(path, node)
        text = _text(path)
        modified_ns = path.stat().st_mtime_ns
    except OSError as error:
        raise RecordingError(f"{path}: expected a readable file: {error.strerror or error}") from error
    if pages.looks_like_page(text[:HEAD_BYTES]):
        return pages.read(text.decode("utf-8", "replace"), str(path), modified_ns, period_s)
    return csvs.read(text, str(path), node)


def _text(path: Path) -> bytes:
    """The bytes of a text file, unpacked where it is gzipped, whatever its name; raises RecordingError."""
    data = path.read_bytes()
    if data.startswith(GZIP_MAGIC):
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
                data = packed.read(MAX_TEXT_BYTES + 1)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise RecordingError(f"{path}: expected a whole gzip file: {error}") from error
    if len(data) > MAX_TEXT_BYTES:
        raise RecordingError(f"{path}: expected at most {MAX_TEXT_BYTES:,} bytes: split it, or use Parquet")
    if not data.strip():
        raise RecordingError(f"{path}: expected samples, came an empty file")
    if b"\0" in data[:HEAD_BYTES]:
        raise RecordingError(
            f"{path}: expected Parquet, CSV or a dcgm-exporter page as text, came bytes of another format"
        )
    return data
