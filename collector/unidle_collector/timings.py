"""How long things took lately: exact quantiles over the last few, and totals since the start."""

from __future__ import annotations

from collections import deque

LAST = 1024


class Timings:
    """Durations of one kind, in seconds. Written by one thread."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=LAST)
        self.count = 0
        self.sum_s = 0.0

    def add(self, took_s: float) -> None:
        """Take one more."""
        self._last.append(took_s)
        self.count += 1
        self.sum_s += took_s

    def quantile_s(self, share: float) -> float | None:
        """The smallest duration that `share` of the last 1,024 did not exceed; None before the first."""
        ordered = sorted(self._last)
        if not ordered:
            return None
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
