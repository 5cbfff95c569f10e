"""Fields over time: from the live window, the store's roll-ups and the histograms of jobs.

`recent` runs in the thread that owns the live window; the others read files and may run anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from unidle_agent.fields import BY_NAME, Field
from unidle_collector.live import Live
from unidle_collector.model import FleetSeries, JobQuantile, Series
from unidle_collector.pergpu import SECOND_NS, Floats
from unidle_collector.reading import AskedWrongError, NotHereError
from unidle_collector.series import SeriesStore
from unidle_collector.store.covering import whole_buckets
from unidle_collector.store.steps import MOST_POINTS, Steps

_NONE: Floats = np.zeros(0)
NOTHING_OLDER = Steps(np.zeros(0, dtype=np.int64), _NONE, _NONE, _NONE, _NONE)


@dataclass(frozen=True, slots=True)
class Recent:
    """What the live window holds of one field, and where the window asked for lies."""

    spec: Field
    start_ns: int
    end_ns: int
    times_ns: list[int]
    values: list[float]
    """One per step of the collector, NaN unknown."""
    period_s: float
    simulated: bool


def recent(live: Live, node: str, gpu: str, field: str, window_s: float) -> Recent:
    """The newest minutes of one field of one GPU, or of the host."""
    spec = field_of(field)
    position = live.engine.inventory.find(node, gpu) if spec.scope == "gpu" else None
    if spec.scope == "gpu" and position is None:
        raise AskedWrongError(f"expected a GPU that has sent something, came node {node!r}, GPU {gpu!r}")
    end_ns = (live.window.time_ns or live.clock_ns()) + 1
    times, values = live.window.recent(field, position, node)
    if spec.kind == "counter":
        values = [value / live.engine.period_s for value in values]
    book, inventory = live.nodes.get(node), live.engine.inventory
    made_up = inventory.simulated[position] if position is not None else book is not None and book.simulated
    start_ns = end_ns - int(window_s * SECOND_NS)
    return Recent(spec, start_ns, end_ns, times, values, live.engine.period_s, made_up)


def series(store: SeriesStore, new: Recent, node: str, gpu: str, step_s: float) -> Series:
    """One field over time: stored roll-ups, and behind them the newest minutes of the live window."""
    spec = new.spec
    step_s = max(new.period_s, step_s, (new.end_ns - new.start_ns) / SECOND_NS / MOST_POINTS)
    stored_gpu = gpu if spec.scope == "gpu" else ""
    reach_ns = new.times_ns[0] if new.times_ns else new.end_ns
    if reach_ns - new.start_ns >= step_s * SECOND_NS:
        old = store.steps(node, stored_gpu, spec.name, new.start_ns, new.end_ns, step_s)
    else:  # no whole step is missing
        old = NOTHING_OLDER
    older = old.times_ns < reach_ns
    step = max(1, round(step_s / new.period_s))
    times_ns = new.times_ns[::step]
    keep = [number for number, time_ns in enumerate(times_ns) if time_ns >= new.start_ns]

    def joined(stored: Floats, of_step: Callable[[Floats], Any]) -> tuple[float | None, ...]:
        live_values = _by_step(new.values, step, of_step)
        return tuple(_known(v) for v in (*stored[older].tolist(), *(live_values[n] for n in keep)))

    return Series(
        node=node,
        gpu=stored_gpu,
        field=spec.name,
        unit=f"{spec.unit}/s" if spec.kind == "counter" else spec.unit,
        step_s=step_s,
        times_ns=(*(int(t) for t in old.times_ns[older]), *(times_ns[n] for n in keep)),
        values=joined(old.values, np.mean if spec.kind != "state" else _last),
        simulated=new.simulated,
        low=joined(old.low, np.min if spec.kind == "gauge" else np.mean if spec.kind == "counter" else _last),
        high=joined(
            old.high, np.max if spec.kind == "gauge" else np.mean if spec.kind == "counter" else _last
        ),
    )


def fleet_series(
    store: SeriesStore, field: str, end_ns: int, window_s: float, step_s: float, simulated: bool
) -> FleetSeries:
    """One field of all real (or all simulated) GPUs together, from the stored roll-ups.

    Steps begin at multiples of their length, so that those of all shards of a site are the same.
    """
    spec = field_of(field)
    if spec.scope != "gpu" or spec.kind == "state":
        raise AskedWrongError(f"field: expected a gauge or a counter of GPUs, came {field!r}")
    window_ns = int(window_s * SECOND_NS)
    step_ns = whole_buckets(round(max(60 * SECOND_NS, step_s * SECOND_NS, window_ns / (MOST_POINTS - 2))))
    start_ns, step_s = (end_ns - window_ns) // step_ns * step_ns, step_ns / SECOND_NS
    steps = store.fleet(field, start_ns, end_ns, step_s, simulated=simulated)
    values, low, high = (
        tuple(_known(value) for value in column.tolist()) for column in (steps.values, steps.low, steps.high)
    )
    return FleetSeries(
        field=field,
        unit=f"{spec.unit}/s" if spec.kind == "counter" else spec.unit,
        step_s=step_s,
        times_ns=tuple(steps.times_ns.tolist()),
        values=values,
        low=low,
        high=high,
        rows=tuple(steps.rows.tolist()),
        simulated=simulated,
    )


def job_quantile(store: SeriesStore, job: str, field: str, share: float) -> JobQuantile:
    """A quantile of one gauge over all that is kept of a job."""
    spec = field_of(field)
    if spec.scope != "gpu" or spec.kind != "gauge":
        raise AskedWrongError(f"field: expected a gauge of GPUs, came {field!r}")
    found = store.job_quantile(job, field, share)
    if found is None:
        raise NotHereError(f"job: nothing of {field} is kept of {job!r} (yet: it takes a minute or two)")
    return JobQuantile(job, field, spec.unit, share, found.low, found.high, found.samples)


def field_of(name: str) -> Field:
    """A field by its name; raises AskedWrongError."""
    spec = BY_NAME.get(name)
    if spec is None:
        raise AskedWrongError(f"field: expected a field of docs/telemetry.md, came {name!r}")
    return spec


def _by_step(values: list[float], step: int, of_step: Callable[[Floats], Any]) -> list[float]:
    """`of_step` of the known ones among each `step` values, NaN where there is none."""
    if step == 1:
        return values
    chunks = [np.array(values[n : n + step]) for n in range(0, len(values), step)]
    known = [chunk[~np.isnan(chunk)] for chunk in chunks]
    return [float(of_step(chunk)) if chunk.size else float("nan") for chunk in known]


def _last(values: Floats) -> float:
    return float(values[-1])


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
