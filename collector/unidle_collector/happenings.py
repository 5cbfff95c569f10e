"""Events of GPUs, each for the step of its time."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from unidle_collector.signals import Happened

KEPT_STEPS = 1200
"""Steps for which events that were handed out are kept, for late rows: as long as the ledger can correct."""


class Happenings:
    """In by arrival, out by time. `step_at` says to which step an instant belongs."""

    def __init__(self, step_ns: int, step_at: Callable[[int], int]) -> None:
        self._step_ns = step_ns
        self._step_at = step_at
        self._waiting: list[tuple[int, int, Happened]] = []
        """Heap of (time, order of arrival, event) of those that are not handed out yet."""
        self._out: deque[Happened] = deque()
        self._count = 0

    def take(self, event: Happened) -> None:
        """Take an event, for the step of its time, or the next one where that has passed."""
        self._count += 1
        heapq.heappush(self._waiting, (event.time_ns, self._count, event))

    def due(self, step: int) -> tuple[Happened, ...]:
        """Hand out those up to a step."""
        out = []
        while self._waiting and self._step_at(self._waiting[0][0]) <= step:
            out.append(heapq.heappop(self._waiting)[2])
        self._out.extend(out)
        oldest_ns = (step - KEPT_STEPS) * self._step_ns
        while self._out and self._out[0].time_ns < oldest_ns:
            self._out.popleft()
        return tuple(out)

    def at(self, step: int, gpus: NDArray[np.intp]) -> list[tuple[int, Happened]]:
        """(Place in `gpus`, event) of what happened to them at a step that was handed out."""
        if not self._out:
            return []
        place = {gpu: number for number, gpu in enumerate(gpus.tolist())}
        return [
            (place[event.gpu], event)
            for event in self._out
            if event.gpu in place and self._step_at(event.time_ns) == step
        ]
