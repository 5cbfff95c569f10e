"""The live window: batches in, steps out, within a budget of memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.collector.pushing import START_S, batch

from unidle_agent.fields import BY_NAME
from unidle_agent.wire import Batch, column
from unidle_collector.arrivals import Arrival
from unidle_collector.engine import Engine
from unidle_collector.model import GpuRef
from unidle_collector.window import LEAST_BEHIND, Window

SIZE = 64


def noisy_batch(random: np.random.Generator, node: int, first_s: int, seconds: int, period_s: float) -> Batch:
    """Of two GPUs, with gaps, a counter, and a column that only some nodes send."""
    rows = 2 * seconds
    values = random.random(rows).astype(np.float32)
    values[random.random(rows) < 0.2] = np.nan
    counts = [None if random.random() < 0.2 else int(n) for n in random.integers(0, 10**6, rows)]
    columns = {
        "sm_active_ratio": column(BY_NAME["sm_active_ratio"], values.tolist()),
        "energy_j": column(BY_NAME["energy_j"], counts),
    }
    if node % 2:
        columns["power_w"] = column(BY_NAME["power_w"], (600 * values).tolist())
    plain = batch(0, first_s, seconds, {}, node=f"n{node}", facts=False)
    times = [time + int(random.integers(0, 3)) * 10**9 for time in plain.times_ns]
    load = column(BY_NAME["load_1m"], [float(first_s)] * seconds)
    return replace(plain, columns=columns, times_ns=sorted(times), period_s=period_s, host={"load_1m": load})


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.sampled_from([1.0, 3.0]))
def test_batches_give_the_same_steps_in_one_group_or_one_by_one(
    seed: int, together: int, period_s: float
) -> None:
    random = np.random.default_rng(seed)
    arrivals = []
    for first_s in range(0, 40, 5):
        for node in range(3):
            item = noisy_batch(random, node, first_s, 5, period_s)
            arrivals.append(Arrival(item, np.array([2 * node, 2 * node + 1]), (START_S + first_s) * 10**9))
    single, grouped = Window(1.0, SIZE), Window(1.0, SIZE)
    one_by_one = single.take_all(arrivals[:3])  # where time begins is for the first group to say
    in_groups = grouped.take_all(arrivals[:3])
    for arrival in arrivals[3:]:
        one_by_one += single.take_all([arrival])
    for first in range(3, len(arrivals), together):
        in_groups += grouped.take_all(arrivals[first : first + together])
    assert in_groups == one_by_one
    node_of = np.full(SIZE, -1, dtype=np.int32)
    node_of[:6] = np.arange(6) // 2
    names = ["n0", "n1", "n2"]
    for _ in range(40):
        a, b = single.next(SIZE, node_of, names), grouped.next(SIZE, node_of, names)
        assert list(a.columns) == list(b.columns)
        np.testing.assert_array_equal(a.sampled, b.sampled)
        for name in a.columns:
            np.testing.assert_array_equal(a.columns[name], b.columns[name], err_msg=name)


def test_a_budget_shortens_the_past_and_loses_nothing_of_what_is_kept() -> None:
    window = Window(1.0, SIZE, budget_bytes=2**20)
    busy = {"sm_active_ratio": 0.5}
    positions = np.array([0, 1])
    node_of = np.full(SIZE, -1, dtype=np.int32)
    node_of[:2] = 0
    for first_s in range(0, 150, 10):
        window.take_all([Arrival(batch(first_s, first_s, 10, busy), positions, START_S * 10**9)])
        for _ in range(10):
            window.next(SIZE, node_of, ["n1"])
    window.take_all([Arrival(batch(999, 150, 5, busy), positions, START_S * 10**9)])
    window.resize(8 * SIZE)
    times, values = window.recent("sm_active_ratio", 0, "n1")
    assert len(times) == LEAST_BEHIND - 1
    assert set(values) == {0.5}
    node_of = np.pad(node_of, (0, 7 * SIZE), constant_values=-1)
    for _ in range(5):  # what lay ahead is still there
        assert window.next(8 * SIZE, node_of, ["n1"]).columns["sm_active_ratio"][1] == pytest.approx(0.5)
    assert np.isnan(window.next(8 * SIZE, node_of, ["n1"]).columns["sm_active_ratio"][1])
    assert window.describe(2).startswith("live window: 2 GPUs x 1 fields x 192 s = ")


def test_energy_after_a_hole_is_the_mean_of_the_hole_and_what_is_counted_is_all_there() -> None:
    """A node is away for 12 s; its row fills three steps, and four periods and more have passed."""
    window = Window(1.0, SIZE)

    def push(first_s: int, joules: list[int], errors: list[int]) -> None:
        counters = {"energy_j": [1000 * value for value in joules], "nvlink_errors": errors}
        sent = batch(first_s, first_s, len(joules), {}, counters=counters)
        window.take_all([Arrival(sent, np.array([0, 1]), START_S * 10**9)])

    push(0, [0, 100, 200], [0, 0, 0])
    push(14, [1400, 1500], [6, 6])
    node_of = np.full(SIZE, -1, dtype=np.int32)
    node_of[:2] = 0
    steps = [window.next(SIZE, node_of, ["n1"]) for _ in range(16)]
    energy, errors = ([float(step.columns[n][0]) for step in steps] for n in ("energy_j", "nvlink_errors"))
    assert energy[1:3] == pytest.approx([100.0] * 2)
    assert energy[12:] == pytest.approx([100.0] * 4)  # of the hole and of the second behind it
    assert np.isnan(energy[3:12]).all()
    assert sum(errors[12:]) == pytest.approx(6)


@pytest.mark.parametrize(("begins", "at_once"), [([7, 7], False), ([7], True), ([None, 7, None, 7], False)])
@pytest.mark.parametrize("in_one_batch", [True, False])
def test_an_energy_that_was_shown_before_anybody_looked_says_no_power(
    begins: list[int | None], at_once: bool, in_one_batch: bool
) -> None:
    """Of a first value that comes again nobody knows when it was read; else it was at its own row."""
    window, positions = Window(1.0, SIZE), np.array([0, 1])
    joules = [*begins, 107, 107, 307]
    for first, rows in [(0, joules)] if in_one_batch else [(n, [value]) for n, value in enumerate(joules)]:
        counts = [None if value is None else 1000 * value for value in rows]
        item = batch(first, first, len(rows), {"power_w": 120.0}, counters={"energy_j": counts})
        window.take_all([Arrival(item, positions, START_S * 10**9)])
    node_of = np.full(SIZE, -1, dtype=np.int32)
    node_of[:2] = 0
    steps = [window.next(SIZE, node_of, ["n1"]) for _ in joules]
    energy = [float(step.columns["energy_j"][0]) for step in steps]
    expected = [*[np.nan] * len(begins), 100.0 if at_once else np.nan, np.nan, 100.0]
    assert energy == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("anew_each_s", [5, 30])
def test_energy_that_is_shown_several_times_is_no_work_between(anew_each_s: int) -> None:
    """An exporter that samples each 30 s, scraped each 5 s: a GPU at rest, then one at work unseen."""
    states = []
    for drawn_w in (120, 300):
        window, engine = Window(1.0, SIZE), Engine(1.0, keep_accounts_ns=None)
        positions = np.array(
            [engine.add(GpuRef("n1", uuid, n, "NVIDIA H100")) for n, uuid in enumerate("ab")]
        )
        engine.inventory.a["period_s"][positions] = 5.0
        for number in range(120):
            first_s = 5 * number
            millijoules = [1000 * drawn_w * (first_s // anew_each_s * anew_each_s)]
            values = {"gpu_util_ratio": 0.0, "power_w": 120.0, "memory_used_bytes": 16 * 2**30}
            item = batch(number, first_s, 1, values, counters={"energy_j": millijoules})
            window.take_all([Arrival(replace(item, period_s=5.0), positions, START_S * 10**9)])
            for _ in range(5 if number else 1):
                size = engine.inventory.capacity
                engine.step(window.next(size, engine.inventory.a["node"], ["n1"]))
        states.append(engine.ledger.durations()[0][0].get("idle", 0.0))
    assert states == [pytest.approx(595, abs=anew_each_s), 0.0]
