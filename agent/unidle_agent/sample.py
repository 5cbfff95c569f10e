"""What a source of samples answers, and how the answers of several become one row per GPU.

Gauges and states are in base units. A counter is a whole number of its field's resolution
(energy in mJ, throttle time in ns), so that it stays exact.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol

from unidle_agent.fields import BY_NAME
from unidle_agent.wire import Event, GpuFacts, Owner

Value = float | int

GPU_OK, GPU_LOST, DRIVER_HUNG = 0, 1, 2
"""Values of the field gpu_state."""

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


def merge(time_ns: int, readings: Iterable[tuple[str, int, Reading]]) -> Tick:
    """One row per GPU from (source name, precedence, reading): keyed by UUID, precedence per field.

    `facts.sources` of the result says for every field which source gave it: the source's name, or the
    finer one (`gpm`) that the source itself noted there.
    """
    gpus: dict[str, GpuReading] = {}
    host: dict[str, Value] = {}
    problems: list[str] = []
    events: list[Event] = []
    for name, _, reading in sorted(readings, key=lambda item: item[1]):
        problems += [f"{name}: {problem}" for problem in reading.problems]
        events += reading.events
        host = {**reading.host, **host}
        for gpu in reading.gpus:
            sources = {key: gpu.facts.sources.get(key, name) for key in gpu.values if key in BY_NAME}
            fresh = replace(gpu, facts=replace(gpu.facts, sources=sources))
            known = gpus.get(gpu.facts.uuid)
            if known is None and reading.additional:
                continue
            gpus[gpu.facts.uuid] = fresh if known is None else _combine(known, fresh)
    ordered = sorted(gpus.values(), key=_order)
    return Tick(time_ns, tuple(ordered), host, tuple(problems), tuple(events))


def _order(gpu: GpuReading) -> tuple[int, str]:
    return (gpu.facts.index if gpu.facts.index is not None else 1 << 30, gpu.facts.uuid)


def _combine(first: GpuReading, second: GpuReading) -> GpuReading:
    """`first` with what only `second` knows."""
    facts = GpuFacts(
        uuid=first.facts.uuid,
        index=first.facts.index if first.facts.index is not None else second.facts.index,
        model=first.facts.model or second.facts.model,
        pci_bus_id=first.facts.pci_bus_id or second.facts.pci_bus_id,
        minor=first.facts.minor if first.facts.minor is not None else second.facts.minor,
        driver=first.facts.driver or second.facts.driver,
        mig_profile=first.facts.mig_profile or second.facts.mig_profile,
        mig_uuid=first.facts.mig_uuid or second.facts.mig_uuid,
        share=min(first.facts.share, second.facts.share),
        sources={**second.facts.sources, **first.facts.sources},
        owner=_owner(first.facts.owner, second.facts.owner),
    )
    pids = first.pids if first.pids is not None else second.pids
    return GpuReading(facts, {**second.values, **first.values}, pids)


def _owner(first: Owner, second: Owner) -> Owner:
    """The answer that names a job, else the one that knows whether the GPU is allocated."""
    for owner in (first, second):
        if owner.job:
            return owner
    return first if first.allocated is not None else second
