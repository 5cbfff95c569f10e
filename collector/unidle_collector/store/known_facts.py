"""What each node said last of its GPUs, in memory before the state database.

Nodes send it when it changes; rows that become segments need it all the time, for the jobs. Asking the
database for every node of every log file cost more than writing the rows did.
"""

from __future__ import annotations

from collections.abc import Mapping

from unidle_agent.wire import GpuFacts
from unidle_collector.store.gather import FactsKey
from unidle_collector.store.state import State

Facts = tuple[GpuFacts, ...]


class KnownFacts:
    """The facts of the nodes; for one thread."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._newest: dict[str, tuple[FactsKey, Facts | None]] = {}
        """Node -> what was saved or asked for last; None: the database has nothing under that key."""

    def of(self, key: FactsKey) -> Facts | None:
        """The facts under a key; None when they are not known."""
        newest = self._newest.get(key[0])
        if newest is None or newest[0] != key:
            newest = self._newest[key[0]] = key, self._state.facts(key)
        return newest[1]

    def save(self, facts: Mapping[FactsKey, Facts], time_ns: int) -> None:
        """Keep what nodes said, durably."""
        self._state.save_facts(facts, time_ns)
        for key, said in facts.items():
            self._newest[key[0]] = key, said
