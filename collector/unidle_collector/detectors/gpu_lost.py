"""GPU lost: the driver says that a GPU has fallen off the bus.

What it means
    The driver answers NVML error 15 for it: the hardware does not answer any more, as a rule with an
    XID 79. The job on it is dead, and nothing can run on it until the machine is restarted.

Evidence
    gpu_state is 1.

How it decides
    On at once, off when it answers. Its time has failed meanwhile.

What to do
    Drain the node and power-cycle the machine. Where it comes again, reseat or replace the GPU. A GPU
    whose driver hangs is another finding, driver_hung.

How to silence it
    `silence = ["gpu_lost:NODE"]` in `[collector]`.
"""

from __future__ import annotations

from unidle_agent.sample import GPU_LOST
from unidle_collector.detectors import About, Verdict, duration, plural
from unidle_collector.model import Evidence
from unidle_collector.pergpu import Positions
from unidle_collector.signals import View
from unidle_collector.signs.lasting import Unanswered, drain, where


class GpuLost(Unanswered):
    """The condition, vectorised."""

    kind = "gpu_lost"
    causes = ("lost",)

    def look(self, view: View) -> Verdict:
        """See the module's docstring."""
        return self.hold_state(view, GPU_LOST, 0.0)

    def about(self, view: View, gpus: Positions, cause: str, lasted_s: float) -> About:
        """What a colleague would say."""
        node, numbers = where(view, gpus)
        words = "the driver says that it is lost (NVML 15)"
        return About(
            title=f"{plural(gpus.size, 'GPU')} lost for {duration(lasted_s)}",
            severity="critical",
            confidence=0.95,
            evidence=(Evidence("gpu_state", float(GPU_LOST), "state", 0.0, lasted_s, words),),
            advice=f"{drain(node, f'GPU {numbers} lost')}, then power-cycle the machine.",
            confirm=f"nvidia-smi on {node}, and dmesg | grep -i xid: an XID 79 says that it fell off the bus",
            asks_flight=True,
        )


def make(size: int, period_s: float) -> GpuLost:
    """The detector with the product's defaults."""
    return GpuLost(size)
