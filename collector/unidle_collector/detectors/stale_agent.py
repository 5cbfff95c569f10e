"""Stale agent: a node that was known does not push any more.

What it means
    Its agent died, its network is gone, or the machine is down. What its GPUs do since is unknown: neither
    lost nor productive, and no finding about them can open.

Evidence
    When the node pushed last, by the collector's clock.

How it decides
    No push for 90 s (an agent pushes each 5 s, at most each 30 s), or for 3.5 of its periods where that is
    longer (an exporter that is asked each minute): one answer that is lost is no silence. Told at once. Only
    where the node has pushed since the collector started or was known from before. Not where its scheduler
    says that it is down or drained, nor while every node is silent: that is the collector's or the network's
    fault, which health says. Over with the first push, or after 7 days: then the node is gone for good. Not
    in recordings, whose pushes nobody saw.

What to do
    systemctl status unidle-agent on the node; where it cannot be reached, look at the machine.

How to silence it
    `silence = ["stale_agent:NODE"]` in `[collector]`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from unidle_collector.detectors import About, Verdict, duration
from unidle_collector.model import Evidence
from unidle_collector.pergpu import NEVER, SECOND_NS, Positions, Times
from unidle_collector.signals import View
from unidle_collector.signs.lasting import Lasting


@dataclass(frozen=True, slots=True)
class Settings:
    """Seconds."""

    silent_s: float = 90.0
    gone_s: float = 7 * 86_400.0
    periods: float = 3.5


class StaleAgent(Lasting):
    """The condition, by what the inventory knows of each GPU's node."""

    kind = "stale_agent"
    causes = ("silent",)

    def __init__(self, size: int, settings: Settings) -> None:
        super().__init__(size, off_after_s=0.0, forget_s=settings.gone_s)
        self.settings = settings

    def look(self, view: View) -> Verdict:
        """See the module's docstring."""
        about, s = view.inventory.a, self.settings
        end_ns, heard_ns = view.step.end_ns, about["heard_ns"]
        silent_s = np.fmax(s.silent_s, s.periods * about["period_s"])
        silent_ns = (silent_s * SECOND_NS).astype(np.int64)
        known = heard_ns != NEVER
        nobody = np.zeros_like(known)
        if not (known & (end_ns - heard_ns >= silent_ns)).any():
            return self.decide(view, nobody, known, self._a["cause"], 0.0)
        heard_ns = _by_node(about["node"], heard_ns)  # a GPU may leave a node that goes on
        since_ns = end_ns - heard_ns
        silent = known & (since_ns >= silent_ns) & (since_ns < int(s.gone_s * SECOND_NS))
        # Everybody silent tells nothing of any one node: what was told before stays, nothing new is.
        some_push = bool((known & (since_ns < silent_ns)).any())
        said = self.decide(view, silent & ~about["out_of_service"], known & some_push, self._a["cause"], 0.0)
        return replace(said, since=np.where(said.on, heard_ns, NEVER))

    def about(self, view: View, gpus: Positions, cause: str, lasted_s: float) -> About:
        """What a colleague would say."""
        one = int(gpus[0])
        node = view.inventory.refs[one].node
        silent_s = (view.step.end_ns - int(view.inventory.a["heard_ns"][one])) / SECOND_NS
        words = f"{node} has not pushed for {duration(silent_s)}"
        return About(
            title=f"{words}: its {gpus.size} GPUs are unknown since",
            severity="warning",
            confidence=0.9,
            evidence=(Evidence("last_push", silent_s, "s", self.settings.silent_s, silent_s, words),),
            advice=f"On {node}: systemctl status unidle-agent; out of reach, look at the machine.",
            confirm=f"unidle doctor on {node}; ping {node}",
        )


def _by_node(node: np.ndarray, heard_ns: Times) -> Times:
    """[GPUs] when any GPU of the same node was heard of last."""
    newest = np.full(int(node.max()) + 2, NEVER)
    np.maximum.at(newest, node + 1, heard_ns)
    out: Times = newest[node + 1]
    return out


def make(size: int, period_s: float) -> StaleAgent:
    """The detector with the product's defaults."""
    return StaleAgent(size, Settings())
