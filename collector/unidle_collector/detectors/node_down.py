"""Node down: the scheduler says that a node is down, so that no job can have its GPUs.

What it means
    Slurm's controller has lost the node or was told to take it out as failed; a Kubernetes node is not
    ready. Its GPUs may be well, and its agent may push: nobody can use them all the same.

Evidence
    The node's state in the scheduler's last answer.

How it decides
    On with the answer that says so, told after 60 s; the time of the node's GPUs has failed meanwhile. Off
    with the answer that does not, or when the scheduler has not answered for three polls. Not where the node
    was switched off to save power, is being booted on request, or is planned for later; a drained node goes
    on, and has not failed.

What to do
    Read the scheduler's reason, then the node's console; resume it when it is well.

How to silence it
    `silence = ["node_down:NODE"]` in `[collector]`.
"""

from __future__ import annotations

import numpy as np

from unidle_collector.detectors import About, Verdict, duration, plural
from unidle_collector.model import Evidence
from unidle_collector.pergpu import Positions
from unidle_collector.signals import View
from unidle_collector.signs.lasting import Lasting, where

TOLD_AFTER_S = 60.0


class NodeDown(Lasting):
    """The condition, by what the inventory knows of each GPU's node."""

    kind = "node_down"
    state = "failed"
    causes = ("down",)
    finding_delay_s = TOLD_AFTER_S

    def __init__(self, size: int) -> None:
        super().__init__(size, off_after_s=0.0)
        self._a.make("loss", np.float64, 1.0)

    def look(self, view: View) -> Verdict:
        """See the module's docstring."""
        down = view.inventory.a["node_down"]
        if not down.any() and not self._hold.on.any():
            return Verdict(self._hold.on, self._hold.since, self._a["cause"], self._a["loss"])
        return self.decide(view, down, np.ones_like(down), self._a["cause"], 0.0)

    def about(self, view: View, gpus: Positions, cause: str, lasted_s: float) -> About:
        """What a colleague would say."""
        node, _ = where(view, gpus)
        words = f"the scheduler says that {node} is down"
        return About(
            title=f"{node} is down for {duration(lasted_s)}: {plural(gpus.size, 'GPU')} nobody can use",
            severity="critical",
            confidence=0.95,
            evidence=(Evidence("node_state", 1.0, "flag", 0.0, lasted_s, words),),
            advice=(
                f"scontrol show node {node} (Kubernetes: kubectl describe node {node}) gives the reason; "
                f"when the node is well: scontrol update NodeName={node} State=RESUME."
            ),
            confirm=f"sinfo -R, or kubectl get node {node}; ping {node}, and its console",
        )


def make(size: int, period_s: float) -> NodeDown:
    """The detector with the product's defaults."""
    return NodeDown(size)
