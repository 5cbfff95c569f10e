"""XID of the application: the driver ended a job's work on a GPU; the GPU stays in service.

What it means
    A page fault, an illegal access, a corrupted push buffer or a contained memory error: the process on
    the GPU got an error, as a rule it has died. On many GPUs of one job it is one finding about the job.

Evidence
    XIDs of the driver whose class is `application`, as events or as changes of last_xid.

How it decides
    The class in data/xids.toml. On at once, over 15 min after the last one, or when another job has the
    GPU. Lines of one code on one GPU within 10 s are one.

What to do
    Look into the job's own log and kernels first. Where the same GPU shows it under several jobs, drain
    its node and test the GPU (dcgmi diag -r 3).

How to silence it
    `silence = ["xid_application:JOB"]` in `[collector]`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unidle_collector.detectors import About, Verdict, plural
from unidle_collector.pergpu import NEVER, SECOND_NS, Bools, Positions
from unidle_collector.signals import View
from unidle_collector.signs.lasting import Lasting, where
from unidle_collector.signs.xids import XidBook, xid


@dataclass(frozen=True, slots=True)
class Settings:
    """Seconds."""

    lasts_s: float = 900.0


class XidApplication(Lasting):
    """The condition, by GPU."""

    kind = "xid_application"
    causes = ("application",)
    groups_by = "job"

    def __init__(self, size: int, settings: Settings) -> None:
        super().__init__(size, off_after_s=0.0, forget_s=settings.lasts_s)
        self.settings = settings
        self._book = XidBook(size, ("application",))
        self._a.make("last_ns", np.int64, NEVER)

    def look(self, view: View) -> Verdict:
        """See the module's docstring."""
        a, now = self._a, view.step.end_ns
        for hit in self._book.take(view):
            a["last_ns"][hit.gpu] = hit.time_ns
        yes = now - a["last_ns"] < int(self.settings.lasts_s * SECOND_NS)
        return self.decide(view, yes, view.step.sampled | yes, a["cause"], 0.0)

    def about(self, view: View, gpus: Positions, cause: str, lasted_s: float) -> About:
        """What a colleague would say."""
        since_ns = view.step.end_ns - int(self.settings.lasts_s * SECOND_NS)
        evidence = self._book.evidence(gpus, since_ns, lasted_s)
        last = xid(int(evidence[0].value or 0) if evidence else 0)
        node, numbers = where(view, gpus)
        return About(
            title=f"XID {last.code} ({last.name}) on {plural(gpus.size, 'GPU')}",
            severity="warning",
            confidence=0.8,
            evidence=tuple(evidence),
            advice=last.action,
            confirm=f"the job's log, and dmesg | grep -i xid on {node} (GPU {numbers}, ...)",
            asks_flight=True,
        )

    def reset(self, gpus: Bools) -> None:
        """It was the other job's."""
        self._a["last_ns"][gpus] = NEVER
        self._hold.reset(gpus)


def make(size: int, period_s: float) -> XidApplication:
    """The detector with the product's defaults."""
    return XidApplication(size, Settings())
