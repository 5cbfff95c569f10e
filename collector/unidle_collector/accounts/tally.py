"""Sums over tenures as accounts: by GPU, job, user, node, whatever the tenures are grouped by."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from unidle_collector.accounts.buckets import Sums
from unidle_collector.model import STATES, Account, Cost, State
from unidle_collector.pergpu import Floats

JOULES_PER_KWH = 3.6e6
GPU_BITS = 32
SUMS = ("seconds", "lost_s", "lost_eur", "unpriced", "lost_j", "power_s", "activity")


@dataclass(frozen=True, slots=True)
class Members:
    """Which group each tenure belongs to; every array is [tenures]."""

    group: NDArray[np.int64]
    """-1: none."""
    gpu: NDArray[np.intp]
    share: Floats
    eur_per_s: Floats
    """NaN where the price is not known."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Sums by code and group: [codes, groups], or [groups]."""

    codes: Sequence[tuple[State, str]]
    keys: Sequence[str]
    start_ns: int
    end_ns: int
    seconds: Floats
    """GPU-seconds, by share."""
    lost_s: Floats
    lost_eur: Floats
    unpriced: Floats
    """Lost time whose price is not known."""
    lost_j: Floats
    power_s: Floats
    activity: Floats
    """[2, 2, groups] as in Sums."""
    members: NDArray[np.int64]
    """Every (group, GPU) that has any time, as `pairs_of` says it, ascending."""

    @classmethod
    def of(
        cls, sums: Sums, members: Members, codes: Sequence[tuple[State, str]], keys: Sequence[str],
        start_ns: int, end_ns: int,
    ) -> Tally:  # fmt: skip
        """Add up by group."""
        # Of the many codes and tenures few have any time in a window.
        busy = np.flatnonzero((sums.seconds != 0).any(axis=1) | (sums.lost_s != 0).any(axis=1))
        chosen = np.flatnonzero((members.group >= 0) & (sums.seconds[busy] != 0).any(axis=0))
        here, group, groups = np.ix_(busy, chosen), members.group[chosen], len(keys)

        def by_group(values: Floats) -> Floats:
            out = np.zeros((*values.shape[:-1], groups))
            for lead in np.ndindex(values.shape[:-1]):
                out[lead] = np.bincount(group, weights=values[lead], minlength=groups)
            return out

        def by_code(values: Floats) -> Floats:
            out = np.zeros((len(codes), groups))
            out[busy] = by_group(values)
            return out

        lost = sums.lost_s[here]
        money = lost * members.eur_per_s[chosen]
        return cls(
            codes=codes,
            keys=keys,
            start_ns=start_ns,
            end_ns=end_ns,
            seconds=by_code(sums.seconds[here] * members.share[chosen]),
            lost_s=by_code(lost),
            lost_eur=by_code(np.where(np.isnan(money), 0.0, money)),
            unpriced=by_code(np.where(np.isnan(money), lost, 0.0)),
            lost_j=by_code(sums.lost_j[here]),
            power_s=by_group(sums.power_s[chosen]),
            activity=by_group(sums.activity[..., chosen]),
            members=np.unique(pairs_of(group, members.gpu[chosen])),
        )

    def plus(self, other: Tally) -> Tally:
        """Both together, the groups of this one first; they have the same codes."""
        keys = list(dict.fromkeys((*self.keys, *other.keys)))
        number = {key: at for at, key in enumerate(keys)}
        places = [np.array([number[key] for key in one.keys], dtype=np.int64) for one in (self, other)]

        def both(name: str) -> Floats:
            first: Floats = getattr(self, name)
            out = np.zeros((*first.shape[:-1], len(keys)))
            for one, place in zip((self, other), places, strict=True):
                out[..., place] += getattr(one, name)
            return out

        members = [
            pairs_of(place[one.members >> GPU_BITS], one.members & (2**GPU_BITS - 1))
            for one, place in zip((self, other), places, strict=True)
        ]
        return Tally(
            codes=self.codes,
            keys=keys,
            start_ns=min(self.start_ns, other.start_ns),
            end_ns=max(self.end_ns, other.end_ns),
            members=np.unique(np.concatenate(members)),
            **{name: both(name) for name in SUMS},
        )

    @property
    def nbytes(self) -> int:
        """Memory that it takes, about."""
        arrays: int = sum(getattr(self, name).nbytes for name in (*SUMS, "members"))
        return arrays + sum(map(len, self.keys)) + 64 * len(self.keys)

    def accounts(self, first: int = 0, count: int | None = None) -> Iterator[Account]:
        """Accounts of the groups that have any time, in the order of their keys, from the `first` on."""
        for group in self._there()[first : None if count is None else first + count]:
            yield self._account(group)

    def behind(self, key: str) -> int:
        """How many accounts come before the first one behind `key`, which need not be there any more."""
        return bisect_right(self._there(), key, key=self.keys.__getitem__)

    def _there(self) -> list[int]:
        """The order is that of the keys: it is the same whatever was read first, and after a restart."""
        there: list[int] = np.flatnonzero(self.seconds.any(axis=0)).tolist()
        return sorted(there, key=self.keys.__getitem__)

    def _account(self, group: int) -> Account:
        seconds, states = self.seconds[:, group], np.array([state for state, _ in self.codes])
        by_state: dict[str, float] = {state: float(seconds[states == state].sum()) for state in STATES}
        free = states == "unallocated"
        job = ~free & (states != "productive") & (states != "unknown")
        causes = {}
        for number in np.flatnonzero((job | free) & (self.lost_s[:, group] != 0)).tolist():
            state, cause = self.codes[number]
            causes[f"{state}.{cause}" if cause else state] = self._cost(group, np.array([number]))
        (util, util_s), (sm, sm_s) = self.activity[:, :, group].tolist()
        lost_s = float(self.lost_s[job | free, group].sum())
        allocated, active, effective = funnel(by_state, lost_s)
        return Account(
            key=self.keys[group],
            start_ns=self.start_ns,
            end_ns=self.end_ns,
            gpus=int(np.diff(np.searchsorted(self.members >> GPU_BITS, (group, group + 1)))[0]),
            seconds=by_state,
            causes={name: cost.gpu_h * 3600 for name, cost in causes.items()},
            cause_costs=causes,
            lost=self._cost(group, np.flatnonzero(job)),
            unallocated=self._cost(group, np.flatnonzero(free)),
            allocated_ratio=allocated,
            active_ratio=active,
            effective_ratio=effective,
            gpu_util_ratio=_ratio(util, util_s),
            sm_active_ratio=_ratio(sm, sm_s),
            grade=_grade(util_s, sm_s),
        )

    def _cost(self, group: int, codes: NDArray[np.intp]) -> Cost:
        """Money is unknown where the price of a lost GPU is; energy where no power was known."""
        eur = None if self.unpriced[codes, group].any() else float(self.lost_eur[codes, group].sum())
        kwh = float(self.lost_j[codes, group].sum()) / JOULES_PER_KWH if self.power_s[group] else None
        return Cost(float(self.lost_s[codes, group].sum()) / 3600, eur, kwh)


def pairs_of(group: NDArray[np.int64], gpu: NDArray[np.int64]) -> NDArray[np.int64]:
    """(group, GPU) as one number each, in the order of the groups."""
    return group << GPU_BITS | gpu


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def funnel(seconds: dict[str, float], lost_s: float) -> tuple[float | None, float | None, float | None]:
    """Allocated, active and effective as shares of the known time (docs/accounting.md)."""
    known = sum(seconds.values()) - seconds["unknown"]
    service = known - seconds["failed"]
    allocated = service - seconds["unallocated"]
    active = allocated - seconds["idle"]
    effective = service - (lost_s - seconds["failed"])
    return _ratio(allocated, known), _ratio(active, known), _ratio(effective, service)


def _grade(util_s: float, sm_s: float) -> Literal["sm", "util", "mixed", "none"]:
    if sm_s == 0:
        return "util" if util_s else "none"
    return "sm" if sm_s >= 0.95 * max(util_s, sm_s) else "mixed"
