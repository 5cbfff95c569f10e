"""Who holds a GPU: each source over files of a node, and how their answers become one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.agent.owner_world import SESSION, SLURM_V2, Node, gpu

from unidle_agent.config import AgentSettings
from unidle_agent.errors import SourceError
from unidle_agent.owners import Holder, sources
from unidle_agent.owners.cgroup import CgroupSource, parse
from unidle_agent.owners.devices import rows_of
from unidle_agent.owners.environ import EnvironSource
from unidle_agent.owners.prolog_hpc_job import HpcJobFolder
from unidle_agent.owners.prolog_jobstats import JobstatsFolder
from unidle_agent.owners.resolve import (
    CONFLICT,
    NO_PROCESS,
    NOT_ALLOCATED,
    ORPHAN,
    OTHER_PROCESS,
    OUTSIDE,
    SHARED,
    STALE,
    join_holders,
    resolve,
)
from unidle_agent.owners.running import RunningJobs
from unidle_agent.wire import Owner

ID = "0123456789abcdef" * 4
POD_UID = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


# Devices


@pytest.mark.parametrize(
    ("device", "rows"),
    [
        pytest.param("1", ["GPU-1"], id="an index"),
        pytest.param(
            "0", ["GPU-0/GI1", "GPU-0/GI2/0", "GPU-0/GI2/1"], id="a GPU that MIG cuts is its instances"
        ),
        pytest.param("0.2", ["GPU-0/GI2/0", "GPU-0/GI2/1"], id="a GPU instance, all its compute instances"),
        pytest.param("GPU-1", ["GPU-1"], id="a UUID"),
        pytest.param("MIG-a", ["GPU-0/GI1"], id="the UUID of a MIG instance"),
        pytest.param("nvidia9", ["GPU-1"], id="a device file goes by the minor number"),
        pytest.param("nvidia0/gi1", ["GPU-0/GI1"], id="a device file and a GPU instance"),
        pytest.param("GPU-1::3", ["GPU-1"], id="a time-sliced replica"),
        pytest.param("nvidia0/gi1/vgpu1", ["GPU-0/GI1"], id="a shared GPU instance"),
        pytest.param("GPU-10", [], id="an unknown UUID"),
        pytest.param("", [], id="nothing"),
    ],
)
def test_names_of_devices(device: str, rows: list[str]) -> None:
    gpus = [
        gpu(0, instance="/GI1", mig_uuid="MIG-a"),
        gpu(0, instance="/GI2/0"),
        gpu(0, instance="/GI2/1"),
        gpu(1, minor=9),
    ]
    assert rows_of(device, gpus) == rows


# Prolog files


def hpc(folder: Path, running: tuple[str, ...] = (), now_s: float = 1000.0) -> HpcJobFolder:
    for file in folder.iterdir():
        os.utime(file, (900.0, 900.0))
    return HpcJobFolder(folder, 600.0, lambda job: job in running, lambda: now_s)


def test_a_job_map_names_the_job_and_a_gpu_without_file_is_free(tmp_path: Path) -> None:
    (tmp_path / "0").write_text("4711\n")
    (tmp_path / "README").write_text("9\n")
    claims = hpc(tmp_path, running=("4711",)).read([gpu(0), gpu(1)]).gpus
    assert claims["GPU-0"] == Owner(True, "4711", source="prolog-hpc-job", confidence="high")
    assert claims["GPU-1"] == Owner(False, source="prolog-hpc-job", confidence="medium")


@pytest.mark.parametrize(
    ("running", "now_s", "confidence", "note"),
    [
        pytest.param(True, 10000.0, "high", "", id="of a job that is seen to run, however old"),
        pytest.param(False, 1000.0, "medium", "", id="a young file whose job is not seen"),
        pytest.param(False, 1501.0, "low", STALE, id="an old file whose job is not seen"),
    ],
)
def test_belief_in_a_prolog_file(
    tmp_path: Path, running: bool, now_s: float, confidence: str, note: str
) -> None:
    (tmp_path / "0").write_text("4711\n")
    owner = hpc(tmp_path, running=("4711",) if running else (), now_s=now_s).read([gpu(0)]).gpus["GPU-0"]
    assert (owner.job, owner.confidence, owner.note) == ("4711", confidence, note)


def test_several_jobs_in_a_file_share_the_gpu(tmp_path: Path) -> None:
    (tmp_path / "0").write_text("12\n11\n12\n")
    owner = hpc(tmp_path, running=("11",)).read([gpu(0)]).gpus["GPU-0"]
    assert (owner.job, owner.confidence, owner.note) == ("12,11", "medium", SHARED)


def test_without_the_folder_nothing_is_known(tmp_path: Path) -> None:
    assert HpcJobFolder(tmp_path / "none", 600.0, lambda _: None).read([gpu(0)]).gpus == {}


def test_jobstats_files_name_job_and_user_by_index_or_uuid(tmp_path: Path) -> None:
    (tmp_path / "0").write_text("4711 1000\n")
    (tmp_path / "MIG-a").write_text("4712 1001\n")
    (tmp_path / "2").write_text("secret-of-alice 4 5 6 bob\n")
    source = JobstatsFolder(tmp_path, 1e12, lambda _: True, name_of=lambda uid: f"name{uid}")
    claims = source.read([gpu(0), gpu(1, instance="/GI3", mig_uuid="MIG-a"), gpu(2)])
    assert (claims.gpus["GPU-0"].job, claims.gpus["GPU-0"].user) == ("4711", "name1000")
    assert (claims.gpus["GPU-1/GI3"].job, claims.gpus["GPU-1/GI3"].user) == ("4712", "name1001")
    assert "GPU-2" not in claims.gpus, "what cannot be read is unknown, not free"
    assert len(claims.problems) == 1
    assert "alice" not in str(claims.problems)


# Processes


@pytest.mark.parametrize(
    ("text", "job", "cgroup"),
    [
        pytest.param(
            SLURM_V2.format(job=7), "7", {"": "/system.slice/slurmstepd.scope/job_7"}, id="Slurm, v2"
        ),
        pytest.param(
            "0::/system.slice/n1_slurmstepd.scope/job_7/step_batch\n",
            "7",
            {"": "/system.slice/n1_slurmstepd.scope/job_7"},
            id="Slurm with several slurmd, v2",
        ),
        pytest.param(
            "11:memory:/slurm/uid_5/job_7/step_0/task_1\n4:cpu,cpuacct:/slurm/uid_5/job_7/step_0\n1:pids:/\n0::/\n",
            "7",
            dict.fromkeys(("memory", "cpu", "cpuacct"), "/slurm/uid_5/job_7"),
            id="Slurm, v1",
        ),
        pytest.param(
            f"4:memory:/docker/{ID}\n", "container/0123456789ab", {"memory": f"/docker/{ID}"}, id="Docker, v1"
        ),
        pytest.param(
            f"0::/system.slice/docker-{ID}.scope/inner\n",
            "container/0123456789ab",
            {"": f"/system.slice/docker-{ID}.scope"},
            id="Docker, v2",
        ),
        pytest.param(
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-"
            f"pod{POD_UID.replace('-', '_')}.slice/cri-containerd-{ID}.scope\n",
            f"pod/{POD_UID}",
            None,
            id="containerd under systemd",
        ),
        pytest.param(
            f"3:memory:/kubepods/burstable/pod{POD_UID}/{ID}\n", f"pod/{POD_UID}", None, id="cgroupfs"
        ),
        pytest.param(
            f"0::/kubepods.slice/kubepods-pod{POD_UID.replace('-', '_')}.slice/crio-{ID}.scope\n",
            f"pod/{POD_UID}",
            None,
            id="CRI-O",
        ),
        pytest.param(
            f"0::/system.slice/slurmstepd.scope/job_7/step_0/libpod-{ID}.scope\n",
            "7",
            {"": "/system.slice/slurmstepd.scope/job_7"},
            id="a container in a Slurm job is the job's",
        ),
        pytest.param(SESSION, "", {}, id="a login session is no job"),
        pytest.param("0::/home/job_7/x\n", "", {}, id="a folder that is called so is no job"),
        pytest.param("", "", {}, id="nothing"),
    ],
)
def test_cgroup_paths(text: str, job: str, cgroup: dict[str, str] | None) -> None:
    holder = parse(text)
    assert holder.job == job
    assert cgroup is None or holder.cgroup == cgroup


@given(st.text())
def test_no_cgroup_text_is_an_error(text: str) -> None:
    assert parse(text).running in (True, None)


def test_the_user_of_a_process_is_its_own_and_a_containers_is_nobodys(node: Node) -> None:
    node.process(10, SLURM_V2.format(job=7))
    node.process(11, f"0::/system.slice/docker-{ID}.scope\n")
    holders = CgroupSource(node.proc, lambda uid: f"name{uid}").read([gpu(0, 10, 11, 12)]).holders
    assert holders[10].user == f"name{os.getuid()}"
    assert holders[11].user == ""
    assert 12 not in holders, "a process that cannot be seen is unknown, not outside of every job"


def environ(node: Node) -> EnvironSource:
    return EnvironSource(RunningJobs(node.proc, node.cgroups), node.proc)


def test_a_running_jobs_environment_names_its_gpus_without_process_too(node: Node) -> None:
    node.process(10, SLURM_JOB_ID="7", SLURM_JOB_USER="alice", SLURM_JOB_GPUS="0-1,3", SLURMD_NODENAME="n")
    node.slurmstepd(9, "7")
    claims = environ(node).read([gpu(0, 10), gpu(1), gpu(1, instance="/GI2"), gpu(2), gpu(5, minor=3)])
    assert claims.holders[10] == Holder("7", "alice", "environ", True)
    assert set(claims.gpus) == {"GPU-0", "GPU-1", "GPU-5"}, "Slurm's index is the minor number"
    assert claims.gpus["GPU-1"] == Owner(True, "7", "alice", source="environ", confidence="medium")


def test_a_jobs_environment_alone_proves_no_running_job(node: Node) -> None:
    node.process(10, SLURM_JOB_ID="7", SLURM_JOB_USER="alice", SLURM_JOB_GPUS="0", SLURMD_NODENAME="n")
    claims = environ(node).read([gpu(0, 10)])
    assert claims.gpus == {}
    assert claims.holders[10].running is False


def test_a_shell_of_salloc_was_not_started_by_slurmd(node: Node) -> None:
    node.process(10, SLURM_JOB_ID="7", SLURM_JOB_USER="alice")
    assert environ(node).read([gpu(0, 10)]).holders == {}


def test_a_job_runs_where_it_has_a_cgroup_or_a_slurmstepd(node: Node) -> None:
    node.job_cgroup("7")
    node.slurmstepd(9, "8")
    running = RunningJobs(node.proc, node.cgroups)
    assert [running(job) for job in ("7", "8", "9", "alice")] == [True, True, False, None]


def test_where_processes_are_hidden_nothing_is_said_of_a_job(node: Node) -> None:
    node.process(2, comm="python")
    assert RunningJobs(node.proc, node.cgroups)("7") is None


# One owner


def at(job: str = "", user: str = "", running: bool | None = True) -> Holder:
    return Holder(job, user, "cgroup", running)


J = Owner(True, "7", source="prolog", confidence="medium")
FREE = Owner(False, source="prolog", confidence="medium")


@pytest.mark.parametrize(
    ("claims", "holders", "expected"),
    [
        pytest.param(
            [J], [at("7", "ann")], Owner(True, "7", "ann", False, "prolog", "high"), id="all of the job"
        ),
        pytest.param(
            [J], [], Owner(True, "7", "", False, "prolog", "medium", NO_PROCESS), id="allocated without use"
        ),
        pytest.param(
            [J],
            [at("7", "ann"), at("", "bob", None)],
            Owner(True, "7", "ann", False, "prolog", "medium", OTHER_PROCESS),
            id="an unknown process beside the job's",
        ),
        pytest.param(
            [J],
            [at("8")],
            Owner(True, "7", "", False, "prolog", "low", CONFLICT, "8"),
            id="another job's process",
        ),
        pytest.param(
            [FREE],
            [at("7", "ann", False)],
            Owner(False, "", "ann", False, "prolog", "high", ORPHAN, "7"),
            id="an orphan of a job that has ended",
        ),
        pytest.param(
            [],
            [at("7", "ann", False)],
            Owner(False, "", "ann", False, "cgroup", "high", ORPHAN, "7"),
            id="same, nobody says",
        ),
        pytest.param(
            [FREE],
            [at("8")],
            Owner(False, "", "", False, "prolog", "medium", NOT_ALLOCATED, "8"),
            id="a running job on a GPU that it was not given",
        ),
        pytest.param(
            [FREE],
            [at("", "bob", None)],
            Owner(False, "", "bob", False, "prolog", "medium", OUTSIDE),
            id="used outside the scheduler",
        ),
        pytest.param(
            [],
            [at("", "bob", None)],
            Owner(None, "", "bob", False, "cgroup", "medium", OUTSIDE),
            id="same, nobody says",
        ),
        pytest.param(
            [], [at("8")], Owner(True, "8", "", False, "cgroup", "inferred"), id="allocation by use"
        ),
        pytest.param(
            [],
            [at("8"), at("9")],
            Owner(True, "8,9", "", False, "cgroup", "inferred", SHARED),
            id="two running jobs share it",
        ),
        pytest.param(
            [Owner(True, "7", confidence="low", note=STALE)],
            [at("7")],
            Owner(True, "7", confidence="high"),
            id="its own process takes the doubt from an old file",
        ),
        pytest.param(
            [Owner(True, "ns/pod", confidence="high")],
            [at(f"pod/{POD_UID}")],
            Owner(True, "ns/pod", confidence="high"),
            id="a pod's container, which goes by another name",
        ),
        pytest.param(
            [FREE, J],
            [],
            Owner(True, "7", "", False, "prolog", "medium", NO_PROCESS),
            id="who names a job wins",
        ),
        pytest.param([FREE], [], FREE, id="free and unused"),
        pytest.param([], [], Owner(), id="nothing known"),
    ],
)
def test_allocation_and_use_become_one_owner(
    claims: list[Owner], holders: list[Holder], expected: Owner
) -> None:
    by_pid = dict(enumerate(holders))
    assert resolve(Owner(), claims, tuple(by_pid), by_pid) == expected


def test_processes_that_nobody_can_see_change_nothing() -> None:
    assert resolve(Owner(), [J], None, {}) == J
    assert resolve(Owner(), [J], (1, 2), {}) == J
    assert resolve(J, [], (1, 2), {}) == J


def test_slices_in_no_mig_instance_can_be_held_by_nobody() -> None:
    spare = Owner(False, source="nvml", confidence="high")
    assert resolve(spare, [J], None, {}) == spare


@pytest.mark.parametrize("turned", [False, True])
def test_what_two_sources_know_of_a_process_is_joined(turned: bool) -> None:
    cgroup = {5: Holder("", "uid-name", "cgroup", None, {"": "/x"})}
    variables = {5: Holder("7", "", "environ", True)}
    order = [variables, cgroup] if turned else [cgroup, variables]
    assert join_holders(order) == {5: Holder("7", "uid-name", "environ", True, {"": "/x"})}


def test_sources_are_found_by_walking_and_settings_leave_some_out() -> None:
    default = [source.name for source in sources(AgentSettings())]
    assert default == ["prolog-jobstats", "podresources", "cgroup", "environ"]
    chosen = AgentSettings(job_map_dir="/maps", gpustat_dir="", podresources_socket="")
    assert [source.name for source in sources(chosen)] == ["prolog-hpc-job", "cgroup", "environ"]


def test_a_folder_that_cannot_be_read_is_an_error_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SourceError, match="as root"):
        HpcJobFolder(tmp_path / "file", 600.0, lambda _: None).read([gpu(0)])
