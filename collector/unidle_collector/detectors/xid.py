"""XID, fatal: the driver reported an error after which the GPU cannot be used until it is repaired.

What it means
    The GPU hung, lost memory that could not be contained, or fell off the bus. The job on it is dead or
    hangs. The time of the GPU has failed until it is reset, or its node booted.

Evidence
    XIDs of the driver, as events or as changes of last_xid, with the kernel log's words where the agent may
    read them; recovery_action, what the driver asks for.

How it decides
    By the class of the XID in data/xids.toml, which is NVIDIA's catalogue and NVSentinel's where both
    agree: `reset` (fatal until the GPU is reset) or `reboot` (until the machine is booted or
    power-cycled). Codes on which they disagree, or which nobody lists, are never fatal: see xid_warning.
    On at once. `reset` is told at once, `reboot` after 3 s, so that an XID 79 whose GPU is lost is told as
    gpu_lost alone. Lines of one code on one GPU within 10 s are one. Over when the driver's counters begin
    anew (reset, reload), the machine was booted, the driver has asked for nothing for 30 s after it (its own
    word outweighs the table), a lost GPU answers again, or another job has worked on the GPU for 60 s.

What to do
    Drain the node; reset the GPU when nothing runs on it, or boot the machine. Where it comes again on
    the same GPU, have it replaced.

How to silence it
    `silence = ["xid:NODE"]` in `[collector]`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unidle_agent.sample import GPU_LOST
from unidle_collector.detectors import About, Detector, Verdict, duration, plural
from unidle_collector.model import Evidence
from unidle_collector.pergpu import NEVER, SECOND_NS, Bools, PerGpu, Positions
from unidle_collector.signals import BLIP, REBOOTED, RESET, View
from unidle_collector.signs.lasting import drain, reset_gpus, where
from unidle_collector.signs.xids import Class, XidBook, recovery_action, xid

CAUSES: tuple[Class, ...] = ("reset", "reboot")
OFF_THE_BUS = 79


@dataclass(frozen=True, slots=True)
class Settings:
    """Seconds."""

    told_after_s: float = 3.0
    driver_word_after_s: float = 30.0
    """The driver says what it asks for every 15 s; one answer may be from before the XID."""
    works_again_s: float = 60.0
    forget_s: float = 7 * 86_400.0


class FatalXid(Detector):
    """The condition: few GPUs at a time, so that all but the events is looked at for those alone."""

    kind = "xid"
    state = "failed"
    causes = CAUSES
    groups_by = "node"
    finding_delay_s = Settings().told_after_s
    accounting_delay_s = 0.0

    def __init__(self, size: int, settings: Settings) -> None:
        self.settings = settings
        self._book = XidBook(size, CAUSES)
        self._a = PerGpu(size)
        self._a.make("fatal", np.bool_, False)
        self._a.make("since", np.int64, NEVER)
        self._a.make("code", np.int32, -1)
        self._a.make("cause", np.int16, 0)
        self._a.make("loss", np.float64, 1.0)
        self._a.make("action", np.float64, np.nan)
        self._a.make("was_lost", np.bool_, False)
        self._a.make("other_job", np.bool_, False)
        self._a.make("works_since", np.int64, NEVER)

    def look(self, view: View) -> Verdict:
        """See the module's docstring."""
        a = self._a
        for hit in self._book.take(view):
            if not a["fatal"][hit.gpu]:
                # A step ends at a whole multiple of the period; the tick that heard of it is a moment later.
                a["fatal"][hit.gpu], a["since"][hit.gpu] = True, min(hit.time_ns, view.step.end_ns)
                for name, value in (("was_lost", False), ("other_job", False), ("works_since", NEVER)):
                    a[name][hit.gpu] = value
                a["action"][hit.gpu] = np.nan
            a["code"][hit.gpu], a["cause"][hit.gpu] = hit.xid.code, CAUSES.index(hit.xid.class_)
        on: Bools = a["fatal"].copy()
        if on.any():
            on[self._recovered(view)] = False
            a["fatal"][:] = on
            a["since"][~on] = NEVER
            on &= ~((a["code"] == OFF_THE_BUS) & a["was_lost"])
        return Verdict(on, a["since"], a["cause"], a["loss"])

    def _recovered(self, view: View) -> Positions:
        """Positions of the fatal ones for which it is over."""
        a, step, s = self._a, view.step, self.settings
        gpus = np.flatnonzero(a["fatal"])
        since = a["since"][gpus]
        passed_s = (step.end_ns - since) / SECOND_NS
        state, asked = step.get("gpu_state")[gpus], step.get("recovery_action")[gpus]
        over = (asked == 0) & (passed_s >= s.driver_word_after_s)
        a["action"][gpus] = np.where(np.isnan(asked), a["action"][gpus], asked)
        over |= a["was_lost"][gpus] & (state == 0)
        a["was_lost"][gpus] |= state == GPU_LOST
        works = a["other_job"][gpus] & (view.activity[gpus] >= BLIP)
        before = a["works_since"][gpus]
        works_since = np.where(works, np.where(before == NEVER, step.start_ns, before), NEVER)
        a["works_since"][gpus] = works_since
        over |= works & (step.end_ns - works_since >= int(s.works_again_s * SECOND_NS))
        over |= passed_s > s.forget_s
        repaired = {e.gpu: e.time_ns for e in step.events if e.kind in (REBOOTED, RESET)}
        if repaired:
            over |= np.array([repaired.get(gpu, NEVER) for gpu in gpus.tolist()]) > since
        out: Positions = gpus[over]
        return out

    def delay_s(self, cause: str) -> float:
        """After the code of a GPU that may be gone, long enough for its state to come."""
        return self.finding_delay_s if cause == "reboot" else 0.0

    def about(self, view: View, gpus: Positions, cause: str, lasted_s: float) -> About:
        """What a colleague would say."""
        a = self._a
        since_ns = int(a["since"][gpus].min())
        evidence = self._book.evidence(gpus, since_ns, lasted_s)
        last = xid(int(evidence[0].value or 0) if evidence else int(a["code"][gpus[0]]))
        node, numbers = where(view, gpus)
        asked = recovery_action(float(np.nanmax(np.append(a["action"][gpus], 0.0))))
        if asked is not None:
            words = f"the driver itself asks for {asked.name}"
            evidence.append(Evidence("recovery_action", float(asked.value), "action", 0.0, lasted_s, words))
        class_, action = (asked.class_, asked.action) if asked else (last.class_, last.action)
        repair = "then boot or power-cycle the machine" if class_ == "reboot" else reset_gpus(numbers)
        return About(
            title=(
                f"XID {last.code} ({last.name}): {plural(gpus.size, 'GPU')} unusable for {duration(lasted_s)}"
            ),
            severity="critical",
            confidence=0.95 if asked else 0.9,
            evidence=tuple(evidence),
            advice=f"{action} {drain(node, f'XID {last.code} on GPU {numbers}')}; {repair}.",
            confirm=f"dmesg | grep -i xid, and nvidia-smi -q -i {numbers}, on {node}",
            asks_flight=True,
        )

    def reset(self, gpus: Bools) -> None:
        """Another job does not repair a GPU; but if it works on it, somebody did."""
        self._a["other_job"][gpus & self._a["fatal"]] = True


def make(size: int, period_s: float) -> FatalXid:
    """The detector with the product's defaults."""
    return FatalXid(size, Settings())
