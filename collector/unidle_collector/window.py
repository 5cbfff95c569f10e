"""The live window: batches of many nodes become steps of the whole fleet, in the order of event time.

A ring of columns holds the last and the next three minutes. A row speaks for the time since the node's
row before it, up to three of its periods, so that a node that samples every 30 s fills every step.
Memory: WINDOW_STEPS x (bytes of all fields) per GPU, about 70 kB.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unidle_agent.fields import BY_NAME, GPU_FIELDS, HOST_FIELDS, UNKNOWN_U8, Field
from unidle_agent.wire import Batch
from unidle_collector.counters import increases
from unidle_collector.pergpu import SECOND_NS, Bools, Floats, PerGpu
from unidle_collector.signals import Step

WINDOW_STEPS = 384
AHEAD_STEPS = WINDOW_STEPS // 2
"""How far beyond the last step handed out rows may lie; as much of the past can be read back."""
COVER_PERIODS = 3
SILENT_AFTER_NS = 12 * SECOND_NS
"""A node that has pushed nothing for this long (receiver's clock), ..."""
PATIENCE = 2
"""... or for this many times the time between its last two pushes, ..."""
MOST_PATIENCE_NS = 90 * SECOND_NS
"""... but at most this long, is not waited for."""
SETTLE_NS = 2 * SECOND_NS
"""After the very first push: the other nodes' first pushes come within this."""
FUTURE_NS = 60 * SECOND_NS
"""Rows from further beyond the receiver's clock than this come from a broken clock."""
LONGEST_WAIT_STEPS = 3600
"""A hole in the time of the whole fleet longer than this is jumped over."""
MOST_RATIO = 1.5
"""A ratio above this is nonsense (MIG shows a little over 1) and becomes unknown."""

Numbers = NDArray[np.int64]


@dataclass(slots=True)
class NodeClock:
    """What the window knows of one node."""

    last_step: int
    last_push_ns: int
    """Receiver's clock."""
    gap_ns: int = 0
    """Time between its last two pushes, or its sampling period where that is longer."""
    behind: bool = False
    """It lagged for too long and is not waited for until it has caught up."""

    def silent_at_ns(self) -> int:
        """When it is not waited for any more, unless it pushes."""
        return self.last_push_ns + min(MOST_PATIENCE_NS, max(SILENT_AFTER_NS, PATIENCE * self.gap_ns))


@dataclass(frozen=True, slots=True)
class Arrival:
    """A batch for the window."""

    batch: Batch
    positions: NDArray[np.intp]
    """Of its GPUs in every per-GPU array."""
    received_ns: int
    shift_ns: int = 0
    """Corrects its clock."""


@dataclass(slots=True)
class Taken:
    """What became of one batch's rows (one row is one GPU at one instant)."""

    rows: int = 0
    late: int = 0
    future: int = 0
    counter_resets: int = 0
    values_refused: int = 0
    """Infinite, negative or impossible values: they become unknown."""


@dataclass(slots=True)
class _Host:
    """Position of a node in the host columns, and its last raw counters."""

    position: int
    last_step: int
    raw: dict[str, int] = field(default_factory=dict)


class Window:
    """Rows in, steps out."""

    def __init__(self, step_s: float, size: int) -> None:
        self._step_ns = int(step_s * SECOND_NS)
        self._done: int | None = None
        """Last step handed out; None before the first row."""
        self._a = PerGpu(size)
        for spec in GPU_FIELDS:
            self._a.make(spec.name, _dtype(spec), np.nan, WINDOW_STEPS)
        self._a.make("sampled", np.bool_, False, WINDOW_STEPS)
        self._a.make("last_step", np.int64, -1)
        self._raw = PerGpu(size)
        for spec in GPU_FIELDS:
            if spec.kind == "counter":
                self._raw.make(spec.name, np.uint64, UNKNOWN_U8)
        self._hosts: dict[str, _Host] = {}
        self._host = PerGpu(64)
        for spec in HOST_FIELDS:
            self._host.make(spec.name, _dtype(spec), np.nan, WINDOW_STEPS)
        self.nodes: dict[str, NodeClock] = {}
        self._waiting_since_ns: int | None = None
        self._begun_ns = 0

    def resize(self, size: int) -> None:
        """Grow to `size` GPUs."""
        self._a.resize(size)
        self._raw.resize(size)

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
        """Put the rows of a group of batches where they belong; what became of each."""
        return [self.take(a.batch, a.positions, a.received_ns, a.shift_ns) for a in arrivals]

    def take(self, batch: Batch, positions: NDArray[np.intp], received_ns: int, shift_ns: int = 0) -> Taken:
        """Put a batch's rows where they belong; `positions` are its GPUs', `shift_ns` corrects its clock."""
        out = Taken(rows=len(batch.times_ns) * len(positions))
        times = np.asarray(batch.times_ns, dtype=np.int64) + shift_ns
        if not times.size:
            return out
        steps = (times + self._step_ns // 2) // self._step_ns
        if self._done is None:
            self._done = int(steps.min()) - 1
            self._begun_ns = received_ns
        ahead = steps > self._done + AHEAD_STEPS
        if not ahead.all():
            self._note_node(batch.node, int(steps[~ahead].max()), received_ns, batch.period_s)
        late = steps <= self._done
        out.future = int(ahead.sum()) * len(positions)
        out.late = int(late.sum()) * len(positions)
        use = np.flatnonzero(~ahead & ~late)
        if not use.size:
            return out
        fields = {name: raw for name, raw in batch.columns.items() if name in BY_NAME}  # no statistics
        columns = {
            name: _gpu_values(name, raw, len(times), len(positions), out)
            for name, raw in fields.items()
            if BY_NAME[name].kind != "counter"
        }
        columns |= self._increases(fields, positions, len(times), out)
        cover = max(1, round(batch.period_s * SECOND_NS / self._step_ns * COVER_PERIODS))
        self._place(steps, use, cover, columns, positions)
        self._place_host(batch, steps, use, cover)
        return out

    def has_room(self, batch: Batch, received_ns: int, shift_ns: int = 0) -> bool:
        """Can the batch's rows be taken now, or has time to advance first?

        Rows from beyond the receiver's own clock never fit; they are for `take` to refuse.
        """
        if self._done is None or not len(batch.times_ns):
            return True
        first, last = ((t + shift_ns) // self._step_ns for t in (batch.times_ns[0], batch.times_ns[-1]))
        if last < self._done + AHEAD_STEPS or last * self._step_ns > received_ns + FUTURE_NS:
            return True
        self._note_node(batch.node, int(first) - 1, received_ns, batch.period_s)
        return False

    def due(self, now_ns: int) -> int:
        """How many steps can be handed out: up to where every node that still pushes has come.

        A node that lags is waited for SILENT_AFTER_S, then its rows are late until it has caught up.
        """
        if self._done is None or now_ns - self._begun_ns < SETTLE_NS:
            return 0
        live = [clock for clock in self.nodes.values() if now_ns < clock.silent_at_ns()]
        if not live:
            return self._due_in_silence(now_ns)
        for clock in live:
            clock.behind = clock.behind and clock.last_step < self._done
        waited_for = [clock.last_step for clock in live if not clock.behind]
        frontier = max(clock.last_step for clock in live)
        due = min(waited_for, default=frontier) - self._done
        if due > 0 or frontier <= self._done:
            self._waiting_since_ns = None
            return max(0, due)
        if self._waiting_since_ns is None:
            self._waiting_since_ns = now_ns
        if now_ns - self._waiting_since_ns >= SILENT_AFTER_NS:
            for clock in live:
                clock.behind = clock.last_step <= self._done
        return 0

    def _due_in_silence(self, now_ns: int) -> int:
        """Nobody pushes: time goes on by the receiver's clock, as unknown time."""
        if not self.nodes:
            return 0
        silent_ns = now_ns - max(clock.silent_at_ns() for clock in self.nodes.values())
        frontier = max(clock.last_step for clock in self.nodes.values()) + max(0, silent_ns) // self._step_ns
        return max(0, frontier - (self._done or 0))

    def expect(self, node: str, now_ns: int) -> None:
        """Wait for a node that is known from before a restart."""
        self._note_node(node, self._done or 0, now_ns, 0.0)

    def skip_hole(self, due: int) -> int:
        """Jump over a long hole in everybody's time; returns the steps that are still to be handed out."""
        if due <= LONGEST_WAIT_STEPS or self._done is None:
            return due
        for slot in range(WINDOW_STEPS):  # of the rows beyond the hole only those that come next are lost
            self._clear(slot)
        self._done += due - 1
        return 1

    def _clear(self, slot: int) -> None:
        for spec in GPU_FIELDS:
            self._a[spec.name][slot] = np.nan
        for spec in HOST_FIELDS:
            self._host[spec.name][slot] = np.nan
        self._a["sampled"][slot] = False

    def last_sample_ns(self, gpu: int) -> int | None:
        """Time of a GPU's newest row, None when it has none."""
        step = int(self._a["last_step"][gpu])
        return None if step < 0 else step * self._step_ns

    def host_values(self, node: str) -> dict[str, float | None]:
        """Host fields of a node at the last step; a counter is its increase per second."""
        host = self._hosts.get(node)
        if host is None or self._done is None:
            return {}
        out: dict[str, float | None] = {}
        for spec in HOST_FIELDS:
            value = float(self._host[spec.name][self._done % WINDOW_STEPS, host.position])
            per_step = self._step_ns / SECOND_NS if spec.kind == "counter" else 1.0
            out[spec.name] = None if np.isnan(value) else value / per_step
        return out

    def recent(self, name: str, gpu: int | None, node: str) -> tuple[list[int], list[float]]:
        """(times in ns, values) of one field over the steps handed out that the ring still holds."""
        if self._done is None:
            return [], []
        steps = range(max(1, self._done - AHEAD_STEPS + 2), self._done + 1)
        slots = np.array([step % WINDOW_STEPS for step in steps], dtype=np.intp)
        if gpu is not None:
            values = self._a[name][slots, gpu]
        elif node in self._hosts:
            values = self._host[name][slots, self._hosts[node].position]
        else:
            return [], []
        return [step * self._step_ns for step in steps], [float(value) for value in values]

    def next(self, size: int, node_of: NDArray[np.int32], node_names: list[str]) -> Step:
        """Hand out the next step; columns have `size` entries."""
        assert self._done is not None
        self._done += 1
        slot = self._done % WINDOW_STEPS
        columns = {}
        self._clear((self._done + AHEAD_STEPS) % WINDOW_STEPS)
        for spec in GPU_FIELDS:
            columns[spec.name] = self._a[spec.name][slot].astype(np.float64)
        sampled: Bools = self._a["sampled"][slot].copy()
        rows = [self._hosts[name].position if name in self._hosts else -1 for name in node_names]
        of_gpu = np.where(node_of >= 0, np.array([*rows, -1])[node_of], -1)
        for spec in HOST_FIELDS:
            padded = np.append(self._host[spec.name][slot].astype(np.float64), np.nan)
            columns[spec.name] = padded[of_gpu]
        return Step(self._done * self._step_ns, self._step_ns, columns, sampled[:size])

    # -- placing ---------------------------------------------------------------------------------

    def _note_node(self, node: str, last_step: int, received_ns: int, period_s: float) -> None:
        clock = self.nodes.get(node)
        if clock is None:
            self.nodes[node] = NodeClock(last_step, received_ns, int(period_s * SECOND_NS))
        else:
            clock.last_step = max(clock.last_step, last_step)
            clock.gap_ns = max(received_ns - clock.last_push_ns, int(period_s * SECOND_NS))
            clock.last_push_ns = received_ns

    def _place(
        self,
        steps: Numbers,
        use: NDArray[np.intp],
        cover: int,
        columns: Mapping[str, Floats],
        positions: NDArray[np.intp],
    ) -> None:
        assert self._done is not None
        last = int(self._a["last_step"][positions].max()) if positions.size else -1
        targets, rows, spans = _spread(steps, use, cover, max(last, 0), self._done)
        slots = targets % WINDOW_STEPS
        known = np.zeros((len(steps), len(positions)), dtype=np.bool_)
        for name, values in columns.items():
            known |= ~np.isnan(values)
            if BY_NAME[name].kind == "counter":
                values = values / spans[:, None]
            ring = self._a[name]
            ring[slots[:, None], positions[None, :]] = values[rows]
        self._a["sampled"][slots[:, None], positions[None, :]] |= known[rows]
        self._a["last_step"][positions] = int(steps[use].max())

    def _place_host(self, batch: Batch, steps: Numbers, use: NDArray[np.intp], cover: int) -> None:
        assert self._done is not None
        host = self._hosts.get(batch.node)
        if host is None:
            host = self._hosts[batch.node] = _Host(len(self._hosts), int(steps[use].min()) - 1)
            if host.position >= self._host["load_1m"].shape[-1]:
                self._host.resize(2 * self._host["load_1m"].shape[-1])
        targets, rows, spans = _spread(steps, use, cover, host.last_step, self._done)
        host.last_step = int(steps[use].max())
        for name, raw in batch.host.items():
            spec = BY_NAME[name]
            if spec.kind == "counter":
                counts = np.frombuffer(raw, dtype=np.uint64)[:, None]
                before = np.array([host.raw.get(name, UNKNOWN_U8)], dtype=np.uint64)
                result = increases(counts, before, spec.resolution)
                host.raw[name] = int(result.last[0])
                values = result.values[:, 0] / spans
            else:
                read = np.frombuffer(raw, dtype=_wire_dtype(spec)).astype(np.float64)
                values = _checked(name, read, Taken())
            self._host[name][targets % WINDOW_STEPS, host.position] = values[rows]

    def _increases(
        self, raw_columns: Mapping[str, Any], positions: NDArray[np.intp], instants: int, out: Taken
    ) -> dict[str, Floats]:
        """Counters as increases in base units against the last value of each GPU."""
        found = {}
        for name, raw in raw_columns.items():
            spec = BY_NAME[name]
            if spec.kind != "counter":
                continue
            counts = np.frombuffer(raw, dtype=np.uint64).reshape(instants, len(positions))
            result = increases(counts, self._raw[name][positions], spec.resolution)
            self._raw[name][positions] = result.last
            out.counter_resets += result.resets
            found[name] = result.values
        return found


def _spread(
    steps: Numbers, use: NDArray[np.intp], cover: int, last: int, done: int
) -> tuple[Numbers, NDArray[np.intp], Floats]:
    """Which steps each used row fills: (target steps, row of each, [all rows] how many steps it fills)."""
    targets: list[int] = []
    rows: list[int] = []
    spans = np.ones(len(steps))
    for row in use:
        here = int(steps[row])
        first = max(last + 1, here - cover + 1, done + 1) if last >= 0 else here
        first = min(first, here)
        spans[row] = here - first + 1
        targets.extend(range(first, here + 1))
        rows.extend([int(row)] * (here - first + 1))
        last = here
    return np.array(targets, dtype=np.int64), np.array(rows, dtype=np.intp), spans


def _gpu_values(name: str, raw: Any, instants: int, gpus: int, out: Taken) -> Floats:
    spec = BY_NAME[name]
    values = np.frombuffer(raw, dtype=_wire_dtype(spec)).reshape(instants, gpus)
    if spec.dtype == "u8":
        return np.where(values == UNKNOWN_U8, np.nan, values.astype(np.float64))
    return _checked(name, values.astype(np.float64), out)


def _checked(name: str, values: Floats, out: Taken) -> Floats:
    """Impossible values become unknown, and are counted."""
    spec = BY_NAME[name]
    bad = np.isinf(values)
    if name.endswith("_ratio"):
        bad |= (values < 0) | (values > MOST_RATIO)
    elif spec.unit != "Cel":
        bad |= values < 0
    if bad.any():
        out.values_refused += int(bad.sum())
        values = np.where(bad, np.nan, values)
    return values


def _dtype(spec: Field) -> type[np.floating[Any]]:
    """Ring storage: float32 where the field's own precision is that, else float64."""
    return np.float32 if spec.dtype == "f4" or spec.kind == "counter" else np.float64


def _wire_dtype(spec: Field) -> str:
    return {"f4": "<f4", "f8": "<f8", "u8": "<u8"}[spec.dtype]
