"""Booked time: packing and merging old spans changes no sum and keeps memory small."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unidle_collector.accounts.buckets import BUCKET_NS, HOUR_NS, Buckets

DAY_NS = 24 * HOUR_NS


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 40 * 12), st.integers(0, 30)), min_size=1, max_size=60))
def test_no_second_is_lost_by_packing_and_merging(booked: list[tuple[int, int]]) -> None:
    buckets = Buckets(3, HOUR_NS // 2, None)
    for span, tenure in sorted(booked):
        buckets.at(span * BUCKET_NS + 1, tenure + 1).seconds[1, tenure] += 1.0
    total = buckets.total(0, 2**62, 64)
    assert total.seconds.sum() == len(booked)
    for tenure in range(31):
        assert total.seconds[1, tenure] == sum(which == tenure for _, which in booked)


def test_a_window_takes_the_spans_that_it_touches() -> None:
    buckets = Buckets(1, 0, None)
    for span in range(24):
        buckets.at(span * BUCKET_NS + 1, 1).seconds[0, 0] += 300.0
    assert buckets.total(12 * BUCKET_NS, 15 * BUCKET_NS, 1).seconds.sum() == 900.0
    assert buckets.first_ns(12 * BUCKET_NS, 15 * BUCKET_NS) == 12 * BUCKET_NS


def test_a_week_of_changing_jobs_stays_small() -> None:
    """128 GPUs whose job changes each hour: 21,500 tenures; a dense week would be 6 GB."""
    buckets = Buckets(16, 1200 * 10**9, 8 * DAY_NS)
    for hour in range(7 * 24):
        tenures = np.arange(128) + 128 * hour
        for part in range(12):
            sums = buckets.at(hour * HOUR_NS + part * BUCKET_NS + 1, int(tenures[-1]) + 1)
            sums.seconds[3, tenures] += 300.0
    every = (
        *(packed for several in buckets._packed.values() for packed in several),
        *buckets._hours.values(),
    )
    held = sum(packed.nbytes for packed in every)
    assert held < 4e6
    assert buckets.total(0, 2**62, 128 * 168).seconds.sum() == 7 * 24 * 128 * 3600.0


def test_what_is_too_old_is_dropped_once_it_is_written() -> None:
    buckets = Buckets(1, 0, 2 * DAY_NS)
    for hour in range(100):
        buckets.at(hour * HOUR_NS + 1, 1).seconds[0, 0] += 1.0
    assert buckets.total(0, 2**62, 1).seconds.sum() == 100
    for hour in buckets.finished():
        buckets.wrote(hour)
    buckets.at(100 * HOUR_NS + 1, 1)
    assert 48 <= buckets.total(0, 2**62, 1).seconds.sum() <= 50


@pytest.mark.parametrize(("given", "total"), [(True, 7.0), (False, 3607.0)])
def test_what_is_booked_in_an_hour_takes_the_place_of_one_that_was_filled_in(
    given: bool, total: float
) -> None:
    other = Buckets(1, 0, None)
    other.at(1, 1).seconds[0, 0] += 3600.0
    buckets = Buckets(1, 0, None)
    buckets.restore_hour(0, other.by_hour()[0], given=given)
    buckets.at(HOUR_NS + 1, 1)
    assert buckets.total(0, 2**62, 1).seconds.sum() == 3600.0
    buckets.at(BUCKET_NS + 1, 1).seconds[0, 0] += 7.0
    assert buckets.total(0, 2**62, 1).seconds.sum() == total
