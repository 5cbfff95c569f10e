"""Looks between two rows: means, extremes, shares at zero, integrals, and when to look."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unidle_agent.fields import BY_NAME, COLUMNS, FIELDS
from unidle_agent.subsecond import LONGEST_S, Integrals, Looks, Pace, Piece, integral_s, summary

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


def mean_over_10_s(hz: float, period_s: float, phase_s: float, window_s: float) -> float:
    """What ten rows say, one per second, of a driver whose utilization is that of its last `window_s`."""

    def seen(at_s: float) -> dict[str, float | int]:
        busy = busy_s(at_s, period_s) - busy_s(at_s - window_s, period_s)
        return {UTIL: busy / window_s}

    pace, looks, now_s, rows = Pace(hz), Looks(), 100.0 + phase_s, []
    for second in range(11):
        row_s = 100.0 + phase_s + second
        while (wait_s := pace.wait_s(now_s)) is not None and now_s + wait_s < row_s:
            now_s += wait_s
            looks.add(now_s, seen(now_s))
            pace.look(now_s, now_s)
        now_s = row_s
        looks.add(now_s, seen(now_s))
        rows.append(float(summary(UTIL, looks.take()[UTIL])[UTIL]))
        pace.row(now_s, now_s)
    return sum(rows[1:]) / 10


def rms_error(hz: float, window_s: float) -> float:
    """Over periods of 0.3 to 3 s and eight phases of each, as a ratio."""
    errors = []
    for period_s in (0.3 + 0.05 * step for step in range(55)):
        for phase_s in (period_s * eighth / 8 for eighth in range(8)):
            begin_s = 100.0 + phase_s
            true = (busy_s(begin_s + 10, period_s) - busy_s(begin_s, period_s)) / 10
            errors.append(mean_over_10_s(hz, period_s, phase_s, window_s) - true)
    return math.sqrt(sum(error * error for error in errors) / len(errors))


@pytest.mark.parametrize("window_s", [1 / 6, 0.2, 0.25, 0.5, 1.0])
def test_ten_second_means_of_a_bursty_gpu_are_within_two_points(window_s: float) -> None:
    assert rms_error(5.0, window_s) <= 0.02


def test_one_look_per_second_would_not_do() -> None:
    assert rms_error(0.0, 1 / 6) > 0.05


# When to look


def looks_between_rows(hz: float, period_s: float, took_s: float = 0.0) -> list[list[float]]:
    """Seconds after its row at which each look of four rows falls."""
    pace, now_s, out = Pace(hz), 0.0, []
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


def test_without_a_rate_there_are_only_rows() -> None:
    assert looks_between_rows(0.0, 1.0) == [[], [], []]
