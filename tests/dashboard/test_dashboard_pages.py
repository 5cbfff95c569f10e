"""Every page as Streamlit runs it, over a fake collector."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from email.message import Message
from pathlib import Path
from urllib.error import HTTPError

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest
from tests.dashboard.fake_api import FakeApi

import unidle_dashboard
from unidle_collector.client import ApiError
from unidle_collector.model import Fleet, FlightRecording
from unidle_dashboard import frame
from unidle_dashboard.answers import Answers
from unidle_dashboard.view import words
from unidle_dashboard.view.palette import LOOKS

APP = Path(unidle_dashboard.__file__).parent / "app.py"
PAGES = ("today", "fleet", "incidents", "recommendations", "health")
EVIL = '<img src=x onerror="window.pwned=1">[x](javascript:window.pwned=1)**b** $x^2$ :red[c]'

Serve = Callable[[FakeApi], FakeApi]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Serve]:
    """Puts a fake in the place of the collector, for one test."""
    monkeypatch.chdir(tmp_path)  # no unidle.toml of this machine

    def put(api: FakeApi) -> FakeApi:
        monkeypatch.setattr(frame, "connect", lambda settings: api)
        st.cache_resource.clear()
        return api

    yield put
    st.cache_resource.clear()


def run(page: str, **query: str) -> AppTest:
    """The page run once, with the address's parameters."""
    at = AppTest.from_string(
        f"from unidle_dashboard.screens import {page}\n{page}.show()", default_timeout=30
    )
    for name, value in query.items():
        at.query_params[name] = value
    at.run()
    assert not at.exception
    return at


def markup(at: AppTest) -> str:
    return "\n".join(element.proto.body for element in at.get("html"))


def text(at: AppTest) -> str:
    """What a reader sees of the page's HTML."""
    return html.unescape(re.sub(r"<[^>]+>", " ", markup(at)))


def test_today_says_verdict_causes_and_first_actions_in_the_numbers_of_the_api(serve: Serve) -> None:
    serve(FakeApi())
    shown = text(run("today"))
    assert "104 of 512 GPUs are paid for and losing time right now" in shown
    assert "8,963 EUR" in shown  # the account of 24 h
    assert "Starved: storage too slow" in shown
    assert "2,534" in shown
    assert "Feed 32 GPUs of job whisper-finetune" in shown
    assert "2 critical, 4 warning" in shown


def test_today_follows_the_window_of_the_address(serve: Serve) -> None:
    api = serve(FakeApi())
    at = run("today", window="7 d")
    assert at.get("button_group")[0].value == "7 d"
    assert words.amount(api.fleet(604_800).account.lost.eur, "EUR") in text(at)
    assert "fleet 604800" in api.asked


def test_today_shows_the_funnel_for_those_who_do_not_see_it(serve: Serve) -> None:
    serve(FakeApi())
    (chart,) = run("today").get("echarts_chart")
    assert chart.proto.alt == "Total 100 %, Allocated 90 %, Active 86 %, Effective 78 %"


def test_today_without_prices_says_unknown(serve: Serve) -> None:
    api = FakeApi()
    api.priced = False
    serve(api)
    shown = text(run("today"))
    assert "EUR unknown" in shown
    assert "0 EUR" not in shown


def test_of_a_mixed_fleet_the_banner_says_how_many_and_only_where_one_is_in_view(serve: Serve) -> None:
    api = FakeApi(simulated=False)
    api.simulated_gpus = 8
    serve(api)
    for page in ("today", "fleet", "health"):
        assert f"SIMULATED: 8 of {len(api.gpus())} GPUs" in text(run(page))
    for page in ("incidents", "recommendations"):
        assert "SIMULATED" not in text(run(page)), "what is listed there is real"
    api.simulated = True
    for page in ("incidents", "recommendations"):
        serve(api)
        assert "SIMULATED: 8 of" in text(run(page))


@pytest.mark.parametrize("page", PAGES)
def test_every_page_says_simulated_and_no_page_of_a_real_fleet_does(page: str, serve: Serve) -> None:
    serve(FakeApi(simulated=True))
    assert "SIMULATED" in text(run(page))
    serve(FakeApi(simulated=False))
    assert "SIMULATED" not in text(run(page))


@pytest.mark.parametrize("page", PAGES)
def test_every_page_without_a_collector_says_so_and_shows_no_number(page: str, serve: Serve) -> None:
    api = FakeApi()
    api.down = True
    serve(api)
    at = run(page)
    shown = text(at)
    assert "No answer from the collector at http://127.0.0.1:9470" in shown
    assert "unidle collector" in shown
    assert "GPU-h" not in shown
    assert not at.dataframe


@pytest.mark.parametrize("page", PAGES)
def test_every_page_keeps_the_last_answers_and_marks_them_when_the_collector_falls_silent(
    page: str, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ns = [1_795_269_730_000_000_000]
    api = serve(FakeApi())
    answers = Answers(api, ttl_s=8, now_ns=lambda: now_ns[0])
    monkeypatch.setattr(frame, "answers", lambda: answers)
    before = text(run(page))
    api.down = True
    now_ns[0] += 60 * 10**9
    at = run(page)
    assert "has not answered since" in text(at)
    assert "2026-11-21 14:03:10 UTC" in text(at)
    assert "last that it said, at 2026-11-21 14:02:10 UTC" in text(at)
    assert "right now" not in text(at)
    assert re.findall(r"\d+ GPUs", before) == re.findall(r"\d+ GPUs", text(at))


@pytest.mark.parametrize("page", PAGES)
def test_every_page_can_show_a_fleet_with_nothing_in_it(page: str, serve: Serve) -> None:
    serve(FakeApi(groups=()))
    run(page)


@pytest.mark.parametrize("page", PAGES)
def test_names_of_jobs_and_nodes_are_never_read_as_html_or_markdown(page: str, serve: Serve) -> None:
    api = serve(FakeApi(name=EVIL))
    query = {"fleet": {"node": api.gpus()[0].node}, "incidents": {"incident": "inc-1002"}}.get(page, {})
    at = run(page, **query)
    assert "<img" not in markup(at)
    for kind in ("markdown", "caption", "metric", "title", "header", "subheader", "toggle", "button"):
        assert not [element for element in at.get(kind) if "onerror" in str(element.proto)]
    if page != "health":
        assert EVIL in text(at) or any(EVIL in str(table.value) for table in at.dataframe)


def test_fleet_shows_all_states_with_their_counts(serve: Serve) -> None:
    api = serve(FakeApi())
    shown = " ".join(text(run("fleet")).split())
    for state, count in api.fleet().states.items():
        assert f"{LOOKS[state].name} {count}" in shown  # type: ignore[index]


def test_fleet_opens_the_node_of_the_address_with_values_and_their_age(serve: Serve) -> None:
    api = serve(FakeApi())
    at = run("fleet", node="b200-21", gpu="GPU 3", field="power_w", span="24 h")
    table = at.dataframe[0].value
    assert list(table["State"]) == ["Starved"] * 8
    assert table["power, W"].iloc[3] == pytest.approx(api.gpus()[21 * 8 + 3].values["power_w"])
    assert table["sample age, s"].iloc[0] == pytest.approx(2.2)
    assert "series b200-21 GPU-0021-3 power_w" in api.asked
    assert len(at.get("echarts_chart")) == 1


def test_fleet_says_in_words_whose_a_gpu_is_where_owner_and_use_do_not_agree(serve: Serve) -> None:
    serve(FakeApi())
    words = "GPU 5: still used by processes of jobs notebook-31 and sweep-0398, which have ended."
    assert words in text(run("fleet", node="b200-56"))
    assert "Owner" not in text(run("fleet", node="b200-00"))


def test_fleet_leaves_what_a_silent_node_does_not_say_empty(serve: Serve) -> None:
    serve(FakeApi())
    table = run("fleet", node="b200-62").dataframe[0].value
    assert table["GPU util, %"].isna().all()
    assert list(table["State"]) == ["Unknown"] * 8


def test_an_address_names_an_incident_and_its_detail_is_complete(serve: Serve) -> None:
    serve(FakeApi())
    at = run("incidents", incident="inc-1002")
    shown = text(at)
    for part in (
        "32 GPUs of job whisper-finetune wait for storage",
        "86 %",
        "Starved: cause not determined",
        "sm_active_ratio",
        "60 %",
        "30 min",
        "18 GPU-h, 106 EUR, 7.0 kWh",
        "Stage the data set on local NVMe",
        "What would confirm it",
        "b200-21 GPU 0-7",
    ):
        assert part in shown
    assert at.get("code")[0].value.startswith("scancel")
    assert len(at.get("echarts_chart")) == 1


def test_an_old_incident_opens_by_its_address_and_an_unknown_one_says_so(serve: Serve) -> None:
    serve(FakeApi())
    assert "inc-old, revision 2" in text(run("incidents", incident="inc-old"))
    assert "There is no incident inc-none." in text(run("incidents", incident="inc-none"))


def test_resolved_incidents_are_a_choice_away(serve: Serve) -> None:
    serve(FakeApi())
    assert len(run("incidents").dataframe[0].value) == 6
    assert list(run("incidents", show="Resolved").dataframe[0].value["State"]) == ["resolved"]


def test_a_recommendation_states_every_part_of_it(serve: Serve) -> None:
    api = serve(FakeApi())
    at = run("recommendations")
    shown = text(at)
    for one in api.recommendations():
        for part in (one.title, one.binding_constraint, one.risk, one.notice, one.measure, *one.assumptions):
            assert part in shown
    assert {code.value for code in at.get("code")} == {
        part for one in api.recommendations() for part in (one.command, one.undo)
    }
    assert "307 GPU-h expected within 24 h; 230 to 365" in " ".join(shown.split())


def test_recommendations_can_be_narrowed_to_one_lever(serve: Serve) -> None:
    serve(FakeApi())
    shown = text(run("recommendations", lever="Reclaim"))
    assert "Give back 16 GPUs" in shown
    assert "Feed 32 GPUs" not in shown


def test_data_health_tells_which_nodes_need_a_look(serve: Serve) -> None:
    serve(FakeApi())
    at = run("health")
    assert "61 of 64 nodes are fresh; 3 need a look" in text(at)
    assert "1 node has been silent for 15 min: b200-62" in text(at)
    table = at.dataframe[0].value
    silent = "silent for 15 min 1 s"
    assert list(table["Problem"][:4]) == ["clock 7.4 s behind", silent, silent, ""]
    assert table["Late rows"].sum() == 16


def test_the_root_address_with_an_incident_leads_to_it(serve: Serve) -> None:
    api = serve(FakeApi())
    at = AppTest.from_file(str(APP), default_timeout=30)
    at.query_params["incident"] = "inc-1002"
    at.run()
    assert not at.exception
    assert "What would confirm it" in text(at)
    assert "incidents open" in api.asked


def test_all_sessions_share_one_snapshot(serve: Serve) -> None:
    api = serve(FakeApi())
    run("today")
    asked = len(api.asked)
    run("today")
    assert len(api.asked) == asked


def test_an_incident_shows_its_flight_recording_and_marks_it_simulated(serve: Serve) -> None:
    serve(FakeApi())
    at = run("incidents", incident="inc-1004")
    (recorded,) = [chart for chart in at.get("echarts_chart") if "Flight recorder" in chart.proto.alt]
    assert "b200-33 GPU 0, asked for when the finding was told" in recorded.proto.alt
    assert "600 looks, 5.0 a second, 11:03:10 UTC to 11:05:10 UTC; source: SIMULATED" in text(at)


def test_an_incident_without_a_recording_and_a_collector_that_has_none_show_nothing_of_it(
    serve: Serve,
) -> None:
    serve(FakeApi())
    assert "Flight recorder" not in text(run("incidents", incident="inc-1006"))

    class Older(FakeApi):
        def flights(self, incident_id: str) -> list[FlightRecording]:
            raise ApiError("HTTP 404") from HTTPError("", 404, "Not Found", Message(), None)

    serve(Older())
    shown = text(run("incidents", incident="inc-1004"))
    assert "What to do" in shown
    assert "Flight recorder" not in shown


@pytest.mark.parametrize("page", PAGES)
def test_every_page_names_the_shards_that_its_numbers_do_not_hold(serve: Serve, page: str) -> None:
    class OneShardAway(FakeApi):
        def fleet(self, window_s: float = 3600) -> Fleet:
            return replace(super().fleet(window_s), gaps=("shard 3: no collector holds it",))

    serve(OneShardAway())
    assert markup(run(page)).count("shard 3: no collector holds it") == 1
