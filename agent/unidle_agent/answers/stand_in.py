"""libnvidia-ml.so.1 in Python, answering from a recorded file: the unmodified nvidia-ml-py calls it.

`install` puts it where nvidia-ml-py keeps the loaded library, so everything above runs as on the machine
that was recorded. A function that is not here is one that "the driver does not have" (13).
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pynvml

from unidle_agent.answers.calls import CALLS, INSTANCE_OWN, VALUE_TYPES, XID, Call
from unidle_agent.answers.file import Answers
from unidle_agent.errors import SourceError, reason

OK: int = pynvml.NVML_SUCCESS
INVALID_ARGUMENT: int = pynvml.NVML_ERROR_INVALID_ARGUMENT
NOT_SUPPORTED: int = pynvml.NVML_ERROR_NOT_SUPPORTED
NOT_FOUND: int = pynvml.NVML_ERROR_NOT_FOUND
INSUFFICIENT_SIZE: int = pynvml.NVML_ERROR_INSUFFICIENT_SIZE
TIMEOUT: int = pynvml.NVML_ERROR_TIMEOUT
GPM_APART_S = 0.1
"""Samples of a pair that are not further apart have no metrics (nvml.h)."""
MOST_INSTANCES = 8
MOST_SAMPLES = 1024
"""That a buffer says to hold: what a second of the fastest comes to, many times over."""
RING_S = 10.0
"""For how long samples stay in a buffer."""

Function = Callable[..., Any]


def install(path: Path) -> None:
    """From now on nvidia-ml-py answers from the file at `path`; raises SourceError where it is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: expected a file of `unidle agent record` ({reason(error)})") from error
    pynvml.nvmlLib = Library(Answers(text, str(path)))
    pynvml._nvmlGetFunctionPointer_cache.clear()


@dataclass(slots=True)
class _Sample:
    """What one GPM sample was taken of, and when."""

    scope: str = ""
    taken_s: float = 0.0


class Library:
    """The C functions as attributes. Their out-parameters are what `ctypes.byref` was given."""

    def __init__(self, answers: Answers, monotonic: Callable[[], float] = time.monotonic) -> None:
        """The file's time begins now."""
        self._answers, self._monotonic, self._began_s = answers, monotonic, monotonic()
        # A handle is a number of this process: the place of its scope, counted from 1.
        self._scopes: list[str] = []
        self._samples: list[_Sample] = []
        self._registered: dict[str, int] = {}
        self._delivered: dict[str, int] = {}
        self._functions: dict[str, Function] = {
            "nvmlInitWithFlags": lambda _flags: self._enter("driver", "nvmlInitWithFlags"),
            "nvmlShutdown": lambda: OK,
            "nvmlErrorString": _error_string,
            "nvmlSystemGetDriverVersion": partial(self._driver_text, "driver.version"),
            "nvmlSystemGetNVMLVersion": partial(self._driver_text, "driver.nvml_version"),
            "nvmlDeviceGetCount_v2": self._count,
            "nvmlDeviceGetHandleByIndex_v2": self._handle_by_index,
            "nvmlDeviceGetIndex": self._index,
            "nvmlDeviceGetFieldValues": self._field_values,
            "nvmlDeviceGetComputeRunningProcesses_v3": self._processes,
            "nvmlDeviceGetSamples": self._buffer,
            "nvmlGpmSampleAlloc": self._sample_alloc,
            "nvmlGpmSampleFree": lambda _sample: OK,
            "nvmlGpmSampleGet": self._sample_get,
            "nvmlGpmMigSampleGet": self._instance_sample_get,
            "nvmlGpmMetricsGet": self._metrics_get,
            "nvmlEventSetCreate": lambda _out: self._enter("driver", "nvmlEventSetCreate"),
            "nvmlEventSetFree": lambda _set: OK,
            "nvmlDeviceRegisterEvents": self._register_events,
            "nvmlEventSetWait_v2": self._event_wait,
            "nvmlDeviceGetMigDeviceHandleByIndex": self._instance_handle,
        }
        by_function: dict[str, list[Call]] = {}
        for call in (*CALLS, *INSTANCE_OWN):
            by_function.setdefault(call.function, []).append(call)
        for function, rows in by_function.items():
            self._functions[function] = partial(self._plain, rows)

    def __getattr__(self, name: str) -> Function:
        try:
            return self._functions[name]
        except KeyError:
            raise AttributeError(name) from None

    # The file

    def _now_s(self) -> float:
        return self._monotonic() - self._began_s

    def _find(self, key: str) -> str | None:
        return self._answers.at(key, self._now_s())

    def _enter(self, scope: str, function: str) -> int:
        """What every call begins with: the return code that was recorded of the whole call."""
        return _code(self._find(f"{scope}.fault.{function}") or "")

    def _enter_gpu(self, device: Any, function: str) -> tuple[str, int]:
        place = _address(device)
        if not 0 < place <= len(self._scopes):
            return "", INVALID_ARGUMENT
        scope = self._scopes[place - 1]
        return scope, self._enter(scope, function)

    def _value(self, scope: str, key: str) -> tuple[str, int]:
        text = self._find(f"{scope}.{key}")
        return ("", NOT_SUPPORTED) if text is None else (text, _code(text))

    # Which GPUs there are

    def _driver_text(self, key: str, out: Any, _length: Any) -> int:
        out.value = (self._find(key) or "").encode()
        return OK

    def _count(self, out: Any) -> int:
        out._obj.value = int(self._find("gpus") or 0)
        return self._enter("driver", "nvmlDeviceGetCount_v2")

    def _handle_by_index(self, index: Any, out: Any) -> int:
        number = getattr(index, "value", index)
        if number >= int(self._find("gpus") or 0):
            return INVALID_ARGUMENT
        scope = f"gpu.{number}"
        return self._enter(scope, "nvmlDeviceGetHandleByIndex_v2") or self._handle(scope, out)

    def _instance_handle(self, device: Any, place: Any, out: Any) -> int:
        scope, code = self._enter_gpu(device, "nvmlDeviceGetMigDeviceHandleByIndex")
        return code or self._handle(f"{scope}.mig.{getattr(place, 'value', place)}", out)

    def _handle(self, scope: str, out: Any) -> int:
        if self._find(f"{scope}.uuid") is None:
            return NOT_FOUND
        if scope not in self._scopes:
            self._scopes.append(scope)
        _point(out, self._scopes.index(scope) + 1)
        return OK

    def _index(self, device: Any, out: Any) -> int:
        scope, code = self._enter_gpu(device, "nvmlDeviceGetIndex")
        if not code:
            out._obj.value = int(scope.split(".")[1])
        return code

    # Calls of the table

    def _plain(self, rows: list[Call], device: Any, *arguments: Any) -> int:
        call = rows[0]
        if call.argument is not None:
            argument, *arguments = arguments  # type: ignore[assignment]
            wanted = getattr(argument, "value", argument)
            found = [row for row in rows if row.argument == wanted]
            if not found:
                return INVALID_ARGUMENT
            call = found[0]
        scope, code = self._enter_gpu(device, call.function)
        texts = []
        for key in call.keys:
            text, failed = self._value(scope, key)
            code = code or failed
            texts.append(text)
        if not code:
            _fill(call, texts, arguments)
        return code

    def _field_values(self, device: Any, count: Any, out: Any) -> int:
        scope, code = self._enter_gpu(device, "nvmlDeviceGetFieldValues")
        for entry in list(out._obj)[: count.value] if not code else ():
            link = f".{entry.scopeId}" if entry.scopeId else ""
            text, entry.nvmlReturn = self._value(scope, f"field.{entry.fieldId}{link}")
            entry.timestamp, entry.latencyUsec = int(self._now_s() * 1e6), 0
            if entry.nvmlReturn == OK:
                kind, _, digits = text.partition(":")
                entry.valueType = next(n for n, (name, _) in enumerate(VALUE_TYPES) if name == kind)
                _set_value(entry.value, entry.valueType, digits)
        return code

    def _processes(self, device: Any, count: Any, out: Any) -> int:
        scope, code = self._enter_gpu(device, "nvmlDeviceGetComputeRunningProcesses_v3")
        text, failed = self._value(scope, "processes")
        if code or failed:
            return code or failed
        found = [item.partition(":") for item in text.split(",") if item]
        room, count._obj.value = count._obj.value, len(found)
        if room < len(found):
            return INSUFFICIENT_SIZE
        for place, (pid, _, used) in enumerate(found):
            out[place].pid = int(pid)
            out[place].usedGpuMemory = int(used) if used else pynvml.NVML_VALUE_NOT_AVAILABLE_ulonglong.value
        return OK

    def _buffer(self, device: Any, kind: Any, seen_us: Any, value_type: Any, count: Any, out: Any) -> int:
        """The samples of a ring buffer that came since `seen_us`, by this process's clock."""
        scope, code = self._enter_gpu(device, "nvmlDeviceGetSamples")
        key = f"{scope}.samples.{getattr(kind, 'value', kind)}"
        first = self._answers.at_first(key)
        code = code or (NOT_SUPPORTED if first is None else _code(first))
        if code:
            return code
        name, found = "", list[tuple[int, str]]()
        for text, zero_s in self._answers.since(key, self._now_s() - RING_S, self._now_s()):
            name, *samples = text.split(";")
            for sample in samples:
                at_s, _, digits = sample.partition(":")
                time_us = int((self._began_s + zero_s + float(at_s)) * 1e6)
                if seen_us.value < time_us <= self._monotonic() * 1e6:
                    found.append((time_us, digits))
        if not found:
            return NOT_FOUND
        room, count._obj.value = count._obj.value, len(found) if out is not None else MOST_SAMPLES
        if out is not None:
            if room < len(found):
                return INSUFFICIENT_SIZE
            value_type._obj.value = next(n for n, (kind, _) in enumerate(VALUE_TYPES) if kind == name)
            for place, (time_us, digits) in enumerate(found):
                out[place].timeStamp = time_us
                _set_value(out[place].sampleValue, value_type._obj.value, digits)
        return OK

    # GPM

    def _sample_alloc(self, out: Any) -> int:
        self._samples.append(_Sample())
        _point(out, len(self._samples))
        return OK

    def _sample_get(self, device: Any, sample: Any) -> int:
        scope, code = self._enter_gpu(device, "nvmlGpmSampleGet")
        return code or self._take(sample, scope)

    def _instance_sample_get(self, device: Any, instance: Any, sample: Any) -> int:
        scope, code = self._enter_gpu(device, "nvmlGpmMigSampleGet")
        number = str(getattr(instance, "value", instance))
        for place in range(MOST_INSTANCES):
            if self._find(f"{scope}.mig.{place}.gpu_instance_id") == number:
                return code or self._take(sample, f"{scope}.mig.{place}")
        return code or NOT_FOUND

    def _take(self, sample: Any, scope: str) -> int:
        self._samples[_address(sample) - 1] = _Sample(scope, self._now_s())
        return OK

    def _metrics_get(self, out: Any) -> int:
        request = out._obj
        older, newer = (self._samples[_address(one) - 1] for one in (request.sample1, request.sample2))
        if not older.scope or older.scope != newer.scope or newer.taken_s - older.taken_s <= GPM_APART_S:
            return INVALID_ARGUMENT
        code = self._enter(newer.scope, "nvmlGpmMetricsGet")
        for place in range(request.numMetrics if not code else 0):
            metric = request.metrics[place]
            text, metric.nvmlReturn = self._value(newer.scope, f"gpm.{metric.metricId}")
            metric.value = 0.0 if metric.nvmlReturn else float(text)
        return code

    # Events: each of the file once, XIDs first

    def _register_events(self, device: Any, types: Any, _set: Any) -> int:
        scope, code = self._enter_gpu(device, "nvmlDeviceRegisterEvents")
        if not code:
            self._registered[scope] = types.value
        return code

    def _event_wait(self, _set: Any, out: Any, timeout_ms: Any) -> int:
        for scope, types in self._registered.items():
            for kind in ("xid", "event"):
                key = f"{scope}.{kind}"
                text = self._find(f"{key}.{self._delivered.get(key, 0)}")
                if text is None:
                    continue
                head, _, data = text.partition(":")
                event_type, code = (XID, int(text)) if kind == "xid" else (int(head, 0), int(data or "0", 0))
                if not types & event_type:
                    continue
                self._delivered[key] = self._delivered.get(key, 0) + 1
                event = out._obj
                event.eventType, event.eventData = event_type, code
                _point_at(event, "device", self._scopes.index(scope) + 1)
                return OK
        time.sleep(getattr(timeout_ms, "value", timeout_ms) / 1000)
        return TIMEOUT


def _fill(call: Call, texts: list[str], out: tuple[Any, ...]) -> None:
    """Write the answers where the caller wants them."""
    if call.members:
        structure = out[0]._obj
        for member, text in zip(call.members, texts, strict=True):
            setattr(structure, member, text.encode() if call.text else int(text, 0))
    elif call.text:
        out[0].value = texts[0].encode()
    else:
        for number, place in enumerate(out):
            place._obj.value = int(texts[min(number, len(texts) - 1)], 0)


def _set_value(value: Any, kind: int, digits: str) -> None:
    """Write the digits into an nvmlValue_t as its type wants them."""
    name, member = VALUE_TYPES[kind]
    setattr(value, member, float(digits) if name == "d" else int(digits, 0))


def _code(text: str) -> int:
    return int(text.removeprefix("error:")) if text.startswith("error:") else OK


def _error_string(code: int) -> bytes:
    return b"replayed NVML error %d" % code


def _address(pointer: Any) -> int:
    return ctypes.cast(pointer, ctypes.c_void_p).value or 0


def _point(out: Any, address: int) -> None:
    ctypes.c_void_p.from_buffer(out._obj).value = address


def _point_at(structure: Any, member: str, address: int) -> None:
    offset = getattr(type(structure), member).offset
    ctypes.c_void_p.from_buffer(structure, offset).value = address
