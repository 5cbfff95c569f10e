"""The loop that reads every source once per period and hands on one tick.

Each source has a worker thread of its own, so that a slow or hung one delays neither the others nor the
tick: at the deadline the tick goes out without it. While it is still busy it is left alone, and said so;
an answer that comes late counts at the next tick. One that says that it is not due is left in peace.
Ticks are on whole multiples of the period of the wall clock (`unidle_agent.schedule`): a late tick does not
shift those after it, and instants that were missed (a suspended machine) are counted, not made up for.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from unidle_agent import schedule
from unidle_agent.errors import SourceError
from unidle_agent.sample import Memory, Paced, Reading, Source, Tick, merge

log = logging.getLogger("unidle.agent")

DEADLINE_SHARE = 0.8
"""Share of the period that a tick waits for its sources: the rest is for what follows it."""
LEAVE_S = 1.0
"""How long a closing sampler waits for a source that is in the middle of a read."""


class Clock(Protocol):
    """Time as the sampler sees it."""

    def time_ns(self) -> int:
        """Wall clock, nanoseconds since the epoch."""

    def wait(self, stop: threading.Event, timeout_s: float) -> None:
        """Return after `timeout_s` seconds, or at once when `stop` is set."""

    def wait_for(
        self, condition: threading.Condition, predicate: Callable[[], bool], timeout_s: float
    ) -> None:
        """Return when `predicate` holds or after `timeout_s`; `condition` is held."""


class SystemClock:
    """The machine's own clock."""

    def time_ns(self) -> int:
        return time.time_ns()

    def wait(self, stop: threading.Event, timeout_s: float) -> None:
        stop.wait(max(0.0, timeout_s))

    def wait_for(
        self, condition: threading.Condition, predicate: Callable[[], bool], timeout_s: float
    ) -> None:
        condition.wait_for(predicate, timeout_s)


@dataclass(slots=True)
class SourceStats:
    """What became of one source's reads since the start."""

    name: str
    reads: int = 0
    errors: int = 0
    skipped: int = 0
    problems: int = 0
    answers: int = 0
    """Answers that a tick could use, empty ones and failures included."""
    last: Reading = field(default_factory=Reading)
    """Its last answer; an empty one while it is left out."""

    @property
    def gpus(self) -> int:
        """GPUs in its last answer."""
        return len(self.last.gpus)

    @property
    def fields(self) -> int:
        """Fields that its last answer gave for any GPU or for the host."""
        names = {*self.last.host}.union(*(gpu.values for gpu in self.last.gpus))
        return sum("." not in name for name in names)  # statistics are no fields

    @property
    def up(self) -> bool:
        """Did its last answer hold anything."""
        return self.gpus > 0 or self.fields > 0


class Sampler:
    """Reads `sources` every `period_s` seconds and gives each tick to every consumer, in order."""

    def __init__(
        self,
        sources: Sequence[Source],
        period_s: float,
        consumers: Sequence[Callable[[Tick], None]],
        clock: Clock | None = None,
        deadline_s: float | None = None,
        finish: Callable[[Tick], Tick] | None = None,
    ) -> None:
        """`finish` completes every merged tick before anybody has it; it returns at once."""
        self.period_s = period_s
        self.ticks = 0
        self.missed = 0
        self._clock = clock or SystemClock()
        self._deadline_s = DEADLINE_SHARE * period_s if deadline_s is None else deadline_s
        self._consumers = tuple(consumers)
        self._finish = finish or (lambda tick: tick)
        self._answered = threading.Condition()
        self._workers = [_Worker(source, self._answered, self._clock) for source in sources]
        self._memory = Memory()
        self._said: tuple[str, ...] = ()

    @property
    def stats(self) -> tuple[SourceStats, ...]:
        """One record per source, in their order."""
        return tuple(worker.stats for worker in self._workers)

    def run(self, stop: threading.Event) -> None:
        """Tick at once, then on whole multiples of the period until `stop` is set."""
        period_ns = round(self.period_s * 1e9)
        before_ns: int | None = None
        while not stop.is_set():
            last_ns = self.tick().time_ns
            if before_ns is not None:
                self.missed += schedule.missed(before_ns, last_ns, period_ns)
            before_ns = last_ns
            now_ns = self._clock.time_ns()
            self._clock.wait(stop, (schedule.next_ns(last_ns, now_ns, period_ns) - now_ns) / 1e9)

    def tick(self, deadline_s: float | None = None) -> Tick:
        """Read all sources now, within the deadline; never raises for a source or a consumer."""
        time_ns = self._clock.time_ns()
        with self._answered:
            asked = [worker for worker in self._workers if worker.ask()]
            self._clock.wait_for(
                self._answered,
                lambda: all(worker.answered for worker in asked),
                self._deadline_s if deadline_s is None else deadline_s,
            )
            readings = [
                (worker.source.name, worker.source.precedence, worker.take()) for worker in self._workers
            ]
        tick = self._finish(merge(time_ns, readings, self._memory))
        self.ticks += 1
        self._say(tick.problems)
        for consumer in self._consumers:
            try:
                consumer(tick)
            except Exception:
                log.exception("a tick could not be handed on")
        return tick

    def close(self) -> None:
        """Stop the workers and close every source, a hung one too."""
        for worker in self._workers:
            worker.leave()
        for worker in self._workers:
            worker.join()

    def _say(self, problems: tuple[str, ...]) -> None:
        """Log what is new and what is over, not the same text every second."""
        for text in problems:
            if text not in self._said:
                log.warning("%s", text)
        for text in self._said:
            if text not in problems:
                log.info("no longer: %s", text)
        self._said = problems


class _Worker:
    """One source and the thread that reads it.

    Its state is guarded by the condition that all share, on which the sampler alone waits: each worker
    waits for its own order, so that a tick wakes nobody who has nothing to do.
    """

    def __init__(self, source: Source, answered: threading.Condition, clock: Clock) -> None:
        self.source = source
        self.stats = SourceStats(source.name)
        self._answered = answered
        self._clock = clock
        self._due = source.due if isinstance(source, Paced) else lambda: True
        self._orders: queue.SimpleQueue[bool] = queue.SimpleQueue()
        """True: read; False: leave."""
        self._reading: Reading | None = None
        self._busy = self._resting = False
        self._unexpected: set[str] = set()
        self._thread = threading.Thread(target=self._work, name=f"source-{source.name}", daemon=True)
        self._thread.start()

    @property
    def answered(self) -> bool:
        return self._reading is not None

    def ask(self) -> bool:
        """Ask for a reading now; False where the source is still busy, not due, or an answer came late."""
        self._resting = False
        if self._busy or self._reading is not None:
            return False
        self._resting = not self._due()
        if not self._resting:
            self._busy = True
            self._orders.put(True)
        return self._busy

    def take(self) -> Reading:
        """The answer, or an empty one that says why there is none, unless the source was not due."""
        if self._resting:
            return Reading()
        reading, self._reading = self._reading, None
        if reading is None:
            self.stats.skipped += 1
            self.stats.problems += 1
            self.stats.last = Reading()
            return Reading(problems=("it is still busy and was left out",))
        self.stats.answers += 1
        self.stats.problems += len(reading.problems)
        self.stats.last = reading
        return reading

    def leave(self) -> None:
        self._orders.put(False)

    def join(self) -> None:
        """Wait shortly for the thread; the source of one that hangs is closed from here."""
        self._thread.join(LEAVE_S)
        if self._thread.is_alive():
            self._close()

    def _close(self) -> None:
        try:
            self.source.close()
        except Exception:
            log.exception("%s could not be closed", self.source.name)

    def _work(self) -> None:
        while self._orders.get():
            reading = self._read()
            with self._answered:
                self._reading = reading
                self._busy = False
                self._answered.notify_all()
        self._close()

    def _read(self) -> Reading:
        self.stats.reads += 1
        try:
            return self.source.read()
        except SourceError as error:
            self.stats.errors += 1
            return Reading(problems=(str(error),))
        except Exception as error:  # a bug in one source must not silence the others
            self.stats.errors += 1
            text = f"unexpected {type(error).__name__}: {error}"
            if text not in self._unexpected:
                self._unexpected.add(text)
                log.exception("%s: %s", self.source.name, text)
            return Reading(problems=(text,))
