"""From the cells of one column to numbers in base units, or to names.

Blank cells, `N/A`, `[Not Supported]` and DCGM's own "no value" numbers are unknown, never zero.
"""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from unidle_agent.dcgm_values import DOUBLE_BLANK, INT32_BLANK, INT64_BLANK
from unidle_agent.fields import MIB, Field
from unidle_collector.recorded.columns import Meaning, factor_of, normal, without_unit
from unidle_collector.recorded.rows import RecordingError

ABSENT = frozenset(
    {"", "n/a", "na", "nan", "none", "null", "-", "--", "[n/a]", "[not supported]", "not supported"}
    | {"[unknown error]", "unknown", "[gpu is lost]", "[insufficient permissions]", "err!", "<na>"}
)
"""Texts that tools write for "no value", in lower case."""

MOST_LINK_KB_PER_S = {"pcie": 2.6e8, "nvli": 1.8e9}
"""By the beginning of the field's name: more than the fastest link moves, in KB per second."""

OF_ALL_CORES = frozenset({"cpu_busy_ratio", "cpu_iowait_ratio"})
"""At most 1; and 0.3 may as well be 0.3 %, as a quiet host shows."""

SCALED = 0.2
"""Utilization that reaches this and never exceeds 1 is a ratio: as percent nothing would ever have run."""

_NUMBER = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(.*?)\s*", re.DOTALL)


def numbers(
    column: pa.ChunkedArray, name: str, means: Meaning, notes: list[str]
) -> NDArray[np.float64] | None:
    """The column in base units with NaN for unknown; None when its unit cannot be told (and noted).

    Raises RecordingError when the values contradict the unit that the column's name promises.
    """
    raw, unit = _raw(column, name, notes)
    raw = np.where(_sentinel(raw, means), np.nan, raw)
    told = factor_of(means.field, unit) if unit else None
    if means.field.name in OF_ALL_CORES and not means.own and bool((raw > 100.5).any()):
        notes.append(f"column {name!r}: left out, it sums cores: {means.field.name} is of all, at most 100 %")
        return None
    if told is not None:
        return raw * told
    if unit:
        notes.append(
            f"column {name!r}: left out, {means.field.name} is in {means.field.unit}, its cells say {unit!r}"
        )
        return None
    if not means.unit_told:
        return _by_evidence(raw, name, means.field, notes)
    if means.field.unit == "1" and means.factor == 1.0:
        return _checked_ratio(raw, name, means, notes)
    if means.field.unit == "1" and np.isfinite(raw).any() and 0 < np.nanmax(raw) <= 1:
        if np.nanmax(raw) > SCALED and without_unit(name) == normal(name) and (raw % 1 > 0).any():
            notes.append(
                f"column {name!r} holds ratios 0-1, not the percent that its name stands for: read so; "
                f"if nothing ran and it is percent, name it {means.field.name.removesuffix('_ratio')}_pct"
            )
            return raw
        notes.append(
            f"column {name!r} never exceeds 1 and was read as percent, as its name says; "
            f"if it holds ratios, name it {means.field.name}"
        )
    return raw * means.factor if means.factor >= 1 else raw / round(1 / means.factor)


def _raw(column: pa.ChunkedArray, name: str, notes: list[str]) -> tuple[NDArray[np.float64], str]:
    """Numbers as written, and the unit that the cells themselves carry."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if pa.types.is_boolean(kind):
        column = column.cast(pa.uint8())
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        try:
            column = column.cast(pa.float64(), safe=False)  # counters beyond 2^53
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise RecordingError(f"column {name!r}: expected numbers, came {kind}") from error
        return column.to_numpy(zero_copy_only=False).astype(np.float64), ""
    distinct, codes = distinct_texts(column)
    parsed = [_cell(text) for text in distinct]
    units = {unit for _, unit in parsed if unit}
    if strange := [text for text, cell in zip(distinct, parsed, strict=True) if cell is _STRANGE]:
        notes.append(
            f"column {name!r}: {len(strange)} texts that are no number are unknown, e.g. {strange[0]!r}"
        )
    if len(units) > 1:
        raise RecordingError(
            f"column {name!r}: expected one unit, came {', '.join(sorted(units))}: convert it first"
        )
    table = np.array([value for value, _ in parsed] + [np.nan])
    return table[codes], next(iter(units), "")


_STRANGE = (float("nan"), "")


def _cell(text: str) -> tuple[float, str]:
    """`45 %` -> (45.0, "%"); hexadecimal as nvidia-smi writes bit masks."""
    bare = text.strip()
    if bare.lower() in ABSENT or (bare.startswith("<<<") and bare.endswith(">>>")):
        return (float("nan"), "")
    if bare[:2].lower() == "0x":
        try:
            return (float(int(bare, 16)), "")
        except ValueError:
            return _STRANGE
    found = _NUMBER.fullmatch(bare)
    return (float(found.group(1)), found.group(2).lower()) if found else _STRANGE


def _sentinel(raw: NDArray[np.float64], means: Meaning) -> NDArray[np.bool_]:
    """Where DCGM printed a number that means "no value", and where there is none below zero."""
    blank = ((raw >= INT32_BLANK) & (raw <= INT32_BLANK + 3)) | (raw >= float(INT64_BLANK)) | np.isinf(raw)
    if means.field.dtype != "u8":
        blank |= (raw >= DOUBLE_BLANK) & (raw <= DOUBLE_BLANK + 3)
    return blank | (raw < 0) if means.field.unit != "Cel" else blank


def _checked_ratio(
    raw: NDArray[np.float64], name: str, means: Meaning, notes: list[str]
) -> NDArray[np.float64]:
    """A column that promises 0-1: percent is converted and said, anything else above 1 is an error."""
    over = raw > 1.5
    if not over.any():
        return raw
    most = float(np.nanmax(raw))
    in_use = np.count_nonzero(raw > 0)
    if most <= 100.5 and np.count_nonzero(over) >= 0.5 * in_use:
        notes.append(f"column {name!r} holds percent, not the ratio 0-1 that its name says: divided by 100")
        return raw / 100
    if np.count_nonzero(over) <= 0.001 * in_use:
        notes.append(f"column {name!r}: {np.count_nonzero(over)} values above 1.5 in a ratio are unknown")
        return np.where(over, np.nan, raw)
    raise RecordingError(
        f"column {name!r}: expected a ratio from 0 to 1 ({means.field.name}), came values up to {most:g}; "
        "divide it, or give the column the name of the unit that it holds (for percent: gpu_util_pct)"
    )


def _by_evidence(
    raw: NDArray[np.float64], name: str, spec: Field, notes: list[str]
) -> NDArray[np.float64] | None:
    """A column whose name says no unit: decide by the size of its values, and say so; None if unclear."""
    known = raw[np.isfinite(raw)]
    if not known.size or not known.any():
        return raw  # nothing, or zero in every unit
    factor, unit = _likely_unit(spec, known)
    if factor is None:
        notes.append(
            f"column {name!r}: left out, its unit cannot be told from its values; "
            f"name it {spec.name} and give {spec.unit}"
        )
        return None
    if spec.unit != "Cel":
        notes.append(f"column {name!r} says no unit: read as {unit} of {spec.name}")
    return raw * factor if factor >= 1 else raw / round(1 / factor)


def _likely_unit(spec: Field, known: NDArray[np.float64]) -> tuple[float | None, str]:
    most = float(known.max())
    if spec.unit == "1":
        if most > 1.5:
            return (0.01, "percent") if most <= 100.5 else (None, "")
        if spec.name in OF_ALL_CORES:
            return None, ""
        return (1.0, "ratio 0-1") if (known != np.floor(known)).any() else (None, "")
    if spec.unit == "W":
        return (1.0, "W") if most < 5_000 else (1e-3, "mW")
    if spec.unit == "Hz":
        return (1e6, "MHz") if most < 1e5 else (1.0, "Hz")
    if spec.unit == "Cel":
        return 1.0, "degrees Celsius"
    if spec.unit == "By/s":
        # No link moves as much in KB (PCIe 7 x16: 256 GB/s; NVLink 5, both ways: 1,800 GB/s).
        return (1.0, "bytes per second") if most >= MOST_LINK_KB_PER_S[spec.name[:4]] else (None, "")
    if spec.unit == "By":
        # No GPU has a TiB of memory in GiB or 4 TiB in MiB; no running one uses less than 16 MiB at most.
        if most <= 1_024:
            return 1_024 * MIB, "GiB"
        return (MIB, "MiB") if most < 4 * MIB else (1.0, "bytes")
    return None, ""


# Names


def texts(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], list[str]]:
    """Per cell an index into the list of distinct texts; -1 where the cell is empty or says "none"."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if pa.types.is_floating(kind):
        column = _whole_floats(column)
    if not pa.types.is_string(column.type):
        column = column.cast(pa.string())
    written, codes = distinct_texts(column)
    names: dict[str, int] = {}
    place = [-1 if text.lower() in ABSENT else names.setdefault(text, len(names)) for text in written]
    return np.array([*place, -1], dtype=np.int64)[codes], list(names)


def distinct_texts(column: pa.ChunkedArray) -> tuple[list[str], NDArray[np.int64]]:
    """The distinct texts of a text column, stripped, and per cell an index into them; an empty cell has
    the index one past the last."""
    whole = column.combine_chunks()
    whole = whole if isinstance(whole, pa.Array) else pa.concat_arrays(whole.chunks)
    coded = whole.dictionary_encode()
    distinct = [text.strip() for text in coded.dictionary.to_pylist()]
    codes = pc.fill_null(coded.indices, len(distinct)).to_numpy(zero_copy_only=False)
    return distinct, codes.astype(np.int64)


def _whole_floats(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """1234.0 -> 1234: pandas writes integer columns with gaps as floats."""
    raw = column.to_numpy(zero_copy_only=False).astype(np.float64)
    known = raw[np.isfinite(raw)]
    if known.size and (known == np.floor(known)).all() and np.abs(known).max() < 2**53:
        empty = ~np.isfinite(raw)
        return pa.chunked_array([pa.array(np.where(empty, 0, raw).astype(np.int64), mask=empty)])
    return column
