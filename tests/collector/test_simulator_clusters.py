"""Simulated clusters: an allocator that keeps its books, a fair queue, and samples near the measured ones."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from benchmarks import simulator
from hypothesis import given
from hypothesis import strategies as st

from unidle_collector.simulator.clusters import LONG_S, clusters
from unidle_collector.simulator.queueing import (
    Allocator,
    Run,
    Wanted,
    arrivals,
    draw_durations,
    draw_sizes,
    over_time,
    schedule,
)
from unidle_collector.simulator.sampled import Sampled, sample

WIDTH = 8
needs_data = pytest.mark.skipif(
    not simulator.ACME.exists(), reason=f"no distributions of real clusters in {simulator.DATA}"
)

# Mean, median, share below 1, 10, 30 and 40 %, mean of what is 1 % or more; in percent.
PUBLISHED = {
    "seren.gpu_util_pct": (66.1, 99.0, 31.5, 31.8, 32.2, 32.4, 96.5),
    "seren.sm_active_pct": (41.5, 50.2, 33.4, 34.9, 38.6, 40.7, 62.3),
    "seren.gpu_mem_used_pct": (38.8, 39.3, 25.7, 28.0, 38.9, 52.2, 52.2),
    "kalos.gpu_util_pct": (69.8, 98.0, 25.9, 26.3, 26.7, 27.4, 94.2),
    "kalos.sm_active_pct": (38.5, 33.3, 39.5, 44.8, 49.3, 51.2, 63.6),
    "kalos.gpu_mem_used_pct": (50.1, 75.4, 28.6, 29.4, 33.8, 36.8, 70.2),
    "philly.gpu_util_pct": (47.2, 48.5, 32.7, 36.3, 42.5, 46.1, 70.1),
}


@cache
def played(name: str) -> Sampled:
    return sample(clusters()[name], seed=2, nodes=48, days=45, instants=120)


@needs_data
@pytest.mark.parametrize("metric", PUBLISHED)
def test_the_distributions_give_the_published_figures_of_low_utilization(metric: str) -> None:
    values = simulator.acme()[metric]
    below = (100 * (values < limit).mean() for limit in (1, 10, 30, 40))
    figures = (values.mean(), np.median(values), *below, values[values >= 1].mean())
    assert figures == pytest.approx(PUBLISHED[metric], abs=0.051)


@needs_data
@pytest.mark.parametrize("name", ["seren", "kalos"])
def test_a_small_cluster_is_near_the_real_one_in_every_signal(name: str) -> None:
    """The benchmark's larger ones are nearer; few jobs of heavy-tailed length make a small one vary."""
    apart = simulator.signals(clusters()[name], [played(name)], simulator.acme())
    assert set(apart) == {
        "gpu_util_pct", "sm_active_pct", "gpu_mem_used_pct", "gpu_power_w", "gpu_core_temp_c",
    }  # fmt: skip
    assert max(one["ks"] for one in apart.values()) < 0.15


@pytest.mark.skipif(not simulator.LONG_JOBS.exists(), reason="no run times of real jobs")
def test_drawn_jobs_are_as_long_and_as_large_as_phillys() -> None:
    apart = simulator.jobs(seed=3)
    assert apart["num_gpus"]["ks"] < 0.01
    assert max(one["ks"] for one in apart.values()) < 0.1


def test_without_data_only_the_signatures_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulator, "ACME", Path("nowhere") / "cdfs.parquet")
    figures = simulator.compare(seeds=1, nodes=16)
    assert set(figures) == {"signatures", "skipped"}
    assert "no distributions" in figures["skipped"]


def test_a_distance_is_nothing_between_equals_and_a_shift_is_its_own_size() -> None:
    values = np.random.default_rng(1).normal(0, 1, 5000)
    same = simulator.distance(values, values.copy())
    assert (same["ks"], same["wasserstein"]) == (pytest.approx(0, abs=1e-3), pytest.approx(0))
    moved = simulator.distance(values + 3, values)
    assert moved["wasserstein"] == pytest.approx(3)
    assert moved["ks"] == pytest.approx(0.866, abs=0.03)  # 2 * Phi(1.5) - 1


def test_samples_stay_physical() -> None:
    for name in clusters():
        shown = played(name).signals
        for field in ("gpu_util_pct", "sm_active_pct", "gpu_mem_used_pct"):
            assert 0 <= shown[field].min() <= shown[field].max() <= 100
        assert shown["gpu_power_w"].min() > 55
        assert shown["gpu_power_w"].max() < 460
        assert shown["gpu_core_temp_c"].min() > 10
        assert shown["gpu_core_temp_c"].max() < 85


def test_classes_of_work_have_all_of_the_time_and_rise() -> None:
    for cluster in clusters().values():
        assert sum(one.share for one in cluster.work) == pytest.approx(1, abs=0.001)
        assert sum(share for share, _ in cluster.partitions) == pytest.approx(1)
        for work in cluster.work:
            for three in (work.util, work.sm, work.memory, work.power, work.warm):
                assert list(three) == sorted(three), (cluster.name, work.name)


def test_one_seed_is_one_cluster() -> None:
    one, same, other = (sample(clusters()["seren"], seed, nodes=8, days=6, instants=4) for seed in (1, 1, 2))
    assert np.array_equal(one.signals["gpu_power_w"], same.signals["gpu_power_w"])
    assert not np.array_equal(one.signals["gpu_power_w"], other.signals["gpu_power_w"])


def test_nobody_has_a_gpu_that_another_job_has() -> None:
    play = played("philly")
    placed = [one for run in play.runs for one in run.placed]
    by_gpu: dict[int, list[tuple[float, float]]] = {}
    for one in placed:
        for gpu in one.gpus.tolist():
            by_gpu.setdefault(gpu, []).append((one.start_s, one.end_s))
    assert len(by_gpu) == play.gpus
    for spans in by_gpu.values():
        spans.sort()
        assert all(after[0] >= before[1] for before, after in pairwise(spans))


def test_a_job_waits_until_its_gpus_are_free_and_smaller_ones_pass_it() -> None:
    profile = clusters()["philly"].jobs
    wanted = [Wanted(0, 0, 6, 100), Wanted(1, 1, 8, 50), Wanted(2, 2, 2, 10), Wanted(3, 3, 2, 10)]
    run = schedule(wanted, profile, nodes=1, gpus_per_node=WIDTH, until_s=1000)
    assert {one.job.number: one.start_s for one in run.placed} == {0: 0, 2: 2, 3: 12, 1: 100}
    assert {one.job.number: one.waited_s for one in run.placed} == {0: 0, 2: 0, 3: 9, 1: 99}
    assert run.waiting == 0


def test_a_job_goes_where_it_leaves_the_least_free_and_a_large_one_onto_whole_nodes() -> None:
    allocator = Allocator(nodes=4, gpus_per_node=WIDTH)
    assert allocator.take(6) is not None
    second = allocator.take(2)
    assert second is not None
    assert set(second.tolist()) == {6, 7}
    large = allocator.take(16)
    assert large is not None
    assert set(large.tolist()) == set(range(8, 24))
    assert allocator.take(16) is None
    assert allocator.take(8) is not None
    assert allocator.take(1) is None


def test_what_is_free_in_pieces_is_stranded_for_the_jobs_that_need_more() -> None:
    allocator = Allocator(nodes=2, gpus_per_node=WIDTH)
    allocator.take(6)
    assert allocator.stranded((1, 4, 8), (0.5, 0.25, 0.25)) == pytest.approx(0.25 * 2 + 0.25 * 2)
    allocator.give_back(np.arange(6))
    assert allocator.stranded((1, 4, 8), (0.5, 0.25, 0.25)) == 0


@given(st.lists(st.tuples(st.integers(1, 24), st.booleans()), max_size=60))
def test_the_allocator_keeps_its_books(moves: list[tuple[int, bool]]) -> None:
    allocator, held = Allocator(nodes=3, gpus_per_node=WIDTH), []
    for gpus, gives_back in moves:
        if gives_back and held:
            allocator.give_back(held.pop(0))
        elif (taken := allocator.take(gpus)) is not None:
            assert taken.size == gpus
            held.append(taken)
        positions = [position for one in held for position in one.tolist()]
        assert len(positions) == len(set(positions)) == 3 * WIDTH - int(allocator.count.sum())


def test_asked_for_load_arrives_and_more_by_day() -> None:
    profile = replace(clusters()["philly"].jobs, longest_s=2 * LONG_S)
    jobs = arrivals(profile, 512, 0.6, 60 * 86_400.0, np.random.default_rng(4))
    asked = sum(job.gpus * job.runs_s for job in jobs) / (512 * 60 * 86_400.0)
    assert asked == pytest.approx(0.6, rel=0.05)
    times = np.array([job.submitted_s for job in jobs])
    assert (np.diff(times) >= 0).all()
    hour = times % 86_400 / 3600
    assert ((hour > 6) & (hour < 18)).mean() > 0.6


def test_run_times_are_within_what_they_are_drawn_from() -> None:
    profile = clusters()["philly"].jobs
    rng = np.random.default_rng(5)
    sizes = draw_sizes(profile, 20_000, rng)
    runs_s = draw_durations(profile, sizes, rng)
    assert runs_s.min() > 0
    assert runs_s.max() <= profile.longest_s
    assert (runs_s >= LONG_S).mean() == pytest.approx(profile.long_share, abs=0.02)


def test_a_mean_over_time_weighs_by_how_long_it_was_so() -> None:
    run = Run(times_s=[0.0, 10.0, 40.0], free=[8, 4, 0])
    assert over_time(run, run.free, 0.0, 100.0) == pytest.approx((8 * 10 + 4 * 30) / 100)
    assert over_time(run, run.free, 20.0, 60.0) == pytest.approx(4 * 20 / 40)
