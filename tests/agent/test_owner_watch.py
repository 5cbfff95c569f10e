"""When owners are asked for, and how answers and figures get into the ticks."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tests.agent.owner_world import SLURM_V2, Node, gpu

from unidle_agent.errors import SourceError
from unidle_agent.owners import Claims, Holder
from unidle_agent.owners.cgroup import CgroupSource
from unidle_agent.owners.watch import OwnerWatch
from unidle_agent.privacy import Pseudonymiser
from unidle_agent.sample import GpuReading, Tick
from unidle_agent.wire import Owner

OPEN = Pseudonymiser(None)
SAFETY_S = 20.0


class FakeOwners:
    """Says of every GPU that `job` has it; counts how often it was asked."""

    name = "fake"
    precedence = 1

    def __init__(self, job: str = "7") -> None:
        self.job = job
        self.asked = 0
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()

    def read(self, gpus: Sequence[GpuReading]) -> Claims:
        self.asked += 1
        assert self.gate.wait(SAFETY_S)
        if self.error:
            raise self.error
        owner = Owner(True, self.job, source="fake", confidence="high")
        return Claims(dict.fromkeys((gpu.facts.uuid for gpu in gpus), owner))

    def close(self) -> None:
        self.gate.set()


def tick(*gpus: GpuReading) -> Tick:
    return Tick(0, gpus, {}, ("host: before",))


def owner_of(watch: OwnerWatch, *gpus: GpuReading) -> Owner:
    return watch.complete(tick(*gpus)).gpus[0].facts.owner


def test_sources_are_asked_when_it_is_time_and_at_once_when_something_changes() -> None:
    now_s, fake = [0.0], FakeOwners()
    watch = OwnerWatch([fake], OPEN, 15.0, monotonic=lambda: now_s[0])
    watch.refresh([gpu(0, 1)])
    watch.refresh([gpu(0, 1)])
    assert fake.asked == 1
    watch.refresh([gpu(0, 1, 2)])
    assert fake.asked == 2, "a new process"
    watch.refresh([gpu(0, 1, 2, owner=Owner(True, "8", source="dcgm-labels"))])
    assert fake.asked == 3, "another label"
    now_s[0] = 15.0
    watch.refresh([gpu(0, 1, 2, owner=Owner(True, "8", source="dcgm-labels"))])
    assert fake.asked == 4


def test_until_sources_have_answered_the_samples_own_owner_counts_as_a_pseudonym() -> None:
    watch = OwnerWatch([], Pseudonymiser(b"0123456789abcdef"), 15.0)
    owner = owner_of(watch, gpu(0, owner=Owner(True, "ns/alice", source="dcgm-labels", confidence="high")))
    assert owner.job.startswith("namespace-")
    assert owner.confidence == "high"


def test_a_source_that_hangs_delays_no_tick() -> None:
    fake = FakeOwners()
    fake.gate.clear()
    watch = OwnerWatch([fake], OPEN, 15.0)
    watch.start()
    assert owner_of(watch, gpu(0, 1)) == Owner()
    assert owner_of(watch, gpu(0, 1)) == Owner()
    fake.gate.set()
    for _ in range(400):
        if owner_of(watch, gpu(0, 1)).job == "7":
            break
        threading.Event().wait(0.05)
    assert owner_of(watch, gpu(0, 1)).job == "7"
    watch.close()


def test_a_source_that_fails_is_a_problem_of_the_tick_and_the_others_count() -> None:
    bad, good = FakeOwners(), FakeOwners("8")
    bad.error = SourceError("no kubelet: start it")
    watch = OwnerWatch([bad, good], OPEN, 15.0)
    watch.refresh([gpu(0, 1)])
    done = watch.complete(tick(gpu(0, 1)))
    assert done.problems == ("host: before", "fake: no kubelet: start it")
    assert done.gpus[0].facts.owner.job == "8"
    watch.close()


def test_the_jobs_cpu_and_memory_are_on_each_of_its_gpus_once_per_reading(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.process(10, SLURM_V2.format(job=7))
    node.process(11, SLURM_V2.format(job=7))
    (node.job_cgroup("7") / "cpu.stat").write_text("usage_usec 5\nthrottled_usec 1\n")
    watch = OwnerWatch([CgroupSource(node.proc)], OPEN, 15.0, cgroups=node.cgroups)
    gpus = [gpu(0, 10), gpu(1, 10, 11), gpu(2)]
    watch.refresh(gpus)
    done = watch.complete(tick(*gpus)).gpus
    assert [row.values for row in done] == [{"job_cpu_s": 5, "job_cpu_throttled_s": 1}] * 2 + [{}]
    assert done[0].facts.sources == {"job_cpu_s": "cgroup", "job_cpu_throttled_s": "cgroup"}
    assert watch.complete(tick(*gpus)).gpus[0].values == {}, "a figure counts once"
    (node.job_cgroup("7") / "cpu.stat").write_text("usage_usec 9\nthrottled_usec 1\n")
    watch.refresh(gpus)
    assert watch.complete(tick(*gpus)).gpus[0].values["job_cpu_s"] == 9


def test_where_two_jobs_share_a_gpu_no_jobs_figures_are_its_own(tmp_path: Path) -> None:
    node = Node(tmp_path)
    for pid, job in ((10, "7"), (11, "8")):
        node.process(pid, SLURM_V2.format(job=job))
        (node.job_cgroup(job) / "cpu.stat").write_text("usage_usec 5\n")
    watch = OwnerWatch([CgroupSource(node.proc)], OPEN, 15.0, cgroups=node.cgroups)
    watch.refresh([gpu(0, 10, 11)])
    (row,) = watch.complete(tick(gpu(0, 10, 11))).gpus
    assert row.values == {}
    assert row.facts.owner.job == "7,8"


def test_the_job_of_a_process_on_a_gpu_is_known_by_its_pseudonym(tmp_path: Path) -> None:
    node, pseudonyms = Node(tmp_path), Pseudonymiser(b"a key of this test")
    node.process(10, SLURM_V2.format(job=7))
    watch = OwnerWatch([CgroupSource(node.proc)], pseudonyms, 15.0, cgroups=node.cgroups)
    assert watch.job_of(10) == ""
    watch.refresh([gpu(0, 10)])
    assert (watch.job_of(10), watch.job_of(11)) == ("7", "")
    watch._holders = {12: Holder("people/training", source="test")}
    assert watch.job_of(12) == pseudonyms.owner(Owner(job="people/training")).job != "people/training"


def test_what_the_samples_bring_is_not_touched() -> None:
    watch = OwnerWatch([], OPEN, 15.0)
    row = replace(gpu(0, 1), values={"power_w": 1.0})
    watch.refresh([row])
    assert watch.complete(tick(row)).gpus == (row,)
