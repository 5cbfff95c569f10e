"""Read from InfluxDB 3 in SQL, by /api/v3/query_sql; values of tags travel as parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from time import time_ns
from typing import Any

from unidle_collector.series.answers import Asked, SeriesError, asked, reduced, steps_of
from unidle_collector.series.http import Http
from unidle_collector.series.lines import MEASUREMENT, tag_text
from unidle_collector.store.errors import StoreError
from unidle_collector.store.histograms import FIELDS, Quantile
from unidle_collector.store.steps import Steps

DAY_NS = 86_400_000_000_000

_EDGES = """\
       selector_first({field}, time)['value'] AS first,
       CAST(selector_first({field}, time)['time'] AS BIGINT) AS first_ns,
       selector_last({field}, time)['value'] AS last,
       CAST(selector_last({field}, time)['time'] AS BIGINT) AS last_ns"""
SELECT = {
    "gauge": "count({field}) AS count, avg({field}) AS mean, min({field}) AS min, max({field}) AS max",
    "state": "count({field}) AS count, selector_last({field}, time)['value'] AS last",
    "counter": _EDGES.lstrip(),
}
"""Kind of a field -> what a step of one GPU or host is reduced to."""


class Sql:
    """A `SeriesStore` over `database`."""

    def __init__(
        self,
        http: Http,
        database: str,
        *,
        least_step_s: float = 0.0,
        keep_days: float = 400.0,
        clock_ns: Callable[[], int] = time_ns,
    ) -> None:
        self._http = http
        self._database = database
        self._least_step_s = least_step_s
        self._keep_ns = int(keep_days * DAY_NS)
        self._clock_ns = clock_ns

    def ping(self) -> str:
        """Ask for something; what answered, in words. Raises SeriesError."""
        self._rows("SELECT 1 AS one", {})
        return f"{self._http.shown} answers SQL"

    def steps(self, node: str, gpu: str, field: str, start_ns: int, end_ns: int, step_s: float) -> Steps:
        """One field of one GPU or host; see SeriesStore."""
        question = asked(field, start_ns, end_ns, max(step_s, self._least_step_s))
        tags = {"node": node} | ({"gpu": gpu} if question.spec.scope == "gpu" else {})
        name = f'"{question.spec.name}"'
        query = (
            f"SELECT {_step(question)} AS step,\n       {SELECT[question.spec.kind].format(field=name)}\n"
            f"{_from(question, tags)}\nGROUP BY step ORDER BY step"
        )
        return steps_of(question, self._cells(query, tags))

    def fleet(
        self, field: str, start_ns: int, end_ns: int, step_s: float, *, simulated: bool = False
    ) -> Steps:
        """One field of all GPUs together; see SeriesStore."""
        question = asked(field, start_ns, end_ns, max(step_s, 60.0, self._least_step_s))
        if question.spec.scope != "gpu" or question.spec.kind == "state":
            raise StoreError(f"expected a gauge or a counter of GPUs, came {field!r}")
        tags = {"simulated": str(simulated).lower()}
        name = f'"{question.spec.name}"'
        if question.spec.kind == "gauge":
            query = (
                f"SELECT {_step(question)} AS step,\n       {SELECT['gauge'].format(field=name)}\n"
                f"{_from(question, tags)}\nGROUP BY step ORDER BY step"
            )
        else:
            query = (
                f"WITH edges AS (\nSELECT node, gpu, {_step(question)} AS step,\n"
                f"{_EDGES.format(field=name)}\n"
                f"{_from(question, tags)}\nGROUP BY node, gpu, step),\nparts AS (\nSELECT step,\n"
                "       last - coalesce(lag(last) OVER gpus, first) AS grown,\n"
                "       last_ns - coalesce(lag(last_ns) OVER gpus, first_ns) AS took_ns\n"
                "FROM edges WINDOW gpus AS (PARTITION BY node, gpu ORDER BY step))\n"
                "SELECT step, sum(took_ns) / 1e9 AS count, sum(grown) / (sum(took_ns) / 1e9) AS mean\n"
                "FROM parts WHERE grown >= 0 AND took_ns > 0 GROUP BY step ORDER BY step"
            )
        return reduced(question, self._cells(query, tags), "mean")

    def job_quantile(self, job: str, field: str, share: float) -> Quantile | None:
        """A quantile of a gauge over all that is kept of a job: the value at its rank is both of its ends."""
        spec = asked(field, 0, 1, 1).spec
        if spec not in FIELDS:
            raise StoreError(f"expected a gauge of GPUs, came {field!r}")
        now_ns = self._clock_ns()
        question = asked(field, now_ns - self._keep_ns, now_ns, 60)
        rows = _from(question, {"job": job})
        (counted,) = self._rows(f"SELECT count(*) AS count\n{rows}", {"job": job})
        samples = int(counted["count"])
        if not samples:
            return None
        rank = max(1, math.ceil(share * samples))
        query = f'SELECT "{spec.name}" AS value\n{rows}\nORDER BY value LIMIT 1 OFFSET {rank - 1}'
        (row,) = self._rows(query, {"job": job})
        return Quantile(float(row["value"]), float(row["value"]), samples)

    def _cells(self, query: str, tags: dict[str, str]) -> dict[int, dict[str, float]]:
        try:
            return {
                int(row["step"]): {name: float(value) for name, value in row.items() if value is not None}
                for row in self._rows(query, tags)
            }
        except (KeyError, TypeError, ValueError) as error:
            raise SeriesError(f"{self._http.shown}: expected rows with numbers by step: {error!r}") from error

    def _rows(self, query: str, tags: dict[str, str]) -> list[dict[str, Any]]:
        reply = self._http.document(
            "/api/v3/query_sql",
            {
                "db": self._database,
                "q": query,
                "format": "json",
                "params": {name: tag_text(text) for name, text in tags.items()},
            },
        )
        if not isinstance(reply, list):
            raise SeriesError(f"{self._http.shown}: expected a list of rows, came {str(reply)[:200]}")
        return reply


def _step(question: Asked) -> str:
    return f"(CAST(time AS BIGINT) - {question.from_ns}) / {question.step_ns}"


def _from(question: Asked, tags: dict[str, str]) -> str:
    spec = question.spec
    equal = "".join(f" AND {name} = ${name}" for name in tags)
    start, end = (f"to_timestamp_nanos({at_ns})" for at_ns in (question.from_ns, question.end_ns))
    return (
        f"FROM {MEASUREMENT[spec.scope]}\n"
        f"WHERE time >= {start} AND time < {end}"
        f'{equal} AND "{spec.name}" IS NOT NULL'
    )
