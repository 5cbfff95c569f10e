"""The pages of a federation: Sites, and Today with its choice of a site."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest
from tests.dashboard.fake_api import FakeApi
from tests.federation.fake_federation import FakeFederation, three_sites
from tests.federation.reports import report, seen

import unidle_dashboard
from unidle_dashboard import frame

APP = Path(unidle_dashboard.__file__).parent / "app.py"
EVIL = "<img src=x onerror=pwned>"

Serve = Callable[[object], None]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Serve]:
    """Puts a fake in the place of the collector, for one test."""
    monkeypatch.chdir(tmp_path)

    def put(api: object) -> None:
        monkeypatch.setattr(frame, "connect", lambda settings: api)
        st.cache_resource.clear()

    yield put
    st.cache_resource.clear()


def run(page: str, **query: str) -> AppTest:
    at = AppTest.from_string(
        f"from unidle_dashboard.screens import {page}\n{page}.show()", default_timeout=30
    )
    for name, value in query.items():
        at.query_params[name] = value
    at.run()
    assert not at.exception
    return at


def text(at: AppTest) -> str:
    markup = "\n".join(element.proto.body for element in at.get("html"))
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", markup)).split())


def test_sites_says_who_answers_what_is_unknown_and_what_is_withheld(serve: Serve) -> None:
    serve(FakeFederation(three_sites()))
    shown = text(run("sites"))
    for part in (
        "2 of 3 sites answer; unknown: zrh",
        "Jurisdictions: CH, EU.",
        "832 256 unknown now",
        "par EU SIMULATED",
        "also as a part of every sum: sites par.",
        "zrh CH unknown since 2026-11-21 13:47:00 UTC: connection refused: nothing listens there",
        "withheld by policy: accounts.model, accounts.team, accounts.cause, eur",
        "money is withheld",
        "20 GPU-h within 24 h",
        "15 min ago",
    ):
        assert part in shown
    assert "fra EU SIMULATED" not in shown
    assert "zrh: unknown since 2026-11-21 13:47:00 UTC (connection refused: nothing listens there)" in shown


def test_a_site_that_never_answered_has_no_number(serve: Serve) -> None:
    serve(FakeFederation([seen(None, error="HTTP 401")]))
    shown = text(run("sites"))
    assert "never answered: HTTP 401" in shown
    assert "unknown: https://nowhere.example" in shown


def test_without_anything_simulated_the_word_is_nowhere(serve: Serve) -> None:
    serve(FakeFederation([seen(report("fra")), seen(report("zrh", "CH"))]))
    shown = text(run("sites"))
    assert "All 2 sites answer" in shown
    assert "SIMULATED" not in shown


def test_today_is_of_all_sites_or_of_one(serve: Serve) -> None:
    serve(FakeFederation(three_sites()))
    everything = text(run("today"))
    assert "2 of 832 GPUs are paid for and losing time" in everything
    assert "zrh: unknown since" in everything
    one = text(run("today", site="fra"))
    assert "1 of 512 GPUs is paid for and losing time" in one
    assert "zrh" not in one
    abroad = text(run("today", site="zrh"))
    assert "No site tells the causes." in abroad
    assert "zrh: withheld by policy: causes, money" in abroad


def test_a_federation_opens_with_its_sites_and_a_site_with_today(serve: Serve) -> None:
    serve(FakeFederation(three_sites()))
    at = AppTest.from_file(str(APP), default_timeout=30).run()
    assert not at.exception
    assert "2 of 3 sites answer" in text(at)
    serve(FakeApi())
    at = AppTest.from_file(str(APP), default_timeout=30).run()
    assert not at.exception
    assert "104 of 512 GPUs" in text(at)


def test_names_of_sites_are_never_read_as_html(serve: Serve) -> None:
    serve(FakeFederation(three_sites(EVIL)))
    for page in ("sites", "today"):
        at = run(page)
        assert not [element for element in at.get("html") if "<img" in element.proto.body]
    assert EVIL in text(run("sites"))
