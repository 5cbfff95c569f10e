"""NVSwitch: a switch between the GPUs of a node reported a fatal error, or keeps reporting lesser ones.

What it means
    All GPUs of the node talk through its switches. After a fatal error their NVLinks are down or not to be
    trusted: collectives hang or fail, whichever GPUs a job has. Errors that are not fatal are corrected or
    retried; a link on which they keep coming is on its way out.

Evidence
    SXids, the errors of the driver of NVSwitches: from the kernel log where the agent may read it, with
    class, switch and link, else from dcgm-exporter's last SXid of each switch.

How it decides
    By the class that the driver itself prints. `fatal`: on at once; over when the GPUs were reset or the
    machine was booted, or 24 h after the last one. `repeated`: not fatal, on one link at least 5 times, each
    at least 60 s after the one before and at most an hour: a storm of a few seconds is one; over an hour
    after the last.

What to do
    fatal: drain the node, then boot it, or reset all its GPUs together (which resets the switches).
    repeated: look at that link when the node is next free.

How to silence it
    `silence = ["nvswitch:NODE"]` in `[collector]`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unidle_agent.kernel_lines import plain
from unidle_agent.wire import KERNEL_WORDS, SXID, SXID_FATAL, switch_and_link
from unidle_collector.detectors import About, Verdict, plural
from unidle_collector.model import Evidence
from unidle_collector.pergpu import NEVER, SECOND_NS, Positions
from unidle_collector.signals import REBOOTED, RESET, Happened, View
from unidle_collector.signs.lasting import Lasting, drain, where

CAUSES = ("fatal", "repeated")
LINKS_REMEMBERED = 8
"""Links of which errors are counted, the newest."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Seconds and counts."""

    fatal_lasts_s: float = 86_400.0
    errors: int = 5
    apart_s: float = 60.0
    repeated_lasts_s: float = 3600.0


class NvSwitch(Lasting):
    """The condition; what happens to a node is noted for each of its GPUs."""

    kind = "nvswitch"
    causes = CAUSES

    def __init__(self, size: int, settings: Settings) -> None:
        super().__init__(size, off_after_s=0.0, forget_s=settings.fatal_lasts_s)
        self.settings = settings
        self._a.make("fatal_ns", np.int64, NEVER)
        self._a.make("fatal_code", np.int32, 0)
        self._a.make("fatal_part", np.int32, -1)
        self._a.make("part", np.int32, -1, LINKS_REMEMBERED)
        self._a.make("code", np.int32, 0, LINKS_REMEMBERED)
        self._a.make("count", np.int32, 0, LINKS_REMEMBERED)
        self._a.make("last_ns", np.int64, NEVER, LINKS_REMEMBERED)
        self._words: dict[tuple[int, str], str] = {}
        """(GPU, cause) -> what the kernel log said last; a restart forgets it."""

    def look(self, view: View) -> Verdict:
        """See the module's docstring."""
        a, s, now = self._a, self.settings, view.step.end_ns
        for event in view.step.events:
            if event.kind in (REBOOTED, RESET):
                a["fatal_ns"][event.gpu] = NEVER
                a["count"][:, event.gpu] = 0
            elif event.kind == SXID_FATAL:
                a["fatal_ns"][event.gpu] = event.time_ns
                a["fatal_code"][event.gpu], a["fatal_part"][event.gpu] = event.code, event.part
                self._note_words(event, "fatal")
            elif event.kind == SXID:
                self._count(event)
                self._note_words(event, "repeated")
        fatal = now - a["fatal_ns"] < int(s.fatal_lasts_s * SECOND_NS)
        fresh = now - a["last_ns"] < int(s.repeated_lasts_s * SECOND_NS)
        yes = fatal | ((a["count"] >= s.errors) & fresh).any(axis=0)
        return self.decide(view, yes, view.step.sampled | yes, np.where(fatal, 0, 1), 0.0)

    def _count(self, event: Happened) -> None:
        """Put an error into the book of its link, which may begin anew."""
        a, s, gpu = self._a, self.settings, event.gpu
        found = np.flatnonzero(a["part"][:, gpu] == event.part)
        place = int(found[0]) if found.size else int(a["last_ns"][:, gpu].argmin())
        since_s = (event.time_ns - int(a["last_ns"][place, gpu])) / SECOND_NS
        if not found.size or since_s > s.repeated_lasts_s:
            a["part"][place, gpu], a["count"][place, gpu] = event.part, 0
        elif since_s < s.apart_s:
            return
        a["code"][place, gpu], a["last_ns"][place, gpu] = event.code, event.time_ns
        a["count"][place, gpu] += 1

    def _note_words(self, event: Happened, cause: str) -> None:
        if event.text.startswith(KERNEL_WORDS):
            self._words[event.gpu, cause] = plain(event.text)

    def about(self, view: View, gpus: Positions, cause: str, lasted_s: float) -> About:
        """What a colleague would say."""
        a = self._a
        node, _ = where(view, gpus)
        fatal = cause == "fatal"
        if fatal:
            gpu = int(gpus[a["fatal_ns"][gpus].argmax()])
            code, part, count = int(a["fatal_code"][gpu]), int(a["fatal_part"][gpu]), 1
        else:
            gpu = int(gpus[a["count"][:, gpus].max(axis=0).argmax()])
            place = int(a["count"][:, gpu].argmax())
            code, part, count = (int(a[name][place, gpu]) for name in ("code", "part", "count"))
        switch = _switch(part)
        words = f"SXid {code} of {switch}: {'fatal' if fatal else f'{count} times, not fatal'}"
        if said := self._words.get((gpu, cause)):
            words += f"; {said}"
        why = drain(node, f"SXid {code} of {switch}")
        return About(
            title=f"{switch} {'failed' if fatal else 'keeps reporting errors'}, SXid {code}: "
            f"{plural(gpus.size, 'GPU')} behind it",
            severity="critical" if fatal else "warning",
            confidence=0.9 if fatal else 0.8,
            evidence=(Evidence("sxid", float(code), "code", None, lasted_s, words),),
            advice=(
                f"{why}; when nothing runs there, boot the machine, or reset all its GPUs together "
                "(nvidia-smi --gpu-reset, the fabric manager stopped before and started after)."
                if fatal
                else f"Look at {switch} when {node} is next free; where its GPUs have NVLink errors: {why}."
            ),
            confirm=f"dmesg | grep -i sxid, and nvidia-smi nvlink -e, on {node}",
        )


def _switch(part: int) -> str:
    if part < 0:
        return "an NVSwitch"
    switch, link = switch_and_link(part)
    return f"NVSwitch {switch}" + ("" if link is None else f", link {link}")


def make(size: int, period_s: float) -> NvSwitch:
    """The detector with the product's defaults."""
    return NvSwitch(size, Settings())
