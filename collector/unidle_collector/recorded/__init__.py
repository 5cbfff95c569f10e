"""Recorded telemetry from files that people already have: Parquet, text tables, JSON, logs, exporter pages.

    paths -> files -> (format by content) -> rows -> one grid -> Recording

Formats are told by what is in a file, not by its name. What was skipped, guessed or converted is in
`Recording.notes`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from unidle_collector.recorded import csvs, jsons, pages, parquet, terminals
from unidle_collector.recorded.cannot_tell import cannot_tell
from unidle_collector.recorded.grid import to_grid
from unidle_collector.recorded.packed import unpacked
from unidle_collector.recorded.rows import RecordingError, Rows, joined, runs_apart, told_apart
from unidle_collector.recording import Recording

__all__ = ["RecordingError", "load"]

HEAD_BYTES = 65_536
EXPECTED = "Parquet, Arrow, CSV, JSON, a log of nvidia-smi or dcgmi, or a dcgm-exporter page as text"


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
    tables: list[tuple[Path, Rows]] = []
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
            tables.append((path, found))
        else:
            scrapes += found[0]
            notes += found[1]
    if not node:
        tables = told_apart(tables, "node")
    parts = [rows for _, rows in runs_apart(tables)]
    if scrapes:
        parts.append(pages.rows_of_pages(scrapes, node, period_s, notes))
    if not parts:
        raise RecordingError("; ".join(notes))
    rows = joined(parts)
    rows = replace(rows, notes=(*notes, *rows.notes))
    tables.clear()
    parts.clear()
    recording = to_grid(rows, period_s)
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
            magic = file.read(8)
        if magic.startswith(parquet.MAGIC):
            return parquet.read(path, node)
        if magic.startswith(parquet.ARROW_MAGIC):
            return parquet.read_arrow(path, node)
        text = unpacked(path)
        modified_ns = path.stat().st_mtime_ns
    except OSError as error:
        raise RecordingError(f"{path}: expected a readable file: {error.strerror or error}") from error
    if not text.strip():
        raise RecordingError(f"{path}: expected samples, came an empty file")
    head = text[:HEAD_BYTES]
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):  # as PowerShell writes it
        text = text.decode("utf-16", "replace").encode()
        head = text[:HEAD_BYTES]
    if b"\0" in head:
        raise RecordingError(f"{path}: expected {EXPECTED}, came bytes of another format")
    if jsons.looks_like_json(head):
        return jsons.read(text, str(path), node)
    if terminals.looks_like_dmon(head.decode("utf-8", "replace")):
        return terminals.read(text.decode("utf-8", "replace"), str(path), node, modified_ns, period_s)
    if pages.looks_like_page(head):
        return pages.read(text.decode("utf-8", "replace"), str(path), modified_ns, period_s)
    return csvs.read(text, str(path), node)
