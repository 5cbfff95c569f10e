"""What happened between two rows of a GPU: means, extremes, the share of the time at zero, integrals.

The driver is looked at several times between two rows. A look speaks for the time since the look before,
so that looks which come late or not at all do not bend a mean.

How true a mean of 10 s can be, for a GPU that is busy for half of each period of 0.3 to 3 s, is a matter
of how often and when one looks (RMS error in points, by simulation; tests/agent/test_subsecond.py holds it):

    what the driver shows                   5 Hz grid   5 Hz random   20 Hz random   its sample buffer
    the instant                                   6.2           3.8            0.8                   -
    the last whole sixth of a second              2.8           2.8            1.1                 0.5

A grid meets periods that are multiples of its own (0.6 s at 5 Hz) always in the same phase; so each look
falls on a random moment of its slot. An edge of the signal somewhere in a slot of length h is known to
h/sqrt(6) at best, and 5 Hz sees 67 edges in 10 s of a 0.3 s signal: 0.2 sqrt(67/6) / 10 = 6.7 points for it.
So 5 Hz cannot do, and 20 Hz of everything is a price that a calm GPU should not pay: `Restlessness` notes
whose utilization jumps, and only that one call of only those GPUs is made 20 times a second. Means of
drivers that average over 0.5 or 1 s lag by about that time, which no looking mends: 2.2 and 2.9 points.
Where the driver keeps a buffer of samples, they are the pieces and there are no looks.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence

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

_STATISTICS = {
    field.name: ("", "", "")
    if field.unit == "{bits}"
    else (f"{field.name}.min", f"{field.name}.max", f"{field.name}.zero")
    for field in FIELDS
}
"""Field -> the columns of its least, its most and its share at zero; bits have none."""

LONGEST_S = 120.0
"""No look speaks for longer, twice the longest period between rows: the agent was stopped meanwhile."""


def summary(name: str, pieces: Sequence[Piece]) -> dict[str, Value]:
    """The columns of the field `name`: bits that were ever set, or the mean and its statistics.

    A single piece is the value itself: it has a mean, but no extremes.
    """
    values = [value for _, value in pieces]
    low_name, high_name, zero_name = _STATISTICS[name]
    if not low_name:
        bits = 0
        for value in values:
            bits |= int(value)
        return {name: bits}
    if len(pieces) == 1:
        return {name: values[0]}
    low, high = min(values), max(values)
    if low == high:  # the mean of a constant is the constant, to the last digit
        return {name: low, low_name: low, high_name: low, zero_name: float(low == 0)}
    whole_s = sum([span_s for span_s, _ in pieces])
    weighed = pieces if whole_s > 0 else [(1.0, value) for value in values]
    whole = whole_s if whole_s > 0 else float(len(values))
    return {
        name: sum([weight * value for weight, value in weighed]) / whole,
        low_name: low,
        high_name: high,
        zero_name: sum([weight for weight, value in weighed if value == 0]) / whole,
    }


def integral_s(pieces: Sequence[Piece]) -> float:
    """A ratio's integral over time, in seconds."""
    return sum(span_s * value for span_s, value in pieces)


class Looks:
    """The looks at one GPU since its last row."""

    def __init__(self) -> None:
        self._pieces: dict[str, list[Piece]] = {}
        self._last_s: dict[str, float] = {}

    def add(self, time_s: float, values: Mapping[str, Value], but: Collection[str] = ()) -> None:
        """Take what a look at `time_s` (a clock that never steps) saw.

        Fields without statistics are left, and those in `but`.
        """
        last_s, pieces = self._last_s, self._pieces
        for name in LOOKED_AT:
            if name in values and name not in but:
                span_s = time_s - last_s.get(name, time_s)
                piece = (span_s if span_s < LONGEST_S else LONGEST_S, values[name])
                last_s[name] = time_s
                if name in pieces:
                    pieces[name].append(piece)
                else:
                    pieces[name] = [piece]

    def add_pieces(self, time_s: float, pieces: Mapping[str, Sequence[Piece]]) -> None:
        """Take what somebody else saw of the time until `time_s`, by field."""
        for name, of_field in pieces.items():
            self._pieces.setdefault(name, []).extend(of_field)
            self._last_s[name] = time_s

    def take(self) -> dict[str, list[Piece]]:
        """Field -> its pieces since the last call."""
        pieces, self._pieces = self._pieces, {}
        return pieces

    def break_off(self) -> None:
        """The GPU was not there for a while: the next look speaks for no time before it."""
        self._pieces, self._last_s = {}, {}


class Restlessness:
    """Whether a ratio jumps within a second, so that it takes more looks to know its mean."""

    JUMP = 0.2
    """Between two looks. A smaller one costs the mean at most a fifth of the errors above."""
    HOLD_S = 5.0
    """For so long after a jump: longer than the slowest signal that needs it takes to its next."""

    def __init__(self) -> None:
        self._last: Value | None = None
        self._until_s = float("-inf")

    def see(self, time_s: float, ratio: Value) -> None:
        """A look at `time_s` saw this."""
        if self._last is not None and abs(ratio - self._last) >= self.JUMP:
            self._until_s = time_s + self.HOLD_S
        self._last = ratio

    def at(self, time_s: float) -> bool:
        """Is it restless now."""
        return time_s < self._until_s


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
    """When to look next: `hz` times per second, with the row itself as one of the looks.

    The time from row to row is cut into slots, each with its look at a random moment of it, so that no
    signal keeps step. While a GPU is restless the slots are finer, so that there are `RESTLESS_HZ` looks per
    second, of which as many as ever are `whole`; the others are for the restless.
    """

    REST = 4.0
    """A look that took long is followed by so many times its length without one: the driver holds one
    lock for all its callers, and jobs call it too."""
    RESTLESS_HZ = 20.0
    """Above 10 or so a mean of 10 s is within 2 points; from 40 on, NVML callers were seen to stall each
    other in the driver."""

    def __init__(self, hz: float, chance: Callable[[], float] = random.random) -> None:
        """`hz` 0: never but at the row. `chance` gives numbers from 0 to 1."""
        self._interval_s = 1.0 / hz if hz > 0 else None
        self._finer = max(1, round(self.RESTLESS_HZ / hz)) if hz > 0 else 1
        self._chance = chance
        self._due_s: float | None = None
        self._row_s: float | None = None
        self._next_row_s: float | None = None
        self._slot = 0
        """Fine slots from the last row to the next look."""

    @property
    def whole(self) -> bool:
        """Is the next look at everything, or only at what is restless."""
        return self._slot % self._finer == 0

    def row(self, began_s: float, ended_s: float, *, restless: bool = False) -> None:
        """A row was read; `restless` says whether some GPU is."""
        if self._row_s is not None:
            self._next_row_s = began_s + (began_s - self._row_s)
        self._row_s, self._slot = began_s, 0
        self._plan(began_s, ended_s, restless)

    def look(self, began_s: float, ended_s: float, *, restless: bool = False) -> None:
        """A look was taken."""
        self._plan(began_s, ended_s, restless)

    def wait_s(self, now_s: float) -> float | None:
        """Seconds until the next look; None when only the next row will be one."""
        return None if self._due_s is None else max(0.0, self._due_s - now_s)

    def _plan(self, began_s: float, ended_s: float, restless: bool) -> None:
        if self._interval_s is None or self._row_s is None:
            return
        step = 1 if restless else self._finer
        fine_s = self._interval_s / self._finer
        free_s = ended_s + self.REST * (ended_s - began_s)
        slot = (self._slot // step + 1) * step
        # Slots that passed meanwhile are left out, and that of the next row, which looks itself.
        slot = max(slot, math.ceil(((free_s - self._row_s) / fine_s - step / 2) / step - 1e-6) * step)
        row_slot = None if self._next_row_s is None else (self._next_row_s - self._row_s) / fine_s
        if row_slot is not None and abs(slot - row_slot) < step / 2 + 1e-6:
            slot = math.floor(row_slot / step + 1.5) * step
        self._slot = slot
        moment = slot + step * (self._chance() - 0.5)
        self._due_s = max(free_s, self._row_s + moment * fine_s)
