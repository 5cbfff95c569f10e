"""What is recommended: every statement complete, nothing executed, names never reach a shell raw."""

from __future__ import annotations

import shlex
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.collector.fleets import HEALTHY, HELD, recording
from tests.collector.test_detectors import one_gpu

from unidle_collector.model import Finding
from unidle_collector.recommend import HORIZON_H, gain_if_it_lasts, recommend
from unidle_collector.replay import replay

HOUR_NS = 3600 * 10**9


def idle(**changes: object) -> Finding:
    (finding,) = replay(recording(HELD, minutes=60, period_s=10)).findings
    return replace(finding, **changes)  # type: ignore[arg-type]


def throttled() -> Finding:
    columns = HEALTHY | {
        "clock_event_reasons": one_gpu(0x24, 0x4, 2, 6),
        "sm_clock_hz": one_gpu(1.2e9, 1.75e9, 2, 6),
    }
    return replay(recording(columns, minutes=6)).findings[0]


@pytest.mark.parametrize("finding", [idle(), throttled()], ids=["idle", "throttled"])
def test_every_statement_of_a_recommendation_is_there(finding: Finding) -> None:
    (item,) = recommend([finding], finding.updated_ns)
    empty = [part.name for part in fields(item) if getattr(item, part.name) in ("", ())]
    assert set(empty) <= {"job", "user"}
    assert item.finding_ids == (finding.id,)
    assert 0 < item.gain.low.gpu_h < item.gain.expected.gpu_h < item.gain.high.gpu_h


@pytest.mark.parametrize(
    ("kind", "cause", "recommended"),
    [
        ("straggler", "straggler", "leave_out_straggler"),
        ("pipeline_imbalance", "pipeline_imbalance", "even_stages"),
        ("checkpoint_stall", "checkpoint", "save_asynchronously"),
        ("tcp_fallback", "tcp_fallback", "return_to_fabric"),
    ],
)
def test_causes_between_the_gpus_of_a_job_call_for_one_change_to_it(
    kind: str, cause: str, recommended: str
) -> None:
    finding = idle(kind=kind, cause=cause)
    (item,) = recommend([finding], finding.updated_ns)
    assert (item.kind, item.lever, item.finding_ids) == (recommended, "fix", (finding.id,))
    assert {part.name for part in fields(item) if getattr(item, part.name) in ("", ())} <= {"job", "user"}


def test_a_fallback_that_is_not_certain_calls_for_nothing() -> None:
    finding = idle(kind="tcp_fallback", cause="undetermined")
    assert recommend([finding], finding.updated_ns) == []


def test_a_developing_finding_calls_for_nothing_yet() -> None:
    finding = idle(told_ns=None)
    assert recommend([finding], finding.updated_ns) == []


@given(st.floats(0.0, 1e4))
def test_a_gain_never_goes_beyond_its_horizon(lasted_h: float) -> None:
    finding = _finding
    gain = gain_if_it_lasts(finding, finding.since_ns + int(lasted_h * HOUR_NS))
    assert gain.low.gpu_h <= gain.expected.gpu_h <= gain.high.gpu_h
    assert gain.high.gpu_h <= finding.cost_per_h.gpu_h * HORIZON_H + 1e-9


_finding = idle()


@given(st.text(min_size=1).filter(lambda text: "\n" not in text and "\r" not in text and "\0" not in text))
def test_a_name_never_becomes_a_second_command(name: str) -> None:
    finding = replace(_finding, job=f"team/{name.replace('/', '')}", nodes=(name,))
    (item,) = recommend([finding], finding.updated_ns)
    words = shlex.split(item.command, comments=True)
    assert not {";", "&&", "|", "`"} & set(words) - {name, name.replace("/", "")}


def test_the_most_worth_comes_first() -> None:
    small = replace(_finding, id="idle-small", cost_per_h=replace(_finding.cost_per_h, eur=1.0))
    items = recommend([small, _finding], _finding.updated_ns)
    assert [item.finding_ids[0] for item in items] == [_finding.id, "idle-small"]
