"""Slurm's JSON of 22.05 and of 24.05: the same cluster in both shapes is the same snapshot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unidle_agent.privacy import Pseudonymiser
from unidle_collector.scheduler import Grant, Job, Node, SchedulerError
from unidle_collector.scheduler.slurm_json import ended, jobs, load, nodes

HERE = Path(__file__).parent
KEY = b"a key of sixteen or more"
HIDE = Pseudonymiser(KEY)
START_S = 1795306172
SHAPES = ("slurm_22_05", "slurm_24_05")


def said(shape: str, command: str) -> Any:
    return load(command, (HERE / shape / f"{command}.json").read_bytes())


def squeue(shape: str) -> dict[str, Job]:
    return {job.id: job for job in jobs(said(shape, "squeue"), HIDE)[0]}


def node_list(shape: str) -> dict[str, Node]:
    command = "sinfo" if shape == "slurm_22_05" else "scontrol"
    found, problems = nodes(said(shape, command))
    assert problems == []
    return {node.name: node for node in found}


def test_both_shapes_of_one_cluster_give_the_same_records() -> None:
    old, new = SHAPES
    assert squeue(old) == squeue(new)
    assert node_list(old) == node_list(new)
    assert ended(said(old, "sacct"), HIDE) == ended(said(new, "sacct"), HIDE)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_running_job_says_which_gpus_of_which_node_it_holds(shape: str) -> None:
    job = squeue(shape)["3"]
    assert job.grants == (Grant("gpu1", 1, (7,), "b200"), Grant("gpu2", 2, (0, 3), "b200"))
    assert (job.state, job.partition, job.features) == ("running", "batch", "b200&rack0")
    assert (job.time_limit_s, job.started_ns) == (1800, (START_S + 5) * 10**9)
    assert (job.requested_gpus, job.requested_cpus) == (4, 2)
    assert job.requested_memory_bytes == 2 * 500 * 1024**2
    assert job.interactive is False


@pytest.mark.parametrize("shape", SHAPES)
def test_tasks_of_arrays_have_their_own_id_and_say_which_they_are(shape: str) -> None:
    found = squeue(shape)
    assert {job.id: (job.array, job.tasks) for job in found.values() if job.array} == {
        "5": ("2_1", 1),
        "2": ("2_2", 1),
        "8": ("8_[3-9:2,12]", 5),
    }


@pytest.mark.parametrize("shape", SHAPES)
def test_what_waits_says_for_how_much_and_why(shape: str) -> None:
    found = squeue(shape)
    assert (found["4"].state, found["4"].requested_gpus, found["4"].reason) == ("pending", 8, "Priority")
    assert (found["8"].requested_gpus, found["8"].tasks) == (2, 5)
    assert found["4"].started_ns is None
    assert found["4"].grants == ()
    assert found["6"].interactive is True


@pytest.mark.parametrize("shape", SHAPES)
def test_no_limit_is_no_number_and_a_job_without_gpus_holds_none(shape: str) -> None:
    found = squeue(shape)
    assert found["5"].time_limit_s is None
    assert found["10"].grants == (Grant("gpu2", 0),)
    assert found["10"].requested_gpus == 0
    assert found["9"].state == "ended"


@pytest.mark.parametrize("shape", SHAPES)
def test_a_job_that_cannot_be_read_costs_itself_only_and_is_told(shape: str) -> None:
    found, problems = jobs(said(shape, "squeue"), HIDE)
    assert "11" not in {job.id for job in found}
    assert len(found) == 9
    (problem,) = problems
    assert "1 of 10 jobs" in problem
    assert "job 11" in problem


@pytest.mark.parametrize("shape", SHAPES)
def test_names_are_hidden_as_the_agents_hide_them_and_what_is_private_is_not_taken_over(shape: str) -> None:
    found = squeue(shape)
    assert found["1"].user == HIDE.token("user", "ada")
    assert found["1"].team == "climate"
    assert found["6"].team == HIDE.token("user", "lin"), "an account of one's own is a name"
    shown = repr((found, node_list(shape), ended(said(shape, "sacct"), HIDE)))
    assert not [word for word in ("ada", "lin'", "secret-project") if word in shown]
    assert jobs(said(shape, "squeue"), Pseudonymiser(None))[0][0].user == "ada"


@pytest.mark.parametrize("shape", SHAPES)
def test_nodes_say_state_features_and_gpus_in_use(shape: str) -> None:
    found = node_list(shape)
    assert (found["gpu1"].gpus, found["gpu1"].gpus_used) == (8, 8)
    assert found["gpu2"].indices_used == (0, 3)
    assert found["gpu2"].features == ("b200", "rack0")
    assert [(node.available, node.down) for node in found.values()] == [
        (True, False),
        (True, False),
        (False, False),
        (False, True),
    ]
    assert found["gpu3"].reason == "unidle: hw_thermal gpu3"
    assert found["gpu3"].indices_used == ()
    assert (found["gpu4"].gpus, found["gpu4"].kinds) == (8, ("b200",))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_books_give_the_jobs_that_are_over(shape: str) -> None:
    (job,), problems = ended(said(shape, "sacct"), HIDE)
    assert problems == []
    assert (job.id, job.team, job.partition, job.requested_gpus) == ("70", "climate", "batch", 4)


def test_books_without_a_job_in_that_time_are_empty_not_broken() -> None:
    document = {
        "meta": {"Slurm": {"release": "22.05.8"}},
        "errors": [
            {
                "description": "Nothing found",
                "error_number": 9003,
                "error": "Nothing found with query",
                "source": "slurmdb_jobs_get",
            }
        ],
        "jobs": [],
    }
    assert ended(load("sacct", json.dumps(document).encode()), HIDE) == ([], [])
    document["errors"] = [{"error_number": 9000, "error": "no such thing"}, *document["errors"]]
    with pytest.raises(SchedulerError, match="no such thing"):
        load("sacct", json.dumps(document).encode())


def test_the_version_and_the_cluster_are_kept() -> None:
    assert said("slurm_22_05", "squeue").version == "22.05.8"
    newer = said("slurm_24_05", "squeue")
    assert (newer.version, newer.cluster) == ("24.05.4", "ci")


def test_a_share_of_a_gpu_is_no_gpu_of_ones_own() -> None:
    row = json.loads((HERE / "slurm_22_05" / "squeue.json").read_text())["jobs"][0]
    row |= {"gres_detail": ["shard:1(IDX:0)"], "tres_per_node": "gres:shard:1"}
    (job,), _ = jobs(load("squeue", json.dumps({"jobs": [row]}).encode()), HIDE)
    assert job.grants == (Grant("gpu1", 1, (0,), shared=True),)
    assert job.requested_gpus == 0


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("RUNNING", "running"),
        (["RUNNING", "COMPLETING"], "completing"),
        (["FAILED", "COMPLETING"], "completing"),
        (["SUSPENDED"], "suspended"),
    ],
)
def test_a_job_that_completes_still_holds_its_gpus(state: object, expected: str) -> None:
    row = json.loads((HERE / "slurm_22_05" / "squeue.json").read_text())["jobs"][0] | {"job_state": state}
    (job,), _ = jobs(load("squeue", json.dumps({"jobs": [row]}).encode()), HIDE)
    assert (job.state, job.grants) == (expected, (Grant("gpu1", 3, (0, 1, 2), "b200"),))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"slurm_load_jobs error: Unable to contact", "expected JSON"),
        (b"[]", "expected an object"),
        (b'{"errors": [{"error": "Invalid user id"}], "jobs": []}', "reports: Invalid user id"),
        (b'{"errors": [], "jobs": {}}', "expected a list of jobs"),
        (b"[" * 100_000, "expected JSON"),
    ],
)
def test_what_is_no_answer_says_so(data: bytes, expected: str) -> None:
    with pytest.raises(SchedulerError, match=expected):
        jobs(load("squeue", data), HIDE)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["set", "infinite", "number", "x"]), inner)
    ),
    max_leaves=6,
)
ROW: dict[str, Any] = json.loads((HERE / "slurm_24_05" / "squeue.json").read_text())["jobs"][0]


@given(st.dictionaries(st.sampled_from(sorted(ROW)), values, max_size=5))
def test_any_value_anywhere_is_read_or_told_and_never_raised(changed: dict[str, Any]) -> None:
    document = json.dumps({"jobs": [ROW | changed, ROW]}).encode()
    found, problems = jobs(load("squeue", document), HIDE)
    assert len(found) + len(problems) == 2
