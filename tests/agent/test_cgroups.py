"""CPU and memory of a job's cgroup, over trees of both versions."""

from __future__ import annotations

from pathlib import Path

from unidle_agent.sources.cgroups import usage

JOB = "/system.slice/slurmstepd.scope/job_4711"


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def write_v2(folder: Path, limit: str = "34359738368") -> None:
    write(
        folder,
        cpu__stat="usage_usec 7000001\nuser_usec 1\nnr_periods 9\nnr_throttled 3\nthrottled_usec 42\n",
        memory__current="1073741824\n",
        memory__max=f"{limit}\n",
        memory__events="low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\n",
    )


def test_version_2(tmp_path: Path) -> None:
    write_v2(tmp_path / JOB.lstrip("/"))
    assert usage({"": JOB}, tmp_path) == {
        "job_cpu_s": 7000001,
        "job_cpu_throttled_s": 42,
        "job_memory_bytes": 1 << 30,
        "job_memory_limit_bytes": 32 << 30,
        "job_oom_kills": 1,
    }


def test_no_limit_is_unknown_rather_than_a_huge_one(tmp_path: Path) -> None:
    write_v2(tmp_path / JOB.lstrip("/"), limit="max")
    assert "job_memory_limit_bytes" not in usage({"": JOB}, tmp_path)


def test_version_1_in_the_same_units(tmp_path: Path) -> None:
    path = "/slurm/uid_1000/job_4711"
    write(tmp_path / "cpuacct" / path.lstrip("/"), cpuacct__usage="7000001999\n")
    write(
        tmp_path / "cpu" / path.lstrip("/"), cpu__stat="nr_periods 9\nnr_throttled 3\nthrottled_time 42000\n"
    )
    write(
        tmp_path / "memory" / path.lstrip("/"),
        memory__usage_in_bytes="1073741824\n",
        memory__limit_in_bytes="9223372036854771712\n",
        memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
    )
    paths = dict.fromkeys(("cpu", "cpuacct", "memory"), path)
    assert usage(paths, tmp_path) == {
        "job_cpu_s": 7000001,
        "job_cpu_throttled_s": 42,
        "job_memory_bytes": 1 << 30,
        "job_oom_kills": 1,
    }


def test_a_cgroup_that_is_gone_gives_nothing(tmp_path: Path) -> None:
    assert usage({"": JOB}, tmp_path) == {}
    assert usage({"memory": "/slurm/x"}, tmp_path) == {}
