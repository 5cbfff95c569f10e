"""Leave out a straggler: the job runs again without the GPU or node that all others wait for.

What it proposes
    To submit a job again without its slow node, or to give its slow rank the same work as the others, when a
    finding `straggler` has been told. Lever: fix.

What it wins
    The time that the others wait now.

What it risks
    The work since the last checkpoint, and the wait for another node. Where the slow rank only has more work
    than the others another node changes nothing: look at that first.
"""

from __future__ import annotations

from unidle_collector.model import Finding, Recommendation
from unidle_collector.recommend import change_of_job, shell


def advise(finding: Finding, now_ns: int) -> Recommendation | None:
    """For a straggler, None for any other."""
    if finding.kind != "straggler":
        return None
    return change_of_job(
        finding,
        now_ns,
        kind="leave_out_straggler",
        title=f"End the wait of {finding.subject}: {finding.title}",
        constraint="another place of the same size, or a change to the owner's script",
        risk="the work since the last checkpoint is lost if the job is started again now",
        assumptions=("without it the job runs at the pace of the others",),
        command=(
            f"unidle explain {shell(finding.id)}  # names it, and says whether it is slow or has more work\n"
            "# slow: submit again after a checkpoint with sbatch --exclude=NODE, and drain the node"
        ),
        undo="submit again without --exclude",
        measure="tensor activity by GPU of the job's next run: least over most",
    )
