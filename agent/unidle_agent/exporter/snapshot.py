"""What was sampled last.

A tick is only noted; what a page may show is worked out when one is asked for, which is seldom. A value
that no source has renewed for some seconds is gone, so that a page never shows it as current.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from unidle_agent.batcher import sendable
from unidle_agent.fields import BY_NAME
from unidle_agent.sample import GpuReading, Reading, Tick, Value
from unidle_agent.wire import GpuFacts


@dataclass(slots=True)
class _Latest:
    """The values of the last tick, and the last of those fields that it left out."""

    time_ns: int = 0
    values: Mapping[str, Value] = field(default_factory=dict)
    older: dict[str, tuple[int, Value]] = field(default_factory=dict)
    """Field -> when it came, and its value."""

    def update(self, time_ns: int, values: Mapping[str, Value]) -> None:
        if [*self.values] != [*values]:  # seldom
            for name in self.values.keys() - values.keys():
                self.older[name] = (self.time_ns, self.values[name])
            for name in self.older.keys() & values.keys():
                del self.older[name]
        self.time_ns, self.values = time_ns, values

    def items(self) -> Iterator[tuple[str, int, Value]]:
        """Every field, when it came, and its value."""
        for name, (time_ns, value) in self.older.items():
            yield name, time_ns, value
        for name, value in self.values.items():
            yield name, self.time_ns, value


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
        self._gpus: dict[str, _Latest] = {}
        self._host = _Latest()
        self._reading: Reading | None = None
        """What the last tick came to, once it was asked for."""

    def update(self, tick: Tick) -> None:
        """Take one tick."""
        with self._lock:
            if tick.time_ns < self._now_ns:  # the clock was set back: ages mean nothing now
                self._facts, self._gpus, self._host = {}, {}, _Latest()
            self._now_ns, self._reading = tick.time_ns, None
            for gpu in tick.gpus:
                uuid = gpu.facts.uuid
                self._facts[uuid] = (tick.time_ns, gpu.facts)
                latest = self._gpus.get(uuid)
                if latest is None:
                    latest = self._gpus[uuid] = _Latest()
                latest.update(tick.time_ns, gpu.values)
            self._host.update(tick.time_ns, tick.host)
            for uuid in [uuid for uuid, item in self._facts.items() if item[0] < self._oldest_ns]:
                del self._facts[uuid], self._gpus[uuid]

    def reading(self) -> Reading:
        """Everything known now."""
        with self._lock:
            if self._reading is None:
                gpus = tuple(
                    GpuReading(facts, self._known(self._gpus[uuid]))
                    for uuid, (_, facts) in self._facts.items()
                )
                self._reading = Reading(gpus, self._known(self._host))
            return self._reading

    @property
    def _oldest_ns(self) -> int:
        return self._now_ns - self._keep_ns

    def _known(self, latest: _Latest) -> dict[str, Value]:
        """The values that are fresh enough and that a page can show; statistics are not on it."""
        known = {}
        for name, time_ns, value in latest.items():
            oldest_ns = min(self._oldest_ns, self._now_ns - self._keep_field_ns.get(name, 0))
            spec = BY_NAME.get(name)
            if spec is not None and time_ns >= oldest_ns:
                sent = sendable(spec, value)
                if sent is not None:
                    known[name] = sent
        return known
