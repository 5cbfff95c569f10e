"""The last looks at every GPU, in memory that the NVML child writes and the agent reads.

The memory outlives the child: what a child saw before it hung in the driver or was killed can be read
without it, and the next child goes on behind it. One writer at a time, any number of readers, no lock.

    header, then for each place: name of the GPU, then `capacity` records
    record: number of the look (u64, from 1), time (u64), one f4 per field, CRC-32 of all that

The record of look n is at n modulo `capacity`. A reader takes the records whose checksum fits: one that
is half written, by a writer at work or by one that was killed, is no look.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
import zlib
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unidle_agent.sample import Value

WINDOW_S = 120.0
"""How far back the ring reaches."""
PLACES = 32
"""Most GPUs of a node that have a place; memory of a place that nobody writes to is never taken."""

RECORDED = (
    *("gpu_util_ratio", "memory_util_ratio", "sm_active_ratio", "tensor_active_ratio"),
    *("power_w", "power_instant_w", "sm_clock_hz", "memory_clock_hz"),
    *("temperature_c", "memory_temperature_c", "memory_used_bytes", "clock_event_reasons"),
)
"""Fields of the table that a look keeps, as f4: enough for each (bits below 2^24, bytes to 1 in 10^7).
What a look does not ask for (memory, heat, GPM between two rows) is unknown in it."""

_NAN = float("nan")
_MOST = 3.4028234663852886e38
"""Largest f4 (IEEE 754)."""
_MAGIC = b"unidleF1"
_HEADER = struct.Struct("=8sIII")
"""Magic, capacity, places, CRC-32 of the names of the fields."""
_NAME_BYTES = 96
_BODY = struct.Struct(f"=QQ{len(RECORDED)}f")
_CRC = struct.Struct("=I")
_RECORD_BYTES = _BODY.size + _CRC.size
_FIELDS_CRC = zlib.crc32("\n".join(RECORDED).encode())


@dataclass(frozen=True, slots=True)
class Looks:
    """Looks at one GPU, oldest first: n times and n values of each field; NaN is unknown."""

    times_ns: array[int]
    columns: dict[str, array[float]]
    """Field of `RECORDED` -> f4 values; a field that no look knew is not there."""


class Ring:
    """The shared memory; made by `create` in the agent, found again by `attach` in its child."""

    def __init__(self, fd: int, memory: mmap.mmap, capacity: int) -> None:
        self.fd = fd
        """To be inherited by the child."""
        self.capacity = capacity
        """Looks of one GPU that are kept."""
        self._memory = memory
        self._firsts: dict[str, int] = {}
        """GPU -> where its records begin."""
        self._next: dict[str, int] = {}

    @classmethod
    def create(cls, looks_per_s: float) -> Ring:
        """Memory for `WINDOW_S` of looks at so many per second; raises OSError where there is none."""
        capacity = math.ceil(WINDOW_S * looks_per_s) + 1
        fd = os.memfd_create("unidle-flight")
        try:
            os.ftruncate(fd, _HEADER.size + PLACES * _place_bytes(capacity))
            memory = mmap.mmap(fd, 0)
        except OSError:
            os.close(fd)
            raise
        _HEADER.pack_into(memory, 0, _MAGIC, capacity, PLACES, _FIELDS_CRC)
        return cls(fd, memory, capacity)

    @classmethod
    def attach(cls, fd: int) -> Ring | None:
        """The ring behind `fd`; None where another version of unidle made it (an update under way)."""
        memory = mmap.mmap(fd, 0)
        magic, capacity, places, fields_crc = _HEADER.unpack_from(memory)
        if (magic, places, fields_crc) != (_MAGIC, PLACES, _FIELDS_CRC):
            memory.close()
            return None
        return cls(fd, memory, capacity)

    def write(self, gpu: str, time_ns: int, values: Mapping[str, Value]) -> None:
        """Keep one look at the GPU of that UUID, in place of the oldest; beyond `PLACES` GPUs it is left."""
        first = self._firsts.get(gpu)
        if first is None:
            first = self._take_place(gpu)
            if first is None:
                return
        number = self._next[gpu]
        self._next[gpu] = number + 1
        body = _body(number, time_ns, values)
        start = first + number % self.capacity * _RECORD_BYTES
        self._memory[start : start + _RECORD_BYTES] = body + _CRC.pack(zlib.crc32(body))

    def read(self, gpu: str) -> Looks:
        """The looks of the last `WINDOW_S` before the newest one; empty where there are none."""
        place = self._find(gpu)
        records = [] if place is None else self._records(place)
        # What a buffer of the driver held is written after looks that were taken meanwhile.
        records.sort(key=lambda record: (record[1], record[0]))
        if records:
            since_ns = records[-1][1] - int(WINDOW_S * 1e9)
            records = [record for record in records if record[1] >= since_ns]
        columns = {
            name: array("f", [_finite(record[2 + number]) for record in records])
            for number, name in enumerate(RECORDED)
        }
        known = {
            name: values for name, values in columns.items() if not all(value != value for value in values)
        }
        return Looks(array("q", [record[1] for record in records]), known)

    def close(self) -> None:
        """Let go of the memory; it is gone when the child lets go, too."""
        self._memory.close()
        os.close(self.fd)

    def _take_place(self, gpu: str) -> int | None:
        """Where the records of a GPU begin that this process writes for the first time; None is nowhere."""
        place = self._find(gpu)
        if place is None:
            place = self._find("")
            if place is None:
                return None
            start = self._start(place)
            self._memory[start : start + _NAME_BYTES] = gpu.encode().ljust(_NAME_BYTES, b"\0")
        self._firsts[gpu] = self._first(place)
        self._next[gpu] = 1 + max((record[0] for record in self._records(place)), default=0)
        return self._firsts[gpu]

    def _find(self, gpu: str) -> int | None:
        name = gpu.encode().ljust(_NAME_BYTES, b"\0")
        for place in range(PLACES):
            start = self._start(place)
            if self._memory[start : start + _NAME_BYTES] == name:
                return place
        return None

    def _records(self, place: int) -> list[tuple[Any, ...]]:
        """(number, time, values ...) of every whole record, in no order."""
        start = self._first(place)
        data = self._memory[start : start + self.capacity * _RECORD_BYTES]
        found = []
        for offset in range(0, len(data), _RECORD_BYTES):
            body = data[offset : offset + _BODY.size]
            record = _BODY.unpack(body)
            if record[0] and _CRC.unpack_from(data, offset + _BODY.size)[0] == zlib.crc32(body):
                found.append(record)
        return found

    def _start(self, place: int) -> int:
        return _HEADER.size + place * _place_bytes(self.capacity)

    def _first(self, place: int) -> int:
        return self._start(place) + _NAME_BYTES


def bytes_per_gpu(looks_per_s: float) -> int:
    """Memory that one GPU takes in a ring for so many looks per second."""
    return _place_bytes(math.ceil(WINDOW_S * looks_per_s) + 1)


def _place_bytes(capacity: int) -> int:
    return _NAME_BYTES + capacity * _RECORD_BYTES


def _finite(value: float) -> float:
    return value if -_MOST <= value <= _MOST else _NAN


def _body(number: int, time_ns: int, values: Mapping[str, Value]) -> bytes:
    """A record without its checksum. Hardly ever is a value none that f4 holds: none is looked at first."""
    try:
        return _BODY.pack(number, time_ns, *[values.get(name, _NAN) for name in RECORDED])
    except OverflowError:
        return _BODY.pack(number, time_ns, *[_f4(values.get(name)) for name in RECORDED])


def _f4(value: Value | None) -> float:
    return _NAN if value is None else _finite(value)
