"""What the engine tells, changes or ends becomes events of incidents in the state database, one and all."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable

from unidle_agent.errors import UnidleError
from unidle_collector.findings import Change
from unidle_collector.model import Incident
from unidle_collector.recommend import recommend
from unidle_collector.store import State
from unidle_collector.taking import Taking
from unidle_collector.timings import Timings

STATE_PATIENCE = 10
"""A state database that took a while to fail is left alone for this many times as long."""


class IncidentLog:
    """Belongs to the thread that owns the engine."""

    def __init__(
        self, state: State, taking: Taking, clock_ns: Callable[[], int], is_live: Callable[[], bool]
    ) -> None:
        """`is_live`: not while what the last run left is gone through, whose rows came long ago."""
        self._state, self._taking, self._clock_ns, self._is_live = state, taking, clock_ns, is_live
        self.delay_s = Timings()
        """From the arrival of the row that decided a finding to the finding."""
        self._waiting: deque[Change] = deque()
        """Changes that the state database has not taken yet, in order."""
        self._again_s = 0.0

    def add(self, changes: Iterable[Change]) -> None:
        """For the next `keep`."""
        self._waiting += changes

    def keep(self) -> None:
        """Write what waits; while the database takes nothing it goes on waiting, and the problem is said."""
        began_s = time.monotonic()
        if not self._waiting or began_s < self._again_s:
            return
        try:
            while self._waiting:
                self._keep(self._waiting[0])
                change = self._waiting.popleft()
                self._taking.counters[f"findings_{change.what}"] += 1
                self._note_delay(change)
                self._taking.problems.pop("state", None)
        except UnidleError as error:
            self._taking.problems["state"] = str(error)
            failed_s = time.monotonic()
            self._again_s = failed_s + STATE_PATIENCE * (failed_s - began_s)

    def _note_delay(self, change: Change) -> None:
        if change.what != "told" or not self._is_live():
            return
        at_ns = change.finding.updated_ns
        nodes = {ref.node for ref in change.finding.gpus}
        arrived = [self._taking.arrived_ns(node, at_ns) for node in nodes]
        known = [at_ns for at_ns in arrived if at_ns is not None]
        if known:
            self.delay_s.add((self._clock_ns() - max(known)) / 1e9)

    def _keep(self, change: Change) -> None:
        finding, now = change.finding, change.finding.updated_ns
        before = self._state.incident(finding.id)
        if before is not None and before.finding.updated_ns >= now:
            return  # known from before a restart, whose rows are gone through again
        over = change.what == "ended"
        incident = Incident(
            id=finding.id,
            state="resolved" if over else "open",
            revision=before.revision + 1 if before else 1,
            opened_ns=before.opened_ns if before else now,
            resolved_ns=now if over else None,
            finding=finding,
            recommendations=() if over else tuple(recommend([finding], now)),
        )
        self._state.save_incident(incident, now)
        if change.asks_flight:
            self._taking.flights.ask(finding)
