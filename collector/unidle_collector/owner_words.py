"""What is peculiar about who holds a GPU, as a sentence: for the pages and commands that people read.

The notes are the words of `unidle_agent.owners.resolve`, which says when each is used.
"""

from __future__ import annotations

from unidle_agent.owners.resolve import (
    CONFLICT,
    NO_PROCESS,
    NOT_ALLOCATED,
    ORPHAN,
    OTHER_PROCESS,
    OUTSIDE,
    SHARED,
    STALE,
)

SENTENCES = {
    NO_PROCESS: "allocated to {job}, no process on it",
    OTHER_PROCESS: "allocated to {job}, also used by a process of no job",
    CONFLICT: "allocated to {job}, but used by {used_by}",
    ORPHAN: "still used by processes of {used_by}, {which} ended",
    NOT_ALLOCATED: "used by {used_by}, allocated to nobody",
    OUTSIDE: "used outside the scheduler, by processes of no job",
    SHARED: "shared by {job}",
    STALE: "said to be of {job} by an old prolog file that nothing confirms",
}


def owner_words(job: str, note: str, used_by: str) -> str:
    """What a person should know of a GPU's owner beside the job; empty where all is as it should be.

    `job`, `note` and `used_by` are `GpuNow`'s `job`, `owner_note` and `used_by`. A note that this version
    does not know is shown as it came.
    """
    if note == CONFLICT and not job:  # the scheduler has given it to nobody
        note = NOT_ALLOCATED
    if note in SENTENCES:
        which = "which have" if "," in used_by else "which has"
        return SENTENCES[note].format(job=_jobs(job), used_by=_jobs(used_by), which=which)
    if note:
        return note
    return f"used by {_jobs(used_by)}, of which nobody says whether it runs" if used_by else ""


def _jobs(names: str) -> str:
    """ "job 7", "jobs 7 and 8", "a job" where it has no name."""
    listed = names.split(",") if names else []
    if not listed:
        return "a job"
    return f"job {listed[0]}" if len(listed) == 1 else f"jobs {', '.join(listed[:-1])} and {listed[-1]}"
