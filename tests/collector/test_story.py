"""A finding as lines of text: what a person reads in `unidle explain` and `unidle diagnose`."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tests.collector.fleets import BASE, noisy, recording

from unidle_collector.model import CauseShare, Cost, Evidence, Finding, GpuRef
from unidle_collector.replay import replay
from unidle_collector.story import cause, cost, story, subject

START_NS = 1_700_000_000 * 10**9
FINDING = Finding(
    id="starvation-1",
    kind="starvation",
    cause="storage",
    severity="warning",
    confidence=0.82,
    subject_kind="job",
    subject="4711",
    title="2 GPUs at 9 % SM activity for 12 min, starved by storage",
    since_ns=START_NS,
    updated_ns=START_NS + 720 * 10**9,
    told_ns=None,
    gpus=(
        GpuRef("n1", "GPU-a", 0),
        GpuRef("n1", "GPU-b", 1),
        GpuRef("n1", "GPU-d", 3),
        GpuRef("n2", "GPU-e", 0),
    ),
    runners_up=(CauseShare("cpu_preprocessing", 0.12), CauseShare("undetermined", 0.06)),
    evidence=(
        Evidence("cpu_iowait_ratio", 0.3, "1", 0.1, 60.0, "30 % of host CPU time waits for I/O"),
        Evidence("power_w", 190.0, "W", None, 0.0, "190 W drawn"),
    ),
    cost_so_far=Cost(0.4, 1.25, None),
    cost_per_h=Cost(1.8, 5.6, 0.4),
    advice="Stage the data set.",
    confirm="iostat -x 5",
)


def test_every_part_of_a_finding_has_its_line() -> None:
    assert story(FINDING) == [
        ("subject", "job 4711: GPU 0-1, 3 of n1; GPU 0 of n2"),
        ("since", "2023-11-14 22:13:20 UTC, for 12 min"),
        ("cause", "storage too slow (82% sure); else: CPU preprocessing too slow 12%, cannot tell 6%"),
        ("cost so far", "0.40 GPU-h, EUR 1.25, kWh unknown"),
        ("each hour", "1.80 GPU-h, EUR 5.60, 0.40 kWh"),
        ("evidence", "30 % of host CPU time waits for I/O [cpu_iowait_ratio, 60 s]"),
        ("", "190 W drawn [power_w]"),
        ("do", "Stage the data set."),
        ("confirm by", "iostat -x 5"),
    ]


def test_whom_it_waits_for_stands_beside_what_it_is_about() -> None:
    waiting = dataclasses.replace(FINDING, held_back_by=(GpuRef("n7", "GPU-x", 3),))
    assert story(waiting)[:2] == [
        ("subject", "job 4711: GPU 0-1, 3 of n1; GPU 0 of n2"),
        ("waits for", "GPU 3 of n7"),
    ]


def test_what_is_over_has_an_end_and_costs_nothing_more() -> None:
    lines = dict(story(dataclasses.replace(FINDING, ended_ns=START_NS + 600 * 10**9)))
    assert lines["since"].endswith("for 10 min, over since 2023-11-14 22:23:20 UTC")
    assert "each hour" not in lines


def test_a_cause_that_cannot_be_told_is_said_so_with_the_likeliest() -> None:
    unsure = dataclasses.replace(FINDING, cause="undetermined", runners_up=(CauseShare("storage", 0.4),))
    assert cause(unsure) == "cannot tell; likeliest: storage too slow 40%"
    assert cause(dataclasses.replace(unsure, runners_up=())) == "cannot tell"


def test_many_nodes_are_counted_and_gpus_without_an_index_named() -> None:
    many = dataclasses.replace(FINDING, gpus=tuple(GpuRef(f"n{n}", f"GPU-{n}", 0) for n in range(9)))
    assert subject(many).endswith("GPU 0 of n3; 5 more nodes, 9 GPUs in all")
    unnamed = dataclasses.replace(FINDING, gpus=(GpuRef("n1", "GPU-a"),))
    assert subject(unnamed) == "job 4711: GPU-a of n1"


def test_a_risk_costs_nothing_yet() -> None:
    assert cost(Cost(0.0, 0.0, 0.0)) == "no GPU time lost"


def test_what_an_hour_costs_is_no_snapshot_of_a_burst() -> None:
    """It draws 600 W in one second of ten and 150 W in the others."""
    spiky = BASE | {
        "gpu_util_ratio": noisy(0.1, 0.01),
        "sm_active_ratio": noisy(0.08, 0.01),
        "memory_used_bytes": 32e9,
        "power_w": lambda instants, gpus: np.repeat(
            np.where(np.arange(instants) % 10 == 9, 600.0, 150.0)[:, None], gpus, axis=1
        ),
    }
    (finding,) = replay(recording(spiky, minutes=4, gpus=2)).findings
    assert finding.cost_per_h.kwh is not None
    assert finding.cost_per_h.kwh / finding.cost_per_h.gpu_h == pytest.approx(0.195, rel=0.05)


def test_no_cause_is_surer_than_nineteen_in_twenty() -> None:
    clear = BASE | {
        "gpu_util_ratio": 0.1, "sm_active_ratio": 0.08, "memory_used_bytes": 32e9, "cpu_iowait_ratio": 0.6,
        "psi_io_some_s": 0.9, "tensor_active_ratio": 0.5,
    }  # fmt: skip
    (finding,) = replay(recording(clear, minutes=4, gpus=2)).findings
    assert (finding.cause, finding.confidence) == ("storage", pytest.approx(0.95, abs=1e-3))
