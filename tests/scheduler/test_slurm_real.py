"""A real Slurm of Debian's packages, asked by its own commands."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.collector.pushing import START_S, FakeTime, batch
from tests.scheduler.slurm_cluster import Cluster, cluster, missing

from unidle_agent.privacy import Pseudonymiser
from unidle_agent.wire import encode
from unidle_collector.api import create_app
from unidle_collector.ingest.tokens import Tokens
from unidle_collector.live import Live
from unidle_collector.scheduler import Grant, SchedulerError
from unidle_collector.scheduler.slurm import Slurm
from unidle_collector.settings import CollectorSettings
from unidle_collector.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing() or "there is one")]
HIDE = Pseudonymiser(b"a key of sixteen or more")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("slurm")) as here:
        yield here


def asked(slurm: Cluster, deadline_s: float = 20.0) -> Slurm:
    return Slurm(HIDE, environ=slurm.environ, deadline_s=deadline_s)


def test_jobs_of_a_real_slurm_are_seen_with_their_gpus_limits_and_owner(slurm: Cluster) -> None:
    three = slurm.submit("--gres=gpu:b200:3", "--mem=1000", "--time=60", "--nodelist=gpu1")
    both = slurm.submit("--nodes=2", "--gres=gpu:2", "--mem=500", "--time=30", "--constraint=b200")
    slurm.wait_for(three, both)
    waits = slurm.submit("--gres=gpu:8", "--mem=500", "--array=1-3")
    slurm.wait_for(waits, state="PENDING")

    snapshot = asked(slurm).read()
    found = {job.id: job for job in snapshot.jobs}
    assert snapshot.problems == ()
    assert (snapshot.cluster, snapshot.version) == ("ci", slurm.call("sinfo", "--version").split()[-1])
    assert found[three].grants == (Grant("gpu1", 3, (0, 1, 2), "b200"),)
    assert found[three].user == HIDE.token("user", "root")
    assert (found[three].time_limit_s, found[three].requested_gpus) == (3600, 3)
    assert found[three].interactive is False
    assert found[both].grants == (Grant("gpu1", 2, (3, 4), "b200"), Grant("gpu2", 2, (0, 1), "b200"))
    assert (found[both].requested_gpus, found[both].features) == (4, "b200")
    waiting = [job for job in snapshot.jobs if job.state == "pending"]
    assert [(job.array, job.tasks, job.requested_gpus) for job in waiting] == [(f"{waits}_[1-3]", 3, 8)]
    nodes = {node.name: node for node in snapshot.nodes}
    assert (nodes["gpu1"].gpus_used, nodes["gpu1"].indices_used) == (5, (0, 1, 2, 3, 4))
    assert nodes["gpushard"].gpus_used == 0
    assert all(node.available for node in snapshot.nodes)


def test_a_drained_node_is_closed_and_says_why(slurm: Cluster) -> None:
    slurm.call("scontrol", "update", "nodename=gpushard", "state=drain", "reason=unidle: hot")
    try:
        (node,) = [node for node in asked(slurm).read().nodes if node.name == "gpushard"]
    finally:
        slurm.call("scontrol", "update", "nodename=gpushard", "state=resume")
    assert (node.available, node.down, node.reason) == (False, False, "unidle: hot")


def test_shards_of_one_gpu_are_a_share_of_it(slurm: Cluster) -> None:
    jobs = [slurm.submit("--partition=shared", "--gres=shard:1", "--mem=100") for _ in range(2)]
    slurm.wait_for(*jobs)
    snapshot = asked(slurm).read()
    assert snapshot.problems == ()
    held = [job.grants for job in snapshot.jobs if job.id in jobs]
    assert held == [(Grant("gpushard", 1, (0,), "", shared=True),)] * 2


def test_a_collector_that_asks_a_real_slurm_knows_whose_its_gpus_are(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", slurm.environ["SLURM_CONF"])
    number = slurm.submit("--partition=shared", "--gres=gpu:b200:2", "--mem=100", "--time=60")
    slurm.wait_for(number)
    held = slurm.call("squeue", "-h", "-j", number, "-o", "%N").strip()
    assert held == "gpushard"
    settings = CollectorSettings(
        data_dir=tmp_path, allowed_hosts=("testserver",), scheduler="slurm", privacy="internal"
    )
    clock = FakeTime(START_S)
    live = Live(settings, Store(tmp_path), clock)
    http = TestClient(
        create_app(live, Tokens(live.store.state, clock, shared_write="push-token", shared_read=""))
    )
    names = tuple(f"GPU-{index}" for index in range(8))
    item = batch(0, 0, 5, {"gpu_util_ratio": 0.5}, node=held, gpus=names)
    clock.at_s += 5
    live.start()
    try:
        assert live.push(encode(item), clock(), None).result(30).ack == 0
        clock.at_s += 3
        job: dict[str, Any] = {}
        deadline = time.monotonic() + 30
        while not job.get("gpus") and time.monotonic() < deadline:
            found = http.get("/api/v1/jobs").json()
            job = next((one for one in found if one["job"] == number), {})
            time.sleep(0.05)
    finally:
        live.stop()
    assert (job["user"], job["partition"], job["source"]) == ("root", "shared", "slurm")
    assert (job["granted_gpus"], len(job["gpus"]), job["time_limit_s"]) == (2, 2, 3600)


def test_a_dead_controller_costs_the_deadline_and_no_more(tmp_path: Path) -> None:
    with cluster(tmp_path / "dying", nodes=1) as dying:
        asked(dying).read()
        dying.stop_controller()
        with pytest.raises(SchedulerError, match="squeue"):
            asked(dying, deadline_s=1.0).read()
