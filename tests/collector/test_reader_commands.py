"""The commands that read a collector: top, explain, recommend; what a person sees."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from tests.dashboard.fake_api import FakeApi, serving

from unidle_agent.cli import main


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with serving(FakeApi()) as server:
        monkeypatch.setenv("UNIDLE_READER_COLLECTOR_URL", server.url)
        monkeypatch.setenv("COLUMNS", "160")
        yield server.url


def test_top_shows_the_fleet_its_states_and_the_open_incidents(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["top", "--once"]) == 0
    out = capsys.readouterr().out
    assert "SIMULATED" in out
    assert "64 nodes, 512 GPUs" in out
    assert "GPU-h lost to jobs" in out
    for incident in FakeApi().incidents("open"):
        assert incident.id in out


def test_top_tells_whose_gpus_are_in_doubt(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--once"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if " GPU " in line and ": " in line][:3] == [
        "b200-42 GPU 3: allocated to job notebook-eval, but used by job sweep-0398",
        "b200-56 GPU 5: still used by processes of jobs notebook-31 and sweep-0398, which have ended",
        "b200-57 GPU 0: used outside the scheduler, by processes of no job",
    ]


def test_top_says_how_many_nodes_it_does_not_show(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--once", "--nodes", "3"]) == 0
    assert "and 61 more nodes" in capsys.readouterr().out


def test_recommend_shows_gain_risk_command_and_undo(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend"]) == 0
    out = capsys.readouterr().out
    for word in ("would win", "bound by", "risk", "owner", "undo", "measured", "$ "):
        assert word in out
    assert main(["recommend", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == len(FakeApi().recommendations())


def test_explain_tells_a_kind_and_an_incident(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain"]) == 0
    assert "starvation" in capsys.readouterr().out
    assert main(["explain", "throttling_power"]) == 0
    page = capsys.readouterr().out
    assert "How it decides" in page
    assert "How to silence it" in page
    incident = FakeApi().incidents("open")[0]
    assert main(["explain", incident.id]) == 0
    story = capsys.readouterr().out
    assert incident.finding.title in story
    assert "evidence" in story


def test_a_collector_that_is_not_there_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UNIDLE_READER_COLLECTOR_URL", "http://127.0.0.1:9")
    assert main(["top", "--once"]) == 1
    error = capsys.readouterr().err
    assert "no collector answers at http://127.0.0.1:9" in error
    assert "unidle collector" in error
    assert len(error.splitlines()) == 1
