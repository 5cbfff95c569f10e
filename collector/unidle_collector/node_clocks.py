"""How far each node has come in event time, and how long it is waited for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unidle_collector.pergpu import SECOND_NS, PerGpu

SILENT_AFTER_NS = 12 * SECOND_NS
"""A node that has pushed nothing for this long (receiver's clock), ..."""
PATIENCE = 2
"""... or for this many times the time between its last two pushes, ..."""
MOST_PATIENCE_NS = 90 * SECOND_NS
"""... but at most this long, is not waited for."""


class NodeClocks:
    """What the window knows of the time of each node, in columns."""

    def __init__(self) -> None:
        self._number: dict[str, int] = {}
        self.a = PerGpu(64)  # one entry per node
        self.a.make("last_step", np.int64, -1)
        self.a.make("last_push_ns", np.int64, 0)  # receiver's clock
        self.a.make("gap_ns", np.int64, 0)  # between the last two pushes, or the sampling period if longer
        self.a.make("behind", np.bool_, False)  # lagged for too long: not waited for until it has caught up

    def __len__(self) -> int:
        return len(self._number)

    def column(self, name: str) -> NDArray[np.int64]:
        """[nodes] one of the columns; a view."""
        out: NDArray[np.int64] = self.a[name][: len(self)]
        return out

    def last_push_ns(self, node: str) -> int | None:
        """When a node pushed last, by the receiver's clock; None when it never did."""
        number = self._number.get(node)
        return None if number is None else int(self.a["last_push_ns"][number])

    def silent_at_ns(self) -> NDArray[np.int64]:
        """[nodes] When each is not waited for any more, unless it pushes."""
        patience = np.maximum(SILENT_AFTER_NS, PATIENCE * self.column("gap_ns"))
        out: NDArray[np.int64] = self.column("last_push_ns") + np.minimum(MOST_PATIENCE_NS, patience)
        return out

    def note(self, node: str, last_step: int, received_ns: int, period_s: float) -> None:
        """A node has pushed rows up to `last_step`."""
        period_ns = int(period_s * SECOND_NS)
        number = self._number.get(node)
        if number is None:
            number = self._number[node] = len(self._number)
            if number == self.a.size:
                self.a.resize(2 * number)
            gap_ns = period_ns
        else:
            gap_ns = max(received_ns - int(self.a["last_push_ns"][number]), period_ns)
            last_step = max(last_step, int(self.a["last_step"][number]))
        self.a["last_step"][number] = last_step
        self.a["gap_ns"][number] = gap_ns
        self.a["last_push_ns"][number] = received_ns
