"""XID, to look at: the driver reported an error that a person has to judge.

What it means
    An XID that is not known to end the GPU's service, on which NVIDIA's catalogue and NVSentinel disagree,
    or that neither lists; or the driver asks for a repair without one. Unknown codes are shown by number.

Evidence
    XIDs of the driver, as events or as changes of last_xid; recovery_action where it is not 0.

How it decides
    The class in data/xids.toml is `alert`, or the code is not there. On at once, over 15 min after the
    last one. Recovery actions: for as long as the driver asks, told after 3 s; what it asks for within
    10 min of an XID of the class `reset` or `reboot` is part of the finding xid until it asks no more.
    Codes that only echo others (45, 154, 171, 172) or are a trend (63, 92, 93, 121, 157) are counted in
    the agent's metrics and never told.

What to do
    As the finding says; nothing is to be drained for an unknown code without a look at the kernel log.

How to silence it
    `silence = ["xid_warning:NODE"]` in `[collector]`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unidle_collector.detectors import About, Verdict, duration, plural
from unidle_collector.model import Evidence
from unidle_collector.pergpu import NEVER, SECOND_NS, Positions
from unidle_collector.signals import View
from unidle_collector.signs.lasting import Lasting, drain, reset_gpus, where
from unidle_collector.signs.xids import XidBook, recovery_action, xid

CAUSES = ("alert", "unknown", "recovery_action")
ALERT, UNKNOWN, ACTION = range(3)


@dataclass(frozen=True, slots=True)
class Settings:
    """Seconds."""

    lasts_s: float = 900.0
    with_xid_s: float = 600.0
    """A recovery action that comes within this long of a fatal XID belongs to it."""
    action_after_s: float = 3.0


class XidWarning(Lasting):
    """The condition, by GPU."""

    kind = "xid_warning"
    causes = CAUSES

    def __init__(self, size: int, settings: Settings) -> None:
        super().__init__(size, off_after_s=0.0, forget_s=settings.lasts_s)
        self.settings = settings
        self._book = XidBook(size, ("alert", "unknown"))
        self._fatal = XidBook(size, ("reset", "reboot"))
        self._a.make("last_ns", np.int64, NEVER)
        self._a.make("kind", np.int16, 0)
        self._a.make("fatal_ns", np.int64, NEVER)
        self._a.make("of_xid", np.bool_, False)
        self.remember("recovery_action")

    def look(self, view: View) -> Verdict:
        """See the module's docstring."""
        a, s, now = self._a, self.settings, view.step.end_ns
        for hit in self._fatal.take(view):
            a["fatal_ns"][hit.gpu] = hit.time_ns
        for hit in self._book.take(view):
            a["last_ns"][hit.gpu] = hit.time_ns
            a["kind"][hit.gpu] = UNKNOWN if hit.xid.class_ == "unknown" else ALERT
        warned = now - a["last_ns"] < int(s.lasts_s * SECOND_NS)
        asks = self.latest(view, "recovery_action") > 0
        a["of_xid"][:] = asks & (a["of_xid"] | (now - a["fatal_ns"] <= int(s.with_xid_s * SECOND_NS)))
        asks &= ~a["of_xid"]
        known = view.step.sampled | warned
        cause = np.where(warned, a["kind"], ACTION)
        return self.decide(view, warned | asks, known, cause, 0.0)

    def delay_s(self, cause: str) -> float:
        """An XID is told at once; of an action, the XID behind it may be on its way."""
        return self.settings.action_after_s if cause == "recovery_action" else self.finding_delay_s

    def about(self, view: View, gpus: Positions, cause: str, lasted_s: float) -> About:
        """What a colleague would say."""
        node, numbers = where(view, gpus)
        asked = recovery_action(float(np.nanmax(np.append(self._a["recovery_action"][gpus], 0.0))))
        count = plural(gpus.size, "GPU")
        since_ns = view.step.end_ns - int(self.settings.lasts_s * SECOND_NS)
        xids = self._book.evidence(gpus, since_ns, lasted_s)
        evidence = list(xids)
        if asked is not None:
            words = f"the driver asks for {asked.name}"
            evidence.append(Evidence("recovery_action", float(asked.value), "action", 0.0, lasted_s, words))
        if asked is not None and (cause == "recovery_action" or not xids):
            repairs = {"reset": f"; {reset_gpus(numbers)}", "reboot": "; then boot the machine"}
            repair = repairs.get(asked.class_, "")
            advice = f"{asked.action} {drain(node, f'GPU {numbers} wants {asked.name}')}{repair}."
            title = f"the driver asks for {asked.name} of {count} for {duration(lasted_s)}"
        else:
            last = xid(int(xids[0].value or 0) if xids else 0)
            advice, title = last.action, f"XID {last.code} ({last.name}) on {count}"
        return About(
            title=title,
            severity="warning",
            confidence=0.5 if cause == "unknown" else 0.8,
            evidence=tuple(evidence),
            advice=advice,
            confirm=f"dmesg | grep -i xid, and nvidia-smi -q -i {numbers}, on {node}",
            asks_flight=cause != "recovery_action",
        )


def make(size: int, period_s: float) -> XidWarning:
    """The detector with the product's defaults."""
    return XidWarning(size, Settings())
