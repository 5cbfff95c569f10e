"""Put parts of buckets of one GPU, host or fleet together into the steps of a chart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unidle_agent.fields import UNKNOWN_U8, Field
from unidle_collector.store.rollup import Rolled

MOST_POINTS = 1_500

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Steps:
    """One field over time; all arrays are [steps], NaN where nothing is known."""

    times_ns: NDArray[np.int64]
    """Begin of each step."""
    values: Floats
    """The mean of a gauge, the last value of a state, the increase per second of a counter."""
    low: Floats
    high: Floats
    """Extremes of a gauge; of others the same as `values`."""
    rows: Floats
    """Rows with the field; of a counter, seconds that its increases took."""


@dataclass(frozen=True, slots=True)
class _Parts:
    """The parts of one field, in time: what several `Rolled` have in common."""

    first_ns: NDArray[np.int64]
    last_ns: NDArray[np.int64]
    of: dict[str, NDArray[Any]]


def steps_of_parts(spec: Field, parts: Sequence[Rolled], start_ns: int, end_ns: int, step_ns: int) -> Steps:
    """The steps of one GPU or host; `parts` may hold more time than is asked for, and rows themselves."""
    empty = _empty(start_ns, end_ns, step_ns)
    whole = _joined(spec, parts)
    if whole is None:
        return empty
    if spec.kind == "counter":
        return _counter(spec, whole, empty, start_ns, step_ns)
    step = (whole.first_ns - start_ns) // step_ns
    inside = (step >= 0) & (step < len(empty.times_ns))
    if spec.kind == "state":
        value = whole.of[spec.name]
        known = np.flatnonzero(inside & (value != np.uint64(UNKNOWN_U8)))
        empty.values[step[known]] = value[known]  # in time: of several in a step, the last one stays
        np.add.at(empty.rows, step[known], 1.0)
        return Steps(empty.times_ns, empty.values, empty.values, empty.values, empty.rows)
    return _gauge(spec, whole, empty, step, inside)


def steps_of_fleet(
    spec: Field, parts: Sequence[Rolled], start_ns: int, end_ns: int, step_ns: int, *, simulated: bool
) -> Steps:
    """The steps of the whole fleet."""
    empty = _empty(start_ns, end_ns, step_ns)
    chosen = [part.take(np.flatnonzero(part.simulated == simulated)) for part in parts]
    if spec.kind == "gauge":
        whole = _joined(spec, chosen)
        if whole is None:
            return empty
        step = (whole.first_ns - start_ns) // step_ns
        return _gauge(spec, whole, empty, step, (step >= 0) & (step < len(empty.times_ns)))
    grown = np.zeros(len(empty.times_ns))
    for part in chosen:
        increase = part.values.get(f"{spec.name}.increase")
        if increase is None:
            continue
        step = (part.time_ns - start_ns) // step_ns
        use = (step >= 0) & (step < len(grown)) & (increase != np.uint64(UNKNOWN_U8))
        np.add.at(grown, step[use], increase[use] * spec.resolution)
        np.add.at(empty.rows, step[use], part.span_ns[use] / 1e9)
    with np.errstate(invalid="ignore", divide="ignore"):
        rate = np.where(empty.rows > 0, grown / empty.rows, np.nan)
    return Steps(empty.times_ns, rate, rate, rate, empty.rows)


def _empty(start_ns: int, end_ns: int, step_ns: int) -> Steps:
    times = np.arange(start_ns, end_ns, step_ns, dtype=np.int64)
    values, low, high = (np.full(len(times), np.nan) for _ in range(3))
    return Steps(times, values, low, high, np.zeros(len(times)))


def _joined(spec: Field, parts: Sequence[Rolled]) -> _Parts | None:
    """The parts in time, each with the columns that `spec` has."""
    some = [part for part in parts if spec.name in part.values and len(part.time_ns)]
    if not some:
        return None
    columns: dict[str, list[NDArray[Any]]] = {}
    for part in some:
        value = part.values[spec.name]
        if spec.kind == "gauge":
            count = part.values.get(f"{spec.name}.count")
            of = {
                spec.name: value.astype(np.float64),
                "low": part.values.get(f"{spec.name}.min", value),
                "high": part.values.get(f"{spec.name}.max", value),
                "count": np.where(np.isfinite(value), part.rows if count is None else count, 0),
            }
        elif spec.kind == "counter":
            zero = np.where(value == np.uint64(UNKNOWN_U8), value, np.uint64(0))
            of = {
                spec.name: value,
                "first": part.values.get(f"{spec.name}.first", value),
                "increase": part.values.get(f"{spec.name}.increase", zero),
            }
        else:
            of = {spec.name: value}
        for name, column in of.items():
            columns.setdefault(name, []).append(column)
    first_ns = np.concatenate([part.first_ns for part in some])
    order = np.argsort(first_ns, kind="stable")
    return _Parts(
        first_ns[order],
        np.concatenate([part.last_ns for part in some])[order],
        {name: np.concatenate(found)[order] for name, found in columns.items()},
    )


def _gauge(
    spec: Field, whole: _Parts, empty: Steps, step: NDArray[np.int64], inside: NDArray[np.bool_]
) -> Steps:
    count = whole.of["count"].astype(np.float64)
    use = inside & (count > 0)
    at = step[use]
    total = np.zeros(len(empty.times_ns))
    np.add.at(total, at, whole.of[spec.name][use] * count[use])
    np.add.at(empty.rows, at, count[use])
    np.fmin.at(empty.low, at, whole.of["low"][use].astype(np.float64))
    np.fmax.at(empty.high, at, whole.of["high"][use].astype(np.float64))
    with np.errstate(invalid="ignore"):
        return Steps(empty.times_ns, total / empty.rows, empty.low, empty.high, empty.rows)


def _counter(spec: Field, whole: _Parts, empty: Steps, start_ns: int, step_ns: int) -> Steps:
    """Increases over the time that they took. Between two parts it counts where the later one begins.

    A part that lies within the time of an earlier one adds nothing: that one has bridged over it.
    """
    last = whole.of[spec.name]
    known = np.flatnonzero(last != np.uint64(UNKNOWN_U8))
    if len(known):
        reach = np.maximum.accumulate(whole.last_ns[known])
        known = known[np.concatenate(([True], whole.last_ns[known][1:] > reach[:-1]))]
    last, first = last[known], whole.of["first"][known]
    grown, first_ns, last_ns = whole.of["increase"][known], whole.first_ns[known], whole.last_ns[known]
    step = (first_ns - start_ns) // step_ns
    seconds = (last_ns - first_ns) / 1e9
    total, took = np.zeros(len(empty.times_ns)), empty.rows
    use = (step >= 0) & (step < len(total)) & (seconds > 0)
    np.add.at(total, step[use], grown[use].astype(np.float64))
    np.add.at(took, step[use], seconds[use])
    follows = (
        (first[1:] >= last[:-1]) & (first_ns[1:] > last_ns[:-1]) & (step[1:] >= 0) & (step[1:] < len(total))
    )
    bridge = np.where(follows, first[1:] - last[:-1], np.uint64(0)).astype(np.float64)
    np.add.at(total, step[1:][follows], bridge[follows])
    np.add.at(took, step[1:][follows], ((first_ns[1:] - last_ns[:-1]) / 1e9)[follows])
    with np.errstate(invalid="ignore", divide="ignore"):
        rate = np.where(took > 0, total * spec.resolution / took, np.nan)
    return Steps(empty.times_ns, rate, rate, rate, took)
