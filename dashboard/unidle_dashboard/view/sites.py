"""Sites of a federation: which answer, what each tells, what it withholds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unidle_collector.federation.report import SiteNow
from unidle_collector.model import STATES, Account
from unidle_dashboard.view import words
from unidle_dashboard.view.palette import LOOKS

WITHHELD = "withheld"
"""What the site's policy does not let cross: not the same as unknown."""
NOT_SAID = "not said"


@dataclass(frozen=True, slots=True)
class SiteRow:
    """One site as people read it."""

    name: str
    place: str
    """Its jurisdiction."""
    simulated: bool
    trouble: str
    """Since when and why nothing is known of it; empty while it answers."""
    gpus: str
    strip: tuple[tuple[str, str, float], ...]
    """(name of the state, colour, share 0-1) of its GPUs now; all unknown while it is away."""
    lost: str
    lost_note: str
    effective: str
    findings: str
    gain: str
    withheld: str
    """What its policy withholds; empty where that is nothing."""
    report: str
    """How old its last report is, and up to when its data reach."""


def verdict(sites: Sequence[SiteNow]) -> tuple[str, str]:
    """One sentence on who answers, and one on whose law holds where."""
    silent = [site for site in sites if site.state != "current"]
    simulated = [site.key for site in sites if site.report is not None and site.report.simulated]
    laws = sorted({site.report.jurisdiction or NOT_SAID for site in sites if site.report is not None})
    if not sites:
        return "No site is listed.", ""
    if not silent:
        headline = f"All {words.many(len(sites), 'site')} answer" if len(sites) > 1 else "The site answers"
    else:
        names = ", ".join(site.key for site in silent)
        headline = f"{len(sites) - len(silent)} of {words.many(len(sites), 'site')} answer; unknown: {names}"
    details = [f"Jurisdictions: {', '.join(laws)}."] if laws else []
    details.append("Rows stay with their sites; these are the sums that their policies let cross.")
    if simulated:
        details.append(f"SIMULATED: {', '.join(simulated)}.")
    return headline, " ".join(details)


def row(site: SiteNow, window_s: float) -> SiteRow:
    """What is told of `site`, with the account of the last `window_s` seconds before its last report."""
    report = site.report
    if report is None:
        unknown, trouble = words.UNKNOWN, f"never answered: {site.error or 'not asked yet'}"
        return SiteRow(
            site.key, unknown, False, trouble, unknown, (), unknown, "", unknown, unknown, unknown, "", "none"
        )
    accounts = report.accounts(window_s, "fleet")
    lost, note, effective = _account(accounts)
    money = "" if "eur" not in report.policy.withheld else "money is withheld"
    return SiteRow(
        name=site.key,
        place=report.jurisdiction or NOT_SAID,
        simulated=report.simulated,
        trouble=""
        if site.state == "current"
        else f"unknown since {words.utc(site.answered_ns)}: {site.error or 'no answer'}",
        gpus=WITHHELD if report.now is None else f"{report.now.gpus:,}",
        strip=_strip(site),
        lost=lost,
        lost_note=money or note,
        effective=effective,
        findings=WITHHELD
        if report.findings is None
        else f"{sum(count.findings for count in report.findings):,}",
        gain=_gain(site),
        withheld=", ".join(report.policy.withheld),
        report=f"{words.duration(site.age_s)} ago, data up to {words.clock(report.as_of_ns)}",
    )


def _account(accounts: tuple[Account, ...] | None) -> tuple[str, str, str]:
    """Lost GPU-hours, lost EUR and effective utilization."""
    if accounts is None:
        return WITHHELD, "", WITHHELD
    if not accounts:
        return words.UNKNOWN, "", words.UNKNOWN
    (account,) = accounts
    return (
        words.amount(account.lost.gpu_h, "GPU-h"),
        words.amount(account.lost.eur, "EUR"),
        words.percent(account.effective_ratio),
    )


def _strip(site: SiteNow) -> tuple[tuple[str, str, float], ...]:
    now = site.report.now if site.report is not None else None
    if now is None or not now.gpus:
        return ()
    states = now.states if site.state == "current" else {"unknown": now.gpus}
    return tuple(
        (LOOKS[state].name, LOOKS[state].colour, states[state] / now.gpus)
        for state in STATES
        if states.get(state)
    )


def _gain(site: SiteNow) -> str:
    totals = site.report.recommendations if site.report is not None else None
    if totals is None:
        return WITHHELD
    if not totals:
        return "none"
    gpu_h = sum(total.gain.expected.gpu_h for total in totals)
    horizons = sorted({total.gain.horizon_h for total in totals})
    within = f"{horizons[0]:.0f} h" if len(horizons) == 1 else f"{horizons[0]:.0f} to {horizons[-1]:.0f} h"
    return f"{words.amount(gpu_h, 'GPU-h')} within {within}"
