"""A running collector that asks a scheduler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.collector.api_server import listening
from tests.collector.pushing import START_S, FakeTime, Site, Values, batch

from unidle_agent.errors import UnidleError
from unidle_agent.wire import GpuFacts, Owner
from unidle_collector import attribution
from unidle_collector.api import create_app
from unidle_collector.client import Client
from unidle_collector.ingest.tokens import Tokens
from unidle_collector.live import Live
from unidle_collector.scheduler import Grant, Job, Node, SchedulerError, Snapshot
from unidle_collector.settings import CollectorSettings
from unidle_collector.store import Store

BUSY: Values = {"gpu_util_ratio": 0.9, "sm_active_ratio": 0.8, "power_w": 600.0, "memory_used_bytes": 3e10}
EMPTY: Values = {"gpu_util_ratio": 0.0, "sm_active_ratio": 0.0, "power_w": 90.0, "memory_used_bytes": 0.0}
NODE = Node("n1", ("mixed",), True, False, gpus=2, gpus_used=1, indices_used=(0,))
TRAIN = Job(
    "7",
    "running",
    user="user-aaaa-ada",
    team="climate",
    partition="batch",
    grants=(Grant("n1", 1, (0,), "b200"),),
    requested_gpus=1,
    time_limit_s=3600,
    started_ns=START_S * 10**9,
)
ARRAY = Job("9", "pending", array="9_[1-3]", tasks=3, requested_gpus=8, reason="Priority", submitted_ns=1)
CPU_ONLY = Job("10", "pending", requested_gpus=0)


class FakeScheduler:
    """Never asked by the poller's thread but once: the test looks itself."""

    name = "slurm"

    def __init__(self, clock: FakeTime) -> None:
        self.clock = clock
        self.jobs: tuple[Job, ...] = (TRAIN, ARRAY, CPU_ONLY)
        self.nodes = (NODE,)
        self.error = ""

    def read(self) -> Snapshot:
        if self.error:
            raise SchedulerError(self.error)
        return Snapshot("slurm", "ci", "22.05.8", self.clock(), self.jobs, self.nodes)


class ScheduledSite(Site):
    """A site whose collector asks a fake scheduler when the test says `look`."""

    def __init__(self, directory: Path) -> None:
        self.clock = FakeTime(START_S)
        self.scheduler = FakeScheduler(self.clock)
        settings = CollectorSettings(data_dir=directory, allowed_hosts=("testserver", "127.0.0.1"))
        self.live = Live(settings, Store(directory), self.clock, self.scheduler)
        poller = self.live.attribution._poller
        assert poller is not None
        self.look = poller.look
        poller.start = lambda: None  # type: ignore[method-assign]
        self.live.start()
        self.tokens = Tokens(self.live.store.state, self.clock, shared_write=self.token, shared_read="")
        self.http = TestClient(create_app(self.live, self.tokens))

    def play(self, seq: int, first_s: int, values: Values, owner: Owner | None = None) -> None:
        self.clock.at_s = START_S + first_s + 30
        item = batch(seq, first_s, 30, values)
        if owner is not None:
            facts = tuple(
                GpuFacts(uuid, n, "NVIDIA H100", minor=n, owner=owner) for n, uuid in enumerate(item.gpus)
            )
            item = replace(item, facts=facts)
        assert self.push(item)[0] == 200
        self.settle(first_s + 33)

    def ask(self) -> None:
        """One look at the scheduler, taken in."""
        self.look()
        self.live.ask(lambda: None).result(30)


@contextmanager
def scheduled(directory: Path) -> Iterator[ScheduledSite]:
    here = ScheduledSite(directory)
    try:
        yield here
    finally:
        here.live.stop()


def gpus(here: Site) -> dict[str, dict[str, Any]]:
    return {gpu["gpu"]: gpu for gpu in here.get("gpus")}  # type: ignore[index]


def test_a_gpu_that_only_the_scheduler_knows_has_its_job_and_the_free_one_is_free(tmp_path: Path) -> None:
    with scheduled(tmp_path) as here:
        here.play(0, 0, EMPTY)
        assert {gpu["inferred"] for gpu in gpus(here).values()} == {True}
        here.ask()
        here.play(1, 30, EMPTY)
        found = gpus(here)
        assert (found["GPU-a"]["job"], found["GPU-a"]["inferred"]) == ("7", False)
        assert (found["GPU-b"]["job"], found["GPU-b"]["state"]) == ("", "unallocated")
        assert found["GPU-b"]["inferred"] is False
        (job,) = here.get("jobs")
        assert (job["job"], job["user"]) == ("7", "user-aaaa-ada")
        assert (job["team"], job["partition"]) == ("climate", "batch")
        assert (job["granted_gpus"], job["time_limit_s"]) == (1, 3600)
        assert (job["source"], job["confidence"]) == ("slurm", "high")
        assert [gpu["gpu"] for gpu in job["gpus"]] == ["GPU-a"]


def test_a_process_on_a_gpu_that_was_given_to_nobody_is_told(tmp_path: Path) -> None:
    with scheduled(tmp_path) as here:
        used = Owner(True, "7", source="cgroup", confidence="inferred")
        here.play(0, 0, BUSY, used)
        here.clock.at_s += 1
        here.ask()
        assert [gpu["job"] for gpu in gpus(here).values()] == ["7", ""]
        first, second = gpus(here).values()
        assert (first["owner_source"], first["owner_confidence"]) == ("cgroup+slurm", "high")
        assert (second["owner_note"], second["used_by"]) == ("not allocated", "7")


def test_a_node_that_its_scheduler_calls_down_has_failed_even_while_it_pushes(tmp_path: Path) -> None:
    with scheduled(tmp_path) as here:
        here.play(0, 0, BUSY)
        here.scheduler.nodes = (replace(NODE, states=("down",), available=False, down=True),)
        here.ask()
        for seq in range(1, 5):
            here.play(seq, 30 * seq, BUSY)
        assert {gpu["state"] for gpu in gpus(here).values()} == {"failed"}
        assert {one["finding"]["kind"] for one in here.get("incidents")} == {"node_down"}
        assert here.get("fleet")["account"]["seconds"]["failed"] == pytest.approx(2 * 115, abs=10)
        here.scheduler.nodes = (NODE,)
        here.ask()
        here.play(5, 150, BUSY)
        assert "failed" not in {gpu["state"] for gpu in gpus(here).values()}


@pytest.mark.parametrize("word", ["powered_down", "future", "reboot_issued"])
def test_a_node_that_is_away_by_plan_has_not_failed(tmp_path: Path, word: str) -> None:
    with scheduled(tmp_path) as here:
        here.play(0, 0, BUSY)
        here.scheduler.nodes = (replace(NODE, states=("down", word), available=False, down=True),)
        here.ask()
        here.play(1, 30, BUSY)
        assert "failed" not in {gpu["state"] for gpu in gpus(here).values()}


def test_a_scheduler_that_answers_no_more_does_not_keep_a_node_failed(tmp_path: Path) -> None:
    with scheduled(tmp_path) as here:
        here.play(0, 0, BUSY)
        here.scheduler.nodes = (replace(NODE, states=("down",), available=False, down=True),)
        here.ask()
        here.play(1, 30, BUSY)
        assert {gpu["state"] for gpu in gpus(here).values()} == {"failed"}
        here.scheduler.error = "connection refused"
        for seq in range(2, 12):
            here.play(seq, 30 * seq, BUSY)
            here.ask()
        here.play(12, 360, BUSY)
        assert "failed" not in {gpu["state"] for gpu in gpus(here).values()}


def test_the_end_of_a_job_frees_its_gpu_and_its_team_is_remembered(tmp_path: Path) -> None:
    with scheduled(tmp_path) as here:
        here.play(0, 0, BUSY)
        here.ask()
        here.scheduler.jobs = ()
        here.ask()
        # The node still counts GPU 0 as used: nobody says by whom, so nothing is concluded.
        assert gpus(here)["GPU-a"]["inferred"] is True
        assert here.live.attribution.ownership.dimensions("7").team == "climate"
        assert here.get("jobs") == []


def test_many_gpus_are_joined_part_by_part_and_none_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attribution, "JOINED_AT_ONCE", 1)
    with scheduled(tmp_path) as here:
        here.play(0, 0, EMPTY)
        here.look()
        for _ in range(2):
            here.live.ask(lambda: None).result(30)
        assert [gpu["inferred"] for gpu in gpus(here).values()] == [False, False]


def test_the_queue_says_what_waits_for_gpus(tmp_path: Path) -> None:
    with scheduled(tmp_path) as here:
        assert here.get("queue")["waiting"] is None  # type: ignore[call-overload]
        here.ask()
        queue = here.get("queue")
        assert isinstance(queue, dict)
        assert queue["gpus"] == 24
        (waits,) = queue["waiting"]
        assert (waits["job"], waits["tasks"], waits["requested_gpus"], waits["reason"]) == (
            "9",
            3,
            8,
            "Priority",
        )
        assert queue["scheduler"]["cluster"] == "ci"


def test_health_and_metrics_say_how_old_the_schedulers_word_is(tmp_path: Path) -> None:
    with scheduled(tmp_path) as here:
        here.ask()
        here.play(0, 0, BUSY)
        here.scheduler.error = "squeue: no whole answer within 20 s"
        here.ask()
        health = here.get("health")
        assert isinstance(health, dict)
        assert (health["ok"], health["scheduler"]["age_s"], health["scheduler"]["failures"]) == (True, 33, 1)
        here.play(1, 30, BUSY)
        here.play(2, 60, BUSY)
        here.ask()
        health = here.get("health")
        assert isinstance(health, dict)
        said = "slurm has not answered for 93 s, owners are the agents' word alone: "
        assert health["problems"] == [said + "squeue: no whole answer within 20 s"]
        assert gpus(here)["GPU-a"]["job"] == "7", "nobody else says anything"
        page = here.http.get("/metrics").text
        assert 'unidle_scheduler_age_seconds{scheduler="slurm"} 93' in page
        assert 'unidle_scheduler_failures{scheduler="slurm"} 2' in page
        assert 'unidle_scheduler_gpus_waiting{scheduler="slurm"} 24' in page
        here.scheduler.error = ""
        here.ask()
        assert here.get("health")["ok"] is True  # type: ignore[call-overload]


@pytest.mark.parametrize("away_s", [60, 600])
def test_a_restart_takes_no_job_for_another_however_long_it_took(tmp_path: Path, away_s: int) -> None:
    with scheduled(tmp_path) as here:
        here.play(0, 0, BUSY)
        here.ask()
        here.play(1, 30, BUSY)
    with scheduled(tmp_path) as here:
        told: list[tuple[int, str]] = []
        own = here.live.engine.own

        def noted(position: int, owner: Owner) -> None:
            told.append((position, owner.job))
            own(position, owner)

        here.live.engine.own = noted  # type: ignore[method-assign]
        assert here.get("jobs")[0]["job"] == "7"
        here.settle(60 + away_s)
        here.play(2, 60 + away_s, BUSY)
        here.ask()
        here.play(3, 90 + away_s, BUSY)
        assert gpus(here)["GPU-a"]["job"] == "7"
        assert here.get("health")["scheduler"]["stale"] is False  # type: ignore[call-overload]
        assert {job for position, job in told if position == 0} == {"7"}


def test_without_a_scheduler_nothing_is_asked_and_agents_jobs_are_listed(tmp_path: Path) -> None:
    from tests.collector.pushing import site

    with site(tmp_path) as here:
        here.clock.at_s = START_S + 5
        here.push(batch(0, 0, 5, BUSY, job="4711"))
        here.settle(8)
        (job,) = here.get("jobs")
        assert (job["job"], job["granted_gpus"], job["team"], len(job["gpus"])) == ("4711", None, "", 2)
        assert here.get("queue") == {"scheduler": None, "waiting": None, "gpus": None}
        assert here.get("health")["scheduler"] is None  # type: ignore[call-overload]
        assert "unidle_scheduler_age_seconds{" not in here.http.get("/metrics").text


def test_the_typed_client_reads_both(tmp_path: Path) -> None:
    with scheduled(tmp_path) as here, listening(here) as url:
        here.play(0, 0, BUSY)
        here.ask()
        client = Client(url)
        assert client.jobs()[0].gpus[0].gpu == "GPU-a"
        assert client.queue().gpus == 24


def test_a_collector_whose_scheduler_cannot_be_told_does_not_start(tmp_path: Path) -> None:
    settings = CollectorSettings(data_dir=tmp_path, scheduler="kubernetes", kubernetes_url="ftp://x")
    store = Store(tmp_path)
    try:
        with pytest.raises(UnidleError, match="kubernetes_url"):
            Live(settings, store)
    finally:
        store.close()
