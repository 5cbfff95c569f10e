"""Tensor cores unused: a training computes in float32 on the ordinary pipes.

What it means
    The job multiplies matrices with the FP32 pipes while the tensor cores, several times as fast at it, do
    nothing. The GPU is busy: no GPU-hours are lost by the account (its loss weight is that of the SM
    activity, near 0), but the same work could take a fraction of them.

Evidence
    tensor_active_ratio, fp32_active_ratio, sm_active_ratio and dram_active_ratio over 60 s, and dtype_code
    of the reporter inside the job: the number format of autocast, else of the optimizer's parameters.

How it decides
    Tensor activity below 2 %, FP32 pipes 25 % or more, SM activity 50 % or more, memory bandwidth below
    60 %, and the reporter says float32 without TF32 products, for 5 min; over when one of them is beyond
    4 %, 20 %, 45 % or 60 % for 2 min. The reporter has to have said so within the last 10 min. A counter
    cannot tell TF32, BF16 and FP8 apart, nor a matrix product from a simulation: without the reporter
    nothing is claimed (see `tensor_cores_idle`). float64 is never told to change, nor is work bound by
    memory bandwidth. It is advice, severity info, told after 30 min.

What to do
    PyTorch: torch.set_float32_matmul_precision("high") lets float32 products use TF32 (GPUs from A100 on);
    torch.autocast("cuda", dtype=torch.bfloat16) is faster still. V100 and T4 have neither: float16 with a
    GradScaler. Compare the loss of some hundred steps before and after.

How to silence it
    `silence = ["tensor_cores_unused:JOB"]` in `[collector]`.
"""

from __future__ import annotations

from unidle_collector.detectors import About, duration, mean_of, percent, plural
from unidle_collector.model import Evidence
from unidle_collector.pergpu import Bools, Floats, Positions
from unidle_collector.signals import View
from unidle_collector.signs.float_pipes import SAID_FOR_S, OnFloatPipes, pipes

FLOAT32 = 1.0
"""`dtype_code` of float32 without TF32 products."""


class TensorCoresUnused(OnFloatPipes):
    """The condition, vectorised."""

    kind = "tensor_cores_unused"
    state = "starved"
    causes = ("precision",)
    finding_delay_s = 1800.0

    def concerns(self, dtype_code: Floats) -> Bools:
        """float32 alone: float64 has its reasons, and all others do use the tensor cores."""
        out: Bools = dtype_code == FLOAT32
        return out

    def about(self, view: View, gpus: Positions, cause: str, lasted_s: float) -> About:
        """What a colleague would say."""
        fp32 = mean_of(view.means.mean("fp32_active_ratio"), gpus)
        said = "the reporter in the job says float32, without TF32 products"
        return About(
            title=(
                f"{plural(gpus.size, 'GPU')} training in float32 for {duration(lasted_s)}: FP32 pipes "
                f"{percent(fp32)} busy, tensor cores unused"
            ),
            severity="info",
            confidence=0.9,
            evidence=(
                *pipes(view, gpus),
                Evidence("dtype_code", FLOAT32, "{code}", FLOAT32, SAID_FOR_S, said),
            ),
            advice=(
                'Call torch.set_float32_matmul_precision("high") before training (TF32; A100 and newer), or '
                'train under torch.autocast("cuda", dtype=torch.bfloat16); on V100 and T4 under '
                "torch.float16 with torch.amp.GradScaler. Compare the loss of some hundred steps first."
            ),
            confirm="a profile of one step: its longest kernels are sgemm, not tf32 or tensorop",
            runners_up=(("float32 work without matrix products", 0.05),),
        )


def make(size: int, period_s: float) -> TensorCoresUnused:
    """The detector with the product's defaults."""
    return TensorCoresUnused(size)
