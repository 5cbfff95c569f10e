"""What a driver remembers of the seconds before: ring buffers of power, utilization and SM clock.

Where a buffer holds more samples a second than we would look, one read a second gives more than the
looks, for fewer calls, and nothing between two reads is missed. A sample speaks for the time since the
sample before it, by the driver's own clock.

A buffer may run dry while its GPU idles (error 6, "not found"); then what it is about is looked at again.
Instances of MIG have none. What a buffer is of is asked once: "not supported" is for good.
"""

from __future__ import annotations

import ctypes
import statistics
import struct
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pynvml

from unidle_agent.sources.nvml_direct import call, plain, value_of
from unidle_agent.subsecond import LONGEST_S, Piece

BUFFERS: Mapping[str, tuple[int, float]] = {
    "power_instant_w": (pynvml.NVML_TOTAL_POWER_SAMPLES, 1e-3),
    "gpu_util_ratio": (pynvml.NVML_GPU_UTILIZATION_SAMPLES, 1e-2),
    "memory_util_ratio": (pynvml.NVML_MEMORY_UTILIZATION_SAMPLES, 1e-2),
    "sm_clock_hz": (pynvml.NVML_PROCESSOR_CLK_SAMPLES, 1e6),
}
"""Field -> its nvmlSamplingType_t, and the factor from mW, percent and MHz to base units."""

EVERY_S = 1.0
"""How often they are read; the shortest holds 2 s and more."""
DRY_S = 5.0
"""How long a buffer that ran dry is left before it is read again: looks stand in for it."""
MOST = 4096
"""Most samples that are taken at once: more is a driver that errs."""

_Sample = plain(pynvml.c_nvmlSample_t)
_SAMPLE = struct.Struct("Q8s")
"""nvmlSample_t: microseconds by the driver's clock, and the value."""


class SampleBuffer:
    """One buffer of one GPU, read from where the read before it ended."""

    def __init__(self, handle: Any, kind: int, factor: float, denser_than_s: float) -> None:
        """Whether it is dense enough shows when it first has samples: see `dense`."""
        self._handle, self._kind, self._factor = handle, kind, factor
        self._denser_than_s = denser_than_s
        self.dense: bool | None = None
        """Are its samples closer together than `denser_than_s`; None is not known yet."""
        self._value_type, self._count = ctypes.c_uint(), ctypes.c_uint()
        self._room: Any = None
        self._newest_us = 0
        self._apart_s = denser_than_s
        self._dry = True
        self._due_s = float("-inf")

    def read(self, now_s: float) -> list[Piece]:
        """The samples since the last read, oldest first; none where there are none, or they are sparse.

        After a read that found none, none are looked for until `DRY_S` later.
        Raises pynvml.NVMLError: 3 and 13 where there is no such buffer.
        """
        if now_s < self._due_s:
            return []
        samples = self._fetch()
        if self.dense is None and len(samples) > 2:
            between = [after[0] - before[0] for before, after in pairwise(samples)]
            self._apart_s = statistics.median(between) / 1e6
            self.dense = self._apart_s < self._denser_than_s
            samples = samples[-1:]  # the others were before our time
        if not samples:
            self._dry, self._due_s = True, now_s + DRY_S
            return []
        # After a time without samples nobody knows when the first one's began.
        last_us = samples[0][0] - self._apart_s * 1e6 if self._dry else self._newest_us
        self._newest_us, self._dry = samples[-1][0], False
        pieces: list[Piece] = []
        for time_us, value in samples:
            pieces.append((min((time_us - last_us) / 1e6, LONGEST_S), value))
            last_us = time_us
        return pieces if self.dense else []

    def _fetch(self) -> list[tuple[int, float]]:
        """(Microseconds, value in base units) of what is newer than the newest that was seen."""
        try:
            if self._room is None:
                self._make_room()
            self._count.value = len(self._room)
            self._ask(self._room)
        except pynvml.NVMLError as error:
            if error.value == pynvml.NVML_ERROR_INSUFFICIENT_SIZE:
                self._room = None  # the next read has room
                return []
            if error.value == pynvml.NVML_ERROR_NOT_FOUND:
                return []
            raise
        found: list[tuple[int, float]] = []
        for time_us, raw in _SAMPLE.iter_unpack(self._room):
            if len(found) == self._count.value:
                break
            value = value_of(self._value_type.value, raw)
            if value is not None and time_us > self._newest_us:
                found.append((time_us, value * self._factor))
        return sorted(found)

    def _make_room(self) -> None:
        """As many as the driver says that it keeps; NotFound where it keeps none now."""
        self._count.value = 0
        self._ask(None)
        if not 0 < self._count.value <= MOST:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        self._room = (_Sample * self._count.value)()

    def _ask(self, room: Any) -> None:
        call(
            "nvmlDeviceGetSamples",
            self._handle,
            self._kind,
            ctypes.c_ulonglong(self._newest_us),
            ctypes.byref(self._value_type),
            ctypes.byref(self._count),
            room,
        )
