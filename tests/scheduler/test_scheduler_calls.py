"""Commands that hang, fail, say nonsense or say too much; the source that runs them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.fakes import FakeClock

from unidle_agent.privacy import Pseudonymiser
from unidle_collector.scheduler import SchedulerError
from unidle_collector.scheduler.calls import run
from unidle_collector.scheduler.slurm import Slurm

HERE = Path(__file__).parent
HIDE = Pseudonymiser(b"a key of sixteen or more")


def program(folder: Path, name: str, script: str) -> str:
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return str(file)


def alive(pid_file: Path) -> bool:
    """Does a process run whose number a program wrote; one that ended and waits to be reaped does not."""
    stat = Path(f"/proc/{pid_file.read_text().strip()}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_what_a_command_prints_comes_back_whole(tmp_path: Path) -> None:
    path = program(tmp_path, "squeue", 'head -c 300000 /dev/zero; echo "$1 $LANG" >&2')
    assert run([path, "--json"], 20) == bytes(300_000)


@pytest.mark.parametrize(
    "script",
    [
        pytest.param("sleep 60 & echo $! > pid; wait", id="says nothing"),
        pytest.param("sleep 60 & echo $! > pid; exit 0", id="leaves a child that holds the pipe"),
        pytest.param("sleep 60 & echo $! > pid; while :; do echo x; sleep 0.01; done", id="drips"),
        pytest.param("sleep 60 & echo $! > pid; while :; do echo x; done", id="never stops talking"),
        pytest.param(
            "sleep 60 >&- 2>&- & echo $! > pid; exec >&- 2>&-; wait", id="closes its output and stays"
        ),
    ],
)
def test_a_command_that_hangs_is_killed_with_its_children(
    tmp_path: Path, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SchedulerError, match=r"squeue: no whole answer within 0\.5 s"):
        run([program(tmp_path, "squeue", script)], 0.5)
    for _ in range(200):
        if not alive(tmp_path / "pid"):
            return
        time.sleep(0.01)
    pytest.fail("the child outlived the call")


def test_a_command_that_says_too_much_is_cut_off(tmp_path: Path) -> None:
    path = program(tmp_path, "squeue", "head -c 100000000 /dev/zero")
    with pytest.raises(SchedulerError, match="squeue: expected at most 1000000 bytes, came more"):
        run([path], 20, most_bytes=1_000_000)


def test_a_command_that_fails_says_its_last_line(tmp_path: Path) -> None:
    path = program(
        tmp_path, "squeue", "echo first >&2; echo 'error: Unable to contact slurm controller' >&2; exit 1"
    )
    with pytest.raises(
        SchedulerError, match=r"squeue failed \(1\): error: Unable to contact slurm controller"
    ):
        run([path], 20)


def test_a_command_that_is_not_there_says_what_to_do() -> None:
    with pytest.raises(SchedulerError, match="set slurm_bin_dir"):
        run(["/nowhere/squeue"], 20)


def recorded(folder: Path, shape: str) -> Path:
    """Commands that print the golden files, each noting that it was called."""
    for name in ("squeue", "sinfo", "sacct"):
        program(folder, name, f'echo "{name} $*" >> {folder}/calls; cat {HERE}/{shape}/{name}.json')
    program(folder, "scontrol", f'echo "scontrol $*" >> {folder}/calls; cat {HERE}/{shape}/scontrol.json')
    return folder


def slurm(folder: Path, now_s: list[float], **more: object) -> Slurm:
    return Slurm(HIDE, bin_dir=str(folder), clock_ns=FakeClock(), monotonic=lambda: now_s[0], **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", ["slurm_22_05", "slurm_24_05"])
def test_one_look_brings_jobs_nodes_and_the_books(tmp_path: Path, shape: str) -> None:
    snapshot = slurm(recorded(tmp_path / "bin", shape), [0.0]).read()
    assert (snapshot.cluster, snapshot.scheduler) == ("ci", "slurm")
    assert snapshot.taken_ns == FakeClock().now_ns
    assert len(snapshot.nodes) == 4
    assert set(snapshot.ended) == {"9", "70"}
    assert "9" not in {job.id for job in snapshot.jobs}
    (problem,) = snapshot.problems
    assert "job 11" in problem


def test_a_slurm_that_groups_its_nodes_is_asked_otherwise_from_then_on(tmp_path: Path) -> None:
    folder, now_s = recorded(tmp_path / "bin", "slurm_24_05"), [0.0]
    source = slurm(folder, now_s)
    source.read()
    source.read()
    calls = (folder / "calls").read_text().splitlines()
    assert [call.split()[0] for call in calls] == [
        "squeue",
        "sinfo",
        "scontrol",
        "sacct",
        "squeue",
        "scontrol",
    ]
    assert calls[2] == "scontrol show nodes --json"


def test_the_books_are_read_each_five_minutes_and_only_what_is_new(tmp_path: Path) -> None:
    folder, now_s = recorded(tmp_path / "bin", "slurm_22_05"), [0.0]
    source = slurm(folder, now_s)
    for now_s[0] in (0.0, 30.0, 299.0, 301.0):
        source.read()
    calls = [call for call in (folder / "calls").read_text().splitlines() if call.startswith("sacct")]
    assert len(calls) == 2
    first, second = (call.split("--starttime=")[1].split()[0] for call in calls)
    assert first < second, "six hours back at the start, then ten minutes"


def test_a_site_without_books_is_no_problem_and_a_broken_sacct_is_one(tmp_path: Path) -> None:
    folder = recorded(tmp_path / "bin", "slurm_22_05")
    program(folder, "sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert [text for text in slurm(folder, [0.0]).read().problems if "sacct" in text] == []
    program(folder, "sacct", "echo 'sacct: error: slurmdbd is away' >&2; exit 1")
    found = slurm(folder, [0.0]).read()
    assert [text for text in found.problems if "slurmdbd is away" in text]
    assert found.jobs


@pytest.mark.parametrize("command", ["squeue", "sinfo"])
def test_without_jobs_or_nodes_there_is_no_snapshot(tmp_path: Path, command: str) -> None:
    folder = recorded(tmp_path / "bin", "slurm_22_05")
    program(folder, command, "echo garbage")
    with pytest.raises(SchedulerError, match="expected JSON, came b'garbage"):
        slurm(folder, [0.0]).read()


def test_a_name_of_ones_own_wins_over_slurms(tmp_path: Path) -> None:
    folder = recorded(tmp_path / "bin", "slurm_22_05")
    assert slurm(folder, [0.0], cluster="alps").read().cluster == "alps"
