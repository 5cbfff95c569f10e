"""Clocks, power and heat of every GPU, second by second.

Power at a clock is floor + (demand - floor) * (clock / maximum) ** exponent. The driver lowers clocks to
hold the power limit; over the thermal limit, or when the power brake is pulled, it lowers them further.
Temperature follows power with one time constant.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unidle_collector.simulator.hardware import Hardware

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

SW_HYSTERESIS_C = 2.0
HW_HYSTERESIS_C = 1.5
"""The driver lets go only this far below the temperature at which it took hold: assumption."""


@dataclass(frozen=True, slots=True)
class Motion:
    """What the GPUs did; every array is [seconds, GPUs]."""

    clock_ratio: Floats
    """SM clock over its maximum, 0-1."""
    power_w: Floats
    temperature_c: Floats
    capped: Bools
    """Held below full clocks by the power limit."""
    sw_thermal: Bools
    hw_thermal: Bools


class Physics:
    """The state that the seconds hand on: temperatures, and what the driver has taken hold of."""

    def __init__(self, hw: Hardware, inlet_c: Floats) -> None:
        self._hw = hw
        self._inlet_c = inlet_c
        self._temperature_c: Floats | None = None
        self._sw_thermal: Bools = np.zeros(inlet_c.shape, dtype=np.bool_)
        self._hw_thermal: Bools = np.zeros(inlet_c.shape, dtype=np.bool_)

    def run(self, demand_w: Floats, floor_w: Floats, cooling_lost: Bools, brake: Bools) -> Motion:
        """Go on for len(demand_w) seconds; all four are [seconds, GPUs], demand at full clocks."""
        hw = self._hw
        rise_w = np.maximum(demand_w - floor_w, 1e-9)
        room_w = hw.power_hold_ratio * hw.power_limit_w - floor_w
        cap = np.minimum(1.0, (room_w / rise_w) ** (1.0 / hw.power_exponent))
        braked = np.where(brake, hw.brake_clock_ratio, 1.0)
        watts, flags = np.empty_like(demand_w), np.empty_like(brake)
        out = Motion(watts.copy(), watts, watts.copy(), flags.copy(), flags, flags.copy())
        for second in range(len(demand_w)):
            slow = np.where(self._sw_thermal | self._hw_thermal, hw.thermal_clock_ratio, 1.0) * braked[second]
            clock = np.minimum(cap[second], slow)
            power = floor_w[second] + rise_w[second] * clock**hw.power_exponent
            self._heat(power, cooling_lost[second])
            out.clock_ratio[second], out.power_w[second] = clock, power
            out.temperature_c[second] = self._temperature_c
            out.capped[second] = (cap[second] < 1.0) & (cap[second] <= slow)
            out.sw_thermal[second], out.hw_thermal[second] = self._sw_thermal, self._hw_thermal
        return out

    def _heat(self, power_w: Floats, cooling_lost: Bools) -> None:
        hw = self._hw
        target = self._inlet_c + hw.thermal_resistance_c_per_w * power_w
        before = target if self._temperature_c is None else self._temperature_c
        target = np.where(cooling_lost, hw.cooling_lost_c, target)
        time_constant_s = np.where(cooling_lost, hw.cooling_lost_time_constant_s, hw.thermal_time_constant_s)
        now = before + (target - before) * (1.0 - np.exp(-1.0 / time_constant_s))
        self._temperature_c = now
        self._sw_thermal = _held(now, hw.temperature_limit_c, SW_HYSTERESIS_C, self._sw_thermal)
        hot_c = hw.temperature_limit_c - hw.slowdown_margin_c
        self._hw_thermal = _held(now, hot_c - 0.5, HW_HYSTERESIS_C, self._hw_thermal)


def _held(temperature_c: Floats, above_c: float, hysteresis_c: float, held: Bools) -> Bools:
    out: Bools = (temperature_c > above_c) | (held & (temperature_c > above_c - hysteresis_c))
    return out
