"""The collector's answers: asked once for all, kept when it falls silent."""

from __future__ import annotations

import threading

import pytest
from tests.dashboard.fake_api import FakeApi

from unidle_collector.client import CollectorApi
from unidle_collector.model import Fleet
from unidle_dashboard.answers import MOST_KEPT, Answers, NoAnswerError

SECOND = 1_000_000_000


class Clock:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.now_ns = 1_000 * SECOND

    def __call__(self) -> int:
        return self.now_ns


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def answers(api: FakeApi, clock: Clock) -> Answers:
    return Answers(api, ttl_s=8, now_ns=clock, run=lambda job: job())


def fleet(answers: Answers) -> Fleet:
    return answers.ask("fleet", lambda api: api.fleet()).value


def times_asked(api: FakeApi) -> int:
    return sum(1 for question in api.asked if question.startswith("fleet"))


def test_a_question_is_asked_once_within_its_time_to_live(
    api: FakeApi, answers: Answers, clock: Clock
) -> None:
    fleet(answers)
    clock.now_ns += 7 * SECOND
    fleet(answers)
    assert times_asked(api) == 1
    clock.now_ns += 1 * SECOND
    fleet(answers)
    assert times_asked(api) == 2


def test_the_last_answer_stays_and_says_since_when_it_is_old(
    api: FakeApi, answers: Answers, clock: Clock
) -> None:
    before = fleet(answers)
    heard_ns = clock.now_ns
    clock.now_ns += 10 * SECOND
    api.down = True
    assert fleet(answers) is before
    assert answers.silence is not None
    assert answers.silence.since_ns == clock.now_ns
    assert answers.silence.last_ok_ns == heard_ns
    began_ns = clock.now_ns
    clock.now_ns += 100 * SECOND
    assert fleet(answers) is before
    assert answers.silence.since_ns == began_ns


def test_a_silent_collector_is_not_asked_by_every_question_again(
    api: FakeApi, answers: Answers, clock: Clock
) -> None:
    api.down = True
    with pytest.raises(NoAnswerError, match="start one with: unidle collector"):
        fleet(answers)
    with pytest.raises(NoAnswerError):
        answers.ask("gpus", lambda api: api.gpus())
    assert times_asked(api) == 1
    assert "gpus" not in api.asked
    clock.now_ns += 8 * SECOND
    with pytest.raises(NoAnswerError):
        answers.ask("gpus", lambda api: api.gpus())
    assert "gpus" in api.asked


def test_an_answer_ends_the_silence(api: FakeApi, answers: Answers, clock: Clock) -> None:
    api.down = True
    with pytest.raises(NoAnswerError):
        fleet(answers)
    api.down = False
    clock.now_ns += 8 * SECOND
    assert fleet(answers).gpus == 512
    assert answers.silence is None


def test_a_question_that_the_collector_refuses_is_no_silence(answers: Answers) -> None:
    with pytest.raises(NoAnswerError, match="no such incident"):
        answers.ask("incident", lambda api: api.incident("inc-none"))
    assert answers.silence is None


def test_many_sessions_ask_together_and_the_collector_hears_one(api: FakeApi, answers: Answers) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def slow(api: CollectorApi) -> Fleet:
        entered.set()
        assert go_on.wait(10)
        return api.fleet()

    seen: list[Fleet] = []
    threads = [
        threading.Thread(target=lambda: seen.append(answers.ask("fleet", slow).value)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    assert entered.wait(10)
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert len(seen) == 8
    assert times_asked(api) == 1


def test_nobody_waits_while_an_answer_is_renewed(api: FakeApi, clock: Clock) -> None:
    answers = Answers(api, ttl_s=8, now_ns=clock)
    before = fleet(answers)
    clock.now_ns += 10 * SECOND
    entered, go_on = threading.Event(), threading.Event()

    def slow(api: CollectorApi) -> Fleet:
        entered.set()
        assert go_on.wait(10)
        return api.fleet()

    assert answers.ask("fleet", slow).value is before
    assert entered.wait(10)
    assert fleet(answers) is before  # and asks nothing beside
    go_on.set()
    with answers._lock("fleet"):  # the renewal is over
        assert fleet(answers) is not before
    assert times_asked(api) == 2


def test_who_comes_after_a_pause_waits_for_new_numbers(api: FakeApi, clock: Clock) -> None:
    later: list[object] = []
    answers = Answers(api, ttl_s=8, now_ns=clock, run=later.append)
    before = fleet(answers)
    clock.now_ns += 24 * SECOND
    assert fleet(answers) is not before
    assert not later


def test_answers_that_nobody_reads_make_room(api: FakeApi, answers: Answers) -> None:
    for number in range(MOST_KEPT + 1):
        answers.ask(("fleet", number), lambda api: api.fleet())
    answers.ask(("fleet", MOST_KEPT), lambda api: api.fleet())
    assert times_asked(api) == MOST_KEPT + 1
    answers.ask(("fleet", 0), lambda api: api.fleet())
    assert times_asked(api) == MOST_KEPT + 2
