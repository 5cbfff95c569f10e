"""What a notifier is told: one incident that opened or resolved, or many of them at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unidle_alerts import words
from unidle_collector.model import Incident

Kind = Literal["opened", "resolved", "passed", "group", "test"]
"""`passed`: opened and resolved before anybody could be told; `group`: several incidents."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What a group of incidents amounts to."""

    opened: int
    resolved: int
    passed: int
    kinds: tuple[tuple[str, int], ...]
    """Kind of finding -> incidents, most first."""
    worst: str
    """Highest severity among them."""
    eur_per_h: float
    """Sum over the opened ones whose price is known."""
    unpriced: int
    """Opened ones without a price."""

    @property
    def incidents(self) -> int:
        """All of them."""
        return self.opened + self.resolved + self.passed


@dataclass(frozen=True, slots=True)
class Notice:
    """One message, before it has a form."""

    kind: Kind
    now_ns: int
    site: str
    simulated: bool
    incidents: tuple[Incident, ...] = ()
    """One; of a group those that cost most (at most TOP); none of a test."""
    tally: Tally | None = None
    """Of a group only."""


TOP = 5
"""Incidents of a group, and nodes of an incident, that are named; the rest is counted."""


def headline(notice: Notice) -> str:
    """`SIMULATED · CRITICAL · starvation: storage · eu-fra-1 · 96 GPUs on 12 nodes`"""
    parts = ["SIMULATED"] if notice.simulated else []
    if notice.kind == "test":
        parts += ["TEST", "unidle can send messages here"]
    elif notice.tally is not None:
        parts += _group_parts(notice.tally)
    else:
        incident = notice.incidents[0]
        word = incident.finding.severity.upper() if notice.kind == "opened" else "RESOLVED"
        parts += [word, words.what(incident.finding)]
    if notice.site:
        parts.append(notice.site)
    if notice.tally is None and notice.incidents:
        parts.append(words.size(notice.incidents[0].finding))
    return " · ".join(parts)


def summary(notice: Notice) -> str:
    """The message in one line, headline included: for a terminal and as the fallback text in Slack."""
    line = headline(notice)
    if notice.kind == "test":
        return line
    if notice.tally is not None:
        return f"{line}. {group_cost(notice.tally)}"
    incident = notice.incidents[0]
    finding = incident.finding
    if notice.kind == "opened":
        told = f"since {words.utc(finding.since_ns)}, {words.rate(finding.cost_per_h)}"
    else:
        told = f"{lasted(notice)}, {words.total(finding.cost_so_far)}"
    return f"{line}. {words.sentence(told)}. Incident {incident.id}"


def lasted(notice: Notice) -> str:
    """How long a resolved incident took; of a passed one also when: nobody has seen it open."""
    incident = notice.incidents[0]
    start_ns, end_ns = incident.finding.since_ns, resolved_ns(incident)
    took = words.span(start_ns, end_ns)
    if notice.kind != "passed":
        return f"lasted {took}, until {words.utc(end_ns)}"
    fired, resolved = words.clock(incident.opened_ns), words.utc(end_ns)
    return f"fired {fired}, resolved {resolved.partition(' ')[2]}; it lasted {took}, until {resolved}"


def resolved_ns(incident: Incident) -> int:
    """When it ended, by the most direct word that there is."""
    for time_ns in (incident.resolved_ns, incident.finding.ended_ns):
        if time_ns is not None:
            return time_ns
    return incident.finding.updated_ns


def group_cost(tally: Tally) -> str:
    """What the open ones of a group cost together."""
    if not tally.opened:
        return "Nothing of it is open"
    known = f"{tally.eur_per_h:,.2f} EUR/h"
    if not tally.unpriced:
        return f"Together {known}"
    return f"Together at least {known}: no price is known for {words.plural(tally.unpriced, 'incident')}"


def _group_parts(tally: Tally) -> list[str]:
    counted = [
        f"{count:,} {word}"
        for count, word in (
            (tally.opened, "opened"),
            (tally.resolved, "resolved"),
            (tally.passed, "opened and resolved"),
        )
        if count
    ]
    word = tally.worst.upper() if tally.opened else "RESOLVED"
    return [word, f"{words.plural(tally.incidents, 'incident')}: {', '.join(counted)}"]
