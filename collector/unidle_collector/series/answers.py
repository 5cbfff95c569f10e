"""What every engine is asked, and how its answers become the steps of a chart: the same for all of them.

An engine reduces its rows to a few numbers per step; these are put together here by the rules of the
embedded store (store/steps.py), so that a chart does not change with the engine behind it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from unidle_agent.errors import UnidleError
from unidle_agent.fields import BY_NAME, Field
from unidle_collector.store.covering import whole_buckets
from unidle_collector.store.errors import StoreError
from unidle_collector.store.steps import MOST_POINTS, Steps

LOOK_BACK_NS = 60_000_000_000
"""How far before the window a counter's previous value is looked for."""
MS_NS = 1_000_000

Cells = Mapping[int, Mapping[str, float]]
"""Step, counted from `Asked.from_ns` -> its numbers. Times are in ns since the epoch.

Gauge: mean, count, min, max. State: last, count. Counter: first, first_ns, last, last_ns. Rate of a fleet's
counter: mean, count.
"""


class SeriesError(UnidleError):
    """The series store could not be asked or written, or answered something unexpected."""


class TryLaterError(SeriesError):
    """The lines could not be written now; `after_s` is what the server asked for, 0 when nothing."""

    def __init__(self, text: str, after_s: float = 0.0) -> None:
        super().__init__(text)
        self.after_s = after_s


class LinesRefusedError(SeriesError):
    """Some or all of the lines were refused; the others may have been written."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One field over a window by steps."""

    spec: Field
    start_ns: int
    end_ns: int
    step_ns: int
    """Whole milliseconds: the finest that every engine knows."""
    before: int
    """Steps before the window that are read, too: a counter's previous value lies there."""

    @property
    def from_ns(self) -> int:
        """Begin of what is read."""
        return self.start_ns - self.before * self.step_ns

    @property
    def steps(self) -> int:
        """How many steps are read."""
        return self.before + math.ceil((self.end_ns - self.start_ns) / self.step_ns)


def asked(field: str, start_ns: int, end_ns: int, step_s: float) -> Asked:
    """A question with at most 1,500 points; raises StoreError when it makes no sense."""
    spec = BY_NAME.get(field)
    if spec is None:
        raise StoreError(f"expected a field of docs/telemetry.md, came {field!r}")
    if end_ns <= start_ns or not step_s > 0:
        raise StoreError(
            f"expected a window and a step longer than 0 s, came {start_ns} to {end_ns} by {step_s} s"
        )
    step_ns = max(MS_NS, round(step_s * 1e9), math.ceil((end_ns - start_ns) / MOST_POINTS))
    step_ns = -(-whole_buckets(step_ns) // MS_NS) * MS_NS
    before = -(-LOOK_BACK_NS // step_ns) if spec.kind == "counter" else 0
    return Asked(spec, start_ns, end_ns, step_ns, before)


def steps_of(question: Asked, cells: Cells) -> Steps:
    """The answer for one GPU or host."""
    if question.spec.kind == "counter":
        return _rates(question, cells)
    return reduced(question, cells, "mean" if question.spec.kind == "gauge" else "last")


def reduced(question: Asked, cells: Cells, value: str) -> Steps:
    """Steps whose value is the number called `value`."""
    out = _empty(question)
    for step, cell in cells.items():
        place = step - question.before
        if 0 <= place < len(out.times_ns) and cell.get("count", 0) > 0 and value in cell:
            out.values[place] = cell[value]
            out.low[place] = cell.get("min", cell[value])
            out.high[place] = cell.get("max", cell[value])
            out.rows[place] = cell["count"]
    return out


def _rates(question: Asked, cells: Cells) -> Steps:
    """Increases over the time that they took; between two steps they count where the later one begins."""
    out = _empty(question)
    before: Mapping[str, float] | None = None
    for step in sorted(cells):
        cell = cells[step]
        grown = took_ns = 0.0
        if cell["last"] >= cell["first"]:  # else the counter began anew within the step
            grown, took_ns = cell["last"] - cell["first"], cell["last_ns"] - cell["first_ns"]
        if before is not None and cell["first"] >= before["last"]:
            grown += cell["first"] - before["last"]
            took_ns += cell["first_ns"] - before["last_ns"]
        before = cell
        place = step - question.before
        if 0 <= place < len(out.times_ns) and took_ns > 0:
            out.values[place] = out.low[place] = out.high[place] = grown / took_ns * 1e9
            out.rows[place] = took_ns / 1e9
    return out


def _empty(question: Asked) -> Steps:
    times = np.arange(question.start_ns, question.end_ns, question.step_ns, dtype=np.int64)
    values, low, high = (np.full(len(times), np.nan) for _ in range(3))
    return Steps(times, values, low, high, np.zeros(len(times)))
