"""Tensor cores idle: float work on the ordinary pipes, and nobody says in which number format.

What it means
    The FP32 pipes are busy and the tensor cores are not. That is a training that forgot them as well as a
    simulation, a renderer or a solver that has no use for them: counters cannot tell which. So this is
    "cannot tell", it costs nothing in the account, and nobody is told: it is there for who looks.

Evidence
    tensor_active_ratio, fp32_active_ratio, sm_active_ratio and dram_active_ratio over 60 s; no dtype_code.

How it decides
    As `tensor_cores_unused` by the counters, where no reporter inside the job has named the number format
    in the last 10 min. Work in FP64 and work bound by memory bandwidth are left out.

What to do
    Where it is a training with PyTorch: start the reporter (docs/in-job.md); then `tensor_cores_unused`
    says what to change, or nothing is said any more.

How to silence it
    `silence = ["tensor_cores_idle:JOB"]` in `[collector]`.
"""

from __future__ import annotations

import math

import numpy as np

from unidle_collector.detectors import About, duration, mean_of, percent, plural
from unidle_collector.pergpu import Bools, Floats, Positions
from unidle_collector.signals import View
from unidle_collector.signs.float_pipes import OnFloatPipes, pipes


class TensorCoresIdle(OnFloatPipes):
    """The condition, vectorised."""

    kind = "tensor_cores_idle"
    state = None
    causes = ("number_format_unknown",)
    finding_delay_s = math.inf

    def concerns(self, dtype_code: Floats) -> Bools:
        """Where nobody has named one."""
        out: Bools = np.isnan(dtype_code)
        return out

    def about(self, view: View, gpus: Positions, cause: str, lasted_s: float) -> About:
        """What a colleague would say."""
        fp32 = mean_of(view.means.mean("fp32_active_ratio"), gpus)
        return About(
            title=(
                f"{plural(gpus.size, 'GPU')} with FP32 pipes {percent(fp32)} busy and idle tensor cores for "
                f"{duration(lasted_s)}: cannot tell whether the work could use them"
            ),
            severity="info",
            confidence=0.5,
            evidence=pipes(view, gpus),
            advice=(
                "Cannot tell, because no dtype_code comes from inside the job: if it is a training with "
                "PyTorch, start the reporter (python -m unidle_agent.injob --pth)."
            ),
            confirm="the number format: by the reporter, or torch.get_float32_matmul_precision() in the job",
            runners_up=(("precision", 0.5), ("float32 work without matrix products", 0.5)),
        )


def make(size: int, period_s: float) -> TensorCoresIdle:
    """The detector with the product's defaults."""
    return TensorCoresIdle(size)
