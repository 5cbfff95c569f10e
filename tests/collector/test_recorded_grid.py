"""Rows in any rhythm on one grid: nothing invented, nothing lost, every sample in the right slot."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from unidle_collector.model import GpuRef
from unidle_collector.recorded.grid import to_grid
from unidle_collector.recorded.rows import RecordingError, Rows

SECOND = 1_000_000_000
START = 1_760_000_000 * SECOND


def rows(
    time_s: NDArray[np.float64] | list[float],
    gpu: NDArray[np.int64] | list[int] | None = None,
    **values: NDArray[np.float64] | list[float],
) -> Rows:
    times = np.asarray(time_s, dtype=np.float64)
    gpus = np.zeros(len(times), dtype=np.int32) if gpu is None else np.asarray(gpu, dtype=np.int32)
    return Rows(
        time_ns=START + np.round(times * SECOND).astype(np.int64),
        gpu=gpus,
        gpus=tuple(GpuRef("n1", f"GPU-{at}", at) for at in range(int(gpus.max()) + 1)),
        values={name: np.asarray(column, dtype=np.float64) for name, column in values.items()},
        job=np.full(len(times), -1, dtype=np.int32),
        jobs=("",),
        notes=(),
    )


# Period


@pytest.mark.parametrize("period_s", [1, 2, 5, 10, 15, 30, 60])
@pytest.mark.parametrize("jitter", [0.0, 0.05, 0.2])
def test_the_period_is_found_through_jitter_and_missing_samples(period_s: int, jitter: float) -> None:
    rng = np.random.default_rng(period_s)
    at = np.arange(600) * period_s + rng.uniform(-jitter, jitter, 600) * period_s
    kept = np.sort(rng.permutation(600)[:480])
    recording = to_grid(rows(at[kept], power_w=np.arange(600)[kept]))
    assert recording.period_s == period_s
    offset = round((recording.start_ns - START) / SECOND / period_s)
    for instant in range(recording.instants):
        if recording.sampled[instant, 0]:
            assert recording.columns["power_w"][instant, 0] == instant + offset


def test_a_period_that_is_no_whole_second_stays_exact_over_a_day() -> None:
    recording = to_grid(rows(np.arange(60_000) * 1.437, power_w=np.arange(60_000)))
    assert recording.period_s == pytest.approx(1.437)
    assert recording.sampled.all()
    assert (recording.columns["power_w"][:, 0] == np.arange(60_000)).all()


def test_a_loop_that_sleeps_and_works_leaves_no_hole() -> None:
    # `sleep 1` plus 10 to 40 ms of work: the clock wanders away from any fixed grid.
    rng = np.random.default_rng(1)
    at = np.cumsum(1.0 + rng.uniform(0.01, 0.04, 20_000))
    recording = to_grid(rows(at, power_w=np.ones(20_000)))
    assert recording.sampled.mean() > 0.999


def test_one_sample_alone_is_one_instant() -> None:
    recording = to_grid(rows([0.0], power_w=[5.0]))
    assert (recording.instants, recording.period_s) == (1, 1.0)


def test_gpus_that_were_sampled_at_different_periods_share_the_slower_grid() -> None:
    fast, slow = np.arange(600.0), np.arange(0, 600.0, 30)
    recording = to_grid(
        rows(
            np.concatenate([fast, slow]),
            np.repeat([0, 1], [600, 20]),
            power_w=np.concatenate([fast, np.full(20, 7.0)]),
        )
    )
    assert recording.period_s == 30.0
    assert recording.sampled[:20, 1].all()
    assert any("different periods" in note for note in recording.notes)


def test_a_gpu_seen_for_a_moment_does_not_decide_the_period() -> None:
    recording = to_grid(rows([*range(100), 3.0, 43.0], [0] * 100 + [1, 1], power_w=np.ones(102)))
    assert recording.period_s == 1.0


# Below one second


def test_ten_samples_a_second_are_averaged_over_each_second() -> None:
    at = np.arange(600) / 10
    values = np.random.default_rng(0).random(600)
    recording = to_grid(rows(at, gpu_util_ratio=values))
    assert (recording.instants, recording.period_s) == (60, 1.0)
    assert recording.columns["gpu_util_ratio"][:, 0] == pytest.approx(values.reshape(60, 10).mean(axis=1))


def test_within_a_slot_means_skip_unknowns_and_keep_zeros() -> None:
    recording = to_grid(rows(np.arange(8) / 4, power_w=[0, 0, 8, np.nan, np.nan, 4, 0, 2]))
    assert recording.columns["power_w"][:, 0].tolist() == [pytest.approx(8 / 3), 2.0]


def test_within_a_slot_bits_are_joined_states_are_last_and_counters_add_up() -> None:
    recording = to_grid(
        rows(
            np.arange(8) / 4,
            clock_event_reasons=[4, 0x20, 0, 0, 0, 0, 1, 0],
            last_xid=[0, 79, 0, 31, 31, 31, np.nan, np.nan],
            pcie_replays=[5, 6, 6, 8, 9, 10, 10, 20],
        )
    )
    assert recording.columns["clock_event_reasons"][:, 0].tolist() == [0x24, 1]
    assert recording.columns["last_xid"][:, 0].tolist() == [31, 31]
    assert recording.columns["pcie_replays"][:, 0].tolist() == [3, 12]


# Slots


def test_rows_may_come_in_any_order() -> None:
    at = np.random.default_rng(0).permutation(50).astype(float)
    recording = to_grid(rows(at, power_w=at))
    assert recording.columns["power_w"][:, 0].tolist() == list(range(50))


@settings(max_examples=60)
@given(
    phases=st.lists(st.floats(0, 0.999), min_size=1, max_size=6),
    period_s=st.sampled_from([1.0, 5.0, 30.0]),
    seed=st.integers(0, 1000),
)
def test_every_gpu_keeps_every_sample_whatever_its_phase(
    phases: list[float], period_s: float, seed: int
) -> None:
    count = 40
    jitter = np.random.default_rng(seed).uniform(-0.1, 0.1, count * len(phases)) * period_s
    at = np.concatenate([np.arange(count) * period_s + phase * period_s for phase in phases]) + jitter
    gpu = np.repeat(np.arange(len(phases)), count)
    recording = to_grid(rows(at, gpu, power_w=np.tile(np.arange(count), len(phases))))
    assert recording.period_s == period_s
    assert recording.instants <= count + 1
    for column in recording.columns["power_w"].T:
        known = column[~np.isnan(column)]
        assert known.tolist() == list(range(count))


def test_a_gap_stays_unknown() -> None:
    recording = to_grid(rows([*range(20), *range(100, 120)], power_w=np.zeros(40)))
    assert recording.instants == 120
    assert not recording.sampled[20:100].any()
    assert np.isnan(recording.columns["power_w"][20:100]).all()
    assert (recording.columns["power_w"][:20] == 0).all()


def test_of_equal_stamps_the_last_known_value_counts() -> None:
    recording = to_grid(
        rows([0, 0, 0, 1, 1], power_w=[1, 2, np.nan, 3, 4], temperature_c=[9, 8, 7, 6, np.nan])
    )
    assert recording.columns["power_w"][:, 0].tolist() == [2.0, 4.0]
    assert recording.columns["temperature_c"][:, 0].tolist() == [7.0, 6.0]
    assert any("repeat a GPU and an instant" in note for note in recording.notes)


def test_rows_that_each_know_another_field_of_one_instant_are_one_sample() -> None:
    nan = np.nan
    recording = to_grid(rows([0, 0, 1, 1], power_w=[1, nan, 2, nan], temperature_c=[nan, 40, nan, 41]))
    assert recording.columns["power_w"][:, 0].tolist() == [1, 2]
    assert recording.columns["temperature_c"][:, 0].tolist() == [40, 41]
    assert not any("repeat" in note for note in recording.notes)


# Counters


def test_a_counter_becomes_its_increase_and_a_reset_is_unknown() -> None:
    recording = to_grid(rows(range(6), energy_j=[100, 150, 250, 20, 70, np.nan]))
    column = recording.columns["energy_j"][:, 0]
    assert np.isnan(column[[0, 3]]).all()
    assert column[[1, 2, 4]].tolist() == [50, 100, 50]
    assert any("1 counter resets" in note for note in recording.notes)


def test_the_increase_over_a_gap_is_not_lost() -> None:
    recording = to_grid(rows([0, 1, 2, 60, 61], energy_j=[0, 100, 200, 6000, 6100]))
    assert np.nansum(recording.columns["energy_j"]) == 6100


def test_one_gpus_counter_is_not_differenced_against_anothers() -> None:
    recording = to_grid(rows([0, 0, 1, 1], [0, 1, 0, 1], energy_j=[100, 5, 110, 6]))
    assert recording.columns["energy_j"][1].tolist() == [10, 1]


def test_energy_in_the_wrong_unit_is_unknown_and_said() -> None:
    recording = to_grid(rows(range(10), energy_j=np.arange(10) * 400_000.0))
    assert np.isnan(recording.columns["energy_j"]).all()
    assert any("mJ" in note for note in recording.notes)


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 1000), min_size=2, max_size=60),
    st.lists(st.integers(1, 9), min_size=2, max_size=60),
)
def test_increases_are_never_negative_and_add_up_to_all_rises(increments: list[int], gaps: list[int]) -> None:
    size = min(len(increments), len(gaps))
    counter = np.cumsum(increments[:size]).astype(float)
    recording = to_grid(rows(np.cumsum(gaps[:size]).astype(float), pcie_replays=counter))
    column = recording.columns["pcie_replays"]
    assert not (column < 0).any()
    assert np.nansum(column) == counter[-1] - counter[0]


# Limits


def test_a_stray_time_does_not_allocate_the_world() -> None:
    with pytest.raises(RecordingError, match=r"at most 200,000,000 cells.*1996.*--period"):
        to_grid(rows([-930_000_000.0, 0.0, 1.0, 2.0], power_w=[1, 1, 1, 1]))


def test_a_given_period_is_used_and_one_too_fine_is_raised() -> None:
    assert to_grid(rows(range(60), power_w=np.ones(60)), 10.0).instants == 6
    raised = to_grid(rows(range(60), power_w=np.ones(60)), 0.5)
    assert raised.period_s == 1.0
    assert any("raised" in note for note in raised.notes)


def test_adding_an_idle_gpu_never_raises_a_mean() -> None:
    busy = to_grid(rows(range(10), gpu_util_ratio=np.full(10, 0.5)))
    both = to_grid(
        rows(
            [*range(10)] * 2,
            [0] * 10 + [1] * 10,
            gpu_util_ratio=np.concatenate([np.full(10, 0.5), np.zeros(10)]),
        )
    )
    assert np.nanmean(both.columns["gpu_util_ratio"]) < np.nanmean(busy.columns["gpu_util_ratio"])
