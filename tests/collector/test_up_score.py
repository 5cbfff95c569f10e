"""Judging a demo: what was due, what was found, what was false."""

from __future__ import annotations

from dataclasses import replace

import pytest

from unidle_collector.model import Finding, GpuRef
from unidle_collector.up.score import KINDS, OWED_S, SECOND_NS, Injected, belongs, score

T0 = 1_700_000_000 * SECOND_NS
END = T0 + 7200 * SECOND_NS


def at(second: float) -> int:
    return T0 + int(second * SECOND_NS)


def fault(kind: str = "idle", gpus: str = "ab", start_s: float = 0, end_s: float | None = None) -> Injected:
    end_ns = None if end_s is None else at(end_s)
    return Injected(kind, "held", "sim-000", frozenset(gpus), "j1", at(start_s), end_ns, at(start_s))


def finding(kind: str = "idle", gpus: str = "ab", since_s: float = 0, told_s: float | None = 1800) -> Finding:
    return Finding(
        id=f"{kind}-{gpus}",
        kind=kind,
        cause="held",
        severity="warning",
        confidence=0.9,
        subject_kind="job",
        subject="j1",
        title="8 GPUs idle",
        since_ns=at(since_s),
        updated_ns=at(since_s),
        told_ns=None if told_s is None else at(told_s),
        gpus=tuple(GpuRef("sim-000", gpu) for gpu in gpus),
    )


def test_a_told_finding_on_the_faults_gpus_finds_it() -> None:
    judged = score([fault()], [finding()], END)
    assert (judged.injected["idle"], judged.missed, judged.false) == (1, 0, 0)
    assert judged.findings == {"idle": 1}
    assert judged.details[0].verdict == "found"
    assert judged.details[0].text == "told 1800 s after it was evident"


def test_a_due_fault_without_a_finding_is_missed() -> None:
    judged = score([fault()], [], END)
    assert (judged.injected["idle"], judged.missed) == (1, 1)
    assert judged.details[0].verdict == "missed"
    assert "sim-000, 2 GPUs, job j1" in judged.details[0].where


def test_a_finding_that_nobody_was_told_of_does_not_count() -> None:
    judged = score([fault()], [finding(told_s=None)], END)
    assert (judged.missed, judged.findings) == (1, {})


@pytest.mark.parametrize(
    ("reason", "stray"),
    [
        ("another kind", finding(kind="starvation")),
        ("other GPUs", finding(gpus="cd")),
        ("long before", replace(finding(since_s=-900), ended_ns=at(-300))),
    ],
)
def test_a_finding_that_belongs_to_no_fault_is_false_and_finds_nothing(reason: str, stray: Finding) -> None:
    judged = score([fault()], [stray], END)
    assert (judged.missed, judged.false) == (1, 1), reason
    assert [detail.verdict for detail in judged.details] == ["missed", "false"]
    assert stray.id in judged.details[1].text


def test_a_finding_long_after_the_fault_is_false() -> None:
    judged = score([fault(end_s=2400)], [finding(since_s=2400 + 121, told_s=4000)], END)
    assert judged.false == 1


def test_two_findings_of_one_fault_are_both_true() -> None:
    judged = score([fault()], [finding(gpus="a"), finding(gpus="b")], END)
    assert (judged.missed, judged.false) == (0, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_is_due_only_once_delay_and_margin_are_over(kind: str) -> None:
    owed_s = sum(OWED_S[kind])
    assert score([fault(kind)], [], at(owed_s - 1)).injected == {}
    assert score([fault(kind)], [], at(owed_s)).injected == {kind: 1}
    assert score([fault(kind, end_s=owed_s - 1)], [], END).missed == 0
    assert score([fault(kind, end_s=owed_s)], [], END).missed == 1


def test_people_are_told_of_an_open_session_later_than_of_other_idle_gpus() -> None:
    session = replace(fault(), cause="interactive")
    owed_s = sum(OWED_S["idle.interactive"])
    assert owed_s > sum(OWED_S["idle"])
    assert not session.is_due(at(owed_s - 1))
    assert session.is_due(at(owed_s))


def test_a_fault_found_before_it_was_due_is_no_false_finding() -> None:
    judged = score([fault(start_s=7000)], [finding(since_s=7000, told_s=7100)], END)
    assert (judged.injected, judged.missed, judged.false) == ({}, 0, 0)
    assert judged.details[0].verdict == "found"


def test_faults_that_have_not_begun_are_left_out() -> None:
    assert score([fault(start_s=7300)], [], END).details == ()


def test_evidence_comes_later_than_the_fault_where_the_truth_says_so() -> None:
    leak = replace(fault("oom_risk"), evident_ns=at(2000))
    assert not leak.is_due(at(2000 + OWED_S["oom_risk"][1] - 1))
    assert leak.is_due(at(2000 + OWED_S["oom_risk"][1]))


def test_a_finding_that_began_a_little_early_still_belongs() -> None:
    ended = replace(finding(since_s=-200), ended_ns=at(-60))
    assert belongs(ended, fault())


def test_a_kind_of_which_none_was_due_is_left_out() -> None:
    assert score([], [], END).injected == {}
