"""What crosses from a site to one receiver: of what the site knows, what its policy shares. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version

from unidle_collector.federation.adding import add_costs, add_gains
from unidle_collector.federation.groups import merge_small
from unidle_collector.federation.parts import About, Part
from unidle_collector.federation.policy import Policy, Receiver
from unidle_collector.federation.report import (
    DIMENSIONS,
    GROUPED,
    SHARES,
    FindingCount,
    GainTotal,
    PolicyApplied,
    SiteReport,
    WindowAccounts,
)
from unidle_collector.model import Account, Cost, Finding, Gain, Recommendation


def dimensions(shared: frozenset[str]) -> tuple[str, ...]:
    """Those of DIMENSIONS whose accounts cross."""
    return tuple(name for name in DIMENSIONS if f"accounts.{name}" in shared)


def window(
    part: Part, window_s: float, shared: frozenset[str], smallest: int
) -> tuple[WindowAccounts, dict[str, int]]:
    """The accounts of a window that cross, and how many groups of each dimension were merged."""
    by: dict[str, tuple[Account, ...]] = {}
    merged: dict[str, int] = {}
    for dimension in dimensions(shared):
        accounts: Sequence[Account] | None = part.by.get(dimension)
        if accounts is None:
            continue
        if dimension in GROUPED:
            persons = {key: set(who) for key, who in part.persons.get(dimension, {}).items()}
            accounts, merged[dimension] = merge_small(accounts, persons, smallest)
        by[dimension] = tuple(_reduced(account, shared) for account in accounts)
    return WindowAccounts(window_s, by), merged


def report(
    about: About,
    policy: Policy,
    receiver: Receiver,
    windows: Sequence[WindowAccounts],
    merged: dict[str, int],
) -> SiteReport:
    """What crosses to `receiver` now, around its accounts."""
    shared = policy.shared_with(receiver)
    money = "eur" in shared
    told = [finding for finding in about.findings if finding.told_ns is not None]
    return SiteReport(
        site_id=about.site_id,
        site=about.site,
        jurisdiction=policy.jurisdiction,
        version=version("unidle"),
        simulated=about.simulated,
        sent_ns=about.sent_ns,
        as_of_ns=about.as_of_ns,
        policy=PolicyApplied(
            receiver=receiver.name,
            receiver_jurisdiction=receiver.jurisdiction,
            same_jurisdiction=policy.same_jurisdiction(receiver),
            shared=tuple(name for name in SHARES if name in shared),
            withheld=tuple(name for name in SHARES if name not in shared),
            smallest_group=policy.smallest_group,
            merged=merged,
        ),
        now=about.now if "fleet.now" in shared else None,
        windows=tuple(windows),
        findings=_counts(told, money) if "findings.counts" in shared else None,
        recommendations=_gains(about.recommendations, money) if "recommendations.totals" in shared else None,
        health=about.health if "health" in shared else None,
    )


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
