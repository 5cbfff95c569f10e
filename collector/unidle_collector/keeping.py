"""Accounts over restarts: by hour, GPU and job, with the event time that they reach."""

from __future__ import annotations

from typing import Any

from unidle_agent.wire import Owner
from unidle_collector.buckets import HOUR_NS
from unidle_collector.engine import Engine
from unidle_collector.ledger import KEEP_NS
from unidle_collector.model import GpuRef
from unidle_collector.store import Hour, State

REACHED = "accounted_ns"


def save_accounts(engine: Engine, state: State, reached_ns: int) -> None:
    """Keep what was booked up to `reached_ns`: the hours that can still have changed."""
    inventory = engine.inventory
    merged: dict[tuple[int, str, str, str], dict[str, Any]] = {}
    for hour, number, sums in engine.ledger.hours((reached_ns // HOUR_NS - 1) * HOUR_NS, reached_ns + 1):
        tenure = inventory.tenures[number]
        ref, owner = inventory.refs[tenure.gpu], tenure.owner
        document = merged.setdefault(
            (hour, ref.node, ref.gpu, owner.job),
            {
                "user": owner.user,
                "allocated": owner.allocated,
                "model": ref.model,
                "index": ref.index,
                "share": float(inventory.a["share"][tenure.gpu]),
                "simulated": inventory.simulated[tenure.gpu],
                "sums": {},
            },
        )
        for name, values in sums.items():
            before = document["sums"].get(name, [0.0] * len(values))
            document["sums"][name] = [a + b for a, b in zip(before, values, strict=True)]
    hours = [Hour(*key, document) for key, document in merged.items()]
    state.save_hours(hours, {REACHED: str(reached_ns)})


def restore_accounts(engine: Engine, state: State) -> int | None:
    """Put back what `save_accounts` kept; returns the event time that it reaches, None when there is none."""
    reached = state.meta(REACHED)
    if reached is None:
        return None
    for hour in state.hours(int(reached) - KEEP_NS, int(reached) + 1):
        document = hour.document
        ref = GpuRef(hour.node, hour.gpu, document["index"], document["model"])
        position = engine.add(ref, document["share"], document["simulated"])
        owner = Owner(document["allocated"], hour.job, document["user"])
        tenure = engine.inventory.tenure(position, owner)
        engine.ledger.restore(hour.hour_start_ns, tenure, document["sums"])
    return int(reached)
