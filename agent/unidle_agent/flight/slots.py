"""What a driver's buffers remember, cut into slots as long as the time between two looks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from unidle_agent.sample import Value
from unidle_agent.subsecond import Piece

ROUNDING = 1e-4
"""Of a slot: samples are stamped in whole microseconds, and a piece may seem to end just after its slot."""


def slots(pieces: Mapping[str, Sequence[Piece]], slot_s: float) -> Iterator[tuple[float, dict[str, Value]]]:
    """(Seconds ago at which a slot ended, field -> its mean in it), oldest first; none for endless slots.

    `pieces` are oldest first, and the newest of each field ends now. A piece belongs to the slot in which
    it ended.
    """
    sums: dict[int, dict[str, tuple[float, float]]] = {}
    for name, of_field in pieces.items() if math.isfinite(slot_s) else ():
        ago_s = 0.0
        for span_s, value in reversed(of_field):
            slot = sums.setdefault(int(ago_s / slot_s + ROUNDING), {})
            time_s, whole = slot.get(name, (0.0, 0.0))
            slot[name] = (time_s + span_s, whole + span_s * value)
            ago_s += span_s
    for number in sorted(sums, reverse=True):
        means = {name: whole / time_s for name, (time_s, whole) in sums[number].items() if time_s > 0}
        yield number * slot_s, means
