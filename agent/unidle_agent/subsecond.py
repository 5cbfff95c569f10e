"""What happened between two rows of a GPU: means, extremes, the share of the time at zero, integrals.

The driver is looked at several times between two rows. A look speaks for the time since the look before,
so that looks which come late or not at all do not bend a mean. Everything here is pure but for `Looks`,
which remembers the looks of one GPU until its next row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from unidle_agent.fields import BY_NAME, FIELDS
from unidle_agent.sample import Value

Piece = tuple[float, Value]
"""Seconds that a value speaks for, and the value."""

INTEGRALS = {
    "gpu_busy_s": "gpu_util_ratio",
    "sm_active_s": "sm_active_ratio",
    "tensor_active_s": "tensor_active_ratio",
}
"""Counter -> the ratio whose integral over time it is."""

LOOKED_AT = tuple(field.name for field in FIELDS if field.stats or field.unit == "{bits}")
"""Fields of which a row holds more than the last look."""

LONGEST_S = 120.0
"""No look speaks for longer, twice the longest period between rows: the agent was stopped meanwhile."""


def summary(name: str, pieces: Sequence[Piece]) -> dict[str, Value]:
    """The columns of the field `name`: bits that were ever set, or the mean and its statistics.

    A single piece is the value itself: it has a mean, but no extremes.
    """
    values = [value for _, value in pieces]
    if BY_NAME[name].unit == "{bits}":
        bits = 0
        for value in values:
            bits |= int(value)
        return {name: bits}
    if len(pieces) == 1:
        return {name: values[0]}
    whole_s = sum(span_s for span_s, _ in pieces)
    weighed = pieces if whole_s > 0 else [(1.0, value) for value in values]
    whole = whole_s if whole_s > 0 else float(len(values))
    low, high = min(values), max(values)
    # The mean of a constant is the constant, to the last digit.
    mean = low if low == high else sum(weight * value for weight, value in weighed) / whole
    return {
        name: mean,
        f"{name}.min": low,
        f"{name}.max": high,
        f"{name}.zero": sum(weight for weight, value in weighed if value == 0) / whole,
    }


def integral_s(pieces: Sequence[Piece]) -> float:
    """A ratio's integral over time, in seconds."""
    return sum(span_s * value for span_s, value in pieces)


class Looks:
    """The looks at one GPU since its last row."""

    def __init__(self) -> None:
        self._pieces: dict[str, list[Piece]] = {}
        self._last_s: float | None = None

    def add(self, time_s: float, values: Mapping[str, Value]) -> None:
        """Take what a look at `time_s` (a clock that never steps) saw; fields of no statistics are left."""
        span_s = 0.0 if self._last_s is None else min(time_s - self._last_s, LONGEST_S)
        self._last_s = time_s
        for name in LOOKED_AT:
            if name in values:
                self._pieces.setdefault(name, []).append((span_s, values[name]))

    def take(self) -> dict[str, list[Piece]]:
        """Field -> its pieces since the last call."""
        pieces, self._pieces = self._pieces, {}
        return pieces

    def break_off(self) -> None:
        """The GPU was not there for a while: the next look speaks for no time before it."""
        self._pieces, self._last_s = {}, None


class Integrals:
    """Counters that grow by what a ratio was for how long, as whole numbers of their resolution."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, str], float] = {}

    def grow(self, uuid: str, name: str, pieces: Sequence[Piece]) -> int:
        """Add the pieces of `INTEGRALS[name]` to the counter `name` of a GPU; returns the counter."""
        seconds = self._seconds.get((uuid, name), 0.0) + integral_s(pieces)
        self._seconds[uuid, name] = seconds
        return int(seconds / BY_NAME[name].resolution)


class Pace:
    """When to look next: `hz` times per second, with the row itself as one of the looks."""

    REST = 4.0
    """A look that took long is followed by so many times its length without one: the driver holds one
    lock for all its callers, and jobs call it too."""

    def __init__(self, hz: float) -> None:
        """`hz` 0: never but at the row."""
        self._interval_s = 1.0 / hz if hz > 0 else None
        self._due_s: float | None = None
        self._row_s: float | None = None
        self._next_row_s: float | None = None

    def row(self, began_s: float, ended_s: float) -> None:
        """A row was read."""
        if self._row_s is not None:
            self._next_row_s = began_s + (began_s - self._row_s)
        self._row_s = began_s
        self._plan(began_s, began_s, ended_s)

    def look(self, began_s: float, ended_s: float) -> None:
        """A look was taken."""
        self._plan(began_s if self._due_s is None else self._due_s, began_s, ended_s)

    def wait_s(self, now_s: float) -> float | None:
        """Seconds until the next look; None when only the next row will be one."""
        return None if self._due_s is None else max(0.0, self._due_s - now_s)

    def _plan(self, from_s: float, began_s: float, ended_s: float) -> None:
        if self._interval_s is None:
            return
        due_s = max(from_s + self._interval_s, ended_s + self.REST * (ended_s - began_s))
        row_s = self._next_row_s
        if row_s is not None and abs(due_s - row_s) < self._interval_s / 2:
            due_s = row_s + self._interval_s
        self._due_s = due_s
