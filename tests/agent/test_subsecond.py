"""Looks between two rows: means, extremes, shares at zero, integrals, and when to look."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unidle_agent.fields import BY_NAME, COLUMNS, FIELDS
from unidle_agent.subsecond import LONGEST_S, Integrals, Looks, Pace, Piece, Restlessness, integral_s, summary

UTIL = "gpu_util_ratio"
PIECES = st.lists(st.tuples(st.floats(0, 10), st.floats(0, 1)), min_size=2, max_size=30)


def test_a_row_holds_mean_extremes_and_the_share_at_zero() -> None:
    pieces: list[Piece] = [(0.2, 1.0), (0.2, 0.0), (0.4, 0.5), (0.2, 0.0)]
    assert summary(UTIL, pieces) == pytest.approx(
        {UTIL: 0.4, f"{UTIL}.min": 0.0, f"{UTIL}.max": 1.0, f"{UTIL}.zero": 0.4}
    )


def test_a_look_that_came_late_weighs_what_it_speaks_for() -> None:
    assert summary(UTIL, [(0.9, 1.0), (0.1, 0.0)])[UTIL] == pytest.approx(0.9)


def test_a_single_look_has_no_extremes() -> None:
    assert summary(UTIL, [(1.0, 0.7)]) == {UTIL: 0.7}


def test_bits_that_were_set_for_a_moment_are_in_the_row() -> None:
    assert summary("clock_event_reasons", [(0.2, 0x4), (0.2, 0x40), (0.2, 0)]) == {
        "clock_event_reasons": 0x44
    }


@given(PIECES)
def test_a_mean_lies_between_its_extremes_and_a_share_between_0_and_1(pieces: list[Piece]) -> None:
    row = summary(UTIL, pieces)
    assert row[f"{UTIL}.min"] - 1e-9 <= row[UTIL] <= row[f"{UTIL}.max"] + 1e-9
    assert -1e-9 <= row[f"{UTIL}.zero"] <= 1 + 1e-9


@given(PIECES)
def test_an_idle_look_never_raises_a_mean(pieces: list[Piece]) -> None:
    assert summary(UTIL, [*pieces, (1.0, 0.0)])[UTIL] <= summary(UTIL, pieces)[UTIL] + 1e-9


@given(PIECES, st.integers(0, 30))
def test_an_integral_is_the_same_however_its_time_is_cut(pieces: list[Piece], cut: int) -> None:
    whole = integral_s(pieces)
    assert integral_s(pieces[:cut]) + integral_s(pieces[cut:]) == pytest.approx(whole)


def test_looks_speak_for_the_time_since_the_look_before() -> None:
    looks = Looks()
    looks.add(10.0, {UTIL: 1.0, "temperature_c": 50})
    looks.add(10.2, {UTIL: 0.5, "temperature_c": 51})
    assert looks.take() == {UTIL: [(0.0, 1.0), (pytest.approx(0.2), 0.5)]}
    looks.add(11.0, {UTIL: 0.25})
    assert looks.take() == {UTIL: [(pytest.approx(0.8), 0.25)]}


def test_a_gpu_that_was_away_is_not_counted_as_busy_meanwhile() -> None:
    looks = Looks()
    looks.add(10.0, {UTIL: 1.0})
    looks.break_off()
    looks.add(400.0, {UTIL: 1.0})
    assert looks.take() == {UTIL: [(0.0, 1.0)]}
    looks.add(400.0 + 10 * LONGEST_S, {UTIL: 1.0})
    assert looks.take() == {UTIL: [(LONGEST_S, 1.0)]}


@given(PIECES)
def test_counters_never_go_back_and_lose_nothing_to_rounding(pieces: list[Piece]) -> None:
    integrals = Integrals()
    counts = [integrals.grow("GPU-a", "gpu_busy_s", [piece]) for piece in pieces]
    assert counts == sorted(counts)
    assert counts[-1] * BY_NAME["gpu_busy_s"].resolution == pytest.approx(integral_s(pieces), abs=2e-6)
    assert integrals.grow("GPU-b", "gpu_busy_s", []) == 0


def test_every_statistic_is_a_float_column_of_its_fields_type() -> None:
    assert any(field.stats for field in FIELDS)
    for field in FIELDS:
        for statistic in ("min", "max", "zero"):
            column = COLUMNS.get(f"{field.name}.{statistic}")
            assert (column is not None) == field.stats
            if column is not None:
                assert (column.dtype, column.scope, column.kind) == (field.dtype, field.scope, "gauge")
                assert column.dtype != "u8"


# A bursty GPU


def busy_s(until_s: float, period_s: float) -> float:
    """Seconds that a GPU was busy that is so in the first half of every period."""
    periods = math.floor(until_s / period_s)
    return periods * period_s / 2 + min(until_s - periods * period_s, period_s / 2)


Seen = Callable[[float, float], float]
"""What the driver shows at a time, of a GPU whose busy periods are so long."""


def instant(at_s: float, period_s: float) -> float:
    """A gauge of the instant."""
    return float(at_s % period_s < period_s / 2)


def sliding(window_s: float) -> Seen:
    """A gauge of the last `window_s`."""
    return lambda at_s, period_s: (busy_s(at_s, period_s) - busy_s(at_s - window_s, period_s)) / window_s


def stepping(window_s: float) -> Seen:
    """A gauge of the last whole `window_s`, made anew at the end of each."""
    whole = sliding(window_s)
    return lambda at_s, period_s: whole(math.floor(at_s / window_s + 1e-9) * window_s, period_s)


def mean_over_10_s(pace: Pace, period_s: float, phase_s: float, seen: Seen, *, calm: bool) -> float:
    """What ten rows say, one per second; `calm` looks as if the GPU never were restless."""
    looks, restless, now_s, rows = Looks(), Restlessness(), 100.0 + phase_s, []

    def look() -> bool:
        looks.add(now_s, {UTIL: seen(now_s, period_s)})
        restless.see(now_s, seen(now_s, period_s))
        return restless.at(now_s) and not calm

    for second in range(13):
        row_s = 100.0 + phase_s + second
        while (wait_s := pace.wait_s(now_s)) is not None and now_s + wait_s < row_s:
            now_s += wait_s
            pace.look(now_s, now_s, restless=look())
        now_s = row_s
        jumps = look()
        rows.append(float(summary(UTIL, looks.take()[UTIL])[UTIL]))
        pace.row(now_s, now_s, restless=jumps)
    return sum(rows[3:]) / 10


def rms_error(hz: float, seen: Seen, *, calm: bool = False) -> float:
    """Over periods of 0.3 to 3 s and eight phases of each, as a ratio."""
    errors, chance = [], random.Random(1).random
    for period_s in (0.3 + 0.05 * step for step in range(55)):
        for phase_s in (period_s * eighth / 8 for eighth in range(8)):
            begin_s = 102.0 + phase_s
            true = (busy_s(begin_s + 10, period_s) - busy_s(begin_s, period_s)) / 10
            errors.append(mean_over_10_s(Pace(hz, chance), period_s, phase_s, seen, calm=calm) - true)
    return math.sqrt(sum(error * error for error in errors) / len(errors))


@pytest.mark.parametrize(
    ("seen", "most"),
    [
        (instant, 0.02),
        (stepping(1 / 6), 0.02),
        *((sliding(window_s), 0.02) for window_s in (1 / 6, 0.2, 0.25, 0.5, 1.0)),
        (stepping(0.25), 0.02),
        (stepping(0.5), 0.025),
        (stepping(1.0), 0.035),
    ],
)
def test_ten_second_means_of_a_bursty_gpu_are_as_true_as_its_driver_is(seen: Seen, most: float) -> None:
    assert rms_error(5.0, seen) <= most


def test_five_looks_per_second_would_not_do() -> None:
    assert rms_error(5.0, instant, calm=True) > 0.03
    assert rms_error(0.0, stepping(1 / 6)) > 0.05


def test_a_signal_in_step_with_the_looks_is_seen_all_the_same() -> None:
    errors = [
        mean_over_10_s(Pace(5.0, random.Random(seed).random), 0.2, 0.05, instant, calm=True) - 0.5
        for seed in range(20)
    ]
    assert max(map(abs, errors)) < 0.25  # on a grid every look sees the same: 0 or 1
    assert abs(sum(errors)) / 20 < 0.1  # the row's own look stays in step


# Who is looked at more often


def test_a_gpu_whose_utilization_jumps_is_restless_for_a_while() -> None:
    restless = Restlessness()
    restless.see(10.0, 0.9)
    assert not restless.at(10.0)
    restless.see(10.2, 0.9 - Restlessness.JUMP)
    assert restless.at(10.2 + Restlessness.HOLD_S - 0.1)
    assert not restless.at(10.2 + Restlessness.HOLD_S)


def test_small_changes_leave_a_gpu_calm() -> None:
    restless = Restlessness()
    for step in range(50):
        restless.see(0.2 * step, 0.9 + 0.05 * (step % 2))
        assert not restless.at(0.2 * step)


def test_a_look_at_some_fields_leaves_the_time_of_the_others_alone() -> None:
    looks = Looks()
    looks.add(10.0, {UTIL: 1.0, "sm_clock_hz": 1e9})
    looks.add(10.2, {UTIL: 0.0})
    looks.add(10.4, {UTIL: 0.5, "sm_clock_hz": 2e9}, but={UTIL})
    looks.add_pieces(10.4, {UTIL: [(0.1, 0.3), (0.1, 0.4)]})
    assert looks.take() == {
        UTIL: [(0.0, 1.0), (pytest.approx(0.2), 0.0), (0.1, 0.3), (0.1, 0.4)],
        "sm_clock_hz": [(0.0, 1e9), (pytest.approx(0.4), 2e9)],
    }
    looks.add(10.5, {UTIL: 0.0})
    assert looks.take() == {UTIL: [(pytest.approx(0.1), 0.0)]}


# When to look


def looks_between_rows(hz: float, period_s: float, took_s: float = 0.0) -> list[list[float]]:
    """Seconds after its row at which each look of four rows falls."""
    pace, now_s, out = Pace(hz, lambda: 0.5), 0.0, []
    for row in range(4):
        row_s, found = row * period_s, []
        while (wait_s := pace.wait_s(now_s)) is not None and now_s + wait_s < row_s:
            began_s = now_s + wait_s
            found.append(round(began_s - (row_s - period_s), 3))
            now_s = began_s + took_s
            pace.look(began_s, now_s)
        now_s = max(row_s, now_s)
        pace.row(now_s, now_s)
        out.append(found)
    return out[1:]


def test_the_row_is_one_of_the_looks() -> None:
    assert looks_between_rows(5.0, 1.0)[1:] == [[0.2, 0.4, 0.6, 0.8]] * 2


def test_no_look_comes_right_before_a_row() -> None:
    assert looks_between_rows(5.0, 0.45)[1:] == [[0.2]] * 2  # one at 0.4 would be a second row


def test_a_slow_driver_is_left_alone_in_between() -> None:
    (found, *_) = looks_between_rows(5.0, 1.0, took_s=0.1)
    assert found == [0.2, 0.7]


def looks_of_a_second(chance: Callable[[], float], *, restless: bool) -> list[tuple[float, bool]]:
    """When looks fall after a row, and whether each is a whole one."""
    pace, now_s, found = Pace(5.0, chance), 11.0, []
    pace.row(10.0, 10.0, restless=restless)
    pace.row(11.0, 11.0, restless=restless)
    while now_s + (pace.wait_s(now_s) or 0.0) < 12.0:
        now_s += pace.wait_s(now_s) or 0.0
        found.append((round(now_s - 11.0, 3), pace.whole))
        pace.look(now_s, now_s, restless=restless)
    return found


def test_each_look_is_at_a_random_moment_of_its_slot() -> None:
    chances = iter((0.5, 0.0, 0.99, 0.25, 0.5, 0.5))
    found = looks_of_a_second(lambda: next(chances), restless=False)
    assert found == [(0.1, True), (0.498, True), (0.55, True), (0.8, True)]


def test_restless_gpus_are_looked_at_twenty_times_a_second_and_all_others_as_before() -> None:
    found = looks_of_a_second(lambda: 0.5, restless=True)
    assert [at_s for at_s, _ in found] == [round(0.05 * slot, 3) for slot in range(1, 20)]
    assert [at_s for at_s, whole in found if whole] == [0.2, 0.4, 0.6, 0.8]


def test_without_a_rate_there_are_only_rows() -> None:
    assert looks_between_rows(0.0, 1.0) == [[], [], []]
