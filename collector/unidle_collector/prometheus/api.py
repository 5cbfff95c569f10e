"""The HTTP API of a Prometheus, or of what speaks like one (VictoriaMetrics, Thanos, Mimir).

Every request has a deadline and a bound on its answer; one that fails in passing is made again twice.
https://prometheus.io/docs/prometheus/latest/querying/api/
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
from numpy.typing import NDArray

from unidle_agent import fetch
from unidle_agent.errors import UnidleError, reason
from unidle_agent.settings import Secret

DEADLINE_S = 60.0
MAX_ANSWER_BYTES = 256 * 1024 * 1024
PAUSES_S = (1.0, 4.0)
"""Before the second and the third attempt."""
IN_PASSING = frozenset({429, 500, 502, 503, 504})
TOO_MUCH = ("too many samples", "timed out", "maximum resolution", "exceeded", "too many points")
"""Words of servers for a question that they would answer in smaller parts."""


class PrometheusError(UnidleError):
    """The server cannot be asked: says what was expected, what came, and what to do."""


def token_of(path: Path | None) -> Secret:
    """The token in a file, none without one; raises PrometheusError when it cannot be read."""
    try:
        return Secret(path.read_text(encoding="utf-8").strip() if path else "")
    except (OSError, UnicodeDecodeError) as error:
        raise PrometheusError(
            f"{path}: expected a readable file that holds a token ({reason(error)})"
        ) from error


class TooMuchError(PrometheusError):
    """The server, or we, cannot take so large an answer: ask for less at a time."""


@dataclass(frozen=True, slots=True)
class Series:
    """One series of an answer."""

    labels: Mapping[str, str]
    times_s: NDArray[np.float64]
    """[N], ascending"""
    values: NDArray[np.float64]
    """[N]"""


class Api:
    """A server, asked over one connection."""

    def __init__(
        self,
        url: str,
        *,
        token: Secret | None = None,
        ca_file: str = "",
        deadline_s: float = DEADLINE_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = url.rstrip("/")
        self._to = fetch.target(url, "--prometheus")
        self._token = token or Secret()
        self._ca_file = ca_file
        self._deadline_s = deadline_s
        self._sleep = sleep
        self._over: http.client.HTTPConnection | None = None
        self.requests = 0

    def close(self) -> None:
        """Let go of the connection."""
        if self._over is not None:
            self._over.close()
            self._over = None

    def names(self, selector: str, start_s: float, end_s: float) -> list[str]:
        """Names of the series that `selector` matches within a time."""
        found = self._ask(
            "label/__name__/values", {"match[]": selector, "start": _text(start_s), "end": _text(end_s)}
        )
        return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []

    def query(self, expression: str, at_s: float) -> list[Series]:
        """An expression at an instant: of a range selector, the samples themselves."""
        return _series(self._ask("query", {"query": expression, "time": _text(at_s)}))

    def query_range(self, expression: str, start_s: float, end_s: float, step_s: float) -> list[Series]:
        """An expression at each step from `start_s` to `end_s`, both included."""
        asked = {"query": expression, "start": _text(start_s), "end": _text(end_s), "step": _text(step_s)}
        # VictoriaMetrics moves the instants to multiples of the step to cache them, unless told not to.
        return _series(self._ask("query_range", {**asked, "nocache": "1"}))

    def _ask(self, what: str, query: Mapping[str, str]) -> Any:
        for pause_s in (*PAUSES_S, None):
            try:
                answer = self._get(f"{self._to.path}/api/v1/{what}?{urlencode(query)}")
            except fetch.TooBigError as error:
                raise TooMuchError(f"{self.url}: {error}") from error
            except fetch.LateError as error:
                raise TooMuchError(f"{self.url}: {error}") from error
            except fetch.FetchError as error:
                if pause_s is None:
                    raise PrometheusError(
                        f"{self.url}: {error}; is this the address of a Prometheus?"
                    ) from error
            else:
                wrong = _wrong(answer)
                if answer.status == 200 and answer.whole and not wrong:
                    return _data(self.url, answer.body)
                if any(words in wrong for words in TOO_MUCH):
                    raise TooMuchError(f"{self.url}: HTTP {answer.status}: {wrong}")
                if pause_s is None or (answer.whole and answer.status not in IN_PASSING):
                    raise PrometheusError(f"{self.url}: {_explained(answer, wrong)}")
            self._sleep(pause_s)
        raise AssertionError("the last attempt returns or raises")

    def _get(self, path: str) -> fetch.Answer:
        self.requests += 1
        if self._over is None:
            self._over = fetch.connection(self._to, self._deadline_s, self._ca_file)
        headers = {"Accept": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token.reveal()}"
        try:
            return fetch.exchange(
                self._over,
                "GET",
                path,
                deadline_s=self._deadline_s,
                max_bytes=MAX_ANSWER_BYTES,
                headers=headers,
            )
        except fetch.FetchError:
            self.close()
            raise


def _text(seconds: float) -> str:
    return f"{seconds:.3f}"


def _wrong(answer: fetch.Answer) -> str:
    """What the server says is wrong, in its words; empty when it says nothing of the kind."""
    if answer.status == 200:
        return ""
    try:
        document = json.loads(answer.body)
    except ValueError:
        return ""
    text = document.get("error", "") if isinstance(document, dict) else ""
    return str(text)[:300]


def _explained(answer: fetch.Answer, wrong: str) -> str:
    came = f"expected an answer, came HTTP {answer.status}" + (f": {wrong}" if wrong else "")
    if answer.status in (401, 403):
        return came + "; give the token with --bearer-token-file"
    if answer.status == 404:
        return came + "; is this the base address of a Prometheus, without /api/v1?"
    if 300 <= answer.status < 400:
        to = answer.headers.get("location", "elsewhere")
        return f"{came} to {to}: redirects are not followed, give the final address"
    if not answer.whole:
        return "expected a whole answer, the connection ended before its end"
    return came


def _data(url: str, body: bytes) -> Any:
    try:
        document = json.loads(body)
        if document["status"] != "success":
            raise PrometheusError(f"{url}: {str(document.get('error', document['status']))[:300]}")
        return document["data"]
    except (ValueError, KeyError, TypeError) as error:
        raise PrometheusError(
            f"{url}: expected the JSON of a Prometheus API, came {body[:60]!r}; is this its base address?"
        ) from error


def _series(data: Any) -> list[Series]:
    """Matrix and vector alike."""
    try:
        return [_one(item) for item in data["result"]]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise PrometheusError(f"expected series in the answer, came another form: {error}") from error


def _one(item: Any) -> Series:
    points = item["values"] if "values" in item else [item["value"]]
    return Series(
        {str(key): str(text) for key, text in item["metric"].items()},
        np.array([point[0] for point in points], dtype=np.float64),
        np.array([float(point[1]) for point in points], dtype=np.float64),
    )
