"""Thermal throttling: heat slows a GPU down.

What it means
    The GPU (or its memory) is too hot, and the driver or the hardware lowers the clocks. Every job on
    it runs slower, and a job over many GPUs runs as slowly as its hottest one.

Evidence
    Clock event reasons 0x20 (software thermal) and 0x40 (hardware thermal), the cumulative thermal
    throttle times, the signed thermal margin, and the SM clock against siblings.

How it decides
    One of the two bits is set, or a thermal throttle time grew by at least 10 % of the step; where
    neither is known, a margin below the model's slowdown offset, or a temperature at the model's limit
    together with a clock at least 10 % below its siblings. It must cost at least 3 % of the clock
    (or the clock be unknown) while something runs. On after 5 s, off after 15 s without.
    The loss is 1 - clock / clock of unthrottled siblings in the same job (else on the same node), or
    of the GPU's own best clock under the job.

What to do
    Move the job, drain the node, look at fans, filters, coolant flow and intake temperature.

How to silence it
    `silence = ["throttling_thermal:NODE"]` in `[collector]`.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from unidle_collector.detectors import About, Verdict, duration, plural
from unidle_collector.pergpu import Bools, Floats
from unidle_collector.signals import View
from unidle_collector.throttle import HW_THERMAL, THERMAL, Settings, Throttling, bits, grew

CAUSES = ("software_thermal", "hardware_thermal")


class ThrottlingThermal(Throttling):
    """The condition, vectorised."""

    kind: ClassVar[str] = "throttling_thermal"
    causes: ClassVar[tuple[str, ...]] = CAUSES

    def look(self, view: View) -> Verdict:
        """See the module's docstring."""
        bit, bit_known = bits(view, THERMAL)
        software, software_known = grew(view, "thermal_throttle_s", self.settings)
        hardware, hardware_known = grew(view, "hw_thermal_throttle_s", self.settings)
        told = bit_known | software_known | hardware_known
        signal = bit | software | hardware
        siblings, own = self.references(view, signal)
        inferred, inferred_known = self._from_heat(view, siblings)
        signal = np.where(told, signal, inferred)
        hard, _ = bits(view, HW_THERMAL)
        reference = np.where(np.isnan(siblings), own, siblings)
        cause = np.where(hard | hardware, 1, 0).astype(np.int16)
        return self.decide(view, signal, told | inferred_known, reference, cause)

    def _from_heat(self, view: View, siblings: Floats) -> tuple[Bools, Bools]:
        """For exporters that send no reasons: heat at its limit, and clocks that show it."""
        margin, temperature = view.step.get("thermal_margin_c"), view.step.get("temperature_c")
        offset, limit = view.inventory.a["slowdown_margin_c"], view.inventory.a["limit_c"]
        slow = view.step.get("sm_clock_hz") < 0.9 * siblings
        hot: Bools = (margin < offset) | ((temperature >= limit) & slow)
        return hot, ~np.isnan(margin) | ~np.isnan(temperature)

    def delay_s(self, cause: str) -> float:
        """5 s: heat does not go away by itself."""
        return self.finding_delay_s

    def about(
        self, view: View, gpus: np.ndarray[tuple[int], np.dtype[np.intp]], cause: str, lasted_s: float
    ) -> About:
        """What a colleague would say."""
        what = "hardware" if cause == "hardware_thermal" else "the driver"
        return About(
            title=(
                f"{plural(gpus.size, 'GPU')} slowed by {what} because of heat, for "
                f"{duration(lasted_s)}: {self.loss_text(gpus)}"
            ),
            severity="critical" if cause == "hardware_thermal" else "warning",
            confidence=0.95,
            evidence=tuple(self.evidence(view, gpus, lasted_s)),
            advice=(
                "Move the job to a cooler node and drain this one; check fans, filters, "
                "coolant flow and intake air."
            ),
            confirm="nvidia-smi -q -d TEMPERATURE,PERFORMANCE on the node",
            asks_flight=True,
        )


def make(size: int, period_s: float) -> ThrottlingThermal:
    """The detector with the product's defaults."""
    return ThrottlingThermal(size, period_s, Settings())
