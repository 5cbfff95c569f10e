"""Rows that repeat a sample, as of an exporter that is read more often than it samples, count as that one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.collector.fleets import HEALTHY, HELD, Column, recording
from tests.collector.test_detectors_jobs import job, saves
from tests.collector.test_long_rows import live

from unidle_collector.pergpu import SECOND_NS, Floats
from unidle_collector.recording import Recording
from unidle_collector.replay import Result, replay
from unidle_collector.signs.sampling import Sampling
from unidle_collector.simulator.recordings import standing

EXPORTER, READ = 30, 5


def read(columns: dict[str, Column], minutes: float, each_s: int = EXPORTER, read_s: int = READ) -> Recording:
    """What an exporter shows that samples each `each_s` and is read each `read_s`; there is always a job."""
    seconds = recording(columns, minutes=minutes, job="7")
    return standing(seconds, each_s, read_s, np.random.default_rng(3))


def in_samples(first: int, last: int, value: float, otherwise: float) -> Column:
    """`value` in the samples of EXPORTER s from `first` to `last`, whatever their phase."""

    def build(instants: int, gpus: int) -> NDArray[np.float64]:
        second = np.arange(instants)
        inside = (second >= EXPORTER * first) & (second < EXPORTER * (last + 1))
        return np.repeat(np.where(inside, value, otherwise)[:, None], gpus, axis=1)

    return build


def told(seen: Recording) -> set[tuple[str, str]]:
    return {(one.kind, one.cause) for one in replay(seen).findings if one.told_ns is not None}


def seconds(result: Result, state: str) -> float:
    return sum(gpu.states[state] for gpu in result.gpus) / len(result.gpus)


def learnt_s(power_w: list[float], row_s: float = 1.0) -> float:
    """What is known of one GPU after these readings of its power."""
    sampling = Sampling(1)
    for row, value in enumerate(power_w):
        sampling.look(
            {"power_w": np.array([value])},
            round((row + 1) * row_s * SECOND_NS),
            np.array([row_s]),
            np.zeros(1, dtype=np.int32),
        )
    return float(sampling.each_s[0])


def repeated(samples: int, rows: int, begin: float = 600.0) -> list[float]:
    return np.repeat(begin + 0.1 * np.arange(samples), rows).tolist()


@pytest.mark.parametrize(("rows", "row_s"), [(6, 5.0), (10, 1.0), (2, 15.0)])
def test_readings_of_power_that_change_at_regular_times_tell_how_often_is_sampled(
    rows: int, row_s: float
) -> None:
    assert learnt_s(repeated(6, rows), row_s) == pytest.approx(rows * row_s)


def test_a_change_may_be_seen_a_row_late() -> None:
    power_w = [600.0 + number for number, rows in enumerate((6, 7, 5, 6, 6)) for _ in range(rows)]
    assert learnt_s(power_w, 5.0) == pytest.approx(30.0, abs=2.0)


def test_an_exporter_that_is_told_to_sample_more_often_is_believed_so() -> None:
    assert learnt_s(repeated(6, 6), 5.0) == pytest.approx(30.0)
    assert np.isnan(learnt_s([*repeated(6, 6), *repeated(6, 1, 700.0)], 5.0))


@pytest.mark.parametrize(
    "power_w",
    [
        pytest.param([120.0] * 500, id="always the same"),
        pytest.param([600.0, *[np.nan] * 40], id="known once"),
        pytest.param(np.arange(40.0).tolist(), id="in each row another"),
        pytest.param(
            np.repeat(np.arange(200.0), 1 + (np.random.default_rng(2).random(200) < 0.3)).tolist(),
            id="rows lost, and filled by those after them",
        ),
        pytest.param(
            [119.0 + (number % 2) for number, rows in enumerate((40, 3, 90, 17, 60)) for _ in range(rows)],
            id="whole watts that change now and then",
        ),
    ],
)
def test_of_power_that_does_not_change_at_regular_times_some_rows_apart_nothing_is_concluded(
    power_w: list[float],
) -> None:
    assert np.isnan(learnt_s(power_w))


def test_a_gpu_at_rest_is_known_by_the_others_of_its_node() -> None:
    sampling, node = Sampling(3), np.array([0, 0, 1], dtype=np.int32)
    for row in range(40):
        power_w: Floats = np.array([600.0 + row // 6, 70.0, 70.0])
        sampling.look({"power_w": power_w}, (row + 1) * 5 * SECOND_NS, np.full(3, 5.0), node)
    assert sampling.each_s[:2] == pytest.approx([30.0, 30.0])
    assert np.isnan(sampling.each_s[2])


HOT = 0x20


@pytest.mark.parametrize(("samples", "expected"), [(1, False), (3, True)])
def test_throttling_in_one_sample_is_not_told_however_often_that_is_read(
    samples: int, expected: bool
) -> None:
    bits = in_samples(20, 19 + samples, HOT, 0.0)
    clocks = in_samples(20, 19 + samples, 1.2e9, 1.98e9)
    seen = read(HEALTHY | {"clock_event_reasons": bits, "sm_clock_hz": clocks}, minutes=20)
    found = ("throttling_thermal", "software_thermal")
    assert (found in told(seen)) == expected
    assert (found in live(seen)[0]) == expected, "the steps of the live window are no samples either"


def test_throttling_is_found_by_its_counter_alone_though_that_leaps() -> None:
    clocks = in_samples(20, 60, 1.2e9, 1.98e9)
    slowed_s = in_samples(20, 60, 1.0, 0.0)
    columns = {"clock_event_reasons": None, "thermal_throttle_s": slowed_s, "sm_clock_hz": clocks}
    result = replay(read(HEALTHY | columns, minutes=30))
    assert {(one.kind, one.cause) for one in result.findings} == {("throttling_thermal", "software_thermal")}
    assert seconds(result, "throttled") == pytest.approx(41 * EXPORTER, abs=2.5 * EXPORTER)


@pytest.mark.parametrize(("samples", "expected"), [(1, False), (3, True)])
def test_a_link_that_is_slow_in_one_sample_is_not_told_however_often_that_is_read(
    samples: int, expected: bool
) -> None:
    slow = in_samples(20, 19 + samples, 1.0, 5.0)
    seen = read(HEALTHY | {"pcie_generation": slow, "pcie_generation_max": 5.0}, minutes=20)
    assert (("pcie", "generation") in told(seen)) == expected


def test_of_a_session_between_whose_cells_samples_fall_nobody_is_told_after_rows_instead_of_samples() -> None:
    """Cells of seconds hardly ever fall on a sample that is taken each half a minute."""
    held = recording(HELD, minutes=70, period_s=READ, job="jupyter-7")
    assert ("idle", "interactive") in told(held)
    seldom = recording(HELD, minutes=70, job="jupyter-7")
    assert told(standing(seldom, EXPORTER, READ, np.random.default_rng(3))) == set()


def test_a_pause_of_a_few_samples_is_no_idleness_and_a_long_one_is_from_its_begin_on() -> None:
    pause = HEALTHY | {name: in_samples(20, 25, 0.0, 0.9) for name in ("gpu_util_ratio", "sm_active_ratio")}
    assert seconds(replay(read(pause, minutes=40)), "idle") == 0.0
    idle = replay(read(HELD, minutes=40))
    assert seconds(idle, "idle") > 38 * 60


def test_what_a_node_writes_is_not_set_beside_an_old_sample_of_its_gpus() -> None:
    """Writes of a pause that the sample of before does not show yet are not what is usual in work."""
    whole = job(saves(60, 240, period_s=1.0), period_s=1.0)
    power = whole.columns["power_w"]
    noise = np.random.default_rng(1).normal(0, 2, power.shape)
    whole = replace(whole, columns=whole.columns | {"power_w": power + noise})
    causes = replay(standing(whole, EXPORTER, READ, np.random.default_rng(0))).gpus[0].causes
    assert set(causes) == {"starved.checkpoint"}
    assert causes["starved.checkpoint"] == pytest.approx(10 * 60, abs=2.5 * EXPORTER)


def test_gpus_whose_readings_never_change_become_idle_as_soon_as_others() -> None:
    """Nobody could say that they were repeated."""
    still = recording(HELD | {"power_w": 120.0}, minutes=40, period_s=5.0, job="7")
    moves = recording(HELD, minutes=40, period_s=5.0, job="7")
    assert seconds(replay(still), "idle") == seconds(replay(moves), "idle") > 38 * 60


def rising(instants: int, gpus: int) -> NDArray[np.float64]:
    return np.repeat(np.arange(instants, dtype=np.float64)[:, None], gpus, axis=1)


def test_between_samples_all_stands_still_but_the_host_and_counters_leap() -> None:
    whole = recording({"power_w": rising, "energy_j": 100.0, "cpu_busy_ratio": rising}, minutes=20)
    apart = replace(whole, gpus=tuple(replace(ref, node=f"n{ref.index}") for ref in whole.gpus))
    seen = standing(apart, EXPORTER, 1, np.random.default_rng(1))
    power, energy, host = (seen.columns[name] for name in ("power_w", "energy_j", "cpu_busy_ratio"))
    shown = ~np.isnan(power)
    grows = np.nan_to_num(energy) > 0
    assert set(energy[grows] / (100.0 * EXPORTER)) == {1.0}
    assert grows.sum() == pytest.approx(8 * 20 * 60 / EXPORTER, rel=0.05)
    assert set(np.unique((whole.columns["power_w"] - power)[shown])) == set(range(EXPORTER))
    assert len({int(np.argmax(grows[:, gpu])) % EXPORTER for gpu in range(8)}) > 3, "phases of their own"
    assert np.array_equal(host[shown], whole.columns["cpu_busy_ratio"][shown])
