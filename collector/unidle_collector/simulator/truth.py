"""The truth file: what was injected and how far the play has come, as JSON.

`{"simulated": true, "seed", "nodes", "gpus", "phase": "history" | "live", "start_ns", "event_time_ns",
"live_start_ns", "history_s", "progress": 0-1, "sim_speed": simulated seconds per second,
"faults": [{"kind", "cause", "node", "gpus": [UUID], "job", "start_ns", "end_ns", "evident_ns"}]}`; `node` is
one, or `sim-028 to sim-035`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unidle_collector.simulator.agents import gpu_uuid
from unidle_collector.simulator.faults import Fault
from unidle_collector.simulator.fleet import SECOND_NS, Fleet

WRITE_EVERY_NS = SECOND_NS // 2


class Progress:
    """How far a play has come, and how fast."""

    def __init__(self, began_ns: int) -> None:
        self._began_ns = began_ns
        self._written_ns = 0
        self._told_tenth = -1
        self._was_live = False
        self.write_now = False
        """Is it time to write the truth file."""
        self.done = 0.0
        """Share of the history that was played, 0-1."""
        self.speed = 0.0
        """Simulated seconds per second over the history."""

    def moved(self, fleet: Fleet, now_ns: int, history_s: int) -> str:
        """Take note; returns what is worth telling, or nothing."""
        live = fleet.live_s is not None
        went_live = live and not self._was_live
        self.write_now = went_live or now_ns - self._written_ns >= WRITE_EVERY_NS
        if self.write_now:
            self._written_ns = now_ns
        if live and not went_live:
            return ""
        self._was_live = live
        self.speed = fleet.now_s / max((now_ns - self._began_ns) / SECOND_NS, 1e-3)
        self.done = 1.0 if live else min(fleet.now_s / history_s, 0.99)
        tenth = int(self.done * 10)
        if tenth == self._told_tenth:
            return ""
        self._told_tenth = tenth
        where = "live" if live else f"history {self.done:.0%}"
        return f"{where}, {fleet.now_s} s at {self.speed:.0f} times the speed of life"


def truth_document(fleet: Fleet, seed: int, progress: Progress) -> dict[str, Any]:
    """The content of the truth file."""
    live_ns = None if fleet.live_s is None else fleet.start_ns + fleet.live_s * SECOND_NS
    return {
        "simulated": True,
        "seed": seed,
        "nodes": fleet.nodes,
        "gpus": fleet.gpus,
        "phase": "history" if live_ns is None else "live",
        "start_ns": fleet.start_ns,
        "event_time_ns": fleet.now_ns,
        "live_start_ns": live_ns,
        "history_s": fleet.now_s if fleet.live_s is None else fleet.live_s,
        "progress": round(progress.done, 4),
        "sim_speed": round(progress.speed, 1),
        "faults": [_fault(fleet, fault) for fault in fleet.faults],
    }


def write_truth(path: Path, document: dict[str, Any]) -> None:
    """Replace the file at once, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps(document), encoding="utf-8")
    fresh.replace(path)


def _fault(fleet: Fleet, fault: Fault) -> dict[str, Any]:
    def at(second: int) -> int:
        return fleet.start_ns + second * SECOND_NS

    nodes = (fault.gpus // fleet.gpus_per_node).tolist()
    return {
        "kind": fault.kind,
        "cause": fault.cause,
        "node": " to ".join(f"sim-{node:03d}" for node in sorted({nodes[0], nodes[-1]})),
        "gpus": [gpu_uuid(*divmod(int(position), fleet.gpus_per_node)) for position in fault.gpus],
        "job": fault.job,
        "start_ns": at(fault.start_s),
        "end_ns": None if fault.end_s is None else at(fault.end_s),
        "evident_ns": at(fault.evident_s),
    }
