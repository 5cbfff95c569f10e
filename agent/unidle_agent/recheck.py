"""What is read seldom because it costs is read again at once when it has turned bad.

A link that is down, narrow or collects errors should be told within seconds, and a single odd answer should
not. So an answer that is worse than the one before is followed by LOOKS more at the next ticks, and whoever
judges has several answers that agree, or none. A counter that goes on growing is followed on; but all of it
is bounded by EXTRA_PER_MIN for each thing that is looked at, so that what flaps costs no more than that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

LOOKS = 6
"""Further answers after one that is worse: a second apart they span the 5 s that a detector asks for."""
EXTRA_PER_MIN = 12.0
"""Most answers a minute beyond the usual ones; as many may come in a row."""
LOADED_RATIO = 0.10
"""GPU_UTIL from which on a GPU works: well below the 0.30 that a detector asks for, so that none takes what a
GPU said at rest for what it says at work."""


@dataclass(frozen=True, slots=True)
class Signs:
    """How bad an answer is: it is worse than another where any of its numbers is larger."""

    states: tuple[float, ...] = ()
    """What is missing now, such as links or lanes: 0 is all well, and so is what was before the first."""
    counts: tuple[float, ...] = ()
    """Counters as they stand: the first answer says nothing."""


class Rechecks:
    """Whether to look again at one thing, by what its answers say. Times are seconds of one clock."""

    def __init__(self) -> None:
        self._before: Signs | None = None
        self._left = 0
        self._budget = EXTRA_PER_MIN
        self._at_s = float("inf")

    def due(self, now_s: float, *, wanted: bool = False) -> bool:
        """Is another answer called for before the usual one, and within the budget; `wanted` calls for it."""
        return (self._left > 0 or wanted) and self._budget_at(now_s) >= 1.0

    def spend(self, now_s: float) -> None:
        """Another answer is asked for now."""
        self._budget, self._at_s = self._budget_at(now_s) - 1.0, now_s
        self._left = max(0, self._left - 1)

    def note(self, signs: Signs) -> None:
        """Take an answer, a usual one or another."""
        before = self._before or Signs((0.0,) * len(signs.states), signs.counts)
        pairs = zip(signs.states + signs.counts, before.states + before.counts, strict=True)
        if any(now > then for now, then in pairs):
            self._left = LOOKS
        self._before = signs

    def _budget_at(self, now_s: float) -> float:
        earned = max(0.0, now_s - self._at_s) * EXTRA_PER_MIN / 60
        return min(EXTRA_PER_MIN, self._budget + earned)


class PcieRechecks:
    """The same of a PCIe link, whose generation counts only while its GPU works: at rest that saves power."""

    def __init__(self) -> None:
        self._again = Rechecks()
        self._low_at_rest = False

    def asks(self, now_s: float, *, loaded: bool) -> bool:
        """Is another answer called for, by the last one or because the GPU works again; it is counted."""
        due = self._again.due(now_s, wanted=self.misleads(loaded=loaded))
        if due:
            self._again.spend(now_s)
        return due

    def note(self, link: Mapping[str, float], *, loaded: bool) -> None:
        """Take an answer of a GPU that works (`loaded`) or rests."""
        lanes, generations = _missing(link, "pcie_width"), _missing(link, "pcie_generation")
        self._low_at_rest = generations > 0 and not loaded
        self._again.note(Signs((lanes, generations if loaded else 0.0)))

    def misleads(self, *, loaded: bool) -> bool:
        """Is the last generation that of a GPU at rest, while it works now."""
        return loaded and self._low_at_rest


def nvlink_signs(values: Mapping[str, float]) -> Signs:
    """Links that are not up, and both counters of errors."""
    down = values.get("nvlink_links", 0) - values.get("nvlink_links_up", values.get("nvlink_links", 0))
    return Signs((down,), (values.get("nvlink_errors", 0), values.get("nvlink_recoveries_failed", 0)))


def infiniband_signs(values: Mapping[str, float]) -> Signs:
    """Ports that are not active or slow, and the errors of all."""
    states = (values.get("ib_ports_inactive", 0), values.get("ib_ports_slow", 0))
    return Signs(states, (values.get("ib_link_errors", 0),))


def _missing(values: Mapping[str, float], name: str) -> float:
    now, most = values.get(name, 0), values.get(f"{name}_max", 0)
    return max(0.0, most - now) if now > 0 else 0.0
