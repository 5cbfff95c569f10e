"""Pipeline imbalance: the stages of a pipeline-parallel job do not take the same time.

What it means
    Each micro-batch passes through all stages, so the pipeline goes at the pace of the slowest one; the
    others wait for it a part of each step. Mostly the last stage is too heavy (the loss over the
    vocabulary) or the first (the embedding).

Evidence
    tensor_active_ratio of each GPU over that of the one that works most, in the order of ranks (node,
    number); and what tells waiting from other work, as for stragglers.

How it decides
    Jobs known by name, of four GPUs or more, by means over 60 s. The ranks fall into equal blocks of two or
    more neighbours that work alike (within 8 % of their block's mean) while the blocks differ: the mean block
    works less than 87 % of the heaviest, so that even stages would make the job 15 % faster. Smaller
    differences are what pipelines have. Those that wait show it as for `straggler`: they spin, and they talk.
    A job that was even before has no heavier stage but a straggler; so has one whose odd GPU is alone, or
    whose heavy GPUs are slowed down (see `straggler`).
    Held for 35 s and 6 samples; over after 60 s. Stages that wait are booked as `pipeline_imbalance` within
    90 s: 1 - their tensor activity over the heaviest stage's. A person is told after 10 min. One GPU per
    stage cannot be told from a straggler, and is called one.

What to do
    Move layers from the heavy stage to the others, or account for the loss and the embedding in the split.

How to silence it
    `silence = ["pipeline_imbalance:JOB"]` in `[collector]`.
"""

from __future__ import annotations

import numpy as np

from unidle_collector.detectors import About, mean_of, percent, plural
from unidle_collector.model import Evidence
from unidle_collector.pergpu import Bools, Floats, Positions
from unidle_collector.signals import View
from unidle_collector.signs.jobmates import UTIL, OutOfStep, Pace, slowed_down
from unidle_collector.story import places

WITHIN = 0.08
"""Of the block's mean: GPUs of one stage work alike."""
WORTH = 0.87
"""Mean over most of the stages' work: below it, even stages would win 15 % or more."""
HEAVIEST = 0.97
"""Of the heaviest block: as heavy as it."""


class PipelineImbalance(OutOfStep):
    """The condition, job by job."""

    kind = "pipeline_imbalance"
    causes = ("pipeline_imbalance",)

    def judge(self, view: View, pace: Pace, *, was_even: bool) -> Bools | None:
        """See the module's docstring."""
        if was_even:
            return None
        stages = stages_of(pace.work)
        if stages is None or stages.mean() >= WORTH * stages.max():
            return None
        heavy = np.repeat(stages >= HEAVIEST * stages.max(), pace.gpus.size // stages.size)
        return None if slowed_down(view, pace.gpus[heavy], pace.gpus[~heavy]) else heavy

    def about(self, view: View, gpus: Positions, cause: str, lasted_s: float) -> About:
        """What a colleague would say."""
        heavy = self.slow_of(view, gpus)
        members = np.concatenate((gpus, heavy))
        tensor, window_s = view.means.mean("tensor_active_ratio"), view.means.window_s
        most, mean = mean_of(tensor, heavy), mean_of(tensor, members)
        gain = None if most is None or not mean else most / mean - 1
        others, util = mean_of(tensor, gpus), mean_of(view.means.mean("gpu_util_ratio"), gpus)
        refs = self.slow_refs(view, gpus)
        names = places(refs) or "the GPUs that work most"
        evidence = (
            Evidence(
                "tensor_active_ratio", others, "1", None if most is None else WORTH * most, window_s,
                f"tensor activity {percent(others)} on the stages that wait, {percent(most)} on the heaviest "
                f"({names}); told where all together work less than {percent(WORTH)} of that",
            ),
            Evidence(
                "gpu_util_ratio", util, "1", UTIL, window_s,
                f"GPU utilization {percent(util)} on those that wait (spinning: {percent(UTIL)} or more)",
            ),
        )  # fmt: skip
        return About(
            title=(
                f"{plural(gpus.size, 'GPU')} wait for the heaviest pipeline stage, on {names}; even "
                f"stages would make the job {percent(gain)} faster"
            ),
            severity="warning",
            confidence=0.9,
            evidence=evidence,
            advice=(
                f"Give the stage on {names} fewer layers: about 1 in {_one_in(gain)} of its layers to "
                "the others (Megatron-LM: --decoder-first-pipeline-num-layers and "
                "--decoder-last-pipeline-num-layers, or --account-for-embedding-in-pipeline-split and "
                "--account-for-loss-in-pipeline-split), or more micro-batches with "
                "--num-layers-per-virtual-pipeline-stage."
            ),
            confirm=(
                "the time of one micro-batch by stage (Megatron-LM --timing-log-level 2), or unidle diagnose "
                "--timeline FILE"
            ),
            runners_up=(("straggler", 0.05),),
            held_back_by=refs,
        )


def stages_of(work: Floats) -> Floats | None:
    """[stages] mean work of the fewest equal blocks of neighbours that work alike; None: there are none."""
    for count in range(2, work.size // 2 + 1):
        if work.size % count:
            continue
        blocks = work.reshape(count, -1)
        means: Floats = blocks.mean(axis=1)
        if bool((np.abs(blocks - means[:, None]) <= WITHIN * means[:, None]).all()):
            return means
    return None


def _one_in(gain: float | None) -> int:
    """One in how many of the heavy stage's layers is too much, where even stages would win `gain`."""
    return max(2, round(1 + 1 / gain)) if gain else 5


def make(size: int, period_s: float) -> PipelineImbalance:
    """The detector with the product's defaults."""
    return PipelineImbalance(size, period_s)
