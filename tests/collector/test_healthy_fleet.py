"""The healthy fleet of the benchmark: it is what it says, nothing is told of it, and the engine listens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from benchmarks import healthy_fleet
from benchmarks.healthy_fleet import Quiet, Watch
from numpy.typing import NDArray

from unidle_agent.fields import BY_NAME
from unidle_collector.simulator import healthy_fleet as simulated
from unidle_collector.simulator.healthy_fleet import BLOCK, HealthyFleet, Played
from unidle_collector.simulator.healthy_looks import Looks, Slips
from unidle_collector.simulator.mechanisms import variants
from unidle_collector.simulator.mechanisms.variant import HEALTHY, Variant

GPUS = 256


def healthy(*names: str) -> list[Variant]:
    found = [v for which in ("tuning", "held_out") for v in variants(which) if v.truth == HEALTHY]
    return [v for v in found if v.name in names] if names else found


def played(period_s: float, hours: float, seed: int = 1, *names: str) -> list[Played]:
    return list(HealthyFleet(healthy(*names), GPUS, period_s, seed).play(hours))


def whole(blocks: list[Played], name: str) -> NDArray[np.float32]:
    return np.concatenate([block.columns[name] for block in blocks])


def test_the_same_seed_gives_the_same_fleet_and_another_seed_another() -> None:
    one, same, other = (whole(played(30.0, 1.0, seed), "sm_active_ratio") for seed in (1, 1, 2))
    assert np.array_equal(one, same, equal_nan=True)
    assert not np.array_equal(one, other, equal_nan=True)


def test_only_fields_of_the_table_are_sent_and_where_there_is_no_sample_nothing_is_known() -> None:
    for block in played(1.0, 0.05):
        assert set(block.columns) | set(block.constant) <= set(BY_NAME)
        assert {name for _, name, _, _ in block.sparse} <= set(block.constant)
        for name, values in block.columns.items():
            assert values.shape == (BLOCK, GPUS), name
            assert np.isnan(values[~block.sampled]).all(), name


def test_the_energy_is_that_of_the_power_whatever_is_late_or_missing() -> None:
    """Steady work only: what the counter grew by over two hours is the mean power times the time."""
    blocks = played(30.0, 2.0, 3, "compute bound at the power limit")
    power, energy = whole(blocks, "power_w"), whole(blocks, "energy_j")
    known = ~np.isnan(energy)
    drawn = np.array([energy[known[:, gpu], gpu].sum() for gpu in range(GPUS)])
    shown = np.array([power[known[:, gpu], gpu].sum() * 30.0 for gpu in range(GPUS)])
    assert (known.mean(axis=0) > 0.6).all()
    assert drawn == pytest.approx(shown, rel=0.08)


def test_samples_are_late_lost_and_never_seen_before_they_were_taken() -> None:
    exporter = np.arange(64) % 4 == 0
    looks = Looks(exporter, 60.0, Slips(missing=(0.3, 0.3)), np.random.default_rng(5))
    first, second = (looks.at(60.0 * np.arange(begin, begin + BLOCK)) for begin in (1, 1 + BLOCK))
    times_s = np.concatenate((first.times_s, second.times_s))
    sampled = np.concatenate((first.sampled, second.sampled))
    before_s = np.concatenate((first.before_s, second.before_s))
    heard_s = np.concatenate((first.heard_s, second.heard_s))
    assert 0.05 < 1 - sampled.mean() < 0.3
    assert (before_s < times_s).all()
    assert (heard_s <= times_s + 1e-9).all()
    silent_s = times_s - heard_s
    assert silent_s[:, exporter].max() > 90.0, "a scrape that is lost is silence of two periods"
    assert silent_s[:, exporter].max() < 3.5 * 60.0
    longest = max(len(run) for run in "".join("01"[int(one)] for one in sampled[:, 0]).split("1"))
    assert longest <= 2


@pytest.mark.parametrize(("period_s", "hours"), [(60.0, 6.0), (30.0, 3.0), (5.0, 0.5)])
def test_nothing_is_told_of_a_healthy_fleet_but_failures_of_applications(
    monkeypatch: pytest.MonkeyPatch, period_s: float, hours: float
) -> None:
    often = replace(simulated.Habits(), failures_per_h=0.05)
    monkeypatch.setattr(simulated, "Habits", lambda: often)
    quiet = healthy_fleet.watch(["tuning"], Watch(period_s, hours * GPUS), seed=21, gpus=GPUS)
    assert quiet.titles == []
    assert quiet.gpu_hours >= hours * GPUS * 0.9
    assert quiet.failures > 0
    assert quiet.heard == quiet.failures


def test_a_fleet_that_is_not_healthy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that silence means something: the same way with starving jobs among the variants."""
    bad = [v for v in variants("tuning") if v.name == "NFS plateau, sawtooth"]
    monkeypatch.setattr(healthy_fleet, "variants", lambda _: [replace(v, truth=HEALTHY) for v in bad])
    quiet = healthy_fleet.watch(["tuning"], Watch(5.0, 1.0 * GPUS), seed=2, gpus=GPUS)
    assert quiet.false["starvation.storage"] > 10


@pytest.mark.slow
def test_rows_that_the_live_window_spreads_over_seconds_give_the_same_hours() -> None:
    quiet = healthy_fleet.watch(["tuning"], Watch(15.0, 64.0, live=True), seed=4, gpus=64)
    assert quiet.titles == []
    assert quiet.gpu_hours == pytest.approx(64.0, rel=0.15)


def test_exporters_that_are_read_more_often_than_they_sample_give_the_same_hours_and_silence() -> None:
    quiet = healthy_fleet.watch(["tuning"], Watch(30.0, 1.5 * GPUS, read_s=5.0), seed=21, gpus=GPUS)
    assert quiet.titles == []
    assert quiet.gpu_hours == pytest.approx(1.5 * GPUS, rel=0.15)


def test_what_is_read_between_two_samples_of_an_exporter_stands_still() -> None:
    exporters = healthy_fleet._Exporters(GPUS, 6, np.random.default_rng(1))
    pages: list[dict[str, NDArray[np.float64]]] = []
    for sample in range(3):
        values = {name: np.full(GPUS, 100.0 + sample) for name in ("power_w", "energy_j", "pcie_replays")}
        reads = (exporters.read(number, values, np.ones(GPUS, dtype=np.bool_)) for number in range(6))
        pages += [columns for columns, _ in reads]
    power, energy, replays = (
        np.stack([page[name] for page in pages])[6:] for name in ("power_w", "energy_j", "pcie_replays")
    )
    changed = np.diff(power, axis=0) != 0
    assert (changed.sum(axis=0) <= 2).all()
    assert len(set(np.argmax(power == 102.0, axis=0).tolist())) > 3, "each node has a phase of its own"
    assert ((replays[1:] > 0) == changed).all()
    assert (~np.isnan(energy[1:]) == changed).all()
    assert set(energy[~np.isnan(energy)] * 6) <= {101.0, 102.0}


def test_bounds_are_of_each_period_and_of_all_together() -> None:
    quiet = {"1": Quiet(gpu_hours=1000.0), "60": Quiet(gpu_hours=9000.0)}
    quiet["60"].false["idle.held"] = 1
    figures: dict[str, object] = {}
    healthy_fleet.add(figures, quiet)
    assert (figures["healthy_gpu_hours"], figures["false_findings"]) == (10_000.0, 1)
    assert figures["false_per_1000_gpu_hours_upper95"] == pytest.approx(0.474, abs=0.001)
    assert figures["false_per_1000_gpus_and_week_upper95"] == pytest.approx(0.474 * 168, abs=0.1)
    by_period = figures["healthy_by_period"]
    assert isinstance(by_period, dict)
    assert by_period["1"]["false_per_1000_gpu_hours_upper95"] == pytest.approx(3.0, abs=0.01)


def test_the_hours_to_run_are_named_by_period() -> None:
    assert healthy_fleet._watch("30=1e5") == Watch(30.0, 100_000.0)
    assert healthy_fleet._watch("live30=500") == Watch(30.0, 500.0, live=True)
    assert healthy_fleet._watch("30read5=1e3") == Watch(30.0, 1000.0, read_s=5.0)
    assert {each.name for each in healthy_fleet.USUAL} >= {"1", "live30", "30read5", "10read1"}
