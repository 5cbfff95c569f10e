"""A sender of remote_write, for tests: writes protobuf by its specification, not by our reader."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import cramjam

Sample = tuple[float, int]


def varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def message(field: int, body: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(body)) + body


def one_series(labels: Mapping[str, str], samples: Sequence[Sample]) -> bytes:
    named = b"".join(
        message(1, message(1, key.encode()) + message(2, text.encode()))
        for key, text in sorted(labels.items())
    )
    said = b""
    for value, time_ms in samples:
        # proto3: what has its default is left out
        body = (b"\x09" + struct.pack("<d", value) if struct.pack("<d", value) != bytes(8) else b"") + (
            b"\x10" + varint(time_ms) if time_ms else b""
        )
        said += message(2, body)
    return message(1, named + said)


def write_request(*series: tuple[Mapping[str, str], Sequence[Sample]]) -> bytes:
    return b"".join(one_series(labels, samples) for labels, samples in series)


def packed(*series: tuple[Mapping[str, str], Sequence[Sample]]) -> bytes:
    return bytes(cramjam.snappy.compress_raw(write_request(*series)))
