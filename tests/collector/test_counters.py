"""Counters as increases, whatever the stream does to them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from unidle_agent.fields import UNKNOWN_U8
from unidle_collector.counters import Increases, increases

steps = st.lists(st.integers(0, 2**62), min_size=1, max_size=20)


def of_one(raw: list[int], before: int, resolution: float = 1.0) -> Increases:
    rows = len(raw)
    befores = np.full(rows, before, np.uint64)
    return increases(np.array(raw, np.uint64), befores, np.zeros(rows, np.intp), resolution)


@given(st.integers(0, 2**61), steps, st.data())
def test_increases_add_up_to_the_whole_rise_however_samples_go_missing(
    first: int, rises: list[int], data: st.DataObject
) -> None:
    values = [first]
    for rise in rises:
        values.append(min(values[-1] + rise, 2**63))
    lost = data.draw(st.lists(st.booleans(), min_size=len(rises), max_size=len(rises)))
    lost[-1] = False
    seen = [UNKNOWN_U8 if gone else value for value, gone in zip(values[1:], lost, strict=True)]
    result = of_one(seen, first)
    assert not result.reset.any()
    assert float(np.nansum(result.values)) == float(np.float64(values[-1] - first)) or np.isclose(
        np.nansum(result.values), values[-1] - first, rtol=1e-12
    )


def test_a_reset_is_unknown_and_counted_and_what_follows_counts_from_it() -> None:
    result = of_one([10, 20, 3, 8], UNKNOWN_U8, 0.5)
    np.testing.assert_array_equal(result.values, [np.nan, 5.0, np.nan, 2.5])
    assert (list(result.reset), int(result.last[-1])) == ([False, False, True, False], 8)


def test_the_series_of_several_counters_do_not_touch() -> None:
    raw = np.array([UNKNOWN_U8, 7, 100, UNKNOWN_U8], np.uint64)
    before = np.array([5, 5, 90, 90], np.uint64)
    result = increases(raw, before, np.array([0, 0, 2, 2]))
    np.testing.assert_array_equal(result.values, [np.nan, 2.0, 10.0, np.nan])
    np.testing.assert_array_equal(result.last, np.array([5, 7, 100, 100], np.uint64))


def test_a_counter_beyond_the_precision_of_a_float_stays_exact() -> None:
    big = 2**63
    np.testing.assert_array_equal(of_one([big + 1, big + 3], big).values, [1.0, 2.0])
