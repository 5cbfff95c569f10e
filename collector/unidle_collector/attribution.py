"""Joins the agents' word on owners with the scheduler's in the running collector, and tells the engine.

Everything here but the poller's own thread runs in the thread that owns the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from unidle_agent.wire import GpuFacts, Owner
from unidle_collector.engine import Engine
from unidle_collector.model import SchedulerNow
from unidle_collector.ownership import Ownership, Place
from unidle_collector.scheduler import Node, Snapshot, Source
from unidle_collector.scheduler.poller import Poller

JOINED_AT_ONCE = 1000
"""GPUs; one takes about 5 us."""


PLANNED = {
    "powered_down", "power_down", "powering_down", "powering_up", "future", "planned", "reboot_issued",
}  # fmt: skip
"""Slurm's words beside which `down` is no failure: power saving, a boot on request, what is yet to come."""


class NodeFacts(Protocol):
    """What a node said of its GPUs."""

    facts: dict[str, GpuFacts]


class Attribution:
    """Whose each GPU is; with the source None it is the agents' word alone."""

    def __init__(
        self,
        engine: Engine,
        nodes: Mapping[str, NodeFacts],
        source: Source | None,
        poll_s: float,
        keep: Path,
        ask: Callable[[Callable[[], None]], object],
        clock_ns: Callable[[], int],
    ) -> None:
        """`keep` is the file of the scheduler's last word."""
        self._engine = engine
        self._nodes = nodes
        self._ask = ask
        self._clock_ns = clock_ns
        self._poller: Poller | None = None
        if source is not None:
            self._poller = Poller(source, poll_s, self._deliver, keep=keep, clock_ns=clock_ns)
        stale_after_ns = self._poller.stale_after_ns if self._poller else 0
        self.ownership = Ownership(stale_after_ns, engine.dimensions)

    def restore(self) -> None:
        """Take up the scheduler's last word of before a restart: no job is to look like a new one."""
        snapshot = self._poller.restore() if self._poller else None
        if snapshot is not None:
            self._hear_of(snapshot)

    def start(self) -> None:
        """Begin to ask the scheduler, where there is one."""
        if self._poller is not None:
            self._poller.start()

    def stop(self) -> None:
        """Ask no more."""
        if self._poller is not None:
            self._poller.stop()

    def hear(self, position: int, owner: Owner) -> None:
        """An agent says from the next step on who holds the GPU at `position`."""
        joined = self.ownership.hear(position, self._place(position), owner, self._clock_ns())
        self._engine.own(position, joined)

    def take(self, snapshot: Snapshot | None) -> None:
        """The scheduler's word, or None: the last one has grown older."""
        if snapshot is not None:
            self._hear_of(snapshot)
            self._of_nodes(
                "out_of_service", {node.name for node in snapshot.nodes if node.down or not node.available}
            )
            self._of_nodes("node_down", {node.name for node in snapshot.nodes if _failed(node)})
        elif (now := self.status()) is not None and now.stale:
            self._of_nodes("node_down", set())
        self._join(self.ownership.heard())

    def _hear_of(self, snapshot: Snapshot) -> None:
        self.ownership.take(snapshot)
        self._engine.inventory.granted = {
            job.id: sum(grant.gpus or 0 for grant in job.grants) for job in snapshot.jobs if job.grants
        }

    def _of_nodes(self, name: str, nodes: set[str]) -> None:
        """Mark the GPUs of `nodes`, and no others."""
        inventory = self._engine.inventory
        by_node = np.array([node in nodes for node in inventory.node_names] + [False])
        inventory.a[name][:] = by_node[inventory.a["node"]]  # -1: an empty place

    def _join(self, positions: list[int]) -> None:
        """A part at a time: whoever asks, and the next step, wait for a few ms and not for all GPUs."""
        now_ns = self._clock_ns()
        for position in positions[:JOINED_AT_ONCE]:
            self._engine.own(position, self.ownership.joined(position, now_ns))
        if left := positions[JOINED_AT_ONCE:]:
            self._ask(lambda: self._join(left))

    def status(self) -> SchedulerNow | None:
        """How well the scheduler's word is known; None without one."""
        return None if self._poller is None else self._poller.status()

    def problem(self) -> str:
        """What is wrong with the scheduler's word, empty when nothing is."""
        now = self.status()
        if now is None:
            return ""
        if unlike := len(self.ownership.unlike):
            return (
                f"agents and collector hide names by different keys on {unlike} GPUs: set the same "
                "privacy and privacy_key in [agent] and [collector]"
            )
        if now.age_s is None:
            return f"{now.scheduler} has not answered yet: {now.error}" if now.error else ""
        if not now.stale:
            return ""
        return (
            f"{now.scheduler} has not answered for {now.age_s:.0f} s, owners are the agents' word alone: "
            f"{now.error}"
        )

    def _deliver(self, snapshot: Snapshot | None) -> None:
        """In the poller's thread."""
        self._ask(lambda: self.take(snapshot))

    def _place(self, position: int) -> Place:
        ref = self._engine.inventory.refs[position]
        node = self._nodes.get(ref.node)
        facts = node.facts.get(ref.gpu) if node else None
        if facts is None:
            return Place(ref.node, ref.index)
        number = facts.minor if facts.minor is not None else facts.index
        return Place(ref.node, number, whole=not facts.mig_profile)


def _failed(node: Node) -> bool:
    """Is it down, and nobody planned that."""
    return node.down and PLANNED.isdisjoint(node.states)
