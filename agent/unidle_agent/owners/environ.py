"""The environment of the processes that hold a GPU: /proc/PID/environ.

SLURM_JOB_ID says which job started a process. It is inherited and never changes, so alone it proves no
running job: whether that runs is asked for. Where it does, SLURM_STEP_GPUS or SLURM_JOB_GPUS name all the
GPUs of the job, those without a process too, by Slurm's index, which is the device's minor number. Only
the variables named here are looked at; nothing else of an environment is kept. Needs root, or the job's
own user.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from unidle_agent.config import AgentSettings
from unidle_agent.owners import Claims, Holder
from unidle_agent.owners.running import RunningJobs
from unidle_agent.sample import GpuReading
from unidle_agent.wire import Owner

VARIABLES = ("SLURM_JOB_ID", "SLURM_JOB_USER", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "SLURMD_NODENAME")
MAX_ENVIRONMENT_BYTES = 1 << 20
SPAN = re.compile(r"(\d+)(?:-(\d+))?")


class EnvironSource:
    """The processes under `proc`."""

    name = "environ"
    precedence = 40

    def __init__(self, running: Callable[[str], bool | None], proc: Path = Path("/proc")) -> None:
        self._running = running
        self._proc = proc

    def read(self, gpus: Sequence[GpuReading]) -> Claims:
        """The job of each process, and the GPUs of each job that runs."""
        holders: dict[int, Holder] = {}
        claims: dict[str, Owner] = {}
        refused = False
        for pid in sorted({pid for gpu in gpus for pid in gpu.pids or ()}):
            try:
                environment = self._environment(pid)
            except PermissionError:
                refused = True
                continue
            except OSError:  # it has ended, or is in another namespace
                continue
            job = environment.get("SLURM_JOB_ID", "")
            if not job or "SLURMD_NODENAME" not in environment:  # salloc's shell was not started by slurmd
                continue
            runs = self._running(job)
            user = environment.get("SLURM_JOB_USER", "")
            holders[pid] = Holder(job, user, self.name, runs)
            if runs:
                owner = Owner(True, job, user, source=self.name, confidence="medium")
                for uuid in _allocated(environment, gpus):
                    claims.setdefault(uuid, owner)
        problems = ("the environment of processes on a GPU cannot be read: run the agent as root",)
        return Claims(claims, holders, problems if refused else ())

    def close(self) -> None:
        """Nothing is held."""

    def _environment(self, pid: int) -> dict[str, str]:
        with (self._proc / str(pid) / "environ").open("rb") as file:
            entries = file.read(MAX_ENVIRONMENT_BYTES).split(b"\0")
        pairs = (entry.decode("utf-8", "replace").partition("=") for entry in entries)
        return {key: value for key, _, value in pairs if key in VARIABLES}


def _allocated(environment: Mapping[str, str], gpus: Sequence[GpuReading]) -> list[str]:
    """Rows of the GPUs that the job was given; a process in a step knows those of its step only."""
    text = environment.get("SLURM_JOB_GPUS") or environment.get("SLURM_STEP_GPUS", "")
    minors: set[int] = set()
    for part in text.split(","):
        if match := SPAN.fullmatch(part.strip()):
            minors.update(range(int(match[1]), min(int(match[2] or match[1]), int(match[1]) + 255) + 1))
    # Of a GPU that MIG cuts, the index does not say which instance.
    return [gpu.facts.uuid for gpu in gpus if _minor(gpu) in minors and "/GI" not in gpu.facts.uuid]


def _minor(gpu: GpuReading) -> int | None:
    return gpu.facts.minor if gpu.facts.minor is not None else gpu.facts.index


def source(settings: AgentSettings) -> EnvironSource:  # noqa: ARG001
    """Always: where there is no Slurm, no process has these variables."""
    return EnvironSource(RunningJobs())
