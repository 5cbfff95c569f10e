"""What the fault detectors share: last known values, counters that grow, timers, the commands of a repair.

Most of what they read comes every 15 s, each node at its own second: between two answers the last one
holds. Of a link that turned bad an agent tells more at its next rows (`unidle_agent.recheck`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from unidle_collector.detectors import Detector, Verdict, enough_ns
from unidle_collector.model import State
from unidle_collector.pergpu import NEVER, SECOND_NS, Bools, Floats, Hold, PerGpu, Positions
from unidle_collector.signals import View

FORGET_S = 600.0
"""A fault of which nothing is known for this long is not claimed any more."""

AGREE_S = 5.0
"""For so long the answers of an agent that looks again at once have to say the same."""


class Lasting(Detector):
    """A fault that is a risk or a cause elsewhere, and loses no time by itself; told by node, at once."""

    state: ClassVar[State | None] = None
    groups_by: ClassVar[Literal["job", "node"]] = "node"
    finding_delay_s = 0.0
    accounting_delay_s = 0.0

    def __init__(
        self, size: int, off_after_s: float, forget_s: float = FORGET_S, break_s: float | None = None
    ) -> None:
        self._hold = Hold(size, off_after_s, forget_s, break_s)
        self._a = PerGpu(size)
        self._a.make("cause", np.int16, 0)
        self._a.make("loss", np.float64, 0.0)

    def remember(self, *fields: str) -> None:
        """Keep the last known value of each of these fields."""
        for field in fields:
            self._a.make(field, np.float64, np.nan)

    def latest(self, view: View, field: str) -> Floats:
        """[GPUs] the last known value of a remembered field, this step's included."""
        kept = self._a[field]
        if field in view.step.columns:
            now = view.step.get(field)
            np.copyto(kept, now, where=~np.isnan(now))
        return kept

    def decide(
        self, view: View, yes: Bools, known: Bools, cause: np.ndarray, on_after_s: float | Floats
    ) -> Verdict:
        """Hold what is seen where something is `known`; `cause` [GPUs] counts where it is seen."""
        step, on_after_ns = view.step, np.asarray(on_after_s * SECOND_NS).astype(np.int64)
        self._hold.update(yes, known, step.start_ns, step.end_ns, on_after_ns)
        np.copyto(self._a["cause"], cause.astype(np.int16), where=yes & known)
        return Verdict(self._hold.on, self._hold.since, self._a["cause"], self._a["loss"])

    def reset(self, gpus: Bools) -> None:
        """Another job does not repair anything."""


def settles_s(view: View, otherwise_s: float) -> Floats:
    """[GPUs] how long something bad has to be seen: AGREE_S where answers come at once, else two samples."""
    two_s = enough_ns(view, otherwise_s, 2) / SECOND_NS
    return np.where(view.inventory.a["asks_again"], AGREE_S, two_s)


class Unanswered(Lasting):
    """A GPU whose `gpu_state` says that it does not answer: its time has failed."""

    state = "failed"

    def __init__(self, size: int) -> None:
        super().__init__(size, off_after_s=0.0, forget_s=86_400.0)
        self._a.make("loss", np.float64, 1.0)

    def hold_state(self, view: View, bad: int, on_after_s: float) -> Verdict:
        """On where the state has been `bad` for `on_after_s`."""
        state = view.step.get("gpu_state")
        known = view.step.sampled & ~np.isnan(state)
        return self.decide(view, state == bad, known, self._a["cause"], on_after_s)


READINGS_APART_S = 8.0
"""The usual readings of a counter are at least this far apart (InfiniBand: 10 s)."""


@dataclass(frozen=True, slots=True)
class ErrorLimits:
    """From when on the errors that a link counts are a fault: all of the first three, or a storm."""

    errors: float
    errors_per_min: float
    readings: int
    storm: float
    """Errors that are believed at once, where an agent looks again at once."""
    gap_s: float
    """Longest between two readings of one run."""
    lasts_s: float
    """It is over when there was none for this long."""


class Growth:
    """How much a counter grew in a run of readings that follow each other within `gap_s`.

    Answers come at once where an agent looks again: `readings` counts those that are READINGS_APART_S from
    each other, `answers` all of them.
    """

    def __init__(self, size: int, gap_s: float) -> None:
        self._gap_ns = int(gap_s * SECOND_NS)
        self._a = PerGpu(size)
        self._a.make("total", np.float64, 0.0)
        self._a.make("readings", np.int32, 0)
        self._a.make("answers", np.int32, 0)
        self._a.make("read_ns", np.int64, NEVER)
        self._a.make("first_ns", np.int64, NEVER)
        self._a.make("last_ns", np.int64, NEVER)

    def update(self, increase: Floats, end_ns: int) -> Bools:
        """Take one step; [GPUs] where it grew."""
        a = self._a
        grew = increase > 0
        if grew.any():
            fresh = grew & (end_ns - a["last_ns"] > self._gap_ns)
            a["total"][fresh], a["first_ns"][fresh] = 0.0, end_ns
            a["readings"][fresh], a["answers"][fresh] = 0, 0
            apart = grew & (fresh | (end_ns - a["read_ns"] >= int(READINGS_APART_S * SECOND_NS)))
            a["total"][grew] += increase[grew]
            a["answers"][grew] += 1
            a["readings"][apart] += 1
            a["read_ns"][apart] = end_ns
            a["last_ns"][grew] = end_ns
        return grew

    @property
    def total(self) -> Floats:
        """[GPUs] sum of the run."""
        return self._a["total"]

    def within(self, end_ns: int, seconds: float) -> Bools:
        """[GPUs] did it grow in the last `seconds`."""
        out: Bools = end_ns - self._a["last_ns"] < int(seconds * SECOND_NS)
        return out

    def faulty(self, view: View, at: ErrorLimits) -> Bools:
        """[GPUs] do the errors that it counts make a fault; of a storm, in answers that span AGREE_S."""
        a, recent = self._a, self.within(view.step.end_ns, at.lasts_s)
        if not recent.any():
            return recent
        often = (a["total"] >= at.errors) & (a["readings"] >= at.readings)
        often &= self.per_min >= at.errors_per_min
        storms = view.inventory.a["asks_again"] & (a["total"] >= at.storm) & (a["answers"] >= at.readings)
        storms &= a["last_ns"] - a["first_ns"] >= int(AGREE_S * SECOND_NS)
        return recent & (often | storms)

    @property
    def per_min(self) -> Floats:
        """[GPUs] rate of the run, taken over a minute at least."""
        out: Floats = (
            self._a["total"] * 60 / np.maximum(60.0, (self._a["last_ns"] - self._a["first_ns"]) / SECOND_NS)
        )
        return out

    def resize(self, size: int) -> None:
        """Grow to `size` GPUs."""
        self._a.resize(size)


def where(view: View, gpus: Positions) -> tuple[str, str]:
    """(node, GPU numbers as `nvidia-smi -i` takes them) of GPUs on one node; `GPU` numbers may be UUIDs."""
    refs = [view.inventory.refs[int(gpu)] for gpu in gpus]
    return refs[0].node, ",".join(ref.gpu if ref.index is None else str(ref.index) for ref in refs)


def drain(node: str, why: str) -> str:
    """The command that keeps new work away from a node, for both schedulers."""
    slurm = f'scontrol update NodeName={node} State=DRAIN Reason="unidle: {why}"'
    return f"{slurm} (Kubernetes: kubectl cordon {node})"


def reset_gpus(numbers: str) -> str:
    """The command that resets GPUs on which nothing runs."""
    return f"nvidia-smi --gpu-reset -i {numbers}"
