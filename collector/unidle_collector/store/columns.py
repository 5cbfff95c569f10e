"""How a field of the table is kept in Parquet: in base units, so that any tool can read a segment.

What has a decimal resolution (ratios, watts, seconds, joules) is a DECIMAL on 64 bits, delta-packed; a
gauge whose resolution is 1 or more (bytes, hertz, degrees) is the float that came, byte for byte, clocks
with a dictionary; whole counters and states are 64-bit integers, delta-packed. Measured in
docs/adr/0002-embedded-store.md. Unknown is null.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from unidle_agent.fields import UNKNOWN_U8, Field

FORMAT = "1"
"""Version of the layout of a segment, in its metadata as `unidle.format`."""

PRECISION = 18
"""Decimal digits that 64 bits hold; a value with more of them is no measurement and becomes unknown."""

COMPRESSION = "zstd"
COMPRESSION_LEVEL = 1
"""3 saves 0.5 % and costs 10 % more time."""

DTYPES: dict[str, str] = {"f4": "<f4", "f8": "<f8", "u8": "<u8"}
FLOATS = {"f4": pa.float32(), "f8": pa.float64()}
NAME = pa.dictionary(pa.int32(), pa.string())
KEYS: dict[str, Any] = {
    "time_ns": pa.int64(),
    "node": NAME,
    "gpu": NAME,
    "job": NAME,
    "simulated": pa.bool_(),
    "first_ns": pa.int64(),
    "last_ns": pa.int64(),
    "rows": pa.int64(),
    "span_ns": pa.int64(),
}
"""The columns before the fields; a host segment has no `gpu` and no `job`, and rows at 1 s end with
`simulated`. `rollup.Rolled` says what those after it are.

`job` is null where nobody says who holds the GPU, and empty where nobody holds it.
"""


def decimal_step(spec: Field) -> tuple[int, int]:
    """`spec`'s resolution as (digits, step): step / 10**digits, so 0.0001 is (4, 1) and 0.5 is (1, 5)."""
    return _decimal_step(spec.resolution)


@cache
def _decimal_step(resolution: float) -> tuple[int, int]:
    _, numbers, exponent = Decimal(repr(resolution)).normalize().as_tuple()
    return max(0, -int(exponent)), int("".join(map(str, numbers)))


def arrow_type(spec: Field) -> Any:
    """The Arrow type of a column of `spec`."""
    if spec.resolution < 1:
        return pa.decimal64(PRECISION, decimal_step(spec)[0])
    return pa.uint64() if spec.dtype == "u8" else FLOATS[spec.dtype]


def to_arrow(spec: Field, values: NDArray[Any]) -> Any:
    """A column for Parquet from one of the wire: in `spec`'s dtype, counters in steps of its resolution.

    A column without anything unknown, which is most of them, is gone over as few times as can be.
    """
    if spec.dtype == "u8":
        known = values != UNKNOWN_U8
        if spec.resolution >= 1:
            return arrow(pa.uint64(), values, known)
        _, step = decimal_step(spec)
        known &= values < 10**PRECISION // step
        whole = values if known.all() else np.where(known, values, 0)
        return arrow(arrow_type(spec), whole.astype(np.int64) * step, known)
    known = np.isfinite(values)
    complete = bool(known.all())
    if spec.resolution >= 1:
        return arrow(FLOATS[spec.dtype], values.astype(DTYPES[spec.dtype], copy=False), known)
    digits, step = decimal_step(spec)
    scaled = np.multiply(values if complete else np.where(known, values, 0), 10**digits / step, dtype="f8")
    np.rint(scaled, out=scaled)
    limit = 10**PRECISION // step
    if scaled.size and max(scaled.max(), -scaled.min()) >= limit:
        known &= np.abs(scaled) < limit
        scaled = np.where(known, scaled, 0)
    whole = scaled.astype(np.int64)
    return arrow(arrow_type(spec), whole if step == 1 else whole * step, known)


def to_numpy(spec: Field, column: Any) -> NDArray[Any]:
    """What `to_arrow` was given: in `spec`'s dtype, counters in steps of its resolution, unknown as such."""
    kind = arrow_type(spec)
    chunks = column.chunks if column.type == kind else [part.cast(kind, safe=False) for part in column.chunks]
    parts = [_one_to_numpy(spec, part) for part in chunks]
    return np.concatenate(parts) if parts else np.empty(0, DTYPES[spec.dtype])


def _one_to_numpy(spec: Field, array: Any) -> NDArray[Any]:
    valid, data = array.buffers()
    if data is None:
        data = bytes(8 * (array.offset + len(array)))
    if spec.dtype != "u8" and spec.resolution >= 1:
        values = _window(data, DTYPES[spec.dtype], array).copy()
    elif spec.dtype == "u8":
        values = _window(data, "<u8", array)
        values = values.copy() if spec.resolution >= 1 else values // np.uint64(decimal_step(spec)[1])
    else:
        scale = 10 ** decimal_step(spec)[0]
        values = (_window(data, "<i8", array) / scale).astype(DTYPES[spec.dtype])
    if array.null_count:
        bits = np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")
        unknown = bits[array.offset : array.offset + len(array)] == 0
        values[unknown] = UNKNOWN_U8 if spec.dtype == "u8" else np.nan
    return values


def _window(data: Any, dtype: str, array: Any) -> NDArray[Any]:
    return np.frombuffer(data, dtype, len(array), array.offset * np.dtype(dtype).itemsize)


def arrow(kind: Any, values: NDArray[Any], known: NDArray[np.bool_] | None = None) -> Any:
    """An Arrow array over the memory of `values`, null where not `known`.

    Not pa.array: that imports pandas, where it is installed, and costs the collector 50 MB.
    """
    valid = None
    if known is not None and not known.all():
        valid = pa.py_buffer(np.packbits(known, bitorder="little"))
    return pa.Array.from_buffers(kind, len(values), [valid, pa.py_buffer(np.ascontiguousarray(values))])


def names(codes: NDArray[np.int32], texts: Sequence[str]) -> Any:
    """A dictionary column: row -> texts[code], null where the code is negative."""
    encoded = [text.encode() for text in texts]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
    dictionary = pa.Array.from_buffers(
        pa.string(), len(texts), [None, pa.py_buffer(ends), pa.py_buffer(b"".join(encoded))]
    )
    return pa.DictionaryArray.from_arrays(arrow(pa.int32(), codes, codes >= 0), dictionary)


def flags(values: NDArray[np.bool_]) -> Any:
    """A column of true and false."""
    packed = pa.py_buffer(np.packbits(values, bitorder="little"))
    return pa.Array.from_buffers(pa.bool_(), len(values), [None, packed])


def schema(keys: Iterable[str], specs: Iterable[Field]) -> Any:
    """The schema of a segment: key columns, then fields with unit and kind in their metadata."""
    columns = [pa.field(name, KEYS[name]) for name in keys]
    columns += [
        pa.field(spec.name, arrow_type(spec), metadata={"unit": spec.unit, "kind": spec.kind})
        for spec in specs
    ]
    return pa.schema(columns, metadata={"unidle.format": FORMAT})


def write_options(table_schema: Any) -> dict[str, Any]:
    """Keywords for a ParquetWriter of `table_schema`: the encoding of each column, zstd, few statistics."""
    names = [field.name for field in table_schema]
    as_dictionary = [field.name for field in table_schema if _takes_few_values(field, rolled="rows" in names)]
    encodings = {}
    for field in table_schema:
        if field.name in as_dictionary:
            continue
        if pa.types.is_floating(field.type):
            encodings[field.name] = "BYTE_STREAM_SPLIT"
        elif pa.types.is_integer(field.type) or pa.types.is_decimal(field.type):
            encodings[field.name] = "DELTA_BINARY_PACKED"
    return {
        "compression": COMPRESSION,
        "compression_level": COMPRESSION_LEVEL,
        "use_dictionary": as_dictionary,
        "column_encoding": encodings,
        "write_statistics": [name for name in ("time_ns", "node", "gpu", "job") if name in names],
        "store_decimal_as_integer": True,
    }


def _takes_few_values(field: Any, *, rolled: bool) -> bool:
    """Texts, and clocks, which a GPU can set in steps of some MHz only; but means of clocks lie anywhere."""
    if pa.types.is_dictionary(field.type):
        return True
    is_clock = (field.metadata or {}).get(b"unit") == b"Hz"
    return is_clock and (not rolled or field.name.endswith((".min", ".max")))


def texts_of(column: Any) -> tuple[NDArray[np.int32], list[str]]:
    """What `names` made, for a column without nulls: (code per row, texts)."""
    whole = column.unify_dictionaries().combine_chunks()
    return _numbers(whole.indices, np.dtype(np.int32)), whole.dictionary.to_pylist()


def ordered(table: Any) -> Any:
    """`table` sorted by node, GPU (where there is one) and time."""
    keys = [_numbers(table.column("time_ns").combine_chunks(), np.dtype(np.int64))]
    for name in ("gpu", "node"):
        if name in table.column_names:
            codes, texts = texts_of(table.column(name))
            place = np.empty(len(texts), np.int64)
            place[sorted(range(len(texts)), key=texts.__getitem__)] = np.arange(len(texts))
            keys.append(place[codes])
    return table.take(arrow(pa.int64(), np.lexsort(keys)))


def _numbers(array: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The values of an Arrow array without nulls."""
    return np.frombuffer(array.buffers()[1], dtype, len(array), array.offset * dtype.itemsize)
