"""What goes to InfluxDB 2 and 3 and what is made of their answers, by their documentation.

No InfluxDB was run: a server of the test records the requests and answers as the documentation says.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from tests.agent.scripted_server import Reply, Request, serving
from tests.collector.series_fleet import START, accept, drain, opened, settings
from tests.collector.store_fleet import SECOND, batch

from unidle_agent.errors import SettingError
from unidle_agent.settings import Secret
from unidle_collector import checks
from unidle_collector.series import Engine, SeriesError, reader
from unidle_collector.settings import CollectorSettings
from unidle_collector.store import StoreError

GOLDEN = Path(__file__).with_name("series_queries.txt")
NODE, GPU = 'n"1', "GPU-a"
END = START + 180 * SECOND


def asked(kind: str, url: str) -> Engine:
    found = reader(settings(Path("unused"), kind, url))
    assert found is not None
    return found


def questions(engine: Engine) -> dict[str, Callable[[], object]]:
    """Everything that can be asked, by name."""
    return {
        "gauge": lambda: engine.steps(NODE, GPU, "power_w", START, END, 60),
        "state": lambda: engine.steps(NODE, GPU, "clock_event_reasons", START, END, 60),
        "counter": lambda: engine.steps(NODE, GPU, "energy_j", START, END, 60),
        "host": lambda: engine.steps(NODE, "", "load_1m", START, END, 60),
        "fleet gauge": lambda: engine.fleet("power_w", START, END, 60),
        "fleet counter": lambda: engine.fleet("energy_j", START, END, 60, simulated=True),
    }


def read_golden() -> dict[str, str]:
    """Title -> query."""
    parts = GOLDEN.read_text(encoding="utf-8").split("=== ")[1:]
    return {part.split("\n", 1)[0]: part.split("\n", 1)[1].strip() for part in parts}


def flux_query(request: Request) -> str:
    return str(json.loads(request.body)["query"])


def sql_query(request: Request) -> str:
    return str(json.loads(request.body)["q"])


@pytest.mark.parametrize(
    ("kind", "query_of", "empty"),
    [("influxdb2", flux_query, b""), ("influxdb3", sql_query, b"[]")],
)
@pytest.mark.parametrize("title", ["gauge", "state", "counter", "host", "fleet gauge", "fleet counter"])
def test_a_question_is_the_golden_query(
    kind: str, query_of: Callable[[Request], str], empty: bytes, title: str
) -> None:
    with serving(lambda _: Reply(200, empty)) as server:
        questions(asked(kind, server.url))[title]()
        assert query_of(server.requests[0]).strip() == read_golden()[f"{kind} {title}"]


def test_lines_are_written_to_the_v2_path_with_token_bucket_and_precision(tmp_path: Path) -> None:
    for kind in ("influxdb2", "influxdb3"):
        with serving(lambda _: Reply(204)) as server:
            with opened(settings(tmp_path / kind, kind, f"{server.url}/base")) as (store, feed):
                accept(store, batch("n1"))
                drain(feed)
            (request,) = server.requests
            url = urlsplit(request.path)
            assert (request.method, url.path) == ("POST", "/base/api/v2/write")
            assert parse_qs(url.query) == {"org": ["site"], "bucket": ["unidle"], "precision": ["ns"]}
            assert request.headers["authorization"] == "Token token-of-the-test"
            assert request.body.startswith(b"unidle,gpu=GPU-a,node=n1,simulated=false power_w=100")


def test_lines_are_compressed_where_that_is_asked_for(tmp_path: Path) -> None:
    with serving(lambda _: Reply(204)) as server:
        far = replace(settings(tmp_path, "influxdb2", server.url), series_gzip=True)
        with opened(far) as (store, feed):
            accept(store, batch("n1"))
            drain(feed)
        (request,) = server.requests
        assert request.headers["content-encoding"] == "gzip"
        assert gzip.decompress(request.body).startswith(b"unidle,gpu=GPU-a")


def test_victoriametrics_gets_the_token_in_the_usual_form(tmp_path: Path) -> None:
    with serving(lambda _: Reply(204)) as server:
        with opened(settings(tmp_path, "victoriametrics", server.url)) as (store, feed):
            accept(store, batch("n1"))
            drain(feed)
        assert server.requests[0].headers["authorization"] == "Bearer token-of-the-test"


def annotated(result: str, rows: list[tuple[int, str, float]]) -> str:
    """One result of a Flux query as annotated CSV: (step, time, value)."""
    lines = [
        "#datatype,string,long,dateTime:RFC3339,dateTime:RFC3339,dateTime:RFC3339,double",
        "#group,false,false,true,true,false,false",
        f"#default,{result},,,,,",
        ",result,table,_start,_stop,_time,_value",
    ]
    for number, (step, time, value) in enumerate(rows):
        begin = np.datetime64(START // SECOND + 60 * step, "s")
        end = begin + np.timedelta64(60, "s")
        lines.append(f",,{number},{begin}Z,{end}Z,{time or begin}Z,{value}")
    return "\r\n".join([*lines, "", ""])


def test_a_gauge_is_read_from_annotated_csv() -> None:
    body = "".join(
        annotated(name, [(0, "", value), (2, "", value + 1)])
        for name, value in {"mean": 5.0, "count": 6.0, "min": 1.0, "max": 9.0}.items()
    )
    with serving(lambda _: Reply(200, body.encode(), {"Content-Type": "text/csv"})) as server:
        found = asked("influxdb2", server.url).steps(NODE, GPU, "power_w", START, END, 60)
        assert server.requests[0].headers["authorization"] == "Token token-of-the-test"
        assert parse_qs(urlsplit(server.requests[0].path).query) == {"org": ["site"]}
    np.testing.assert_array_equal(found.values, [5, np.nan, 6])
    np.testing.assert_array_equal(found.low, [1, np.nan, 2])
    np.testing.assert_array_equal(found.high, [9, np.nan, 10])
    assert found.rows.tolist() == [6, 0, 7]


def test_a_counters_rate_is_made_of_the_edges_of_its_steps() -> None:
    def at(second: int) -> str:
        return str(np.datetime64(START // SECOND + second, "s"))

    # Step 0 of the answer lies before the window. It grows by 10 a second, is silent in the second step of
    # the window, and has begun anew in the third.
    first = [(-1, at(-60), 0.0), (0, at(0), 600.0), (2, at(120), 1800.0)]
    last = [(-1, at(-1), 590.0), (0, at(59), 1190.0), (2, at(179), 30.0)]
    body = annotated("first", first) + annotated("last", last)
    with serving(lambda _: Reply(200, body.encode(), {"Content-Type": "text/csv"})) as server:
        found = asked("influxdb2", server.url).steps(NODE, GPU, "energy_j", START, END, 60)
    np.testing.assert_allclose(found.values, [10, np.nan, (1800 - 1190) / 61])


def test_sql_travels_with_its_parameters_and_its_rows_become_steps() -> None:
    rows = [{"step": 0, "count": 6, "mean": 5.0, "min": 1, "max": 9}, {"step": 2, "count": 1, "mean": 7.5}]
    with serving(lambda _: Reply(200, json.dumps(rows).encode())) as server:
        found = asked("influxdb3", server.url).steps(NODE, GPU, "power_w", START, END, 60)
        (request,) = server.requests
        sent = json.loads(request.body)
        assert (request.path, request.headers["authorization"]) == (
            "/api/v3/query_sql",
            "Bearer token-of-the-test",
        )
        assert (sent["db"], sent["format"], sent["params"]) == ("unidle", "json", {"node": NODE, "gpu": GPU})
    np.testing.assert_array_equal(found.values, [5, np.nan, 7.5])


def test_a_jobs_quantile_in_sql_is_the_value_at_its_rank() -> None:
    def answer(request: Request) -> Reply:
        counting = "count(*)" in sql_query(request)
        return Reply(200, json.dumps([{"count": 40} if counting else {"value": 311.5}]).encode())

    with serving(answer) as server:
        found = asked("influxdb3", server.url).job_quantile("4711", "power_w", 0.95)
        assert found is not None
        assert (found.low, found.high, found.samples) == (311.5, 311.5, 40)
        assert "OFFSET 37" in sql_query(server.requests[1])
    with serving(lambda _: Reply(200, b'[{"count": 0}]')) as server:
        assert asked("influxdb3", server.url).job_quantile("4711", "power_w", 0.95) is None


def test_a_jobs_quantile_in_flux_is_the_value_at_its_rank() -> None:
    body = annotated("count", [(0, "", 40)]) + annotated("value", [(0, "", 311.5)])
    with serving(lambda _: Reply(200, body.encode(), {"Content-Type": "text/csv"})) as server:
        found = asked("influxdb2", server.url).job_quantile("4711", "power_w", 0.95)
        assert found is not None
        assert (found.low, found.high, found.samples) == (311.5, 311.5, 40)
        assert 'quantile(q: 0.95, method: "exact_selector")' in flux_query(server.requests[0])
    with serving(lambda _: Reply(200, b"")) as server:
        assert asked("influxdb2", server.url).job_quantile("4711", "power_w", 0.95) is None


@pytest.mark.parametrize("kind", ["influxdb2", "influxdb3", "victoriametrics"])
@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply(401, b'{"message":"unauthorized access"}'), "answered 401: check series_token"),
        (Reply(500, b"out of memory"), "answered 500: out of memory"),
        (Reply(hang_up=True), "does not answer"),
    ],
)
def test_a_server_that_cannot_answer_is_an_error_that_shows_no_token(
    kind: str, reply: Reply, said: str
) -> None:
    with serving(lambda _: reply) as server:
        with pytest.raises(SeriesError, match=said) as error:
            asked(kind, server.url).steps(NODE, GPU, "power_w", START, END, 60)
        assert "token-of-the-test" not in str(error.value)


@pytest.mark.parametrize("kind", ["influxdb3", "victoriametrics"])
@pytest.mark.parametrize("body", [b"<html>", b"{}", b'[{"a": 1}]'])
def test_an_answer_that_is_something_else_is_an_error(kind: str, body: bytes) -> None:
    with serving(lambda _: Reply(200, body)) as server, pytest.raises(SeriesError, match="expected"):
        asked(kind, server.url).steps(NODE, GPU, "power_w", START, END, 60)


@pytest.mark.parametrize("kind", ["influxdb2", "influxdb3", "victoriametrics"])
def test_a_question_that_makes_no_sense_is_refused_before_it_travels(kind: str) -> None:
    with serving(lambda _: Reply(500)) as server:
        engine = asked(kind, server.url)
        for wrong in (
            lambda: engine.steps(NODE, GPU, "power_w; DROP TABLE x", START, END, 60),
            lambda: engine.steps(NODE, GPU, "power_w", END, START, 60),
            lambda: engine.fleet("load_1m", START, END, 60),
            lambda: engine.job_quantile("4711", "energy_j", 0.5),
        ):
            with pytest.raises(StoreError):
                wrong()
        assert server.requests == []


@pytest.mark.parametrize("kind", ["influxdb2", "influxdb3", "victoriametrics"])
def test_a_name_cannot_leave_its_quotes(kind: str) -> None:
    evil = 'x" or "1"=="1${r}\\'
    with serving(lambda _: Reply(500, b"no")) as server:
        with pytest.raises(SeriesError):
            asked(kind, server.url).steps(evil, GPU, "power_w", START, END, 60)
        body = parse_qs(server.requests[0].body.decode()).get("query") or [""]
        text = {
            "influxdb2": lambda: flux_query(server.requests[0]),
            "influxdb3": lambda: sql_query(server.requests[0]),
            "victoriametrics": lambda: body[0],
        }[kind]()
    quoted = {
        "influxdb2": 'r["node"] == "x\\" or \\"1\\"==\\"1\\${r}_"',
        "influxdb3": "node = $node",
        "victoriametrics": 'node="x\\" or \\"1\\"==\\"1${r}_"',
    }
    assert quoted[kind] in text


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"series_url": ""}, "series_url"),
        ({"series_url": "ftp://x"}, "series_url"),
        ({"series_bucket": ""}, "bucket"),
    ],
)
def test_settings_that_are_not_complete_are_named(wrong: dict[str, str], named: str) -> None:
    whole = CollectorSettings(
        series="influxdb2", series_url="http://127.0.0.1:8086", series_token=Secret("token-of-the-test")
    )
    with pytest.raises(SettingError, match=named):
        reader(replace(whole, **wrong))  # type: ignore[arg-type]


def test_the_doctor_says_which_server_answers_and_which_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.series().status == "absent"
    one = b'{"data": {"result": [{"metric": {}, "value": [1, "1"]}]}}'
    with serving(lambda _: Reply(200, one)) as server:
        monkeypatch.setenv("UNIDLE_COLLECTOR_SERIES", "victoriametrics")
        monkeypatch.setenv("UNIDLE_COLLECTOR_SERIES_URL", server.url)
        assert checks.series().status == "ok"
    found = checks.series()
    assert (found.status, "does not answer" in found.found) == ("fail", True)
