"""From the cells of a time column, or a line of text, to nanoseconds since the epoch."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from unidle_collector.recorded.cells import distinct_texts
from unidle_collector.recorded.columns import unit_in_brackets
from unidle_collector.recorded.rows import A_YEAR_NS, RecordingError

SCALES = {
    **dict.fromkeys(("ns", "nanoseconds"), 1),
    **dict.fromkeys(("us", "microseconds"), 1_000),
    **dict.fromkeys(("ms", "msec", "millis", "milliseconds"), 1_000_000),
    **dict.fromkeys(("min", "minutes"), 60_000_000_000),
}
"""Unit at the end of a column's name -> nanoseconds; seconds and nothing are told by their size."""

_DAY_FIRST = re.compile(r"^(\d\d)\.(\d\d)\.(\d{4})")
"""With dots the day comes first; with slashes or dashes nobody knows."""

NOT_A_TIME = np.iinfo(np.int64).min
"""What `times` gives for a cell that holds no time."""


def times(column: pa.ChunkedArray, name: str, notes: list[str]) -> NDArray[np.int64]:
    """Nanoseconds since the epoch per cell, `NOT_A_TIME` where it holds none.

    Times without a zone are taken as UTC. Raises RecordingError when no cell is a time.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if of_day(column):
        notes.append(f"column {name!r} says no day: all its times are of one")
        column = pc.binary_join_element_wise("1970-01-02", column.cast(pa.string()), " ")
        kind = column.type
    if pa.types.is_timestamp(kind):
        if kind.tz is None:
            notes.append(f"column {name!r} has no time zone: taken as UTC")
        return _as_ns(column.cast(pa.timestamp("ns", tz=kind.tz)).cast(pa.int64()))
    if pa.types.is_duration(kind):
        return _as_ns(column.cast(pa.duration("ns")).cast(pa.int64()))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _text_times(column, name, notes)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return _from_begin(_epoch(column, name), name, notes)
    raise RecordingError(f"column {name!r}: expected times (epoch, ISO 8601 text or timestamps), came {kind}")


def of_day(column: pa.ChunkedArray) -> bool:
    """Does the column hold times of the day, without a date."""
    if pa.types.is_time(column.type):
        return True
    texts = distinct_texts(column)[0][:3] if pa.types.is_string(column.type) else []
    return bool(texts) and all(re.fullmatch(r"\d{1,2}:\d\d(:\d\d(\.\d+)?)?", text) for text in texts)


def _from_begin(found: NDArray[np.int64], name: str, notes: list[str]) -> NDArray[np.int64]:
    known = found[found != NOT_A_TIME]
    if known.size and int(known.max()) < A_YEAR_NS:
        lasts_s = (int(known.max()) - int(known.min())) / 1e9
        notes.append(
            f"column {name!r} counts from the begin of the recording, not from 1970: {lasts_s:,.10g} s in "
            "all, as it was read (name it elapsed_ms, _us or _ns if it holds those)"
        )
    return found


def _as_ns(column: pa.ChunkedArray) -> NDArray[np.int64]:
    filled = pc.fill_null(column, int(NOT_A_TIME))
    return np.asarray(filled.to_numpy(zero_copy_only=False), dtype=np.int64)


def _epoch(column: pa.ChunkedArray, name: str) -> NDArray[np.int64]:
    """Epoch (or seconds since some start) as numbers: the unit by the column's name, else by size."""
    if pa.types.is_integer(column.type):
        whole = _as_ns(column.cast(pa.int64()))
        known = whole[whole != NOT_A_TIME]
        scale = _epoch_scale(name, float(np.median(np.abs(known.astype(np.float64)))) if known.size else 0.0)
        return np.where(whole == NOT_A_TIME, NOT_A_TIME, whole * scale)
    raw = column.cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
    good = np.isfinite(raw)
    scale = _epoch_scale(name, float(np.median(np.abs(raw[good]))) if good.any() else 0.0)
    safe = np.where(good, raw, 0.0)
    whole = np.floor(safe)
    # A double holds today's epoch seconds to 0.2 us: keep what is there, do not multiply noise into it.
    part = np.round((safe - whole) * min(scale, 1_000_000)) * max(scale // 1_000_000, 1)
    return np.where(good, whole.astype(np.int64) * scale + part.astype(np.int64), NOT_A_TIME)


def _epoch_scale(name: str, typical: float) -> int:
    """Nanoseconds per unit of an epoch column."""
    told = unit_in_brackets(name) or re.split(r"[_ ]", name.strip().lower())[-1]
    if told in SCALES:
        return SCALES[told]
    for limit, scale in ((1e11, 1_000_000_000), (1e14, 1_000_000), (1e17, 1_000)):
        if typical < limit:
            return scale
    return 1


def _text_times(column: pa.ChunkedArray, name: str, notes: list[str]) -> NDArray[np.int64]:
    texts, codes = distinct_texts(column)
    try:
        # "20261009" is a day and "1760000000" an epoch.
        if texts and all(re.fullmatch(r"20\d{6}([ T].*)?", text) for text in texts[:10]):
            raise ValueError("a date")
        parsed = _epoch(pa.chunked_array([pa.array(_numbers(texts))]), name)
        parsed = _from_begin(parsed, name, notes)
    except ValueError:
        parsed, without_zone = _written_times(texts)
        if without_zone:
            notes.append(f"column {name!r} has no time zone: taken as UTC")
    if texts and (parsed == NOT_A_TIME).all():
        raise RecordingError(
            f"column {name!r}: expected times (epoch, ISO 8601 text or timestamps), came {texts[0]!r}"
        )
    table = np.append(parsed, NOT_A_TIME)
    return np.asarray(table[codes])


def _numbers(texts: list[str]) -> list[float]:
    """Each text as a number, NaN where it is none; raises ValueError where most are none."""
    out = []
    for text in texts:
        try:
            out.append(float(text))
        except ValueError:
            out.append(float("nan"))
    if sum(number == number for number in out) <= len(out) / 2:
        raise ValueError("no numbers")
    return out


def _written_times(texts: list[str]) -> tuple[NDArray[np.int64], bool]:
    out = np.full(len(texts), NOT_A_TIME, dtype=np.int64)
    without_zone = False
    for at, text in enumerate(texts):
        moment = written_time(text)
        if moment is not None:
            without_zone |= moment.tzinfo is None
            out[at] = to_ns(moment)
    return out, without_zone


def written_time(text: str) -> datetime | None:
    """ISO 8601, nvidia-smi's `2026/10/16 12:00:00.123`, mail dates, `date`'s default, `16.10.2026 12:00:00`;
    None otherwise."""
    iso = text.strip().replace("/", "-")
    readers: tuple[Callable[[], Any], ...] = (
        lambda: datetime.fromisoformat(iso),
        lambda: parsedate_to_datetime(text),
        lambda: datetime.fromisoformat(_DAY_FIRST.sub(r"\3-\2-\1", text.strip())),
        lambda: datetime.strptime(text.strip(), "%a %b %d %H:%M:%S UTC %Y").replace(tzinfo=UTC),
    )
    if not any(char.isdigit() for char in iso):
        return None
    for reader in readers:
        try:
            moment = reader()
        except (ValueError, TypeError, IndexError):
            continue
        if isinstance(moment, datetime):
            return moment
    return None


def to_ns(moment: datetime) -> int:
    """Nanoseconds since the epoch, exact to the microsecond; UTC where no zone is given."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    delta = aware - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * 1_000_000_000 + delta.microseconds * 1_000
