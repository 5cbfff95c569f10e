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
from unidle_collector.pergpu import SECOND_NS, Bools, Floats, PerGpu
from unidle_collector.signals import View

KEEP_NS = 8 * 24 * HOUR_NS
REWRITE_S = 1200.0
"""How far back a state can be corrected: beyond the longest accounting delay and start-up grace."""
JOULES_PER_KWH = 3.6e6

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
        self._slots = max(4, int(REWRITE_S / period_s) + 1)
        self._slot_end: NDArray[np.int64] = np.full(self._slots, -1, dtype=np.int64)
        self._next = 0
        rewrite_ns = int(self._slots * period_s * SECOND_NS)
        self._buckets = Buckets(len(self.codes), rewrite_ns, keep_ns)
        size = inventory.capacity
        self._a = PerGpu(size)
        self._a.make("code", np.int16, -1, self._slots)
        self._a.make("loss", np.float32, 0.0, self._slots)
        self._a.make("power", np.float32, np.nan, self._slots)
        self._a.make("tenure", np.int32, -1, self._slots)
        self._a.make("now", np.int16, -1)
        self._a.make("now_loss", np.float32, 0.0)
        self._was_on: dict[str, Bools] = {}

    def resize(self, size: int) -> None:
        """Grow to `size` GPUs."""
        self._a.resize(size)

    def book(self, view: View, verdicts: list[tuple[Detector, Verdict]]) -> None:
        """Book one step of all GPUs and correct what has become known."""
        count = len(self._inventory)
        code, loss = self._classify(view, verdicts)
        slot, self._next = self._next, (self._next + 1) % self._slots
        step, a = view.step, self._a
        self._slot_end[slot] = step.end_ns
        a["code"][slot], a["loss"][slot] = code, loss
        a["power"][slot] = step.get("power_w")
        a["tenure"][slot] = self._inventory.a["tenure"]
        a["now"][:], a["now_loss"][:] = code, loss
        self._add(slot, np.arange(count), step.period_ns / SECOND_NS, 1.0)
        self._add_activity(view, count)
        for detector, verdict in verdicts:
            self._correct(detector, verdict, view)

    def now(self, position: int) -> tuple[State, str]:
        """State and cause of a GPU at the last step; unknown before there was one."""
        number = int(self._a["now"][position])
        return ("unknown", "") if number < 0 else (self.codes[number].state, self.codes[number].cause)

    def lost_now(self) -> Floats:
        """[GPUs] loss weight at the last step."""
        return self._a["now_loss"].astype(np.float64)

    def _classify(
        self, view: View, verdicts: list[tuple[Detector, Verdict]]
    ) -> tuple[NDArray[np.int16], Floats]:
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
        return code.astype(np.int16), loss

    def _bucket(self, end_ns: int) -> Sums:
        return self._buckets.at(end_ns, len(self._inventory.tenures))

    def _add(self, slot: int, gpus: NDArray[np.intp], seconds: float, sign: float) -> None:
        """Book (or, with sign -1, take back) what the ring holds of one step."""
        a, bucket = self._a, self._bucket(int(self._slot_end[slot]))
        code, tenure = a["code"][slot, gpus], a["tenure"][slot, gpus]
        share = self._inventory.a["share"][gpus]
        lost = a["loss"][slot, gpus] * seconds * share * sign
        power = a["power"][slot, gpus]
        bucket.seconds[code, tenure] += seconds * sign
        bucket.lost_s[code, tenure] += lost
        bucket.lost_j[code, tenure] += np.nan_to_num(power, nan=0.0) * a["loss"][slot, gpus] * seconds * sign

    def _add_activity(self, view: View, count: int) -> None:
        bucket = self._bucket(view.step.end_ns)
        tenure = self._inventory.a["tenure"][:count]
        seconds = view.step.period_ns / SECOND_NS
        for number, field in enumerate(("gpu_util_ratio", "sm_active_ratio")):
            values = view.step.get(field)[:count]
            known = ~np.isnan(values)
            bucket.activity[number, 0, tenure] += np.where(known, values, 0.0) * seconds
            bucket.activity[number, 1, tenure] += known * seconds
        bucket.power_s[tenure] += ~np.isnan(view.step.get("power_w")[:count]) * seconds

    def _correct(self, detector: Detector, verdict: Verdict, view: View) -> None:
        """Where a condition has just become known, book its steps since its begin anew."""
        if detector.state is None:
            return
        before = self._was_on.get(detector.kind)
        fresh = verdict.on.copy()
        if before is not None:
            fresh[: before.size] &= ~before
        self._was_on[detector.kind] = verdict.on.copy()
        seconds, period_ns = view.step.period_ns / SECOND_NS, view.step.period_ns
        tenure_now = self._inventory.a["tenure"]
        for gpu in np.flatnonzero(fresh):
            mine = self._index[detector.state, detector.causes[int(verdict.cause[gpu])]]
            back = self._a["code"][:, gpu]
            slots = np.flatnonzero(
                (self._slot_end >= verdict.since[gpu] + period_ns)
                & (self._slot_end < view.step.end_ns)
                & (self._a["tenure"][:, gpu] == tenure_now[gpu])
                & (back >= 0)
                & (back != self._index["unknown", ""])
            )
            for old in slots[self._rank[back[slots]] > self._rank[mine]]:
                one = np.array([gpu], dtype=np.intp)
                self._add(int(old), one, seconds, -1.0)
                self._a["code"][old, gpu] = mine
                self._a["loss"][old, gpu] = verdict.loss[gpu]
                self._add(int(old), one, seconds, 1.0)

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
