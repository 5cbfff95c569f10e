"""Counters as increases, whatever the stream does to them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from unidle_agent.fields import UNKNOWN_U8
from unidle_collector.counters import increases

steps = st.lists(st.integers(0, 2**62), min_size=1, max_size=20)


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
    result = increases(np.array(seen, np.uint64)[:, None], np.array([first], np.uint64), 1.0)
    assert result.resets == 0
    assert float(np.nansum(result.values)) == float(np.float64(values[-1] - first)) or np.isclose(
        np.nansum(result.values), values[-1] - first, rtol=1e-12
    )


def test_a_reset_is_unknown_and_counted_and_what_follows_counts_from_it() -> None:
    raw = np.array([[10], [20], [3], [8]], np.uint64)
    result = increases(raw, np.array([UNKNOWN_U8], np.uint64), 0.5)
    np.testing.assert_array_equal(result.values[:, 0], [np.nan, 5.0, np.nan, 2.5])
    assert (result.resets, int(result.last[0])) == (1, 8)


def test_a_counter_beyond_the_precision_of_a_float_stays_exact() -> None:
    big = 2**63
    result = increases(np.array([[big + 1], [big + 3]], np.uint64), np.array([big], np.uint64), 1.0)
    np.testing.assert_array_equal(result.values[:, 0], [1.0, 2.0])
