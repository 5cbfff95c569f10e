"""When a scheduler is asked, and what holds while it does not answer."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from tests.fakes import START_NS, FakeClock

from unidle_collector.scheduler import Job, Node, SchedulerError, Snapshot
from unidle_collector.scheduler.poller import Poller

SNAPSHOT = Snapshot(
    "fake",
    "ci",
    "1.0",
    START_NS,
    (Job("1", "running"), Job("2", "pending", tasks=3)),
    (Node("n", (), True, False),),
)


class FakeSource:
    """Answers by `plan`: a snapshot, or why not."""

    name = "fake"

    def __init__(self, *plan: Snapshot | Exception) -> None:
        self.plan = list(plan)

    def read(self) -> Snapshot:
        answer = self.plan.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def poller(
    *plan: Snapshot | Exception, clock: FakeClock | None = None
) -> tuple[Poller, list[Snapshot | None]]:
    delivered: list[Snapshot | None] = []
    made = Poller(
        FakeSource(*plan), 30.0, delivered.append, clock_ns=clock or FakeClock(), monotonic=lambda: 0.0
    )
    return made, delivered


def test_a_look_is_delivered_and_the_next_is_due_after_the_interval() -> None:
    made, delivered = poller(SNAPSHOT)
    assert made.status().stale
    assert made.look() == 30
    assert delivered == [SNAPSHOT]
    now = made.status()
    assert (now.cluster, now.version, now.jobs, now.waiting, now.nodes) == ("ci", "1.0", 1, 3, 1)
    assert (now.stale, now.failures, now.error) == (False, 0, "")


def test_failures_wait_longer_each_time_and_keep_the_last_snapshot() -> None:
    away = SchedulerError("squeue: no whole answer within 20 s")
    made, delivered = poller(SNAPSHOT, *[away] * 5, SNAPSHOT)
    waits = [made.look() for _ in range(7)]
    assert waits == [30, 60, 120, 240, 300, 300, 30]
    assert delivered == [SNAPSHOT, None, None, None, None, None, SNAPSHOT]
    assert made.status().failures == 0


def test_a_scheduler_that_says_when_to_come_again_is_obeyed() -> None:
    made, _ = poller(SchedulerError("429", retry_after_s=900))
    assert made.look() == 900


@pytest.mark.parametrize(("age_s", "stale"), [(0, False), (90, False), (91, True)])
def test_a_snapshot_is_stale_after_three_polls_and_says_how_old_it_is(age_s: float, stale: bool) -> None:
    clock = FakeClock()
    made, _ = poller(SNAPSHOT, SchedulerError("away"), clock=clock)
    made.look()
    clock.forward(age_s)
    made.look()
    now = made.status()
    assert (now.age_s, now.stale, now.error) == (age_s, stale, "away")


def test_the_thread_asks_until_it_is_stopped() -> None:
    seen = threading.Event()
    made = Poller(FakeSource(SNAPSHOT), 30.0, lambda _: seen.set(), clock_ns=FakeClock())
    made.start()
    assert seen.wait(10)
    made.stop()
    assert not made._thread.is_alive()


def test_a_restart_knows_the_last_snapshot_and_how_old_it_is(tmp_path: Path) -> None:
    file, clock = tmp_path / "scheduler.json", FakeClock()
    first = Poller(FakeSource(replace(SNAPSHOT, ended={"0": Job("0", "ended")})), 30.0, print, keep=file)
    first.look()
    second = Poller(FakeSource(), 30.0, print, keep=file, clock_ns=clock)
    clock.forward(100)
    assert second.restore() == SNAPSHOT
    assert (second.status().age_s, second.status().stale) == (100, True)


@pytest.mark.parametrize("text", ["", "{}", '{"scheduler": 1}', "\x00"])
def test_a_kept_snapshot_that_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    file = tmp_path / "scheduler.json"
    file.write_text(text)
    assert Poller(FakeSource(), 30.0, print, keep=file).restore() is None


def test_a_snapshot_that_cannot_be_kept_still_holds(tmp_path: Path) -> None:
    delivered: list[Snapshot | None] = []
    Poller(FakeSource(SNAPSHOT), 30.0, delivered.append, keep=tmp_path / "none" / "s.json").look()
    assert delivered == [SNAPSHOT]
