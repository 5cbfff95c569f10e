"""The reports of all sites as one fleet. Pure: what was seen and a clock in, the API's types out.

A site is never dropped from a sum in silence. One that is away keeps its GPUs, in state `unknown`; the
time since its last report is booked as unknown, and once that is the whole window, nothing else of it
is in the sum. What a site withholds, or what is too old, is told in `gaps`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal

from unidle_agent.errors import UnidleError
from unidle_collector.federation.adding import add_accounts
from unidle_collector.federation.following import Seen
from unidle_collector.federation.report import NAMED, WINDOWS_S, SiteNow, SiteReport
from unidle_collector.model import STATES, Account, Fleet
from unidle_collector.pergpu import SECOND_NS

POLLS_UNTIL_AWAY = 3
BY = ("fleet", "site", "jurisdiction", "model", "hour", "team", *NAMED)
WHOLE = ("fleet", "site", "jurisdiction", "model")
"""Dimensions whose groups keep their GPUs while a site is away; who works in the others nobody knows."""
NOT_SAID = "not said"
SUMMED = {
    "fleet.now": "GPUs now",
    "accounts.fleet": "accounts",
    "accounts.cause": "causes",
    "eur": "money",
    "findings.counts": "findings",
    "recommendations.totals": "recommendations",
}
"""What the fleet's sums are made of -> what it is called where a site withholds it."""


class AskedWrongError(UnidleError):
    """The question itself is at fault."""


def sites(seen: Iterable[Seen], now_ns: int, poll_s: float) -> list[SiteNow]:
    """Every site once, in the order of the file; of several paths to one, the one that answered last."""
    by_id: dict[str, list[Seen]] = {}
    for one in seen:
        by_id.setdefault(one.report.site_id if one.report else one.source.url, []).append(one)
    names = [paths[0].report.site for paths in by_id.values() if paths[0].report]
    out = []
    for paths in by_id.values():
        best = max(paths, key=lambda path: path.answered_ns or 0)
        others = tuple(path.source.url for path in paths if path is not best)
        age_s = None if best.answered_ns is None else max(0.0, (now_ns - best.answered_ns) / SECOND_NS)
        key = best.source.url
        if best.report is not None:
            unique = names.count(best.report.site) == 1
            key = best.report.site if unique else f"{best.report.site} ({best.report.site_id[:8]})"
        out.append(
            SiteNow(
                key=key,
                state=_state(age_s, poll_s),
                url=best.source.url,
                also_at=others,
                answered_ns=best.answered_ns,
                age_s=age_s,
                error=best.error,
                report=best.report,
            )
        )
    return out


def _state(age_s: float | None, poll_s: float) -> Literal["current", "away", "never"]:
    if age_s is None:
        return "never"
    return "current" if age_s <= POLLS_UNTIL_AWAY * poll_s else "away"


def chosen(all_sites: Sequence[SiteNow], site: str) -> list[SiteNow]:
    """All sites, or the one that is asked for; raises AskedWrongError where there is no such site."""
    if not site:
        return list(all_sites)
    found = [one for one in all_sites if one.key == site]
    if not found:
        names = ", ".join(one.key for one in all_sites)
        raise AskedWrongError(f"site: expected one of {names}, came {site!r}")
    return found


def fleet(name: str, asked: Sequence[SiteNow], window_s: float, now_ns: int) -> Fleet:
    """All that the sites tell, at a glance."""
    reports = [one.report for one in asked if one.report is not None]
    states: dict[str, int] = {}
    for one in asked:
        for state, count in _states(one).items():
            states[state] = states.get(state, 0) + count
    told = [report.now for report in reports if report.now is not None]
    current = [one.report.as_of_ns for one in asked if one.report is not None and one.state == "current"]
    found = accounts(asked, "fleet", window_s)
    empty = Account("fleet", now_ns - int(window_s * SECOND_NS), now_ns, 0, dict.fromkeys(STATES, 0.0))
    return Fleet(
        site=name,
        time_ns=min((as_of for as_of in current if as_of is not None), default=None),
        simulated=any(report.simulated for report in reports),
        nodes=sum(now.nodes for now in told),
        gpus=sum(now.gpus for now in told),
        jobs=sum(now.jobs for now in told),
        states=states,
        account=found[0] if found else empty,
        open_incidents=sum(count.findings for report in reports for count in report.findings or ()),
        recommendations=sum(
            total.recommendations for report in reports for total in report.recommendations or ()
        ),
        sites=tuple(one.key for one in asked),
        simulated_sites=tuple(one.key for one in asked if one.report is not None and one.report.simulated),
        simulated_gpus=sum(now.simulated_gpus for now in told),
        gaps=tuple(gap for one in asked for gap in _gaps(one, window_s)),
    )


def accounts(asked: Sequence[SiteNow], by: str, window_s: float) -> list[Account]:
    """Accounts over all sites; of a team, node, user or job the key is `SITE/KEY`.

    Raises AskedWrongError for another dimension than BY, another window than WINDOWS_S.
    """
    if by not in BY:
        raise AskedWrongError(f"by: expected {', '.join(BY)}, came {by!r}")
    if window_s not in WINDOWS_S:
        windows = ", ".join(f"{window:.0f}" for window in WINDOWS_S)
        raise AskedWrongError(f"window_s: expected one of {windows}, came {window_s:g}")
    groups: dict[str, list[Account]] = {}
    for one in asked:
        if one.report is None:
            continue
        own = by if by not in ("site", "jurisdiction") else "fleet"
        for account in one.report.accounts(window_s, own) or ():
            aged = _aged(account, one, window_s, whole=by in WHOLE)
            if aged is not None:
                groups.setdefault(_key(by, one, one.report, account), []).append(aged)
    merged = [add_accounts(key, parts) for key, parts in groups.items()]
    return sorted(merged, key=lambda account: account.key) if by == "hour" else merged


def _key(by: str, one: SiteNow, report: SiteReport, account: Account) -> str:
    keys: dict[str, Callable[[], str]] = {
        "fleet": lambda: "fleet",
        "site": lambda: one.key,
        "jurisdiction": lambda: report.jurisdiction or NOT_SAID,
        "model": lambda: account.key,
        "hour": lambda: account.key,
    }
    return keys.get(by, lambda: f"{one.key}/{account.key}")()


def _aged(account: Account, one: SiteNow, window_s: float, *, whole: bool) -> Account | None:
    """The account with the time since its site went away; None where nothing of it is left."""
    if one.state == "current" or one.age_s is None:
        return account
    gone_ns = int(one.age_s * SECOND_NS)
    if one.age_s < window_s:
        unknown_s = account.gpus * one.age_s if whole else 0.0
        seconds = account.seconds | {"unknown": account.seconds.get("unknown", 0.0) + unknown_s}
        return replace(account, seconds=seconds, end_ns=account.end_ns + gone_ns)
    if not whole:
        return None
    end_ns = account.end_ns + gone_ns
    start_ns = end_ns - int(window_s * SECOND_NS)
    gone = Account(account.key, start_ns, end_ns, account.gpus, dict.fromkeys(STATES, 0.0))
    gone.seconds["unknown"] = account.gpus * window_s
    return gone


def _states(one: SiteNow) -> dict[str, int]:
    """GPUs by state; of a site that is away nobody knows the states."""
    if one.report is None or one.report.now is None:
        return {}
    return one.report.now.states if one.state == "current" else {"unknown": one.report.now.gpus}


def _gaps(one: SiteNow, window_s: float) -> list[str]:
    """What the sums do not hold of a site, in words."""
    if one.report is None:
        return [f"{one.key}: never answered, not in the sums ({one.error or 'not asked yet'})"]
    out = []
    if one.state == "away":
        since = datetime.fromtimestamp((one.answered_ns or 0) / 1e9, UTC)
        more = "" if (one.age_s or 0.0) < window_s else ", longer than this window"
        reason = one.error or "no answer"
        out.append(f"{one.key}: unknown since {since:%Y-%m-%d %H:%M:%S} UTC{more} ({reason})")
    withheld = [name for share, name in SUMMED.items() if share in one.report.policy.withheld]
    if withheld:
        out.append(f"{one.key}: withheld by policy: {', '.join(withheld)}")
    return out
