"""What stands for the agents of the simulated fleet: each node's batches, ready for the wire."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from unidle_agent.sample import SIMULATOR
from unidle_agent.wire import Batch, Event, GpuFacts, Owner
from unidle_agent.wire_flight import Flight
from unidle_collector.simulator.fleet import Block
from unidle_collector.simulator.flown import Flown
from unidle_collector.simulator.hardware import hardware

PERIOD_S = 1.0
Nobody = Owner(allocated=False, source=SIMULATOR, confidence="high")


@dataclass(slots=True)
class NodeAgent:
    """One node's identity on the wire, and where it is in it."""

    node: int
    """Position in the fleet."""
    gpus: int
    boot: str
    seq: int = 0
    facts_id: int = 0
    owners: tuple[Owner, ...] = ()
    must_send_facts: bool = True
    ahead_ns: int = 0
    """How far its clock is ahead."""
    dead: bool = False
    starts: int = 1
    """How often it was started."""
    asked: list[tuple[str, str]] = field(default_factory=list)
    """(GPU, request id) of flights that its next batch brings."""
    answered: set[str] = field(default_factory=set)

    def ask(self, flights: Iterable[tuple[str, str]]) -> None:
        """Take the collector's requests, each once."""
        for gpu, request in flights:
            if request not in self.answered:
                self.answered.add(request)
                self.asked.append((gpu, request))

    def live(self) -> None:
        """Start anew if it was dead: with a spool of its own, and nothing kept of what happened meanwhile."""
        if self.dead:
            self.dead, self.seq, self.must_send_facts = False, 0, True
            self.starts += 1
            self.boot = f"{self.boot.partition('.')[0]}.{self.starts}"

    @property
    def name(self) -> str:
        """Such as `sim-007`."""
        return f"sim-{self.node:03d}"

    @property
    def uuids(self) -> tuple[str, ...]:
        """The UUIDs of its GPUs."""
        return tuple(gpu_uuid(self.node, index) for index in range(self.gpus))


def node_agents(seed: int, nodes: int, gpus_per_node: int) -> list[NodeAgent]:
    """The agents of a fleet, freshly booted."""
    boots = np.random.default_rng([seed, 2])
    return [NodeAgent(node, gpus_per_node, str(uuid.UUID(bytes=boots.bytes(16)))) for node in range(nodes)]


def gpu_uuid(node: int, index: int) -> str:
    """In the form of a real one, but no real one: `sim` is not hexadecimal."""
    return f"GPU-sim{node:05d}-0000-4000-8000-{index:012d}"


@dataclass(slots=True)
class Shares:
    """A block, cut into what each node sends."""

    block: Block
    nodes: int
    flown: Flown
    columns: dict[str, NDArray[np.generic]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        instants = len(self.block.times_ns)
        for name, values in self.block.gpu.items():
            by_node = values.reshape(instants, self.nodes, -1).transpose(1, 0, 2)
            self.columns[name] = np.ascontiguousarray(by_node)

    def batches(self, agent: NodeAgent, now_ns: Callable[[], int]) -> Iterator[Batch]:
        """The batches of one node in order; a new one begins where an owner changes.

        Each batch is made when it is asked for: what the collector answered to the one before counts.
        """
        block, size, node = self.block, agent.gpus, agent.node
        job = block.job[:, node * size : (node + 1) * size]
        told = np.column_stack((job, block.ahead_ns[:, node], block.pushes[:, node]))
        cuts = [0, *(np.flatnonzero((told[1:] != told[:-1]).any(axis=1)) + 1).tolist(), len(job)]
        for first, last in pairwise(cuts):
            if not block.pushes[first, node]:
                agent.dead = True
                continue
            agent.live()
            agent.ahead_ns = int(block.ahead_ns[first, node])
            owners = tuple(self._owner(int(position)) for position in job[first])
            if owners != agent.owners:
                agent.owners, agent.must_send_facts = owners, True
                agent.facts_id += 1
            agent.seq += 1
            facts = self._facts(agent) if agent.must_send_facts else None
            agent.must_send_facts = False
            yield Batch(
                node=agent.name,
                boot=agent.boot,
                seq=agent.seq,
                sent_ns=now_ns() + agent.ahead_ns,
                period_s=PERIOD_S,
                times_ns=(block.times_ns[first:last] + agent.ahead_ns).tolist(),
                gpus=agent.uuids,
                columns={name: values[agent.node, first:last] for name, values in self.columns.items()},
                host={name: values[first:last, agent.node].tobytes() for name, values in block.host.items()},
                facts_id=agent.facts_id,
                facts=facts,
                simulated=True,
                events=self._events(agent, first, last),
                flights=self._flights(agent, now_ns),
            )

    def _events(self, agent: NodeAgent, first: int, last: int) -> tuple[Event, ...]:
        """The events of the node's GPUs at the instants [first, last)."""
        begin_ns, end_ns = self.block.times_ns[first], self.block.times_ns[last - 1]
        return tuple(
            Event(
                event.time_ns + agent.ahead_ns,
                agent.uuids[event.gpu % agent.gpus],
                event.kind,
                event.code,
                "SIMULATED",
            )
            for event in self.block.events
            if event.gpu // agent.gpus == agent.node and begin_ns <= event.time_ns <= end_ns
        )

    def _flights(self, agent: NodeAgent, now_ns: Callable[[], int]) -> tuple[Flight, ...]:
        asked, agent.asked = agent.asked, []
        uuids = agent.uuids
        return tuple(
            self.flown.flight(gpu, agent.node * agent.gpus + uuids.index(gpu), request, now_ns())
            for gpu, request in asked
            if gpu in uuids
        )

    def _owner(self, position: int) -> Owner:
        if position < 0:
            return Nobody
        job = self.block.jobs[position]
        return Owner(
            allocated=True,
            job=job.name,
            user=job.user,
            interactive=job.interactive,
            source=SIMULATOR,
            confidence="high",
        )

    def _facts(self, agent: NodeAgent) -> tuple[GpuFacts, ...]:
        sources = dict.fromkeys(self.columns, SIMULATOR)
        return tuple(
            GpuFacts(
                uuid=agent.uuids[index],
                index=index,
                model=hardware().model,
                pci_bus_id=f"00000000:{0x1B + 0x10 * index:02X}:00.0",
                minor=index,
                driver="595.71.05",
                sources=sources,
                owner=agent.owners[index],
            )
            for index in range(agent.gpus)
        )
