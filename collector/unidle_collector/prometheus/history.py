"""A server's past as a recording: what `unidle diagnose --prometheus` works on, and what back-fills.

    names -> sampling interval -> step -> slices of every name -> one table of GPUs x instants -> grid

Each question is answered at the middle between two scrapes and looks back over one step, so that every
sample is seen once and a series that has ended is not carried on. A step longer than the interval (many
GPUs over a long time) takes means of gauges, and the last of everything else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from unidle_collector.prometheus.api import Api, PrometheusError, Series, TooMuchError
from unidle_collector.prometheus.names import ALLOCATED, CARRIED, DISCOVER, JOB_INFO, SIMULATED, understood
from unidle_collector.prometheus.table import Table
from unidle_collector.recorded.cannot_tell import cannot_tell
from unidle_collector.recorded.grid import to_grid
from unidle_collector.recording import Recording

MOST_VALUES = 20_000_000
"""Most values that are fetched, by default: some 0.5 GB of JSON."""
MOST_INSTANTS = 10_000
"""Most instants of one question: servers refuse more than 11,000 points of a series."""
MOST_POINTS = 500_000
"""Most values of one answer, some 12 MB."""
LOOKS = 60
"""Instants at which the series are counted."""
ASSUMED_S = 60.0
"""Sampling interval where too few samples are there to see it: the server's usual default."""
PROBE_S = (900, 7200, 86_400)
"""Spans of samples from which the interval is found."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a server is asked for a time."""

    names: tuple[str, ...]
    counts: dict[str, int]
    """Name -> most series at once."""
    start_s: float
    """The first instant that is asked for."""
    step_s: float
    interval_s: float
    """How often the server scrapes, from its data."""
    instants: int

    @property
    def values(self) -> int:
        """Most values that this fetches."""
        return sum(self.counts.values()) * self.instants

    @property
    def coarse(self) -> bool:
        """Is a step longer than the interval."""
        return self.step_s > 1.5 * self.interval_s


def read(
    api: Api,
    start_s: float,
    end_s: float,
    *,
    match: str = "",
    step_s: float | None = None,
    most_values: int = MOST_VALUES,
    progress: Callable[[float], None] = lambda _share: None,
) -> Recording:
    """The GPUs of a server from `start_s` to `end_s` (epoch) on one grid; `match` narrows the series down
    (`cluster="a",job=~"dcgm.*"`), `progress` is told the share done, 0-1.

    Raises PrometheusError, and RecordingError where what came makes no recording.
    """
    plan = make_plan(api, start_s, end_s, match, step_s, most_values)
    table = fetch(api, plan, match, progress)
    rows = table.rows()
    if not rows.gpus:
        raise PrometheusError(f"{api.url}: expected series that say which GPU they are of, came none")
    recording = to_grid(replace(rows, notes=(*rows.notes, *_notes(api, plan))), plan.step_s)
    return replace(recording, cannot_tell=cannot_tell(recording, plan.interval_s, plan.step_s))


def fetch(
    api: Api,
    plan: Plan,
    match: str,
    progress: Callable[[float], None],
    hide: Callable[[str], str] = str,
) -> Table:
    """All that a plan asks for, jobs' names through `hide`; raises PrometheusError."""
    table = Table(plan.start_s - plan.interval_s / 2, plan.step_s, plan.instants, hide)
    everything = sum(max(1, plan.counts.get(name, 0)) for name in plan.names)
    done = 0
    for name in plan.names:
        for series in _fetched(api, plan, name, match):
            table.add(name, series)
        done += max(1, plan.counts.get(name, 0))
        progress(done / everything)
    return table


def make_plan(
    api: Api, start_s: float, end_s: float, match: str, step_s: float | None, most_values: int
) -> Plan:
    """What is there, how often it was sampled, and in which steps it is asked for."""
    if not start_s < end_s:
        raise PrometheusError(f"expected a time that ends after it begins, came {end_s - start_s:g} s")
    found = api.names(_selector(DISCOVER, match), start_s, end_s)
    names = sorted(name for name in found if understood(name))
    if not any(name in CARRIED and CARRIED[name].field.scope == "gpu" for name in names):
        raise PrometheusError(_nothing(api, match, found))
    counts, last_s = _counted(api, names, match, start_s, end_s)
    gpu_names = [name for name in names if name in CARRIED and CARRIED[name].field.scope == "gpu"]
    interval_s, sample_s = _interval(api, max(gpu_names, key=lambda name: counts.get(name, 0)), match, last_s)
    fields = len({CARRIED[name].field.name for name in names if name in CARRIED}) + 2
    gpus = max(counts.get(name, 0) for name in gpu_names)
    per_instant = max(sum(counts.values()), gpus * fields)
    least_s = (end_s - start_s) * per_instant / most_values
    step_s = max(interval_s * max(1, math.ceil(least_s / interval_s)), step_s or 0.0)
    # Between two scrapes: a window of one step that ends there holds each sample once, jitter or not.
    phase_s = (sample_s + interval_s / 2) % step_s
    first_s = math.ceil((start_s - phase_s) / step_s) * step_s + phase_s
    instants = max(1, int((end_s - first_s) / step_s) + 1)
    return Plan(tuple(names), counts, first_s, step_s, interval_s, instants)


def _nothing(api: Api, match: str, found: list[str]) -> str:
    within = f" that match {{{match}}}" if match else ""
    other = f"; it has {', '.join(sorted(found)[:3])}, which carry no GPU's value" if found else ""
    return (
        f"{api.url}: expected series of dcgm-exporter (DCGM_FI_*) or of unidle's agent (unidle_gpu_*)"
        f"{within} within this time, there are none{other}; look further back with --since, or check --match"
    )


def _selector(names: str, match: str) -> str:
    return f'{{__name__=~"{names}"' + (f",{match}" if match else "") + "}"


def _counted(
    api: Api, names: list[str], match: str, start_s: float, end_s: float
) -> tuple[dict[str, int], float]:
    """The most series at once of each name, and when the last was there."""
    step_s = max(1.0, (end_s - start_s) / LOOKS)
    expression = f"count by (__name__) ({_selector('|'.join(names), match)})"
    answer = api.query_range(expression, start_s + step_s, end_s, step_s)
    counts = {series.labels["__name__"]: int(series.values.max()) for series in answer}
    seen = [float(series.times_s[-1]) for series in answer]
    return counts, max(seen, default=end_s)


def _interval(api: Api, name: str, match: str, at_s: float) -> tuple[float, float]:
    """How far apart a series' samples are, and when one of them was, s."""
    known = api.query(f"{name}{{{match}}}", at_s)
    if not known:
        return ASSUMED_S, at_s
    exact = ",".join(f"{key}={_quoted(text)}" for key, text in known[0].labels.items() if key != "__name__")
    for span_s in PROBE_S:
        samples = api.query(f"{name}{{{exact}}}[{span_s}s]", at_s)
        times = samples[0].times_s if samples else np.array([])
        if len(times) >= 4:
            gap_s = float(np.median(np.diff(times)))
            # Scrapes are on time to a few ms; an interval is a whole number of seconds, or a short one.
            return (float(round(gap_s)) if abs(gap_s - round(gap_s)) < 0.1 * gap_s else gap_s), float(
                times[-1]
            )
    return ASSUMED_S, at_s


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _fetched(api: Api, plan: Plan, name: str, match: str) -> Iterator[Series]:
    """All of one name, slice by slice; a slice that is too much is halved."""
    expression = _expression(name, match, plan)
    most = min(MOST_INSTANTS, max(1, MOST_POINTS // max(1, plan.counts.get(name, 1))))
    at = 0
    while at < plan.instants:
        size = min(most, plan.instants - at)
        first_s = plan.start_s + at * plan.step_s
        try:
            answer = api.query_range(expression, first_s, first_s + (size - 1) * plan.step_s, plan.step_s)
        except TooMuchError:
            if size == 1:
                raise
            most = size // 2
            continue
        yield from answer
        at += size


def _expression(name: str, match: str, plan: Plan) -> str:
    carried = CARRIED.get(name)
    mean = plan.coarse and carried is not None and carried.field.kind == "gauge"
    # A window's first moment belongs to it in Prometheus 2 and not in 3: so it is no sample's.
    window = f"{round(plan.step_s * 1000) - 1}ms"
    return f"{'avg' if mean else 'last'}_over_time({name}{{{match}}}[{window}])"


def _notes(api: Api, plan: Plan) -> list[str]:
    fields = [name for name in plan.names if name not in (JOB_INFO, ALLOCATED, SIMULATED)]
    series = f"{sum(plan.counts.values())} series of {len(fields)} names"
    notes = [f"read from {api.url}: {series}, scraped every {plan.interval_s:g} s"]
    if plan.coarse:
        notes.append(
            f"so much was scraped that means of {plan.step_s:g} s were asked for: a shorter --since or a "
            "narrower --match shows more"
        )
    return notes
