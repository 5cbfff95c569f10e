"""The newest steps of every field, as columns within a budget of memory.

A ring holds [steps, things] per field, where a thing is a GPU or a node. A field takes memory once
somebody has sent it. Rows come in blocks: those of many batches with the same columns at once, so that
a block costs one pass per field however many nodes it comes from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unidle_agent.fields import UNKNOWN_U8, Field
from unidle_collector.counters import increases
from unidle_collector.joined import Joined
from unidle_collector.pergpu import Array, Bools, Floats

ENERGY = "energy_j"
"""Counts since the driver was loaded: it goes back when that, or the GPU, was reset (NVML, field 83)."""
MOST_RATIO = 1.5
"""A ratio above this is nonsense (MIG shows a little over 1) and becomes unknown."""
WIRE = {"f4": "<f4", "f8": "<f8", "u8": "<u8"}

Numbers = NDArray[np.int64]
Places = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Block:
    """The rows of some batches that have the same columns, in the order batch, instant, thing.

    B batches, T[b] instants in each and W[b] things (at least one of both).
    """

    instants: Numbers
    """[B] T."""
    widths: Numbers
    """[B] W."""
    places: Places
    """[sum W] Position of each batch's things in the ring."""
    steps: Numbers
    """[sum T] Number of the step that each instant belongs to."""
    use: Bools
    """[sum T] Is the instant one that can be placed."""
    cover: Numbers
    """[B] Steps that one row speaks for at most."""


@dataclass(frozen=True, slots=True)
class Refused:
    """What could not be taken as it came; both are [B]."""

    values: Numbers
    """Impossible ones, which became unknown."""
    resets: Numbers
    """Counters that went back."""


class Ring:
    """Columns of the fields of one scope."""

    def __init__(self, fields: Sequence[Field], size: int, steps: int) -> None:
        self._specs = {spec.name: spec for spec in fields}
        self._size, self._steps = size, steps
        self._columns: dict[str, Array] = {}
        self._raw: dict[str, NDArray[np.uint64]] = {}
        """Last known value of each counter."""
        self.sampled: Bools = np.zeros((steps, size), dtype=np.bool_)
        self.last_step: Numbers = np.full(size, -1, dtype=np.int64)
        self._energy_step: Numbers = np.full(size, -1, dtype=np.int64)
        """Step of the last row that brought another energy, -1 where nobody knows when it was read."""
        self._energy_begins: Bools = np.zeros(size, dtype=np.bool_)
        """Is the last known energy the first one, or the first after a reset."""
        self._resets: list[tuple[int, int]] = []

    def take_resets(self) -> list[tuple[int, int]]:
        """(Thing, step) at which the driver's own counter has begun anew, since this was asked last.

        The step is the newest one of the batch that showed it.
        """
        taken, self._resets = self._resets, []
        return taken

    @property
    def names(self) -> list[str]:
        """Fields that somebody has sent."""
        return list(self._columns)

    @property
    def size(self) -> int:
        """Things that there is room for."""
        return self._size

    @property
    def bytes_per_step(self) -> int:
        """What one more step costs."""
        return sum(column.itemsize * self._size for column in self._columns.values()) + self._size

    def resize(self, size: int) -> None:
        """Grow to `size` things."""
        if size == self._size:
            return
        wider = ((0, 0), (0, size - self._size))
        self.sampled = np.pad(self.sampled, wider)
        for name, column in self._columns.items():
            self._columns[name] = np.pad(column, wider, constant_values=np.nan)
        for name, raw in self._raw.items():
            self._raw[name] = np.pad(raw, wider[1], constant_values=UNKNOWN_U8)
        self.last_step = np.pad(self.last_step, wider[1], constant_values=-1)
        self._energy_step = np.pad(self._energy_step, wider[1], constant_values=-1)
        self._energy_begins = np.pad(self._energy_begins, wider[1])
        self._size = size

    def shorten(self, steps: int, first: int, last: int) -> None:
        """Hold fewer steps: of those held now, [first, last] stay."""
        kept = np.arange(first, last + 1)
        for name, column in self._columns.items():
            shorter = np.full((steps, self._size), np.nan, dtype=column.dtype)
            shorter[kept % steps] = column[kept % self._steps]
            self._columns[name] = shorter
        sampled = np.zeros((steps, self._size), dtype=np.bool_)
        sampled[kept % steps] = self.sampled[kept % self._steps]
        self.sampled, self._steps = sampled, steps

    def clear(self, step: int) -> None:
        """Forget what lies in the place of a step."""
        slot = step % self._steps
        for column in self._columns.values():
            column[slot] = np.nan
        self.sampled[slot] = False

    def row(self, name: str, step: int) -> Array:
        """[things] of one step; a view. The field must be one of `names`."""
        found: Array = self._columns[name][step % self._steps]
        return found

    def history(self, name: str, steps: Numbers, thing: int) -> Floats:
        """[steps] of one thing, NaN where unknown."""
        column = self._columns.get(name)
        if column is None:
            return np.full(steps.shape, np.nan)
        found: Floats = column[steps % self._steps, thing].astype(np.float64)
        return found

    def place(self, block: Block, raws: Sequence[Mapping[str, Any]], done: int) -> Refused:
        """Put the rows of `raws`, the wire's buffers by field of each batch, where they belong.

        `done` is the last step handed out: nothing is written at or before it.
        """
        rows = _Rows(block, self.last_step, done)
        flat = (rows.target % self._steps) * self._size + rows.thing
        known: Bools = np.zeros(rows.count, dtype=np.bool_)
        refused = np.zeros(block.instants.size, dtype=np.int64)
        resets = np.zeros_like(refused)
        joined = Joined(raws)
        for name in raws[0]:
            spec = self._specs.get(name)
            if spec is None:  # of another scope, or a statistic
                continue
            read = np.frombuffer(joined.bytes_of(name), dtype=WIRE[spec.dtype])
            if spec.kind == "counter":
                values, went_back = self._increase(spec, read, rows)
                resets += went_back
            else:
                values, bad = _checked(spec, read)
                if bad is not None:
                    refused += np.bincount(rows.batch[bad], minlength=refused.size)
            known |= ~np.isnan(values)
            if rows.source is not None:
                values = values[rows.source]
            self._column(spec).reshape(-1)[flat] = values
        if rows.source is not None:
            known = known[rows.source]
        self.sampled.reshape(-1)[flat[known]] = True
        np.maximum.at(self.last_step, block.places, np.repeat(rows.newest, block.widths))
        return Refused(refused, resets)

    def _increase(self, spec: Field, read: NDArray[np.uint64], rows: _Rows) -> tuple[Floats, Numbers]:
        """Increases in base units since the row before, spread over the steps that each row fills."""
        raw = self._raw.get(spec.name)
        if raw is None:
            raw = self._raw[spec.name] = np.full(self._size, UNKNOWN_U8, dtype=np.uint64)
        result = increases(read[rows.order], raw[rows.thing_by_order], rows.series_begin, spec.resolution)
        raw[rows.thing_by_order[rows.series_end]] = result.last[rows.series_end]
        if spec.name == ENERGY and result.reset.any():
            newest = rows.newest[rows.batch[rows.order][result.reset]]
            things = rows.thing_by_order[result.reset]
            self._resets += zip(things.tolist(), newest.tolist(), strict=True)
        values = np.empty(rows.count)
        values[rows.order] = result.values
        if spec.name == ENERGY:  # of a GPU that draws something: where it stands still nobody read it anew
            known = (read != UNKNOWN_U8)[rows.order]
            values[rows.order] = result.values / self._since_read(known, result.values, rows)
        else:
            values /= rows.span
        return values, np.bincount(rows.batch[rows.order][result.reset], minlength=rows.batches)

    def _since_read(self, known: Bools, grown: Floats, rows: _Rows) -> Floats:
        """[R] Steps since it was read before, NaN where that or by how much it has `grown` is not known.

        All in the order of `rows.order`. Energy is a rate to whoever reads it, whatever a row fills: a node
        may be away for longer, and an exporter may show the same value several times. If it does so with the
        first one that came, nobody knows how long it had shown that before.
        """
        step, thing = rows.step[rows.order], rows.thing_by_order
        begins, stands = known & np.isnan(grown), known & (grown == 0)
        prior = rows.before(known)
        shown_again = stands & np.where(prior >= 0, begins[prior], self._energy_begins[thing])
        read = np.where(shown_again, -1, step)
        tells = known & (~stands | shown_again)
        prior = rows.before(tells)
        before = np.where(prior >= 0, read[prior], self._energy_step[thing])
        for kept, flags, values in (
            (self._energy_step, tells, read),
            (self._energy_begins, known, begins),
        ):
            last = rows.last(flags)
            kept[thing[rows.series_end[last >= 0]]] = values[last[last >= 0]]
        out: Floats = np.where(stands | (before < 0), np.nan, np.maximum(step - before, 1))
        return out

    def _column(self, spec: Field) -> Array:
        found = self._columns.get(spec.name)
        if found is None:
            dtype = np.float64 if spec.dtype == "f8" else np.float32
            found = self._columns[spec.name] = np.full((self._steps, self._size), np.nan, dtype=dtype)
        return found


class _Rows:
    """Where each row of a block comes from and goes to; R rows as they came, P after they were spread."""

    def __init__(self, block: Block, last_step: Numbers, done: int) -> None:
        self.batches = block.instants.size
        batch_of = np.repeat(np.arange(self.batches), block.instants)  # [sum T]
        first_place = np.cumsum(block.widths) - block.widths
        before = np.maximum.reduceat(last_step[block.places], first_place)
        first, self.newest = _spread(block, batch_of, np.maximum(before, 0), done)
        span = np.where(block.use, block.steps - first + 1, 1)
        widths = block.widths[batch_of]  # [sum T]
        first_row = np.cumsum(widths) - widths
        self.count = int(widths.sum())
        self.batch = np.repeat(batch_of, widths)
        self.span: Floats = np.repeat(span, widths).astype(np.float64)
        """[R] Over how many steps a row spreads."""
        self.step: Numbers = np.repeat(block.steps, widths)
        """[R] That it belongs to."""
        thing = block.places[_ranges(first_place[batch_of], widths)]  # [R]
        self.source: Places | None = None
        """[P] The row of each that is placed; None where that is every row once, in order."""
        if bool(block.use.all()) and bool((span == 1).all()):
            self.target, self.thing = np.repeat(block.steps, widths), thing
        else:
            used = np.flatnonzero(block.use)
            pair = np.repeat(used, span[used])
            steps = _ranges(first[used], span[used])
            self.source = _ranges(first_row[pair], widths[pair])
            self.target, self.thing = np.repeat(steps, widths[pair]), thing[self.source]
        # Rows of one thing one after the other, for counters.
        lengths = np.repeat(block.instants, block.widths)
        begins = np.cumsum(block.instants * block.widths) - block.instants * block.widths
        shapes = zip(begins.tolist(), block.instants.tolist(), block.widths.tolist(), strict=True)
        self.order = np.concatenate([begin + _turned(high, wide) for begin, high, wide in shapes])
        self.series_end = np.cumsum(lengths) - 1
        self.series_begin = np.repeat(self.series_end - lengths + 1, lengths)
        """[R] In the order of `order`: where the series of the same thing begins."""
        self.thing_by_order = thing[self.order]

    def before(self, flags: Bools) -> Places:
        """[R] The row before each, of the same series, that is one of `flags`, -1 where there is none; all in
        the order of `order`."""
        latest = np.maximum.accumulate(np.where(flags, np.arange(self.count), -1))
        prior = np.concatenate((np.full(min(1, latest.size), -1), latest[:-1]))
        return np.where(prior >= self.series_begin, prior, -1)

    def last(self, flags: Bools) -> Places:
        """[series] The last row of each that is one of `flags`, -1 where there is none; the same."""
        latest = np.maximum.accumulate(np.where(flags, np.arange(self.count), -1))[self.series_end]
        return np.where(latest >= self.series_begin[self.series_end], latest, -1)


def _spread(block: Block, batch_of: Numbers, before: Numbers, done: int) -> tuple[Numbers, Numbers]:
    """([sum T] first step that each instant speaks for, [B] newest step of each batch).

    A row speaks for the time since the thing's row before it, for `cover` steps at most.
    """
    steps = block.steps
    used = np.flatnonzero(block.use)
    last = before[batch_of[used]]
    if used.size > 1:
        same = batch_of[used][1:] == batch_of[used][:-1]
        last[1:] = np.where(same, steps[used][:-1], last[1:])
    first = steps.copy()
    here = steps[used]
    earliest = np.maximum(np.maximum(last, here - block.cover[batch_of[used]]), done) + 1
    first[used] = np.minimum(earliest, here)
    newest = np.full(block.instants.size, -1, dtype=np.int64)
    np.maximum.at(newest, batch_of[used], here)
    return first, newest


def _ranges(begins: Numbers, lengths: Numbers) -> NDArray[np.intp]:
    """Each [begin, begin + length), one after the other."""
    ends = np.cumsum(lengths)
    return np.repeat(begins - (ends - lengths), lengths) + np.arange(int(ends[-1]) if ends.size else 0)


@lru_cache(maxsize=256)
def _turned(high: int, wide: int) -> NDArray[np.intp]:
    """Row-major positions of a [high, wide] table, column after column."""
    return np.arange(high * wide).reshape(high, wide).T.ravel()


def _checked(spec: Field, read: Array) -> tuple[Floats, Bools | None]:
    """Values, impossible ones unknown; and where those are, None when nowhere."""
    if spec.dtype == "u8":
        return np.where(read == UNKNOWN_U8, np.nan, read.astype(np.float64)), None
    bad = np.isinf(read)
    if spec.name.endswith("_ratio"):
        bad |= (read < 0) | (read > MOST_RATIO)
    elif spec.unit != "Cel":
        bad |= read < 0
    return (np.where(bad, np.nan, read), bad) if bad.any() else (read, None)
