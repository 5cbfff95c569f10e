"""InfiniBand: a port of a node went down, runs below its rate, or collects errors.

What it means
    Jobs over several nodes reduce over these ports (RoCE, too); one bad cable slows all of them, and a
    port that is down moves its traffic to the others.

Evidence
    ib_ports_active, ib_ports_inactive, ib_ports_slow and the growth of ib_link_errors, of the node.

How it decides
    Flags have to be seen for 15 s, or 5 s where the agent looks again at once, and in two answers; over after
    60 s without, errors 10 min after the last.
    - `port_down`: fewer ports active than the node had since the collector knows it: ports that never were
      active may have no cable.
    - `slow_port`: more slow ports than the median of at least 3 nodes with as many ports and the same GPUs;
      where there are no such nodes, than it had before. A slower card for storage is thereby no fault.
    - `errors`: at least 60 errors in at least 3 answers 8 s or more apart, no more than 2 min, as many as 10
      a minute; or, where the agent looks again at once, at least 600 in 3 answers that span 5 s.

What to do
    Read the port's counters, reseat or replace the cable or the transceiver, then the switch's port.

How to silence it
    `silence = ["infiniband:NODE"]` in `[collector]`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unidle_collector.detectors import About, Verdict, percent
from unidle_collector.model import Evidence
from unidle_collector.pergpu import SECOND_NS, Bools, Floats, Positions
from unidle_collector.signals import View
from unidle_collector.signs.lasting import ErrorLimits, Growth, Lasting, settles_s

FIELDS = ("ib_ports_active", "ib_ports_inactive", "ib_ports_slow")
CAUSES = ("port_down", "slow_port", "errors")
ALIKE = 3
"""Fewest nodes that a median is taken of."""
AGREEING = 2
"""Fewest answers that say the same."""

ERRORS = ErrorLimits(errors=60.0, errors_per_min=10.0, readings=3, storm=600.0, gap_s=120.0, lasts_s=600.0)


@dataclass(frozen=True, slots=True)
class Settings:
    """Seconds."""

    on_after_s: float = 15.0
    off_after_s: float = 60.0


class Infiniband(Lasting):
    """The condition, vectorised: every GPU has its node's values."""

    kind = "infiniband"
    causes = CAUSES

    def __init__(self, size: int, period_s: float, settings: Settings) -> None:
        super().__init__(size, max(settings.off_after_s, 1.5 * period_s))
        self.settings = settings
        self._on_after_s = max(settings.on_after_s, 1.5 * period_s)
        self.remember(*FIELDS)
        self._a.make("most_active", np.float64, np.nan)
        self._a.make("expected_slow", np.float64, np.nan)
        self._a.make("bad_since", np.int64, 0)
        self._a.make("bad_answers", np.int32, 0)
        self._errors = Growth(size, ERRORS.gap_s)

    def look(self, view: View) -> Verdict:
        """See the module's docstring."""
        a, step = self._a, view.step
        columns = step.columns.keys()
        if columns.isdisjoint(FIELDS) and "ib_link_errors" not in columns and not self._hold.on.any():
            return Verdict(self._hold.on, self._hold.since, a["cause"], a["loss"])
        active, inactive, slow = (self.latest(view, field) for field in FIELDS)
        np.fmax(a["most_active"], active, out=a["most_active"])
        if not columns.isdisjoint(FIELDS):
            own = np.fmin(a["expected_slow"], slow)
            alike = _median_of_alike(view, active + inactive, slow)
            a["expected_slow"][:] = np.where(np.isnan(alike), own, alike)
        gone, slower = active < a["most_active"], slow > a["expected_slow"]
        bad = gone | slower
        a["bad_since"][~bad], a["bad_answers"][~bad] = step.end_ns, 0
        a["bad_answers"][bad & ~np.isnan(step.get("ib_ports_active"))] += 1
        lasting = (step.end_ns - a["bad_since"]) / SECOND_NS >= settles_s(view, self._on_after_s)
        lasting &= a["bad_answers"] >= AGREEING
        if "ib_link_errors" in columns:
            self._errors.update(step.get("ib_link_errors"), step.end_ns)
        yes: Bools = (bad & lasting) | self._errors.faulty(view, ERRORS)
        return self.decide(view, yes, step.sampled, np.select((gone, slower), (0, 1), 2), 0.0)

    def about(self, view: View, gpus: Positions, cause: str, lasted_s: float) -> About:
        """What a colleague would say."""
        a, one = self._a, int(gpus[0])
        node = view.inventory.refs[one].node
        if cause == "port_down":
            now, most = float(a["ib_ports_active"][one]), float(a["most_active"][one])
            words = f"{now:.0f} of {most:.0f} ports active, {percent(1 - now / most)} of the bandwidth gone"
            evidence = Evidence("ib_ports_active", now, "ports", most, lasted_s, words)
        elif cause == "slow_port":
            now, usual = float(a["ib_ports_slow"][one]), float(a["expected_slow"][one])
            words = f"{now:.0f} ports below the rate of the others, usual are {usual:.0f}"
            evidence = Evidence("ib_ports_slow", now, "ports", usual, lasted_s, words)
        else:
            rate, limit = float(self._errors.per_min[one]), ERRORS.errors_per_min
            words = f"{rate:.0f} link errors a minute"
            evidence = Evidence("ib_link_errors", rate, "1/min", limit, lasted_s, words)
        return About(
            title=f"InfiniBand of {node}: {words}",
            severity="critical" if cause == "port_down" else "warning",
            confidence=0.9,
            evidence=(evidence,),
            advice=(
                f"On {node}: ibstat and perfquery -x name the port; reseat or replace its cable or "
                "transceiver."
            ),
            confirm="ibdiagnet, or ip -s link and ethtool -S for RoCE",
        )


def _median_of_alike(view: View, ports: Floats, slow: Floats) -> Floats:
    """[GPUs] median of slow ports of the nodes with as many ports and the same GPUs; NaN where too few."""
    a = view.inventory.a
    out = np.full(ports.shape, np.nan)
    known = np.flatnonzero(~np.isnan(ports) & ~np.isnan(slow))
    if not known.size or not (slow[known] > 0).any():
        return np.where(np.isnan(slow), np.nan, 0.0) if known.size else out
    _, first = np.unique(a["node"][known], return_index=True)
    nodes = known[first]  # one GPU of each node
    kind = ports * 4096 + a["model"]
    for value in np.unique(kind[nodes]):
        mine = nodes[kind[nodes] == value]
        if mine.size >= ALIKE:
            out[kind == value] = float(np.median(slow[mine]))
    return out


def make(size: int, period_s: float) -> Infiniband:
    """The detector with the product's defaults."""
    return Infiniband(size, period_s, Settings())
