"""Even stages: layers move from the heavy stage of a pipeline to those that wait for it.

What it proposes
    To split a pipeline-parallel model anew when a finding `pipeline_imbalance` has been told. Lever: fix.

What it wins
    What the light stages wait now, but for the part that whole layers cannot share out.

What it risks
    Memory: a stage with more layers holds more. A checkpoint may have to be converted to the new split.
"""

from __future__ import annotations

from unidle_collector.model import Finding, Recommendation
from unidle_collector.recommend import change_of_job
from unidle_collector.story import places


def advise(finding: Finding, now_ns: int) -> Recommendation | None:
    """For stages that are uneven, None for any other."""
    if finding.kind != "pipeline_imbalance":
        return None
    return change_of_job(
        finding,
        now_ns,
        kind="even_stages",
        title=f"Even out the pipeline stages of {finding.subject}: {finding.title}",
        constraint="the model's layers are whole; memory of the stages that take more",
        risk="a checkpoint of the old split may have to be converted",
        assumptions=("layers can be moved in steps small enough to even the stages out",),
        command=(
            f"# fewer layers for the stage on {places(finding.held_back_by) or 'the GPUs that work most'}\n"
            "# Megatron-LM: --decoder-first-pipeline-num-layers N --decoder-last-pipeline-num-layers N, or\n"
            "# --account-for-embedding-in-pipeline-split --account-for-loss-in-pipeline-split"
        ),
        undo="the split as before",
        measure="tensor activity by GPU of the job's next run: least over most",
    )
