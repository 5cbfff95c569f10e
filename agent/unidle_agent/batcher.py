"""Ticks -> batches of columns, ready for the wire but for boot, sequence and time of sending.

A batch holds one set of GPUs with one state of their facts. It is closed on whole multiples of `batch_s` of
the wall clock (`unidle_agent.schedule`), and at once when a GPU appears or goes, when facts or an owner
change or are asked for, when a GPU's `gpu_state` changes, when its hardware or heat begins to throttle it,
when its driver reports an event, and when the flight recorder has something to send. A GPU that no source
sees for a moment keeps its place, with unknown values; after `FORGET_S` it is gone.

`Batch.period_s` is the spacing at which GPUs have samples: the sampler's period, or the scrape interval
where a GPU is seen by dcgm-exporter alone. A row in which every field of a GPU is unknown is no sample.
"""

from __future__ import annotations

import hashlib
import math
import sys
import threading
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from unidle_agent import schedule
from unidle_agent.fields import COLUMNS, UNKNOWN_U8, Field, Scope
from unidle_agent.sample import SLOWED_DOWN, Tick, Value, is_simulated
from unidle_agent.wire import NAN, TYPECODES, Batch, GpuFacts, column

FORGET_S = 60.0
"""How long a GPU that no source reports stays in the set: longer than a driver hangs on one call."""

ONSET_S = 30.0
"""A throttling bit that was away for less than this has not begun anew: it flickers around its limit."""

MOST = {"f4": 3.4028234663852886e38, "f8": sys.float_info.max}
"""Largest value of each column type (IEEE 754)."""
IDENTITY = ("index", "model", "pci_bus_id", "minor", "driver", "mig_profile")


@dataclass(frozen=True, slots=True)
class _Known:
    """The GPUs of a batch, in its order, and what follows from their facts alone."""

    facts: tuple[GpuFacts, ...]
    order: Mapping[str, int]
    """UUID -> place."""
    facts_id: int
    spacing_s: float
    simulated: bool


class Batcher:
    """Collects ticks of `node`; `source_period_s` names the sources slower than the sampler."""

    def __init__(
        self,
        node: str,
        period_s: float,
        batch_s: float,
        source_period_s: Mapping[str, float] | None = None,
    ) -> None:
        self._node = node
        self._period_s = period_s
        self._period_ns = round(period_s * 1e9)
        self._ticks_in_batch = max(1, round(batch_s / period_s))
        self._source_period_s = dict(source_period_s or {})
        self._ticks: list[Tick] = []
        self._facts: dict[str, GpuFacts] = {}
        self._given: dict[str, GpuFacts] = {}
        """The facts that came last of every row; the same object again has nothing new in it."""
        self._known = self._know()
        self._seen_ns: dict[str, int] = {}
        self._states: dict[str, Value] = {}
        self._throttled_ns: dict[tuple[str, int], int] = {}
        """(UUID, bit) -> when it was last seen."""
        self._send_facts = threading.Event()
        self._send_facts.set()
        self._turn = 0
        """Which multiple of `batch_s` the open batch is to be closed on."""
        self.rows = 0
        """GPU rows with at least one known value, since the start."""
        self.urgent = False
        """Did the last tick close a batch for something that must not wait."""

    def request_facts(self) -> None:
        """Put the facts into the next batch whether they changed or not. May be called by any thread."""
        self._send_facts.set()

    def add(self, tick: Tick) -> list[Batch]:
        """Take one tick; returns the batches that it closes: none, one, or two."""
        out = []
        stepped_back = bool(self._ticks) and tick.time_ns <= self._ticks[-1].time_ns
        facts = self._merge_facts(tick, stepped_back)
        changed = facts != self._facts
        number = schedule.number_of(tick.time_ns, self._period_ns)
        turn = -(-number // self._ticks_in_batch)
        if (changed or stepped_back or turn != self._turn) and self._ticks:
            out.append(self._close())
        self._turn = turn
        if changed:
            self._facts = facts
            self._known = self._know()
            self._send_facts.set()
        self._ticks.append(tick)
        self.rows += sum(1 for gpu in tick.gpus if gpu.values)
        self.urgent = self._is_urgent(tick) or self._send_facts.is_set()
        if self.urgent or number % self._ticks_in_batch == 0:
            out.append(self._close())
        return out

    def flush(self) -> Batch | None:
        """Close what is open now; None when nothing is."""
        return self._close() if self._ticks else None

    def _merge_facts(self, tick: Tick, stepped_back: bool) -> dict[str, GpuFacts]:
        """The facts as of `tick`: what a source left out this time keeps its last answer."""
        facts = dict(self._facts)
        if stepped_back:
            self._seen_ns = dict.fromkeys(self._seen_ns, tick.time_ns)
        for gpu in tick.gpus:
            new, old = gpu.facts, facts.get(gpu.facts.uuid)
            if old is None or self._given.get(new.uuid) is not new:
                facts[new.uuid] = new if old is None else _renewed(old, new)
                self._given[new.uuid] = new
            self._seen_ns[new.uuid] = tick.time_ns
        for uuid in [uuid for uuid, seen in self._seen_ns.items() if tick.time_ns - seen > FORGET_S * 1e9]:
            del self._seen_ns[uuid]
            self._states.pop(uuid, None)
            self._given.pop(uuid, None)
            facts.pop(uuid, None)
        return facts

    def _is_urgent(self, tick: Tick) -> bool:
        changed, begun = self._state_changed(tick), self._throttling_begun(tick)
        return bool(tick.events or tick.flights) or changed or begun

    def _throttling_begun(self, tick: Tick) -> bool:
        begun = False
        for gpu in tick.gpus:
            bits = int(gpu.values.get("clock_event_reasons", 0)) & SLOWED_DOWN
            while bits:
                bit = bits & -bits
                bits ^= bit
                before_ns = self._throttled_ns.get((gpu.facts.uuid, bit))
                begun |= before_ns is None or tick.time_ns - before_ns > ONSET_S * 1e9
                self._throttled_ns[gpu.facts.uuid, bit] = tick.time_ns
        return begun

    def _state_changed(self, tick: Tick) -> bool:
        states = {gpu.facts.uuid: gpu.values["gpu_state"] for gpu in tick.gpus if "gpu_state" in gpu.values}
        changed = any(self._states.get(uuid, state) != state for uuid, state in states.items())
        self._states.update(states)
        return changed

    def _close(self) -> Batch:
        ticks, self._ticks = self._ticks, []
        known = self._known
        send_facts = self._send_facts.is_set()
        if send_facts:  # never clear a request that this batch does not answer
            self._send_facts.clear()
        return Batch(
            node=self._node,
            boot="",
            seq=0,
            sent_ns=0,
            period_s=known.spacing_s,
            times_ns=[tick.time_ns for tick in ticks],
            gpus=tuple(known.order),
            columns=_columns("gpu", _gpu_rows(ticks, known.order)),
            host=_columns("host", [tick.host for tick in ticks]),
            facts_id=known.facts_id,
            facts=known.facts if send_facts else None,
            simulated=known.simulated,
            events=tuple(event for tick in ticks for event in tick.events),
            flights=tuple(flight for tick in ticks for flight in tick.flights),
        )

    def _know(self) -> _Known:
        known = sorted(self._facts.values(), key=lambda gpu: (_index(gpu), gpu.uuid))
        return _Known(
            facts=tuple(known),
            order={gpu.uuid: place for place, gpu in enumerate(known)},
            facts_id=facts_id(known),
            spacing_s=self._spacing_s(known),
            simulated=any(is_simulated(gpu) for gpu in known),
        )

    def _spacing_s(self, known: list[GpuFacts]) -> float:
        spacings = [
            min(self._source_period_s.get(source, self._period_s) for source in set(gpu.sources.values()))
            for gpu in known
            if gpu.sources
        ]
        return max([self._period_s, *spacings])


def facts_id(facts: list[GpuFacts]) -> int:
    """A number that stands for these facts, the same after a restart: 48 bits of their hash."""
    text = repr([replace(item, sources=dict(sorted(item.sources.items()))) for item in facts])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def _renewed(old: GpuFacts, new: GpuFacts) -> GpuFacts:
    """`new`, with what it leaves open filled from `old`: a source that is late knows no less than before."""
    kept = {name: getattr(old, name) for name in IDENTITY if getattr(new, name) in (None, "")}
    return replace(new, **kept, sources={**old.sources, **new.sources})


def _index(gpu: GpuFacts) -> int:
    return gpu.index if gpu.index is not None else 1 << 30


def _gpu_rows(ticks: Sequence[Tick], order: Mapping[str, int]) -> list[Mapping[str, Value]]:
    """The values of instants x GPUs, time-major; empty where a GPU was not seen."""
    rows: list[Mapping[str, Value]] = [{}] * (len(ticks) * len(order))
    for instant, tick in enumerate(ticks):
        for gpu in tick.gpus:
            if (place := order.get(gpu.facts.uuid)) is not None:
                rows[instant * len(order) + place] = gpu.values
    return rows


def _columns(scope: Scope, rows: Sequence[Mapping[str, Value]]) -> dict[str, object]:
    """One column per field that any row knows, in the order of the table."""
    names = tuple(rows[0]) if rows else ()
    if all(tuple(row) == names for row in rows):  # nearly always: then all columns are made at once
        values = dict(zip(names, zip(*[row.values() for row in rows], strict=True), strict=True))
        return {
            spec.name: _column(spec, values[spec.name])
            for spec in COLUMNS.values()
            if spec.scope == scope and spec.name in values
        }
    used = set().union(*rows)
    return {
        spec.name: _column(spec, [row.get(spec.name, _unknown(spec)) for row in rows])
        for spec in COLUMNS.values()
        if spec.scope == scope and spec.name in used
    }


def _unknown(spec: Field) -> Value:
    return UNKNOWN_U8 if spec.dtype == "u8" else NAN


def _column(spec: Field, values: Sequence[Value]) -> array[Any]:
    """The values of one field, one per row.

    Nearly always they fit the column as they are; looking at each of thousands would be most of what a
    batch costs. Only a column that they do not fit, or that came out infinite, is gone through.
    """
    try:
        made = array(TYPECODES[spec.dtype], values)
    except (TypeError, OverflowError):
        pass
    else:
        whole = 0 if spec.dtype == "u8" else sum(made)
        if whole - whole == 0 or not (math.inf in made or -math.inf in made):  # the first is false for NaN
            return made
    return column(spec, [sendable(spec, value) for value in values])


def sendable(spec: Field, value: Value | None) -> Value | None:
    """`value`, or None where the column has no room for it: negative or huge counters, infinities."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if spec.dtype == "u8":
        return int(value) if 0 <= value < UNKNOWN_U8 else None
    return value if abs(value) <= MOST[spec.dtype] else None
