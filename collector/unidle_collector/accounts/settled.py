"""Accounts as counters: time that nothing changes any more, added up since the collector started.

A state that needs evidence is booked back to its begin, so the account of the last twenty minutes can still
move from one state to another, and a counter must never fall. So a span of five minutes is counted once it is
out of reach, 20 to 25 minutes after its end. A restart goes on where it stopped: none is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from unidle_collector.accounts.buckets import BUCKET_NS
from unidle_collector.accounts.grouping import Grouping
from unidle_collector.accounts.ledger import REWRITE_S, Ledger
from unidle_collector.inventory import Inventory
from unidle_collector.model import State
from unidle_collector.pergpu import SECOND_NS

REACH_NS = int(REWRITE_S + 1) * SECOND_NS
REAL, SIMULATED = "0", "1"


@dataclass(frozen=True, slots=True)
class Count:
    """What was settled of one state and cause, of real or of simulated GPUs."""

    gpu_s: float = 0.0
    lost_gpu_s: float = 0.0
    """By loss weight (docs/accounting.md)."""
    lost_j: float = 0.0


class Settled:
    """Belongs to the thread that owns the ledger."""

    def __init__(self, ledger: Ledger, inventory: Inventory) -> None:
        self._ledger = ledger
        simulated = inventory.simulated
        self._sides = Grouping(lambda tenure: SIMULATED if simulated[tenure.gpu] else REAL)
        self._until_ns = 0
        self.counts: dict[tuple[State, str, str], Count] = {}
        """(state, cause, SIMULATED or REAL) -> since the start."""

    def begin(self, time_ns: int | None) -> None:
        """Count from where the last run stopped, which ended at `time_ns`; None: from the first row."""
        self._until_ns = 0 if time_ns is None else _reached(time_ns)

    def advance(self, time_ns: int | None) -> None:
        """Count what is settled at `time_ns` (event time)."""
        until_ns = 0 if time_ns is None else _reached(time_ns)
        if until_ns <= self._until_ns:
            return
        tally = self._ledger.tally(self._sides, self._until_ns, until_ns)
        self._until_ns = until_ns
        for number, (state, cause) in enumerate(tally.codes):
            for group, key in enumerate(tally.keys):
                before = self.counts.get((state, cause, key), Count())
                self.counts[state, cause, key] = Count(
                    before.gpu_s + float(tally.seconds[number, group]),
                    before.lost_gpu_s + float(tally.lost_s[number, group]),
                    before.lost_j + float(tally.lost_j[number, group]),
                )


def _reached(time_ns: int) -> int:
    return max(0, (time_ns - REACH_NS) // BUCKET_NS * BUCKET_NS)
