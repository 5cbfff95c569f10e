"""Reports of sites that are not there."""

from __future__ import annotations

from dataclasses import replace

from unidle_agent.settings import Secret
from unidle_collector.federation.adding import add_accounts
from unidle_collector.federation.following import Seen, Source
from unidle_collector.federation.report import (
    SHARES,
    WINDOWS_S,
    FindingCount,
    GainTotal,
    Now,
    PolicyApplied,
    SiteReport,
    Wellness,
    WindowAccounts,
)
from unidle_collector.model import STATES, Account, Cost, Gain

NOW_NS = 1_795_269_720 * 10**9
TOKEN = "token-of-a-federation-in-a-test"


def account(key: str = "fleet", gpus: int = 8, eur: float | None = 20.0, **seconds: float) -> Account:
    """An account whose idle and starved time is lost whole, priced as told."""
    lost_s = seconds.get("idle", 0.0) + seconds.get("starved", 0.0)
    lost = Cost(lost_s / 3600, eur, 1.0)
    causes = {f"{state}.cause": s for state, s in seconds.items() if state in ("idle", "starved")}
    own = Account(
        key=key,
        start_ns=NOW_NS - 86_400 * 10**9,
        end_ns=NOW_NS,
        gpus=gpus,
        seconds=dict.fromkeys(STATES, 0.0) | seconds,
        causes=causes,
        cause_costs={name: Cost(s / 3600, eur, 1.0) for name, s in causes.items()},
        lost=lost,
        unallocated=Cost(seconds.get("unallocated", 0.0) / 3600, 0.0, 0.0),
        sm_active_ratio=0.5,
        grade="sm",
    )
    return add_accounts(key, [own])


def report(
    site: str,
    jurisdiction: str = "EU",
    *,
    withheld: tuple[str, ...] = (),
    simulated: bool = False,
    site_id: str = "",
    gpus: int = 8,
) -> SiteReport:
    """What a site with one busy and one idle model tells."""
    whole = account(gpus=gpus, productive=3600.0 * gpus, idle=1800.0)
    if "accounts.cause" in withheld:
        whole = replace(whole, causes={}, cause_costs={})
    eur = None if "eur" in withheld else 20.0
    by = {
        "fleet": (replace(whole, lost=replace(whole.lost, eur=eur)),),
        "model": (
            account("NVIDIA B200", gpus // 2, productive=1800.0 * gpus, idle=1800.0),
            account("NVIDIA H100", gpus // 2, productive=1800.0 * gpus),
        ),
        "team": (account("vision", gpus, productive=3600.0 * gpus, idle=1800.0),),
        "hour": (account(str(NOW_NS - 3600 * 10**9), gpus, productive=3600.0),),
    }
    told = {name: accounts for name, accounts in by.items() if f"accounts.{name}" not in withheld}
    gain = Gain(24.0, Cost(10.0, 20.0, None), Cost(20.0, 40.0, None), Cost(30.0, 60.0, None))
    return SiteReport(
        site_id=site_id or f"id-of-{site}",
        site=site,
        jurisdiction=jurisdiction,
        version="0.1.0",
        simulated=simulated,
        sent_ns=NOW_NS,
        as_of_ns=NOW_NS,
        policy=PolicyApplied(
            "hq", "EU", jurisdiction == "EU", tuple(n for n in SHARES if n not in withheld), withheld, 5, {}
        ),
        now=None
        if "fleet.now" in withheld
        else Now(1, gpus, gpus if simulated else 0, 2, {"productive": gpus - 1, "idle": 1}),
        windows=tuple(WindowAccounts(window_s, told) for window_s in WINDOWS_S),
        findings=None
        if "findings.counts" in withheld
        else (FindingCount("idle", "held", "warning", 3, 1, Cost(1.0, 2.0, None)),),
        recommendations=None
        if "recommendations.totals" in withheld
        else (GainTotal("reclaim_idle", "reclaim", 2, gain),),
        health=Wellness(True, 0, 2.0),
    )


def seen(told: SiteReport | None, age_s: float = 1.0, error: str = "", url: str = "") -> Seen:
    """A source with its last report."""
    source = Source(url or f"https://{told.site if told else 'nowhere'}.example", Secret(TOKEN))
    return Seen(source, told, NOW_NS - int(age_s * 1e9) if told else None, error)
