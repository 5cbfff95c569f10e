"""XIDs by code, as counters: an alert sees each, however often it is scraped, and none sticks."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from unidle_agent.exporter.own_names import gpu_labels
from unidle_agent.exporter.render import Metric
from unidle_agent.sample import Tick
from unidle_agent.wire import GpuFacts


class XidCounts:
    """How often each GPU reported each XID since the start. Guarded for many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, int], tuple[Mapping[str, str], int]] = {}
        """(UUID, XID) -> labels at the first one, how many; kept when the GPU is gone."""

    def update(self, tick: Tick) -> None:
        """Take one tick."""
        for event in tick.events:
            if event.kind != "xid":
                continue
            facts = next((gpu.facts for gpu in tick.gpus if gpu.facts.uuid == event.gpu), GpuFacts(event.gpu))
            fresh = ({**gpu_labels(facts), "xid": str(event.code)}, 0)
            with self._lock:
                labels, count = self._counts.get((event.gpu, event.code), fresh)
                self._counts[event.gpu, event.code] = (labels, count + 1)

    def metric(self) -> Metric:
        """All counts; without samples while there was none."""
        with self._lock:
            samples = list(self._counts.values())
        return Metric("unidle_gpu_xid_errors_total", "counter", "XIDs that the driver reported", samples)
