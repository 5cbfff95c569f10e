"""The account of every GPU instant (accounting.md): seconds by state and cause, and what was lost.

Each step of each GPU is booked at once, on its tenure and its bucket of time. A state that needs
evidence is booked back to its begin once it is known: a ring of the last steps says what was booked.
Time no sample covers is `unknown`: neither lost nor productive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from unidle_collector.buckets import HOUR_NS, Buckets, Sums
from unidle_collector.detectors import Detector, Verdict
from unidle_collector.inventory import Inventory, Tenure
from unidle_collector.model import STATES, Account, Cost, State
from unidle_collector.pergpu import SECOND_NS, Floats, PerGpu
from unidle_collector.signals import Step, View

KEEP_NS = 8 * 24 * HOUR_NS
REWRITE_S = 1200.0
"""How far back a state can be corrected: beyond the longest accounting delay and start-up grace."""
JOULES_PER_KWH = 3.6e6

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
        self._a.make("now_loss", np.float32, 0.0)
        self._a.make("on", np.bool_, False, len(self._kinds))
        self._a.at["last_end_ns"] = 0

    def resize(self, size: int) -> None:
        """Grow to `size` GPUs."""
        self._a.resize(size)

    def book(self, view: View, verdicts: list[tuple[Detector, Verdict]]) -> None:
        """Book one step of all GPUs and correct what has become known."""
        code, loss = self._classify(view, verdicts)
        step, a = view.step, self._a
        slot = self._slot(step.end_ns)
        self._blank_between(step)
        a["code"][slot] = code
        a["loss"][slot] = np.rint(loss * WHOLE)
        a["power"][slot] = _whole_power(step.get("power_w"))
        a["now"][:], a["now_loss"][:] = code, loss
        self._follow_tenures(step.start_ns)
        self._add(view)
        for number, (detector, verdict) in enumerate(verdicts):
            self._correct(number, detector, verdict, view)

    def _slot(self, end_ns: int) -> int:
        """Where in the ring the step that ends at `end_ns` lies."""
        return round(end_ns / self._period_ns) % self._slots

    def _blank_between(self, step: Step) -> None:
        """Steps that were left out (time jumped) must not be taken for those of a ring ago."""
        a, last = self._a, self._a.at["last_end_ns"]
        self._a.at["last_end_ns"] = step.end_ns
        missing = round((step.start_ns - last) / self._period_ns)
        for back in range(1, min(missing, self._slots - 1) + 1):
            a["code"][self._slot(step.end_ns - back * self._period_ns)] = NOT_BOOKED

    def _follow_tenures(self, start_ns: int) -> None:
        a, tenure = self._a, self._inventory.a["tenure"]
        changed = a["tenure"] != tenure
        if changed.any():
            a["tenure_from"][changed] = start_ns
            a["tenure"][changed] = tenure[changed]

    def now(self, position: int) -> tuple[State, str]:
        """State and cause of a GPU at the last step; unknown before there was one."""
        number = int(self._a["now"][position])
        return ("unknown", "") if number < 0 else (self.codes[number].state, self.codes[number].cause)

    def lost_now(self) -> Floats:
        """[GPUs] loss weight at the last step."""
        return self._a["now_loss"].astype(np.float64)

    def _classify(
        self, view: View, verdicts: list[tuple[Detector, Verdict]]
    ) -> tuple[NDArray[np.int8], Floats]:
        """The one state of each GPU at this step, by the order of accounting.md."""
        index = self._index
        code = np.where(view.allocated, index["productive", ""], index["unallocated", ""])
        loss = np.where(view.allocated, 0.0, 1.0)
        unknown = ~view.step.sampled
        code[unknown], loss[unknown] = index["unknown", ""], 0.0
        for detector, verdict in verdicts:
            if detector.state is None:
                continue
            if not verdict.on.any():
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
        fresh = np.flatnonzero(verdict.on & ~before)
        before[:] = verdict.on
        for first in range(0, fresh.size, AT_ONCE):
            self._rebook(detector, verdict, view.step, fresh[first : first + AT_ONCE])

    def _rebook(self, detector: Detector, verdict: Verdict, step: Step, gpus: NDArray[np.intp]) -> None:
        """Book the steps of `gpus` since the begin of what `verdict` says, where its state comes first."""
        a, index = self._a, self._index
        since = np.maximum(verdict.since[gpus], a["tenure_from"][gpus])
        steps = min(self._slots - 1, max(0, round((step.start_ns - int(since.min())) / self._period_ns)))
        ends = step.end_ns - step.period_ns * np.arange(1, steps + 1)
        slots = np.array([self._slot(int(end)) for end in ends], dtype=np.intp)
        mine = np.array([index[detector.state or "unknown", cause] for cause in detector.causes])
        mine = mine[verdict.cause[gpus]]
        old = a["code"][slots[:, None], gpus[None, :]]
        allowed = self._rank[:, None] > self._rank[mine][None, :]  # [code before, GPU]
        allowed[index["unknown", ""]] = False
        wrong = (ends[:, None] - step.period_ns >= since) & (old >= 0)
        wrong &= allowed[old, np.arange(gpus.size)[None, :]]
        at, which = np.nonzero(wrong)
        if not at.size:
            return
        slot, gpu = slots[at], gpus[which]
        before = Entries(ends[at], gpu, old[at, which], a["loss"][slot, gpu], a["power"][slot, gpu])
        loss = np.rint(verdict.loss[gpu] * WHOLE).astype(np.uint16)
        after = Entries(before.end_ns, gpu, mine[which].astype(np.int8), loss, before.power)
        a["code"][slot, gpu], a["loss"][slot, gpu] = after.code, after.loss
        seconds = step.period_ns / SECOND_NS
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

    def hours(self, start_ns: int, end_ns: int) -> Iterator[tuple[int, int, dict[str, list[float]]]]:
        """(hour's start, tenure, `state.cause` -> [seconds, lost seconds, lost joules]) of what was booked.

        Also under `power`, `gpu_util` and `sm_active`: known seconds, or integral and known seconds.
        """
        for hour in self._buckets.hours(start_ns, end_ns):
            total = self._buckets.total(hour, hour + HOUR_NS, len(self._inventory.tenures))
            for tenure in np.flatnonzero(total.seconds.any(axis=0)):
                document = {
                    f"{code.state}.{code.cause}": [
                        float(sums[number, tenure]) for sums in (total.seconds, total.lost_s, total.lost_j)
                    ]
                    for number, code in enumerate(self.codes)
                    if total.seconds[number, tenure]
                }
                document["power"] = [float(total.power_s[tenure])]
                for number, name in enumerate(("gpu_util", "sm_active")):
                    document[name] = [float(value) for value in total.activity[number, :, tenure]]
                yield hour, int(tenure), document

    def restore(self, hour_ns: int, tenure: int, document: Mapping[str, list[float]]) -> None:
        """Put back what `hours` gave, before a restart, of one tenure and hour."""
        bucket = self._bucket(hour_ns + 1)
        for (state, cause), number in self._index.items():
            sums = document.get(f"{state}.{cause}")
            if sums is not None:
                for array, value in zip((bucket.seconds, bucket.lost_s, bucket.lost_j), sums, strict=True):
                    array[number, tenure] += value
        bucket.power_s[tenure] += document.get("power", [0.0])[0]
        for number, name in enumerate(("gpu_util", "sm_active")):
            bucket.activity[number, :, tenure] += document.get(name, [0.0, 0.0])

    def durations(self) -> list[tuple[dict[str, float], dict[str, float]]]:
        """Each GPU over all that was booked: (state -> seconds, `state.cause` -> seconds), never weighted."""
        tenures = self._inventory.tenures
        booked = self._buckets.total(0, 2**63 - 1, len(tenures)).seconds
        by_gpu = np.zeros((len(self._inventory), len(self.codes)))
        np.add.at(by_gpu, [tenure.gpu for tenure in tenures], booked.T)
        return [self._durations(row) for row in by_gpu]

    def _durations(self, row: Floats) -> tuple[dict[str, float], dict[str, float]]:
        states: dict[str, float] = dict.fromkeys(STATES, 0.0)
        causes: dict[str, float] = {}
        for code, seconds in zip(self.codes, row, strict=True):
            states[code.state] += float(seconds)
            if code.cause and seconds > 0:
                causes[f"{code.state}.{code.cause}"] = float(seconds)
        return states, causes

    def accounts(self, key_of: Callable[[Tenure], str | None], start_ns: int, end_ns: int) -> list[Account]:
        """Accounts of the tenures by key (None leaves one out), over the buckets that touch the window."""
        first_ns = self._buckets.first_ns(start_ns, end_ns)
        if first_ns is None:
            return []
        tenures = self._inventory.tenures
        groups: dict[str, list[int]] = {}
        for number, tenure in enumerate(tenures):
            key = key_of(tenure)
            if key is not None:
                groups.setdefault(key, []).append(number)
        total = self._buckets.total(start_ns, end_ns, len(tenures))
        first = max(start_ns, first_ns)
        out = []
        for key, members in groups.items():
            account = self._account(key, np.array(members), total, first, end_ns)
            if account is not None:
                out.append(account)
        return out

    def _account(
        self, key: str, members: NDArray[np.intp], total: Sums, start_ns: int, end_ns: int
    ) -> Account | None:
        if not total.seconds[:, members].any():
            return None
        lost, joules = total.lost_s[:, members], total.lost_j[:, members]
        tenures = self._inventory.tenures
        gpus = np.array([tenures[m].gpu for m in members])
        seconds = total.seconds[:, members] * self._inventory.a["share"][gpus]
        price = self._inventory.a["eur_per_h"][gpus] / 3600
        by_state: dict[str, float] = dict.fromkeys(STATES, 0.0)
        measured = bool(total.power_s[members].any())
        causes: dict[str, Cost] = {}
        for number, code in enumerate(self.codes):
            by_state[code.state] += float(seconds[number].sum())
            if code.state not in ("productive", "unknown") and lost[number].any():
                name = f"{code.state}.{code.cause}" if code.cause else code.state
                causes[name] = _cost(lost[number], float(joules[number].sum()), price, measured)
        free = self._index["unallocated", ""]
        job_rows = np.array(
            [n for n, c in enumerate(self.codes) if c.state not in ("productive", "unknown", "unallocated")]
        )
        util, sm = (
            _ratio(total.activity[n, 0, members].sum(), total.activity[n, 1, members].sum()) for n in (0, 1)
        )
        allocated, active, effective = _funnel(by_state, float(lost[job_rows].sum() + lost[free].sum()))
        return Account(
            key=key,
            start_ns=start_ns,
            end_ns=end_ns,
            gpus=int(np.unique(gpus).size),
            seconds=by_state,
            causes={name: cost.gpu_h * 3600 for name, cost in causes.items()},
            cause_costs=causes,
            lost=_cost(lost[job_rows].sum(axis=0), joules[job_rows].sum(), price, measured),
            unallocated=_cost(lost[free], joules[free].sum(), price, measured),
            allocated_ratio=allocated,
            active_ratio=active,
            effective_ratio=effective,
            gpu_util_ratio=util,
            sm_active_ratio=sm,
            grade=_grade(total.activity[:, 1, members]),
        )


def _codes(detectors: Iterable[Detector]) -> tuple[Code, ...]:
    pairs = list(FIXED)
    pairs += [(d.state, cause) for d in detectors if d.state is not None for cause in d.causes]
    return tuple(Code(state, cause, STATES.index(state)) for state, cause in pairs)


def _whole_power(power_w: Floats) -> NDArray[np.uint16]:
    known = ~np.isnan(power_w)
    steps = np.rint(np.where(known, power_w, 0.0) / POWER_STEP_W)
    return np.where(known, np.clip(steps, 0, UNKNOWN_POWER - 1), UNKNOWN_POWER).astype(np.uint16)


def _watts(power: NDArray[np.uint16]) -> Floats:
    """Unknown power counts as none."""
    return np.where(power == UNKNOWN_POWER, 0.0, power * POWER_STEP_W)


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole > 0 else None


def _cost(lost_s: Floats, joules: float, price_per_s: Floats, measured: bool) -> Cost:
    """Cost of lost GPU-seconds per tenure; money is unknown where the price of a lost GPU is."""
    money = lost_s * price_per_s
    concerned = lost_s > 0
    eur = None if bool(np.isnan(money[concerned]).any()) else float(money[concerned].sum())
    return Cost(float(lost_s.sum()) / 3600, eur, float(joules) / JOULES_PER_KWH if measured else None)


def _funnel(seconds: dict[str, float], lost_s: float) -> tuple[float | None, float | None, float | None]:
    """Allocated, active and effective as shares of the known time (accounting.md)."""
    known = sum(seconds.values()) - seconds["unknown"]
    service = known - seconds["failed"]
    allocated = service - seconds["unallocated"]
    active = allocated - seconds["idle"]
    effective = service - (lost_s - seconds["failed"])
    return _ratio(allocated, known), _ratio(active, known), _ratio(effective, service)


def _grade(known_seconds: Floats) -> Literal["sm", "util", "mixed", "none"]:
    util, sm = float(known_seconds[0].sum()), float(known_seconds[1].sum())
    if sm == 0:
        return "util" if util else "none"
    return "sm" if sm >= 0.95 * max(util, sm) else "mixed"
