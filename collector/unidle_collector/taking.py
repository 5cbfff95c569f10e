"""What a batch does: it is read, refused if seen before, logged, synced, put into the window, acknowledged.

Everything here runs in the thread that owns the window and the engine (`unidle_collector.live`), on
groups of pushes: a group shares one sync of the log, one pass over the window and one wake-up of whoever
waits for the answers.
"""

from __future__ import annotations

import heapq
import logging
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from zlib_ng import zlib_ng

from unidle_agent.errors import UnidleError, WireError
from unidle_agent.wire import NODE, Batch, Event, GpuFacts, Owner, decode
from unidle_agent.wire_flight import whole
from unidle_collector.arrivals import Arrival
from unidle_collector.engine import Engine
from unidle_collector.flights import FlightBook
from unidle_collector.model import GpuRef
from unidle_collector.pergpu import SECOND_NS
from unidle_collector.settings import CollectorSettings
from unidle_collector.signals import REBOOTED, Happened
from unidle_collector.store import State, Store, StoreFull
from unidle_collector.window import FUTURE_NS, Window

log = logging.getLogger("unidle.collector")

LOOKS_AGAIN_WITHIN_S = 2.0
"""An agent whose rows are at most this far apart tells several answers about a bad link within seconds."""
SETTLES_S = 60.0
"""After a boot of the node or a restart of its agent its links may still come up one after the other."""
EVENTS_KEPT = 1000
"""Events of GPUs (XIDs and the like) that are held in memory."""

REACHED_KEPT = 8
"""Batches of a node whose arrival is remembered, to tell how late a finding was."""


class BusyError(UnidleError):
    """Too much waits to be taken in; the node should come again."""

    retry_after_s = 1


class BrokenError(UnidleError):
    """A batch by which unidle itself broke; it stays with who has it, and may be sent again."""


class ForbiddenError(UnidleError):
    """Who pushes may not write the rows of this node."""


@dataclass(frozen=True, slots=True)
class Ack:
    """The reply to a push."""

    ack: int
    send_facts: bool
    duplicate: bool = False
    flights: tuple[tuple[str, str], ...] = ()
    """(GPU, request id) of each window of the node's flight recorder that is asked for."""


@dataclass(slots=True, eq=False)
class Push:
    """One batch on its way in, and its answer on the way out."""

    data: bytes
    received_ns: int
    clock_ns: int | None
    """The node's clock when it sent; None where it did not say."""
    tell: Callable[[list[Push]], None]
    """Called once per group, in the owning thread, with those of its pushes that have their answer."""
    writes_for: Collection[str] | None = None
    """The nodes whose rows the sender may write; None: any."""
    hurried: bool = False
    """The sender has more to send and waits for the answer; or this is one of a group already."""
    batch: Batch | None = None
    """What `data` decodes to, once it was read."""
    answer: Ack | UnidleError | None = None
    """The error is a WireError, ForbiddenError, BusyError, BrokenError or StoreFull."""


class Accounted(Protocol):
    """Which batches the accounts hold, where that is not what the store's log holds."""

    def seen(self, node: str, boot: str, seq: int) -> bool: ...
    def remember(self, batches: Iterable[tuple[str, str, int]]) -> None: ...


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
    began_ns: int = 0
    """When the first push of this boot was received."""
    simulated: bool = False
    gpus: tuple[str, ...] = ()
    """Those of the last batch, in its order; `positions` are theirs in the inventory."""
    positions: NDArray[np.intp] = field(default_factory=lambda: np.zeros(0, dtype=np.intp))
    reached: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=REACHED_KEPT))
    """(Time of the last row, time of receipt) of the last batches, corrected for the node's clock."""
    looks_again: bool = False
    """Does the agent ask again at once where an answer turned bad."""
    owners_due: bool = False
    """Facts or GPUs changed since the owners were looked at."""


class Taking:
    """Takes groups of pushes in; remembers what each node said of itself."""

    def __init__(
        self,
        settings: CollectorSettings,
        store: Store,
        engine: Engine,
        window: Window,
        clock_ns: Callable[[], int],
        state: State | None = None,
        accounted: Accounted | None = None,
    ) -> None:
        self.nodes: dict[str, NodeBook] = {}
        self.counters: Counter[str] = Counter()
        self.events: deque[tuple[str, Event]] = deque(maxlen=EVENTS_KEPT)
        """(Node, event), by arrival."""
        self.problems: dict[str, str] = {}
        self.flights = FlightBook(state or store.state, clock_ns, self.counters)
        self._settings = settings
        self._store = store
        self._accounted = accounted or store.state
        self._engine = engine
        self._window = window
        self.own: Callable[[int, Owner], object] = engine.own
        """Told from the next step on who holds the GPU at a position."""
        self._owners_due: list[tuple[int, int, int, Owner]] = []
        """Heap of (step, order of arrival, GPU, owner)."""
        self._owner_noted: dict[int, Owner] = {}
        self._noted = 0

    def accept(self, pushes: Sequence[Push]) -> None:
        """Decode, log and sync a group, then put it into the window and give each its answer.

        Where a batch breaks something that no batch should, the others of its group are taken without it.
        """
        try:
            self._accept(pushes)
            self.problems.pop("push", None)
        except Exception:
            log.exception("a group of %d pushes could not be taken: each is tried alone", len(pushes))
            for push in pushes:
                if push.answer is None:
                    self._accept_alone(push)
        _tell(pushes)

    def _accept_alone(self, push: Push) -> None:
        try:
            self._accept([push])
        except Exception as error:
            log.exception("a push of %d bytes could not be taken", len(push.data))
            self.counters["pushes_broken"] += 1
            text = (
                f"a batch could not be taken: unexpected {type(error).__name__}: {error}; the log says where"
            )
            self.problems["push"] = text
            push.answer = BrokenError(text)

    def _accept(self, pushes: Sequence[Push]) -> None:
        taken: list[tuple[Push, Batch]] = []
        again: list[tuple[Push, Batch]] = []
        # `again`: a second copy within the group is as good as the first, which is known after the sync.
        group: set[tuple[str, str, int]] = set()
        for push in pushes:
            batch = self._read(push)
            if batch is None:
                continue
            key = (batch.node, batch.boot, batch.seq)
            if self._accounted.seen(*key):
                self._duplicate(push, batch)
            elif key in group:
                again.append((push, batch))
            elif self._has_room(push, batch):
                group.add(key)
                try:
                    # A broker sends again what this log has already.
                    if self._accounted is self._store.state or not self._store.state.seen(*key):
                        self._store.append(push.data, push.received_ns, push.clock_ns, batch)
                    taken.append((push, batch))
                except StoreFull as error:
                    self._full(push, error)
        if taken:
            self._commit(taken, again)

    def _commit(self, taken: list[tuple[Push, Batch]], again: list[tuple[Push, Batch]]) -> None:
        try:
            self._store.sync()
        except StoreFull as error:
            for push, _ in taken + again:
                self._full(push, error)
            return
        self.problems.pop("store", None)
        keys = [(batch.node, batch.boot, batch.seq) for _, batch in taken]
        self._store.state.remember(keys)
        if self._accounted is not self._store.state:
            self._accounted.remember(keys)
        for push, batch in again:
            self._duplicate(push, batch)
        self.take((batch, push.received_ns, push.clock_ns) for push, batch in taken)
        for push, batch in taken:
            wanted = batch.facts is None and batch.facts_id != self.nodes[batch.node].facts_id
            push.answer = Ack(batch.seq, wanted, flights=self.flights.wanted(batch.node))

    def take(self, batches: Iterable[tuple[Batch, int, int | None]]) -> None:
        """Put (batch, time of receipt, the node's clock then) into the window: those are durable and new."""
        arrivals = []
        facts_then = []
        # A node's facts may change within the group: each batch goes with those of its own time.
        for batch, received_ns, clock_ns in batches:
            arrivals.append(self._arrive(batch, received_ns, clock_ns))
            node = self.nodes[batch.node]
            facts_then.append(node.facts if node.owners_due else None)
        self._note_arrivals(arrivals)
        for arrival, facts, taken in zip(arrivals, facts_then, self._window.take_all(arrivals), strict=True):
            node = self.nodes[arrival.batch.node]
            if facts is not None and taken.late < taken.rows:
                self._note_owners(arrival, facts)
                node.owners_due = node.facts is not facts
            node.rows += taken.rows
            node.late_rows += taken.late
            self.counters["rows_ingested"] += taken.rows
            self.counters["rows_late"] += taken.late
            self.counters["rows_future"] += taken.future
        self.flights.keep()

    def count_flaws(self) -> None:
        """Take over what was not right with the rows that the window has placed."""
        for flaws in self._window.flaws:
            self.nodes[flaws.node].counter_resets += flaws.counter_resets
            self.counters["counter_resets"] += flaws.counter_resets
            self.counters["values_refused"] += flaws.values_refused
        self._window.flaws.clear()

    def own_due(self) -> None:
        """Tell the engine whose GPU is whose from the next step on."""
        while self._owners_due and self._owners_due[0][0] <= self._window.next_step:
            _, _, position, owner = heapq.heappop(self._owners_due)
            self.own(position, owner)

    def arrived_ns(self, node: str, time_ns: int) -> int | None:
        """When the batch of a node came that reaches up to an instant; None when that is not known."""
        book = self.nodes.get(node)
        for last_ns, received_ns in book.reached if book else ():
            if last_ns + SECOND_NS // 2 >= time_ns:  # a row counts to the nearest second
                return received_ns
        return None

    def _read(self, push: Push) -> Batch | None:
        """The batch of a push; None where it was refused."""
        try:
            batch = decode(push.data, zlib_ng)  # type: ignore[arg-type]  # its types call `error` an instance
        except WireError as error:
            self.counters["batches_malformed"] += 1
            push.answer = error
            return None
        if push.writes_for is not None and batch.node not in push.writes_for:
            self.counters["batches_forbidden"] += 1
            push.answer = ForbiddenError(
                f"expected rows of {', '.join(sorted(push.writes_for))}, whose token or certificate this is, "
                f"came rows of {batch.node}: nothing is stored; give each node its own"
            )
            return None
        push.batch = batch
        return batch

    def _has_room(self, push: Push, batch: Batch) -> bool:
        skew_ns = self.shift_ns(push)
        if self._window.has_room(batch, push.received_ns, skew_ns):
            return True
        self.counters["pushes_busy"] += 1
        push.answer = BusyError("event time has to advance first")
        return False

    def shift_ns(self, push: Push) -> int:
        """By how much the times of its rows are corrected."""
        return 0 if push.clock_ns is None else self._shift(push.received_ns - push.clock_ns)

    def _shift(self, skew_ns: int) -> int:
        return skew_ns if abs(skew_ns) > self._settings.clock_skew_s * SECOND_NS else 0

    def _duplicate(self, push: Push, batch: Batch) -> None:
        self.counters["batches_duplicate"] += 1
        self.nodes.setdefault(batch.node, NodeBook()).duplicates += 1
        push.answer = Ack(batch.seq, False, duplicate=True)

    def _full(self, push: Push, error: StoreFull) -> None:
        self.counters["pushes_store_full"] += 1
        self.problems["store"] = str(error)
        push.answer = error

    def _arrive(self, batch: Batch, received_ns: int, clock_ns: int | None) -> Arrival:
        """What the window needs of a batch; the book of its node is brought up to date."""
        node = self.nodes.get(batch.node)
        if node is None:
            node = self.nodes[batch.node] = NodeBook()
        shift_ns = self._skew(batch.node, node, received_ns, clock_ns)
        rebooted = bool(node.boot) and machine_boot(node.boot) != machine_boot(batch.boot)
        if node.boot != batch.boot:
            node.boot, node.facts_id, node.began_ns = batch.boot, -1, received_ns
        node.simulated = batch.simulated
        node.last_push_ns = received_ns
        if batch.times_ns:
            node.reached.append((batch.times_ns[-1] + shift_ns, received_ns))
        if batch.facts is not None:
            node.facts = {facts.uuid: facts for facts in batch.facts}
            node.facts_id = batch.facts_id
        if batch.facts is not None or batch.gpus != node.gpus:
            node.gpus = batch.gpus
            node.positions = np.array(
                [self._position(batch, node, uuid) for uuid in batch.gpus], dtype=np.intp
            )
            node.owners_due = True
        if batch.flights:
            self.flights.take(batch, shift_ns)
        node.looks_again = (
            clock_ns is not None
            and batch.period_s <= LOOKS_AGAIN_WITHIN_S
            and received_ns - node.began_ns >= SETTLES_S * SECOND_NS
        )
        if rebooted and batch.times_ns:
            for position in node.positions.tolist():
                self._window.events.take(Happened(position, batch.times_ns[0] + shift_ns, REBOOTED))
        if batch.events:
            self._happened(batch, shift_ns)
        return Arrival(batch, node.positions, received_ns, shift_ns)

    def _note_arrivals(self, arrivals: Sequence[Arrival]) -> None:
        """What the detectors know of each GPU's agent, all at once."""
        if not arrivals:
            return
        nodes = [self.nodes[arrival.batch.node] for arrival in arrivals]
        widths = [len(arrival.positions) for arrival in arrivals]
        gpus = np.concatenate([arrival.positions for arrival in arrivals])
        about = self._engine.inventory.a
        about["heard_ns"][gpus] = np.repeat([arrival.received_ns for arrival in arrivals], widths)
        about["period_s"][gpus] = np.repeat([arrival.batch.period_s for arrival in arrivals], widths)
        about["asks_again"][gpus] = np.repeat([node.looks_again for node in nodes], widths)
        ahead_s = [np.nan if node.clock_skew_s is None else -node.clock_skew_s for node in nodes]
        about["clock_ahead_s"][gpus] = np.repeat(ahead_s, widths)

    def _happened(self, batch: Batch, shift_ns: int) -> None:
        """Events go to the step of their time; those of a GPU that nobody knows are only counted."""
        self.events.extend((batch.node, event) for event in batch.events)
        self.counters["events_received"] += len(batch.events)
        node = self.nodes[batch.node]
        for event in batch.events:
            time_ns = min(event.time_ns + shift_ns, node.last_push_ns + FUTURE_NS)
            for position, uuid in zip(node.positions.tolist(), node.gpus, strict=True):
                # A node's event is one of all its GPUs, a GPU's one of its instances.
                if event.gpu in (NODE, whole(uuid), uuid):
                    happened = Happened(position, time_ns, event.kind, event.code, event.text, event.part)
                    self._window.events.take(happened)

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
        known = self._engine.inventory.find(batch.node, uuid)
        told = (
            uuid in node.facts
        )  # of a GPU from before a restart more is known than a batch without facts says
        if known is None or (told and self._engine.inventory.refs[known] != ref):
            known = self._engine.add(ref, facts.share, batch.simulated)
            self._window.resize(self._engine.inventory.capacity)
        return known

    def _note_owners(self, arrival: Arrival, facts_of: Mapping[str, GpuFacts]) -> None:
        """Owners hold from the batch's first instant on, which lies ahead of the steps handed out so far."""
        first = self._window.step_at(arrival.batch.times_ns[0] + arrival.shift_ns)
        for position, uuid in zip(arrival.positions.tolist(), arrival.batch.gpus, strict=True):
            facts = facts_of.get(uuid)
            if facts is not None and self._owner_noted.get(position) != facts.owner:
                self._owner_noted[position] = facts.owner
                self._noted += 1
                heapq.heappush(self._owners_due, (first, self._noted, position, facts.owner))


def machine_boot(boot: str) -> str:
    """The machine's part of a batch's boot id, whose other part is that of the agent's spool."""
    return boot.partition(".")[0]


def _tell(pushes: Iterable[Push]) -> None:
    """Wake everybody who waits for an answer, once each."""
    groups: dict[Callable[[list[Push]], None], list[Push]] = {}
    for push in pushes:
        groups.setdefault(push.tell, []).append(push)
    for tell, answered in groups.items():
        tell(answered)
