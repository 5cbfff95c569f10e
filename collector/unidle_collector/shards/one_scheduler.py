"""One look at the scheduler for all shards of a collector: its answer is the whole cluster's anyway."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from unidle_collector.scheduler import Snapshot, Source


class OneScheduler:
    """A source whose answer holds for `for_s` seconds, whoever asks (see scheduler.Source)."""

    def __init__(self, asked: Source, for_s: float, clock_s: Callable[[], float] = time.monotonic) -> None:
        self.name = asked.name
        self._asked = asked
        self._for_s = for_s
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._last: tuple[float, Snapshot] | None = None

    def read(self) -> Snapshot:
        """The last answer, or a new one; raises SchedulerError as its source does, each time anew."""
        with self._lock:
            if self._last is None or self._clock_s() - self._last[0] >= self._for_s:
                self._last = None
                self._last = (self._clock_s(), self._asked.read())
            return self._last[1]
