"""The arithmetic of benchmarks/diagnosis.py, on answers whose score is known by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from benchmarks import scoring
from benchmarks.scoring import CANNOT_TELL, Minutes
from hypothesis import given
from hypothesis import strategies as st

LABELS = ("healthy", "a.x", "b.y", CANNOT_TELL)
SILENT = ("healthy", CANNOT_TELL)


def minutes(pairs: list[tuple[str, str]], runs: list[int] | None = None) -> Minutes:
    return Minutes(
        LABELS,
        np.array([LABELS.index(truth) for truth, _ in pairs], dtype=np.intp),
        np.array([LABELS.index(answer) for _, answer in pairs], dtype=np.intp),
        np.array(runs if runs is not None else range(len(pairs)), dtype=np.intp),
    )


MIXED = minutes(
    [("a.x", "a.x")] * 6
    + [("a.x", CANNOT_TELL)] * 2
    + [("a.x", "b.y")] * 2
    + [("b.y", "b.y")] * 6
    + [("healthy", "healthy")] * 3
    + [("healthy", "b.y")]
)


def test_cannot_tell_costs_recall_and_never_precision() -> None:
    assert scoring.precision(MIXED, "a.x").value == 1.0
    assert scoring.recall(MIXED, "a.x").value == pytest.approx(0.6)


def test_a_wrong_cause_costs_the_precision_of_the_one_and_the_recall_of_the_other() -> None:
    assert scoring.precision(MIXED, "b.y").value == pytest.approx(6 / 9)
    assert scoring.recall(MIXED, "b.y").value == 1.0


def test_macro_f1_is_the_mean_over_the_true_causes() -> None:
    of_x, of_y = 2 * 0.6 / 1.6, 2 * (6 / 9) / (6 / 9 + 1)
    assert scoring.macro_f1(MIXED, SILENT) == pytest.approx((of_x + of_y) / 2)


def test_wrong_causes_are_counted_among_those_that_were_named() -> None:
    assert scoring.wrong_cause_ratio(MIXED, SILENT) == pytest.approx(3 / 15)
    assert scoring.wrong_cause_ratio(minutes([("a.x", CANNOT_TELL)]), SILENT) is None


def test_the_confusion_holds_every_minute_once() -> None:
    table = scoring.confusion(MIXED)
    assert table["a.x"] == {"a.x": 6, "b.y": 2, CANNOT_TELL: 2}
    assert sum(n for row in table.values() for n in row.values()) == 20


def test_a_cause_that_is_never_answered_scores_zero_and_has_no_precision() -> None:
    never = minutes([("a.x", CANNOT_TELL), ("a.x", "healthy")])
    assert scoring.precision(never, "a.x").value is None
    assert scoring.macro_f1(never, SILENT) == 0.0


def test_bounds_of_minutes_that_are_all_alike_within_a_run_count_the_runs() -> None:
    """Four runs of 100 minutes, one of them all wrong: the bounds of 3 of 4, not of 300 of 400."""
    alike = minutes(
        [("a.x", "a.x" if run else CANNOT_TELL) for run in range(4) for _ in range(100)],
        [run for run in range(4) for _ in range(100)],
    )
    found = scoring.recall(alike, "a.x")
    low, high = scoring.wilson(0.75, 3.0)  # 4 runs, less one for the mean
    assert (found.n, found.runs) == (400, 4)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_when_every_run_is_right_each_counts_as_one() -> None:
    right = minutes([("a.x", "a.x")] * 300, [n // 100 for n in range(300)])
    assert scoring.recall(right, "a.x").low == pytest.approx(scoring.wilson(1.0, 3.0)[0])


@given(st.floats(0.0, 1.0), st.floats(1.0, 1e6))
def test_the_share_lies_within_its_bounds(p: float, n: float) -> None:
    low, high = scoring.wilson(p, n)
    assert 0.0 <= low <= p + 1e-9
    assert p - 1e-9 <= high <= 1.0


def test_nothing_seen_is_bounded_by_the_rule_of_three() -> None:
    assert scoring.poisson_upper(0) == pytest.approx(-math.log(0.05), abs=1e-6)
    assert scoring.poisson_upper(1) == pytest.approx(4.744, abs=1e-3)
    assert scoring.poisson_upper(10) == pytest.approx(16.962, abs=1e-3)


def test_only_minutes_with_one_truth_are_scored_and_most_of_a_minute_answers() -> None:
    label = np.zeros((180, 2), dtype=np.int16)
    label[90:, 0] = 1  # the second minute of GPU 0 has two truths
    label[:60, 1] = -1  # the first of GPU 1 has none
    answer = np.zeros((180, 2), dtype=np.int16)
    answer[130:, 0] = 1
    truth, said, run = scoring.whole_minutes(label, answer, 60, np.array([5, 6]))
    assert sorted(zip(run.tolist(), truth.tolist(), said.tolist(), strict=True)) == [
        (5, 0, 0), (5, 1, 1), (6, 0, 0), (6, 0, 0),
    ]  # fmt: skip


def test_parts_with_other_labels_are_joined_by_name() -> None:
    one = minutes([("a.x", "b.y")])
    other = Minutes(("b.y", "a.x"), np.array([1]), np.array([0]), np.array([9]))
    assert scoring.confusion(scoring.joined([one, other])) == {"a.x": {"b.y": 2}}


def test_the_95th_percentile_is_a_value_that_came() -> None:
    assert scoring.p95([float(n) for n in range(1, 101)]) == 95.0
    assert scoring.p95([]) is None


def test_losses_are_least_where_the_truth_was_said_surely_and_count_what_nobody_named() -> None:
    right, wrong = ((0.9, True), (0.05, False)), ((0.9, False), (0.05, True))
    none = ((0.2, False), (0.1, False))
    assert scoring.losses([((1.0, True),)]) == {"n": 1, "log_loss": 0.0, "brier": 0.0}
    assert scoring.losses([right])["log_loss"] == pytest.approx(-math.log(0.9))
    assert scoring.losses([wrong])["log_loss"] == pytest.approx(-math.log(0.05))
    assert scoring.losses([none])["log_loss"] == pytest.approx(-math.log(0.7))
    assert scoring.losses([none])["brier"] == pytest.approx(0.3**2 + 0.2**2 + 0.1**2)
    assert scoring.losses([right, wrong])["n"] == 2
    assert scoring.losses([]) == {"n": 0}


@given(st.floats(0.02, 0.98))
def test_no_other_probability_than_the_true_frequency_loses_less(said: float) -> None:
    """True in 7 of 10 cases: whoever says 0.7 loses least by both."""

    def lost(share: float) -> dict[str, float]:
        return scoring.losses([((share, number < 7),) for number in range(10)])

    assert lost(0.7)["log_loss"] <= lost(said)["log_loss"] + 1e-12
    assert lost(0.7)["brier"] <= lost(said)["brier"] + 1e-12
