"""Which sequence numbers of one node and boot were acknowledged: ranges, exact in any order of arrival."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

MOST_RANGES = 1024
"""A node that has left more gaps than this gets its oldest gap closed: what is in it counts as seen."""


class Sequences:
    """A set of whole numbers, kept as sorted ranges that do not touch: [first, last], both included."""

    __slots__ = ("ranges",)

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self.ranges = [(first, last) for first, last in ranges]

    @property
    def highest(self) -> int:
        """The highest number; -1 when there is none."""
        return self.ranges[-1][1] if self.ranges else -1

    def __contains__(self, seq: int) -> bool:
        place = bisect_right(self.ranges, (seq, 1 << 64)) - 1
        return place >= 0 and seq <= self.ranges[place][1]

    def add(self, seq: int) -> None:
        """Take `seq` in; nothing happens when it is in already."""
        if self.ranges and seq == self.ranges[-1][1] + 1:  # as nearly always
            self.ranges[-1] = (self.ranges[-1][0], seq)
            return
        if seq in self:
            return
        place = bisect_right(self.ranges, (seq, 1 << 64))
        first = last = seq
        if place < len(self.ranges) and self.ranges[place][0] == seq + 1:
            last = self.ranges.pop(place)[1]
        if place > 0 and self.ranges[place - 1][1] == seq - 1:
            place -= 1
            first = self.ranges.pop(place)[0]
        self.ranges.insert(place, (first, last))
        if len(self.ranges) > MOST_RANGES:
            oldest, second = self.ranges[:2]
            self.ranges[:2] = [(oldest[0], second[1])]
