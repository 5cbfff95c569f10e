"""One owner per GPU from what is allocated and what is used: a pure function of both.

    allocated   processes                 owner, note                             confidence
    to J        all of J                  J                                       high
    to J        none                      J, `no process`                         the allocation's
    to J        of J and unknown          J, `other process`                      medium
    to J        of K                      J, used by K, `conflict`                low
    to nobody   of a job that has ended   nobody, used by that job, `orphan`      high
    to nobody   of K, which runs          nobody, used by K, `not allocated`      medium
    to nobody   of no job                 nobody, `outside the scheduler`         medium
    unknown     of K, which runs          K                                       inferred

Several jobs on one GPU are `shared`; a prolog file that nothing confirms is `stale` (see `prolog`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from unidle_agent.owners import Holder
from unidle_agent.wire import Owner

NO_PROCESS = "no process"
OTHER_PROCESS = "other process"
CONFLICT = "conflict"
ORPHAN = "orphan"
NOT_ALLOCATED = "not allocated"
OUTSIDE = "outside the scheduler"
SHARED = "shared"
STALE = "stale"


def resolve(
    said: Owner, claims: Sequence[Owner], pids: Sequence[int] | None, holders: Mapping[int, Holder]
) -> Owner:
    """Who holds one GPU.

    `said` is what the samples themselves brought (labels of dcgm-exporter), `claims` what the sources of
    owners say of its allocation, the one that wins first; `pids` its processes, None where unknown.
    """
    if said.allocated is False and said.confidence == "high":
        return said  # the driver's word on slices in no MIG instance: nobody can hold them
    answers = [claim for claim in (*claims, said) if claim.allocated is not None]
    allocation = next((claim for claim in answers if claim.allocated), answers[0] if answers else said)
    seen = [holders[pid] for pid in pids or () if pid in holders]
    if allocation.allocated:
        return _held(allocation, seen, empty=pids is not None and not pids)
    return _used(allocation, seen) if seen else allocation


def join_holders(sources: Iterable[Mapping[int, Holder]]) -> dict[int, Holder]:
    """One holder per process: job and its running state of the first source that names one."""
    out: dict[int, Holder] = {}
    for holders in sources:
        for pid, new in holders.items():
            old = out.get(pid)
            if old is None:
                out[pid] = new
                continue
            first, second = (old, new) if old.job or not new.job else (new, old)
            user, cgroup = first.user or second.user, first.cgroup or second.cgroup
            out[pid] = replace(first, user=user, cgroup=cgroup)
    return out


def _held(allocation: Owner, seen: Sequence[Holder], *, empty: bool) -> Owner:
    jobs = set(allocation.job.split(","))
    own = [holder for holder in seen if _is_of(holder, jobs)]
    foreign = {holder.job for holder in seen if holder.job and not _is_of(holder, jobs)}
    owner = replace(allocation, user=allocation.user or _users(own))
    if foreign:
        return replace(owner, confidence="low", note=CONFLICT, used_by=",".join(sorted(foreign)))
    if any(not holder.job for holder in seen):
        return replace(owner, confidence="medium", note=OTHER_PROCESS)
    if own and len(jobs) == 1:
        return replace(owner, confidence="high", note="")
    return replace(owner, note=allocation.note or NO_PROCESS) if empty else owner


def _used(nobody: Owner, seen: Sequence[Holder]) -> Owner:
    """Processes on a GPU that is allocated to nobody, or of which nobody says."""
    running = [holder for holder in seen if holder.job and holder.running]
    ended = [holder for holder in seen if holder.job and holder.running is False]
    unclear = [holder for holder in seen if holder.job and holder.running is None]
    if running and nobody.allocated is None:
        jobs = _jobs(running)
        note = SHARED if "," in jobs else ORPHAN if ended else ""
        source, used_by = running[0].source, _jobs(ended)
        return Owner(
            True, jobs, _users(running), source=source, confidence="inferred", note=note, used_by=used_by
        )
    if running:
        return replace(nobody, confidence="medium", note=NOT_ALLOCATED, used_by=_jobs(running))
    if ended:
        source = nobody.source or ended[0].source
        return Owner(
            False, "", _users(ended), source=source, confidence="high", note=ORPHAN, used_by=_jobs(ended)
        )
    if unclear:
        source = nobody.source or unclear[0].source
        return replace(nobody, source=source, confidence="low", used_by=_jobs(unclear))
    source = nobody.source or seen[0].source
    return replace(nobody, user=_users(seen), source=source, confidence="medium", note=OUTSIDE)


def _is_of(holder: Holder, jobs: set[str]) -> bool:
    """Pods have a name in one world and a UID in the other: any container counts as the pod's."""
    if holder.job in jobs:
        return bool(holder.job)
    return holder.job.startswith(("pod/", "container/")) and any("/" in job for job in jobs)


def _jobs(holders: Iterable[Holder]) -> str:
    return ",".join(sorted({holder.job for holder in holders if holder.job}))


def _users(holders: Iterable[Holder]) -> str:
    return ",".join(sorted({holder.user for holder in holders if holder.user}))
