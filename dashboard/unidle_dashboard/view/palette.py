"""How a state looks and what it is called: the only place that says so.

The colours stay apart for people with protanopia and deuteranopia; a test computes it.
"""

from __future__ import annotations

from dataclasses import dataclass

from unidle_collector.model import STATES, State
from unidle_collector.spoken import cause_words


@dataclass(frozen=True, slots=True)
class Look:
    """One state: its colour, its name and what it means in a few words."""

    colour: str
    name: str
    meaning: str


LOOKS: dict[State, Look] = {
    "failed": Look("#8A1538", "Failed", "GPU lost, driver hung, fatal error, or node down"),
    "unknown": Look("#9AA5B1", "Unknown", "no sample; counted neither as lost nor as productive"),
    "unallocated": Look("#A9CBE8", "Unallocated", "healthy and given to nobody"),
    "idle": Look("#9D5FB8", "Idle", "given to a job, and nothing runs"),
    "throttled": Look("#E8602C", "Throttled", "slowed by heat or by a power limit"),
    "starved": Look("#F5C242", "Starved", "runs, but is fed too slowly"),
    "productive": Look("#2A9D8F", "Productive", "does what it could"),
}
LOST: tuple[State, ...] = ("idle", "throttled", "starved", "failed")
"""States in which a GPU loses time that somebody pays for."""

WORST_FIRST: tuple[State, ...] = (
    "failed", "idle", "throttled", "starved", "unknown", "unallocated", "productive",
)  # fmt: skip
"""Which state a tile of several GPUs shows."""

SEQUENTIAL = ("#1F2A5C", "#2F5D8C", "#2E8C8C", "#5DB56D", "#D9D24A")
"""Low to high, rising in lightness, so that it reads without colour too."""


def cause_name(key: str) -> str:
    """ "starved.storage" -> "Starved: storage too slow"; an unknown cause keeps its own words."""
    state, _, cause = key.rpartition(".")
    said = cause_words(cause)
    name = LOOKS[state].name if state in LOOKS else state.capitalize()
    if not said or said == state:
        return name
    return f"{name}: {said}" if name else said[0].upper() + said[1:]


def cause_state(key: str) -> State:
    """The state that a key of Account.causes belongs to."""
    state = key.partition(".")[0]
    return next((one for one in STATES if one == state), "unknown")
