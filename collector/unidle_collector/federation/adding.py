"""Adding accounts and costs of disjoint sets of GPUs. Unknown money stays unknown: a sum never guesses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import reduce

from unidle_collector.accounts.tally import funnel
from unidle_collector.model import STATES, Account, Cost, Gain

NOTHING = Cost(0.0, 0.0, 0.0)


def add_costs(costs: Iterable[Cost]) -> Cost:
    """The sum; EUR or kWh are None as soon as a part that lost anything does not know its own."""
    return reduce(_add_two, costs, NOTHING)


def add_gains(gains: Sequence[Gain]) -> Gain:
    """The sum of gains over the same horizon; low and high add up, which is the widest that it can be."""
    low, expected, high = (
        add_costs(getattr(gain, name) for gain in gains) for name in ("low", "expected", "high")
    )
    return Gain(gains[0].horizon_h, low, expected, high)


def add_accounts(key: str, parts: Sequence[Account]) -> Account:
    """One account of disjoint sets of GPUs, from the earliest start to the latest end.

    The means of GPU_UTIL and SM activity are weighted by the known time of the parts that know them.
    """
    seconds = {
        state: sum(part.seconds.get(state, 0.0) for part in parts) for state in _in_order(parts, "seconds")
    }
    for state in STATES:
        seconds.setdefault(state, 0.0)
    lost, unallocated = add_costs(p.lost for p in parts), add_costs(p.unallocated for p in parts)
    costs = {
        name: add_costs(part.cause_costs[name] for part in parts if name in part.cause_costs)
        for name in _in_order(parts, "cause_costs")
    }
    allocated, active, effective = funnel(seconds, (lost.gpu_h + unallocated.gpu_h) * 3600)
    grades = {part.grade for part in parts} - {"none"}
    return Account(
        key=key,
        start_ns=min(part.start_ns for part in parts),
        end_ns=max(part.end_ns for part in parts),
        gpus=sum(part.gpus for part in parts),
        seconds=seconds,
        causes={name: sum(p.causes.get(name, 0.0) for p in parts) for name in _in_order(parts, "causes")},
        cause_costs=costs,
        lost=lost,
        unallocated=unallocated,
        allocated_ratio=allocated,
        active_ratio=active,
        effective_ratio=effective,
        gpu_util_ratio=_mean(parts, lambda part: part.gpu_util_ratio),
        sm_active_ratio=_mean(parts, lambda part: part.sm_active_ratio),
        grade="none" if not grades else grades.pop() if len(grades) == 1 else "mixed",
    )


def _add_two(one: Cost, other: Cost) -> Cost:
    return Cost(one.gpu_h + other.gpu_h, _known(one, other, "eur"), _known(one, other, "kwh"))


def _known(one: Cost, other: Cost, name: str) -> float | None:
    """None where a part that has something does not know it; what has nothing has no say."""
    values = [getattr(cost, name) for cost in (one, other) if cost.gpu_h > 0 or getattr(cost, name)]
    return None if None in values else float(sum(values))


def _in_order(parts: Sequence[Account], name: str) -> list[str]:
    return list(dict.fromkeys(key for part in parts for key in getattr(part, name)))


def _mean(parts: Sequence[Account], value: Callable[[Account], float | None]) -> float | None:
    known = [
        (found, sum(part.seconds.values()) - part.seconds.get("unknown", 0.0))
        for part in parts
        if (found := value(part)) is not None
    ]
    weight = sum(seconds for _, seconds in known)
    return sum(found * seconds for found, seconds in known) / weight if weight else None
