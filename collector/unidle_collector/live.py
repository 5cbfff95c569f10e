"""The live collector: one thread owns the window, the engine and the store; everybody else asks it.

Flow of a batch: see `unidle_collector.taking`.
Flow of time: steps that every pushing node has reached go through the engine; what changes becomes
incidents; accounts and timers are saved each two minutes or so with the event time that they reach.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from typing import TypeVar

from unidle_agent.errors import UnidleError
from unidle_collector import scheduler
from unidle_collector.accounts import keeping
from unidle_collector.accounts.grouping import Grouping
from unidle_collector.accounts.past_hours import PastHours
from unidle_collector.accounts.settled import Settled
from unidle_collector.attribution import Attribution
from unidle_collector.engine import Engine
from unidle_collector.inbox import Inbox
from unidle_collector.incident_log import IncidentLog
from unidle_collector.late import LateRows
from unidle_collector.pergpu import SECOND_NS
from unidle_collector.series import open_feed, open_series
from unidle_collector.settings import CollectorSettings
from unidle_collector.store import State, Store
from unidle_collector.store.log import ROLL_AGE_S
from unidle_collector.taking import Accounted, Ack, BusyError, Push, Taking
from unidle_collector.timings import Timings
from unidle_collector.window import Window

log = logging.getLogger("unidle.collector")

STEP_S = 1.0
UPKEEP_EACH_S = 20.0
ROLL_LATER_NS = 10 * SECOND_NS
"""Rows that come close a log that is old enough at the end of a bucket; this much later time does it."""
MOST_DEFERRED = 5
"""Times in a row that a snapshot waits for late rows."""
SAVE_EACH_S = ROLL_AGE_S
"""Accounts and timers are saved before log files become segments, and at least this often: what came since
is in the log, ..."""
SAVE_BY_BROKER_EACH_S = 60.0
"""... or at the broker, from where whoever takes a shard over has to fetch it."""
GIVE_WAY_S = 0.2
"""The conversion of rows waits this long at a time while batches are taken in or steps handed out."""
MOST_UNPLACED = 500
"""Batches that wait for their place in the window until that is done although no step is due; 10 KB each."""
STEPS_AT_ONCE = 200
"""Steps between two looks at the queue of questions."""

T = TypeVar("T")


class Live:
    """The collector without its HTTP face."""

    def __init__(
        self,
        settings: CollectorSettings,
        store: Store,
        clock_ns: Callable[[], int] = time.time_ns,
        source: scheduler.Source | None = None,
        *,
        state: State | None = None,
        keeper: keeping.Keeper | None = None,
        pace_ns: Callable[[], int] | None = None,
        accounted: Accounted | None = None,
        part: str = "",
    ) -> None:
        """`source` None: the scheduler that the settings name; raises UnidleError where that cannot be.

        `state` keeps the incidents (None: the store's own), `keeper` the accounts (None: files beside the
        store). Where rows come by way of a broker, `pace_ns` says up to when they have come, and `accounted`
        which of them the accounts hold; otherwise that is now, and what the store's log holds. `part` tells
        the findings of this part of a site from those of its others.
        """
        self.settings = settings
        self.store = store
        self.clock_ns = clock_ns
        self.state = state or store.state
        self._keeper = keeper or keeping.InFiles(store.directory / "accounts", store.keep_state_ns)
        self._pace_ns = pace_ns or clock_ns
        self.engine = Engine(STEP_S, settings.site + part, settings.silence)
        budget_bytes = int(settings.window_mb * 2**20)
        self.window = Window(STEP_S, self.engine.inventory.capacity, budget_bytes)
        self.late = LateRows(self.engine, self.window)
        self.taking = Taking(settings, store, self.engine, self.window, clock_ns, self.state, accounted)
        # What is counted and known to be wrong, of batches and of time alike.
        self.nodes, self.events = self.taking.nodes, self.taking.events
        self.counters, self.problems = self.taking.counters, self.taking.problems
        asked = source or scheduler.source(settings)
        kept = settings.data_dir / "scheduler.json"
        self.attribution = Attribution(
            self.engine, self.nodes, asked, settings.scheduler_poll_s, kept, self.ask, clock_ns
        )
        self.taking.own = self.attribution.hear
        self.series, self.feed = open_series(settings, store), open_feed(settings, store)
        self.settled = Settled(self.engine.ledger, self.engine.inventory)
        self.past = PastHours(self._keeper, self.engine.ledger.codes)
        self.groupings: dict[str, tuple[Hashable, Grouping]] = {}
        """Dimension of the accounts -> what its groups rest on, and the groups."""
        self.tick_s = Timings()
        self._incidents = IncidentLog(self.state, self.taking, clock_ns, lambda: self._thread.is_alive())
        self.finding_delay_s = self._incidents.delay_s
        self.notes: list[str] = []
        """What the start has to say, for people."""
        self.started_ns = clock_ns()
        self._inbox = Inbox()
        self._thread = threading.Thread(target=self._run, name="collector", daemon=True)
        self._upkeep = threading.Thread(target=self._keep_up, name="store-upkeep", daemon=True)
        self._stop = threading.Event()
        self._resting = threading.Event()
        self._resting.set()
        """Is the owning thread waiting for work."""
        store.give_way = self._give_way
        self._saving = threading.Lock()
        """Held from a snapshot until it is written, so that an older one never takes the place of a newer."""
        self._saved_ns = 0
        """When accounts and timers were last saved."""
        self._by_broker = accounted is not None
        self._save_each_s = SAVE_BY_BROKER_EACH_S if self._by_broker else SAVE_EACH_S
        self._deferred = 0

    # -- from other threads ----------------------------------------------------------------------

    def start(self) -> None:
        """Take up what the last run left, and begin."""
        self.attribution.restore()
        self._restore()
        self._thread.start()
        self._upkeep.start()
        self.attribution.start()
        if self.feed is not None:
            self.feed.start()

    def stop(self) -> None:
        """Save and let go; what was acknowledged is on disk already."""
        self.attribution.stop()
        if self.feed is not None:
            self.feed.stop()
        self._stop.set()
        self._inbox.close()
        self._thread.join(timeout=30)
        self._upkeep.join(timeout=30)
        self.store.close()

    def push(self, data: bytes, received_ns: int, clock_ns: int | None) -> Future[Ack]:
        """Take the bytes of a batch; the future raises what a push can be refused with."""
        future: Future[Ack] = Future()
        self.submit(Push(data, received_ns, clock_ns, tell=lambda pushes: _settle(pushes, future)))
        return future

    def submit(self, push: Push) -> None:
        """Take a push, whose `tell` is called with its answer; raises BusyError when too many wait."""
        try:
            self._inbox.put(push)
        except BusyError:
            self.counters["pushes_busy"] += 1
            raise

    def ask(self, question: Callable[[], T]) -> Future[T]:
        """Run `question` in the thread that owns everything, between two steps."""
        return self._inbox.ask(question)

    # -- the owning thread -----------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            pushes = self._inbox.collect()
            self._resting.clear()
            with self._unbroken("collector"):
                if pushes:
                    self.taking.accept(pushes)
                self._advance(self._pace_ns())
            self._resting.set()
        self._save_at_end()
        self._inbox.answer_waiting()

    @contextlib.contextmanager
    def _unbroken(self, what: str) -> Iterator[None]:
        """What nobody expected is said and counted, and the thread goes on: it is the only one that can."""
        try:
            yield
        except Exception as error:
            text = f"unexpected {type(error).__name__}: {error}; the log says where"
            if self.problems.get(what) != text:  # a step that breaks may do so each second
                log.exception("%s: %s", what, text)
            self.problems[what] = text
            self.counters[f"{what}_broken"] += 1
        else:
            self.problems.pop(what, None)

    # -- time ------------------------------------------------------------------------------------

    def _advance(self, now_ns: int) -> None:
        """Hand out the steps that are due, answering questions now and then."""
        due = self.window.skip_hole(self.window.due(now_ns))
        if self.window.waiting >= (1 if due > 0 else MOST_UNPLACED):
            with self._unbroken("window"):
                self.window.place()
        inventory = self.engine.inventory
        while due > 0 and not self._stop.is_set():
            for _ in range(min(due, STEPS_AT_ONCE)):
                self.taking.own_due()
                step = self.window.next(inventory.capacity, inventory.a["node"], inventory.node_names)
                began_s = time.perf_counter()
                with self._unbroken("steps"):
                    self.late.before(step)
                    self._incidents.add(self.engine.step(step))
                self.tick_s.add(time.perf_counter() - began_s)
                self._incidents.keep()
                self.counters["steps"] += 1
            due -= STEPS_AT_ONCE
            self._inbox.answer_waiting()
        self._incidents.keep()
        self.taking.count_flaws()
        self.late.take(self.window.late)
        self.window.late.clear()
        self.late.work()
        self.counters["silences_filled"] = self.late.corrected

    def _give_way(self) -> None:
        """In the thread of the upkeep: let the owning thread work first."""
        self._resting.wait(GIVE_WAY_S)

    # -- keeping ---------------------------------------------------------------------------------

    def _save_at_end(self) -> None:
        while not self._saving.acquire(timeout=0.1):  # the upkeep saves, and may wait for an answer
            self._inbox.answer_waiting()
        with contextlib.suppress(UnidleError):  # it is in `problems`; the log still holds the rows
            self._write(self._snapshot())
        self._saving.release()

    def _snapshot(self) -> keeping.Snapshot | None:
        reached = self.window.time_ns
        self.settled.advance(reached)
        if reached is None:
            return None
        # Late rows that wait to be lived through would be neither in these accounts nor sent again.
        if self._by_broker and self.late.busy and self._deferred < MOST_DEFERRED:
            self._deferred += 1
            return None
        self._deferred = 0
        return self._keeper.snapshot(self.engine, reached)

    def _write(self, kept: keeping.Snapshot | None) -> None:
        if kept is None:
            return
        try:
            self._keeper.write(kept)
            self.problems.pop("accounts", None)
        except UnidleError as error:
            for hour, _ in kept.hours:
                self.ask(lambda hour=hour: self.engine.ledger.buckets.lost(hour))  # type: ignore[misc]
            self.problems["accounts"] = str(error)
            raise

    def _restore(self) -> None:
        """Accounts, timers, open findings and the rows still in the log, as the last run left them."""
        restored = self._keeper.restore(self.engine)
        if restored.note:
            self.notes.append(restored.note)
        for incident in self.state.open_incidents():
            self.engine.remember(incident.finding)
        if restored.reached_ns is not None:
            self.window.start_at(restored.reached_ns)
            self.window.resize(self.engine.inventory.capacity)
            for name in self.engine.inventory.node_names:
                self.window.expect(name, self._pace_ns())
            self.engine.inventory.a["heard_ns"][: len(self.engine.inventory)] = self.clock_ns()
        for received_ns, clock_ns, batch in self._keeper.past(self.store):
            self.taking.take([(batch, received_ns, clock_ns)])
            self._advance(received_ns)
        self.settled.begin(self.window.time_ns)

    def _upkeep_once(self) -> None:
        """Rows of a log that becomes a segment are not replayed: their accounts are saved first."""
        now_ns = self.clock_ns()
        self.store.roll(now_ns - ROLL_LATER_NS)
        closed = self.store.closed()
        if closed or now_ns - self._saved_ns >= self._save_each_s * 1e9:
            with self._saving:
                if self._stop.is_set():  # the owning thread saves what is newer
                    return
                self._write(self.ask(self._snapshot).result(timeout=10))
            self._saved_ns = now_ns
        self.store.upkeep(now_ns, closed)

    def _keep_up(self) -> None:
        while not self._stop.wait(UPKEEP_EACH_S):
            try:
                self._upkeep_once()
                self.problems.pop("upkeep", None)
            except (UnidleError, TimeoutError) as error:
                self.problems["upkeep"] = str(error) or "the collector is too busy to save its accounts"
            except Exception as error:  # a bug must not end the upkeep for good
                log.exception("unexpected error in the upkeep of the store")
                self.problems["upkeep"] = f"unexpected {type(error).__name__}: {error}; the log says where"


def _settle(pushes: list[Push], future: Future[Ack]) -> None:
    answer = pushes[0].answer
    if isinstance(answer, Ack):
        future.set_result(answer)
    else:
        future.set_exception(answer)
