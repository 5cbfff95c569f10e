"""Jobs that are over, from the books of a real Slurm: slurmdbd on MariaDB, read by the real sacct."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from tests.scheduler import slurm_books, slurm_cluster
from tests.scheduler.slurm_cluster import Cluster, cluster

from unidle_agent.privacy import Pseudonymiser
from unidle_collector.scheduler.slurm import BOOKS_EACH_S, Slurm

LACKING = slurm_cluster.missing() or slurm_books.missing()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(LACKING), reason=LACKING or "there are books")]
HIDE = Pseudonymiser(b"a key of sixteen or more")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("books"), nodes=1, books=True) as here:
        yield here


def wait_for_the_books(slurm: Cluster, **states: str) -> None:
    """Until sacct says this of each job; slurmctld tells slurmdbd every few seconds."""
    deadline = time.monotonic() + 30
    while True:
        lines = slurm.call("sacct", "-X", "-n", "-P", "-o", "JobIDRaw,State").splitlines()
        found = dict(line.split("|") for line in lines)
        if all(found.get(job.removeprefix("j"), "").startswith(state) for job, state in states.items()):
            return
        assert time.monotonic() < deadline, f"expected {states}, came {found}"
        time.sleep(0.2)


def test_jobs_that_the_controller_has_forgotten_are_read_from_the_books(slurm: Cluster) -> None:
    done = slurm.submit("--gres=gpu:b200:3", "--mem=100", "--time=60", runs="true")
    broken = slurm.submit("--gres=gpu:2", "--mem=100", "--time=5", runs="exit 3")
    share = slurm.submit("--partition=shared", "--gres=shard:2", "--mem=100", runs="true")
    tasks = slurm.submit("--gres=gpu:1", "--mem=100", "--array=1-2", runs="true")
    ended_early = slurm.submit("--gres=gpu:4", "--mem=100")
    slurm.wait_for(ended_early)
    never_begun = slurm.submit("--gres=gpu:8", "--mem=100")
    slurm.call("scancel", ended_early, never_begun)
    wait_for_the_books(
        slurm,
        **{f"j{done}": "COMPLETED", f"j{broken}": "FAILED", f"j{share}": "COMPLETED"},
        **{f"j{tasks}": "COMPLETED", f"j{ended_early}": "CANCELLED", f"j{never_begun}": "CANCELLED"},
    )
    slurm.forget_jobs()

    snapshot = Slurm(HIDE, environ=slurm.environ).read()
    assert snapshot.problems == ()
    assert snapshot.jobs == ()
    asked = {
        job: snapshot.ended[job].requested_gpus for job in (done, broken, share, ended_early, never_begun)
    }
    assert asked == {done: 3, broken: 2, share: 0, ended_early: 4, never_begun: 8}
    assert len(snapshot.ended) == 7, "every task of the array is a job of its own"
    first = snapshot.ended[done]
    assert (first.state, first.partition, first.time_limit_s) == ("ended", "batch", 3600)
    assert first.user == HIDE.token("user", "root")
    assert first.submitted_ns is not None
    assert first.started_ns is not None
    assert first.submitted_ns <= first.started_ns
    assert snapshot.ended[share].partition == "shared"
    assert snapshot.ended[tasks].requested_gpus == 1


def test_books_that_are_away_are_told_until_they_are_back_and_the_rest_goes_on(slurm: Cluster) -> None:
    now_s = 0.0
    source = Slurm(HIDE, environ=slurm.environ, monotonic=lambda: now_s)
    assert source.read().problems == ()
    slurm.stop_books()
    try:
        now_s += BOOKS_EACH_S
        for _ in range(2):  # the second look asks no sacct: what the first one met still holds
            away = source.read()
            assert {node.name for node in away.nodes} == {"gpu1", "gpushard"}
            (problem,) = away.problems
            assert problem.startswith("sacct failed")
            now_s += BOOKS_EACH_S / 10
    finally:
        slurm_books.start_books(slurm.folder, slurm.environ)
    now_s += BOOKS_EACH_S
    assert source.read().problems == ()
