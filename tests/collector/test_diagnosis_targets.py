"""What the benchmark of the diagnosis says of its targets, on figures that are known."""

from __future__ import annotations

from typing import Any

import pytest
from benchmarks.diagnosis_targets import judged, targets

GOOD: dict[str, Any] = {
    "macro_f1": 0.95,
    "false_per_1000_gpu_hours_upper95": 0.006,
    "healthy_gpu_hours": 500_000.0,
    "false_findings": 0,
    "degraded": {"sampling_30s": {"wrong_cause_ratio": 0.0}, "gpu_util_only": {"wrong_cause_ratio": None}},
    "oom": {"false_per_100_gpu_days": 0.0, "lead_s_median": 600.0},
    "stragglers": {"AR": 1.97, "SE": 1.54, "ST": 1.18},
    "delay_s_p95": {"xid": 500.0, "xid.reset": 5.0, "starvation.storage": 90.0, "idle.held": 120.0},
}
DELAYS = {"nvlink.errors": 6.0, "stale_agent.silent": 88.0, "starvation.storage": 91.0, "pcie.width": 6.0}


def missed(**worse: Any) -> dict[str, str]:
    return {one.name: one.why for one in targets(GOOD | worse) if not one.held}


def test_at_its_bound_a_target_is_held() -> None:
    assert missed() == {}


@pytest.mark.parametrize(
    ("worse", "name"),
    [
        ({"macro_f1": 0.949}, "macro_f1"),
        ({"false_per_1000_gpu_hours_upper95": 0.0061}, "false_per_1000_gpu_hours_upper95"),
        ({"degraded": {"sampling_30s": {"wrong_cause_ratio": 1e-6}}}, "wrong causes, sampling_30s"),
        ({"oom": GOOD["oom"] | {"false_per_100_gpu_days": 1.0}}, "oom false alarms per 100 GPU-days"),
        ({"oom": GOOD["oom"] | {"lead_s_median": None}}, "oom lead_s_median"),
        ({"stragglers": GOOD["stragglers"] | {"AR": 2.02}}, "stragglers AR"),
    ],
)
def test_beyond_it_is_missed_with_a_reason(worse: dict[str, Any], name: str) -> None:
    assert list(missed(**worse)) == [name]
    assert missed(**worse)[name]


def test_timelines_that_are_not_there_are_not_measured() -> None:
    lines: list[str] = []
    judged(GOOD | {"stragglers": None}, lines.append)
    assert sum("not measured" in line and line.endswith("MISSED") for line in lines) == 3


def test_delays_are_judged_by_cause_and_what_has_to_last_says_why() -> None:
    whys = missed(delay_s_p95=DELAYS)
    assert set(whys) == {f"delay {name}" for name in DELAYS}
    assert "the third" in whys["delay nvlink.errors"]
    assert "started anew" in whys["delay stale_agent.silent"]
