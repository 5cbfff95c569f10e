"""Sums of booked time by spans of five minutes; older ones are packed, then merged into hours.

Booking needs an array with a place for every tenure; reading does not, and most tenures have no time in
most spans. So only the spans that can still change are dense.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unidle_collector.pergpu import SECOND_NS, Floats

BUCKET_NS = 300 * SECOND_NS
HOUR_NS = 3600 * SECOND_NS
FINE_NS = 24 * HOUR_NS
"""Spans older than this are kept by the hour."""

PARTS = ("seconds", "lost_s", "lost_j", "power_s", "activity")


class Sums:
    """Sums of one span; the last axis is the tenure, and grows with the tenures."""

    def __init__(self, codes: int, tenures: int) -> None:
        self.seconds: Floats = np.zeros((codes, tenures))
        self.lost_s: Floats = np.zeros((codes, tenures))
        self.lost_j: Floats = np.zeros((codes, tenures))
        self.power_s: Floats = np.zeros(tenures)
        """Seconds for which the power was known."""
        self.activity: Floats = np.zeros((2, 2, tenures))
        """[gpu_util | sm_active, integral | known seconds, tenures]."""

    def grow(self, tenures: int) -> None:
        """Room for more tenures, in steps, so that not every new job copies the arrays."""
        have = self.power_s.size
        if tenures <= have:
            return
        room = max(tenures, have + have // 2)
        for name in PARTS:
            old: Floats = getattr(self, name)
            new = np.zeros((*old.shape[:-1], room))
            new[..., :have] = old
            setattr(self, name, new)

    def packed(self) -> Packed:
        """The same with the tenures that have any time in it."""
        tenures = np.flatnonzero(self.seconds.any(axis=0))
        return Packed(tenures, {name: getattr(self, name)[..., tenures] for name in PARTS})


@dataclass(frozen=True, slots=True)
class Packed:
    """Sums of one span that changes no more."""

    tenures: NDArray[np.intp]
    parts: dict[str, Floats]


class Buckets:
    """All spans that are kept: those of the last `fine_ns` by five minutes, older ones by the hour."""

    def __init__(self, codes: int, change_ns: int, keep_ns: int | None) -> None:
        self._codes = codes
        self._change_ns = change_ns
        """A span that ended longer ago than this before the newest one changes no more."""
        self._keep_ns = keep_ns
        self._dense: dict[int, Sums] = {}
        """Begin in ns -> sums."""
        self._packed: dict[int, list[Packed]] = {}
        self._hours: dict[int, Packed] = {}

    @staticmethod
    def begin(end_ns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Begins of the spans that instants ending at `end_ns` are booked in."""
        return (end_ns - 1) // BUCKET_NS * BUCKET_NS

    def at(self, end_ns: int, tenures: int) -> Sums:
        """The sums that an instant ending at `end_ns` is booked in, with room for `tenures`."""
        begin = (end_ns - 1) // BUCKET_NS * BUCKET_NS
        sums = self._dense.get(begin)
        if sums is None:
            sums = self._dense[begin] = Sums(self._codes, max(64, tenures))
            self._tidy(max(self._dense))
        sums.grow(tenures)
        return sums

    def total(self, start_ns: int, end_ns: int, tenures: int) -> Sums:
        """Everything in the spans that touch the window."""
        out = Sums(self._codes, tenures)
        for _, ids, parts in self._within(start_ns, end_ns):
            known = ids[ids < tenures]  # a dense span has room for tenures that are not there yet
            for name in PARTS:
                getattr(out, name)[..., known] += parts[name][..., : known.size]
        return out

    def first_ns(self, start_ns: int, end_ns: int) -> int | None:
        """Begin of the first span that touches the window."""
        return min((begin for begin, _, _ in self._within(start_ns, end_ns)), default=None)

    def hours(self, start_ns: int, end_ns: int) -> list[int]:
        """Begins of the hours that have any span beginning within the window."""
        begins = {*self._dense, *self._packed, *self._hours}
        return sorted({begin // HOUR_NS * HOUR_NS for begin in begins if start_ns <= begin < end_ns})

    def _within(
        self, start_ns: int, end_ns: int
    ) -> Iterator[tuple[int, NDArray[np.intp], dict[str, Floats]]]:
        for begin, sums in self._dense.items():
            if start_ns < begin + BUCKET_NS and begin < end_ns:
                yield begin, np.arange(sums.power_s.size), {name: getattr(sums, name) for name in PARTS}
        for begin, several in self._packed.items():
            if start_ns < begin + BUCKET_NS and begin < end_ns:
                for packed in several:
                    yield begin, packed.tenures, packed.parts
        for begin, packed in self._hours.items():
            if start_ns < begin + HOUR_NS and begin < end_ns:
                yield begin, packed.tenures, packed.parts

    def _tidy(self, newest_ns: int) -> None:
        """Pack what changes no more, merge what is old, drop what is too old."""
        for begin in [begin for begin in self._dense if begin + BUCKET_NS < newest_ns - self._change_ns]:
            self._packed.setdefault(begin, []).append(self._dense.pop(begin).packed())
        for begin in [begin for begin in self._packed if begin < newest_ns - FINE_NS]:
            hour = begin // HOUR_NS * HOUR_NS
            before = [self._hours[hour]] if hour in self._hours else []
            self._hours[hour] = _merged([*before, *self._packed.pop(begin)], self._codes)
        if self._keep_ns is not None:
            for begin in [begin for begin in self._hours if begin < newest_ns - self._keep_ns]:
                del self._hours[begin]


def _merged(several: Iterable[Packed], codes: int) -> Packed:
    several = list(several)
    tenures = np.unique(np.concatenate([packed.tenures for packed in several]))
    out = Sums(codes, tenures.size)
    for packed in several:
        place = np.searchsorted(tenures, packed.tenures)
        for name in PARTS:
            getattr(out, name)[..., place] += packed.parts[name]
    return Packed(tenures, {name: getattr(out, name) for name in PARTS})
