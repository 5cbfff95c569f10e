"""Clock skew: a node's clock is not the collector's.

What it means
    The node's rows lie at another time than those of the others. Up to the collector's `clock_skew_s`
    (60 s) they are taken as they are: a clock that is behind holds up findings about the whole fleet, and
    causes and effects on several nodes come in the wrong order. Beyond that the rows are shifted.

Evidence
    The node's clock in each push, against the collector's at its receipt.

How it decides
    5 s or more in pushes that span 4 s and agree within 1 s (ahead) or 0.5 s (behind: a push that was long on
    its way looks the same, but hardly twice as long within half a second). Over below 3 s for 30 s.
    Not in recordings, whose pushes nobody saw.

What to do
    Run an NTP client on the node (chronyc tracking, timedatectl) and step the clock once.

How to silence it
    `silence = ["clock_skew:NODE"]` in `[collector]`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unidle_collector.detectors import About, Verdict, duration
from unidle_collector.model import Evidence
from unidle_collector.pergpu import NEVER, SECOND_NS, Bools, Floats, Positions, Times
from unidle_collector.signals import View
from unidle_collector.signs.lasting import Lasting

CAUSES = ("ahead", "behind")


@dataclass(frozen=True, slots=True)
class Settings:
    """Seconds."""

    on_s: float = 5.0
    off_s: float = 3.0
    """Between the two nothing changes."""
    ahead_agree_s: float = 1.0
    behind_agree_s: float = 0.5
    spans_s: float = 4.0
    off_after_s: float = 30.0


class ClockSkew(Lasting):
    """The condition, by what the inventory knows of each GPU's node."""

    kind = "clock_skew"
    causes = CAUSES

    def __init__(self, size: int, settings: Settings) -> None:
        super().__init__(size, settings.off_after_s)
        self.settings = settings
        self._a.make("pushed_ns", np.int64, NEVER)  # the last push that was looked at, receiver's clock
        self._a.make("first_ns", np.int64, NEVER)  # the first of those that agree with it
        self._a.make("ahead_s", np.float64, np.nan)  # what it said, where that is far off

    def look(self, view: View) -> Verdict:
        """See the module's docstring."""
        ahead_s, s = view.inventory.a["clock_ahead_s"], self.settings
        off_s = np.abs(ahead_s)
        far = off_s >= s.on_s
        self._a["ahead_s"][~far] = np.nan
        if not far.any() and not self._hold.on.any():
            self._hold.reset(off_s < s.off_s)
            return Verdict(self._hold.on, self._hold.since, self._a["cause"], self._a["loss"])
        spans_s = self._agreeing_s(view.inventory.a["heard_ns"], ahead_s, far)
        enough = far & (spans_s >= s.spans_s)
        known = view.step.sampled & (enough | (off_s < s.off_s))
        return self.decide(view, enough, known, np.where(ahead_s > 0, 0, 1), 0.0)

    def _agreeing_s(self, heard_ns: Times, ahead_s: Floats, far: Bools) -> Floats:
        """[GPUs] time between the first and the last of the pushes in a row that say the same as the last."""
        a, s = self._a, self.settings
        new = heard_ns != a["pushed_ns"]
        agrees = np.abs(ahead_s - a["ahead_s"]) <= np.where(ahead_s > 0, s.ahead_agree_s, s.behind_agree_s)
        np.copyto(a["first_ns"], heard_ns, where=new & ~agrees)
        np.copyto(a["ahead_s"], ahead_s, where=new & far)
        np.copyto(a["pushed_ns"], heard_ns, where=new)
        out: Floats = (heard_ns - a["first_ns"]) / SECOND_NS
        return out

    def about(self, view: View, gpus: Positions, cause: str, lasted_s: float) -> About:
        """What a colleague would say."""
        one = int(gpus[0])
        node, ahead_s = view.inventory.refs[one].node, float(view.inventory.a["clock_ahead_s"][one])
        words = f"the clock of {node} is {duration(abs(ahead_s))} {cause}"
        return About(
            title=words,
            severity="warning",
            confidence=0.95,
            evidence=(Evidence("clock_ahead_s", ahead_s, "s", self.settings.on_s, lasted_s, words),),
            advice=f"On {node}: run an NTP client, then chronyc makestep (or timedatectl set-ntp true).",
            confirm=f"chronyc tracking, or timedatectl, on {node}",
        )


def make(size: int, period_s: float) -> ClockSkew:
    """The detector with the product's defaults."""
    return ClockSkew(size, Settings())
