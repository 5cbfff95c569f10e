"""What a source of samples answers, and how the answers of several become one row per GPU.

Gauges and states are in base units. A counter is a whole number of its field's resolution
(energy in mJ, throttle time in ns), so that it stays exact.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from unidle_agent.fields import BY_NAME
from unidle_agent.wire import Event, GpuFacts, Owner
from unidle_agent.wire_flight import Flight

Value = float | int

GPU_OK, GPU_LOST, DRIVER_HUNG = 0, 1, 2
"""Values of the field gpu_state."""
SW_POWER_CAP, HW_SLOWDOWN, SW_THERMAL, HW_THERMAL, POWER_BRAKE = 0x4, 0x8, 0x20, 0x40, 0x80
"""Bits of the field clock_event_reasons (nvml.h)."""
SLOWED_DOWN = HW_SLOWDOWN | SW_THERMAL | HW_THERMAL | POWER_BRAKE
"""Those that nobody chose; SW_POWER_CAP is what any healthy GPU shows at its power limit."""

SIMULATOR = "simulator"
REPLAY = "replay"
NOT_REAL = frozenset({SIMULATOR, REPLAY})
"""The source names of everything that is not of this machine now."""


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One GPU or MIG instance as one source sees it; a field that is not in `values` is unknown."""

    facts: GpuFacts
    values: dict[str, Value]
    pids: tuple[int, ...] | None = None
    """The processes that hold it, in the agent's process ids; None is unknown. Stays on the node."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One answer of one source: its GPUs, host values, and what went wrong, in words."""

    gpus: tuple[GpuReading, ...] = ()
    host: dict[str, Value] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    additional: bool = False
    """Its GPUs only add to rows that a source of lower precedence gives: anybody may name a GPU here."""
    events: tuple[Event, ...] = ()
    """What happened since the answer before, each told once."""


@dataclass(frozen=True, slots=True)
class Tick:
    """One instant of this node: one reading per GPU, however many sources see it."""

    time_ns: int
    gpus: tuple[GpuReading, ...]
    host: dict[str, Value]
    problems: tuple[str, ...]
    events: tuple[Event, ...] = ()
    flights: tuple[Flight, ...] = ()
    """What the flight recorder gives out at this instant."""


def is_simulated(facts: GpuFacts) -> bool:
    """Does any field of this GPU come from the simulator or from a recording."""
    return not NOT_REAL.isdisjoint(facts.sources.values())


class Source(Protocol):
    """An edge of the world that samples can be read from. A file in `sources/` each."""

    name: str
    precedence: int
    """Lower wins where two sources give the same field of the same GPU."""

    def read(self) -> Reading:
        """One reading now, within its own deadline; raises SourceError when there is none."""

    def close(self) -> None:
        """Let go of what is held."""


@runtime_checkable
class Paced(Protocol):
    """A source that need not be read at every tick."""

    def due(self) -> bool:
        """Whether there is anything to read now; asked before each tick, answers at once."""


MOST_REMEMBERED = 1024
"""Rows that a `Memory` holds: many more than a node has."""


@dataclass(slots=True)
class Memory:
    """What `merge` made of facts at the tick before. They seldom change, and are made anew only then."""

    named: dict[tuple[str, str], tuple[GpuFacts, frozenset[str], GpuFacts]] = field(default_factory=dict)
    """(Source, UUID) -> facts as they came, the fields that came with them, facts that name their source."""
    joined: dict[tuple[str, str], tuple[GpuFacts, GpuFacts, GpuFacts]] = field(default_factory=dict)
    """(Source that came second, UUID) -> facts of the first, of the second, of both."""


def merge(time_ns: int, readings: Iterable[tuple[str, int, Reading]], memory: Memory | None = None) -> Tick:
    """One row per GPU from (source name, precedence, reading): keyed by UUID, precedence per field.

    `facts.sources` of the result says for every field which source gave it: the source's name, or the
    finer one (`gpm`) that the source itself noted there. With a `memory` it may also name fields that the
    source gave at the ticks before, and facts that did not change are the same object as they were.
    """
    memory = memory or Memory()
    if len(memory.named) > MOST_REMEMBERED:  # rows that are gone, such as MIG instances of before
        memory.named.clear()
        memory.joined.clear()
    gpus: dict[str, GpuReading] = {}
    host: dict[str, Value] = {}
    problems: list[str] = []
    events: list[Event] = []
    for name, _, reading in sorted(readings, key=lambda item: item[1]):
        problems += [f"{name}: {problem}" for problem in reading.problems]
        events += reading.events
        host = {**reading.host, **host}
        for gpu in reading.gpus:
            uuid = gpu.facts.uuid
            known = gpus.get(uuid)
            if known is None and reading.additional:
                continue
            facts = _named(memory, name, gpu)
            if known is None:
                gpus[uuid] = GpuReading(facts, gpu.values, gpu.pids)
            else:
                both = _joined(memory, name, known.facts, facts)
                pids = known.pids if known.pids is not None else gpu.pids
                gpus[uuid] = GpuReading(both, {**gpu.values, **known.values}, pids)
    ordered = sorted(gpus.values(), key=_order)
    return Tick(time_ns, tuple(ordered), host, tuple(problems), tuple(events))


def _order(gpu: GpuReading) -> tuple[int, str]:
    return (gpu.facts.index if gpu.facts.index is not None else 1 << 30, gpu.facts.uuid)


def _named(memory: Memory, source: str, gpu: GpuReading) -> GpuFacts:
    """The facts of `gpu` with the source of each of its fields."""
    key = (source, gpu.facts.uuid)
    before = memory.named.get(key)
    names: frozenset[str] = frozenset()
    if before is not None and (before[0] is gpu.facts or before[0] == gpu.facts):
        if gpu.values.keys() <= before[1]:
            return before[2]
        names = before[1]
    names = names.union(gpu.values)
    sources = {name: gpu.facts.sources.get(name, source) for name in BY_NAME if name in names}
    facts = replace(gpu.facts, sources=sources)
    memory.named[key] = (gpu.facts, names, facts)
    return facts


def _joined(memory: Memory, source: str, first: GpuFacts, second: GpuFacts) -> GpuFacts:
    """`first` with what only `second`, the facts of `source`, says."""
    key = (source, first.uuid)
    before = memory.joined.get(key)
    if before is not None and before[0] is first and before[1] is second:
        return before[2]
    both = GpuFacts(
        uuid=first.uuid,
        index=first.index if first.index is not None else second.index,
        model=first.model or second.model,
        pci_bus_id=first.pci_bus_id or second.pci_bus_id,
        minor=first.minor if first.minor is not None else second.minor,
        driver=first.driver or second.driver,
        mig_profile=first.mig_profile or second.mig_profile,
        mig_uuid=first.mig_uuid or second.mig_uuid,
        share=min(first.share, second.share),
        sources={**second.sources, **first.sources},
        owner=_owner(first.owner, second.owner),
    )
    memory.joined[key] = (first, second, both)
    return both


def _owner(first: Owner, second: Owner) -> Owner:
    """The answer that names a job, else the one that knows whether the GPU is allocated."""
    for owner in (first, second):
        if owner.job:
            return owner
    return first if first.allocated is not None else second
