"""What in-job reporters say, per GPU: the message read, and the processes of one GPU added up.

Counters are the agent's own: what a process has counted since its last message is added to its GPU's
counter, so a job that ends takes nothing back. A process whose very first message arrives is counted
from zero; one that was there before the agent is counted from the first message that the agent hears.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from unidle_agent.sample import GpuReading, Value
from unidle_agent.wire import GpuFacts

VERSION = 1
STALE_S = 5.0
"""Age after which a process's values are no longer told."""
FORGET_S = 600.0
"""Silence after which a process, and a GPU that no process reports on, are forgotten."""
MAX_GPUS = 256
"""Most GPUs with a counter of their own: a node has at most 16, each with 7 MIG instances."""
MAX_DEVICES = 16
MICROSECONDS = 1_000_000
MOST = 2.0**63

UUID = re.compile(r"(GPU|MIG)-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

DTYPES = {
    "float32": 1,
    "tf32": 2,
    "float16": 3,
    "bfloat16": 4,
    "float64": 5,
    "float8_e4m3fn": 6,
    "float8_e5m2": 6,
    "int8": 7,
}
"""Number format of the message -> code of the field dtype_code; any other is 0."""

SIZES = {
    "allocated": "torch_allocated_bytes",
    "reserved": "torch_reserved_bytes",
    "inactive_split": "torch_inactive_split_bytes",
}


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU as a process sees it. Sizes in bytes, counts since the process began; absent is unknown."""

    uuid: str
    sizes: Mapping[str, float]
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Message:
    """One datagram of unidle_reporter.py."""

    pid: int
    """As the process sees itself: in a container another than here."""
    number: int
    steps: int | None
    step_time_s: float | None
    wait_us: int | None
    dtype: str
    devices: tuple[Device, ...]
    oom: Mapping[str, float] | None


def parse(data: bytes) -> Message:
    """Read a datagram from anybody; raises ValueError for whatever is not a message of version 1."""
    try:
        document = json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(document, dict) or document.get("v") != VERSION:
        raise ValueError(f"expected a message of version {VERSION}")
    pid, number = _whole(document.get("pid")), _whole(document.get("n"))
    gpus = document.get("gpus")
    if pid is None or number is None or not isinstance(gpus, list) or len(gpus) > MAX_DEVICES:
        raise ValueError(f"expected pid, n and at most {MAX_DEVICES} gpus")
    dtype, oom = document.get("dtype"), document.get("oom")
    wait_s = _number(document.get("wait_s"))
    return Message(
        pid=pid,
        number=number,
        steps=_whole(document.get("steps")),
        step_time_s=_number(document.get("step_time_s")),
        wait_us=None if wait_s is None else round(wait_s * MICROSECONDS),
        dtype=dtype if isinstance(dtype, str) else "",
        devices=tuple(_device(gpu) for gpu in gpus if isinstance(gpu, dict) and _is_uuid(gpu.get("uuid"))),
        oom=_numbers(oom) if isinstance(oom, dict) else None,
    )


def _device(gpu: dict[str, Any]) -> Device:
    sizes = {}
    for key, name in SIZES.items():
        pair = gpu.get(key)
        size = _number(pair[0]) if isinstance(pair, list) and pair else None
        if size is not None:
            sizes[name] = size
    counts = {"torch_alloc_retries": _whole(gpu.get("retries")), "torch_ooms": _whole(gpu.get("ooms"))}
    return Device(gpu["uuid"], sizes, {name: count for name, count in counts.items() if count is not None})


def _is_uuid(value: object) -> bool:
    return isinstance(value, str) and UUID.fullmatch(value) is not None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and 0 <= value < MOST else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and _number(value) is not None else None


def _numbers(raw: dict[str, object]) -> dict[str, float]:
    numbers = {str(key): _number(value) for key, value in raw.items()}
    return {key: value for key, value in numbers.items() if value is not None}


@dataclass(slots=True)
class _Process:
    """The last message of one process, and when it came."""

    message: Message
    heard_s: float


@dataclass(slots=True)
class _Gpu:
    """Counters of one GPU since the agent has heard of it."""

    heard_s: float
    counters: dict[str, int] = field(default_factory=dict)


class Ledger:
    """The processes that report, and what their GPUs have counted. Not guarded: one thread at a time."""

    def __init__(self) -> None:
        self._processes: dict[int, _Process] = {}
        self._gpus: dict[str, _Gpu] = {}

    @property
    def silent(self) -> bool:
        """Has no process reported lately."""
        return not self._processes

    def take(self, pid: int, message: Message, now_s: float) -> int:
        """Book a message of the process that is `pid` here; how many before it were lost."""
        known = self._processes.get(pid)
        before = known.message if known is not None and known.message.number < message.number else None
        if before is None and message.number > 1:
            before = message  # it was there before us: count from now on
        for device in message.devices:
            if device.uuid not in self._gpus and len(self._gpus) >= MAX_GPUS:
                continue
            gpu = self._gpus.setdefault(device.uuid, _Gpu(now_s))
            gpu.heard_s = now_s
            then = _counts(before, device.uuid)
            for name, count in _counts(message, device.uuid).items():
                grown = max(0, count - then.get(name, count if before else 0))
                gpu.counters[name] = gpu.counters.get(name, 0) + grown
        self._processes[pid] = _Process(message, now_s)
        return message.number - before.number - 1 if before and before is not message else 0

    def readings(self, now_s: float) -> tuple[GpuReading, ...]:
        """One reading per GPU that a process has reported on within the last `STALE_S` seconds."""
        self._forget(now_s)
        fresh = [one.message for one in self._processes.values() if now_s - one.heard_s <= STALE_S]
        of_gpu: dict[str, list[tuple[Message, Device]]] = {}
        for message in fresh:
            for device in message.devices:
                of_gpu.setdefault(device.uuid, []).append((message, device))
        return tuple(
            GpuReading(GpuFacts(uuid), self._values(uuid, told))
            for uuid, told in of_gpu.items()
            if uuid in self._gpus
        )

    def _values(self, uuid: str, told: list[tuple[Message, Device]]) -> dict[str, Value]:
        """Sizes are the sum of the GPU's processes, the step time is their mean, the number format that of
        the one that holds most memory."""
        values: dict[str, Value] = {}
        for name in SIZES.values():
            sizes = [device.sizes[name] for _, device in told if name in device.sizes]
            if sizes:
                values[name] = sum(sizes)
        times_s = [message.step_time_s for message, _ in told if message.step_time_s is not None]
        if times_s:
            values["step_time_s"] = sum(times_s) / len(times_s)
        biggest = max(told, key=lambda pair: pair[1].sizes.get("torch_reserved_bytes", 0.0))[0]
        if biggest.dtype:
            values["dtype_code"] = DTYPES.get(biggest.dtype, 0)
        counted = set().union(*(_counts(message, uuid) for message, _ in told))
        return values | {name: self._gpus[uuid].counters[name] for name in counted}

    def _forget(self, now_s: float) -> None:
        self._processes = {
            pid: one for pid, one in self._processes.items() if now_s - one.heard_s <= FORGET_S
        }
        self._gpus = {uuid: gpu for uuid, gpu in self._gpus.items() if now_s - gpu.heard_s <= FORGET_S}


def _counts(message: Message | None, uuid: str) -> dict[str, int]:
    """What `message` counts for one GPU, in the resolution of the fields."""
    for device in message.devices if message else ():
        if message and device.uuid == uuid:
            own = {"steps": message.steps, "data_wait_s": message.wait_us}
            return {**device.counts, **{name: count for name, count in own.items() if count is not None}}
    return {}
