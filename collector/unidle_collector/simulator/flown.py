"""The flight recorders of the simulated nodes: what their GPUs did in the last two minutes.

A simulated second is one look: the fleet has nothing in between, and nothing is made up for it.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from unidle_agent.fields import BY_NAME, UNKNOWN_U8
from unidle_agent.flight.ring import RECORDED, WINDOW_S
from unidle_agent.wire_flight import Flight
from unidle_collector.simulator.fleet import SECOND_NS, Block
from unidle_collector.simulator.jobs import Ints

WINDOW_NS = int(WINDOW_S) * SECOND_NS


class Flown:
    """What a flight recorder keeps, of the whole fleet, as far back as its ring reaches."""

    def __init__(self) -> None:
        self._parts: deque[tuple[Ints, dict[str, NDArray[np.generic]]]] = deque()
        """(times [n], field -> [n, G]), oldest first."""

    def add(self, block: Block) -> None:
        """Keep a block's looks, and forget what ended before the window."""
        self._parts.append((block.times_ns, {name: block.gpu[name] for name in RECORDED}))
        since_ns = int(block.times_ns[-1]) - WINDOW_NS
        while int(self._parts[0][0][-1]) < since_ns:
            self._parts.popleft()

    def flight(self, gpu: str, position: int, request: str, now_ns: int) -> Flight:
        """The answer to `request`: looks at the GPU at `position` of the fleet."""
        times_ns = np.concatenate([times for times, _ in self._parts])
        newest = times_ns >= times_ns[-1] - WINDOW_NS
        columns = {}
        for name in RECORDED:
            values = np.concatenate([part[name][:, position] for _, part in self._parts])[newest]
            known = values.astype("<f4")
            if BY_NAME[name].dtype == "u8":
                known[values == UNKNOWN_U8] = np.nan
            columns[name] = known.tobytes()
        return Flight(gpu, "asked", now_ns, times_ns[newest].tolist(), columns, request)
