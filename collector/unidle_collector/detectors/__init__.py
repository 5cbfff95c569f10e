"""Detectors: one per file, named after what it says is wrong; found by walking this package.

A detector looks at each step of the whole fleet (a `View`) and answers a `Verdict`: where its
condition is on, since when, with which cause and loss. Its module docstring is its documentation
page. Adding one edits no other file but `spoken.py`, where its ids get words for people.
"""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from typing import ClassVar, Literal

import numpy as np

from unidle_collector.layout import growing
from unidle_collector.model import Evidence, GpuRef, Severity, State
from unidle_collector.pergpu import SECOND_NS, Bools, Causes, Floats, Positions, Times
from unidle_collector.signals import View


@dataclass(frozen=True, slots=True)
class Verdict:
    """One detector's answer at one step; every array is [GPUs]."""

    on: Bools
    since: Times
    """Where on: from when on the state applies; may lie before the step (evidence takes time)."""
    cause: Causes
    """Index into the detector's `causes`."""
    loss: Floats
    """Loss weight 0-1 at this step where on."""
    account: Verdict | None = None
    """What is booked, where that is not the condition itself but its episodes."""
    explains: Bools | None = None
    """[GPUs] where it says why other detectors see something: those that it names in `explains` give way."""
    seen: Bools | None = None
    """[GPUs] where the condition is seen at this very step, for those that go on while nothing is known:
    nobody is told of what is only remembered. None: all that is on."""


@dataclass(frozen=True, slots=True)
class About:
    """What a person is told about some GPUs of one subject with one cause."""

    title: str
    severity: Severity
    confidence: float
    evidence: tuple[Evidence, ...]
    advice: str
    confirm: str
    runners_up: tuple[tuple[str, float], ...] = ()
    shares: Mapping[str, float] = field(default_factory=dict)
    """Cause -> probability at this step, all together 1, where the detector works them out: their mean
    over the finding's life stands for `confidence` and `runners_up`."""
    held_back_by: tuple[GpuRef, ...] = ()
    """The GPUs that they wait for, where it is others of the same job."""
    asks_flight: bool = False
    """Whether the last two minutes of its GPUs at full rate help to understand it."""
    told_after_s: float | None = None
    """How long it must have lasted before a person is told, where its signs are stronger than usual."""


class Detector(ABC):
    """One condition, looked for in the whole fleet at each step; `make` of its file makes one.

    What it remembers of each GPU lies in attributes that can be resized: a restart keeps those.
    """

    kind: ClassVar[str]
    """Stable id, never reused."""
    state: ClassVar[State | None]
    """The state of docs/accounting.md that it explains; None for a risk, which loses nothing yet."""
    causes: ClassVar[tuple[str, ...]]
    groups_by: ClassVar[Literal["job", "node"]]
    """Findings on GPUs of one job (else node), or of one node, are one finding."""
    explains: ClassVar[tuple[str, ...]] = ()
    """Kinds of findings that give way where its verdict `explains`."""
    compares_gpus: ClassVar[bool] = False
    """Does its verdict rest on the GPUs of a job side by side: then it is said which of them it saw."""
    finding_delay_s: ClassVar[float]
    """How long it must have lasted before a person is told."""
    accounting_delay_s: ClassVar[float]
    """How long until the account is right; it is then corrected back to the begin."""
    grace: ClassVar[str] = "none"
    """What is not held against a job, in words."""

    @abstractmethod
    def look(self, view: View) -> Verdict:
        """Take one step."""

    @abstractmethod
    def about(self, view: View, gpus: Positions, cause: str, lasted_s: float) -> About:
        """Say it for the GPUs at these positions, as a colleague would."""

    @abstractmethod
    def reset(self, gpus: Bools) -> None:
        """The job on `gpus` changed: start anew."""

    def resize(self, size: int) -> None:
        """Grow to `size` GPUs."""
        for _, part in growing(self):
            part.resize(size)

    def delay_s(self, cause: str) -> float:
        """How long this cause must have lasted before a person is told."""
        return self.finding_delay_s

    def in_all(self, steps: int) -> None:  # noqa: B027 (most do not mind)
        """There will be this many steps and no more, as in a recording; said before the first."""


Maker = Callable[[int, float], Detector]
Verdicts = list[tuple[Detector, Verdict]]


def give_way(verdicts: Iterable[tuple[Detector, Verdict]], *, booked: bool = False) -> Verdicts:
    """The verdicts, those off where a detector that knows more says the cause: one cause is one finding.

    `booked`: for the account, where only a detector with a state of its own takes time from another.
    """
    verdicts = list(verdicts)
    away: dict[str, Bools] = {}
    for detector, verdict in verdicts:
        if booked and detector.state is None:
            continue
        if verdict.explains is not None and verdict.explains.any():
            for kind in detector.explains:
                away[kind] = verdict.explains | away.get(kind, False)
    return [
        (
            detector,
            replace(verdict, on=verdict.on & ~away[detector.kind]) if detector.kind in away else verdict,
        )
        for detector, verdict in verdicts
    ]


@cache
def makers() -> tuple[Maker, ...]:
    """`make(size, period_s)` of every detector file, in order of name."""
    names = sorted(info.name for info in pkgutil.iter_modules(__path__))
    return tuple(import_module(f"{__name__}.{name}").make for name in names)


@cache
def pages() -> dict[str, str]:
    """Kind of finding -> its documentation page."""
    out = {}
    for info in sorted(pkgutil.iter_modules(__path__), key=lambda item: item.name):
        module = import_module(f"{__name__}.{info.name}")
        out[module.make(1, 1.0).kind] = module.__doc__ or ""
    return out


def mean_of(values: Floats, gpus: Positions) -> float | None:
    """Mean of the known values at `gpus`, None where none is known."""
    chosen = values[gpus]
    chosen = chosen[~np.isnan(chosen)]
    return float(chosen.mean()) if chosen.size else None


def enough_ns(view: View, seconds: float, samples: int) -> Times:
    """[GPUs] how long so many seconds last, and so many samples: of one that is repeated in the rows after it
    the first row is enough, or the second, as it may be seen a row late."""
    each_s = view.sampled_each_s
    samples_s = np.minimum(samples * each_s, (samples - 1) * each_s + 2 * view.row_s)
    out: Times = (np.maximum(seconds, samples_s) * SECOND_NS).astype(np.int64)
    return out


def percent(value: float | None) -> str:
    """A ratio as people read it."""
    return "unknown" if value is None else f"{value * 100:.0f} %" if value >= 0.1 else f"{value * 100:.1f} %"


def plural(count: int, word: str) -> str:
    """`1 GPU`, `8 GPUs`."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def duration(seconds: float) -> str:
    """A span of time as people read it: `45 s`, `12 min`, `3.5 h`, `2.1 d`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} d"
