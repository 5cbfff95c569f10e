"""Silent zeros: the profiling counters say 0 although the GPU works.

What it means
    SM, tensor and DRAM activity cannot be trusted on this GPU: another profiler holds the counters, or
    the driver hides them. While it lasts the counters count as unknown, not as idle: useful activity is
    graded by GPU_UTIL, which sees less, and causes of starvation may be undetermined.

Evidence
    sm_active_ratio and all other activity 0, gpu_util_ratio at least 20 %, power at least 25 % of the
    limit where both are known.

How it decides
    Every step at which that holds is unknown at once. A person is told after it has held for 5 min; over
    when a counter says something else for 60 s.

What to do
    Find who profiles (ncu, nsys, a second DCGM with profiling on) and let it stop, or restart the agent
    and nv-hostengine; on virtual GPUs allow profiling in the hypervisor.

How to silence it
    `silence = ["silent_zeros:NODE"]` in `[collector]`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unidle_collector.detectors import About, Verdict, mean_of, percent, plural
from unidle_collector.model import Evidence
from unidle_collector.pergpu import Positions
from unidle_collector.signals import View
from unidle_collector.signs.lasting import Lasting, where
from unidle_collector.signs.silence import WORKS_RATIO


@dataclass(frozen=True, slots=True)
class Settings:
    """Seconds."""

    on_after_s: float = 300.0
    off_after_s: float = 60.0


class SilentZeros(Lasting):
    """The condition, vectorised."""

    kind = "silent_zeros"
    causes = ("counters_silent",)

    def __init__(self, size: int, period_s: float, settings: Settings) -> None:
        super().__init__(size, max(settings.off_after_s, 1.5 * period_s))
        self.settings = settings

    def look(self, view: View) -> Verdict:
        """See the module's docstring."""
        if not view.silent.any() and not self._hold.on.any():
            self._hold.reset(view.step.get("sm_active_ratio") > 0)
            return Verdict(self._hold.on, self._hold.since, self._a["cause"], self._a["loss"])
        known = view.silent | ~np.isnan(view.step.get("sm_active_ratio"))
        return self.decide(view, view.silent, known, self._a["cause"], self.settings.on_after_s)

    def about(self, view: View, gpus: Positions, cause: str, lasted_s: float) -> About:
        """What a colleague would say."""
        node, numbers = where(view, gpus)
        util = mean_of(view.step.get("gpu_util_ratio"), gpus)
        words = f"sm_active_ratio 0 while GPU_UTIL is {percent(util)}"
        return About(
            title=f"profiling counters of {plural(gpus.size, 'GPU')} say 0 while the GPU works",
            severity="info",
            confidence=0.9,
            evidence=(
                Evidence("sm_active_ratio", 0.0, "1", None, lasted_s, words),
                Evidence("gpu_util_ratio", util, "1", WORKS_RATIO, lasted_s, f"GPU_UTIL {percent(util)}"),
            ),
            advice=(
                "Let other profilers stop (ncu, nsys, a second DCGM), or restart nv-hostengine and agent; "
                "until then efficiency is graded by GPU_UTIL."
            ),
            confirm=f"dcgmi dmon -e 1002 -i {numbers} on {node} shows 0, too, or another process profiles",
        )


def make(size: int, period_s: float) -> SilentZeros:
    """The detector with the product's defaults."""
    return SilentZeros(size, period_s, Settings())
