"""GPM: how busy the SMs, the tensor cores, the memory and the links of a Hopper or newer GPU are.

NVML computes these between two samples of the GPU's own counters, without DCGM. The samples of one pair
must be more than 100 ms apart (nvml.h), so one pair of buffers per GPU is filled in turn, once per tick:
a tick's values cover the time since the tick before it, and the first tick has none. Calls are serial:
several GPUs at once have crashed other agents. The values count cycles, not time: read them beside the
SM clock.

A DCGM host engine on this machine may sample the same counters, and sources disagree on whether the two
disturb each other. So `auto` leaves them to DCGM where one answers.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Sequence
from typing import Any

import pynvml

from unidle_agent.fields import GPU_FIELDS, MIB, Field
from unidle_agent.sources.nvml_direct import call, plain

MIN_PAIR_S = 0.11
"""Shortest time between the samples of a pair: the driver's 100 ms, and a tenth for jitter."""

HOST_ENGINE = ("127.0.0.1", 5555)
"""Where a DCGM host engine listens by default."""

METRICS: dict[str, tuple[int, Field, float]] = {
    field.name: (int(field.nvml.removeprefix("GPM ")), field, MIB if field.unit == "By/s" else 0.01)
    for field in GPU_FIELDS
    if field.nvml.startswith("GPM ")
}
"""Field name -> GPM metric id, field, factor to base units: GPM gives MiB/s and percent."""

Answer = tuple[Field, int, float]
"""A field, NVML's return code for it, and its value in base units where the code is 0."""


_MetricsGet = plain(pynvml.c_nvmlGpmMetricsGet_t)
_FIRST_METRIC: int = _MetricsGet.metrics.offset
_METRIC = struct.Struct("IId24x")
"""nvmlGpmMetric_t: id, return code, value, and three pointers to names."""


class GpmPair:
    """The two samples of one GPU, or of the GPU instance `instance` of a MIG GPU."""

    def __init__(self, device: Any, instance: int | None = None) -> None:
        """Raises pynvml.NVMLError: 3 where the GPU or its driver has no GPM."""
        if not pynvml.nvmlGpmQueryDeviceSupport(device).isSupportedDevice:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        self._device, self._instance = device, instance
        self._older: Any = pynvml.nvmlGpmSampleAlloc()
        self._newer: Any = pynvml.nvmlGpmSampleAlloc()
        self._taken_s: float | None = None
        self.span_s = 0.0
        """Time that the last answers are about."""
        # 19 kB, most of it unused: made once. The array is the structure's last member, so a library
        # that knows fewer metrics reads what it knows.
        self._request = _MetricsGet(version=pynvml.NVML_GPM_METRICS_GET_VERSION)
        self._names: tuple[str, ...] = ()

    def read(self, now_s: float, names: Sequence[str]) -> list[Answer]:
        """The fields `names` over the time since the last call; none on the first, or one too soon.

        Raises pynvml.NVMLError.
        """
        if self._taken_s is not None and now_s - self._taken_s < MIN_PAIR_S:
            return []
        if self._instance is None:
            pynvml.nvmlGpmSampleGet(self._device, self._older)
        else:
            pynvml.nvmlGpmMigSampleGet(self._device, self._instance, self._older)
        first = self._taken_s is None
        self.span_s = 0.0 if self._taken_s is None else now_s - self._taken_s
        self._older, self._newer, self._taken_s = self._newer, self._older, now_s
        return [] if first or not names else self._compute(names)

    def close(self) -> None:
        """Give both samples back."""
        for sample in (self._older, self._newer):
            pynvml.nvmlGpmSampleFree(sample)

    def _compute(self, names: Sequence[str]) -> list[Answer]:
        request = self._request
        request.sample1, request.sample2 = self._older, self._newer
        if self._names != tuple(names):
            self._names = tuple(names)
            request.numMetrics = len(names)
            for position, name in enumerate(names):
                request.metrics[position].metricId = METRICS[name][0]
        call("nvmlGpmMetricsGet", ctypes.byref(request))
        answers: list[Answer] = []
        for position, name in enumerate(names):
            _, code, value = _METRIC.unpack_from(request, _FIRST_METRIC + position * _METRIC.size)
            _, field, factor = METRICS[name]
            # One NaN or infinity is a metric without data in this interval, not a value.
            code = code if abs(value) < float("inf") else pynvml.NVML_ERROR_NO_DATA
            answers.append((field, code, value * factor))
        return answers


def host_engine_answers(address: tuple[str, int] = HOST_ENGINE, timeout_s: float = 0.2) -> bool:
    """Whether a DCGM host engine accepts a connection at `address`."""
    try:
        with socket.create_connection(address, timeout_s):
            return True
    except OSError:
        return False
