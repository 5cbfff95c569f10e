"""Read from VictoriaMetrics, single node or cluster, in MetricsQL, which is its PromQL.

Line protocol becomes one metric per field, `unidle_power_w`, and tags become labels. A GPU has one series
per job that it ran; every query puts them together. VictoriaMetrics counts in milliseconds and takes a
window as (begin, end]: a step is asked for one millisecond before its end.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from unidle_agent.fields import Field
from unidle_collector.series.answers import MS_NS, Asked, SeriesError, asked, reduced, steps_of
from unidle_collector.series.http import Http
from unidle_collector.series.lines import MEASUREMENT, tag_text
from unidle_collector.store.errors import StoreError
from unidle_collector.store.histograms import FIELDS, Quantile, bins_of, bounds_of
from unidle_collector.store.steps import Steps

THRESHOLDS = 15
"""Values that are counted under in one question of a quantile."""


class PromQl:
    """A `SeriesStore`; `http` is where /api/v1/query is, `least_step_s` the step of what was written."""

    def __init__(self, http: Http, *, least_step_s: float = 0.0, keep_days: float = 400.0) -> None:
        self._http = http
        self._least_step_s = least_step_s
        self._keep = f"{max(1, math.ceil(keep_days))}d"

    def ping(self) -> str:
        """Ask for something; what answered, in words. Raises SeriesError."""
        self._instant("1")
        return f"{self._http.shown} answers PromQL"

    def steps(self, node: str, gpu: str, field: str, start_ns: int, end_ns: int, step_s: float) -> Steps:
        """One field of one GPU or host; see SeriesStore."""
        question = asked(field, start_ns, end_ns, max(step_s, self._least_step_s))
        tags = {"node": node} | ({"gpu": gpu} if question.spec.scope == "gpu" else {})
        rows = f"{_metric(question, **tags)}[{_window(question)}]"
        if question.spec.kind == "counter":
            parts = {
                "first": f"min(first_over_time({rows}))",
                "first_s": f"min(tfirst_over_time({rows}))",
                "last": f"max(last_over_time({rows}))",
                "last_s": f"max(tlast_over_time({rows}))",
            }
        elif question.spec.kind == "state":
            # Of the jobs within a step, the one whose row is the newest.
            newest = f"tlast_over_time({rows}) == on() group_left max(tlast_over_time({rows}))"
            parts = {
                "last": f"max(last_over_time({rows}) and ({newest}))",
                "count": f"sum(count_over_time({rows}))",
            }
        else:
            parts = _of_gauge(rows)
        cells = self._ask(question, parts)
        for cell in cells.values():
            for name in ("first", "last"):
                if f"{name}_s" in cell:
                    cell[f"{name}_ns"] = cell.pop(f"{name}_s") * 1e9
        return steps_of(question, {step: cell for step, cell in cells.items() if len(cell) == len(parts)})

    def fleet(
        self, field: str, start_ns: int, end_ns: int, step_s: float, *, simulated: bool = False
    ) -> Steps:
        """One field of all GPUs together; see SeriesStore. A counter's rates are weighted by rows."""
        question = asked(field, start_ns, end_ns, max(step_s, 60.0, self._least_step_s))
        if question.spec.scope != "gpu" or question.spec.kind == "state":
            raise StoreError(f"expected a gauge or a counter of GPUs, came {field!r}")
        rows = f"{_metric(question, simulated=str(simulated).lower())}[{_window(question)}]"
        parts = _of_gauge(rows)
        if question.spec.kind == "counter":
            count = f"count_over_time({rows})"
            parts = {"mean": f"sum(rate({rows}) * {count}) / sum({count})", "count": f"sum({count})"}
        return reduced(question, self._ask(question, parts), "mean")

    def job_quantile(self, job: str, field: str, share: float) -> Quantile | None:
        """A quantile of a gauge over all that is kept of a job, to the bins of the embedded store."""
        question = asked(field, 0, 1, 1)
        spec = question.spec
        if spec not in FIELDS:
            raise StoreError(f"expected a gauge of GPUs, came {field!r}")
        rows = f"{_metric(question, job=job)}[{self._keep}]"
        found = self._instant(
            _union(
                {
                    "low": f"min(min_over_time({rows}))",
                    "high": f"max(max_over_time({rows}))",
                    "count": f"sum(count_over_time({rows}))",
                }
            )
        )
        if "count" not in found:
            return None
        samples = int(found["count"])
        rank = max(1, math.ceil(share * samples))
        low, high = (int(bins_of(spec, np.array([found[end]], np.float32))[0]) for end in ("low", "high"))
        while low < high:  # the bin lies in low..high
            tried = sorted({low + (high - low) * n // (THRESHOLDS + 1) for n in range(THRESHOLDS + 1)})
            under = self._instant(
                _union(
                    {
                        str(number): f"sum(count_le_over_time({rows}, {_highest(spec, number)!r}))"
                        for number in tried
                    }
                )
            )
            reach = [number for number in tried if under.get(str(number), 0) >= rank]
            short = [number for number in tried if under.get(str(number), 0) < rank]
            low, high = (short[-1] + 1 if short else low), (reach[0] if reach else high)
        return Quantile(*bounds_of(spec, low), samples)

    def _ask(self, question: Asked, parts: dict[str, str]) -> dict[int, dict[str, float]]:
        """Step -> part -> value."""
        step_ms = question.step_ns // MS_NS
        first_ms = question.from_ns // MS_NS + step_ms - 1
        reply = self._http.form(
            "/api/v1/query_range",
            {
                "query": _union(parts),
                "start": f"{first_ms / 1000:.3f}",
                "end": f"{(first_ms + (question.steps - 1) * step_ms) / 1000:.3f}",
                "step": f"{step_ms}ms",
                "nocache": "1",  # else the times are moved to multiples of the step
            },
        )
        cells: dict[int, dict[str, float]] = {}
        for part, series in _results(reply):
            for at_s, value in series["values"]:
                step = round((at_s * 1000 - first_ms) / step_ms)
                cells.setdefault(step, {})[part] = float(value)
        return cells

    def _instant(self, query: str) -> dict[str, float]:
        reply = self._http.form("/api/v1/query", {"query": query, "nocache": "1"})
        return {part: float(series["value"][1]) for part, series in _results(reply)}


def _highest(spec: Field, number: int) -> float:
    """The largest value in a bin: the upper bound itself is the next bin's."""
    high = bounds_of(spec, number)[1]
    return float(np.nextafter(high, -np.inf)) if number >= 0 else high


def _of_gauge(rows: str) -> dict[str, str]:
    return {
        "mean": f"sum(sum_over_time({rows})) / sum(count_over_time({rows}))",
        "count": f"sum(count_over_time({rows}))",
        "min": f"min(min_over_time({rows}))",
        "max": f"max(max_over_time({rows}))",
    }


def _metric(question: Asked, **labels: str) -> str:
    chosen = ",".join(f"{name}={_quoted(tag_text(text))}" for name, text in labels.items())
    return f"{MEASUREMENT[question.spec.scope]}_{question.spec.name}{{{chosen}}}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _window(question: Asked) -> str:
    return f"{question.step_ns // MS_NS}ms"


def _union(parts: dict[str, str]) -> str:
    return ", ".join(f'label_set({query}, "part", "{part}")' for part, query in parts.items()).join(
        ("union(", ")")
    )


def _results(reply: Any) -> list[tuple[str, Any]]:
    try:
        return [(series["metric"].get("part", ""), series) for series in reply["data"]["result"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise SeriesError(
            f"expected an answer of the query API of Prometheus, came {str(reply)[:200]}"
        ) from error
