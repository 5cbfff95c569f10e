"""Reads what nvidia-smi dmon and dcgmi dmon print: columns aligned by blanks, the header again and again.

Lines may begin with a time (`nvidia-smi dmon -o DT`; `dcgmi dmon ... | ts`). Where none does, samples are
taken to be as far apart as the tools' default says, and to end when the file was written.
"""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime

import pyarrow as pa

from unidle_collector.recorded.rows import RecordingError, Rows
from unidle_collector.recorded.tables import rows_of_table

DEFAULT_PERIOD_S = 1.0
"""Of both tools."""

_HEADER = re.compile(r"(.{0,40}?)#\s*((?:Entity|gpu|Date|Time)\b.*)")
_BETWEEN = re.compile(r"[\s,]+")

# What nvidia-smi dmon calls its columns -> names that say quantity and unit. Its `sm` is GPU utilization:
# the share of the time in which any kernel was resident.
SMI = {
    "pwr": "power.draw [W]", "gtemp": "temperature.gpu", "temp": "temperature.gpu",
    "mtemp": "temperature.memory", "sm": "utilization.gpu [%]", "mem": "utilization.memory [%]",
    "enc": "utilization.encoder [%]", "dec": "utilization.decoder [%]", "mclk": "clocks.mem [MHz]",
    "pclk": "clocks.sm [MHz]", "fb": "memory.used [MiB]", "rxpci": "pcie_rx [MB/s]",
    "txpci": "pcie_tx [MB/s]",
}  # fmt: skip


def looks_like_dmon(head: str) -> bool:
    """Does a text that begins with `head` have the header line of one of the two."""
    lines = head.lstrip("\ufeff").split("\n", 40)[:40]
    return any(_header(line) is not None for line in lines)


def read(text: str, where: str, node: str, modified_ns: int, period_s: float | None) -> Rows:
    """Rows of one log; raises RecordingError where no line is a sample."""
    names: list[str] = []
    columns: dict[str, list[str | None]] = {}
    times: list[str] = []
    odd = 0
    for line in text.removeprefix("\ufeff").split("\n"):
        if not line.strip():
            continue
        if (header := _header(line)) is not None:
            names = header
            continue
        cells = _BETWEEN.split(line.strip())
        if _below_header(cells):
            continue
        at = _entity(cells)
        if at is not None:
            cells[at : at + 2] = [f"{cells[at]} {cells[at + 1]}"]
        before = len(cells) - len(names)
        if not names or before < 0 or (at is None and "Entity" in names):
            odd += 1
            continue
        times.append(" ".join(cells[:before]).strip("[]"))
        size = len(times)
        for name, cell in zip(names, cells[before:], strict=True):
            column = columns.setdefault(name, [])
            column.extend([None] * (size - 1 - len(column)))
            column.append(cell)
    if not times:
        raise RecordingError(f"{where}: expected lines of samples below the header of dmon, came none")
    for column in columns.values():
        column.extend([None] * (len(times) - len(column)))
    notes = [f"{where}: {odd} lines that fit no header were left out"] if odd else []
    if "Date" in columns or "Time" in columns:
        said = [columns.pop(name) for name in ("Date", "Time") if name in columns]
        times = [" ".join(cell or "" for cell in cells) for cells in zip(*said, strict=True)]
    gpus = columns["Entity"] if "Entity" in columns else columns["gpu"]
    told = _times(times, gpus, where, modified_ns, period_s, notes)
    table = {"time": pa.array(told)}
    for name, cells in columns.items():
        table[name if "Entity" in columns else SMI.get(name, name)] = pa.array(cells, pa.string())
    rows = rows_of_table(pa.table(table), where, node)
    return replace(rows, notes=(*notes, *rows.notes))


def _times(
    said: list[str],
    gpus: list[str | None],
    where: str,
    modified_ns: int,
    period_s: float | None,
    notes: list[str],
) -> list[str] | list[int]:
    """Per line its time as text, or in nanoseconds where no line says one."""
    modified = datetime.fromtimestamp(modified_ns / 1e9, UTC)
    if said[0] and re.fullmatch(r"\d\d:\d\d:\d\d(\.\d+)?", said[0]):
        notes.append(
            f"{where}: its times say no day: that of the file's modification is used, {modified:%Y-%m-%d}"
        )
        return [f"{modified:%Y-%m-%d} {text}" for text in said]
    if said[0] and re.fullmatch(r"[A-Z][a-z]{2} +\d{1,2} \d\d:\d\d:\d\d(\.\d+)?", said[0]):
        notes.append(
            f"{where}: its times say no year: that of the file's modification is used, {modified:%Y}"
        )
        known = {text: _without_year(text, modified.year) for text in set(said)}
        return [known[text] for text in said]
    if said[0]:
        return said
    apart_s = DEFAULT_PERIOD_S if period_s is None else period_s
    counts: dict[str | None, int] = {}
    number = []
    for gpu in gpus:
        number.append(counts.get(gpu, 0))
        counts[gpu] = number[-1] + 1
    if period_s is None:
        notes.append(
            f"{where}: no line says a time: taken as {apart_s:g} s apart, the tools' default, and ending "
            "when the file was written; say how far apart they are with --period"
        )
    last = max(counts.values()) - 1
    return [modified_ns - round((last - at) * apart_s * 1e9) for at in number]


def _without_year(text: str, year: int) -> str:
    """`Oct 09 08:53:20` in ISO 8601; as it is where it is no time."""
    whole, _, part = text.partition(".")
    try:
        moment = datetime.strptime(f"{year} {whole}", "%Y %b %d %H:%M:%S")
    except ValueError:
        return text
    return f"{moment:%Y-%m-%dT%H:%M:%S}" + (f".{part}" if part else "")


def _header(line: str) -> list[str] | None:
    """Names of the columns where the line is a header; None for any other."""
    found = _HEADER.fullmatch(line.rstrip())
    names = _BETWEEN.split(found.group(2).strip()) if found else []
    return names if len(names) > 1 and ({"Entity", "gpu"} & set(names)) else None


def _below_header(cells: list[str]) -> bool:
    """Is it the second line of a header: units, or the word ID."""
    return any(cell.startswith("#") or cell in ("ID", "Id", "Idx") for cell in cells)


def _entity(cells: list[str]) -> int | None:
    """Where the two words `GPU 0` begin."""
    kinds = ("GPU", "GPU-I", "GPU-CI", "Switch", "CPU")
    return next((at for at, cell in enumerate(cells[:-1]) if cell in kinds), None)
