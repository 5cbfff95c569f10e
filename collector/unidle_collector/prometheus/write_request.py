"""Reads the body of a remote_write 1.0 request: snappy around a protobuf WriteRequest.

Only what rows are made of is read: the labels of a series, as the bytes they came in (the same bytes
each time, so whoever keeps them parses a series once), and its samples. A protobuf library would build
an object for each of the ten labels of every sample. Native histograms, exemplars and metadata are
skipped. https://prometheus.io/docs/specs/prw/remote_write_spec/
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

import cramjam

from unidle_agent.errors import UnidleError

MAX_UNPACKED_BYTES = 64 * 1024 * 1024
"""Most bytes of a request once unpacked; Prometheus sends 2,000 samples at a time, some 0.5 MB."""
STALE_BITS = 0x7FF0000000000002
"""The NaN that says that a series has ended (model/value/value.go of Prometheus)."""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types of protobuf."""
_DOUBLE = struct.Struct("<d")
_BITS = struct.Struct("<Q")

Sample = tuple[float, int]
"""Value and time in ms."""


class WriteError(UnidleError):
    """The body is no WriteRequest: says what was expected and what came."""


def unpack(body: bytes) -> bytes:
    """The protobuf inside; raises WriteError. What is announced as too long is not unpacked."""
    try:
        size, _ = _varint(body, 0)
    except (IndexError, WriteError) as error:
        raise WriteError(f"expected a snappy block, came {body[:20]!r}") from error
    if size > MAX_UNPACKED_BYTES:
        raise WriteError(f"expected at most {MAX_UNPACKED_BYTES} bytes unpacked, {size} are announced")
    try:
        return bytes(cramjam.snappy.decompress_raw(body))
    except cramjam.DecompressionError as error:
        raise WriteError(f"expected a snappy block: {error}") from error


def series(data: bytes) -> Iterator[tuple[bytes, list[Sample]]]:
    """(bytes of the labels, samples) of each series of a WriteRequest; raises WriteError."""
    try:
        for number, start, end in _fields(data, 0, len(data)):
            if number == 1:
                yield _one(data, start, end)
    except (IndexError, struct.error) as error:
        raise WriteError("expected a whole WriteRequest, its end is missing") from error


def labels(block: bytes) -> dict[str, str]:
    """Labels from their bytes; raises WriteError."""
    out = {}
    try:
        for _, start, end in _fields(block, 0, len(block)):
            text = {
                number: block[first:last].decode("utf-8")
                for number, first, last in _fields(block, start, end)
            }
            out[text.get(1, "")] = text.get(2, "")
    except (IndexError, UnicodeDecodeError) as error:
        raise WriteError(f"expected labels in UTF-8: {error}") from error
    return out


def is_stale(value: float) -> bool:
    """Is it the marker of a series that has ended."""
    return math.isnan(value) and _BITS.unpack(_DOUBLE.pack(value))[0] == STALE_BITS


def _one(data: bytes, start: int, end: int) -> tuple[bytes, list[Sample]]:
    """A TimeSeries: the bytes of its labels, one after the other, and its samples."""
    at = start
    while at < end and data[at] == 0x0A:  # every label of every sample comes by here: no calls
        size = data[at + 1]
        if size < 0x80:
            at += 2 + size
        else:
            size, begin = _varint(data, at + 1)
            at = begin + size
    block, samples = data[start:at], []
    while at < end:
        tag = data[at]
        number, begin, at = _field(data, at)
        if at > end:
            break
        if tag == 0x12:
            samples.append(_sample(data, begin, at))
        elif number == 1:
            raise WriteError("expected the labels of a series before its samples")
    if at != end:
        raise WriteError("expected a whole series, its end is missing")
    return block, samples


def _sample(data: bytes, start: int, end: int) -> Sample:
    if end - start > 9 and data[start] == 0x09 and data[start + 9] == 0x10:
        time_ms, at = _varint(data, start + 10)
        if at == end:
            return _DOUBLE.unpack_from(data, start + 1)[0], _signed(time_ms)
    value, time_ms = 0.0, 0  # protobuf leaves out what is zero
    at = start
    while at < end:
        if data[at] == 0x09:
            value = _DOUBLE.unpack_from(data, at + 1)[0]
            at += 9
        elif data[at] == 0x10:
            time_ms, at = _varint(data, at + 1)
        else:
            _, _, at = _field(data, at)
    return value, _signed(time_ms)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >= 1 << 63 else number


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(field number, start, end of its bytes) of every length-delimited field; others are skipped."""
    at = start
    while at < end:
        kind = data[at] & 7
        number, begin, at = _field(data, at)
        if at > end:
            raise WriteError("expected a whole message, its end is missing")
        if kind == BYTES:
            yield number, begin, at


def _field(data: bytes, at: int) -> tuple[int, int, int]:
    """(field number, start of its content, where the next begins)."""
    tag, begin = _varint(data, at)
    kind = tag & 7
    if kind == VARINT:
        return tag >> 3, begin, _varint(data, begin)[1]
    if kind == BYTES:
        size, begin = _varint(data, begin)
        return tag >> 3, begin, begin + size
    if kind in (FIXED64, FIXED32):
        return tag >> 3, begin, begin + (8 if kind == FIXED64 else 4)
    raise WriteError(f"expected a protobuf message, came wire type {kind}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    out = shift = 0
    while True:
        byte = data[at]
        at += 1
        out |= (byte & 0x7F) << shift
        if byte < 0x80:
            return out, at
        shift += 7
        if shift > 63:
            raise WriteError("expected a protobuf message, came a number of more than 64 bits")
