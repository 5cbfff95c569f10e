"""Team and partition of a job's time: known for as long as the time is, over restarts and kill -9."""

from __future__ import annotations

import json
import shutil
import signal
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.collector.pushing import START_S, batch
from tests.collector.test_keeping import killed, save
from tests.e2e.processes import Role, free_port, roles, wait_for
from tests.scheduler.test_scheduler_calls import program
from tests.scheduler.test_scheduler_live import BUSY, CPU_ONLY, TRAIN, ScheduledSite, scheduled

from unidle_agent.wire import Owner, encode

DIMENSIONS = ("team", "partition")
DAY_S = 86_400
SEEN = Owner(True, TRAIN.id, source="cgroup", confidence="inferred")
"""The agent's word, which is in the rows."""


def whose(here: ScheduledSite, window_s: float = 3600) -> dict[str, dict[str, dict[str, float]]]:
    """Dimension -> key -> GPU-seconds by state."""
    return {
        by: {one["key"]: one["seconds"] for one in here.get("accounts", by=by, window_s=window_s)}  # type: ignore[index]
        for by in DIMENSIONS
    }


def over(here: ScheduledSite) -> None:
    """The scheduler knows the job no more."""
    here.scheduler.jobs = (CPU_ONLY,)
    here.ask()


def test_a_job_that_ended_before_the_last_checkpoint_keeps_its_team_over_kill_9(tmp_path: Path) -> None:
    with scheduled(tmp_path / "a") as here:
        here.play(0, 0, BUSY)
        here.ask()
        here.play(1, 30, BUSY)
        over(here)
        save(here)
        before = whose(here)
        image = killed(here, tmp_path / "b")
        (image / "scheduler.json").unlink()  # as where it was written long ago
    assert before["team"]["climate"]["productive"] > 0
    with scheduled(image) as here:
        here.scheduler.jobs = ()
        here.clock.at_s = START_S + 63
        here.ask()
        assert whose(here) == before


def test_a_job_that_came_and_went_between_two_checkpoints_keeps_its_team_over_kill_9(tmp_path: Path) -> None:
    with scheduled(tmp_path / "a") as here:
        save(here)
        here.play(0, 0, BUSY, SEEN)
        here.ask()
        here.play(1, 30, BUSY, SEEN)
        for _ in range(3):
            here.clock.at_s += 10
            over(here)
        image = killed(here, tmp_path / "b")
    for again in ("c", "d"):  # the second time before the next checkpoint, too
        with scheduled(image) as here:
            here.scheduler.jobs = ()
            here.settle(120)
            found = whose(here)
            (job,) = here.get("accounts", by="job")
            assert job["seconds"]["productive"] >= 60  # type: ignore[index]
            assert found["team"]["climate"] == found["partition"]["batch"] == job["seconds"]  # type: ignore[index]
            here.ask()
            image = killed(here, tmp_path / again)


def test_hours_that_are_read_from_disk_know_the_team_that_nobody_remembers(tmp_path: Path) -> None:
    with scheduled(tmp_path) as here:
        here.play(0, 0, BUSY)
        here.ask()
        here.play(1, 30, BUSY)
        over(here)
        here.settle(20 * DAY_S)
        save(here)
        before = whose(here, 30 * DAY_S)
        here.play(2, 20 * DAY_S, BUSY)
        save(here)
    (tmp_path / "scheduler.json").unlink()
    with scheduled(tmp_path) as here:
        assert here.live.attribution.ownership.dimensions("7").team == ""
        here.settle(20 * DAY_S + 60)
        after = whose(here, 30 * DAY_S)
        for by, key in (("team", "climate"), ("partition", "batch")):
            assert after[by][key] == before[by][key]


def test_hours_of_a_version_that_kept_no_teams_are_read(tmp_path: Path) -> None:
    with scheduled(tmp_path) as here:
        here.play(0, 0, BUSY)
        here.ask()
        here.play(1, 30, BUSY)
        over(here)
        here.settle(2 * 3600 + 60)
        save(here)
    (tmp_path / "scheduler.json").unlink()
    checkpoint = (tmp_path / "accounts" / "checkpoint").read_bytes()
    assert b'"dimensions"' in checkpoint
    for path in sorted((tmp_path / "accounts" / "hours").iterdir()):
        table = pq.read_table(path)
        assert set(DIMENSIONS) <= set(table.schema.names)
        pq.write_table(table.drop_columns(list(DIMENSIONS)), path)
    with scheduled(tmp_path) as here:
        assert here.live.notes == []
        here.settle(2 * 3600 + 90)
        assert whose(here, 3 * 3600)["team"].keys() == {"unknown"}


def test_every_row_of_an_hour_says_its_team(tmp_path: Path) -> None:
    with scheduled(tmp_path) as here:
        here.play(0, 0, BUSY)
        here.ask()
        here.play(1, 30, BUSY)
        here.settle(2 * 3600 + 60)
        save(here)
    first = sorted((tmp_path / "accounts" / "hours").iterdir())[0]
    rows = pa.Table.to_pylist(pq.read_table(first, columns=["owner", "team", "partition"]))
    said = {(json.loads(row["owner"])["job"], row["team"], row["partition"]) for row in rows}
    assert ("7", TRAIN.team, TRAIN.partition) in said
    assert all((team, partition) == ("", "") for job, team, partition in said if job != "7")


@pytest.mark.slow
def test_a_real_collector_that_is_killed_knows_whose_time_it_was(tmp_path: Path) -> None:
    """The scheduler's golden files name a job; it is over before the kill."""
    golden = Path(__file__).parents[1] / "scheduler" / "slurm_22_05"
    commands = tmp_path / "bin"
    for name in ("squeue", "sinfo"):
        program(commands, name, f"cat {commands}/{name}.json")
        shutil.copy(golden / f"{name}.json", commands / f"{name}.json")
    program(commands, "sacct", "exit 1")
    said = json.loads((golden / "squeue.json").read_text())
    running = next(job for job in said["jobs"] if job["job_id"] == 2)
    port = free_port()
    settings = {
        "port": str(port),
        "data_dir": str(tmp_path / "data"),
        "scheduler": "slurm",
        "scheduler_poll_s": "5",
        "slurm_bin_dir": str(commands),
        "push_token": "push-token-of-the-test",
    }

    def get(path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/{path}", timeout=5) as answer:
            return json.load(answer)

    def shares() -> dict[str, dict[str, float]]:
        return {
            by: {one["key"]: one["seconds"] for one in get(f"accounts?by={by}&window_s=7200")}
            for by in DIMENSIONS
        }

    with roles(tmp_path) as start:
        collector: Role = start("collector", settings)
        wait_for(lambda: get("queue")["scheduler"]["taken_ns"], "the scheduler's word")
        now_s = int(time.time())
        owner = Owner(True, str(running["job_id"]), source="cgroup", confidence="inferred")
        for seq in range(3):
            item = batch(seq, now_s - START_S - 90 + 30 * seq, 30, BUSY)
            facts = tuple(replace(one, owner=owner) for one in item.facts or ())
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/api/v1/push",
                data=encode(replace(item, facts=facts)),
                headers={"Authorization": "Bearer push-token-of-the-test"},
            )
            with urllib.request.urlopen(request, timeout=5) as answer:
                assert answer.status == 200
        wait_for(lambda: running["account"] in shares()["team"], "time of that team")
        said["jobs"] = []
        (commands / "squeue.json").write_text(json.dumps(said))
        gone_ns = time.time_ns()
        wait_for(lambda: get("queue")["scheduler"]["taken_ns"] > gone_ns, "a word without the job")
        wait_for(lambda: shares()["team"][running["account"]]["productive"] > 60, "its whole time")
        before = shares()
        collector.process.send_signal(signal.SIGKILL)
        collector.process.wait()
        start("collector", settings)
        wait_for(lambda: get("queue")["scheduler"]["taken_ns"] > gone_ns, "the collector again")
        after = wait_for(
            lambda: (found := shares())["team"].keys() >= before["team"].keys() and found,
            "the accounts again",
        )
    for by, key in (("team", running["account"]), ("partition", running["partition"])):
        assert after[by][key]["productive"] >= before[by][key]["productive"]
