"""Every kind of finding, and every cause of one, has words of its own."""

from __future__ import annotations

from unidle_collector.detectors import makers
from unidle_collector.spoken import CAUSES, KINDS, cause_words, kind_words

DETECTORS = [make(1, 1.0) for make in makers()]


def test_no_id_of_a_detector_is_shown_as_it_is_and_nothing_else_has_words() -> None:
    assert {detector.kind for detector in DETECTORS} == set(KINDS)
    assert {cause for detector in DETECTORS for cause in detector.causes} == set(CAUSES)


def test_an_id_of_a_newer_collector_is_its_own_words() -> None:
    assert kind_words("something_new") == "something new"
    assert cause_words("something_new") == "something new"
