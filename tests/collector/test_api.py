"""The reading half of the API: pages, JSON and Arrow, what wrong questions get, and mixed fleets."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from tests.collector.api_server import fill, listening
from tests.collector.pushing import START_S, Site, batch, site
from tests.collector.test_live import COOL, HELD, play

from unidle_collector.api import arrow
from unidle_collector.client import ApiError, Client
from unidle_collector.model import Account, Finding, GpuNow, Incident, JobNow, NodeNow

NODES, GPUS = 21, 2
LISTS: dict[str, tuple[type, str]] = {
    "gpus": (GpuNow, "gpu"),
    "nodes": (NodeNow, "node"),
    "jobs": (JobNow, "job"),
    "accounts?by=gpu": (Account, "key"),
    "accounts?by=job": (Account, "key"),
    "accounts?by=hour&window_s=7200": (Account, "key"),
    "findings": (Finding, "id"),
    "incidents": (Incident, "id"),
}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """21 nodes of which 3 are simulated; 14 run a job of three nodes' numbers each."""
    with site(tmp_path_factory.mktemp("fleet")) as here:
        fill(here, NODES, GPUS, seconds=30)
        yield here


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Five nodes whose jobs have been idle for half an hour."""
    with site(tmp_path_factory.mktemp("troubled")) as here:
        for number in range(61):
            here.clock.at_s = START_S + 30 * number + 30
            for node in range(5):
                sent = batch(number, 30 * number, 30, HELD, node=f"n{node}", job=f"job-{node}")
                assert here.push(sent)[0] == 200
            here.settle(30 * number + 33)
        yield here


def pages(here: Site, path: str, limit: int) -> list[list[dict[str, Any]]]:
    """Every page, by the Link headers."""
    path, _, query = path.partition("?")
    asked = [*parse_qsl(query), ("limit", str(limit))]
    found = []
    while True:
        reply = here.http.get(f"/api/v1/{path}", params=asked)
        assert reply.status_code == 200, reply.text
        found.append(reply.json())
        if "next" not in reply.links:
            return found
        url = reply.links["next"]["url"]
        assert url.startswith("?"), "it holds behind a proxy with a path of its own"
        asked = parse_qsl(url[1:])


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize("limit", [1, 2, 1000])
def test_pages_together_are_the_list_and_none_is_longer_than_asked(
    fleet: Site, troubled: Site, path: str, limit: int
) -> None:
    here = troubled if path in ("findings", "incidents") else fleet
    key = LISTS[path][1]
    cut = pages(here, path, limit)
    whole = [item[key] for page in pages(here, path, 10_000) for item in page]
    assert len(whole) >= 3 or "hour" in path
    assert [item[key] for page in cut for item in page] == whole
    assert len(set(whole)) == len(whole)
    assert all(len(page) <= limit for page in cut)
    if "hour" not in path:  # hours without any time are left out
        assert all(len(page) == limit for page in cut[:-1])
        assert cut[-1]


@pytest.mark.parametrize("path", LISTS)
def test_arrow_says_what_json_says(fleet: Site, troubled: Site, path: str) -> None:
    here = troubled if path in ("findings", "incidents") else fleet
    kind = LISTS[path][0]
    url = f"/api/v1/{path}{'&' if '?' in path else '?'}limit=7"
    plain = here.http.get(url)
    reply = here.http.get(url, headers={"Accept": f"{arrow.MEDIA_TYPE}, application/json;q=0.5"})
    assert reply.headers["content-type"] == arrow.MEDIA_TYPE
    assert reply.headers.get("link") == plain.headers.get("link")
    assert reply.headers["vary"] == "Accept"
    table = pa.ipc.open_stream(reply.content).read_all()
    adapter: TypeAdapter[Any] = TypeAdapter(list[kind])  # type: ignore[valid-type]
    expected = adapter.validate_json(plain.content)
    if kind is GpuNow:
        from unidle_collector.gpu_table import gpus_of

        assert gpus_of(table) == expected
        assert table.schema.field("power_w").metadata == {b"unit": b"W"}
    else:
        assert adapter.validate_python(table.to_pylist(maps_as_pydicts="strict")) == expected


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("text/html, */*;q=0.1", "application/json"),
        (f"{arrow.MEDIA_TYPE};q=0", "application/json"),
        (f"application/json, {arrow.MEDIA_TYPE};q=0.9", "application/json"),
        (f"{arrow.MEDIA_TYPE};q=nonsense", "application/json"),
        (arrow.MEDIA_TYPE, arrow.MEDIA_TYPE),
        (f"{arrow.MEDIA_TYPE.upper()}, */*", arrow.MEDIA_TYPE),
    ],
)
def test_arrow_is_for_who_asks_for_it_by_name(fleet: Site, accept: str, kind: str) -> None:
    reply = fleet.http.get("/api/v1/gpus?limit=1", headers={"Accept": accept})
    assert reply.headers["content-type"] == kind


def test_nodes_and_gpus_that_come_meanwhile_are_on_a_later_page_and_shift_none(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        fill(here, 4, 1)
        first = here.http.get("/api/v1/gpus?limit=2")
        fill(here, 6, 1, first_s=5, seq=1)
        rest = here.http.get("/api/v1/gpus" + first.links["next"]["url"].replace("limit=2", "limit=9"))
        seen = [gpu["gpu"] for gpu in (*first.json(), *rest.json())]
        assert seen == [f"GPU-{number:04d}-0" for number in range(6)]


@pytest.mark.parametrize(
    "after",
    [
        "nonsense",
        "%ff",
        base64.urlsafe_b64encode(b'["/api/v1/nodes","n0001"]').decode(),
        base64.urlsafe_b64encode(b'["/api/v1/gpus"]').decode(),
        base64.urlsafe_b64encode(b'["/api/v1/gpus","text"]').decode(),
        base64.urlsafe_b64encode(b'["/api/v1/gpus",1e999]').decode(),
        base64.urlsafe_b64encode(b'{"a":1}').decode(),
    ],
)
def test_a_cursor_of_something_else_is_refused_in_words(fleet: Site, after: str) -> None:
    reply = fleet.http.get("/api/v1/gpus", params={"after": after})
    assert reply.status_code == 422
    assert reply.json()["detail"].startswith("after: expected the cursor of a Link header")


def test_only_the_fields_and_the_node_that_are_asked_for_come(fleet: Site) -> None:
    gpus = fleet.get("gpus", node="n0003", fields=["power_w", "temperature_c"])
    assert [gpu["gpu"] for gpu in gpus] == ["GPU-0003-0", "GPU-0003-1"]
    assert [list(gpu["values"]) for gpu in gpus] == [["power_w"], ["power_w"]], "nobody sent a temperature"


def test_of_a_mixed_fleet_each_gpu_says_what_it_is_and_the_answers_say_how_many(fleet: Site) -> None:
    gpus = fleet.get("gpus")
    assert {gpu["node"] for gpu in gpus if gpu["simulated"]} == {"n0000", "n0007", "n0014"}
    now = fleet.get("fleet")
    assert (now["simulated"], now["simulated_gpus"], now["gpus"]) == (True, 6, 42)
    words = fleet.http.get("/api/v1/fleet").headers["x-unidle-simulated"]
    assert words == "SIMULATED: 6 of 42 GPUs"
    of_field = {"field": "power_w", "window_s": 60}
    real = fleet.get("series", node="n0001", gpu="GPU-0001-0", **of_field)
    made_up = fleet.get("series", node="n0007", gpu="GPU-0007-0", **of_field)
    assert (real["simulated"], made_up["simulated"]) == (False, True)


def test_a_series_has_its_extremes_beside_the_mean_and_comes_as_arrow(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        play(here, 0, 60, COOL)
        play(here, 60, 120, COOL | {"power_w": 200.0}, seq=2)
        asked = {"node": "n1", "gpu": "GPU-a", "field": "power_w", "window_s": 120, "step_s": 40}
        series = here.get("series", **asked)
        points = zip(series["low"], series["values"], series["high"], strict=True)
        both = [mean for low, mean, high in points if (low, high) == (200.0, 600.0)]
        assert len(both) == 1
        assert 200 < both[0] < 600
        reply = here.http.get("/api/v1/series", params=asked, headers={"Accept": arrow.MEDIA_TYPE})
        table = pa.ipc.open_stream(reply.content).read_all()
        assert table.column("value").to_pylist() == series["values"]
        assert table.schema.metadata[b"unit"] == b"W"


def test_the_stored_mean_of_the_fleet_and_the_quantile_of_a_job_are_served(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        seq = play(here, 0, 120, COOL, job="4711")
        play(here, 120, 180, COOL | {"power_w": 200.0}, job="4711", seq=seq)
        here.live.store.convert_all(here.clock())
        found = here.get("fleet/series", field="power_w", window_s=600)
        known = [value for value in found["values"] if value is not None]
        assert sum(known) / len(known) == pytest.approx(466.7, abs=70)
        assert (found["unit"], found["simulated"]) == ("W", False)
        made_up = here.get("fleet/series", field="power_w", window_s=600, simulated=True)
        assert set(made_up["values"]) == {None}
        median = here.get("quantile", job="4711", field="power_w", share=0.5)
        assert median["low"] <= 600 <= median["high"]
        assert median["samples"] == 360


def test_the_client_follows_the_pages_and_takes_tables(fleet: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unidle_collector.client.MOST", 5)
    adapter: TypeAdapter[list[GpuNow]] = TypeAdapter(list[GpuNow])
    with listening(fleet) as url:
        client = Client(url)
        assert client.gpus() == adapter.validate_python(fleet.get("gpus"))
        assert [gpu.gpu for gpu in client.gpus(("power_w",), "n0004")] == ["GPU-0004-0", "GPU-0004-1"]
        assert len(client.nodes()) == NODES
        assert len(client.accounts("gpu")) == NODES * GPUS
        with pytest.raises(ApiError, match="expected one that has sent something"):
            client.gpus(node="none")


def test_an_incident_list_goes_on_behind_the_last_one_of_a_page(troubled: Site) -> None:
    with listening(troubled) as url:
        every = [incident.id for incident in Client(url).incidents("open")]
    assert len(every) == 5
    assert [one["id"] for page in pages(troubled, "incidents?state=all", 2) for one in page] == every


TEXTS = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        ["power_w", "n0001", "GPU-0001-0", "gpu", "hour", "job-1", "all", "0", "-1", "1e999", "nan"]
    ),
    st.integers().map(str),
    st.floats().map(str),
    st.lists(st.one_of(st.integers(), st.text(max_size=8), st.floats(), st.none()), max_size=4).map(
        lambda key: base64.urlsafe_b64encode(json.dumps(["/api/v1/gpus", *key]).encode()).decode()
    ),
)


@settings(max_examples=300)
@given(data=st.data())
def test_whatever_is_asked_is_answered_or_refused_in_words_and_never_fails(
    fleet: Site, data: st.DataObject
) -> None:
    paths = fleet.http.get("/openapi.json").json()["paths"]
    reads = sorted(path for path, methods in paths.items() if "get" in methods)
    path = data.draw(st.sampled_from(reads), label="path")
    query, url = {}, path
    for parameter in paths[path]["get"].get("parameters", ()):
        value = data.draw(st.one_of(st.none(), TEXTS), label=parameter["name"])
        if parameter["in"] == "path":
            segment = (value or "x").encode("utf-8", "replace").hex()
            url = url.replace(f"{{{parameter['name']}}}", segment)
        elif value is not None:
            query[parameter["name"]] = value.encode("utf-8", "replace").decode()
    accept = data.draw(st.sampled_from(["*/*", arrow.MEDIA_TYPE]), label="accept")
    reply = fleet.http.get(url, params=query, headers={"Accept": accept})
    assert reply.status_code in (200, 404, 422), reply.text
    if reply.status_code != 200:
        assert isinstance(reply.json()["detail"], str)


@pytest.mark.parametrize("path", LISTS)
def test_a_collector_without_rows_answers_with_empty_lists(tmp_path: Path, path: str) -> None:
    with site(tmp_path) as here:
        assert here.http.get(f"/api/v1/{path}").json() == []


def test_spans_and_steps_begin_at_multiples_of_their_length(fleet: Site) -> None:
    (first,) = fleet.get("accounts", by="hour", window_s=86400)
    assert int(first["key"]) % (900 * 10**9) == 0
    for asked_s, step_s in ((60, 60), (100, 120), (7000, 7200)):
        steps = fleet.get("fleet/series", field="power_w", window_s=86400, step_s=asked_s)
        assert steps["step_s"] == step_s
        assert {at % (step_s * 10**9) for at in steps["times_ns"]} == {0}
