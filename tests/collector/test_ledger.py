"""The account of every instant: docs/accounting.md, held by properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.collector.fleets import BASE, EMPTY, H100, HEALTHY, HELD, recording

from unidle_collector.model import STATES, GpuRef
from unidle_collector.recording import Recording
from unidle_collector.replay import replay


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1.0, 5.0, 30.0]))
def test_the_states_of_any_recording_add_up_to_all_of_its_time(seed: int, period_s: float) -> None:
    random = np.random.default_rng(seed)
    shape = (300, 3)
    level = np.repeat(random.choice([0.0, 0.02, 0.3, 0.9], (10, 3)), 30, axis=0)
    keep = random.random(shape) > random.choice([0.0, 0.2, 0.8])
    columns = {
        "gpu_util_ratio": level,
        "sm_active_ratio": np.where(random.random(shape) < 0.1, np.nan, level * 0.8),
        "memory_used_bytes": np.repeat(random.choice([1e6, 3e10, np.nan], (1, 3)), 300, axis=0),
        "clock_event_reasons": random.choice([0.0, 4.0, 0x20, 0x80], shape),
        "gpu_state": random.choice([0.0, 0.0, 0.0, 1.0], shape),
        "power_w": random.uniform(50, 700, shape),
    }
    gpus = tuple(GpuRef("n", f"G{number}", number, H100) for number in range(3))
    job = np.repeat(random.integers(-1, 3, (10, 3)), 30, axis=0).astype(np.int32)
    masked = {name: np.where(keep, column, np.nan) for name, column in columns.items()}
    result = replay(Recording(10**18, period_s, gpus, masked, keep, ("", "a", "b"), job, ()))
    for gpu in result.gpus:
        assert set(gpu.states) == set(STATES)
        assert min(gpu.states.values()) >= -1e-6
        assert sum(gpu.states.values()) == pytest.approx(300 * period_s)
    account = result.account
    assert account is not None
    for ratio in (account.allocated_ratio, account.active_ratio, account.effective_ratio):
        assert ratio is None or -1e-9 <= ratio <= 1 + 1e-9


def test_adding_an_idle_gpu_never_raises_a_mean() -> None:
    def effective(idle_gpus: int) -> tuple[float, float]:
        columns = {
            name: (lambda t, g, v=value: np.where(np.arange(g) < 2, v, 0.0) * np.ones((t, 1)))
            for name, value in {"gpu_util_ratio": 1.0, "sm_active_ratio": 0.9}.items()
        }
        columns["memory_used_bytes"] = lambda t, g: np.full((t, g), 3e10)
        account = replay(recording(columns, minutes=10, period_s=10, gpus=2 + idle_gpus)).account
        assert account is not None
        assert account.effective_ratio is not None
        assert account.sm_active_ratio is not None
        return account.effective_ratio, account.sm_active_ratio

    values = [effective(idle) for idle in range(4)]
    assert values == sorted(values, reverse=True)


def test_time_without_samples_is_unknown_neither_lost_nor_productive() -> None:
    keep = np.ones((1200, 8), dtype=np.bool_)
    keep[300:900] = False
    result = replay(recording(HEALTHY, minutes=20, keep=keep))
    assert result.gpus[0].states["unknown"] == pytest.approx(600, abs=5)
    assert result.account is not None
    assert result.account.lost.gpu_h == 0
    assert result.account.effective_ratio == 1.0


def test_unallocated_time_is_capacity_loss_kept_apart_from_jobs() -> None:
    account = replay(recording(EMPTY, minutes=30, period_s=10)).account
    assert account is not None
    assert account.lost.gpu_h == 0
    assert account.unallocated.gpu_h == pytest.approx(4.0)
    assert account.allocated_ratio == 0


def test_idle_is_booked_back_to_its_first_second() -> None:
    quiet = {
        name: (lambda t, g: np.where(np.arange(t)[:, None] < 600, 0.9, 0.0) * np.ones((1, g)))
        for name in ("gpu_util_ratio", "sm_active_ratio")
    }
    result = replay(recording(HELD | quiet, minutes=20))
    assert result.gpus[0].states["idle"] == 600


def test_a_job_is_charged_for_its_own_time_only() -> None:
    instants = 1200
    job = np.where(np.arange(instants)[:, None] < 600, 1, 2).astype(np.int32) * np.ones(
        (1, 8), dtype=np.int32
    )
    base = recording(HELD, minutes=20)
    result = replay(
        Recording(base.start_ns, 1.0, base.gpus, base.columns, base.sampled, ("", "a", "b"), job, ())
    )
    assert {account.key: round(sum(account.seconds.values())) for account in result.jobs} == {
        "a": 4800,
        "b": 4800,
    }


def test_the_grade_says_which_activity_a_loss_rests_on() -> None:
    sm = replay(recording(HEALTHY, minutes=5)).account
    util = replay(recording(BASE | {"gpu_util_ratio": 0.9, "memory_used_bytes": 3e10}, minutes=5)).account
    assert sm is not None
    assert util is not None
    assert (sm.grade, util.grade) == ("sm", "util")
