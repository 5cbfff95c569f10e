"""Clocks, power and heat of the simulated GPUs, one cause at a time."""

from __future__ import annotations

import numpy as np
import pytest

from unidle_collector.simulator.hardware import hardware
from unidle_collector.simulator.physics import Motion, Physics

HW = hardware()
FLOOR_W = 195.0


def run(
    physics: Physics, demand_w: float, seconds: int, cooling_lost: bool = False, brake: bool = False
) -> Motion:
    """One GPU for some seconds."""
    shape = (seconds, 1)
    return physics.run(
        np.full(shape, demand_w), np.full(shape, FLOOR_W), np.full(shape, cooling_lost), np.full(shape, brake)
    )


@pytest.fixture
def gpu() -> Physics:
    return Physics(HW, np.array([HW.inlet_c]))


def test_work_under_the_limit_runs_at_full_clocks(gpu: Physics) -> None:
    motion = run(gpu, 0.8 * HW.power_limit_w, 60)
    assert (motion.clock_ratio == 1.0).all()
    assert not motion.capped.any()
    np.testing.assert_allclose(motion.power_w, 0.8 * HW.power_limit_w)


def test_work_over_the_limit_is_held_at_it_by_lower_clocks(gpu: Physics) -> None:
    motion = run(gpu, 1.2 * HW.power_limit_w, 60)
    assert motion.capped.all()
    np.testing.assert_allclose(motion.power_w, HW.power_hold_ratio * HW.power_limit_w)
    assert (motion.clock_ratio < 1.0).all()


def test_temperature_settles_where_power_says(gpu: Physics) -> None:
    run(gpu, FLOOR_W, 200)
    motion = run(gpu, 900.0, 200)
    expected = HW.inlet_c + HW.thermal_resistance_c_per_w * 900.0
    assert motion.temperature_c[-1, 0] == pytest.approx(expected, abs=0.01)
    assert motion.temperature_c[0, 0] < expected - 10


def test_software_slows_it_first_hardware_later_and_both_let_go_below_where_they_took_hold(
    gpu: Physics,
) -> None:
    run(gpu, 900.0, 200)
    heating = run(gpu, 900.0, 20, cooling_lost=True)
    software = int(np.argmax(heating.sw_thermal[:, 0]))
    hardware_ = int(np.argmax(heating.hw_thermal[:, 0]))
    assert 0 < software < hardware_
    assert heating.temperature_c[software, 0] > HW.temperature_limit_c
    assert heating.temperature_c[hardware_, 0] > HW.temperature_limit_c - HW.slowdown_margin_c - 1
    assert heating.clock_ratio[-1, 0] == HW.thermal_clock_ratio
    assert heating.temperature_c.max() < HW.temperature_limit_c - HW.shutdown_margin_c
    cooling = run(gpu, 900.0, 60)
    over = int(np.argmin(cooling.sw_thermal[:, 0]))
    assert cooling.temperature_c[over, 0] <= HW.temperature_limit_c - 2
    assert cooling.temperature_c[over - 1, 0] > HW.temperature_limit_c - 2
    assert cooling.clock_ratio[-1, 0] == 1.0


def test_a_power_brake_halves_the_clock_and_is_no_power_cap(gpu: Physics) -> None:
    motion = run(gpu, 1.2 * HW.power_limit_w, 10, brake=True)
    assert (motion.clock_ratio == HW.brake_clock_ratio).all()
    assert not motion.capped.any()
    assert (motion.power_w < 0.5 * HW.power_limit_w).all()
