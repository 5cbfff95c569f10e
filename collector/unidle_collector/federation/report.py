"""What crosses from a site to a federation: aggregates, each of them only where the site's policy lets it.

Times are ns since the epoch by the sending site's clocks. None is "withheld or unknown"; which of the
two, `policy.withheld` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unidle_collector.model import Account, Cost, Gain, Severity

SHARES: dict[str, str] = {
    "fleet.now": "numbers of nodes, GPUs and jobs, and of GPUs by state",
    "accounts.fleet": "where the time of the whole site went",
    "accounts.hour": "the same by hour, over the last day",
    "accounts.model": "the same by GPU model",
    "accounts.team": "the same by team",
    "accounts.cause": "the causes of what was lost, in every account that crosses",
    "eur": "money, in everything that crosses",
    "findings.counts": "numbers of open findings by kind, cause and severity, and what they cost per hour",
    "recommendations.totals": "numbers of recommendations by kind, and what they would win",
    "health": "is the collector well, and how far behind it is",
    "accounts.node": "where the time of each node went, by its name",
    "accounts.user": "the same of each user pseudonym",
    "accounts.job": "the same of each job id",
}
"""Everything that can cross -> what it is."""

PERSONAL = frozenset({"accounts.user", "accounts.job"})
"""These lead to a person: they never leave their jurisdiction, whatever a policy says."""

GROUPED = ("model", "team")
"""Accounts whose groups hold at least `smallest_group` persons, or are told as part of OTHERS."""
NAMED = ("node", "user", "job")
"""Accounts that name what they are of."""
DIMENSIONS = ("fleet", "hour", *GROUPED, *NAMED)

OTHERS = "others"
"""Key of the groups that are too small to be told apart."""

WINDOWS_S = (3600.0, 86_400.0, 604_800.0)
"""What a federation can be asked for: an hour, a day, a week up to now. Fixed, so that no difference of
two windows tells more than one of them."""
HOURS_OF_S = 86_400.0
"""The window that is also told by hour."""


@dataclass(frozen=True, slots=True)
class PolicyApplied:
    """The decision of the sending site, shown with what it let cross."""

    receiver: str
    receiver_jurisdiction: str
    same_jurisdiction: bool
    shared: tuple[str, ...]
    """Of SHARES."""
    withheld: tuple[str, ...]
    """The rest of SHARES."""
    smallest_group: int
    merged: dict[str, int]
    """`model`, `team` -> groups that were too small to be told apart, over the longest window."""


@dataclass(frozen=True, slots=True)
class Now:
    """The site as it is now."""

    nodes: int
    gpus: int
    simulated_gpus: int
    jobs: int
    states: dict[str, int]
    """State -> GPUs."""


@dataclass(frozen=True, slots=True)
class WindowAccounts:
    """Accounts of one window."""

    window_s: float
    by: dict[str, tuple[Account, ...]]
    """Of DIMENSIONS -> accounts; one that is not here is withheld."""


@dataclass(frozen=True, slots=True)
class FindingCount:
    """Open findings of one kind, cause and severity."""

    kind: str
    cause: str
    severity: Severity
    findings: int
    gpus: int
    cost_per_h: Cost


@dataclass(frozen=True, slots=True)
class GainTotal:
    """Recommendations of one kind, and what all of them would win."""

    kind: str
    lever: str
    recommendations: int
    gain: Gain


@dataclass(frozen=True, slots=True)
class Wellness:
    """Can the site's collector be trusted now; its problems name nodes, so only their number crosses."""

    ok: bool
    problems: int
    lag_s: float | None


@dataclass(frozen=True, slots=True)
class SiteReport:
    """All that one site lets cross to one receiver."""

    site_id: str
    """Made once per collector: by it, a site that is reached by two paths is counted once."""
    site: str
    jurisdiction: str
    """Empty where the site does not say: it is then the same as no other."""
    version: str
    simulated: bool
    """Is anything in here simulated. This always crosses."""
    sent_ns: int
    as_of_ns: int | None
    """Event time that the numbers reach; None before the first sample."""
    policy: PolicyApplied
    now: Now | None
    windows: tuple[WindowAccounts, ...]
    findings: tuple[FindingCount, ...] | None
    recommendations: tuple[GainTotal, ...] | None
    health: Wellness | None

    def accounts(self, window_s: float, by: str) -> tuple[Account, ...] | None:
        """Accounts of a window by a dimension; None where they are withheld."""
        for window in self.windows:
            if window.window_s == window_s:
                return window.by.get(by)
        return None


@dataclass(frozen=True, slots=True)
class Crossing:
    """One answer that left the site: a row of its audit log."""

    seq: int
    time_ns: int
    receiver: str
    receiver_jurisdiction: str
    shared: tuple[str, ...]
    bytes: int
    sha256: str
    """Of the body, hexadecimal: what was sent can be proved, and is not kept."""


@dataclass(frozen=True, slots=True)
class SiteNow:
    """One site as a federation sees it."""

    key: str
    """What it is called in the federation: its name, with the begin of its id where two have the same."""
    state: Literal["current", "away", "never"]
    """`away`: it answered once and does not now; `never`: nothing is known of it at all."""
    url: str
    also_at: tuple[str, ...]
    """Other addresses that lead to the same collector; it is counted once."""
    answered_ns: int | None
    """Clock of the federation at its last report. Of a site that is away, nothing is known since then."""
    age_s: float | None
    """Age of that report."""
    error: str
    """Why the last question failed; empty when it did not."""
    report: SiteReport | None
    """The last that it told; the receiver's policy is in it."""
