"""Asks a real machine's driver everything there is to ask, and writes down each answer.

What identifies a machine or a person is replaced: UUIDs and serial numbers by their place, process ids
by numbers that no Linux gives, and names of hosts and processes are never asked. The same machine gives
the same stand-ins each time. Costs are kept as `us.FUNCTION`, microseconds of the call as Python sees it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

import pynvml

from unidle_agent.answers.calls import (
    CALLS,
    EVENTS,
    FAST_FIELDS,
    GPM_METRICS,
    INSTANCE_CALLS,
    INSTANCE_OWN,
    LINK_FIELDS,
    LINKS,
    MORE_GPM_METRICS,
    SAMPLE_TYPES,
    SLOW_FIELDS,
    VALUE_TYPES,
    XID,
    Call,
    Tier,
)
from unidle_agent.answers.file import Writer
from unidle_agent.sources import nvml_calls
from unidle_agent.sources.nvml_calls import quietly

SLOW_S = 10.0
FIRST_STAND_IN_PID = 2**22 + 1
"""One above the largest process id that Linux gives (proc(5), pid_max)."""
GPM_APART_S = 0.11
"""Shortest time between two instants: the driver's 100 ms for a pair of samples, and a tenth."""

Lines = dict[str, str]


@dataclass(frozen=True, slots=True)
class Cost:
    """What the calls of one C function took, microseconds."""

    function: str
    calls: int
    median_us: float
    longest_us: float


@dataclass(slots=True)
class _Gpu:
    """A GPU or MIG instance under recording."""

    scope: str
    handle: Any
    parent: Any = None
    """Of a MIG instance: its GPU's handle and its instance id."""
    instance: int | None = None
    samples: list[Any] = field(default_factory=list)
    """Two, filled in turn; none where there is no GPM."""
    taken: int = 0
    """How many samples there were."""
    seen_us: dict[int, int] = field(default_factory=dict)
    """Sampling type -> the newest sample of its buffer."""
    told: dict[str, int] = field(default_factory=dict)
    """`xid` or `event` -> how many there were."""


class Recorder:
    """Writes the answers of this machine's GPUs to `out`; raises SourceError where there is no driver."""

    def __init__(
        self, out: TextIO, monotonic: Callable[[], float] = time.monotonic, *, more: bool = True
    ) -> None:
        """`more` asks, beside what the agent reads, what is still to be learnt about new drivers."""
        self._writer, self._monotonic, self._more = Writer(out), monotonic, more
        self._gpus: list[_Gpu] = []
        self._pids: dict[int, int] = {}
        self._taken_us: defaultdict[str, list[float]] = defaultdict(list)
        self._instant_us: defaultdict[str, float] = defaultdict(float)
        self._faults: set[str] = set()
        self._zero_us: dict[tuple[str, int], int] = {}
        """Scope and sampling type -> the driver's time of a sample at the file's second 0."""
        try:
            pynvml.nvmlInit()
            self._driver = pynvml.nvmlSystemGetDriverVersion()
            self.count: int = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            raise nvml_calls.absence(error) from error
        self._events = quietly(pynvml.nvmlEventSetCreate)

    def run(self, for_s: float, every_s: float, wait: Callable[[float], object]) -> None:
        """Record `for_s` seconds, an instant each `every_s`; `wait` sleeps that many seconds."""
        every_s = max(every_s, GPM_APART_S)
        self._head(for_s)
        for gpu in self._gpus:
            self._ask_gpm(gpu)
        wait(GPM_APART_S)
        began_s, slow_due_s, number = self._monotonic(), 0.0, 0
        while number * every_s < for_s:
            now_s = self._monotonic() - began_s
            slow = now_s >= slow_due_s
            if slow:
                slow_due_s += SLOW_S
            self._writer.instant(number * every_s, self._instant(slow, now_s))
            number += 1
            wait(max(0.0, number * every_s - (self._monotonic() - began_s)))

    def costs(self) -> list[Cost]:
        """What each C function took, the dearest first."""
        rows = [
            Cost(function, len(taken), sorted(taken)[len(taken) // 2], max(taken))
            for function, taken in self._taken_us.items()
        ]
        return sorted(rows, key=lambda row: -row.median_us)

    def close(self) -> None:
        """Give everything back to the driver."""
        for gpu in self._gpus:
            for sample in gpu.samples:
                quietly(pynvml.nvmlGpmSampleFree, sample)
        if self._events is not None:
            quietly(pynvml.nvmlEventSetFree, self._events)
        quietly(pynvml.nvmlShutdown)

    # The head: what does not change

    def _head(self, for_s: float) -> None:
        self._writer.comment(
            "answers of a real driver, written by `unidle agent record`; identities are stand-ins"
        )
        lines: Lines = {
            "driver.version": self._driver,
            "driver.nvml_version": quietly(pynvml.nvmlSystemGetNVMLVersion) or "",
            "length_s": f"{for_s:g}",
            "gpus": str(self.count),
        }
        for number in range(self.count):
            scope = f"gpu.{number}"
            try:
                handle = self._timed(scope, "nvmlDeviceGetHandleByIndex_v2", number)
            except pynvml.NVMLError as error:
                lines |= {
                    f"{scope}.uuid": _uuid("GPU", number),
                    **_fault(scope, "nvmlDeviceGetHandleByIndex_v2", error),
                }
                continue
            gpu = _Gpu(scope, handle)
            self._gpus.append(gpu)
            lines |= self._ask_calls(gpu, "static", CALLS)
            lines |= {f"{scope}.uuid": _uuid("GPU", number)}
            if not lines.get(f"{scope}.serial", "error:").startswith("error:"):
                lines[f"{scope}.serial"] = f"{number:013d}"
            if lines.get(f"{scope}.gpm_supported") == "1":
                gpu.samples = [pynvml.nvmlGpmSampleAlloc(), pynvml.nvmlGpmSampleAlloc()]
            self._listen(gpu)
            for instance in self._instances(gpu, int(lines.get(f"{scope}.mig_mode") == "1")):
                self._gpus.append(instance)
                lines |= self._ask_calls(instance, "static", _of_instances())
                lines[f"{instance.scope}.uuid"] = _uuid("MIG", 8 * number + int(instance.scope[-1]))
        self._writer.head(lines)

    def _instances(self, gpu: _Gpu, mig: int) -> Iterator[_Gpu]:
        places = (quietly(pynvml.nvmlDeviceGetMaxMigDeviceCount, gpu.handle) or 0) if mig else 0
        for place in range(places):
            handle = quietly(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, gpu.handle, place)
            if handle is not None:
                instance = quietly(pynvml.nvmlDeviceGetGpuInstanceId, handle)
                samples = [pynvml.nvmlGpmSampleAlloc(), pynvml.nvmlGpmSampleAlloc()] if gpu.samples else []
                yield _Gpu(f"{gpu.scope}.mig.{place}", handle, gpu.handle, instance, samples)

    # One instant

    def _instant(self, slow: bool, at_s: float) -> Lines:
        lines: Lines = {}
        tiers: tuple[Tier, ...] = ("fast", "slow") if slow else ("fast",)
        for gpu in self._gpus:
            whole = gpu.parent is None
            for tier in tiers:
                lines |= self._ask_calls(gpu, tier, CALLS if whole else _of_instances())
            if whole:
                lines |= self._ask_fields(gpu, FAST_FIELDS)
            if whole:
                lines |= self._ask_buffers(gpu, at_s)
            if whole and slow:
                lines |= self._ask_fields(gpu, SLOW_FIELDS)
                for link in LINKS if self._more else ():
                    lines |= self._ask_fields(gpu, LINK_FIELDS, link)
            if slow:
                lines |= self._ask_processes(gpu)
            lines |= self._ask_gpm(gpu)
        lines |= self._take_events()
        # What failed as a whole, was asked again and answered is a fault no more.
        asked = {key.replace(".us.", ".fault.") for key in self._instant_us}
        faults = {key for key in lines if ".fault." in key}
        healed = (self._faults & asked) - faults
        lines |= dict.fromkeys(healed, "")
        self._faults = (self._faults | faults) - healed
        return lines | self._costs_of_instant()

    def _ask_calls(self, gpu: _Gpu, tier: Tier, calls: Sequence[Call]) -> Lines:
        lines: Lines = {}
        for call in calls:
            keys = [f"{gpu.scope}.{key}" for key in call.keys]
            if call.tier != tier or not lines.get(keys[0], "error:").startswith("error:"):
                continue
            arguments = () if call.argument is None else (call.argument,)
            try:
                answer = self._timed(gpu.scope, call.function, gpu.handle, *arguments, ask=call.ask)
            except pynvml.NVMLError as error:
                lines |= dict.fromkeys(keys, f"error:{error.value}")
                continue
            lines |= dict(zip(keys, _texts(call, answer), strict=False))
        return lines

    def _ask_fields(self, gpu: _Gpu, ids: Sequence[int], link: int | None = None) -> Lines:
        wanted: list[Any] = list(ids) if link is None else [(number, link) for number in ids]
        function = "nvmlDeviceGetFieldValues"
        try:
            entries = self._timed(gpu.scope, function, gpu.handle, wanted)
        except pynvml.NVMLError as error:
            return _fault(gpu.scope, function, error)
        # Link 0 is what a field without a scope means.
        of = f".{link}" if link else ""
        return {f"{gpu.scope}.field.{entry.fieldId}{of}": _field_text(entry) for entry in entries}

    def _ask_buffers(self, gpu: _Gpu, at_s: float) -> Lines:
        """The samples of each buffer since the last instant, by the file's time."""
        lines: Lines = {}
        for kind in SAMPLE_TYPES:
            key, seen_us = f"{gpu.scope}.samples.{kind}", gpu.seen_us.get(kind, 0)
            try:
                value_type, samples = self._timed(
                    gpu.scope, "nvmlDeviceGetSamples", gpu.handle, kind, seen_us
                )
            except pynvml.NVMLError as error:
                dry = error.value == pynvml.NVML_ERROR_NOT_FOUND
                if not dry or not seen_us:
                    lines[key] = VALUE_TYPES[1][0] if dry else f"error:{error.value}"
                continue
            fresh = [one for one in samples if one.timeStamp > seen_us]
            if not fresh or value_type >= len(VALUE_TYPES):
                continue
            gpu.seen_us[kind] = newest_us = max(one.timeStamp for one in fresh)
            # No clock is said to be the driver's: the newest sample of the first read is of that instant.
            self._zero_us.setdefault((gpu.scope, kind), newest_us - int(at_s * 1e6))
            zero_us = self._zero_us[gpu.scope, kind]
            name, member = VALUE_TYPES[value_type]
            texts = [
                f"{(one.timeStamp - zero_us) / 1e6:.6f}:{getattr(one.sampleValue, member)!r}"
                for one in sorted(fresh, key=lambda one: one.timeStamp)
            ]
            lines[key] = ";".join([name, *texts])
        return lines

    def _ask_processes(self, gpu: _Gpu) -> Lines:
        function = "nvmlDeviceGetComputeRunningProcesses_v3"
        try:
            found = self._timed(gpu.scope, function, gpu.handle)
        except pynvml.NVMLError as error:
            return _fault(gpu.scope, function, error)
        texts = []
        for process in found:
            pid = self._pids.setdefault(process.pid, FIRST_STAND_IN_PID + len(self._pids))
            texts.append(f"{pid}" if process.usedGpuMemory is None else f"{pid}:{process.usedGpuMemory}")
        return {f"{gpu.scope}.processes": ",".join(texts)}

    def _ask_gpm(self, gpu: _Gpu) -> Lines:
        """The metrics since the sample before; none at the first."""
        if not gpu.samples:
            return {}
        newer, older = gpu.samples[gpu.taken % 2], gpu.samples[1 - gpu.taken % 2]
        try:
            if gpu.parent is None:
                self._timed(gpu.scope, "nvmlGpmSampleGet", gpu.handle, newer)
            else:
                self._timed(gpu.scope, "nvmlGpmMigSampleGet", gpu.parent, gpu.instance, newer)
        except pynvml.NVMLError as error:
            function = "nvmlGpmSampleGet" if gpu.parent is None else "nvmlGpmMigSampleGet"
            return _fault(gpu.scope, function, error)
        gpu.taken += 1
        if gpu.taken == 1:
            return {}
        lines = self._metrics(gpu, older, newer, GPM_METRICS)
        return lines | (self._metrics(gpu, older, newer, MORE_GPM_METRICS) if self._more else {})

    def _metrics(self, gpu: _Gpu, older: Any, newer: Any, ids: Sequence[int]) -> Lines:
        request = pynvml.c_nvmlGpmMetricsGet_t()
        request.version = pynvml.NVML_GPM_METRICS_GET_VERSION
        request.sample1, request.sample2, request.numMetrics = older, newer, len(ids)
        for place, number in enumerate(ids):
            request.metrics[place].metricId = number
        keys = [f"{gpu.scope}.gpm.{number}" for number in ids]
        try:
            self._timed(gpu.scope, "nvmlGpmMetricsGet", request)
        except pynvml.NVMLError as error:
            return dict.fromkeys(keys, f"error:{error.value}")
        return {
            key: f"error:{metric.nvmlReturn}" if metric.nvmlReturn else repr(metric.value)
            for key, metric in zip(keys, request.metrics, strict=False)
        }

    def _listen(self, gpu: _Gpu) -> None:
        types = (quietly(pynvml.nvmlDeviceGetSupportedEventTypes, gpu.handle) or 0) & EVENTS
        if types and self._events is not None:
            quietly(pynvml.nvmlDeviceRegisterEvents, gpu.handle, types, self._events)

    def _take_events(self) -> Lines:
        """Those that are there; waits for none."""
        lines: Lines = {}
        by_address = {nvml_calls.address(gpu.handle): gpu for gpu in self._gpus}
        while self._events is not None and (event := quietly(pynvml.nvmlEventSetWait_v2, self._events, 0)):
            gpu = by_address.get(nvml_calls.address(event.device))
            if gpu is None:
                continue
            kind = "xid" if event.eventType == XID else "event"
            text = str(event.eventData) if kind == "xid" else f"{event.eventType:#x}:{event.eventData}"
            lines[f"{gpu.scope}.{kind}.{gpu.told.get(kind, 0)}"] = text
            gpu.told[kind] = gpu.told.get(kind, 0) + 1
        return lines

    def _timed(
        self, scope: str, function: str, *arguments: Any, ask: Callable[..., Any] | None = None
    ) -> Any:
        """What the function answers; its cost is noted, also where it fails. Raises pynvml.NVMLError."""
        call = ask or getattr(pynvml, function.removesuffix("_v2"), None) or getattr(pynvml, function)
        began_ns = time.perf_counter_ns()
        try:
            return call(*arguments)
        finally:
            taken_us = (time.perf_counter_ns() - began_ns) / 1e3
            self._taken_us[function].append(taken_us)
            self._instant_us[f"{scope}.us.{function}"] += taken_us

    def _costs_of_instant(self) -> Lines:
        taken, self._instant_us = self._instant_us, defaultdict(float)
        return {key: f"{us:.1f}" for key, us in taken.items()}


def _of_instances() -> tuple[Call, ...]:
    return (*(call for call in CALLS if call.function in INSTANCE_CALLS), *INSTANCE_OWN)


def _texts(call: Call, answer: Any) -> list[str]:
    """An answer as the values of the call's keys."""
    if call.members and not isinstance(answer, int):
        values = [getattr(answer, member) for member in call.members]
    else:
        values = list(answer) if isinstance(answer, list | tuple) else [answer]
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def _field_text(entry: Any) -> str:
    if entry.nvmlReturn != pynvml.NVML_SUCCESS:
        return f"error:{entry.nvmlReturn}"
    if entry.valueType >= len(VALUE_TYPES):
        return f"error:{pynvml.NVML_ERROR_UNKNOWN}"
    name, member = VALUE_TYPES[entry.valueType]
    return f"{name}:{getattr(entry.value, member)!r}"


def _fault(scope: str, function: str, error: Any) -> Lines:
    return {f"{scope}.fault.{function}": f"error:{error.value}"}


def _uuid(kind: str, number: int) -> str:
    return f"{kind}-00000000-0000-4000-8000-{number:012d}"
