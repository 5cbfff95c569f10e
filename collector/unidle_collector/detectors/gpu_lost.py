"""GPU lost: a GPU, or the driver behind it, does not answer any more.

What it means
    The driver says that the GPU is lost (NVML error 15: it fell off the bus), or a driver call on it
    does not return. The job on it is dead or hangs, and nothing can run on it until it is repaired.

Evidence
    gpu_state: 1 lost, 2 the driver does not answer.

How it decides
    gpu_state is 1 or 2. On at once; a driver that hangs must have hung for 10 s. Off when it answers.

What to do
    Drain the node. Lost: a bare-metal restart. Hung driver: read the kernel log for XIDs, then reset.

How to silence it
    `silence = ["gpu_lost:NODE"]` in `[collector]`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from unidle_collector.detectors import About, Verdict, duration, plural
from unidle_collector.model import Evidence, State
from unidle_collector.pergpu import SECOND_NS, Bools, Hold, PerGpu
from unidle_collector.signals import View

LOST, HUNG = 1, 2
HUNG_AFTER_S = 10.0
FORGET_S = 86_400.0


class GpuLost:
    """The condition, vectorised."""

    kind: ClassVar[str] = "gpu_lost"
    state: ClassVar[State | None] = "failed"
    causes: ClassVar[tuple[str, ...]] = ("lost", "driver_hung")
    groups_by: ClassVar[Literal["job", "node"]] = "node"
    finding_delay_s: ClassVar[float] = 0.0
    accounting_delay_s: ClassVar[float] = 0.0
    grace: ClassVar[str] = "10 s for a driver call that does not return"

    def __init__(self, size: int) -> None:
        self._hold = Hold(size, 0.0, FORGET_S)
        self._a = PerGpu(size)
        self._a.make("cause", np.int16, 0)
        self._a.make("loss", np.float64, 1.0)

    def look(self, view: View) -> Verdict:
        """See the module's docstring."""
        state, step = view.step.get("gpu_state"), view.step
        bad = state > 0
        known = view.step.sampled & ~np.isnan(state)
        after = np.where(state == HUNG, np.int64(HUNG_AFTER_S * SECOND_NS), np.int64(0))
        self._hold.update(bad, known, step.start_ns, step.end_ns, after)
        np.copyto(self._a["cause"], np.where(state == HUNG, 1, 0).astype(np.int16), where=bad)
        return Verdict(self._hold.on, self._hold.since, self._a["cause"], self._a["loss"])

    def delay_s(self, cause: str) -> float:
        """Told at once."""
        return self.finding_delay_s

    def about(
        self, view: View, gpus: np.ndarray[tuple[int], np.dtype[np.intp]], cause: str, lasted_s: float
    ) -> About:
        """What a colleague would say."""
        lost = cause == "lost"
        value = LOST if lost else HUNG
        words = "the driver says that it is lost (NVML 15)" if lost else "a driver call on it does not return"
        action = "restart the machine" if lost else "read the kernel log for XIDs, then reset the GPU"
        return About(
            title=(
                f"{plural(gpus.size, 'GPU')} {'lost' if lost else 'behind a hung driver'} for "
                f"{duration(lasted_s)}"
            ),
            severity="critical",
            confidence=0.99 if lost else 0.9,
            evidence=(Evidence("gpu_state", float(value), "state", 0.0, lasted_s, words),),
            advice=f"Drain the node, {action}.",
            confirm="nvidia-smi on the node, and dmesg | grep -i xid",
            asks_flight=True,
        )

    def reset(self, gpus: Bools) -> None:
        """Another job does not repair a GPU."""

    def resize(self, size: int) -> None:
        """Grow."""
        self._hold.resize(size)
        self._a.resize(size)


def make(size: int, period_s: float) -> GpuLost:
    """The detector with the product's defaults."""
    return GpuLost(size)
