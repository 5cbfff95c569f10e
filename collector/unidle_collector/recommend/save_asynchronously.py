"""Save checkpoints asynchronously: the job goes on while they are written.

What it proposes
    To write the checkpoints of a job beside its work, or less often, when a finding `checkpoint_stall` has
    been told. Lever: fix.

What it wins
    The share of the time for which all its GPUs stop now; a copy to main memory still stops them for seconds.

What it risks
    Main memory for one copy of the state; less often means more lost work when the job fails.
"""

from __future__ import annotations

from unidle_collector.detectors import plural
from unidle_collector.model import Finding, Recommendation
from unidle_collector.recommend import change_of_job


def advise(finding: Finding, now_ns: int) -> Recommendation | None:
    """For a checkpoint stall, None for any other."""
    if finding.kind != "checkpoint_stall":
        return None
    return change_of_job(
        finding,
        now_ns,
        kind="save_asynchronously",
        title=(
            f"Save the checkpoints of {finding.subject} asynchronously: "
            f"{plural(len(finding.gpus), 'GPU')} stop for them"
        ),
        constraint="the training script, which its owner changes; main memory for one copy of the state",
        risk="a checkpoint that is not complete yet is lost when the job fails; keep the one before",
        assumptions=("the copy to main memory takes seconds, against the time that the finding shows",),
        command=(
            "# PyTorch 2.4 and newer: torch.distributed.checkpoint.async_save(state, checkpoint_id=PATH)\n"
            "# Megatron-LM: --async-save"
        ),
        undo="torch.distributed.checkpoint.save as before",
        measure="starved.checkpoint GPU-hours of the job's next run, per hour that it runs",
    )
