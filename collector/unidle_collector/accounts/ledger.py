"""The account of every GPU instant (docs/accounting.md): seconds by state and cause, and what was lost.

Each step of each GPU is booked at once, on its tenure and its bucket of time. A state that needs
evidence is booked back to its begin once it is known: a ring of the last steps says what was booked.
Time no sample covers is `unknown`: neither lost nor productive.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unidle_collector.accounts.buckets import HOUR_NS, Buckets, Sums
from unidle_collector.accounts.grouping import Grouping, KeyOf
from unidle_collector.accounts.tally import Members, Tally
from unidle_collector.detectors import Detector, Verdict, give_way
from unidle_collector.inventory import Inventory
from unidle_collector.model import STATES, Account, State
from unidle_collector.pergpu import SECOND_NS, Floats, PerGpu
from unidle_collector.signals import Step, View
from unidle_collector.signs.silence import believed, silent

KEEP_NS = 8 * 24 * HOUR_NS
REWRITE_S = 1200.0
"""How far back a state can be corrected: beyond the longest accounting delay and start-up grace."""

WHOLE = 32768.0
"""Loss weights are booked in this part of one: sums of them are exact in whatever order they are added."""
POWER_STEP_W = 0.125
UNKNOWN_POWER = 65535
"""Power is booked in steps of 1/8 W, for the same reason."""
NOT_BOOKED = -1
AT_ONCE = 2048
"""GPUs whose past is booked anew in one go: the memory that this takes."""

FIXED: tuple[tuple[State, str], ...] = (
    ("failed", ""),
    ("unknown", ""),
    ("unallocated", ""),
    ("productive", ""),
)


@dataclass(frozen=True, slots=True)
class Code:
    """One (state, cause) that time can be booked under; its position is what the ring holds."""

    state: State
    cause: str
    rank: int
    """Position of the state in STATES: the lower counts where several apply."""


@dataclass(frozen=True, slots=True)
class Entries:
    """Steps of GPUs as they are booked; every array is [entries]."""

    end_ns: NDArray[np.int64]
    gpu: NDArray[np.intp]
    code: NDArray[np.int8]
    loss: NDArray[np.uint16]
    """In parts of WHOLE."""
    power: NDArray[np.uint16]
    """In steps of POWER_STEP_W."""


class Ledger:
    """Books steps, corrects them, and adds them up."""

    def __init__(
        self,
        inventory: Inventory,
        detectors: Iterable[Detector],
        period_s: float,
        keep_ns: int | None = KEEP_NS,
    ) -> None:
        self._inventory = inventory
        self.codes = _codes(detectors)
        self._index = {(code.state, code.cause): number for number, code in enumerate(self.codes)}
        self._rank = np.array([code.rank for code in self.codes])
        self._kinds = [detector.kind for detector in detectors]
        self._yields = {
            detector.kind: np.isin(
                np.arange(len(self.codes)),
                [
                    self._index[other.state, cause]
                    for other in detectors
                    if other.state is not None and other.kind in detector.explains
                    for cause in other.causes
                ],
            )
            for detector in detectors
        }
        """Kind -> [codes] what was booked for want of a better cause: it is booked anew under that kind."""
        self._period_ns = round(period_s * SECOND_NS)
        self._slots = max(4, int(REWRITE_S / period_s) + 1)
        rewrite_ns = int(self._slots * period_s * SECOND_NS)
        self._buckets = Buckets(len(self.codes), rewrite_ns, keep_ns)
        size = inventory.capacity
        self._a = PerGpu(size)
        self._a.make("code", np.int8, NOT_BOOKED, self._slots)
        self._a.make("loss", np.uint16, 0, self._slots)
        self._a.make("power", np.uint16, UNKNOWN_POWER, self._slots)
        self._a.make("tenure", np.int32, -1)
        self._a.make("tenure_from", np.int64, 0)
        self._a.make("now", np.int8, NOT_BOOKED)
        self._a.make("on", np.bool_, False, len(self._kinds))
        self._a.at["last_end_ns"] = 0

    def resize(self, size: int) -> None:
        """Grow to `size` GPUs."""
        self._a.resize(size)

    def book(self, view: View, verdicts: list[tuple[Detector, Verdict]]) -> None:
        """Book one step of all GPUs and correct what has become known."""
        verdicts = [(one, verdict.account or verdict) for one, verdict in give_way(verdicts, booked=True)]
        code, loss = self._classify(view, verdicts)
        step, a = view.step, self._a
        slot = self._slot(step.end_ns)
        self._blank_between(step)
        a["code"][slot] = code
        a["loss"][slot] = np.rint(loss * WHOLE)
        a["power"][slot] = _whole_power(step.get("power_w"))
        a["now"][:] = code
        self._follow_tenures(step.start_ns)
        self._add(view)
        for number, (detector, verdict) in enumerate(verdicts):
            self._correct(number, detector, verdict, view)

    def took_back(self, tenures: NDArray[np.int32]) -> None:
        """The memory of the last run is back, whose tenures had other numbers."""
        self._a["tenure"][:] = tenures

    def _slot(self, end_ns: int) -> int:
        """Where in the ring the step that ends at `end_ns` lies."""
        return round(end_ns / self._period_ns) % self._slots

    def _blank_between(self, step: Step) -> None:
        """Steps that were left out (time jumped) must not be taken for those of a ring ago."""
        a, last = self._a, self._a.at["last_end_ns"]
        self._a.at["last_end_ns"] = step.end_ns
        missing = round((step.end_ns - last) / self._period_ns) - 1
        for back in range(1, min(missing, self._slots - 1) + 1):
            a["code"][self._slot(step.end_ns - back * self._period_ns)] = NOT_BOOKED

    def _follow_tenures(self, start_ns: int) -> None:
        a, tenure = self._a, self._inventory.a["tenure"]
        changed = a["tenure"] != tenure
        if changed.any():
            a["tenure_from"][changed] = start_ns
            a["tenure"][changed] = tenure[changed]

    # -- late rows -------------------------------------------------------------------------------

    def unmeasure(
        self, gpus: NDArray[np.intp], there: NDArray[np.bool_], values: Mapping[str, Floats], end_ns: int
    ) -> None:
        """Take back the activity and known power of one step of `gpus`, as `values` [gpus] said it."""
        bucket, tenure = self._bucket(end_ns), self._inventory.a["tenure"][gpus]
        seconds = self._period_ns / SECOND_NS
        nothing = np.full(gpus.shape, np.nan)
        values = believed(values, silent(values, gpus.size))
        for number, field in enumerate(("gpu_util_ratio", "sm_active_ratio")):
            column = values.get(field, nothing)
            known = there & ~np.isnan(column)
            bucket.activity[number, 0, tenure] -= np.where(known, column, 0.0) * seconds
            bucket.activity[number, 1, tenure] -= known * seconds
        bucket.power_s[tenure] -= (there & ~np.isnan(values.get("power_w", nothing))) * seconds

    def all_unknown(self, gpus: NDArray[np.intp], first_ns: int, last_ns: int) -> bool:
        """Are the steps that end within [first_ns, last_ns] booked as unknown for all of `gpus`."""
        slots = [self._slot(end) for end in range(first_ns, last_ns + 1, self._period_ns)]
        return bool((self._a["code"][slots][:, gpus] == self._index["unknown", ""]).all())

    def replace(self, gpus: NDArray[np.intp], other: Ledger) -> None:
        """Book `gpus` as `other` does, which has them in this order, their past and their present owner."""
        a, theirs, last_ns = self._a, other._a, self._a.at["last_end_ns"]
        ends = last_ns - self._period_ns * np.arange(self._slots)
        slots = np.array([self._slot(int(end)) for end in ends], dtype=np.intp)[:, None]
        columns = np.arange(gpus.size)[None, :]
        code = theirs["code"][slots, columns]
        differs = (code != a["code"][slots, gpus]) | (
            theirs["loss"][slots, columns] != a["loss"][slots, gpus]
        )
        differs |= theirs["power"][slots, columns] != a["power"][slots, gpus]
        at, which = np.nonzero(differs & (code >= 0) & (a["code"][slots, gpus] >= 0))
        seconds = self._period_ns / SECOND_NS
        for ring, place, sign in ((a, gpus[which], -1), (theirs, which, 1)):
            where = (slots[at, 0], place)
            entries = Entries(
                ends[at], gpus[which], ring["code"][where], ring["loss"][where], ring["power"][where]
            )
            self._change(entries, sign * seconds)
        present = self._inventory.a["tenure"][gpus]
        gpu_of = other._inventory.tenure_gpus
        for begin, packed in other.buckets.unwritten():
            self._buckets.amend(begin, packed.measured().moved(present[gpu_of]))

    def now(self, position: int) -> tuple[State, str]:
        """State and cause of a GPU at the last step; unknown before there was one."""
        number = int(self._a["now"][position])
        return ("unknown", "") if number < 0 else (self.codes[number].state, self.codes[number].cause)

    def codes_now(self, positions: NDArray[np.intp]) -> NDArray[np.int8]:
        """[positions] Number in `codes` at the last step, negative before there was one."""
        found: NDArray[np.int8] = self._a["now"][positions]
        return found

    def _classify(
        self, view: View, verdicts: list[tuple[Detector, Verdict]]
    ) -> tuple[NDArray[np.int8], Floats]:
        """The one state of each GPU at this step, by the order of docs/accounting.md."""
        index = self._index
        code = np.where(view.allocated, index["productive", ""], index["unallocated", ""])
        loss = np.where(view.allocated, 0.0, 1.0)
        unknown = ~view.step.sampled | view.unseen
        code[unknown], loss[unknown] = index["unknown", ""], 0.0
        for detector, verdict in verdicts:
            if detector.state is None:
                continue
            if not np.count_nonzero(verdict.on):
                continue
            for number, cause in enumerate(detector.causes):
                mine = index[detector.state, cause]
                here = verdict.on & (verdict.cause == number) & (self._rank[mine] <= self._rank[code])
                code[here], loss[here] = mine, verdict.loss[here]
        return code.astype(np.int8), loss

    def _bucket(self, end_ns: int) -> Sums:
        return self._buckets.at(end_ns, len(self._inventory.tenures))

    def _add(self, view: View) -> None:
        """Book the step that the ring has just taken, and the activity in it."""
        a, count, step = self._a, len(self._inventory), view.step
        slot, bucket = self._slot(step.end_ns), self._bucket(step.end_ns)
        seconds = step.period_ns / SECOND_NS
        code, tenure = a["code"][slot, :count], self._inventory.a["tenure"][:count]
        loss = a["loss"][slot, :count] * (seconds / WHOLE)
        bucket.seconds[code, tenure] += seconds
        bucket.lost_s[code, tenure] += loss * self._inventory.a["share"][:count]
        bucket.lost_j[code, tenure] += loss * _watts(a["power"][slot, :count])
        for number, field in enumerate(("gpu_util_ratio", "sm_active_ratio")):
            values = step.get(field)[:count]
            known = ~np.isnan(values)
            bucket.activity[number, 0, tenure] += np.where(known, values, 0.0) * seconds
            bucket.activity[number, 1, tenure] += known * seconds
        bucket.power_s[tenure] += (a["power"][slot, :count] != UNKNOWN_POWER) * seconds

    def _correct(self, number: int, detector: Detector, verdict: Verdict, view: View) -> None:
        """Where a condition has just become known, book its steps since its begin anew."""
        if detector.state is None:
            return
        before = self._a["on"][number]
        if not np.count_nonzero(verdict.on):
            before[:] = False
            return
        fresh = np.flatnonzero(verdict.on & ~before)
        before[:] = verdict.on
        for first in range(0, fresh.size, AT_ONCE):
            self._rebook(detector, verdict, view.step, fresh[first : first + AT_ONCE])

    def _rebook(self, detector: Detector, verdict: Verdict, step: Step, gpus: NDArray[np.intp]) -> None:
        """Book the steps of `gpus` since the begin of what `verdict` says, where its state comes first."""
        a, index = self._a, self._index
        since = np.maximum(verdict.since[gpus], a["tenure_from"][gpus])
        steps = min(self._slots - 1, max(0, round((step.start_ns - int(since.min())) / self._period_ns)))
        ends = step.end_ns - self._period_ns * np.arange(1, steps + 1)
        slots = np.array([self._slot(int(end)) for end in ends], dtype=np.intp)
        mine = np.array([index[detector.state or "unknown", cause] for cause in detector.causes])
        mine = mine[verdict.cause[gpus]]
        old = a["code"][slots[:, None], gpus[None, :]]
        allowed = self._rank[:, None] > self._rank[mine][None, :]  # [code before, GPU]
        allowed[self._yields[detector.kind]] = True
        allowed[index["unknown", ""]] = False
        wrong = (ends[:, None] - self._period_ns >= since) & (old >= 0)
        wrong &= allowed[old, np.arange(gpus.size)[None, :]]
        at, which = np.nonzero(wrong)
        if not at.size:
            return
        slot, gpu = slots[at], gpus[which]
        before = Entries(ends[at], gpu, old[at, which], a["loss"][slot, gpu], a["power"][slot, gpu])
        loss = np.rint(verdict.loss[gpu] * WHOLE).astype(np.uint16)
        after = Entries(before.end_ns, gpu, mine[which].astype(np.int8), loss, before.power)
        a["code"][slot, gpu], a["loss"][slot, gpu] = after.code, after.loss
        seconds = self._period_ns / SECOND_NS
        self._change(before, -seconds)
        self._change(after, seconds)

    def _change(self, entries: Entries, seconds: float) -> None:
        """Book `seconds` (taken back where negative) for each entry, on its GPU's present tenure."""
        tenure = self._a["tenure"][entries.gpu]
        share = self._inventory.a["share"][entries.gpu]
        loss = entries.loss * (seconds / WHOLE)
        spans = self._buckets.begin(entries.end_ns)
        for begin in np.unique(spans):
            here = spans == begin
            bucket = self._bucket(int(begin) + 1)
            where = (entries.code[here], tenure[here])
            np.add.at(bucket.seconds, where, seconds)
            np.add.at(bucket.lost_s, where, (loss * share)[here])
            np.add.at(bucket.lost_j, where, (loss * _watts(entries.power))[here])

    @property
    def remembered(self) -> int:
        """How many of the last steps can still be corrected."""
        return self._slots - 1

    def booked_steps(self, ends_ns: NDArray[np.int64]) -> tuple[NDArray[np.int8], NDArray[np.uint16]]:
        """[steps, GPUs] position in `codes` and loss in parts of WHOLE, as booked by now of the steps that
        end at these times, which are among those remembered; NOT_BOOKED where nothing was."""
        slots = [self._slot(int(end)) for end in ends_ns]
        return self._a["code"][slots], self._a["loss"][slots]

    def durations(self) -> list[tuple[dict[str, float], dict[str, float]]]:
        """Each GPU over all that was booked: (state -> seconds, `state.cause` -> seconds), never weighted."""
        tenures = self._inventory.tenures
        booked = self._buckets.total(-(2**62), 2**62, len(tenures)).seconds
        by_gpu = np.zeros((len(self._inventory), len(self.codes)))
        np.add.at(by_gpu, self._inventory.tenure_gpus, booked.T)
        return [self._durations(row) for row in by_gpu]

    def _durations(self, row: Floats) -> tuple[dict[str, float], dict[str, float]]:
        states: dict[str, float] = dict.fromkeys(STATES, 0.0)
        causes: dict[str, float] = {}
        for code, seconds in zip(self.codes, row, strict=True):
            states[code.state] += float(seconds)
            if code.cause and seconds > 0:
                causes[f"{code.state}.{code.cause}"] = float(seconds)
        return states, causes

    def accounts(self, key_of: KeyOf | Grouping, start_ns: int, end_ns: int) -> list[Account]:
        """Accounts of the tenures by key, over the spans that touch the window."""
        return list(self.tally(key_of, start_ns, end_ns).accounts())

    def tally(self, key_of: KeyOf | Grouping, start_ns: int, end_ns: int) -> Tally:
        """The same as columns, from which accounts can be made anywhere and page by page."""
        grouping = key_of if isinstance(key_of, Grouping) else Grouping(key_of)
        tenures, gpu = self._inventory.tenures, self._inventory.tenure_gpus
        group = grouping.of(tenures)
        first_ns = self._buckets.first_ns(start_ns, end_ns)
        return Tally.of(
            self._buckets.total(start_ns, end_ns, len(tenures)),
            Members(group, gpu, self._inventory.a["share"][gpu], self._inventory.a["eur_per_h"][gpu] / 3600),
            [(code.state, code.cause) for code in self.codes],
            grouping.keys,
            max(start_ns, first_ns if first_ns is not None else start_ns),
            end_ns,
        )

    @property
    def buckets(self) -> Buckets:
        """The sums themselves, for files."""
        return self._buckets


def _codes(detectors: Iterable[Detector]) -> tuple[Code, ...]:
    pairs = list(FIXED)
    pairs += [(d.state, cause) for d in detectors if d.state is not None for cause in d.causes]
    return tuple(Code(state, cause, STATES.index(state)) for state, cause in dict.fromkeys(pairs))


def _whole_power(power_w: Floats) -> NDArray[np.uint16]:
    known = ~np.isnan(power_w)
    steps = np.rint(np.where(known, power_w, 0.0) / POWER_STEP_W)
    return np.where(known, np.clip(steps, 0, UNKNOWN_POWER - 1), UNKNOWN_POWER).astype(np.uint16)


def _watts(power: NDArray[np.uint16]) -> Floats:
    """Unknown power counts as none."""
    return np.where(power == UNKNOWN_POWER, 0.0, power * POWER_STEP_W)
