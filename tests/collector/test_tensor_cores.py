"""Tensor cores unused: told of float32 trainings alone, and only where the job itself says so."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from tests.collector.fleets import BASE, Column, between, noisy, recording

from unidle_collector.recording import Recording
from unidle_collector.replay import replay

FLOAT32 = BASE | {
    "gpu_util_ratio": 1.0,
    "sm_active_ratio": noisy(0.9, 0.02),
    "tensor_active_ratio": 0.001,
    "dram_active_ratio": 0.2,
    "fp32_active_ratio": noisy(0.7, 0.02),
    "dtype_code": 1.0,
    "power_w": 500.0,
    "memory_used_bytes": 60e9,
}


def told(seen: Recording) -> dict[str, str]:
    return {f.kind: f.cause for f in replay(seen).findings if f.told_ns is not None}


@dataclass(frozen=True)
class Case:
    title: str
    seen: Recording
    told: dict[str, str]


def float32(minutes: float = 45, period_s: float = 5.0, **changes: Column) -> Recording:
    return recording(FLOAT32 | changes, minutes=minutes, period_s=period_s)


TENSOR = [
    Case(
        "a float32 training with idle tensor cores is told",
        float32(),
        {"tensor_cores_unused": "precision"},
    ),
    Case(
        "it is found in one sample each half a minute",
        float32(period_s=30.0),
        {"tensor_cores_unused": "precision"},
    ),
    Case(
        "it is found where SMs are half busy, just above what starves",
        float32(sm_active_ratio=0.53, fp32_active_ratio=0.3, tensor_active_ratio=0.012),
        {"tensor_cores_unused": "precision"},
    ),
    Case("FP32 pipes busy in a fifth of the cycles are not worth it", float32(fp32_active_ratio=0.2), {}),
    Case("without the reporter nothing is claimed", float32(dtype_code=None), {}),
    Case("nor where it says float64", float32(dtype_code=5.0), {}),
    Case("nor where it says TF32", float32(dtype_code=2.0), {}),
    Case("float64 pipes have no choice", float32(fp32_active_ratio=0.01, fp64_active_ratio=0.7), {}),
    Case("memory-bandwidth bound work gains nothing", float32(dram_active_ratio=0.72), {}),
    Case("tensor cores in use are in use", float32(tensor_active_ratio=0.25), {}),
    Case("a job that waits is another matter", float32(fp32_active_ratio=0.1), {}),
    Case("unknown FP32 pipes are unknown", float32(fp32_active_ratio=None), {}),
    Case("unknown tensor cores are unknown, not idle", float32(tensor_active_ratio=None), {}),
    Case(
        "three minutes in float32 are an evaluation",
        float32(fp32_active_ratio=between(0.7, 0.05, 5, 8, 5.0)),
        {},
    ),
    Case("nobody is told before half an hour", float32(minutes=25), {}),
]  # fmt: skip


@pytest.mark.parametrize("case", TENSOR, ids=lambda case: case.title)
def test_tensor_cores(case: Case) -> None:
    assert told(case.seen) == case.told


def test_unused_tensor_cores_are_advice_that_costs_no_gpu_hours() -> None:
    result = replay(float32())
    (found,) = result.findings
    assert found.severity == "info"
    assert "float32_matmul_precision" in found.advice
    assert found.cost_so_far.gpu_h == pytest.approx(0.0, abs=0.05)
    assert result.gpus[0].causes["starved.precision"] > 2400
    fields = {e.field: e.value for e in found.evidence}
    assert fields["fp32_active_ratio"] == pytest.approx(0.7, abs=0.02)
    assert fields["dtype_code"] == 1.0
    assert sum(other.probability for other in found.runners_up) <= 1 - found.confidence


def test_without_the_reporter_it_says_that_it_cannot_tell_to_who_looks_only() -> None:
    result = replay(float32(minutes=300, period_s=30.0, dtype_code=None))
    (found,) = result.findings
    assert (found.kind, found.told_ns) == ("tensor_cores_idle", None)
    assert found.advice.startswith("Cannot tell, because no dtype_code")
    assert found.cost_per_h.gpu_h == 0
    assert result.gpus[0].states["productive"] == pytest.approx(18_000)


def test_the_word_of_a_reporter_that_fell_silent_is_forgotten() -> None:
    said = between(1.0, float("nan"), 0, 30, 30.0)
    result = replay(float32(minutes=90, period_s=30.0, dtype_code=said))
    assert {f.kind: f.ended_ns is None for f in result.findings} == {
        "tensor_cores_unused": False,
        "tensor_cores_idle": True,
    }
