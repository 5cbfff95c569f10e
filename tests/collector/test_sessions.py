"""Interactive sessions: known by name, idle after a grace of their own, never starved; MIG slices."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.collector.fleets import HELD, Column, between, recording

from unidle_collector.interactive import named_so
from unidle_collector.replay import replay
from unidle_collector.signs.smaller import slice_for


@pytest.mark.parametrize(
    ("name", "sits"),
    [
        ("interactive", True),
        ("spawner-jupyterhub", True),
        ("sys/dashboard/sys/jupyter", True),
        ("hub/jupyter-alice", True),
        ("train", False),
        ("pretrain/jupyter", True),
        ("team/my-jupyter-like-train-0", False),
        ("4711", False),
        ("", False),
    ],
)
def test_what_a_person_sits_at_is_known_by_its_name(name: str, sits: bool) -> None:
    assert named_so(name) is sits


def test_a_session_left_open_is_told_after_an_hour_with_a_change_of_its_own() -> None:
    seen = HELD | {"memory_used_bytes": 4e9, "job_cpu_s": 0.5}
    cells = {name: between(0.8, 0.0, 2, 3, 5.0) for name in ("gpu_util_ratio", "sm_active_ratio")}
    (found,) = replay(
        recording(seen | cells, minutes=80, period_s=5.0, gpus=1, job="hub/jupyter-ann")
    ).findings
    assert (found.kind, found.cause) == ("idle", "interactive")
    assert found.told_ns is not None
    assert found.told_ns - found.since_ns == pytest.approx(3600e9, abs=20e9)
    for word in ("cull_idle_timeout", "--time=04:00:00", "MIG instance 1g.10gb"):
        assert word in found.advice
    texts = " ".join(evidence.text for evidence in found.evidence)
    assert "something ran in 1.2 % of the" in texts
    assert "0.1 cores busy" in texts


@pytest.mark.parametrize(("period_s", "after_s"), [(1.0, 3600), (5.0, 3600), (30.0, 14400)])
def test_a_session_sampled_rarely_is_accounted_and_told_later(period_s: float, after_s: int) -> None:
    seen = HELD | {"gpu_util_ratio": between(0.8, 0.0, 2, 3, period_s), "energy_j": 120.0 * period_s}
    (found,) = replay(
        recording(seen, minutes=after_s / 60 + 10, period_s=period_s, gpus=1, job="hub/jupyter-ann")
    ).findings
    assert (found.kind, found.cause) == ("idle", "interactive")
    assert found.told_ns is not None
    assert found.told_ns - found.since_ns == pytest.approx(after_s * 1e9, abs=60e9)


def test_a_session_with_pauses_for_thought_is_neither_idle_nor_starved() -> None:
    def cells(instants: int, gpus: int) -> NDArray[np.float64]:
        return np.where((np.arange(instants)[:, None] * 5 % 600) < 20, 0.7, 0.0) * np.ones((1, gpus))

    seen = HELD | {"gpu_util_ratio": cells, "sm_active_ratio": cells}
    result = replay(recording(seen, minutes=90, period_s=5.0, gpus=1, job="jupyter-7"))
    assert result.findings == []
    assert result.gpus[0].states["productive"] == pytest.approx(5400)
    other = replay(recording(seen, minutes=90, period_s=5.0, gpus=1, job="train-7"))
    assert other.gpus[0].states["idle"] > 3000


def between_samples(
    worked_s: float, each_min: float, rest_w: float, offset: float = 1.0
) -> dict[str, Column]:
    """Sampled each 30 s: no sample sees a cell, the energy has it; at rest it is `offset` of the power."""

    def energy(instants: int, gpus: int) -> NDArray[np.float64]:
        ran = np.arange(instants)[:, None] % round(each_min * 2) == 0
        return (np.where(ran, worked_s * (350.0 - rest_w), 0.0) + 30 * rest_w * offset) * np.ones((1, gpus))

    return HELD | {"power_w": rest_w, "energy_j": energy}


@pytest.mark.parametrize(("worked_s", "idle"), [(3.0, False), (0.0, True)])
@pytest.mark.parametrize("offset", [0.97, 1.0, 1.08])
def test_cells_between_two_samples_are_known_by_the_energy_whatever_the_meters_say_at_rest(
    worked_s: float, idle: bool, offset: float
) -> None:
    seen = between_samples(worked_s, 8, 120.0, offset)
    result = replay(recording(seen, minutes=80, period_s=30.0, gpus=1, job="jupyter-7"))
    assert (result.gpus[0].states["idle"] > 3600) is idle
    assert (len(result.findings) > 0) is idle


@pytest.mark.parametrize(("minutes", "idle"), [(25, False), (40, True)])
def test_a_session_sampled_rarely_whose_energy_is_not_known_gets_more_time(minutes: int, idle: bool) -> None:
    seen = HELD | {"energy_j": None}
    result = replay(recording(seen, minutes=minutes, period_s=30.0, gpus=1, job="jupyter-7"))
    assert (result.gpus[0].states["idle"] > 0) is idle


@pytest.mark.parametrize(
    ("model", "total_gb", "peak_gb", "busy", "profile"),
    [
        ("NVIDIA H100 80GB HBM3", 85.5, 6.0, 0.1, "1g.10gb"),
        ("NVIDIA H100 80GB HBM3", 85.5, 12.0, 0.1, "1g.20gb"),
        ("NVIDIA H100 80GB HBM3", 85.5, 12.0, 0.2, "2g.20gb"),
        ("NVIDIA H100 80GB HBM3", 85.5, 30.0, 0.4, "4g.40gb"),
        ("NVIDIA H100 80GB HBM3", 85.5, 40.0, 0.1, None),
        ("NVIDIA A100-SXM4-40GB", 42.9, 3.0, 0.1, "1g.5gb"),
        ("NVIDIA A100-SXM4-80GB", 85.9, 3.0, 0.1, "1g.10gb"),
        ("NVIDIA B200", 192.3, 60.0, 0.3, "3g.90gb"),
        ("NVIDIA GB200", 198.7, 6.0, 0.1, None),
        ("NVIDIA GH200 480GB", 102.0, 6.0, 0.1, None),
        ("NVIDIA L40S", 48.0, 6.0, 0.1, None),
        ("NVIDIA H100 80GB HBM3", 85.5, float("nan"), 0.1, None),
        ("NVIDIA H100 80GB HBM3", float("nan"), 6.0, 0.1, None),
    ],
)
def test_the_smallest_slice_that_holds_the_work(
    model: str, total_gb: float, peak_gb: float, busy: float, profile: str | None
) -> None:
    found = slice_for(model, total_gb * 1e9, peak_gb * 1e9, busy)
    assert (found.profile if found else None) == profile
