"""Power throttling: the supply of power slows a GPU down.

What it means
    A power brake (power supply or rack), a hardware slowdown, or a power cap that costs this GPU clocks
    which its siblings on the same work keep. A healthy job that runs at its power limit is no incident:
    the software power-cap bit alone never counts.

Evidence
    Clock event reasons 0x80 (power brake) and 0x8 (hardware slowdown) without a thermal bit, the
    cumulative power brake time; for a cap, the SM clock against siblings in the same job.

How it decides
    Brake: bit 0x80, or bit 0x8 without 0x20 and 0x40, or the power brake time grew by at least 10 % of
    the step. Cap: bit 0x4 or power-cap time, and a clock at least 15 % below the median of three or more
    siblings of the same model in the same job (else on the same node). It must cost at least 3 % of the
    clock (or the clock be unknown) while something runs. On after 5 s in a row, off after 15 s without.

What to do
    Brake: look at power supplies, PDU and rack limits. Cap: compare power limits (nvidia-smi -q -d POWER).

How to silence it
    `silence = ["throttling_power:NODE"]` in `[collector]`.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from unidle_collector.detectors import About, Verdict, duration, plural
from unidle_collector.signals import View
from unidle_collector.throttle import (
    HW_SLOWDOWN,
    POWER_BRAKE,
    SW_POWER_CAP,
    THERMAL,
    Settings,
    Throttling,
    bits,
    grew,
)

CAUSES = ("power_brake", "hw_slowdown", "power_cap")
CAP_LOSS = 0.15


class ThrottlingPower(Throttling):
    """The condition, vectorised."""

    kind: ClassVar[str] = "throttling_power"
    causes: ClassVar[tuple[str, ...]] = CAUSES

    def look(self, view: View) -> Verdict:
        """See the module's docstring."""
        thermal, _ = bits(view, THERMAL)
        brake_bit, bit_known = bits(view, POWER_BRAKE)
        slowdown_bit, _ = bits(view, HW_SLOWDOWN)
        braked, brake_known = grew(view, "power_brake_s", self.settings)
        brake = brake_bit | braked
        slowdown = slowdown_bit & ~thermal & ~brake
        siblings, own = self.references(view, brake | slowdown | thermal)
        cap_bit, _ = bits(view, SW_POWER_CAP)
        capped, cap_known = grew(view, "power_cap_s", self.settings)
        behind = view.step.get("sm_clock_hz") < (1 - CAP_LOSS) * siblings
        cap = (cap_bit | capped) & behind & ~brake & ~slowdown & ~thermal
        reference = np.where(np.isnan(siblings), own, siblings)
        cause = np.select((brake, slowdown), (0, 1), 2).astype(np.int16)
        return self.decide(
            view, brake | slowdown | cap, bit_known | brake_known | cap_known, reference, cause
        )

    def delay_s(self, cause: str) -> float:
        """5 s; a cap is watched for a minute, clocks of siblings differ for a moment now and then."""
        return 60.0 if cause == "power_cap" else self.finding_delay_s

    def about(
        self, view: View, gpus: np.ndarray[tuple[int], np.dtype[np.intp]], cause: str, lasted_s: float
    ) -> About:
        """What a colleague would say."""
        what = {
            "power_brake": "a power brake",
            "hw_slowdown": "a hardware slowdown",
            "power_cap": "a power cap that its siblings do not have",
        }[cause]
        advice = {
            "power_brake": "Move the job, and check the node's power supplies, the PDU and the rack's limit.",
            "hw_slowdown": (
                "Move the job, drain the node and read nvidia-smi -q -d PERFORMANCE for the "
                "reason."
            ),
            "power_cap": (
                "Compare power limits with the siblings (nvidia-smi -q -d POWER) and set "
                "them alike with nvidia-smi -pl."
            ),
        }[cause]  # fmt: skip
        return About(
            title=(
                f"{plural(gpus.size, 'GPU')} slowed by {what} for {duration(lasted_s)}: "
                f"{self.loss_text(gpus)}"
            ),
            severity="warning" if cause == "power_cap" else "critical",
            confidence=0.8 if cause == "power_cap" else 0.95,
            evidence=tuple(self.evidence(view, gpus, lasted_s)),
            advice=advice,
            confirm="nvidia-smi -q -d POWER,PERFORMANCE on the node",
            asks_flight=True,
        )


def make(size: int, period_s: float) -> ThrottlingPower:
    """The detector with the product's defaults."""
    return ThrottlingPower(size, period_s, Settings())
