"""A node as the owners package sees it: GPUs, and trees like /proc and /sys/fs/cgroup."""

from __future__ import annotations

from pathlib import Path

from unidle_agent.sample import GpuReading
from unidle_agent.wire import GpuFacts, Owner

SLURM_V2 = "0::/system.slice/slurmstepd.scope/job_{job}/step_0/user/task_0\n"
SESSION = "0::/user.slice/user-1000.slice/session-3.scope\n"


def gpu(
    index: int,
    *pids: int,
    instance: str = "",
    mig_uuid: str = "",
    owner: Owner | None = None,
    minor: int | None = None,
) -> GpuReading:
    """GPU `index` (or a MIG instance of it) with the processes `pids`."""
    facts = GpuFacts(
        f"GPU-{index}{instance}",
        index,
        minor=index if minor is None else minor,
        mig_uuid=mig_uuid,
        owner=owner or Owner(),
    )
    return GpuReading(facts, {}, pids)


class Node:
    """Trees under `root`; the processes and Slurm jobs in them."""

    def __init__(self, root: Path) -> None:
        self.proc, self.cgroups = root / "proc", root / "cgroup"
        self.cgroups.mkdir(parents=True, exist_ok=True)
        self.process(2, comm="kthreadd")

    def process(
        self, pid: int, cgroup: str = "0::/\n", comm: str = "python", title: str = "", **environ: str
    ) -> None:
        folder = self.proc / str(pid)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup").write_text(cgroup)
        (folder / "comm").write_text(comm + "\n")
        (folder / "cmdline").write_bytes(title.encode() + b"\0")
        (folder / "environ").write_bytes("".join(f"{key}={text}\0" for key, text in environ.items()).encode())

    def slurmstepd(self, pid: int, job: str) -> None:
        self.process(pid, comm="slurmstepd", title=f"slurmstepd: [{job}.batch]")

    def job_cgroup(self, job: str) -> Path:
        folder = self.cgroups / f"system.slice/slurmstepd.scope/job_{job}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder
