"""Read from InfluxDB 2 in Flux, by influxdb-client.

Flux keeps nanoseconds, the client's times keep microseconds: steps are found by rounding.
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

import urllib3
from influxdb_client.client.influxdb_client import InfluxDBClient
from influxdb_client.rest import ApiException

from unidle_collector.series.answers import Asked, SeriesError, asked, reduced, steps_of
from unidle_collector.series.http import refused, unreachable
from unidle_collector.series.lines import MEASUREMENT, tag_text
from unidle_collector.store.errors import StoreError
from unidle_collector.store.histograms import FIELDS, Quantile
from unidle_collector.store.steps import Steps

FUNCTIONS = {
    "gauge": ("mean", "count", "min", "max"),
    "state": ("last", "count"),
    "counter": ("first", "last"),
}
"""Kind of a field -> functions of Flux that reduce a step, which are also the names of the results."""


class Flux:
    """A `SeriesStore` over `bucket`."""

    def __init__(
        self,
        client: InfluxDBClient,
        bucket: str,
        *,
        shown: str,
        least_step_s: float = 0.0,
        keep_days: float = 400.0,
    ) -> None:
        self._client = client
        self._bucket = bucket
        self._shown = shown
        self._least_step_s = least_step_s
        self._keep = f"-{max(1, math.ceil(keep_days))}d"

    def ping(self) -> str:
        """Ask for something; what answered, in words. Raises SeriesError."""
        self._records("buckets() |> limit(n: 1)")
        return f"{self._shown} answers Flux"

    def steps(self, node: str, gpu: str, field: str, start_ns: int, end_ns: int, step_s: float) -> Steps:
        """One field of one GPU or host; see SeriesStore."""
        question = asked(field, start_ns, end_ns, max(step_s, self._least_step_s))
        tags = {"node": node} | ({"gpu": gpu} if question.spec.scope == "gpu" else {})
        return steps_of(question, self._ask(question, self._rows(question, tags)))

    def fleet(
        self, field: str, start_ns: int, end_ns: int, step_s: float, *, simulated: bool = False
    ) -> Steps:
        """One field of all GPUs together; see SeriesStore. A counter's rates are weighted by rows."""
        question = asked(field, start_ns, end_ns, max(step_s, 60.0, self._least_step_s))
        if question.spec.scope != "gpu" or question.spec.kind == "state":
            raise StoreError(f"expected a gauge or a counter of GPUs, came {field!r}")
        rows = self._rows(question, {"simulated": str(simulated).lower()})
        if question.spec.kind == "counter":
            rows += (
                '\n  |> group(columns: ["node", "gpu"])\n  |> sort(columns: ["_time"])'
                "\n  |> derivative(unit: 1s, nonNegative: true)\n  |> group()"
            )
        return reduced(question, self._ask(question, rows, FUNCTIONS["gauge"]), "mean")

    def job_quantile(self, job: str, field: str, share: float) -> Quantile | None:
        """A quantile of a gauge over all that is kept of a job: the value at its rank is both of its ends."""
        spec = asked(field, 0, 1, 1).spec
        if spec not in FIELDS:
            raise StoreError(f"expected a gauge of GPUs, came {field!r}")
        rows = self._filtered(f"range(start: {self._keep})", spec.name, "gpu", {"job": job})
        query = (
            f"data = {rows}\n"
            'data |> count() |> yield(name: "count")\n'
            f'data |> quantile(q: {share!r}, method: "exact_selector") |> yield(name: "value")\n'
        )
        found = {record["result"]: record["_value"] for record in self._records(query)}
        if not found.get("count"):
            return None
        value = float(found["value"])
        return Quantile(value, value, int(found["count"]))

    def _rows(self, question: Asked, tags: dict[str, str]) -> str:
        bounds = f"range(start: time(v: {question.from_ns}), stop: time(v: {question.end_ns}))"
        spec = question.spec
        return self._filtered(bounds, spec.name, spec.scope, tags)

    def _filtered(self, bounds: str, field: str, scope: str, tags: dict[str, str]) -> str:
        wanted = {"_measurement": MEASUREMENT[scope], "_field": field}
        wanted |= {name: tag_text(text) for name, text in tags.items()}
        test = " and ".join(f"r[{_quoted(name)}] == {_quoted(text)}" for name, text in wanted.items())
        return (
            f"from(bucket: {_quoted(self._bucket)})\n  |> {bounds}\n  |> filter(fn: (r) => {test})"
            '\n  |> toFloat()\n  |> group()\n  |> sort(columns: ["_time"])'
        )

    def _ask(
        self, question: Asked, rows: str, functions: tuple[str, ...] = ()
    ) -> dict[int, dict[str, float]]:
        """Step -> function -> value, with the times of the first and the last."""
        every = f"every: {question.step_ns}ns, offset: {question.from_ns % question.step_ns}ns"
        functions = functions or FUNCTIONS[question.spec.kind]
        query = f"data = {rows}\n  |> window({every})\n" + "".join(
            f'data |> {name}() |> yield(name: "{name}")\n' for name in functions
        )
        cells: dict[int, dict[str, float]] = {}
        for record in self._records(query):
            if record["_value"] is None:
                continue
            step = round((_ns(record["_start"]) - question.from_ns) / question.step_ns)
            cell = cells.setdefault(step, {})
            name = record["result"]
            cell[name] = float(record["_value"])
            if name in ("first", "last") and "_time" in record.values:
                cell[f"{name}_ns"] = float(_ns(record["_time"]))
        return cells

    def _records(self, query: str) -> list[Any]:
        try:
            return list(self._client.query_api().query_stream(query))
        except ApiException as error:
            body = error.body if isinstance(error.body, bytes) else str(error.body or error.reason).encode()
            raise SeriesError(refused(self._shown, int(error.status or 0), body)) from error
        except urllib3.exceptions.HTTPError as error:
            raise SeriesError(unreachable(self._shown, error)) from error


def _quoted(text: str) -> str:
    """A string of Flux; `${` would begin an expression."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("${", "\\${") + '"'


def _ns(time: datetime) -> int:
    return int(time.timestamp()) * 10**9 + time.microsecond * 1000
