"""The loop: schedule, deadlines, broken sources. Time is the test's own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from unidle_agent.errors import SourceError
from unidle_agent.sample import Reading, Tick
from unidle_agent.sampler import Sampler
from unidle_agent.sources import LateSource

SAFETY_S = 20.0
"""How long a broken test waits before it fails; a right one never waits."""


@dataclass
class FakeClock:
    """Time moves only when somebody waits; a deadline is over when the test's condition says so."""

    now_s: float = 1000.0
    enough: Callable[[], bool] | None = None
    """The deadline of a tick comes as soon as this holds; None: only when everything has answered."""
    jumps_s: list[float] = field(default_factory=list)
    """What each wait takes longer than it was asked to, in turn."""
    waits: list[float] = field(default_factory=list)

    def time_ns(self) -> int:
        return int(self.now_s * 1e9)

    def monotonic(self) -> float:
        return self.now_s

    def wait(self, stop: threading.Event, timeout_s: float) -> None:
        self.waits.append(timeout_s)
        self.now_s += max(0.0, timeout_s) + (self.jumps_s.pop(0) if self.jumps_s else 0.0)

    def wait_for(
        self, condition: threading.Condition, predicate: Callable[[], bool], timeout_s: float
    ) -> None:
        assert condition.wait_for(lambda: predicate() or bool(self.enough and self.enough()), SAFETY_S)


@dataclass
class FakeSource:
    """Answers with `value`; blocks while `gate` is closed; raises `error` where there is one."""

    name: str = "fake"
    precedence: int = 10
    value: float = 1.0
    error: Exception | None = None
    gate: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)
    """Set by the first read, before it blocks."""
    reads: int = 0
    closed: bool = False

    def __post_init__(self) -> None:
        self.gate.set()

    def read(self) -> Reading:
        self.reads += 1
        self.begun.set()
        assert self.gate.wait(SAFETY_S)
        if self.error is not None:
            raise self.error
        return Reading(host={f"{self.name}": self.value})

    def close(self) -> None:
        self.closed = True


def until(condition: threading.Condition, holds: Callable[[], bool]) -> None:
    with condition:
        assert condition.wait_for(holds, SAFETY_S)


def test_a_tick_holds_what_every_source_says_and_reaches_every_consumer() -> None:
    first, second = [], []
    sampler = Sampler(
        [FakeSource("a"), FakeSource("b", value=2.0)], 1.0, [first.append, second.append], FakeClock()
    )
    tick = sampler.tick()
    sampler.close()
    assert tick.host == {"a": 1.0, "b": 2.0}
    assert (tick.time_ns, tick.problems) == (1000 * 10**9, ())
    assert first == second == [tick]


def test_a_hung_source_delays_no_other_and_is_said_to_be_left_out() -> None:
    slow, fast = FakeSource("slow"), FakeSource("fast")
    slow.gate.clear()
    clock = FakeClock()
    sampler = Sampler([slow, fast], 1.0, [], clock)
    clock.enough = lambda: sampler._workers[1].answered and slow.begun.wait(SAFETY_S)
    ticks = [sampler.tick() for _ in range(3)]
    assert [tick.host for tick in ticks] == [{"fast": 1.0}] * 3
    assert all(tick.problems == ("slow: it is still busy and was left out",) for tick in ticks)
    assert slow.reads == 1, "a busy source is not asked again"
    assert fast.reads == 3
    assert [stats.skipped for stats in sampler.stats] == [3, 0]
    slow.gate.set()
    until(sampler._answered, lambda: sampler._workers[0].answered)
    assert sampler.tick().host == {"slow": 1.0, "fast": 1.0}, "a late answer counts at the next tick"
    assert slow.reads == 1
    clock.enough = None
    assert sampler.tick().host == {"slow": 1.0, "fast": 1.0}
    assert slow.reads == 2
    sampler.close()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (SourceError("no driver: load it"), "bad: no driver: load it"),
        (ZeroDivisionError("oops"), "bad: unexpected ZeroDivisionError: oops"),
    ],
)
def test_a_source_that_raises_is_a_counted_problem_and_is_tried_again(error: Exception, said: str) -> None:
    bad = FakeSource("bad", error=error)
    sampler = Sampler([bad, FakeSource("good")], 1.0, [], FakeClock())
    tick = sampler.tick()
    assert tick.problems == (said,)
    assert tick.host == {"good": 1.0}
    bad.error = None
    assert sampler.tick().host == {"bad": 1.0, "good": 1.0}
    sampler.close()
    stats = sampler.stats[0]
    assert (stats.reads, stats.errors, stats.problems, stats.up) == (2, 1, 1, True)


@dataclass
class Dozing(FakeSource):
    """A source that says itself when it is due."""

    rested: bool = True

    def due(self) -> bool:
        return self.rested


def test_a_source_that_is_not_due_is_left_in_peace_and_that_is_no_problem() -> None:
    dozing = Dozing("dozing")
    sampler = Sampler([dozing, FakeSource("awake")], 1.0, [], FakeClock())
    assert sampler.tick().host == {"dozing": 1.0, "awake": 1.0}
    dozing.rested = False
    tick = sampler.tick()
    assert (tick.host, tick.problems) == ({"awake": 1.0}, ())
    stats = sampler.stats[0]
    assert (dozing.reads, stats.skipped, stats.answers, stats.up) == (1, 0, 1, True)
    dozing.rested = True
    assert sampler.tick().host == {"dozing": 1.0, "awake": 1.0}
    sampler.close()


def test_a_tick_is_finished_once_before_anybody_has_it() -> None:
    finished: list[Tick] = []

    def finish(tick: Tick) -> Tick:
        finished.append(tick)
        return replace(tick, host={**tick.host, "owner": 2.0}, problems=("owners: late",))

    got: list[Tick] = []
    sampler = Sampler([FakeSource()], 1.0, [got.append], FakeClock(), finish=finish)
    assert sampler.tick() is got[0]
    sampler.close()
    assert [tick.host for tick in finished] == [{"fake": 1.0}]
    assert (got[0].host, got[0].problems) == ({"fake": 1.0, "owner": 2.0}, ("owners: late",))


def test_what_the_finish_says_is_logged_like_a_source(caplog: pytest.LogCaptureFixture) -> None:
    def finish(tick: Tick) -> Tick:
        return replace(tick, problems=("owners: late",))

    sampler = Sampler([FakeSource()], 1.0, [], FakeClock(), finish=finish)
    sampler.tick()
    sampler.tick()
    sampler.close()
    assert [record.getMessage() for record in caplog.records] == ["owners: late"]


def test_a_problem_is_logged_when_it_begins_and_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "unidle.agent")
    bad = FakeSource("bad", error=SourceError("gone"))
    sampler = Sampler([bad], 1.0, [], FakeClock())
    for _ in range(5):
        sampler.tick()
    bad.error = None
    sampler.tick()
    sampler.tick()
    sampler.close()
    assert [record.getMessage() for record in caplog.records] == ["bad: gone", "no longer: bad: gone"]


def test_a_consumer_that_breaks_costs_the_others_nothing() -> None:
    got: list[Tick] = []

    def broken(tick: Tick) -> None:
        raise RuntimeError

    sampler = Sampler([FakeSource()], 1.0, [broken, got.append], FakeClock())
    sampler.tick()
    sampler.close()
    assert len(got) == 1


def run_for(clock: FakeClock, ticks: int, work_s: float = 0.0) -> tuple[Sampler, list[float]]:
    stop = threading.Event()
    times: list[float] = []

    def consume(tick: Tick) -> None:
        times.append(tick.time_ns / 1e9)
        clock.now_s += work_s
        if len(times) == ticks:
            stop.set()

    sampler = Sampler([FakeSource()], 1.0, [consume], clock)
    sampler.run(stop)
    sampler.close()
    return sampler, times


def test_the_schedule_does_not_drift_by_what_a_tick_takes() -> None:
    _, times = run_for(FakeClock(), ticks=200, work_s=0.3)
    assert times == pytest.approx([1000.0 + number for number in range(200)])


def test_the_first_tick_comes_at_once_and_those_after_it_on_whole_seconds() -> None:
    _, times = run_for(FakeClock(now_s=1000.3), ticks=4)
    assert times == pytest.approx([1000.3, 1001, 1002, 1003])


def test_a_tick_that_comes_late_does_not_shift_those_after_it() -> None:
    sampler, times = run_for(FakeClock(jumps_s=[0.0, 0.4, 0.0, 0.6]), ticks=6)
    assert times == pytest.approx([1000, 1001, 1002.4, 1003, 1004.6, 1006])
    assert sampler.missed == 1, "the row of 1004.6 counts to 1005"


def test_a_suspended_machine_is_not_made_up_for_but_counted() -> None:
    sampler, times = run_for(FakeClock(jumps_s=[0.0, 10.4]), ticks=5)
    assert times == pytest.approx([1000, 1001, 1012.4, 1013, 1014])
    assert sampler.missed == 10
    assert sampler.ticks == 5


def test_every_source_is_closed_a_hung_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unidle_agent.sampler.LEAVE_S", 0.05)
    hung, good = FakeSource("hung"), FakeSource("good")
    clock = FakeClock()
    sampler = Sampler([hung, good], 1.0, [], clock)
    hung.gate.clear()
    clock.enough = lambda: sampler._workers[1].answered and hung.begun.wait(SAFETY_S)
    sampler.tick()
    sampler.close()
    assert hung.closed
    assert good.closed
    hung.gate.set()


def test_a_source_that_is_not_there_yet_is_looked_for_again_each_minute() -> None:
    clock = FakeClock()
    built: list[float] = []

    def build() -> FakeSource:
        built.append(clock.now_s)
        if clock.now_s < 1100:
            raise SourceError("no driver")
        return FakeSource("late")

    source = LateSource("late", 10, build, required=False, monotonic=clock.monotonic)
    for _ in range(200):
        before = source.read()
        clock.now_s += 1
        if before.host:
            break
        assert source.absent_because == "no driver"
    assert built == [1000.0, 1060.0, 1120.0]
    assert source.absent_because == ""
    source.close()


def test_a_required_source_that_is_not_there_is_a_problem_each_time() -> None:
    def build() -> FakeSource:
        raise SourceError("no driver")

    source = LateSource("late", 10, build, required=True)
    for _ in range(2):
        with pytest.raises(SourceError, match="no driver"):
            source.read()
    source.close()
