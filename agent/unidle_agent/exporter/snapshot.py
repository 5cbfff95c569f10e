"""What was sampled last.

A value that no source has renewed for some seconds is gone, so that a page never shows it as current.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from unidle_agent.batcher import sendable
from unidle_agent.fields import GPU_FIELDS, HOST_FIELDS
from unidle_agent.sample import GpuReading, Reading, Tick, Value
from unidle_agent.wire import GpuFacts


class Snapshot:
    """The latest value of every field, each for at most `keep_s` seconds. Guarded for many threads.

    `keep_field_s` names fields of the host that are kept for longer.
    """

    def __init__(self, keep_s: float, keep_field_s: Mapping[str, float] | None = None) -> None:
        self._keep_ns = int(keep_s * 1e9)
        self._keep_field_ns = {name: int(long_s * 1e9) for name, long_s in (keep_field_s or {}).items()}
        self._lock = threading.Lock()
        self._now_ns = 0
        self._facts: dict[str, tuple[int, GpuFacts]] = {}
        self._gpus: dict[str, dict[str, tuple[int, Value]]] = {}
        self._host: dict[str, tuple[int, Value]] = {}

    def update(self, tick: Tick) -> None:
        """Take one tick."""
        with self._lock:
            if tick.time_ns < self._now_ns:  # the clock was set back: ages mean nothing now
                self._facts, self._gpus, self._host = {}, {}, {}
            self._now_ns = tick.time_ns
            for gpu in tick.gpus:
                self._facts[gpu.facts.uuid] = (tick.time_ns, gpu.facts)
                self._gpus.setdefault(gpu.facts.uuid, {}).update(_stamped(tick.time_ns, gpu.values))
            self._host.update(_stamped(tick.time_ns, tick.host))
            self._forget()

    def reading(self) -> Reading:
        """Everything known now."""
        with self._lock:
            gpus = tuple(
                GpuReading(facts, _values(self._gpus.get(uuid, {})))
                for uuid, (_, facts) in self._facts.items()
            )
            return Reading(gpus, _values(self._host))

    def _forget(self) -> None:
        oldest = self._now_ns - self._keep_ns
        self._facts = {uuid: item for uuid, item in self._facts.items() if item[0] >= oldest}
        self._gpus = {
            uuid: {name: item for name, item in values.items() if item[0] >= oldest}
            for uuid, values in self._gpus.items()
            if uuid in self._facts
        }
        self._host = {
            name: item
            for name, item in self._host.items()
            if item[0] >= min(oldest, self._now_ns - self._keep_field_ns.get(name, 0))
        }


def _stamped(time_ns: int, values: Mapping[str, Value]) -> dict[str, tuple[int, Value]]:
    known = {}
    for spec in (*GPU_FIELDS, *HOST_FIELDS):
        value = sendable(spec, values.get(spec.name))
        if value is not None:
            known[spec.name] = (time_ns, value)
    return known


def _values(stamped: Mapping[str, tuple[int, Value]]) -> dict[str, Value]:
    return {name: value for name, (_, value) in stamped.items()}
