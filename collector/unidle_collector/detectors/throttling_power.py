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
    siblings of the same model in the same job (else on the same node, where its tensor activity has to be
    within 10 % of theirs, or its limit lower: other work draws less). It must cost at least 3 % of the
    clock (or the clock be unknown) while something runs. On after 4 s in a row, off after 15 s without.
    A cap is told after a minute, because clocks of siblings differ for a moment now and then; at once where
    its limit is at least 3 % below theirs, it draws 95 % of that or more, and they draw more than it may.

How sure
    95 % where the driver says so by a bit or a throttle time of its own, and for a cap below the siblings';
    80 % for another cap, which is concluded from clocks: the rest is "cannot tell".

What to do
    Brake: look at power supplies, PDU and rack limits. Cap: compare power limits (nvidia-smi -q -d POWER).

How to silence it
    `silence = ["throttling_power:NODE"]` in `[collector]`.
"""

from __future__ import annotations

import numpy as np

from unidle_agent.sample import HW_SLOWDOWN, POWER_BRAKE, SW_POWER_CAP
from unidle_collector.detectors import About, Verdict, duration, mean_of, plural
from unidle_collector.pergpu import Bools, Positions
from unidle_collector.signals import NOTHING_RAN, View
from unidle_collector.signs.clocks import sibling_median
from unidle_collector.signs.lasting import drain, where
from unidle_collector.signs.throttle import THERMAL, Settings, Throttling, bits, grew

CAUSES = ("power_brake", "hw_slowdown", "power_cap")
CAP_LOSS = 0.15
CAP_TOLD_AFTER_S = 60.0
LOWER_LIMIT = 0.97
"""Over the siblings' limit: from here on it is another limit."""
AT_LIMIT = 0.95
"""Over its own limit: draws less than this are not held back by it (the bit alone says less)."""
OTHER_WORK = 0.1
"""Tensor activity that is this far from the node's mean, over that mean."""


class ThrottlingPower(Throttling):
    """The condition, vectorised."""

    kind = "throttling_power"
    causes = CAUSES

    def look(self, view: View) -> Verdict:
        """See the module's docstring."""
        thermal, _ = bits(view, THERMAL)
        brake_bit, bit_known = bits(view, POWER_BRAKE)
        slowdown_bit, _ = bits(view, HW_SLOWDOWN)
        braked, brake_known = grew(view, "power_brake_s", self.settings)
        brake = brake_bit | braked
        slowdown = slowdown_bit & ~thermal & ~brake
        cap_bit, _ = bits(view, SW_POWER_CAP)
        capped, cap_known = grew(view, "power_cap_s", self.settings)
        siblings, own = self.references(view, brake | slowdown | thermal, brake | slowdown | cap_bit | capped)
        behind = view.step.get("sm_clock_hz") < (1 - CAP_LOSS) * siblings
        cap = (cap_bit | capped) & behind & ~brake & ~slowdown & ~thermal
        if cap.any():
            cap &= self._comparable(view)
        reference = np.where(np.isnan(siblings), own, siblings)
        cause = np.where(brake, 0, np.where(slowdown, 1, 2)).astype(np.int16)
        return self.decide(
            view, brake | slowdown | cap, bit_known | brake_known | cap_known, reference, cause
        )

    def _comparable(self, view: View) -> Bools:
        """[GPUs] are its siblings on the same work: by its job, else by tensor activity or a lower limit."""
        a, limit, tensor = (
            view.inventory.a,
            view.step.get("power_limit_w"),
            view.step.get("tensor_active_ratio"),
        )
        node = a["node"] + 1
        highest = np.full(int(node.max()) + 1, -np.inf)
        np.fmax.at(highest, node, limit)
        known = ~np.isnan(tensor) & (view.activity >= NOTHING_RAN)
        sums, counts = (np.bincount(node, weights=np.where(known, one, 0.0)) for one in (tensor, 1.0))
        usual = sums[node] / np.maximum(counts[node], 1.0)
        other = np.abs(tensor - usual) > OTHER_WORK * usual
        out: Bools = (a["job"] > 0) | ~other | (limit < LOWER_LIMIT * highest[node])
        return out

    def delay_s(self, cause: str) -> float:
        """4 s; a cap is watched for a minute, unless more speaks for it."""
        return CAP_TOLD_AFTER_S if cause == "power_cap" else self.finding_delay_s

    def _held_by_lower_limit(self, view: View, gpus: Positions) -> bool:
        """Has each a lower limit than its siblings, is at it, and they draw more than it may."""
        power, limit = view.step.get("power_w"), view.step.get("power_limit_w")
        asked = np.zeros(limit.shape, dtype=np.bool_)
        asked[gpus] = True
        theirs, drawn = (sibling_median(view, values, asked)[gpus] for values in (limit, power))
        own = limit[gpus]
        yes = (own < LOWER_LIMIT * theirs) & (power[gpus] >= AT_LIMIT * own) & (drawn > own)
        return bool(yes.all())

    def about(self, view: View, gpus: Positions, cause: str, lasted_s: float) -> About:
        """What a colleague would say."""
        what = {
            "power_brake": "a power brake",
            "hw_slowdown": "a hardware slowdown",
            "power_cap": "a power cap that its siblings do not have",
        }[cause]
        node, numbers = where(view, gpus)
        away = f"{drain(node, f'{cause} on GPU {numbers}')} and move its job"
        advice = {
            "power_brake": f"{away}; then check the node's power supplies, the PDU and the rack's limit.",
            "hw_slowdown": f"{away}; then read the reason: nvidia-smi -q -d PERFORMANCE -i {numbers}.",
            "power_cap": self._set_alike(view, gpus, node, numbers),
        }[cause]
        weak = cause == "power_cap" and not self._held_by_lower_limit(view, gpus)
        return About(
            title=(
                f"{plural(gpus.size, 'GPU')} slowed by {what} for {duration(lasted_s)}: "
                f"{self.loss_text(gpus)}"
            ),
            severity="warning" if cause == "power_cap" else "critical",
            confidence=0.8 if weak else 0.95,
            evidence=tuple(self.evidence(view, gpus, lasted_s)),
            advice=advice,
            confirm=f"nvidia-smi -q -d POWER,PERFORMANCE -i {numbers} on {node}, beside its siblings",
            runners_up=(("undetermined", 0.2),) if weak else (),
            asks_flight=True,
            told_after_s=None if weak else self.finding_delay_s,
        )

    def _set_alike(self, view: View, gpus: Positions, node: str, numbers: str) -> str:
        """The command that gives the GPUs the limit of those beside them, where that is known and higher."""
        limit, at = view.step.get("power_limit_w"), view.inventory.a["node"]
        beside = np.flatnonzero((at == at[gpus[0]]) & ~np.isnan(limit))
        theirs = limit[np.setdiff1d(beside, gpus)]
        own = mean_of(limit, gpus)
        if own is not None and theirs.size and (usual := float(np.median(theirs))) > own:
            return (
                f"On {node}: nvidia-smi -i {numbers} -pl {usual:.0f} (its siblings' limit; now {own:.0f} W)."
            )
        return (
            f"Compare its limit with its siblings' on {node} (nvidia-smi -q -d POWER); where they are alike, "
            "look at its temperature: a hotter GPU draws more for the same work."
        )


def make(size: int, period_s: float) -> ThrottlingPower:
    """The detector with the product's defaults."""
    return ThrottlingPower(size, period_s, Settings())
