"""XIDs: what the catalogue says of each code, and which of them every GPU has had.

A code comes as an event of the driver, or as a change of `last_xid`, which sticks: only a change counts,
and the first value that is ever seen may be old. Both may tell the same one, and one fault gives many
lines: the same code on the same GPU within FOLD_NS is one. What the kernel log says of it, where the agent
may read that, is kept as its words; a restart forgets them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

import numpy as np

from unidle_agent.kernel_lines import plain
from unidle_agent.wire import KERNEL_WORDS
from unidle_collector.model import Evidence
from unidle_collector.pergpu import NEVER, SECOND_NS, PerGpu, Positions
from unidle_collector.signals import View

FOLD_NS = 10 * SECOND_NS
REMEMBERED = 4
"""Codes that are remembered of each GPU, the newest."""

Class = Literal["reset", "reboot", "application", "alert", "informational", "unknown"]


@dataclass(frozen=True, slots=True)
class Xid:
    """What is known of one code."""

    code: int
    name: str
    class_: Class
    action: str
    source: str


@dataclass(frozen=True, slots=True)
class RecoveryAction:
    """What the driver asks for by one value of `recovery_action`."""

    value: int
    name: str
    class_: Class
    action: str
    source: str


@dataclass(frozen=True, slots=True)
class Hit:
    """One XID of one GPU, told once."""

    gpu: int
    time_ns: int
    xid: Xid


@cache
def _document() -> dict[str, list[dict[str, object]]]:
    return tomllib.loads(files("unidle_collector").joinpath("data/xids.toml").read_text(encoding="utf-8"))


@cache
def _known() -> dict[int, Xid]:
    out = {}
    for row in _document()["xid"]:
        words = {key: row[key] for key in ("name", "action", "source")}
        for code in row["codes"]:  # type: ignore[attr-defined]
            out[code] = Xid(code, class_=row["class"], **words)  # type: ignore[arg-type]
    return out


@cache
def _actions() -> dict[int, RecoveryAction]:
    rows = ({**row, "class_": row["class"]} for row in _document()["recovery_action"])
    return {
        one.value: one
        for one in (
            RecoveryAction(**{key: value for key, value in row.items() if key != "class"})  # type: ignore[arg-type]
            for row in rows
        )
    }


def xid(code: int) -> Xid:
    """What the catalogue says; a code that it does not have is unknown, and never fatal by guess."""
    unknown = Xid(
        code, "not in the catalogue", "unknown", "Look it up in NVIDIA's XID catalogue before acting.", ""
    )
    return _known().get(code, unknown)


def recovery_action(value: float) -> RecoveryAction | None:
    """What the driver asks for; None where that is nothing or not known."""
    return None if value != value else _actions().get(int(value))


class XidBook:
    """The XIDs of some classes that every GPU has had."""

    def __init__(self, size: int, classes: tuple[Class, ...]) -> None:
        self._classes = classes
        self._a = PerGpu(size)
        self._a.make("sticky", np.float64, np.nan)
        self._a.make("code", np.int32, -1, REMEMBERED)
        self._a.make("first_ns", np.int64, NEVER, REMEMBERED)
        self._a.make("last_ns", np.int64, NEVER, REMEMBERED)
        self._a.make("count", np.int32, 0, REMEMBERED)
        self._words: dict[tuple[int, int], str] = {}
        """(GPU, code) -> what the kernel log said of it last."""

    def take(self, view: View) -> list[Hit]:
        """What is new at this step, oldest first."""
        hits = []
        for gpu, time_ns, code, words in sorted(self._told(view), key=lambda told: told[1]):
            entry = xid(code)
            if entry.class_ not in self._classes:
                continue
            if self._count(gpu, time_ns, code):
                hits.append(Hit(gpu, time_ns, entry))
            if words:
                self._words[gpu, code] = words
        return hits

    def _told(self, view: View) -> Iterator[tuple[int, int, int, str]]:
        """(GPU, time, code, words of the kernel log) by event and by a change of the sticky value."""
        step, sticky = view.step, self._a["sticky"]
        for event in step.events:
            if event.kind == "xid":
                words = event.text if event.text.startswith(KERNEL_WORDS) else ""
                yield event.gpu, event.time_ns, event.code, plain(words)
        if "last_xid" not in step.columns:
            return
        now = step.get("last_xid")
        changed = np.flatnonzero((now != sticky) & ~np.isnan(now))
        if not changed.size:
            return
        before = sticky[changed]
        sticky[changed] = now[changed]
        for gpu, was, code in zip(changed.tolist(), before.tolist(), now[changed].tolist(), strict=True):
            if was == was and code > 0:
                yield gpu, step.end_ns, int(code), ""

    def _count(self, gpu: int, time_ns: int, code: int) -> bool:
        """Put it into the book; False where it was told before (a log gone through again) or folds."""
        a = self._a
        codes, last = a["code"][:, gpu], a["last_ns"][:, gpu]
        found = np.flatnonzero(codes == code)
        place = int(found[0]) if found.size else int(last.argmin())
        if not found.size:
            self._words.pop((gpu, int(codes[place])), None)
            codes[place], a["first_ns"][place, gpu], a["count"][place, gpu] = code, time_ns, 0
        elif time_ns < last[place] + FOLD_NS:
            last[place] = max(time_ns, int(last[place]))
            return False
        last[place] = time_ns
        a["count"][place, gpu] += 1
        return True

    def codes(self, gpus: Positions, since_ns: int) -> dict[int, int]:
        """Code -> how often it came on `gpus` since, the last one first."""
        a = self._a
        recent = a["last_ns"][:, gpus] >= since_ns
        newest: dict[int, tuple[int, int]] = {}
        for place, column in zip(*np.nonzero(recent), strict=True):
            gpu = int(gpus[column])
            code, count = int(a["code"][place, gpu]), int(a["count"][place, gpu])
            last_ns, total = newest.get(code, (NEVER, 0))
            newest[code] = max(last_ns, int(a["last_ns"][place, gpu])), total + count
        order = sorted(newest, key=lambda code: newest[code], reverse=True)
        return {code: newest[code][1] for code in order}

    def evidence(self, gpus: Positions, since_ns: int, lasted_s: float) -> list[Evidence]:
        """The same as evidence, in the same order; `value` is the code."""
        found = self.codes(gpus, since_ns)
        out = []
        for code, count in found.items():
            words = f"XID {code} ({xid(code).name}): {'once' if count == 1 else f'{count} times'}"
            said = next(
                (self._words[at] for at in ((gpu, code) for gpu in gpus.tolist()) if at in self._words), ""
            )
            words += f"; {said}" if said else ""
            out.append(Evidence("last_xid", float(code), "code", None, lasted_s, words))
        return out

    def resize(self, size: int) -> None:
        """Grow to `size` GPUs."""
        self._a.resize(size)
