"""Late rows correct the accounts, and open nothing.

When a node falls silent, what the engine remembers of its GPUs is put aside; its time is booked as
unknown. When the rows of that time come after all, and no more of them for a moment, the node's GPUs live
through the time since then once more, in a small engine of their own that tells nobody anything: with the
late rows, and with those that came on time since. Then its bookings and its memory take the place of what
the fleet's engine has for these GPUs. So rows give the same accounts in whatever order they arrive.

What this cannot do: a GPU is compared with its siblings on its own node only, and a job that changed
within the silence leaves it unknown. Rows of a silence that began longer ago than LONGEST_S are counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from unidle_collector.accounts.ledger import REWRITE_S
from unidle_collector.arrivals import Arrival
from unidle_collector.engine import Engine
from unidle_collector.layout import clocks, copied, put, set_clocks
from unidle_collector.pergpu import SECOND_NS, Array, Floats, PerGpu
from unidle_collector.signals import Step
from unidle_collector.window import AHEAD_STEPS, Window

LONGEST_S = REWRITE_S - 60
"""As long as the ledger can say what it booked."""
QUIET_NS = 15 * SECOND_NS
"""No more late rows for this long (event time): then they are looked at."""
MOST_SEEDS = 2048
"""Silences that are remembered at once; one takes about 80 kB for 8 GPUs."""
MOST_ARRIVALS = 10_000
"""Late batches that are held at once, about 10 kB each; more are stored and counted only."""
STEPS_AT_ONCE = 25
"""Lived through again between two looks at the queue: about 25 ms."""

Places = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class _Seed:
    """What was remembered of a node's GPUs just before it fell silent."""

    step: int
    """The last one before the silence."""
    gpus: Places
    tenures: NDArray[np.int32]
    memory: dict[str, Array]
    clocks: dict[str, dict[str, int]]


@dataclass(slots=True)
class _Node:
    """Silences and late rows of one node, the oldest first."""

    seeds: list[_Seed] = field(default_factory=list)
    arrivals: list[Arrival] = field(default_factory=list)
    changed_ns: int | None = None
    """Event time of the newest late arrival that was not looked at; None when there is none."""


class LateRows:
    """Puts aside, waits, and lives through again."""

    def __init__(self, engine: Engine, window: Window) -> None:
        self._engine = engine
        self._window = window
        self._nodes: dict[str, _Node] = {}
        self._lane: _Lane | None = None
        self.corrected = 0
        """Silences that were filled in, in whole or in part."""

    @property
    def busy(self) -> bool:
        """Do late rows wait to be looked at, or are some being lived through."""
        return self._lane is not None or any(node.changed_ns is not None for node in self._nodes.values())

    def before(self, step: Step) -> None:
        """Put aside what is remembered of nodes that fall silent at `step`, which the engine has not seen."""
        last = self._engine.last
        if last is None:
            return
        both = min(last.sampled.size, step.sampled.size)
        fell = np.flatnonzero(last.sampled[:both] & ~step.sampled[:both])
        if not fell.size:
            return
        inventory, memory = self._engine.inventory, _memory(self._engine)
        numbers = inventory.a["node"][fell]
        number = self._window.next_step - 2  # `step` has been handed out already
        for node in np.unique(numbers):
            gpus = fell[numbers == node]
            seeds = self._nodes.setdefault(inventory.refs[int(gpus[0])].node, _Node()).seeds
            if sum(len(one.seeds) for one in self._nodes.values()) < MOST_SEEDS:
                tenures = inventory.a["tenure"][gpus].copy()
                seeds.append(_Seed(number, gpus, tenures, copied(memory, gpus), clocks(memory)))

    def take(self, arrivals: Sequence[Arrival]) -> None:
        """Rows of which some came too late."""
        now_ns = self._window.time_ns or 0
        for arrival in arrivals:
            node = self._nodes.get(arrival.batch.node)
            held = sum(len(one.arrivals) for one in self._nodes.values())
            if node is not None and node.seeds and held < MOST_ARRIVALS:
                node.arrivals.append(arrival)
                node.changed_ns = now_ns

    def work(self) -> None:
        """Do a little of what there is to do; for the thread that owns the engine, between two steps."""
        now_ns = self._window.time_ns
        if now_ns is None:
            return
        if self._lane is None:
            self._forget(now_ns)
            due = (n for n in self._nodes.values() if n.changed_ns is not None)
            node = next((n for n in due if now_ns - (n.changed_ns or 0) >= QUIET_NS), None)
            if node is None:
                return
            self._lane = self._begin(node)
        if self._lane is None:
            return
        if not self._lane.look():
            self._lane.node.changed_ns = now_ns
            self._lane = None
        elif self._lane.go_on(STEPS_AT_ONCE):
            self._lane.apply()
            self.corrected += 1
            self._close(self._lane)
            self._lane = None

    def _close(self, lane: _Lane) -> None:
        """What the window does not hold any more cannot be lived through a second time."""
        node = lane.node
        node.seeds = [lane.seeds.get(seed.step, seed) for seed in node.seeds]
        if lane.seed.step + 1 < self._window.oldest_step:
            node.seeds = [seed for seed in node.seeds if seed.step > lane.seed.step]
            del node.arrivals[: lane.arrivals]  # those that came meanwhile are for the next time

    def _begin(self, node: _Node) -> _Lane | None:
        """From the earliest silence since which every row is at hand, else the one before the late rows."""
        node.changed_ns = None
        first = min(self._window.step_at(a.batch.times_ns[0] + a.shift_ns) for a in node.arrivals)
        tenures = self._engine.inventory.a["tenure"]
        usable = [seed for seed in node.seeds if (tenures[seed.gpus] == seed.tenures).all()]
        at_hand = [seed for seed in usable if seed.step + 1 >= self._window.oldest_step]
        before = [seed for seed in usable if seed.step < first and self._nothing_known_since(seed)]
        seed = at_hand[0] if at_hand else before[-1] if before else None
        if seed is None:
            node.arrivals.clear()
            return None
        return _Lane(self._engine, self._window, seed, node)

    def _nothing_known_since(self, seed: _Seed) -> bool:
        """Until where the window begins: rows of then that came on time are gone."""
        period_ns = round(self._engine.period_s * SECOND_NS)
        first, last = (seed.step + 1) * period_ns, (self._window.oldest_step - 1) * period_ns
        return self._engine.ledger.all_unknown(seed.gpus, first, last)

    def _forget(self, now_ns: int) -> None:
        """Silences that are too long ago, and rows that no silence is left for."""
        oldest = self._window.step_at(now_ns - int(LONGEST_S * SECOND_NS))
        for name, node in list(self._nodes.items()):
            node.seeds = [seed for seed in node.seeds if seed.step >= oldest]
            if not node.seeds:
                del self._nodes[name]


class _Lane:
    """The GPUs of one node, once more from a silence on."""

    def __init__(self, engine: Engine, window: Window, seed: _Seed, node: _Node) -> None:
        self._main, self._main_window, self.seed, self.node = engine, window, seed, node
        self.arrivals = len(node.arrivals)
        """Of the node's, how many it lives through."""
        self.seeds: dict[int, _Seed] = {}
        """Step -> what is remembered of a later silence, now that the late rows are known."""
        self._engine = Engine(engine.period_s, keep_accounts_ns=None)
        inventory = engine.inventory
        for gpu in seed.gpus.tolist():
            place = self._engine.add(
                inventory.refs[gpu], float(inventory.a["share"][gpu]), inventory.simulated[gpu]
            )
            self._engine.own(place, inventory.owner(gpu))
            for name in (
                "heard_ns",
                "period_s",
                "clock_ahead_s",
                "asks_again",
                "out_of_service",
                "node_down",
            ):
                self._engine.inventory.a[name][place] = inventory.a[name][gpu]
        self._count = seed.gpus.size
        memory = _memory(self._engine)
        put(memory, slice(0, self._count), seed.memory)
        set_clocks(memory, seed.clocks)
        self._engine.ledger.took_back(self._engine.inventory.a["tenure"])
        self._step_ns = round(engine.period_s * SECOND_NS)
        self._window = Window(engine.period_s, self._engine.inventory.capacity, budget_bytes=0)
        self._window.start_at(seed.step * self._step_ns)
        self._now = seed.step
        self._looked = max(seed.step, window.oldest_step - 1)
        self._on_time: dict[int, tuple[NDArray[np.bool_], dict[str, Floats]]] = {}
        """Step -> what came on time, as Window.rows_at; read at once, for the window moves on."""
        mine = {gpu: place for place, gpu in enumerate(seed.gpus.tolist())}
        ours = [a for a in node.arrivals if all(gpu in mine for gpu in a.positions.tolist())]
        self._arrivals = sorted(ours, key=lambda a: a.batch.times_ns[0] + a.shift_ns)
        self._places = [
            np.array([mine[gpu] for gpu in a.positions.tolist()], dtype=np.intp) for a in self._arrivals
        ]
        self._rows: dict[int, tuple[NDArray[np.bool_], dict[str, Floats]]] = {}
        """Step -> what the late rows say: of which GPUs, and their columns."""

    def look(self) -> bool:
        """Read what has come on time; False when the fleet has left this behind: begin anew.

        That is when rows have left the window that were not read, or a GPU has another owner.
        """
        window, seed = self._main_window, self.seed
        if window.oldest_step > self._looked + 1:
            return False
        for step in range(self._looked + 1, window.next_step):
            self._on_time[step] = window.rows_at(step, seed.gpus)
        self._looked = window.next_step - 1
        return bool((self._main.inventory.a["tenure"][seed.gpus] == seed.tenures).all())

    def go_on(self, steps: int) -> bool:
        """Live through some steps more; True when all that was read is through."""
        for _ in range(min(steps, self._looked - self._now)):
            self._feed()
            self._now += 1
            inventory = self._engine.inventory
            own = self._window.next(inventory.capacity, inventory.a["node"], inventory.node_names)
            self._engine.step(self._with_the_rest(own))
            for seed in self.node.seeds:
                if seed.step == self._now:
                    self._remember(seed)
        return self._now == self._looked

    def _remember(self, seed: _Seed) -> None:
        """Put aside for a later silence what is known of its GPUs now, late rows included."""
        known = copied(_memory(self._engine), np.flatnonzero(np.isin(self.seed.gpus, seed.gpus)))
        memory = {name: values.copy() for name, values in seed.memory.items()}
        both = np.isin(seed.gpus, self.seed.gpus)
        for name, values in known.items():
            memory[name][..., both] = values
        self.seeds[seed.step] = replace(seed, memory=memory)

    def _feed(self) -> None:
        """Put the late rows that come next into the window, in order of their time."""
        while self._arrivals:
            arrival = self._arrivals[0]
            times = [t + arrival.shift_ns for t in arrival.batch.times_ns]
            if self._window.step_at(times[-1]) > self._now + AHEAD_STEPS:
                return
            self._arrivals.pop(0)
            places = self._places.pop(0)
            # A row speaks for the time since the one before it, which may have come on time.
            first = self._window.step_at(times[0])
            on_time = reversed(self._on_time.items())
            known = (step for step, (there, _) in on_time if step < first and there.all())
            self._window.note_samples(next(known, -1))
            self._window.take_all([Arrival(arrival.batch, places, arrival.received_ns, arrival.shift_ns)])
            self._window.place()

    def _with_the_rest(self, own: Step) -> Step:
        """A step of the late rows, filled up with those that came on time."""
        late = own.sampled[: self._count]
        columns: Mapping[str, Floats] = own.columns
        sampled = own.sampled.copy()
        if self._now in self._on_time:
            there, rest = self._on_time[self._now]
            fill = np.flatnonzero(there & ~late)
            merged = {name: column.copy() for name, column in own.columns.items()}
            for name, values in rest.items():
                column = merged.setdefault(name, np.full(sampled.size, np.nan))
                column[fill] = values[fill]
            columns = merged
            sampled[fill] = True
        if late.any():
            rows = {name: column[: self._count] for name, column in own.columns.items()}
            self._rows[self._now] = late.copy(), rows
        events = self._main_window.events.at(self._now, self.seed.gpus)
        mine = tuple(replace(event, gpu=place) for place, event in events)
        return Step(own.end_ns, own.period_ns, columns, sampled, mine)

    def apply(self) -> None:
        """Let the bookings and the memory of these GPUs take the place of the fleet's."""
        seed, window = self.seed, self._main_window
        for step, (there, values) in self._on_time.items():
            self._main.ledger.unmeasure(seed.gpus, there, values, step * self._step_ns)
        self._main.ledger.replace(seed.gpus, self._engine.ledger)
        put(_memory(self._main), seed.gpus, copied(_memory(self._engine), slice(0, self._count)))
        self._main.ledger.took_back(self._main.inventory.a["tenure"])
        for step, (late, rows) in self._rows.items():
            if window.holds(step):
                window.put_back(step, seed.gpus[late], {name: row[late] for name, row in rows.items()})


def _memory(engine: Engine) -> list[tuple[str, PerGpu]]:
    """What is remembered of GPUs, without what people are told of."""
    return [(name, part) for name, part in engine.memory() if not name.startswith("book")]
