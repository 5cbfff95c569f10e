"""The runs that the diagnosis is scored on: near what was measured, apart by set, the same by seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks import diagnosis, mechanism_runs
from benchmarks.simulator import MEASURED

from unidle_collector.simulator.mechanisms import variants
from unidle_collector.simulator.mechanisms.memory import MEMORY_VARIANTS, memory
from unidle_collector.simulator.mechanisms.over_provisioned import LIFE_VARIANTS
from unidle_collector.simulator.mechanisms.variant import HEALTHY, Range, Variant
from unidle_collector.simulator.recordings import as_exporter, every, lateness, together, with_missing
from unidle_collector.simulator.trial import CARDS, Trial, trial

SECONDS, GPUS = 1500, 8
PAGE = Path(__file__).parents[2] / "docs" / "diagnosis.md"

SHOWN = ("gpu_util_ratio", "sm_active_ratio", "tensor_active_ratio", "dram_active_ratio")


def named(name: str) -> Variant:
    return next(v for which in ("tuning", "held_out") for v in variants(which) if v.name == name)


def played(name: str, seed: int = 0) -> Trial:
    return trial(named(name), SECONDS, GPUS, np.random.default_rng(seed))


@pytest.mark.parametrize("name", MEASURED)
def test_steady_means_are_near_the_measured_ones(name: str) -> None:
    """Over 12 draws within 3 points or a tenth, power within a tenth."""
    trials = [played(name, seed) for seed in range(12)]

    def mean(column: str) -> float:
        return float(np.mean([t.columns[column][t.onset_s + 60 :].mean() for t in trials]))

    *ratios, power_w = MEASURED[name]
    for column, points in zip(SHOWN, ratios, strict=True):
        assert 100 * mean(column) == pytest.approx(points, abs=max(3.0, 0.1 * points)), column
    assert mean("power_w") == pytest.approx(power_w, rel=0.1)


def test_the_power_cap_bit_is_always_set_on_the_healthy_run_at_its_limit() -> None:
    healthy = played("compute bound at the power limit")
    assert (healthy.columns["clock_event_reasons"][healthy.onset_s :] == 0x4).all()
    assert not healthy.on.any()


def test_the_same_seed_gives_the_same_run_and_another_seed_another() -> None:
    one, same, other = (played("NFS plateau, sawtooth", seed) for seed in (1, 1, 2))
    assert all(np.array_equal(one.columns[n], same.columns[n], equal_nan=True) for n in one.columns)
    assert not np.array_equal(one.columns["sm_active_ratio"], other.columns["sm_active_ratio"])


def ranges(variant: Variant) -> dict[str, Range]:
    """Every range of a variant, by its place."""
    whole = ("before", "load_s", "affected", "memory")
    out: dict[str, Range] = {name: getattr(variant, name) for name in whole}
    for part in ("work", "wait", "host", "pipes", "cycle", "slow"):
        value = getattr(variant, part)
        for name in getattr(value, "__dataclass_fields__", ()):
            if isinstance(ends := getattr(value, name), tuple):
                out[f"{part}.{name}"] = ends
    return out


def test_no_held_out_variant_lies_in_the_ranges_of_a_tuning_one() -> None:
    lives = [one.variant for one in LIFE_VARIANTS]
    for held_out in (*variants("held_out"), *(v for v in lives if v.set == "held_out")):
        for tuning in (*variants("tuning"), *(v for v in lives if v.set == "tuning")):
            if held_out.truth != tuning.truth:
                continue
            mine, theirs = ranges(held_out), ranges(tuning)
            apart = [
                k
                for k in mine.keys() & theirs.keys()
                if mine[k][0] > theirs[k][1] or mine[k][1] < theirs[k][0]
            ]
            assert apart or mine.keys() != theirs.keys(), (held_out.name, tuning.name)


def test_both_sets_have_every_truth_and_no_name_twice() -> None:
    sets = [variants("tuning"), variants("held_out")]
    assert {v.truth for v in sets[0]} == {v.truth for v in sets[1]}
    names = [v.name for one in sets for v in one] + [v.name for v in MEMORY_VARIANTS]
    assert len(names) == len(set(names))


def test_every_variant_is_listed_in_the_docs_under_its_set() -> None:
    text = PAGE.read_text(encoding="utf-8")
    tuning, held_out = text.split("### Held out")
    for which, part in (("tuning", tuning.split("### Tuning")[1]), ("held_out", held_out)):
        lives = (one.variant for one in LIFE_VARIANTS)
        for variant in (*variants(which), *(v for v in (*MEMORY_VARIANTS, *lives) if v.set == which)):
            assert variant.name in part, (which, variant.name)


def test_a_notebook_is_idle_in_its_long_gaps_only() -> None:
    notebook = played("a notebook with a cell now and then")
    works = notebook.columns["gpu_util_ratio"] > 0.05
    assert not (notebook.on & works)[notebook.onset_s :].any()
    assert 0.5 < notebook.on[notebook.onset_s :].mean() < 0.99


def test_a_gpu_that_is_lost_says_so_and_nothing_else() -> None:
    lost = played("a GPU falls off the bus")
    assert (lost.columns["gpu_state"][lost.on] == 1).all()
    assert np.isnan(lost.columns["power_w"][lost.on]).all()
    assert lost.on.any(axis=0).sum() == 1


def test_a_worse_view_keeps_every_joule() -> None:
    recording, _ = together([played("NFS plateau, sawtooth"), played("a slow model load, then training")])
    whole = recording.columns["energy_j"].sum(axis=0)
    coarse = every(recording, 30)
    assert coarse.period_s == 30.0
    assert coarse.columns["energy_j"].sum(axis=0) == pytest.approx(whole)
    late = every(recording, 1, lateness(recording, 1, np.random.default_rng(3)))
    for view in (recording, late):  # of which some are missing before
        holes = with_missing(view, 0.3, np.random.default_rng(1))
        assert 1 - holes.sampled.mean() == pytest.approx(0.3, abs=0.05)
        last = np.array([np.flatnonzero(kept)[-1] for kept in holes.sampled.T])
        until = np.nancumsum(view.columns["energy_j"], axis=0)[last, np.arange(len(last))]
        assert np.nansum(holes.columns["energy_j"], axis=0) == pytest.approx(until)


def test_late_samples_fall_two_into_one_second_and_none_into_the_next_and_keep_every_joule() -> None:
    recording, _ = together([played("NFS plateau, sawtooth"), played("a slow model load, then training")])
    for steps in (1, 15):
        late_s = lateness(recording, steps, np.random.default_rng(3))
        late_s[:, GPUS:] = 0.0  # the second node is in time
        late_s[40:45, :GPUS] = 0.0
        late_s[41, :GPUS] = 0.6 * steps
        seen = every(recording, steps, late_s)
        assert seen.sampled[40, 0]
        assert not seen.sampled[41, 0]
        assert seen.sampled[42, 0]
        assert seen.sampled[:, GPUS:].all()
        assert np.isnan(seen.columns["power_w"][41, 0])
        assert np.nansum(seen.columns["energy_j"], axis=0) == pytest.approx(
            recording.columns["energy_j"].sum(axis=0), rel=0.01
        )
        in_time = every(recording, steps)
        assert np.array_equal(
            seen.columns["sm_active_ratio"][:, GPUS:], in_time.columns["sm_active_ratio"][:, GPUS:]
        )


@pytest.mark.parametrize("name", ["one slow rank, steps of seconds", "a heavy last stage, steps of seconds"])
def test_long_steps_show_work_and_waiting_apart_and_the_same_share_on_average(name: str) -> None:
    run = played(name, 5)
    tensor = run.columns["tensor_active_ratio"][run.onset_s + 30 :]
    share = tensor.mean(axis=0) / tensor.mean(axis=0).max()
    waits = share < 0.9
    assert waits.sum() >= 6
    assert (share[waits] > 0.45).all()
    assert (share[waits] < 0.8).all()
    level = tensor.mean(axis=0).max()
    assert ((tensor[:, waits] < 0.2 * level).mean(axis=0) > 0.1).all(), (
        "seconds in which it waits all through"
    )
    assert ((tensor[:, waits] > 0.9 * level).mean(axis=0) > 0.3).all(), "and works all through"


def test_an_exporter_sends_no_sample_of_a_lost_gpu_and_no_profiling_counter() -> None:
    recording, truth = together([played("a GPU falls off the bus")])
    seen = as_exporter(recording)
    assert "sm_active_ratio" not in seen.columns
    assert not seen.sampled[truth.label == 1].any()
    assert seen.sampled[truth.label == 0].all()


@pytest.mark.parametrize("variant", MEMORY_VARIANTS, ids=lambda v: v.name)
def test_only_what_grows_runs_out_of_memory(variant: object) -> None:
    for seed in range(5):
        used, full = memory(variant, 12 * 60, 30, np.random.default_rng(seed))  # type: ignore[arg-type]
        assert (full is not None) == variant.grows  # type: ignore[attr-defined]
        assert (used >= 0).all()
        assert (used <= 0.985).all()


def test_healthy_truth_has_no_cause() -> None:
    assert {v.truth for v in variants("held_out") if v.cycle is None and v.slow is None} >= {HEALTHY}
    assert set(CARDS) >= {
        model for which in ("tuning", "held_out") for v in variants(which) for model in v.models
    }


def test_the_benchmark_scores_a_few_runs_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three runs in two views: the cause is named in full view, and not told with utilization alone."""
    chosen = ("compute bound, capped hard", "two GPUs fall off the bus", "all-to-all of experts over NVLink")
    few = tuple(v for v in variants("held_out") if v.name in chosen)
    monkeypatch.setattr(mechanism_runs, "variants", lambda which: few)
    monkeypatch.setattr(mechanism_runs, "RUN_S", 1500)
    seen, alarms = mechanism_runs.score_runs("held_out", 1, ("full", "gpu_util_only"), seed=4)
    figures = diagnosis.figures_of(seen, alarms)
    assert figures["macro_f1"] > 0.95
    assert figures["healthy_runs"]["false_findings"] == []
    assert figures["healthy_runs"]["gpu_hours"] > 3
    assert figures["degraded"]["gpu_util_only"]["wrong_cause_ratio"] is None
    assert figures["delay_s_p95"]["gpu_lost"] < 5


def test_who_waits_for_a_slow_gpu_spins_and_the_slow_one_is_healthy() -> None:
    run = played("one rank gets the long sequences")
    slow = ~run.on.any(axis=0)
    assert slow.sum() == 1
    late = slice(run.onset_s + 60, None)
    tensor, util = (
        run.columns[name][late].mean(axis=0) for name in ("tensor_active_ratio", "gpu_util_ratio")
    )
    assert (tensor[~slow] < 0.8 * tensor[slow]).all()
    assert util.min() > 0.9
    before = run.columns["tensor_active_ratio"][run.onset_s - 200 : run.onset_s].mean(axis=0)
    assert before == pytest.approx(np.full(GPUS, tensor[slow][0]), rel=0.1)


def test_a_job_over_several_nodes_has_as_many_gpus_on_each_and_each_its_own_host() -> None:
    recording, _ = together([played("sockets over 10 Gbit/s, four nodes")], first=7)
    nodes = [ref.node for ref in recording.gpus]
    assert nodes == [
        name for name in ("trial-0007", "trial-0007-2", "trial-0007-3", "trial-0007-4") for _ in "12"
    ]
    assert [ref.index for ref in recording.gpus] == [0, 1] * 4
    sent = recording.columns["net_sent_bytes"]
    assert np.array_equal(sent[:, 0], sent[:, 1])
    assert not np.array_equal(sent[:, 0], sent[:, 2])


def test_a_checkpoint_is_true_while_it_is_written_only() -> None:
    run = played("optimizer states to local disk")
    written = run.columns["disk_written_bytes"]
    assert np.median(written[run.on]) > 20 * np.median(written[run.scored & ~run.on])
    assert np.median(run.columns["sm_active_ratio"][run.on]) == 0.0
    assert run.on[run.onset_s].all()
    assert not run.on[: run.onset_s].any()


def test_who_spins_in_a_step_computes_nothing_meanwhile() -> None:
    """A wait that is left at the levels of work would be no wait at all."""
    spinning = [v for which in ("tuning", "held_out") for v in variants(which) if v.step_share]
    assert len(spinning) >= 10
    for variant in spinning:
        assert variant.wait.tensor[1] < 0.05 * variant.work.tensor[0], variant.name
        assert variant.wait.dram[1] < 0.25 * variant.work.dram[0], variant.name
