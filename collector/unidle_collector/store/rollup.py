"""Roll-ups: what the rows of one GPU (or host) within a bucket of 10 s, 1 min or 1 h come to.

They are mergeable: the roll-up of all rows of a bucket is the roll-up of the roll-ups of its parts, however
the rows were spread over log files. So each log file leaves its own part of a bucket, nothing is read again
when a late row comes, and whoever reads puts the parts together (`combine`). What is kept of a field:

- gauge: mean, `.min`, `.max`, and `.count` where it is not the number of rows; `.zero` (share of the time
  at zero) of a field that travels with it. `.min` and `.max` are those within the second where it has them.
- counter: the last value, `.increase`: what was added since the first one (a fall is a reset, and what was
  counted across it is unknown and left out), and `.first` where that is not the last less the increase.
- state: the last value, and `.any` (all bits that were set) of a bit mask or `.max` of another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unidle_agent.fields import COLUMNS, UNKNOWN_U8, Field

SECOND_NS = 1_000_000_000
WIDTHS_NS: dict[str, int] = {"10s": 10 * SECOND_NS, "1m": 60 * SECOND_NS, "1h": 3600 * SECOND_NS}
"""Level -> width of its buckets; buckets begin at whole multiples of it since the epoch."""

Ints = NDArray[np.int64]
Values = NDArray[Any]

MOST_PADDING = 1.5
"""Runs are put side by side where that takes at most this many times the room."""

_UNKNOWN = np.uint64(UNKNOWN_U8)


@dataclass(frozen=True, slots=True)
class Names:
    """One text per row: `texts[codes[row]]`, none where the code is negative."""

    codes: NDArray[np.int32]
    texts: list[str]

    def take(self, rows: Values) -> Names:
        """Those of some rows."""
        return Names(self.codes[rows], self.texts)

    def places(self) -> Ints:
        """The rank of each row's text among all texts; -1 for none."""
        rank = np.empty(len(self.texts) + 1, np.int64)
        rank[sorted(range(len(self.texts)), key=self.texts.__getitem__)] = np.arange(len(self.texts))
        rank[-1] = -1
        return rank[self.codes]


@dataclass(frozen=True, slots=True)
class Rolled:
    """Rows or parts of buckets, sorted by node, GPU, bucket and first instant. All arrays are [parts]."""

    time_ns: Ints
    """Begin of the bucket; of a row that is not rolled up, its instant."""
    first_ns: Ints
    last_ns: Ints
    """First and last instant of the rows in it."""
    rows: Ints
    span_ns: Ints
    """Time that its counters' increases took, added up over its GPUs."""
    series: Ints
    """A number per GPU (or host), rising; only its changes matter."""
    names: Mapping[str, Names]
    """`node`, and for GPUs `gpu` and `job` (the last one in the bucket)."""
    simulated: NDArray[np.bool_]
    values: Mapping[str, Values]
    """By column: NaN or UNKNOWN_U8 where unknown. `.count` is absent where it is `rows` everywhere."""

    def take(self, order: Values) -> Rolled:
        """Some of them, in another order."""
        return Rolled(
            self.time_ns[order], self.first_ns[order], self.last_ns[order], self.rows[order],
            self.span_ns[order], self.series[order],
            {name: names.take(order) for name, names in self.names.items()},
            self.simulated[order], {name: values[order] for name, values in self.values.items()},
        )  # fmt: skip


@cache
def parts(spec: Field) -> tuple[Field, ...]:
    """The columns that a roll-up of `spec` has; the first one carries its name."""

    def part(name: str, doc: str, **other: Any) -> Field:
        bare = replace(spec, nvml="", dcgm=(), otel="", stats=False)
        return replace(bare, name=f"{spec.name}.{name}", doc=doc, **other)

    if spec.kind == "counter":
        first = part("first", f"first {spec.name} in the bucket")
        return spec, first, part("increase", f"what {spec.name} grew by in the bucket, resets left out")
    if spec.kind == "state":
        if spec.unit == "{bits}":
            return spec, part("any", f"bits of {spec.name} that were set at some time in the bucket")
        return spec, part("max", f"highest {spec.name} in the bucket")
    count = part("count", f"rows with {spec.name}; null: all", dtype="u8", unit="{row}", resolution=1)
    extremes = part("min", f"smallest {spec.name} in the bucket"), part("max", f"largest {spec.name}")
    return spec, *extremes, count, *((COLUMNS[f"{spec.name}.zero"],) if spec.stats else ())


def mean_step(spec: Field) -> float:
    """What a mean is rounded to: the field's resolution, or a tenth of it where that is one degree or so."""
    return spec.resolution if spec.resolution < 1 or spec.unit.startswith("By") else spec.resolution / 10


def starts_of(series: Ints, bucket: Ints) -> Ints:
    """Where a new series or a new bucket begins."""
    if not len(series):
        return np.empty(0, np.int64)
    changes = np.flatnonzero((series[1:] != series[:-1]) | (bucket[1:] != bucket[:-1])) + 1
    return np.concatenate(([0], changes))


def as_parts(rows: Rolled, specs: Iterable[Field]) -> Rolled:
    """Rows as parts of one row each."""
    values: dict[str, Values] = {}
    for spec in specs:
        column = rows.values.get(spec.name)
        if column is None:
            continue
        if spec.kind == "counter":
            increase = np.where(column == _UNKNOWN, _UNKNOWN, np.uint64(0))
            values |= {spec.name: column, f"{spec.name}.first": column, f"{spec.name}.increase": increase}
        elif spec.kind == "state":
            values |= {spec.name: column, parts(spec)[1].name: column}
        else:
            known = np.isfinite(column)
            if not known.all():
                column = np.where(known, column, np.nan)
                values[f"{spec.name}.count"] = known.astype(np.uint64)
            values |= {
                spec.name: column,
                f"{spec.name}.min": _or(rows.values.get(f"{spec.name}.min"), column),
                f"{spec.name}.max": _or(rows.values.get(f"{spec.name}.max"), column),
            }
            if f"{spec.name}.zero" in rows.values:
                values[f"{spec.name}.zero"] = rows.values[f"{spec.name}.zero"]
    return replace(rows, values=values)


def combine(of: Rolled, specs: Iterable[Field], width_ns: int) -> Rolled:
    """Put the parts of each bucket of `width_ns` together."""
    bucket = of.time_ns // width_ns
    starts = starts_of(of.series, bucket)
    if not len(starts):
        return of
    last = np.append(starts[1:], len(bucket)) - 1
    group = np.repeat(np.arange(len(starts)), last - starts + 1)
    values: dict[str, Values] = {}
    rows = np.add.reduceat(of.rows, starts)
    bridges, runs = Bridges(of, starts, group), Runs(starts, of.rows)
    for spec in specs:
        column = of.values.get(spec.name)
        if column is None:
            continue
        if spec.kind == "counter":
            values |= bridges.counter(spec, of.values)
        elif spec.kind == "state":
            name = parts(spec)[1].name
            values[spec.name] = _last_known(column, starts, group)
            values[name] = _most(of.values[name], starts, bits=name.endswith(".any"))
        else:
            values |= _gauge(spec, of, runs, rows)
    first_ns, last_ns = np.minimum.reduceat(of.first_ns, starts), np.maximum.reduceat(of.last_ns, starts)
    return Rolled(
        time_ns=bucket[starts] * width_ns,
        first_ns=first_ns,
        last_ns=last_ns,
        rows=rows,
        span_ns=last_ns - first_ns,
        series=of.series[starts],
        names={name: names.take(last) for name, names in of.names.items()},
        simulated=np.maximum.reduceat(of.simulated, starts),
        values=values,
    )


def across(of: Rolled, specs: Iterable[Field], width_ns: int) -> Rolled:
    """All GPUs of the fleet together, by bucket, simulated ones apart: gauges, and increases of counters.

    `of` holds parts of GPUs, or what this made of them. An increase that falls between two parts of a
    bucket is in no part; `span_ns` leaves the same time out, so a rate is right.
    """
    bucket = of.time_ns // width_ns
    order = np.lexsort((bucket, of.simulated))
    of, bucket = of.take(order), bucket[order]
    series = of.simulated.astype(np.int64)
    starts = starts_of(series, bucket)
    if not len(starts):
        return replace(of, names={})
    rows, runs = np.add.reduceat(of.rows, starts), Runs(starts, of.rows)
    values: dict[str, Values] = {}
    for spec in specs:
        if spec.kind == "gauge" and spec.name in of.values:
            values |= _gauge(spec, of, runs, rows)
        elif spec.kind == "counter" and f"{spec.name}.increase" in of.values:
            increase = of.values[f"{spec.name}.increase"]
            values[f"{spec.name}.increase"] = _sum_known(increase, starts)
    return Rolled(
        time_ns=bucket[starts] * width_ns,
        first_ns=np.minimum.reduceat(of.first_ns, starts),
        last_ns=np.maximum.reduceat(of.last_ns, starts),
        rows=rows,
        span_ns=np.add.reduceat(of.span_ns, starts),
        series=series[starts],
        names={},
        simulated=of.simulated[starts],
        values=values,
    )


class Bridges:
    """The increases of counters between the parts of a bucket, where one ends and the next begins."""

    def __init__(self, of: Rolled, starts: Ints, group: Ints) -> None:
        self._of, self._starts, self._group = of, starts, group
        same = group[1:] == group[:-1]
        self._overlap = bool((same & (of.first_ns[1:] < of.last_ns[:-1])).any())
        self._single = len(starts) == len(group)

    def counter(self, spec: Field, values: Mapping[str, Values]) -> dict[str, Values]:
        """The columns of one counter."""
        names = [part.name for part in parts(spec)]
        last, first, increase = (values[name] for name in names)
        if self._single:
            return dict(zip(names, (last, first, increase), strict=True))
        known = np.flatnonzero(last != _UNKNOWN)
        out = [np.full(len(self._starts), _UNKNOWN) for _ in names]
        if len(known):
            if self._overlap:
                known = self._uncovered(known)
            last, first, increase, group = last[known], first[known], increase[known], self._group[known]
            grown = increase.copy()
            follows = (group[1:] == group[:-1]) & (first[1:] >= last[:-1])
            grown[1:] += np.where(follows, first[1:] - last[:-1], np.uint64(0))
            begins = starts_of(group, group)
            present = group[begins]
            out[0][present] = last[np.append(begins[1:], len(group)) - 1]
            out[1][present] = first[begins]
            out[2][present] = np.add.reduceat(grown, begins)
        return dict(zip(names, out, strict=True))

    def _uncovered(self, known: Ints) -> Ints:
        """Without the parts that lie within the time of an earlier one, which has bridged over them."""
        kept: list[int] = []
        for row in known.tolist():
            before = kept[-1] if kept else -1
            inside = before >= 0 and self._group[before] == self._group[row]
            if not (inside and self._of.last_ns[row] <= self._of.last_ns[before]):
                kept.append(row)
        return np.array(kept, np.int64)


class Runs:
    """Runs of parts, each of which becomes one: summed up, and their extremes.

    NumPy goes through many short runs one by one. Where they are of much the same length, as they are of a
    fleet that answers, all first parts are taken together, all second ones, and so on: several times faster.
    """

    def __init__(self, starts: Ints, rows: Ints) -> None:
        """The runs begin at `starts`; `rows` are in each part."""
        size = len(rows)
        self.starts = starts
        self._rows = None if bool((rows == 1).all()) else rows
        lengths = np.diff(starts, append=size)
        longest = int(lengths.max())
        self._even = longest * len(starts) == size
        self._places: Values | None = None
        """[longest, runs] Where the parts of each run are, its last one again where it is shorter."""
        if longest * len(starts) <= MOST_PADDING * size:
            number = np.arange(longest)[:, None]
            self._places = np.minimum(starts + number, starts + lengths - 1)
            self._there = number < lengths

    def extremes(self, low: Values, high: Values) -> tuple[Values, Values]:
        """([runs] least of `low`, [runs] most of `high`), of what is known."""
        if self._places is None:
            return np.fmin.reduceat(low, self.starts), np.fmax.reduceat(high, self.starts)
        lows = low[self._places]
        highs = lows if high is low else high[self._places]
        return np.fmin.reduce(lows), np.fmax.reduce(highs)

    def by_rows(self, column: Values) -> Values:
        """[parts] `column` times the number of rows of each part."""
        return column if self._rows is None else column * self._rows

    def total(self, column: Values) -> Values:
        """[runs] sums, in double precision; all has to be known."""
        if self._places is None:
            return np.add.reduceat(column, self.starts, dtype=np.float64)
        table: Values = column[self._places]
        if not self._even:
            table = np.where(self._there, table, 0)
        total: Values = np.add.reduce(table, dtype=np.float64)
        return total


def _gauge(spec: Field, of: Rolled, runs: Runs, rows: Ints) -> dict[str, Values]:
    mean, count = of.values[spec.name], of.values.get(f"{spec.name}.count")
    low, high = of.values[f"{spec.name}.min"], of.values[f"{spec.name}.max"]
    zero = of.values.get(f"{spec.name}.zero")
    if count is None and zero is None and low.min() == high.max():  # limits, sizes, widths
        same = np.full(len(rows), low[0])
        return {spec.name: same, f"{spec.name}.min": same, f"{spec.name}.max": same}
    least, most = runs.extremes(low, high)
    out: dict[str, Values] = {f"{spec.name}.min": least, f"{spec.name}.max": most}
    if count is None:
        out[spec.name] = runs.total(runs.by_rows(mean)) / rows
    else:
        weights = count.astype(np.float64)
        weighted = np.where(weights > 0, mean, 0) * weights
        total = np.add.reduceat(count, runs.starts)
        with np.errstate(invalid="ignore"):
            out[spec.name] = runs.total(weighted) / total
        if not np.array_equal(total, rows.astype(np.uint64)):
            out[f"{spec.name}.count"] = total
    if zero is not None:
        known = np.isfinite(zero)
        shares = runs.total(runs.by_rows(np.where(known, zero, 0)))
        with np.errstate(invalid="ignore"):
            out[f"{spec.name}.zero"] = shares / np.add.reduceat(known * of.rows, runs.starts)
    return out


def _last_known(column: Values, starts: Ints, group: Ints) -> Values:
    known = np.flatnonzero(column != _UNKNOWN)
    out = np.full(len(starts), _UNKNOWN)
    out[group[known]] = column[known]  # of several for one place, the last one stays
    return out


def _most(column: Values, starts: Ints, *, bits: bool) -> Values:
    known = column != _UNKNOWN
    reduce = np.bitwise_or.reduceat if bits else np.maximum.reduceat
    most = reduce(np.where(known, column, np.uint64(0)), starts)
    return np.where(np.logical_or.reduceat(known, starts), most, _UNKNOWN)


def _sum_known(column: Values, starts: Ints) -> Values:
    known = column != _UNKNOWN
    total = np.add.reduceat(np.where(known, column, np.uint64(0)), starts)
    return np.where(np.logical_or.reduceat(known, starts), total, _UNKNOWN)


def _or(column: Values | None, other: Values) -> Values:
    """`column` where it knows something, `other` elsewhere."""
    return other if column is None else np.where(np.isfinite(column), column, other)
