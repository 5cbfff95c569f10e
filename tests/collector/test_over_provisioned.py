"""Over-provisioned jobs: what is told of their whole life, what must not be, and what would be enough."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from benchmarks import life_runs
from numpy.typing import NDArray
from tests.collector.fleets import BASE, EMPTY, HEALTHY, HELD, Column, between, noisy, recording

from unidle_collector.recommend import recommend
from unidle_collector.recording import Recording
from unidle_collector.replay import replay
from unidle_collector.signs.smaller import cheaper_model
from unidle_collector.simulator.mechanisms.over_provisioned import LIFE_VARIANTS

HOST: dict[str, Column] = {"cpu_busy_ratio": 0.1, "cpu_iowait_ratio": 0.005}
LIGHT = (
    BASE
    | HOST
    | {
        "gpu_util_ratio": noisy(0.06, 0.02),
        "sm_active_ratio": noisy(0.03, 0.01),
        "tensor_active_ratio": 0.0,
        "power_w": 131.0,
        "memory_used_bytes": 6e9,
    }
)


def told(seen: Recording) -> dict[str, str]:
    return {f.kind: f.cause for f in replay(seen).findings if f.told_ns is not None}


def by_gpu(first: Column, others: Column, count: int) -> Column:
    """`first` on the first `count` GPUs."""

    def build(instants: int, gpus: int) -> NDArray[np.float64]:
        values = [
            column(instants, gpus) if callable(column) else np.full((instants, gpus), column)
            for column in (first, others)
        ]
        return np.where(np.arange(gpus)[None, :] < count, values[0], values[1])

    return build


def mixed(first: dict[str, Column], others: dict[str, Column], count: int) -> dict[str, Column]:
    return {name: by_gpu(first.get(name, np.nan), others.get(name, np.nan), count) for name in first | others}


def half_unused(minutes: float = 80, job: str | None = "4711", **changes: Column) -> Recording:
    work = HEALTHY | HOST | {"process_count": 1.0}
    unused = EMPTY | HOST | {"process_count": 0.0}
    return recording(mixed(unused, work | changes, 4), minutes=minutes, period_s=5.0, job=job)


def test_gpus_that_a_working_job_never_used_are_one_finding_with_the_request_to_make() -> None:
    result = replay(half_unused())
    (found,) = [f for f in result.findings if f.told_ns]
    assert (found.kind, found.cause, found.subject) == ("over_provisioned", "fewer_gpus", "4711")
    assert sorted(ref.index or 0 for ref in found.gpus) == [0, 1, 2, 3]
    assert "Ask for 4 GPUs (sbatch --gpus=4" in found.advice
    assert found.cost_per_h.gpu_h == pytest.approx(4.0)
    assert result.gpus[0].states["idle"] > 4000
    (advice,) = recommend([found], found.updated_ns)
    assert (advice.kind, advice.lever) == ("right_size", "reclaim")
    assert "scontrol show job 4711" in advice.command


def test_a_stage_that_starts_within_the_hour_is_told_of_as_nothing() -> None:
    def late(stage: float, before: float) -> Column:
        return by_gpu(between(stage, before, 50, 200, 5.0), stage, 4)

    seen = recording(
        HEALTHY
        | HOST
        | {
            "gpu_util_ratio": late(1.0, 0.0),
            "sm_active_ratio": late(0.88, 0.0),
            "memory_used_bytes": late(60e9, 5e6),
            "process_count": late(1.0, 0.0),
        },
        minutes=80,
        period_s=5.0,
        job="4711",
    )
    assert told(seen) == {}


def test_where_all_of_a_job_is_idle_it_is_idle() -> None:
    def until(inside: float) -> Column:
        return between(inside, 0.0, 0, 30, 5.0)

    stopped = half_unused(
        minutes=140, gpu_util_ratio=until(1.0), sm_active_ratio=until(0.88), power_w=until(600.0)
    )
    assert [(f.kind, len(f.gpus)) for f in replay(stopped).findings if f.ended_ns is None] == [("idle", 8)]


def test_a_job_seen_only_from_its_middle_on_may_have_used_all_of_its_gpus() -> None:
    seen = recording(mixed(HELD | HOST, HEALTHY | HOST, 4), minutes=80, period_s=5.0, job="4711")
    assert told(seen) == {"idle": "held"}


def test_a_gpu_of_which_nothing_is_known_is_not_called_unused() -> None:
    unknown = BASE | HOST | {"memory_used_bytes": 5e6, "process_count": 0.0}
    seen = recording(mixed(unknown, HEALTHY | HOST, 4), minutes=80, period_s=5.0, job="4711")
    assert told(seen) == {}


def test_light_inference_on_half_of_a_node_is_a_gpu_too_large_and_names_the_slice() -> None:
    seen = recording(mixed(LIGHT, HEALTHY | HOST, 4), minutes=80, period_s=5.0)
    (found,) = [f for f in replay(seen).findings if f.told_ns]
    assert (found.kind, found.cause, found.severity) == ("over_provisioned", "large_gpu", "info")
    assert sorted(ref.index or 0 for ref in found.gpus) == [0, 1, 2, 3]
    assert "MIG instance 1g.10gb" in found.advice
    assert "--gres=gpu:1g.10gb:1" in found.advice
    assert found.cost_per_h.gpu_h == pytest.approx(4 * 6 / 7)
    (advice,) = recommend([found], found.updated_ns)
    assert (advice.kind, advice.lever) == ("right_size", "pack")


def test_a_session_is_not_too_small_for_its_gpu() -> None:
    seen = {"minutes": 80, "period_s": 5.0, "gpus": 1}
    assert set(told(recording(LIGHT, **seen, job="serve"))) == {"over_provisioned"}
    assert told(recording(LIGHT, **seen, job="jupyter-ann")) == {}


def test_a_small_job_on_many_gpus_is_told_to_ask_for_fewer() -> None:
    (found,) = [f for f in replay(recording(LIGHT, minutes=80, period_s=5.0, job="12")).findings if f.told_ns]
    assert found.cause == "large_gpu"
    assert "Ask for 1 GPU in the place of 8 (sbatch --gpus=1" in found.advice


@pytest.mark.parametrize("period_s", [1.0, 15.0, 30.0])
def test_a_gpu_too_large_is_found_at_every_sampling_period(period_s: float) -> None:
    assert told(recording(LIGHT, minutes=75, period_s=period_s, gpus=2)) == {"over_provisioned": "large_gpu"}


NOT_TOO_LARGE = {
    "half of the memory in use": {"memory_used_bytes": 45e9},
    "busy half of the time": {"gpu_util_ratio": 0.6, "sm_active_ratio": 0.5},
    "memory not known": {"memory_used_bytes": None},
    "waits for storage": {"cpu_iowait_ratio": 0.2},
    "cores pinned": {"cpu_busy_ratio": 0.95},
    "held back by its CPU quota": {"job_cpu_throttled_s": 20.0},
    "transfers over PCIe": {"pcie_rx_bytes_per_s": 2e9},
    "host not known": {"cpu_iowait_ratio": None, "cpu_busy_ratio": None},
    "nothing runs": {"gpu_util_ratio": 0.0, "sm_active_ratio": 0.0},
}


@pytest.mark.parametrize("changes", NOT_TOO_LARGE.values(), ids=NOT_TOO_LARGE)
def test_what_is_not_a_gpu_too_large(changes: dict[str, Column]) -> None:
    assert "over_provisioned" not in told(recording(LIGHT | changes, minutes=75, period_s=15.0, gpus=2))


def test_a_gpu_is_not_too_large_whose_work_fell_between_the_samples() -> None:
    rare = recording(LIGHT | {"energy_j": 131.0 * 60}, minutes=80, period_s=60.0)
    assert told(rare) == {"over_provisioned": "large_gpu"}
    assert "over_provisioned" not in told(
        replace(rare, columns=rare.columns | {"energy_j": np.full(rare.sampled.shape, 170.0 * 60)})
    )


def test_uneven_ranks_of_one_job_are_not_too_large_a_gpu() -> None:
    seen = recording(mixed(LIGHT, HEALTHY | HOST, 4), minutes=80, period_s=15.0, job="4711")
    assert "over_provisioned" not in told(seen)


def test_a_job_that_becomes_busy_is_not_too_small_any_more() -> None:
    grows = {name: between(0.9, 0.05, 40, 400, 15.0) for name in ("gpu_util_ratio", "sm_active_ratio")}
    seen = recording(LIGHT | grows, minutes=120, period_s=15.0, gpus=2)
    assert "over_provisioned" not in told(seen)


def test_every_life_variant_has_a_counterpart_in_the_other_set() -> None:
    names = [one.variant.name for one in LIFE_VARIANTS]
    assert len(names) == len(set(names))
    truths = {
        which: {one.variant.truth.split(".")[0] for one in life_runs.chosen(which)}
        for which in ("tuning", "held_out")
    }
    assert truths["tuning"] == truths["held_out"] == {"over_provisioned", "healthy", "starvation"}


def test_the_whole_lives_of_jobs_are_scored_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = ("two of eight GPUs never opened", "a second stage that starts after half an hour")
    few = [one for one in LIFE_VARIANTS if one.variant.name in chosen]
    monkeypatch.setattr(life_runs, "chosen", lambda which: few)
    lives = life_runs.score("tuning", 1, seed=2)
    assert lives["full"].truth == ["over_provisioned.fewer_gpus", "healthy"]
    assert lives["full"].told == ["over_provisioned.fewer_gpus", ""]
    assert lives["full"].doubled == []


def test_nobody_hears_of_the_same_gpus_twice() -> None:
    """Idle for two hours, of which `idle` would have been told after 15 min."""
    assert told(half_unused(minutes=130)) == {"over_provisioned": "fewer_gpus"}


def test_empty_gpus_of_a_job_that_nobody_names_are_unallocated() -> None:
    assert told(half_unused(job=None)) == {}


def test_a_right_size_advice_needs_something_smaller() -> None:
    (found,) = [
        f
        for f in replay(recording(LIGHT, minutes=80, period_s=15.0, gpus=1, model="Something New")).findings
        if f.told_ns
    ]
    assert "no smaller one is known for Something New" in found.advice
    assert recommend([found], found.updated_ns) == []
    assert recommend([replace(found, told_ns=None)], found.updated_ns) == []


def test_a_cheaper_model_has_to_hold_the_work() -> None:
    assert cheaper_model("NVIDIA H200", 20e9, 0.2) == "A100"
    assert cheaper_model("NVIDIA H200", 20e9, 0.39) == "H100"
    assert cheaper_model("NVIDIA H200", 60e9, 0.2) == "H100"
    assert cheaper_model("NVIDIA A100-SXM4-80GB", 1e9, 0.1) is None
    assert cheaper_model("Something New", 1e9, 0.1) is None
