"""`unidle scheduler` and the check of `unidle doctor`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from unidle_agent.errors import UnidleError, UsageError
from unidle_collector import checks
from unidle_collector.commands import scheduler

HERE = Path(__file__).parent


def call(*flags: str) -> int:
    parser = argparse.ArgumentParser()
    scheduler.arguments(parser)
    return scheduler.run(parser.parse_args(flags))


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("squeue", "sinfo", "sacct"):
        (folder / name).write_text(f"#!/bin/sh\ncat {HERE}/slurm_22_05/{name}.json\n")
        (folder / name).chmod(0o755)
    return folder


def test_it_prints_what_one_look_brings(
    commands: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    assert call("--scheduler", "slurm", "--slurm-bin-dir", str(commands), "--data-dir", str(data)) == 0
    said = capsys.readouterr().out
    assert "slurm 22.05.8, cluster ci, read in" in said
    assert "nodes    4 with 32 GPUs; 2 closed, 1 down" in said
    assert "jobs     3 pending, 5 running; 4 hold 10 GPUs" in said
    assert "queue    7 wait for 19 GPUs" in said
    assert "(climate/batch): gpu1: 3 b200 [0, 1, 2]" in said
    assert "problem: 1 of 10 jobs cannot be read" in said
    assert "ada" not in said
    assert not data.exists(), "who looks leaves no key behind"


def test_without_a_scheduler_it_says_what_to_set() -> None:
    with pytest.raises(UsageError, match="set scheduler"):
        call()


def test_as_json_everything_that_was_taken_over_comes_and_nothing_else(
    commands: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(tmp_path / "data")
    assert call("--scheduler", "slurm", "--slurm-bin-dir", str(commands), "--data-dir", data, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["version"], said["cluster"], len(said["nodes"])) == ("22.05.8", "ci", 4)
    assert len(said["jobs"]) == 8
    assert said["problems"][0].startswith("1 of 10 jobs cannot be read")
    assert "ada" not in json.dumps(said)


def test_a_scheduler_that_cannot_be_asked_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UnidleError, match="expected a command to run"):
        call("--scheduler", "slurm", "--slurm-bin-dir", str(tmp_path), "--data-dir", str(tmp_path))


@pytest.mark.parametrize(
    ("kind", "status", "found"),
    [
        ("none", "absent", "no scheduler"),
        ("slurm", "warn", "4 nodes, 8 jobs"),
        ("kubernetes", "fail", "API server"),
    ],
)
def test_doctor_says_whether_the_scheduler_answers(
    kind: str, status: str, found: str, commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNIDLE_COLLECTOR_SCHEDULER", kind)
    monkeypatch.setenv("UNIDLE_COLLECTOR_SLURM_BIN_DIR", str(commands))
    monkeypatch.setenv("UNIDLE_COLLECTOR_DATA_DIR", str(tmp_path / "data"))
    result = checks.scheduler()
    assert result.status == status
    assert found in result.found
