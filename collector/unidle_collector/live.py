"""The live collector: one thread owns the window, the engine and the store; everybody else asks it.

Flow of a batch: decode, refuse what is seen already, log, sync, put into the window, acknowledge.
Flow of time: steps that every pushing node has reached go through the engine; what changes becomes
incidents; accounts are saved three times a minute together with the event time that they reach.
"""

from __future__ import annotations

import heapq
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from unidle_agent.errors import UnidleError, WireError
from unidle_agent.wire import Batch, Event, GpuFacts, Owner, decode
from unidle_collector.engine import Engine
from unidle_collector.findings import Change
from unidle_collector.keeping import restore_accounts, save_accounts
from unidle_collector.model import GpuRef, Incident
from unidle_collector.pergpu import SECOND_NS
from unidle_collector.recommend import recommend
from unidle_collector.settings import CollectorSettings
from unidle_collector.store import Store, StoreFull
from unidle_collector.window import Window

STEP_S = 1.0
MOST_WAITING = 512
"""Batches that may wait; beyond that a push is answered 503."""
GROUP = 64
"""Batches that share one sync of the log."""
UPKEEP_EACH_S = 20.0
STEPS_AT_ONCE = 200
"""Steps between two looks at the queue of questions."""

EVENTS_KEPT = 1000
"""Events of GPUs (XIDs and the like) that are held in memory."""

T = TypeVar("T")


class BusyError(UnidleError):
    """Too much waits to be taken in; the node should come again."""

    retry_after_s = 1


@dataclass(slots=True)
class NodeBook:
    """What was received from one node."""

    last_push_ns: int = 0
    clock_skew_s: float | None = None
    rows: int = 0
    duplicates: int = 0
    late_rows: int = 0
    counter_resets: int = 0
    facts: dict[str, GpuFacts] = field(default_factory=dict)
    facts_id: int = -1
    boot: str = ""
    simulated: bool = False


@dataclass(frozen=True, slots=True)
class Ack:
    """The reply to a push."""

    ack: int
    send_facts: bool
    duplicate: bool = False


@dataclass(slots=True)
class _Push:
    data: bytes
    received_ns: int
    clock_ns: int | None
    future: Future[Ack]


@dataclass(slots=True)
class _Question:
    ask: Callable[[], Any]
    future: Future[Any]


class Live:
    """The collector without its HTTP face."""

    def __init__(
        self, settings: CollectorSettings, store: Store, clock_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self.settings = settings
        self.store = store
        self.clock_ns = clock_ns
        self.engine = Engine(STEP_S, settings.site, settings.silence)
        self.window = Window(STEP_S, self.engine.inventory.capacity)
        self.nodes: dict[str, NodeBook] = {}
        self.counters: Counter[str] = Counter()
        self.events: deque[tuple[str, Event]] = deque(maxlen=EVENTS_KEPT)
        """(Node, event), by arrival."""
        self.started_ns = clock_ns()
        self.problems: dict[str, str] = {}
        self._queue: queue.Queue[_Push | _Question | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="collector", daemon=True)
        self._upkeep = threading.Thread(target=self._keep_up, name="store-upkeep", daemon=True)
        self._stop = threading.Event()
        self._unkept: deque[Change] = deque()
        """Changes that the state database has not taken yet, in order."""
        self._owners_due: list[tuple[int, int, int, Owner]] = []
        """Heap of (step, order of arrival, GPU, owner)."""
        self._owner_noted: dict[int, Owner] = {}
        self._noted = 0

    # -- from other threads ----------------------------------------------------------------------

    def start(self) -> None:
        """Take up what the last run left, and begin."""
        self._restore()
        self._thread.start()
        self._upkeep.start()

    def stop(self) -> None:
        """Save and let go; what was acknowledged is on disk already."""
        self._stop.set()
        self._queue.put(None)
        self._thread.join(timeout=30)
        self._upkeep.join(timeout=30)
        self.store.close()

    def push(self, data: bytes, received_ns: int, clock_ns: int | None) -> Future[Ack]:
        """Take the bytes of a batch; the future raises WireError, StoreFull or BusyError."""
        if self._queue.qsize() >= MOST_WAITING:
            self.counters["pushes_busy"] += 1
            raise BusyError(f"{MOST_WAITING} batches wait already")
        future: Future[Ack] = Future()
        self._queue.put(_Push(data, received_ns, clock_ns, future))
        return future

    def ask(self, question: Callable[[], T]) -> Future[T]:
        """Run `question` in the thread that owns everything, between two steps."""
        future: Future[T] = Future()
        self._queue.put(_Question(question, future))
        return future

    # -- the owning thread -----------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            pushes = self._collect()
            if pushes:
                self._accept(pushes)
            self._advance(self.clock_ns())
        self._save()
        self._answer_waiting()

    def _collect(self) -> list[_Push]:
        """What waits: questions are answered at once, pushes come back as a group."""
        pushes: list[_Push] = []
        wait_s = 0.2
        while len(pushes) < GROUP:
            try:
                item = self._queue.get(timeout=wait_s)
            except queue.Empty:
                break
            wait_s = 0.002
            if item is None:
                break
            if isinstance(item, _Push):
                pushes.append(item)
            else:
                _answer(item)
        return pushes

    def _accept(self, pushes: list[_Push]) -> None:
        """Decode, log and sync a group, then put it into the window and acknowledge."""
        taken: list[tuple[_Push, Batch]] = []
        again: list[tuple[_Push, Batch]] = []
        # `again`: a second copy within the group is as good as the first, which is known after the sync.
        group: set[tuple[str, str, int]] = set()
        for push in pushes:
            try:
                batch = decode(push.data)
            except WireError as error:
                self.counters["batches_malformed"] += 1
                push.future.set_exception(error)
                continue
            key = (batch.node, batch.boot, batch.seq)
            if self.store.state.seen(*key):
                self._duplicate(push, batch)
                continue
            if key in group:
                again.append((push, batch))
                continue
            if not self._has_room(push, batch):
                continue
            group.add(key)
            try:
                self.store.append(push.data, push.received_ns)
                taken.append((push, batch))
            except StoreFull as error:
                self._full(push, error)
        try:
            self.store.sync()
        except StoreFull as error:
            for push, _ in taken + again:
                self._full(push, error)
            return
        if taken:
            self.problems.pop("store", None)
        self.store.state.remember((batch.node, batch.boot, batch.seq) for _, batch in taken)
        for push, batch in again:
            self._duplicate(push, batch)
        for push, batch in taken:
            self._take(batch, push.received_ns, push.clock_ns)
            wanted = batch.facts is None and batch.facts_id != self.nodes[batch.node].facts_id
            push.future.set_result(Ack(batch.seq, wanted))

    def _has_room(self, push: _Push, batch: Batch) -> bool:
        skew_ns = 0 if push.clock_ns is None else self._shift(push.received_ns - push.clock_ns)
        if self.window.has_room(batch, push.received_ns, skew_ns):
            return True
        self.counters["pushes_busy"] += 1
        push.future.set_exception(BusyError("event time has to advance first"))
        return False

    def _shift(self, skew_ns: int) -> int:
        return skew_ns if abs(skew_ns) > self.settings.clock_skew_s * SECOND_NS else 0

    def _duplicate(self, push: _Push, batch: Batch) -> None:
        self.counters["batches_duplicate"] += 1
        self.nodes.setdefault(batch.node, NodeBook()).duplicates += 1
        push.future.set_result(Ack(batch.seq, False, duplicate=True))

    def _full(self, push: _Push, error: StoreFull) -> None:
        self.counters["pushes_store_full"] += 1
        self.problems["store"] = str(error)
        push.future.set_exception(error)

    def _take(self, batch: Batch, received_ns: int, clock_ns: int | None) -> None:
        node = self.nodes.setdefault(batch.node, NodeBook())
        skew_ns = self._skew(batch.node, node, received_ns, clock_ns)
        if node.boot != batch.boot:
            node.boot, node.facts_id = batch.boot, -1
        if batch.facts is not None:
            node.facts = {facts.uuid: facts for facts in batch.facts}
            node.facts_id = batch.facts_id
        node.simulated = batch.simulated
        positions = np.array([self._position(batch, node, uuid) for uuid in batch.gpus], dtype=np.intp)
        taken = self.window.take(batch, positions, received_ns, skew_ns)
        if taken.late < taken.rows:
            self._note_owners(batch, node, positions, skew_ns)
        node.last_push_ns = received_ns
        node.rows += taken.rows
        node.late_rows += taken.late
        node.counter_resets += taken.counter_resets
        self.events.extend((batch.node, event) for event in batch.events)
        self.counters["events_received"] += len(batch.events)
        self.counters["rows_ingested"] += taken.rows
        self.counters["rows_late"] += taken.late
        self.counters["rows_future"] += taken.future
        self.counters["counter_resets"] += taken.counter_resets
        self.counters["values_refused"] += taken.values_refused

    def _skew(self, name: str, node: NodeBook, received_ns: int, clock_ns: int | None) -> int:
        """How far the node's clock is behind ours, where that is worth a correction."""
        if clock_ns is None:
            return 0
        skew_ns = received_ns - clock_ns
        node.clock_skew_s = skew_ns / SECOND_NS
        problem = f"clock:{name}"
        if not self._shift(skew_ns):
            self.problems.pop(problem, None)
            return 0
        self.counters["batches_clock_corrected"] += 1
        self.problems[problem] = (
            f"the clock of node {name} is {abs(node.clock_skew_s):.0f} s "
            f"{'behind' if skew_ns > 0 else 'ahead'}: its rows are shifted; run an NTP client there"
        )
        return skew_ns

    def _position(self, batch: Batch, node: NodeBook, uuid: str) -> int:
        facts = node.facts.get(uuid) or GpuFacts(uuid)
        ref = GpuRef(batch.node, uuid, facts.index, facts.model)
        known = self.engine.inventory.find(batch.node, uuid)
        if known is None or self.engine.inventory.refs[known] != ref:
            known = self.engine.add(ref, facts.share, batch.simulated)
            self.window.resize(self.engine.inventory.capacity)
        return known

    def _note_owners(self, batch: Batch, node: NodeBook, positions: NDArray[np.intp], shift_ns: int) -> None:
        """Owners hold from the batch's first instant on, which lies ahead of the steps handed out so far."""
        if not len(batch.times_ns):
            return
        first = self.window.step_at(batch.times_ns[0] + shift_ns)
        for position, uuid in zip(positions, batch.gpus, strict=True):
            facts = node.facts.get(uuid)
            if facts is not None and self._owner_noted.get(int(position)) != facts.owner:
                self._owner_noted[int(position)] = facts.owner
                self._noted += 1
                heapq.heappush(self._owners_due, (first, self._noted, int(position), facts.owner))

    def _own_due(self) -> None:
        """Tell the engine whose GPU is whose from the next step on."""
        while self._owners_due and self._owners_due[0][0] <= self.window.next_step:
            _, _, position, owner = heapq.heappop(self._owners_due)
            self.engine.own(position, owner)

    # -- time ------------------------------------------------------------------------------------

    def _advance(self, now_ns: int) -> None:
        """Hand out the steps that are due, answering questions now and then."""
        due = self.window.skip_hole(self.window.due(now_ns))
        inventory = self.engine.inventory
        while due > 0 and not self._stop.is_set():
            for _ in range(min(due, STEPS_AT_ONCE)):
                self._own_due()
                step = self.window.next(inventory.capacity, inventory.a["node"], inventory.node_names)
                self._unkept += self.engine.step(step)
                self._keep()
                self.counters["steps"] += 1
            due -= STEPS_AT_ONCE
            self._answer_waiting()

    def _answer_waiting(self) -> None:
        """Questions do not wait for a long catch-up; pushes do, which is the back-pressure."""
        waiting: list[_Push | _Question | None] = []
        while not self._queue.empty():
            waiting.append(self._queue.get_nowait())
        for item in waiting:
            if isinstance(item, _Question):
                _answer(item)
            else:
                self._queue.put(item)

    def _keep(self) -> None:
        """A finding that was told, changed or ended becomes an event of its incident; none is left out."""
        try:
            while self._unkept:
                self._keep_one(self._unkept[0])
                change = self._unkept.popleft()
                self.counters[f"findings_{change.what}"] += 1
                self.problems.pop("state", None)
        except UnidleError as error:
            self.problems["state"] = str(error)

    def _keep_one(self, change: Change) -> None:
        finding, now = change.finding, change.finding.updated_ns
        before = self.store.state.incident(finding.id)
        over = change.what == "ended"
        incident = Incident(
            id=finding.id,
            state="resolved" if over else "open",
            revision=before.revision + 1 if before else 1,
            opened_ns=before.opened_ns if before else now,
            resolved_ns=now if over else None,
            finding=finding,
            recommendations=() if over else tuple(recommend([finding], now)),
        )
        self.store.state.save_incident(incident, now)

    # -- keeping ---------------------------------------------------------------------------------

    def _save(self) -> None:
        reached = self.window.time_ns
        if reached is None:
            return
        try:
            save_accounts(self.engine, self.store.state, reached)
        except UnidleError as error:
            self.problems["state"] = str(error)

    def _restore(self) -> None:
        """Open findings, accounts and the rows still in the log, as the last run left them."""
        for incident in self.store.state.open_incidents():
            self.engine.remember(incident.finding)
        reached = restore_accounts(self.engine, self.store.state)
        if reached is not None:
            self.window.start_at(reached)
            self.window.resize(self.engine.inventory.capacity)
            for name in self.engine.inventory.node_names:
                self.window.expect(name, self.clock_ns())
        for received_ns, batch in self.store.replay():
            self._take(batch, received_ns, None)
            self._advance(received_ns)

    def _keep_up(self) -> None:
        while not self._stop.wait(UPKEEP_EACH_S):
            try:
                # Rows of a log that becomes a segment are not replayed: their accounts are saved first.
                self.ask(self._save).result(timeout=10)
                self.store.upkeep(self.clock_ns())
                self.problems.pop("upkeep", None)
            except (UnidleError, TimeoutError) as error:
                self.problems["upkeep"] = str(error) or "the collector is too busy to save its accounts"


def _answer(question: _Question) -> None:
    if not question.future.set_running_or_notify_cancel():
        return
    try:
        question.future.set_result(question.ask())
    except Exception as error:  # handed to who asked
        question.future.set_exception(error)
