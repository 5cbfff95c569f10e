"""Two words on one GPU become one owner."""

from __future__ import annotations

import pytest

from unidle_agent.privacy import Pseudonymiser
from unidle_agent.wire import Owner
from unidle_collector.ownership import Ownership, Place
from unidle_collector.scheduler import Grant, Job, Node, Snapshot

TAKEN_NS = 1_700_000_000 * 10**9
SECOND_NS = 10**9
STALE_NS = 90 * SECOND_NS
BEFORE, AFTER = TAKEN_NS - SECOND_NS, TAKEN_NS + SECOND_NS


def job(number: int, *grants: Grant, **more: object) -> Job:
    return Job(
        str(number), "running", user="user-aaaa-ada", team="climate", partition="batch", grants=grants, **more
    )  # type: ignore[arg-type]


def node(name: str = "gpu1", gpus: int = 8, used: tuple[int, ...] | None = ()) -> Node:
    return Node(
        name,
        ("mixed",),
        True,
        False,
        gpus=gpus,
        gpus_used=None if used is None else len(used),
        indices_used=used,
    )


def snapshot(*jobs: Job, nodes: tuple[Node, ...] = (node(used=(0, 1)),)) -> Snapshot:
    return Snapshot("slurm", "ci", "22.05.8", TAKEN_NS, jobs, nodes)


J = job(7, Grant("gpu1", 2, (0, 1), "b200"))
K_ELSEWHERE = job(8, Grant("gpu2", 1, (0,), "b200"))
USED_BY_7 = Owner(True, "7", "user-aaaa-ada", source="cgroup", confidence="inferred")
USED_BY_8 = Owner(True, "8", "user-aaaa-lin", source="cgroup", confidence="inferred")
USED_BY_9 = Owner(True, "9", "user-aaaa-lin", source="cgroup", confidence="inferred")
CLAIMED_9 = Owner(True, "9", source="job-map", confidence="medium", note="no process")
SURE_9 = Owner(True, "9", source="job-map", confidence="high")
NOBODY = Owner(False, source="gpustat", confidence="medium")
OUTSIDER = Owner(user="user-aaaa-root", source="cgroup", confidence="medium", note="outside the scheduler")


@pytest.mark.parametrize(
    ("said", "gpu", "expected"),
    [
        pytest.param(USED_BY_7, 0, (True, "7", "cgroup+slurm", "high", "", ""), id="both say the same job"),
        pytest.param(Owner(), 0, (True, "7", "slurm", "high", "", ""), id="only the scheduler knows"),
        pytest.param(USED_BY_8, 0, (True, "7", "slurm", "low", "conflict", "8"), id="another job"),
        pytest.param(NOBODY, 0, (True, "7", "slurm", "medium", "", ""), id="a prolog without it"),
        pytest.param(OUTSIDER, 0, (True, "7", "slurm", "medium", "outside the scheduler", ""), id="foreign"),
        pytest.param(USED_BY_8, 5, (False, "", "slurm", "medium", "not allocated", "8"), id="given others"),
        pytest.param(USED_BY_9, 5, (False, "", "slurm", "high", "orphan", "9"), id="what a dead job left"),
        pytest.param(CLAIMED_9, 5, (False, "", "slurm", "medium", "stale", ""), id="a prolog's old file"),
        pytest.param(SURE_9, 5, (False, "", "slurm", "low", "conflict", "9"), id="contradiction"),
        pytest.param(Owner(), 5, (False, "", "slurm", "high", "", ""), id="free"),
        pytest.param(OUTSIDER, 5, (False, "", "slurm", "medium", "outside the scheduler", ""), id="no job"),
        pytest.param(NOBODY, 5, (False, "", "gpustat+slurm", "medium", "", ""), id="free by both"),
    ],
)  # fmt: skip
def test_two_words_become_one_owner(said: Owner, gpu: int, expected: tuple[object, ...]) -> None:
    ownership = Ownership(STALE_NS)
    ownership.hear(0, Place("gpu1", gpu), said, BEFORE)
    ownership.take(snapshot(J, K_ELSEWHERE))
    owner = ownership.joined(0, AFTER)
    found = (owner.allocated, owner.job, owner.source, owner.confidence, owner.note, owner.used_by)
    assert found == expected


def joined(said: Owner, place: Place, snap: Snapshot, *, said_ns: int = BEFORE, now_ns: int = AFTER) -> Owner:
    ownership = Ownership(STALE_NS)
    ownership.hear(0, place, said, said_ns)
    ownership.take(snap)
    return ownership.joined(0, now_ns)


@pytest.mark.parametrize("said", [USED_BY_9, SURE_9, NOBODY])
@pytest.mark.parametrize("gpu", [0, 5])
def test_a_word_that_changed_after_the_snapshot_counts_alone(said: Owner, gpu: int) -> None:
    assert joined(said, Place("gpu1", gpu), snapshot(J), said_ns=AFTER) == said


@pytest.mark.parametrize("said", [USED_BY_9, SURE_9, NOBODY, CLAIMED_9])
def test_a_stale_snapshot_contradicts_nobody(said: Owner) -> None:
    assert joined(said, Place("gpu1", 0), snapshot(J), now_ns=TAKEN_NS + STALE_NS + 1) == said


def test_a_stale_snapshot_fills_in_a_job_but_no_freedom() -> None:
    late = TAKEN_NS + STALE_NS + 1
    held = joined(Owner(), Place("gpu1", 0), snapshot(J), now_ns=late)
    assert (held.job, held.confidence, held.note) == ("7", "low", "stale")
    assert joined(Owner(), Place("gpu1", 5), snapshot(J), now_ns=late) == Owner()


def test_two_jobs_on_one_gpu_share_it() -> None:
    shared = [job(n, Grant("gpu1", 1, (0,), "", shared=True)) for n in (20, 21)]
    owner = joined(Owner(), Place("gpu1", 0), snapshot(*shared))
    assert (owner.job, owner.note, owner.confidence) == ("20,21", "shared", "medium")


@pytest.mark.parametrize(
    ("place", "snap"),
    [
        pytest.param(Place("other", 0), snapshot(J), id="a node that it does not know"),
        pytest.param(Place("gpu1", None), snapshot(J), id="a GPU without a number"),
        pytest.param(Place("gpu1", 0, whole=False), snapshot(J), id="a MIG instance"),
        pytest.param(Place("gpu1", 8), snapshot(J), id="a number that it does not count to"),
        pytest.param(Place("gpu1", 5), snapshot(job(7, Grant("gpu1", 2))), id="a grant without numbers"),
        pytest.param(Place("gpu1", 4), snapshot(J, nodes=(node(used=(0, 1, 4)),)), id="a job that is hidden"),
        pytest.param(Place("gpu1", 4), snapshot(nodes=(node(used=(4,)),)), id="only hidden jobs"),
        pytest.param(Place("gpu1", 0), snapshot(nodes=(node(gpus=0),)), id="GPUs it does not manage"),
    ],
)  # fmt: skip
def test_where_the_scheduler_cannot_tell_the_agents_word_stands(place: Place, snap: Snapshot) -> None:
    assert joined(USED_BY_9, place, snap) == USED_BY_9
    assert joined(Owner(), place, snap) == Owner()


def test_a_node_that_one_job_has_as_a_whole_needs_no_numbers() -> None:
    whole = snapshot(job(7, Grant("gpu1", 8)), nodes=(node(used=None),))
    assert joined(Owner(), Place("gpu1", None, whole=False), whole).job == "7"
    two = snapshot(job(7, Grant("gpu1", 8)), job(8, Grant("gpu1", 8)), nodes=(node(used=None),))
    assert joined(Owner(), Place("gpu1", None), two) == Owner()


def test_an_agents_pod_is_confirmed_and_called_by_its_name() -> None:
    pod = Job(
        "namespace-aaaa-x/pod-aaaa-y",
        "running",
        aliases=("namespace-aaaa-p/pod-aaaa-uid",),
        grants=(Grant("gpu1", 2),),
    )
    snap = snapshot(pod, nodes=(node(used=None),))
    owner = joined(
        Owner(True, pod.aliases[0], source="cgroup", confidence="inferred"), Place("gpu1", 0), snap
    )
    assert (owner.job, owner.source) == (pod.id, "cgroup+slurm")


def test_names_hidden_by_another_key_are_no_conflict_and_are_counted() -> None:
    pod = Owner(True, "team/train-0", source="podresources", confidence="high")
    ours, theirs = Pseudonymiser(b"k" * 16).owner(pod), Pseudonymiser(b"q" * 16).owner(pod)
    snap = snapshot(Job(ours.job, "running", grants=(Grant("gpu1", 8),)), nodes=(node(used=None),))
    ownership = Ownership(STALE_NS)
    for gpu, said in enumerate((ours, theirs)):
        ownership.hear(gpu, Place("gpu1", gpu), said, BEFORE)
    ownership.take(snap)
    assert ownership.joined(0, AFTER).source == "podresources+slurm"
    assert ownership.joined(1, AFTER) == theirs
    assert ownership.unlike == {1}


def test_team_and_partition_of_a_job_outlive_it() -> None:
    ownership = Ownership(STALE_NS)
    ownership.take(snapshot(J))
    ownership.take(snapshot(K_ELSEWHERE))
    assert ownership.job("7") is None
    found = ownership.dimensions("7")
    assert (found.team, found.partition) == ("climate", "batch")
    assert ownership.dimensions("4711").team == ""
