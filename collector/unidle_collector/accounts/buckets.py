"""Sums of booked time by spans of five minutes; older ones are packed, then merged into hours.

Booking needs an array with a place for every tenure and code; reading does not, and most of it is zero.
So only the spans that can still change are dense.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

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
        room = max(tenures, have + have // 8)
        for name in PARTS:
            old: Floats = getattr(self, name)
            new = np.zeros((*old.shape[:-1], room))
            new[..., :have] = old
            setattr(self, name, new)

    def packed(self) -> Packed:
        """What is not zero of it."""
        used = self.seconds.any(axis=0) | self.activity.any(axis=(0, 1)) | (self.power_s != 0)
        tenures = np.flatnonzero(used)
        code, tenure = np.nonzero((self.seconds != 0) | (self.lost_s != 0) | (self.lost_j != 0))
        return Packed(
            tenures=tenures.astype(np.int32),
            power_s=self.power_s[tenures].astype(np.float32),
            activity=self.activity[..., tenures].astype(np.float32),
            code=code.astype(np.int8),
            tenure=tenure.astype(np.int32),
            seconds=self.seconds[code, tenure].astype(np.float32),
            lost_s=self.lost_s[code, tenure].astype(np.float32),
            lost_j=self.lost_j[code, tenure].astype(np.float32),
        )


@dataclass(frozen=True, slots=True)
class Packed:
    """Sums of one span: T tenures that have anything in it, E (code, tenure) that have any time."""

    tenures: NDArray[np.int32]
    """[T]"""
    power_s: NDArray[np.float32]
    """[T]"""
    activity: NDArray[np.float32]
    """[2, 2, T], as in Sums."""
    code: NDArray[np.int8]
    """[E]"""
    tenure: NDArray[np.int32]
    """[E]"""
    seconds: NDArray[np.float32]
    """[E]"""
    lost_s: NDArray[np.float32]
    """[E]"""
    lost_j: NDArray[np.float32]
    """[E]"""

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return sum(getattr(self, field.name).nbytes for field in fields(self))

    def measured(self) -> Packed:
        """The same without states: activity and known power."""
        none = slice(0, 0)
        return replace(
            self, code=self.code[none], tenure=self.tenure[none], seconds=self.seconds[none],
            lost_s=self.lost_s[none], lost_j=self.lost_j[none],
        )  # fmt: skip

    def moved(self, tenures: NDArray[np.int32]) -> Packed:
        """The same with tenure n as `tenures[n]`."""
        return replace(self, tenures=tenures[self.tenures], tenure=tenures[self.tenure])

    def add_to(self, sums: Sums) -> None:
        """Add it to `sums`, which has room for its tenures."""
        sums.power_s[self.tenures] += self.power_s
        sums.activity[..., self.tenures] += self.activity
        where = (self.code, self.tenure)
        sums.seconds[where] += self.seconds
        sums.lost_s[where] += self.lost_s
        sums.lost_j[where] += self.lost_j


class Buckets:
    """All spans that are kept: those of the last FINE_NS by five minutes, older ones by the hour."""

    def __init__(self, codes: int, change_ns: int, keep_ns: int | None) -> None:
        self._codes = codes
        self._change_ns = change_ns
        """A span that ended longer ago than this before the newest one changes by late rows only."""
        self._keep_ns = keep_ns
        self._dense: dict[int, Sums] = {}
        """Begin in ns -> sums."""
        self._same: dict[int, Packed] = {}
        """Of dense sums that nobody asked for since they were packed: what they were packed to."""
        self._packed: dict[int, list[Packed]] = {}
        self._hours: dict[int, Packed] = {}
        self._written: set[int] = set()
        """Hours that a file holds as they are."""
        self._given: set[int] = set()
        """Hours that were filled in from elsewhere: what is booked in one takes its place."""

    @staticmethod
    def begin(end_ns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Begins of the spans that instants ending at `end_ns` are booked in."""
        return (end_ns - 1) // BUCKET_NS * BUCKET_NS

    def at(self, end_ns: int, tenures: int) -> Sums:
        """The sums that an instant ending at `end_ns` is booked in, with room for `tenures`; to be used
        at once."""
        begin = (end_ns - 1) // BUCKET_NS * BUCKET_NS
        self._same.pop(begin, None)
        sums = self._dense.get(begin)
        if sums is None:
            self._tidy(max(begin, max(self._dense, default=begin)))
            sums = self._dense[begin] = Sums(self._codes, max(64, tenures))
            hour = begin // HOUR_NS * HOUR_NS
            self._written.discard(hour)
            if hour in self._given:
                self._given.remove(hour)
                self._hours.pop(hour, None)
        sums.grow(tenures)
        return sums

    def amend(self, begin_ns: int, change: Packed) -> None:
        """Add to a span, or to its hour where spans are no longer kept; what is too old is left out."""
        hour = begin_ns // HOUR_NS * HOUR_NS
        if begin_ns in self._dense:
            self._same.pop(begin_ns, None)
            sums = self._dense[begin_ns]
            sums.grow(int(change.tenures.max(initial=-1)) + 1)
            change.add_to(sums)
        elif hour in self._hours:
            self._hours[hour] = _merged([self._hours[hour], change], self._codes)
        else:
            self._packed.setdefault(begin_ns, []).append(change)
        self._written.discard(hour)

    def total(self, start_ns: int, end_ns: int, tenures: int) -> Sums:
        """Everything in the spans that touch the window."""
        out = Sums(self._codes, tenures)
        for begin, sums in self._dense.items():
            if start_ns < begin + BUCKET_NS and begin < end_ns:
                both = min(tenures, sums.power_s.size)  # it has room for tenures that are not there yet
                for name in PARTS:
                    getattr(out, name)[..., :both] += getattr(sums, name)[..., :both]
        for begin, several in self._packed.items():
            if start_ns < begin + BUCKET_NS and begin < end_ns:
                for packed in several:
                    packed.add_to(out)
        for begin, packed in self._hours.items():
            if start_ns < begin + HOUR_NS and begin < end_ns:
                packed.add_to(out)
        return out

    def first_ns(self, start_ns: int, end_ns: int) -> int | None:
        """Begin of the first span that touches the window."""
        spans = (
            *((b, BUCKET_NS) for b in (*self._dense, *self._packed)),
            *((b, HOUR_NS) for b in self._hours),
        )
        return min((b for b, length in spans if start_ns < b + length and b < end_ns), default=None)

    def resolution_ns(self, start_ns: int, end_ns: int) -> int:
        """Length of the longest span that touches the window."""
        coarse = any(start_ns < begin + HOUR_NS and begin < end_ns for begin in self._hours)
        return HOUR_NS if coarse else BUCKET_NS

    # -- for files -------------------------------------------------------------------------------

    def finished(self) -> list[int]:
        """Begins of hours that are over for good (but for late rows) and that no file holds yet."""
        newest = max((*self._dense, *self._packed), default=0)
        hours = {begin // HOUR_NS * HOUR_NS for begin in self._packed} | {*self._hours}
        open_hours = {begin // HOUR_NS * HOUR_NS for begin in self._dense}
        settled_ns = newest - self._change_ns - 2 * BUCKET_NS
        over = (hour for hour in hours - open_hours - self._written if hour + HOUR_NS <= settled_ns)
        return sorted(over)

    def hour(self, begin_ns: int) -> Packed:
        """The sums of a whole hour that is finished."""
        several = [self._hours[begin_ns]] if begin_ns in self._hours else []
        for begin, spans in self._packed.items():
            if begin_ns <= begin < begin_ns + HOUR_NS:
                several += spans
        return _merged(several, self._codes)

    def wrote(self, hour_ns: int) -> None:
        """A file holds this hour now."""
        self._written.add(hour_ns)

    def lost(self, hour_ns: int) -> None:
        """The file of this hour could not be written."""
        self._written.discard(hour_ns)

    def unwritten(self) -> list[tuple[int, Packed]]:
        """(begin, sums) of every span that no file of an hour holds."""
        for begin in self._dense.keys() - self._same.keys():
            self._same[begin] = self._dense[begin].packed()
        spans = [(begin, self._same[begin]) for begin in self._dense]
        spans += [(begin, packed) for begin, several in self._packed.items() for packed in several]
        spans += list(self._hours.items())
        return [span for span in spans if span[0] // HOUR_NS * HOUR_NS not in self._written]

    def by_hour(self) -> dict[int, Packed]:
        """The sums of every hour that no file holds, over or not, by its begin."""
        spans: dict[int, list[Packed]] = {}
        for begin, packed in self.unwritten():
            spans.setdefault(begin // HOUR_NS * HOUR_NS, []).append(packed)
        return {hour: _merged(several, self._codes) for hour, several in sorted(spans.items())}

    def restore_hour(self, begin_ns: int, packed: Packed, *, given: bool = False) -> None:
        """An hour that a file holds; `given`: rows that the collector takes itself are better."""
        self._hours[begin_ns] = packed
        self._written.add(begin_ns)
        if given:
            self._given.add(begin_ns)

    # -- keeping it small ------------------------------------------------------------------------

    def _tidy(self, newest_ns: int) -> None:
        """Pack what changes no more, merge what is old, drop what is too old and written."""
        for begin in [begin for begin in self._dense if begin + BUCKET_NS < newest_ns - self._change_ns]:
            sums, same = self._dense.pop(begin), self._same.pop(begin, None)
            self._packed.setdefault(begin, []).append(sums.packed() if same is None else same)
        for hour in sorted({begin // HOUR_NS * HOUR_NS for begin in self._packed}):
            if hour + HOUR_NS <= newest_ns - FINE_NS:
                self._hours[hour] = self.hour(hour)
                for begin in [begin for begin in self._packed if hour <= begin < hour + HOUR_NS]:
                    del self._packed[begin]
        if self._keep_ns is not None:  # after a long silence some are that old before they were written
            for begin in [begin for begin in self._written if begin < newest_ns - self._keep_ns]:
                self._hours.pop(begin, None)
                self._written.discard(begin)
                self._given.discard(begin)


def _merged(several: Iterable[Packed], codes: int) -> Packed:
    several = list(several)
    tenures = np.unique(np.concatenate([packed.tenures for packed in several]))
    sums = Sums(codes, tenures.size)
    for packed in several:
        _renumbered(packed, tenures).add_to(sums)
    out = sums.packed()
    return Packed(
        tenures[out.tenures], out.power_s, out.activity, out.code, tenures[out.tenure],
        out.seconds, out.lost_s, out.lost_j,
    )  # fmt: skip


def _renumbered(packed: Packed, tenures: NDArray[np.int32]) -> Packed:
    """Tenures as positions in `tenures`."""
    return Packed(
        np.searchsorted(tenures, packed.tenures).astype(np.int32), packed.power_s, packed.activity,
        packed.code, np.searchsorted(tenures, packed.tenure).astype(np.int32),
        packed.seconds, packed.lost_s, packed.lost_j,
    )  # fmt: skip
