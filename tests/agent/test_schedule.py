"""When nodes sample and send: properties over any clock."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from unidle_agent.schedule import SPREAD_S, missed, next_ns, number_of, sending_delay_s

SECOND = 10**9
PERIODS_NS = st.sampled_from([SECOND // 10, SECOND // 2, SECOND, 5 * SECOND, 30 * SECOND])
STARTS_NS = st.integers(1_700_000_000 * SECOND, 1_800_000_000 * SECOND)


def rows(start_ns: int, period_ns: int, late_ns: list[int], took_ns: list[int]) -> list[int]:
    """Instants of rows of a node that wakes `late_ns` after it wanted to and then works for `took_ns`."""
    instants = [start_ns]
    for late, took in zip(late_ns, took_ns, strict=True):
        now_ns = instants[-1] + took
        instants.append(next_ns(instants[-1], now_ns, period_ns) + late)
    return instants


@given(STARTS_NS, PERIODS_NS, st.data())
def test_no_two_rows_count_to_one_instant_however_late_a_node_wakes(start_ns, period_ns, data) -> None:  # type: ignore[no-untyped-def]
    late = data.draw(st.lists(st.integers(-period_ns // 100, 4 * period_ns), max_size=30))
    took = data.draw(st.lists(st.integers(0, 3 * period_ns), min_size=len(late), max_size=len(late)))
    instants = rows(start_ns, period_ns, late, took)
    numbers = [number_of(instant, period_ns) for instant in instants]
    assert all(one < other for one, other in pairwise(numbers))
    skipped = sum(missed(one, other, period_ns) for one, other in pairwise(instants))
    assert len(instants) + skipped == numbers[-1] - numbers[0] + 1, "every instant has a row or is missed"


@given(STARTS_NS, PERIODS_NS, st.integers(1, 20))
def test_nodes_that_wake_in_time_sample_on_whole_multiples_of_the_period(
    start_ns: int, period_ns: int, count: int
) -> None:
    instants = rows(start_ns, period_ns, [0] * count, [period_ns // 10] * count)
    assert all(instant % period_ns == 0 for instant in instants[1:])
    assert all(other - one <= 1.5 * period_ns for one, other in pairwise(instants))


@given(STARTS_NS, PERIODS_NS, st.integers(-(10**6) * SECOND, 10**6 * SECOND))
def test_a_clock_that_is_set_is_followed_within_two_periods(
    last_ns: int, period_ns: int, step_ns: int
) -> None:
    now_ns = last_ns + step_ns
    coming_ns = next_ns(last_ns, now_ns, period_ns)
    assert coming_ns % period_ns == 0
    assert now_ns < coming_ns <= now_ns + 2 * period_ns
    if step_ns < 0:
        assert missed(last_ns, coming_ns, period_ns) <= 1


def test_a_suspended_machine_goes_on_at_the_next_whole_second_and_counts_what_it_missed() -> None:
    assert next_ns(100 * SECOND, 3700 * SECOND + 5, SECOND) == 3701 * SECOND
    assert missed(100 * SECOND, 3701 * SECOND, SECOND) == 3600


def test_nodes_send_after_delays_of_their_own_spread_evenly_and_always_the_same() -> None:
    delays = [sending_delay_s(f"node-{number:05d}") for number in range(1250)]
    assert delays == [sending_delay_s(f"node-{number:05d}") for number in range(1250)]
    tenths = [int(10 * delay / SPREAD_S) for delay in delays]
    assert all(80 <= tenths.count(tenth) <= 170 for tenth in range(10))
