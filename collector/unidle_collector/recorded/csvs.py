"""Reads tables written as text: separated by commas, semicolons, tabs or bars."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pyarrow as pa
import pyarrow.csv as arrow_csv

from unidle_collector.recorded.columns import meaning, role_columns
from unidle_collector.recorded.rows import RecordingError, Rows
from unidle_collector.recorded.tables import rows_of_table

HEAD_BYTES = 65_536
_COMMA, _POINT = re.compile(rb"[;\t|]\s*\d+,\d+\s*[;\t|\r\n]"), re.compile(rb"[;\t|]\s*\d+\.\d+\s*[;\t|\r\n]")
SEPARATORS = ",;\t|"


def separator(header: str) -> str:
    """The separator of a header line; empty when it has none."""
    best = max(SEPARATORS, key=header.count)
    return best if best in header else ""


def read(data: bytes, where: str, node: str) -> Rows:
    """Rows of one text table. A line with another number of cells loses itself only and is counted."""
    data = _once(_without_preamble(data))
    header = data.split(b"\n", 1)[0].decode("utf-8", "replace")
    if not separator(header) and len(header.split()) > 1:
        data = re.sub(rb"(?m)^[ ]+|[ ]+$", b"", data)
        data = re.sub(rb"[ ]+", b",", data)
        header = data.split(b"\n", 1)[0].decode("utf-8", "replace")
    between = separator(header)
    if between and _all_values(header, between):
        raise RecordingError(
            f"{where}: expected a header line with the names of the columns, came values: "
            f"{header[:80]!r}; put the names before it (nvidia-smi: without noheader)"
        )
    if not between:
        raise RecordingError(
            f"{where}: expected a header line with column names separated by commas, came {header[:80]!r}"
        )
    skipped: list[str] = []
    rows = rows_of_table(_table(data, between, skipped, where), where, node)
    if not skipped:
        return rows
    note = f"{where}: {len(skipped)} lines with a wrong number of cells were left out, e.g. {skipped[0]!r}"
    return replace(rows, notes=(*rows.notes, note))


def _without_preamble(data: bytes) -> bytes:
    """From the header line on: blank lines before it go, and so do comments. A header may begin with "#":
    the line below it is none of these and has as many cells."""
    while data:
        line, _, rest = data.partition(b"\n")
        bare = line.strip()
        if bare and not bare.startswith(b"#"):
            return data
        text, below = bare.decode("utf-8", "replace"), rest.partition(b"\n")[0].decode("utf-8", "replace")
        between = separator(text)
        alike = between and not below.startswith("#") and below.count(between) == text.count(between)
        if alike and _named(text, between) >= max(1, _named(below, between)):
            return data
        data = rest
    return data


def _all_values(header: str, between: str) -> bool:
    """Is the first line one of values: no cell is a name, some are numbers or times."""
    cells = header.split(between)
    return not _named(header, between) and sum(cell.strip(' "')[:1].isdigit() for cell in cells) >= 2


def _named(line: str, between: str) -> int:
    """How many cells are names that mean something."""
    cells = [cell.strip().lstrip("#").strip(' "') for cell in line.split(between)]
    return sum(meaning(cell) is not None or any(role_columns([cell]).values()) for cell in cells)


def _once(data: bytes) -> bytes:
    """Without the header lines that come again where files were put one after the other."""
    header, end, rest = data.partition(b"\n")
    if rest.count(b"\n" + header + b"\n"):
        rest = (b"\n" + rest).replace(b"\n" + header + b"\n", b"\n").removeprefix(b"\n")
    return header + end + rest


def _comma_is_decimal(head: bytes, between: str) -> bool:
    """`120,5` between semicolons, as tables are written in much of Europe."""
    return between != "," and bool(_COMMA.search(head)) and not _POINT.search(head)


def _table(data: bytes, between: str, skipped: list[str], where: str) -> pa.Table:
    def skip(row: arrow_csv.InvalidRow) -> str:
        skipped.append(str(row.text)[:60])
        return "skip"

    parse = arrow_csv.ParseOptions(delimiter=between, invalid_row_handler=skip)
    guess = arrow_csv.ConvertOptions(
        decimal_point="," if _comma_is_decimal(data[:HEAD_BYTES], between) else "."
    )
    try:
        try:
            return arrow_csv.read_csv(io.BytesIO(data), parse_options=parse, convert_options=guess)
        except pa.ArrowInvalid:
            # Types are guessed from the first lines; a later cell said otherwise. Read all as text.
            skipped.clear()
            names = arrow_csv.open_csv(io.BytesIO(data), parse_options=parse).schema.names
            convert = arrow_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
            skipped.clear()
            return arrow_csv.read_csv(io.BytesIO(data), parse_options=parse, convert_options=convert)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise RecordingError(f"{where}: expected a table of text with a header line: {error}") from error
