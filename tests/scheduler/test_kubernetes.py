"""Pods and nodes of an API server."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.agent.scripted_server import dead_url
from tests.scheduler.fake_kubernetes import FakeKubernetes

from unidle_agent.privacy import Pseudonymiser
from unidle_agent.wire import Owner
from unidle_collector.scheduler import Grant, SchedulerError
from unidle_collector.scheduler.kubernetes import Kubernetes, quantity
from unidle_collector.settings import CollectorSettings

HIDE = Pseudonymiser(b"a key of sixteen or more")


def pod(name: str = "train-0", node: str = "n1", gpus: int = 2, **changed: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "nodeName": node,
        "containers": [
            {
                "resources": {
                    "limits": {"nvidia.com/gpu": str(gpus)},
                    "requests": {"cpu": "7500m", "memory": "64Gi"},
                }
            }
        ],
        "activeDeadlineSeconds": 3600,
        "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-B200"},
    }
    meta: dict[str, Any] = {
        "name": name,
        "namespace": "climate",
        "uid": "5f3b2c1a-0000-4000-8000-000000000001",
        "labels": {"kueue.x-k8s.io/queue-name": "batch", "team": "ice"},
        "creationTimestamp": "2026-11-21T10:00:00Z",
        "ownerReferences": [{"kind": "Job"}],
    }
    status = {
        "phase": "Running",
        "startTime": "2026-11-21T10:01:00Z",
        "containerStatuses": [{"containerID": "containerd://0123456789abcdef"}],
    }
    return {
        "metadata": meta | changed.pop("meta", {}),
        "spec": spec | changed.pop("spec", {}),
        "status": status | changed,
    }


def waiting(name: str, gpus: int) -> dict[str, Any]:
    reason = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/9 nodes"}
    return pod(name, "", gpus, phase="Pending", conditions=[reason])


def node(name: str = "n1", **status: Any) -> dict[str, Any]:
    labels = {"nvidia.com/gpu.product": "NVIDIA-B200", "kubernetes.io/os": "linux"}
    ready = {"type": "Ready", "status": "False" if name == "dead" else "True"}
    allocatable = {"cpu": "128", "nvidia.com/gpu": "8"}
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": {"unschedulable": name == "cordoned"},
        "status": {"allocatable": allocatable, "conditions": [ready]} | status,
    }


def asked(server: FakeKubernetes, **more: Any) -> Kubernetes:
    return Kubernetes(server.url, HIDE, queue_label="kueue.x-k8s.io/queue-name", **more)


def test_pods_and_nodes_become_a_snapshot_with_the_agents_names() -> None:
    with FakeKubernetes([pod(), waiting("later", 4)], [node(), node("cordoned"), node("dead")]) as server:
        snapshot = asked(server).read()
    running, later = snapshot.jobs
    assert running.id == HIDE.owner(Owner(job="climate/train-0")).job
    assert running.aliases == (
        HIDE.owner(Owner(job="pod/5f3b2c1a-0000-4000-8000-000000000001")).job,
        HIDE.owner(Owner(job="container/0123456789ab")).job,
    )
    assert running.grants == (Grant("n1", 2),)
    assert (running.state, running.partition, running.interactive) == ("running", "batch", False)
    assert running.team == HIDE.token("namespace", "climate")
    assert (running.requested_cpus, running.requested_memory_bytes, running.time_limit_s) == (
        8,
        64 * 1024**3,
        3600,
    )
    assert (running.started_ns or 0) - (running.submitted_ns or 0) == 60 * 10**9
    assert (later.state, later.requested_gpus, later.reason, later.grants) == (
        "pending",
        4,
        "Unschedulable",
        (),
    )
    assert [(n.gpus, n.gpus_used, n.available, n.down) for n in snapshot.nodes] == [
        (8, 2, True, False),
        (8, 0, False, False),
        (8, 0, False, True),
    ]
    assert snapshot.nodes[0].kinds == ("NVIDIA-B200",)
    assert "climate" not in repr(snapshot)
    assert "train-0" not in repr(snapshot)


def test_a_team_label_names_the_team() -> None:
    with FakeKubernetes([pod()], []) as server:
        (job,) = asked(server, team_label="team").read().jobs
    assert job.team == "ice"


def test_mig_resources_and_steps_before_the_others_count_once() -> None:
    mig = [{"resources": {"limits": {"nvidia.com/mig-1g.10gb": "1"}}}] * 2
    before = [
        {"resources": {"limits": {"nvidia.com/gpu": "3"}}},
        {"restartPolicy": "Always", "resources": {"limits": {"nvidia.com/gpu": "1"}}},
    ]
    with FakeKubernetes(
        [pod(spec={"containers": mig}), pod(spec={"initContainers": before})],
        [node(allocatable={"nvidia.com/mig-1g.10gb": "7"})],
    ) as server:
        snapshot = asked(server).read()
    assert [job.grants for job in snapshot.jobs] == [
        (Grant("n1", 2, kind="mig-1g.10gb"),),
        (Grant("n1", 3),),
    ]
    assert snapshot.nodes[0].gpus == 7


def test_notebooks_are_interactive_and_a_bare_pod_may_be_anything() -> None:
    notebook = {"component": "singleuser-server"}
    with FakeKubernetes([pod(meta={"labels": notebook}), pod(meta={"ownerReferences": []})], []) as server:
        assert [job.interactive for job in asked(server).read().jobs] == [True, None]


def test_a_pod_that_is_being_deleted_still_holds_its_gpus() -> None:
    with FakeKubernetes([pod(meta={"deletionTimestamp": "2026-11-21T11:00:00Z"})], []) as server:
        (job,) = asked(server).read().jobs
    assert (job.state, job.grants) == ("completing", (Grant("n1", 2),))


def test_long_lists_come_page_by_page_with_the_same_question() -> None:
    with FakeKubernetes([pod(f"p{n}") for n in range(25)], [node()]) as server:
        server.page = 10
        snapshot = asked(server, selector="gpu=yes").read()
    assert len({job.id for job in snapshot.jobs}) == 25
    pages = [query for path, query in server.asked if path == "/api/v1/pods"]
    assert [query.get("continue") for query in pages] == [None, "10", "20"]
    assert {query["labelSelector"] for query in pages} == {"gpu=yes"}
    assert {query["fieldSelector"] for query in pages} == {"status.phase!=Succeeded,status.phase!=Failed"}
    assert snapshot.nodes[0].gpus_used is None, "the pods of others were not listed"


def test_a_list_that_expires_half_way_is_begun_anew_once() -> None:
    with FakeKubernetes([pod(f"p{n}") for n in range(15)], [node()]) as server:
        server.page, server.plan = 10, [None, (410, {})]
        assert len(asked(server).read().jobs) == 15
        server.plan = [None, (410, {}), None, (410, {})]
        with pytest.raises(SchedulerError, match="expired twice"):
            asked(server).read()


@pytest.mark.parametrize(
    ("status", "headers", "expected", "wait_s"),
    [
        (401, {}, "refuses the token", 0),
        (403, {}, "may not list", 0),
        (429, {"Retry-After": "17"}, "come again", 17),
        (503, {}, "come again", 0),
        (500, {}, "HTTP 500", 0),
        (302, {"Location": "http://127.0.0.1:1/"}, "HTTP 302", 0),
    ],
)
def test_a_refusal_says_what_to_do(
    status: int, headers: dict[str, str], expected: str, wait_s: float
) -> None:
    with FakeKubernetes([], []) as server:
        server.plan = [(status, headers)]
        with pytest.raises(SchedulerError, match=expected) as caught:
            asked(server).read()
    assert caught.value.retry_after_s == wait_s


def test_a_token_is_read_anew_each_time_and_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "token"
    with FakeKubernetes([pod()], [], token="second-s3cret") as server:
        source = asked(server, token_file=file)
        with pytest.raises(SchedulerError, match="expected a token"):
            source.read()
        file.write_text("first-s3cret\n")
        with pytest.raises(SchedulerError, match="401") as caught:
            source.read()
        assert "s3cret" not in str(caught.value)
        file.write_text("second-s3cret\n")
        assert len(source.read().jobs) == 1


def test_a_server_that_is_away_is_told() -> None:
    with pytest.raises(SchedulerError, match="connection refused"):
        Kubernetes(dead_url(), HIDE, deadline_s=5).read()


def test_a_pod_or_node_that_cannot_be_read_costs_itself_only() -> None:
    odd = pod(spec={"containers": [{"resources": {"limits": {"cpu": "many"}}}]})
    full = node("gpu-1")
    unlike = {**full, "status": {"allocatable": {"nvidia.com/gpu": "several"}}}
    with FakeKubernetes([odd, pod()], [unlike, full]) as server:
        snapshot = asked(server).read()
    assert len(snapshot.jobs) == 1
    assert [one.name for one in snapshot.nodes] == ["gpu-1"]
    assert snapshot.problems == (
        "1 of 2 pods cannot be read, first: expected a quantity such as 500m or 8Gi, came 'many'",
        "1 of 2 nodes cannot be read, first: expected a quantity such as 500m or 8Gi, came 'several'",
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4", 4),
        ("500m", Decimal("0.5")),
        ("250u", Decimal("0.00025")),
        ("8Gi", 8 * 1024**3),
        ("1Ei", 1024**6),
        ("1e3", 1000),
        ("2k", 2000),
        (3, 3),
    ],
)
def test_quantities(text: object, expected: object) -> None:
    assert quantity(text) == expected


def test_in_a_pod_the_service_account_tells_where_to_ask(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from unidle_collector import scheduler

    settings = CollectorSettings(scheduler="kubernetes", data_dir=tmp_path)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "6443")
    found = scheduler.source(settings)
    assert isinstance(found, Kubernetes)
    assert (found._target.host, found._target.port, found._target.secure) == ("fd00::1", 6443, True)
    assert str(found._token_file) == "/var/run/secrets/kubernetes.io/serviceaccount/token"
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    with pytest.raises(Exception, match=r"collector\.kubernetes_url"):
        scheduler.source(settings)
