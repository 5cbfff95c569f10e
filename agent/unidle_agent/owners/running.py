"""Whether a Slurm job runs on this node, by what slurmd leaves behind: its cgroup, or its slurmstepd.

slurmd makes a cgroup `job_N` for each job where it tracks processes by cgroup, and a process titled
`slurmstepd: [N.batch]` for each step whatever it tracks by. A job that has resources here and no step yet
(salloc, between two srun) has neither, so "no" is only ever one half of a judgement.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

from unidle_agent.sources.cgroups import CGROUP_ROOT

JOB_CGROUPS = (
    "system.slice/*slurmstepd.scope/job_{job}",
    "unified/system.slice/*slurmstepd.scope/job_{job}",
    "freezer/slurm*/uid_*/job_{job}",
)
STEP_TITLE = re.compile(rb"slurmstepd: \[(\d+)")
SCAN_S = 10.0
"""Least time between two looks at all processes: each costs about 10 us per process."""


class RunningJobs:
    """Asks `proc` and `cgroups`."""

    def __init__(
        self,
        proc: Path = Path("/proc"),
        cgroups: Path = CGROUP_ROOT,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._proc = proc
        self._cgroups = cgroups
        self._monotonic = monotonic
        self._stepped: frozenset[str] | None = frozenset()
        self._due_s = float("-inf")

    def __call__(self, job: str) -> bool | None:
        """Whether Slurm job `job` (its number) runs here; None where this process cannot see that."""
        if not job.isdecimal():
            return None
        if any(next(self._cgroups.glob(place.format(job=job)), None) for place in JOB_CGROUPS):
            return True
        if self._monotonic() >= self._due_s:
            self._due_s = self._monotonic() + SCAN_S
            self._stepped = self._scan()
        return None if self._stepped is None else job in self._stepped

    def _scan(self) -> frozenset[str] | None:
        """Jobs with a slurmstepd; None where the node's processes are hidden from us."""
        if _read(self._proc / "2" / "comm") != b"kthreadd\n":  # it is 2 in the host's own namespace only
            return None
        jobs = set()
        for folder in self._proc.iterdir():
            if folder.name.isdecimal() and _read(folder / "comm").startswith(b"slurmstepd"):
                title = STEP_TITLE.match(_read(folder / "cmdline"))
                if title:
                    jobs.add(title[1].decode())
        return frozenset(jobs)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""
