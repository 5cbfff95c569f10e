"""The cgroup of the processes that hold a GPU: /proc/PID/cgroup, which everybody may read.

Slurm puts a job's processes under `.../job_N/`; Docker, Podman, containerd and CRI-O a container's under
its id, and the kubelet a pod's under its UID. A process in a running job's cgroup is that job's: the most
certain of all sources about use. It also says where the job's own CPU and memory figures are. Forms:

    v1  /slurm/uid_1000/job_4711/step_0/task_0       /docker/ID       /kubepods/burstable/podUID/ID
    v2  /system.slice/slurmstepd.scope/job_4711/step_0/user/task_0    /system.slice/docker-ID.scope
        /kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID.slice/cri-containerd-ID.scope
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from unidle_agent.config import AgentSettings
from unidle_agent.owners import Claims, Holder
from unidle_agent.owners.people import user_name
from unidle_agent.sample import GpuReading

SLURM = re.compile(r".*/(?:slurm[^/]*/uid_(?P<uid>\d+)|[^/]*slurmstepd\.scope)/job_(?P<job>\d+)(?=/|$)")
CONTAINER = re.compile(r".*[/:-](?P<id>[0-9a-f]{64})(?:\.scope)?(?=/|$)")
POD = re.compile(r"pod(?P<uid>[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12})")
CONTAINER_ID_SHOWN = 12
"""Characters of a container's id that Docker shows."""


class CgroupSource:
    """The processes under `proc`."""

    name = "cgroup"
    precedence = 30

    def __init__(self, proc: Path = Path("/proc"), name_of: Callable[[int], str] = user_name) -> None:
        self._proc = proc
        self._name_of = name_of

    def read(self, gpus: Sequence[GpuReading]) -> Claims:
        """Job or container of each process; one outside of any has its user alone."""
        holders = {}
        for pid in sorted({pid for gpu in gpus for pid in gpu.pids or ()}):
            folder = self._proc / str(pid)
            try:
                text = (folder / "cgroup").read_text(encoding="utf-8", errors="replace")
                uid = folder.stat().st_uid
            except OSError:  # it has ended, or is in another namespace
                continue
            holders[pid] = self._holder(text, uid)
        return Claims(holders=holders)

    def close(self) -> None:
        """Nothing is held."""

    def _holder(self, text: str, uid: int) -> Holder:
        holder = parse(text)
        # A user id inside a container is nobody's on this node.
        if holder.job.isdecimal() or not holder.job:
            return Holder(holder.job, self._name_of(uid), self.name, holder.running, holder.cgroup)
        return Holder(holder.job, "", self.name, holder.running, holder.cgroup)


def parse(text: str) -> Holder:
    """Job and the job's own cgroup from the text of /proc/PID/cgroup: Slurm's before a container's."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if path:
            paths |= dict.fromkeys(controllers.split(","), path)
    for pattern in (SLURM, CONTAINER):
        found = {name: match for name, path in paths.items() if (match := pattern.match(path))}
        if found:
            match = next(iter(found.values()))
            return Holder(_job(match), running=True, cgroup={name: one[0] for name, one in found.items()})
    return Holder()


def _job(match: re.Match[str]) -> str:
    if match.re is SLURM:
        return match["job"]
    if pod := POD.search(match[0]):
        return "pod/" + pod["uid"].replace("_", "-")
    return "container/" + match["id"][:CONTAINER_ID_SHOWN]


def source(settings: AgentSettings) -> CgroupSource:  # noqa: ARG001
    """Always."""
    return CgroupSource()
