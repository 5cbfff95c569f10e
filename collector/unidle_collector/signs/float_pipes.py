"""Work that keeps the FP32 pipes busy and the tensor cores idle: what two detectors ask, each in its way.

Thresholds are ratios 0-1 of means over 60 s. Tensor activity below 2 % is none: trainings that use the cores
badly show up to 5.2 % (DATE'24). SM activity has to be half at least: below that `starvation` says what it
waits for. FP32 pipes busy in a quarter of the cycles are half of what such SMs do. Work bound by memory
bandwidth gains nothing. FP64 is another matter: who computes in it has no choice, and nothing here looks at
it.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from unidle_collector.catalogue import catalogue
from unidle_collector.detectors import Detector, Verdict, mean_of, percent
from unidle_collector.model import Evidence
from unidle_collector.pergpu import NEVER, SECOND_NS, Bools, Floats, Hold, PerGpu, Positions, known_or
from unidle_collector.signals import View

TENSOR_IDLE, TENSOR_USED = 0.02, 0.04
FP32_BUSY, FP32_OVER = 0.25, 0.20
SM_BUSY, SM_OVER = 0.50, 0.45
DRAM_BOUND = 0.60
ON_AFTER_S, OFF_AFTER_S, FORGET_S = 300.0, 120.0, 1800.0
SAID_FOR_S = 600.0
"""How long the word of the reporter inside the job holds."""


class OnFloatPipes(Detector):
    """FP32 pipes busy and tensor cores idle for 5 min, and something about the number format."""

    groups_by = "job"
    accounting_delay_s = ON_AFTER_S
    grace = "until a job has started, at most 10 min"

    def __init__(self, size: int) -> None:
        self._reference = catalogue().reference.sm
        self._hold = Hold(size, OFF_AFTER_S, FORGET_S)
        self._a = PerGpu(size)
        self._a.make("format", np.float64, np.nan)
        self._a.make("said_ns", np.int64, NEVER)
        self._a.make("cause", np.int16, 0)

    def look(self, view: View) -> Verdict:
        """Take one step."""
        a, step = self._a, view.step
        said = step.get("dtype_code")
        fresh = ~np.isnan(said)
        a["format"][fresh], a["said_ns"][fresh] = said[fresh], step.end_ns
        lately = step.end_ns - a["said_ns"] <= int(SAID_FOR_S * SECOND_NS)
        computes, known = _without_tensor_cores(view, self._hold.on)
        yes = computes & self.concerns(np.where(lately, a["format"], np.nan))
        self._hold.update(yes, known, step.start_ns, step.end_ns, np.int64(ON_AFTER_S * SECOND_NS))
        loss = known_or(1 - np.minimum(1.0, view.useful / self._reference))
        if self.state is None:
            loss[:] = 0.0
        return Verdict(self._hold.on, self._hold.since, a["cause"], loss)

    @abstractmethod
    def concerns(self, dtype_code: Floats) -> Bools:
        """[GPUs] does the number format that the job named lately matter here; NaN: it named none."""

    def reset(self, gpus: Bools) -> None:
        """Another job: anew."""
        self._hold.reset(gpus)
        self._a["format"][gpus], self._a["said_ns"][gpus] = np.nan, NEVER


def _without_tensor_cores(view: View, on: Bools) -> tuple[Bools, Bools]:
    """([GPUs] does it compute so, [GPUs] is all known that tells); `on` [GPUs] keeps on for longer."""
    m = view.means
    tensor, fp32, sm = (m.mean(f"{name}_active_ratio") for name in ("tensor", "fp32", "sm"))
    dram = m.mean("dram_active_ratio")
    known = view.alive & view.allocated & ~view.in_grace & ~np.isnan(tensor + fp32 + sm + dram)
    computes = (
        (tensor < np.where(on, TENSOR_USED, TENSOR_IDLE))
        & (fp32 >= np.where(on, FP32_OVER, FP32_BUSY))
        & (sm >= np.where(on, SM_OVER, SM_BUSY))
        & (dram < DRAM_BOUND)
    )
    return computes & known, known


def pipes(view: View, gpus: Positions) -> tuple[Evidence, ...]:
    """What the profiling counters say of the work on `gpus`."""
    out = []
    for field, limit, text in (
        ("fp32_active_ratio", FP32_BUSY, "FP32 pipes busy"),
        ("tensor_active_ratio", TENSOR_IDLE, "tensor cores busy"),
        ("sm_active_ratio", SM_BUSY, "SM activity"),
        ("dram_active_ratio", DRAM_BOUND, "of the memory bandwidth used"),
    ):
        value = mean_of(view.means.mean(field), gpus)
        out.append(Evidence(field, value, "1", limit, view.means.window_s, f"{percent(value)} {text}"))
    return tuple(out)
