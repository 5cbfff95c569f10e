"""A site's report to one receiver, from the live collector. Only what the policy shares is put in."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from unidle_agent.wire import Owner
from unidle_collector import reading
from unidle_collector.buckets import HOUR_NS
from unidle_collector.federation.adding import add_costs, add_gains
from unidle_collector.federation.groups import merge_small
from unidle_collector.federation.policy import Policy, Receiver
from unidle_collector.federation.report import (
    DIMENSIONS,
    GROUPED,
    HOURS_OF_S,
    SHARES,
    FindingCount,
    GainTotal,
    Now,
    PolicyApplied,
    SiteReport,
    Wellness,
    WindowAccounts,
)
from unidle_collector.inventory import Tenure
from unidle_collector.live import Live
from unidle_collector.model import Account, Cost, Finding, Gain, Recommendation
from unidle_collector.pergpu import SECOND_NS

NOBODY_SAYS = "?"
"""All who use GPUs without anybody saying who they are: they may be one person, so they count as one."""
SETTLED_NS = 2 * HOUR_NS
"""After this an hour changes by late rows only: longer than any state is booked back."""
FREE_STATES = ("unallocated", "unknown")
"""Time in these is nobody's."""


def site_id(data_dir: Path) -> str:
    """The id of this collector, made on first use and kept beside its store."""
    path = data_dir / "site.id"
    if not path.is_file():
        path.write_text(uuid.uuid4().hex + "\n", encoding="ascii")
    return path.read_text(encoding="ascii").strip()


def report(
    live: Live,
    policy: Policy,
    receiver: Receiver,
    windows: Sequence[WindowAccounts],
    merged: dict[str, int],
) -> SiteReport:
    """What crosses to `receiver` now, around its accounts; runs in the thread that owns `live`."""
    shared = policy.shared_with(receiver)
    money = "eur" in shared
    findings = [finding for finding in live.engine.findings() if finding.told_ns is not None]
    return SiteReport(
        site_id=site_id(live.settings.data_dir),
        site=live.settings.site,
        jurisdiction=policy.jurisdiction,
        version=version("unidle"),
        simulated=reading.simulated(live),
        sent_ns=live.clock_ns(),
        as_of_ns=live.window.time_ns,
        policy=PolicyApplied(
            receiver=receiver.name,
            receiver_jurisdiction=receiver.jurisdiction,
            same_jurisdiction=policy.same_jurisdiction(receiver),
            shared=tuple(name for name in SHARES if name in shared),
            withheld=tuple(name for name in SHARES if name not in shared),
            smallest_group=policy.smallest_group,
            merged=merged,
        ),
        now=_now(live) if "fleet.now" in shared else None,
        windows=tuple(windows),
        findings=_counts(findings, money) if "findings.counts" in shared else None,
        recommendations=_gains(reading.recommendations(live), money)
        if "recommendations.totals" in shared
        else None,
        health=_health(live) if "health" in shared else None,
    )


def _now(live: Live) -> Now:
    fleet = reading.fleet(live, 0.0)
    return Now(fleet.nodes, fleet.gpus, sum(live.engine.inventory.simulated), fleet.jobs, fleet.states)


def _health(live: Live) -> Wellness:
    health = reading.health(live)
    return Wellness(health.ok, len(health.problems), health.lag_s)


def window(
    live: Live, window_s: float, shared: frozenset[str], smallest: int, hours: Hours
) -> tuple[WindowAccounts, dict[str, int]]:
    """The accounts of a window that cross, and how many groups of each dimension were merged.

    All of one window are of the same instant; runs in the thread that owns `live`.
    """
    by: dict[str, tuple[Account, ...]] = {}
    merged: dict[str, int] = {}
    for dimension in DIMENSIONS:
        if f"accounts.{dimension}" not in shared:
            continue
        if dimension == "hour":
            if window_s != HOURS_OF_S:
                continue
            accounts = hours.accounts(live)
        else:
            accounts = reading.accounts(live, dimension, window_s)
        if dimension in GROUPED:
            persons = _persons(live, reading.key_of(live, dimension), window_s)
            accounts, merged[dimension] = merge_small(accounts, persons, smallest)
        by[dimension] = tuple(_reduced(account, shared) for account in accounts)
    return WindowAccounts(window_s, by), merged


class Hours:
    """The whole site by hours of the clock, the same hours at every site; a key is the begin in ns.

    An hour that has long been over is added up once an hour only: late rows show in it that much later.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[int, list[Account]]] = {}
        """Begin of an hour -> event time when it was added up, and its account, if any."""

    def accounts(self, live: Live) -> list[Account]:
        """The last day; runs in the thread that owns `live`."""
        end_ns = live.window.time_ns
        if end_ns is None:
            return []
        first = (end_ns - int(HOURS_OF_S * SECOND_NS)) // HOUR_NS * HOUR_NS
        before, self._kept = self._kept, {}
        for begin in range(first, end_ns, HOUR_NS):
            made_ns, found = before.get(begin, (0, []))
            open_still = begin + HOUR_NS + SETTLED_NS > made_ns
            if open_still or end_ns - made_ns >= HOUR_NS:
                key, stop_ns = str(begin), min(begin + HOUR_NS, end_ns)
                found = live.engine.ledger.accounts(lambda _, key=key: key, begin, stop_ns)  # type: ignore[misc]
                made_ns = end_ns
            self._kept[begin] = (made_ns, found)
        return [account for _, found in self._kept.values() for account in found]


def _persons(live: Live, key_of: Callable[[Tenure], str | None], window_s: float) -> dict[str, set[str]]:
    """Key -> who had time in it that was not free, within the window."""
    end_ns = live.window.time_ns
    if end_ns is None:
        return {}

    def key_and_person(tenure: Tenure) -> str | None:
        key = key_of(tenure)
        return None if key is None else f"{_person(tenure.owner)}\0{key}"

    start_ns = end_ns - int(window_s * SECOND_NS)
    tally = live.engine.ledger.tally(key_and_person, start_ns, end_ns)
    used = [number for number, (state, _) in enumerate(tally.codes) if state not in FREE_STATES]
    found: dict[str, set[str]] = {}
    for column, both in enumerate(tally.keys):
        person, _, key = both.partition("\0")
        if tally.seconds[used, column].any():
            found.setdefault(key, set()).add(person)
    return found


def _person(owner: Owner) -> str:
    return owner.user or NOBODY_SAYS


def _reduced(account: Account, shared: frozenset[str]) -> Account:
    """The account without what does not cross: causes, money."""
    if "accounts.cause" not in shared:
        account = replace(account, causes={}, cause_costs={})
    if "eur" in shared:
        return account
    return replace(
        account,
        lost=_penniless(account.lost),
        unallocated=_penniless(account.unallocated),
        cause_costs={name: _penniless(cost) for name, cost in account.cause_costs.items()},
    )


def _penniless(cost: Cost) -> Cost:
    return replace(cost, eur=None)


def _counts(findings: Sequence[Finding], money: bool) -> tuple[FindingCount, ...]:
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.kind, finding.cause, finding.severity), []).append(finding)
    return tuple(
        FindingCount(
            kind=kind,
            cause=cause,
            severity=members[0].severity,
            findings=len(members),
            gpus=len({(ref.node, ref.gpu) for one in members for ref in one.gpus}),
            cost_per_h=_money(add_costs(one.cost_per_h for one in members), money),
        )
        for (kind, cause, _), members in sorted(groups.items())
    )


def _gains(items: Sequence[Recommendation], money: bool) -> tuple[GainTotal, ...]:
    groups: dict[tuple[str, str, float], list[Recommendation]] = {}
    for item in items:
        groups.setdefault((item.kind, item.lever, item.gain.horizon_h), []).append(item)
    return tuple(
        GainTotal(kind, lever, len(members), _gain(add_gains([one.gain for one in members]), money))
        for (kind, lever, _), members in sorted(groups.items())
    )


def _gain(gain: Gain, money: bool) -> Gain:
    low, expected, high = (_money(cost, money) for cost in (gain.low, gain.expected, gain.high))
    return Gain(gain.horizon_h, low, expected, high)


def _money(cost: Cost, money: bool) -> Cost:
    return cost if money else _penniless(cost)
