"""How often the source of a GPU's rows samples, which may be more rarely than it is read.

A dcgm-exporter samples each 30 s unless it is told otherwise; who reads it each 5 s gets six rows that say
the same. They are one sample: what asks for eight samples has to wait for eight times 30 s. No page says how
often its exporter samples, but it shows: power hardly ever reads the same twice, so a node whose readings of
power change at regular times, some rows apart, is sampled at those. Where they do not, as on GPUs at rest of
which power is told in whole watts, or where rows are lost, each row is taken for a sample.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from unidle_collector.pergpu import NEVER, SECOND_NS, Bools, Floats, PerGpu

ALIKE = 4
"""So many times from change to change, one after the other, make a rule where they differ by no more than two
rows: a change is seen up to a row late."""
REPEATED = 1.5
"""Rows from change to change: where all of those times are longer rows are repeated, and not lost now and
then, which the rows after them fill."""
LEAPING = ("power_cap_s", "thermal_throttle_s")
"""The counters of an exporter that are judged by how fast they grow. Energy arrives as a rate."""


class Sampling:
    """Learns it of each node from what its rows show."""

    def __init__(self, size: int) -> None:
        self._a = PerGpu(size)
        self._a.make("power_w", np.float64, np.nan)
        self._a.make("changed_ns", np.int64, NEVER)
        self._a.make("apart_s", np.float64, np.nan, ALIKE)  # of the last changes, the newest first
        self._a.make("each_s", np.float64, np.nan)
        for name in LEAPING:
            self._a.make(name, np.float64, np.nan)

    @property
    def each_s(self) -> Floats:
        """[GPUs] seconds from sample to sample where samples are repeated, else NaN."""
        return self._a["each_s"]

    def look(
        self, columns: Mapping[str, Floats], end_ns: int, row_s: Floats, node: NDArray[np.int32]
    ) -> Bools:
        """Take one step; `row_s` [GPUs] is the time from row to row. [GPUs] where a new sample begins."""
        a, power = self._a, columns.get("power_w")
        if power is None:
            return np.zeros(node.shape, dtype=np.bool_)
        changed = (power != a["power_w"]) & ~np.isnan(power)
        np.copyto(a["power_w"], power, where=changed)
        of_node = np.zeros(int(node.max()) + 2, dtype=np.bool_)
        of_node[node[changed]] = True  # what is of no node yet has the last place
        anew: Bools = of_node[node]
        apart, changed_ns = a["apart_s"], a["changed_ns"]
        for older in range(ALIKE - 1, 0, -1):
            np.copyto(apart[older], apart[older - 1], where=anew)
        lasted_s = np.where(changed_ns == NEVER, np.nan, (end_ns - changed_ns) / SECOND_NS)
        np.copyto(apart[0], lasted_s, where=anew)
        np.copyto(changed_ns, end_ns, where=anew)
        shortest_s = apart.min(axis=0)
        each_s = np.where(shortest_s > REPEATED * row_s, apart.mean(axis=0), np.nan)
        np.copyto(a["each_s"], each_s, where=anew & (apart.max(axis=0) - shortest_s <= 2 * row_s))
        return anew

    def carried_on(self, columns: Mapping[str, Floats], anew: Bools, row_s: Floats) -> Mapping[str, Floats]:
        """The columns; where samples are repeated a counter of LEAPING goes on between two of them as fast as
        it came to the first, and does not stand still and leap."""
        a, repeats = self._a, ~np.isnan(self.each_s)
        leaping = [name for name in LEAPING if name in columns]
        if not leaping or not repeats.any():
            return columns
        part = row_s / a["apart_s"][0]
        out = {}
        for name in leaping:
            now = columns[name]
            np.copyto(a[name], now * part, where=anew)
            out[name] = np.where(repeats & ~np.isnan(now), a[name], now)
        return ChainMap(out, columns)  # type: ignore[arg-type]

    def resize(self, size: int) -> None:
        """Grow to `size` GPUs."""
        self._a.resize(size)
