"""The live window: batches of many nodes become steps of the whole fleet, in the order of event time.

Rings of columns hold the next two minutes and as much of the past as the budget of memory allows. A row
speaks for the time since the node's row before it, up to three of its periods, so that a node that
samples every 30 s fills every step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from unidle_agent.fields import BY_NAME, GPU_FIELDS, HOST_FIELDS
from unidle_agent.wire import Batch
from unidle_collector.arrivals import Arrival, Flaws, Taken, alike
from unidle_collector.happenings import Happenings
from unidle_collector.node_clocks import SILENT_AFTER_NS, NodeClocks
from unidle_collector.pergpu import SECOND_NS, Floats
from unidle_collector.ring import Block, Numbers, Ring
from unidle_collector.signals import RESET, Happened, Step

AHEAD_STEPS = 128
"""How far beyond the last step handed out rows may lie: the longest batch and the longest patience."""
LEAST_BEHIND, MOST_BEHIND = 64, 256
"""Steps handed out that can be read back. With the usual budget, what the store has not taken yet: of fewer
GPUs there is room for more, of 10,000 the log is full within a minute."""
USUAL_FIELD_BYTES = 40 * 4
"""Per GPU and step; a fleet of which less is known yet is taken for one like this."""
BUDGET_BYTES = 384 * 2**20
COVER_PERIODS = 3
SETTLE_NS = 2 * SECOND_NS
"""After the very first push: the other nodes' first pushes come within this."""
FUTURE_NS = 60 * SECOND_NS
"""Rows from further beyond the receiver's clock than this come from a broken clock."""
LONGEST_WAIT_STEPS = 3600
"""A hole in the time of the whole fleet longer than this is jumped over."""


class Window:
    """Rows in, steps out."""

    def __init__(self, step_s: float, size: int, budget_bytes: int = BUDGET_BYTES) -> None:
        self._step_ns = int(step_s * SECOND_NS)
        self._budget_bytes = budget_bytes
        self._size = size
        self._steps = AHEAD_STEPS + MOST_BEHIND
        self._done: int | None = None
        """Last step handed out; None before the first row."""
        self._gpus = Ring(GPU_FIELDS, size, self._steps)
        self._host = Ring(HOST_FIELDS, 64, self._steps)
        self._hosts: dict[str, int] = {}
        """Node -> its position in the host columns."""
        self._host_of_gpu: tuple[tuple[int, int, int], NDArray[np.intp]] | None = None
        self.nodes = NodeClocks()
        self.events = Happenings(self._step_ns, self.step_at)
        self.late: list[Arrival] = []
        """Batches with rows that came too late, for whoever can use them; emptied by them."""
        self.flaws: list[Flaws] = []
        """What was not right with the rows that were placed, for whoever counts it; emptied by them."""
        self._waiting: list[Arrival] = []
        """Taken, but not placed yet."""
        self._waiting_since_ns: int | None = None
        self._begun_ns = 0

    # -- memory ----------------------------------------------------------------------------------

    def resize(self, size: int) -> None:
        """Grow to `size` GPUs."""
        if size != self._size:
            self._size = size
            self._fit()
            self._gpus.resize(size)

    def _fit(self) -> None:
        """Hold as many steps as the budget allows; never more again than once had to do."""
        per_gpu = max(self._gpus.bytes_per_step // self._gpus.size, USUAL_FIELD_BYTES)
        behind = self._budget_bytes // (per_gpu * self._size + self._host.bytes_per_step) - AHEAD_STEPS
        steps = AHEAD_STEPS + min(MOST_BEHIND, max(LEAST_BEHIND, behind))
        if steps < self._steps:
            newest = (self._done or 0) + AHEAD_STEPS
            for ring in (self._gpus, self._host):
                ring.shorten(steps, max(0, newest - steps + 1), newest)
            self._steps = steps

    @property
    def bytes(self) -> int:
        """Memory that the rings take."""
        return self._steps * (self._gpus.bytes_per_step + self._host.bytes_per_step)

    def describe(self, gpus: int) -> str:
        """How large it is, for people."""
        if not self._gpus.names:
            return f"live window: at most {self._steps} s, within {self._budget_bytes / 2**20:,.0f} MiB"
        return (
            f"live window: {gpus:,} GPUs x {len(self._gpus.names)} fields x {self._steps} s "
            f"= {self.bytes / 2**20:,.0f} MiB"
        )

    # -- rows in ---------------------------------------------------------------------------------

    def start_at(self, time_ns: int) -> None:
        """Everything up to `time_ns` was handed out before a restart: rows of then are late now."""
        self._done = time_ns // self._step_ns

    @property
    def time_ns(self) -> int | None:
        """Event time up to which steps were handed out."""
        return None if self._done is None else self._done * self._step_ns

    @property
    def next_step(self) -> int:
        """Number of the step that is handed out next."""
        return (self._done or 0) + 1

    def step_at(self, time_ns: int) -> int:
        """Number of the step that an instant belongs to."""
        return (time_ns + self._step_ns // 2) // self._step_ns

    def take_all(self, arrivals: Sequence[Arrival]) -> list[Taken]:
        """Take batches, to be put where they belong before the next step; what became of each.

        Until then nobody looks where they go, and the more are put there at once the less each costs.
        """
        taken = [Taken(rows=len(a.batch.times_ns) * len(a.positions)) for a in arrivals]
        some = [(a, out) for a, out in zip(arrivals, taken, strict=True) if len(a.batch.times_ns)]
        if some:
            self._sort_out([a for a, _ in some], [out for _, out in some])
        return taken

    def _sort_out(self, arrivals: list[Arrival], taken: list[Taken]) -> None:
        """Count what comes too late or too early, and keep the rest for `place`."""
        instants, steps = self._steps_of(arrivals)
        if self._done is None:
            self._done = int(steps.min()) - 1
            self._begun_ns = arrivals[0].received_ns
        ahead, late = steps > self._done + AHEAD_STEPS, steps <= self._done
        begins = np.cumsum(instants) - instants
        newest = np.maximum.reduceat(np.where(ahead, -1, steps), begins).tolist()
        ahead_count = np.add.reduceat(ahead, begins).tolist()
        late_count = np.add.reduceat(late, begins).tolist()
        for number, (arrival, out) in enumerate(zip(arrivals, taken, strict=True)):
            batch, width = arrival.batch, len(arrival.positions)
            if newest[number] >= 0:
                self.nodes.note(batch.node, newest[number], arrival.received_ns, batch.period_s)
            out.late, out.future = late_count[number] * width, ahead_count[number] * width
            if late_count[number]:
                self.late.append(arrival)
            if late_count[number] + ahead_count[number] < len(batch.times_ns):
                self._waiting.append(arrival)

    def _steps_of(self, arrivals: Sequence[Arrival]) -> tuple[Numbers, Numbers]:
        """([B] instants of each batch, [sum of those] the step that each instant belongs to)."""
        instants = np.array([len(a.batch.times_ns) for a in arrivals])
        times = np.array([t for a in arrivals for t in a.batch.times_ns], dtype=np.int64)
        times += np.repeat(np.array([a.shift_ns for a in arrivals], dtype=np.int64), instants)
        return instants, (times + self._step_ns // 2) // self._step_ns

    @property
    def waiting(self) -> int:
        """Batches that were taken and are not placed."""
        return len(self._waiting)

    def place(self) -> None:
        """Put the rows of all batches taken so far where they belong.

        Raises what was unexpected at one of them, once all the others are in their place.
        """
        waiting, self._waiting = self._waiting, []
        broken: Exception | None = None
        for numbers in alike(waiting):
            group = [waiting[n] for n in numbers]
            try:
                self._place(group)
            except Exception as error:
                broken = error
                for arrival in group if len(group) > 1 else ():
                    with contextlib.suppress(Exception):  # that of the group is told
                        self._place([arrival])
        if waiting:
            self._fit()
        if broken is not None:
            raise broken

    def _place(self, group: list[Arrival]) -> None:
        assert self._done is not None
        instants, steps = self._steps_of(group)
        use = (steps > self._done) & (steps <= self._done + AHEAD_STEPS)
        periods = np.array([a.batch.period_s for a in group])
        cover = np.maximum(1, np.rint(periods * SECOND_NS / self._step_ns * COVER_PERIODS)).astype(np.int64)
        widths = np.array([len(a.positions) for a in group])
        if widths.all():  # a node without GPUs has its host's rows only
            places = np.concatenate([a.positions for a in group])
            block = Block(instants, widths, places, steps, use, cover)
            refused = self._gpus.place(block, [a.batch.columns for a in group], self._done)
            for n in np.flatnonzero(refused.values + refused.resets).tolist():
                node, values, resets = group[n].batch.node, refused.values[n], refused.resets[n]
                self.flaws.append(Flaws(node, values_refused=int(values), counter_resets=int(resets)))
        hosts = np.array([self._host_place(a.batch.node) for a in group], dtype=np.intp)
        block = Block(instants, np.ones_like(instants), hosts, steps, use, cover)
        self._host.place(block, [a.batch.host for a in group], self._done)

    def _host_place(self, node: str) -> int:
        found = self._hosts.setdefault(node, len(self._hosts))
        if found == self._host.size:
            self._host.resize(2 * found)
        return found

    def has_room(self, batch: Batch, received_ns: int, shift_ns: int = 0) -> bool:
        """Can the batch's rows be taken now, or has time to advance first?

        Rows from beyond the receiver's own clock never fit; they are for `take_all` to refuse.
        """
        if self._done is None or not len(batch.times_ns):
            return True
        first, last = ((t + shift_ns) // self._step_ns for t in (batch.times_ns[0], batch.times_ns[-1]))
        if last < self._done + AHEAD_STEPS or last * self._step_ns > received_ns + FUTURE_NS:
            return True
        self.nodes.note(batch.node, int(first) - 1, received_ns, batch.period_s)
        return False

    # -- time ------------------------------------------------------------------------------------

    def due(self, now_ns: int) -> int:
        """How many steps can be handed out: up to where every node that still pushes has come.

        A node that lags is waited for SILENT_AFTER_NS, then its rows are late until it has caught up.
        """
        if self._done is None or now_ns - self._begun_ns < SETTLE_NS or not len(self.nodes):
            return 0
        last_step, behind = self.nodes.column("last_step"), self.nodes.column("behind")
        silent_at_ns = self.nodes.silent_at_ns()
        live = now_ns < silent_at_ns
        if not live.any():
            return self._due_in_silence(now_ns, int(silent_at_ns.max()), int(last_step.max()))
        behind[live & (last_step >= self._done)] = False
        frontier = int(last_step[live].max())
        waited_for = last_step[live & ~behind.astype(np.bool_)]
        due = (int(waited_for.min()) if waited_for.size else frontier) - self._done
        if due > 0 or frontier <= self._done:
            self._waiting_since_ns = None
            return max(0, due)
        if self._waiting_since_ns is None:
            self._waiting_since_ns = now_ns
        if now_ns - self._waiting_since_ns >= SILENT_AFTER_NS:
            behind[live] = last_step[live] <= self._done
        return 0

    def _due_in_silence(self, now_ns: int, silent_at_ns: int, last_step: int) -> int:
        """Nobody pushes: time goes on by the receiver's clock, as unknown time."""
        frontier = last_step + max(0, now_ns - silent_at_ns) // self._step_ns
        return max(0, frontier - (self._done or 0))

    def expect(self, node: str, now_ns: int) -> None:
        """Wait for a node that is known from before a restart."""
        self.nodes.note(node, self._done or 0, now_ns, 0.0)

    def skip_hole(self, due: int) -> int:
        """Jump over a long hole in everybody's time; returns the steps that are still to be handed out."""
        if due <= LONGEST_WAIT_STEPS or self._done is None:
            return due
        self.place()
        for slot in range(self._steps):  # of the rows beyond the hole only those that come next are lost
            self._clear(slot)
        self._done += due - 1
        return 1

    def _clear(self, step: int) -> None:
        self._gpus.clear(step)
        self._host.clear(step)

    # -- steps out -------------------------------------------------------------------------------

    def next(self, size: int, node_of: NDArray[np.int32], node_names: list[str]) -> Step:
        """Hand out the next step; columns have `size` entries and are read while it is the last one."""
        assert self._done is not None
        self.place()
        self._done += 1
        self._clear(self._done + AHEAD_STEPS)
        hosts = self._places_of_hosts(size, node_of, node_names)
        columns = _StepColumns(self._gpus, self._host, hosts, self._done)
        sampled = self._gpus.sampled[self._done % self._steps].copy()
        for gpu, step in self._gpus.take_resets():
            self.events.take(Happened(gpu, step * self._step_ns, RESET))
        return Step(self._done * self._step_ns, self._step_ns, columns, sampled, self.events.due(self._done))

    def _places_of_hosts(
        self, size: int, node_of: NDArray[np.int32], node_names: list[str]
    ) -> NDArray[np.intp]:
        """[size] Position of each GPU's host; of one without, a position that nobody has."""
        key = (size, len(self._hosts), int(np.count_nonzero(node_of >= 0)))
        if self._host_of_gpu is None or self._host_of_gpu[0] != key:
            nobody = len(self._hosts)
            if nobody == self._host.size:
                self._host.resize(2 * nobody)
            places = [self._hosts.get(name, nobody) for name in node_names]
            self._host_of_gpu = key, np.array([*places, nobody], dtype=np.intp)[node_of]
        return self._host_of_gpu[1]

    # -- for late rows ---------------------------------------------------------------------------

    @property
    def oldest_step(self) -> int:
        """Number of the oldest step handed out that is still held."""
        return self.next_step - (self._steps - AHEAD_STEPS) + 1

    def holds(self, step: int) -> bool:
        """Is this a step that was handed out and is still held."""
        return self._done is not None and self.oldest_step <= step <= self._done

    def rows_at(self, step: int, gpus: NDArray[np.intp]) -> tuple[NDArray[np.bool_], dict[str, Floats]]:
        """([gpus] is there a row, columns [gpus] of the GPUs and their host) of a step that is held."""
        columns = {name: self._gpus.row(name, step)[gpus].astype(np.float64) for name in self._gpus.names}
        if self._host_of_gpu is not None:
            hosts = self._host_of_gpu[1][gpus]
            columns |= {n: self._host.row(n, step)[hosts].astype(np.float64) for n in self._host.names}
        return self._gpus.sampled[step % self._steps][gpus], columns

    def put_back(self, step: int, gpus: NDArray[np.intp], columns: Mapping[str, Floats]) -> None:
        """Late rows of a step that is held; host fields are left out."""
        for name in self._gpus.names:
            if name in columns:
                self._gpus.row(name, step)[gpus] = columns[name]
        self._gpus.sampled[step % self._steps][gpus] = True

    def note_samples(self, step: int) -> None:
        """The GPUs and hosts have rows up to `step` elsewhere: later ones speak for the time since."""
        for ring in (self._gpus, self._host):
            np.maximum(ring.last_step, step, out=ring.last_step)

    # -- reading ---------------------------------------------------------------------------------

    def last_sample_ns(self, gpu: int) -> int | None:
        """Time of a GPU's newest row, None when it has none."""
        step = int(self._gpus.last_step[gpu])
        return None if step < 0 else step * self._step_ns

    def last_samples_ns(self, gpus: NDArray[np.intp]) -> NDArray[np.int64]:
        """[gpus] Time of the newest row of each, -1 where it has none."""
        room = gpus < self._gpus.size
        steps = np.where(room, self._gpus.last_step[np.where(room, gpus, 0)], -1)
        return np.where(steps < 0, -1, steps * self._step_ns)

    def hosts_now(self, nodes: Sequence[str]) -> tuple[NDArray[np.bool_], dict[str, Floats]]:
        """([nodes] is it known, field -> [nodes]) of hosts at the last step; a counter is per second."""
        places = np.array([self._hosts.get(node, -1) for node in nodes], dtype=np.intp)
        known = places >= 0
        if self._done is None:
            return np.zeros_like(known), {}
        columns = {}
        for spec in HOST_FIELDS:
            if spec.name in self._host.names:
                row = self._host.row(spec.name, self._done).astype(np.float64)
                per_step = self._step_ns / SECOND_NS if spec.kind == "counter" else 1.0
                columns[spec.name] = np.where(known, row[np.where(known, places, 0)], np.nan) / per_step
        return known, columns

    def recent(self, name: str, gpu: int | None, node: str) -> tuple[list[int], list[float]]:
        """(times in ns, values) of one field over the steps handed out that the ring still holds."""
        place = gpu if gpu is not None else self._hosts.get(node)
        if self._done is None or place is None:
            return [], []
        steps = np.arange(max(1, self._done - (self._steps - AHEAD_STEPS) + 2), self._done + 1)
        ring = self._gpus if gpu is not None else self._host
        return (steps * self._step_ns).tolist(), ring.history(name, steps, place).tolist()


class _StepColumns(Mapping[str, Floats]):
    """Columns of one step, [GPUs], made when they are asked for; those of the host as its GPUs see them."""

    def __init__(self, gpus: Ring, host: Ring, hosts: NDArray[np.intp], step: int) -> None:
        self._gpus, self._host, self._hosts, self._step = gpus, host, hosts, step
        self._made: dict[str, Floats] = {}
        self._names = frozenset((*gpus.names, *host.names))

    def __getitem__(self, name: str) -> Floats:
        found = self._made.get(name)
        if found is None:
            if name not in self._names:
                raise KeyError(name)
            if BY_NAME[name].scope == "gpu":
                found = self._gpus.row(name, self._step).astype(np.float64)
            else:
                found = self._host.row(name, self._step).astype(np.float64)[self._hosts]
            self._made[name] = found
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._names))

    def __len__(self) -> int:
        return len(self._names)
