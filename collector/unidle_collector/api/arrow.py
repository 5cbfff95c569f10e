"""Lists of records as Arrow: a column per field, made from the types of `unidle_collector.model`."""

from __future__ import annotations

import types
from collections.abc import Hashable, Sequence
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import pyarrow as pa

MEDIA_TYPE = "application/vnd.apache.arrow.stream"


def stream(table: pa.Table) -> bytes:
    """An Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def table(kind: type[Any], items: Sequence[Any]) -> pa.Table:
    """Records of the dataclass `kind`, one per row; unknown is null."""
    columns = schema(cast(Hashable, kind))
    return pa.Table.from_pylist([asdict(item) for item in items], schema=columns)


@cache
def schema(kind: Hashable) -> pa.Schema:
    """The columns of a dataclass: structs for dataclasses inside it, lists for tuples, maps for dicts."""
    return pa.schema(_fields(cast(type[Any], kind)))


def _fields(kind: type[Any]) -> list[pa.Field]:
    hints = get_type_hints(kind)
    return [pa.field(one.name, _type(hints[one.name])) for one in fields(kind)]


PLAIN = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def _type(hint: Any) -> pa.DataType:
    if hint in PLAIN:
        return PLAIN[hint]
    if is_dataclass(hint):
        return pa.struct(_fields(hint))  # type: ignore[arg-type]  # a class, never an instance
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Literal:
        return pa.string()
    if origin in (Union, types.UnionType):
        return _type(next(one for one in inside if one is not type(None)))
    if origin is tuple:
        return pa.list_(_type(inside[0]))
    if origin is dict:
        return pa.map_(_type(inside[0]), _type(inside[1]))
    raise TypeError(f"expected a type that Arrow has, came {hint!r}")
