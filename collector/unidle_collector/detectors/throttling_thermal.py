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
    together with a clock at least 10 % below its siblings, or below its own before where it has none; a
    clock at 55 % or less is the hardware's doing (nvml.h: it halves clocks or more). It must cost at
    least 3 % of the clock (or the clock be unknown) while something runs. On after 4 s in a row, off
    after 15 s without.
    The loss is 1 - clock / clock of unthrottled siblings in the same job (else on the same node), or
    of the GPU's own best clock under the job.

How sure
    95 % where the driver says why (the bits or the throttle times); 80 % where heat and clocks have to tell,
    and the other cause gets the rest.

What to do
    Move the job, drain the node, look at fans, filters, coolant flow and intake temperature.

How to silence it
    `silence = ["throttling_thermal:NODE"]` in `[collector]`.
"""

from __future__ import annotations

import numpy as np

from unidle_agent.sample import HW_THERMAL
from unidle_collector.detectors import About, Verdict, duration, plural
from unidle_collector.pergpu import Bools, Positions
from unidle_collector.signals import View
from unidle_collector.signs.lasting import drain, where
from unidle_collector.signs.throttle import THERMAL, Settings, Throttling, bits, grew

CAUSES = ("software_thermal", "hardware_thermal")
HARD_CLOCK = 0.55
"""Over the reference: the hardware's slowdown halves clocks or more (nvml.h)."""
LOW_CLOCK = 0.9
"""Over the reference, at the temperature limit: it is slowed down, where nobody says why."""


class ThrottlingThermal(Throttling):
    """The condition, vectorised."""

    kind = "throttling_thermal"
    causes = CAUSES

    def look(self, view: View) -> Verdict:
        """See the module's docstring."""
        bit, bit_known = bits(view, THERMAL)
        software, software_known = grew(view, "thermal_throttle_s", self.settings)
        hardware, hardware_known = grew(view, "hw_thermal_throttle_s", self.settings)
        told = bit_known | software_known | hardware_known
        signal = bit | software | hardware
        over, limit = self._heat(view)
        hot = signal | (~told & (over | limit))
        siblings, own = self.references(view, hot, hot)
        reference = np.where(np.isnan(siblings), own, siblings)
        clock_ratio = view.step.get("sm_clock_hz") / reference
        # For exporters that send no reasons: heat at its limit, and clocks that show it.
        signal = np.where(told, signal, over | (limit & (clock_ratio < LOW_CLOCK)))
        felt = np.fmax(view.step.get("thermal_margin_c"), view.step.get("temperature_c"))
        hard, _ = bits(view, HW_THERMAL)
        hard |= ~told & ((clock_ratio <= HARD_CLOCK) | self.held(1))
        cause = np.where(hard | hardware, 1, 0).astype(np.int16)
        return self.decide(view, signal, told | ~np.isnan(felt), reference, cause)

    def _heat(self, view: View) -> tuple[Bools, Bools]:
        """([GPUs] is the margin below the model's offset, [GPUs] is the temperature at its limit)."""
        a = view.inventory.a
        over: Bools = view.step.get("thermal_margin_c") < a["slowdown_margin_c"]
        limit: Bools = view.step.get("temperature_c") >= a["limit_c"]
        return over, limit

    def about(self, view: View, gpus: Positions, cause: str, lasted_s: float) -> About:
        """What a colleague would say."""
        what = "hardware" if cause == "hardware_thermal" else "the driver"
        node, numbers = where(view, gpus)
        said = bool(bits(view, THERMAL)[1][gpus].any())
        other = CAUSES[1 - CAUSES.index(cause)]
        return About(
            title=(
                f"{plural(gpus.size, 'GPU')} slowed by {what} because of heat, for "
                f"{duration(lasted_s)}: {self.loss_text(gpus)}"
            ),
            severity="critical" if cause == "hardware_thermal" else "warning",
            confidence=0.95 if said else 0.8,
            evidence=tuple(self.evidence(view, gpus, lasted_s)),
            advice=(
                f"{drain(node, f'heat on GPU {numbers}')} and move its job; then check fans, filters, "
                "coolant flow and the temperature of the intake air."
            ),
            confirm=f"nvidia-smi -q -d TEMPERATURE,PERFORMANCE -i {numbers} on {node}",
            runners_up=() if said else ((other, 0.2),),
            asks_flight=True,
        )


def make(size: int, period_s: float) -> ThrottlingThermal:
    """The detector with the product's defaults."""
    return ThrottlingThermal(size, period_s, Settings())
