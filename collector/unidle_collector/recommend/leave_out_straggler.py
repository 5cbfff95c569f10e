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
from unidle_collector.repairs import drain, resume, start_elsewhere


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
        command=_command(finding),
        undo=_undo(finding),
        measure="tensor activity by GPU of the job's next run: least over most",
    )


def _slow(finding: Finding) -> dict[str, str]:
    """Node -> its slow GPUs, as `nvidia-smi -i` takes them."""
    out: dict[str, list[str]] = {}
    for ref in finding.held_back_by:
        out.setdefault(ref.node, []).append(ref.gpu if ref.index is None else str(ref.index))
    return {node: ",".join(gpus) for node, gpus in sorted(out.items())}


def _command(finding: Finding) -> str:
    """First what tells a slow GPU from one with more work, then what to do about a slow one."""
    explain = f"unidle explain {shell(finding.id)}"
    slow = _slow(finding)
    if not slow:
        return f"{explain}  # names the slow node; submit again with sbatch --exclude of it"
    looks = [
        f"ssh {shell(node)} nvidia-smi -q -d CLOCK,PERFORMANCE -i {shell(gpus)}"
        for node, gpus in slow.items()
    ]
    unless = "# where its clocks are low or a slowdown is active; else its rank has more work:"
    return "\n".join([explain, *looks, unless, *_away(finding, list(slow))])


def _away(finding: Finding, nodes: list[str]) -> list[str]:
    again = start_elsewhere(finding) or [f"# after a checkpoint: sbatch --exclude={shell(','.join(nodes))}"]
    return [*(drain(finding, "straggler", node) for node in nodes), *again]


def _undo(finding: Finding) -> str:
    return "\n".join(resume(finding, node) for node in _slow(finding)) or "submit again without --exclude"
