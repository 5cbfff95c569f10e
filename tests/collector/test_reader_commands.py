"""The commands that read a collector: top, explain, recommend, flight; what a person sees."""

from __future__ import annotations

import argparse
import csv
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.collector.api_server import listening
from tests.collector.pushing import site
from tests.dashboard.fake_api import FakeApi, serving

from unidle_agent.cli import main
from unidle_agent.errors import UnidleError
from unidle_collector.commands import flight as command


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


THROTTLED, IDLE = "inc-1004", "inc-1006"


def flight(*words: str) -> int:
    """The command without its entry point: an installation may be older than this tree."""
    parser = argparse.ArgumentParser()
    command.arguments(parser)
    return command.run(parser.parse_args(words))


def test_flight_draws_each_field_over_its_two_minutes_and_says_simulated(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert flight(THROTTLED) == 0
    out = capsys.readouterr().out
    assert "SIMULATED  b200-33 GPU-" in out
    assert "asked by the collector" in out
    assert "600 looks in 119.8 s, 11:03:10.2 to 11:05:10.0 UTC" in out
    (clock,) = [line.split() for line in out.splitlines() if "sm_clock_hz" in line]
    assert clock[1] == "MHz"
    assert set(clock[2][:45]) <= set("▇█"), "fast first ..."
    assert set(clock[2][46:]) <= set("▁▂"), "... then held back"
    assert (clock[3], clock[4]) == ("1336.5", "1984.6")
    (bits,) = [line.split() for line in out.splitlines() if "clock_event_reasons" in line]
    assert bits[-2:] == ["0x40", "0x40"]


def test_flight_writes_every_look_as_csv_with_unknown_left_empty(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "looks.csv"
    assert flight(THROTTLED, "--csv", str(file)) == 0
    assert capsys.readouterr().out == f"{file}: 600 looks of 1 recording\n"
    with file.open() as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 600
    assert {row["simulated"] for row in rows} == {"SIMULATED"}
    assert (rows[0]["gpu_util_ratio"], rows[0]["power_w"], rows[1]["power_w"]) == ("1.0", "900.0", "")
    assert rows[-1]["time_utc"] == "2026-11-21T11:05:10.000+00:00"
    with pytest.raises(UnidleError, match="expected a file that can be written"):
        flight(THROTTLED, "--csv", str(tmp_path))


def test_flight_of_an_incident_without_one_says_so_and_fails(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert flight(IDLE) == 1
    assert "No flight recording of incident inc-1006" in capsys.readouterr().out


def test_a_collector_that_is_not_there_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UNIDLE_READER_COLLECTOR_URL", "http://127.0.0.1:9")
    assert main(["top", "--once"]) == 1
    error = capsys.readouterr().err
    assert "no collector answers at http://127.0.0.1:9" in error
    assert "unidle collector" in error
    assert len(error.splitlines()) == 1


def test_for_scripts_top_and_explain_give_what_they_show_as_json(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["top", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["fleet"]["gpus"], len(shown["gpus"]), shown["fleet"]["simulated"]) == (512, 512, True)
    assert [item["id"] for item in shown["incidents"]] == [item.id for item in FakeApi().incidents("open")]
    assert main(["explain", "--json"]) == 0
    kinds = {row["kind"]: row["summary"] for row in json.loads(capsys.readouterr().out)}
    assert kinds["starvation"]
    incident = FakeApi().incidents("open")[0]
    assert main(["explain", incident.id, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["kind"], told["incident"]["id"]) == (incident.finding.kind, incident.id)
    assert "How it decides" in told["page"]


def test_a_misspelt_kind_is_told_the_nearest_one(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "straggeler"]) == 1
    assert "'straggeler' is no kind of finding, did you mean 'straggler'?" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["10.0.0.5:9470", "ftp://10.0.0.5", "nonsense"])
def test_an_address_that_is_none_is_said_before_anything_is_asked(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recommend", "--collector-url", address]) == 2
    assert "expected an address that begins with http:// or https://" in capsys.readouterr().err


def test_a_collector_that_does_not_speak_tls_is_told_so(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", "--collector-url", url.replace("http:", "https:")]) == 1
    assert "(it does not speak TLS: try http://)" in capsys.readouterr().err


def test_what_speaks_no_http_is_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            other, _ = server.accept()
            other.recv(65536)
            other.sendall(b"INFO {}\r\n")
            other.close()

        thread = threading.Thread(target=greet)
        thread.start()
        assert main(["recommend", "--collector-url", f"http://127.0.0.1:{server.getsockname()[1]}"]) == 1
        thread.join()
    assert "does not speak HTTP" in capsys.readouterr().err


def test_a_token_that_is_missing_or_wrong_is_said_in_the_flags_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("s3cret")
    with site(tmp_path / "data", read_token="right") as here, listening(here) as address:
        asked = ["recommend", "--collector-url", address]
        assert main(asked) == 1
        assert "wants a read token: give one with --collector-token-file FILE" in capsys.readouterr().err
        assert main([*asked, "--collector-token-file", str(wrong)]) == 1
        said = capsys.readouterr().err
    assert "does not take this read token" in said
    assert "s3cret" not in said


@pytest.mark.parametrize("columns", ["60", "80", "160"])
def test_a_narrow_terminal_still_says_what_every_incident_is(
    columns: str, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    for words in (["top", "--once"], ["recommend"]):
        assert main(words) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(len(line) for line in lines if "$ " not in line) <= int(columns)
        if words[0] == "top":
            shown = "".join("".join(lines).split())
            for word in ("whisper-finetune", "notebook-eval", "slower"):
                assert word in shown


def test_what_a_recommendation_says_folds_behind_its_label(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["recommend"]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    at = next(number for number, line in enumerate(lines) if line.startswith("   assumes     "))
    assert lines[at + 1].startswith(" " * 15 + "least 24 GPUs")


def test_what_is_piped_is_fitted_to_no_window(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS")
    assert main(["recommend"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) > 100
