"""Which message goes next on one channel. Pure: rows and times in, one batch or nothing out.

Rules, in order: the channel must be free (1 message/s, Retry-After, backoff); a change waits
`settle_s`, so that what happens together is told together; an incident that opened and resolved
meanwhile is one message; at most `group_limit` messages about one incident each per window, and when
more wait than that, all of them are one message, once per window. A thousand incidents or ten
thousand: at most group_limit + 1 messages per window, and nothing waits longer than one window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from unidle_alerts.notice import TOP, Kind, Tally
from unidle_alerts.words import SECOND_NS

SEVERITIES = ("info", "warning", "critical")


@dataclass(frozen=True, slots=True)
class Pending:
    """One transition that waits in the outbox."""

    row_id: int
    incident_id: str
    state: str
    revision: int
    recorded_ns: int
    attempts: int
    kind: str
    severity: str
    eur_per_h: float | None
    simulated: bool
    told: bool
    """Has this channel been told that the incident opened."""


@dataclass(frozen=True, slots=True)
class Channel:
    """What a channel has had."""

    not_before_ns: int = 0
    singles: int = 0
    """Messages about one incident that were delivered within the window."""
    crowded_ns: int = 0
    """When the last message that many share was delivered; 0 never."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Seconds, and messages per window."""

    settle_s: float
    group_window_s: float
    group_limit: int


@dataclass(frozen=True, slots=True)
class Change:
    """What waits to be told about one incident: its rows, oldest first."""

    kind: Kind
    rows: tuple[Pending, ...]

    @property
    def last(self) -> Pending:
        """Its newest row: what is true now."""
        return self.rows[-1]


@dataclass(frozen=True, slots=True)
class Batch:
    """One message: about one incident, or about all of `changes`."""

    changes: tuple[Change, ...]
    crowded: bool

    @property
    def row_ids(self) -> list[int]:
        """The outbox rows that it settles."""
        return [row.row_id for change in self.changes for row in change.rows]

    @property
    def kind(self) -> Kind:
        """The kind of message."""
        return self.changes[0].kind if len(self.changes) == 1 else "group"


MAX_CLOCK_JUMP_S = 2 * 3600
"""No channel is ever blocked for longer; a time further ahead is left over from a clock that was wrong."""


def next_batch(pending: Sequence[Pending], channel: Channel, rules: Rules, now_ns: int) -> Batch | None:
    """The next message, or None when nothing may go now."""
    if now_ns < channel.not_before_ns <= now_ns + MAX_CLOCK_JUMP_S * SECOND_NS or not pending:
        return None
    # Simulated and real never share a message; real goes first.
    simulated = all(row.simulated for row in pending)
    changes = _changes([row for row in pending if row.simulated == simulated])
    settled = [each for each in changes if _waited(each.rows[0].recorded_ns, rules.settle_s, now_ns)]
    if not settled:
        return None
    if channel.singles + len(changes) <= rules.group_limit:
        return Batch((min(settled, key=_turn),), crowded=False)
    if channel.crowded_ns and not _waited(channel.crowded_ns, rules.group_window_s, now_ns):
        return None
    return Batch(tuple(changes), crowded=True)


def most_important(changes: Sequence[Change]) -> list[Change]:
    """What a message names: of many, the open ones first, by severity and cost; at most TOP."""
    return sorted(changes, key=_importance, reverse=True)[:TOP]


def tally(changes: Sequence[Change]) -> Tally:
    """What many changes amount to."""
    counts = Counter(change.kind for change in changes)
    opened = [change.last for change in changes if change.kind == "opened"]
    about = opened or [change.last for change in changes]
    return Tally(
        opened=counts["opened"],
        resolved=counts["resolved"],
        passed=counts["passed"],
        kinds=tuple(Counter(change.last.kind for change in changes).most_common(TOP)),
        worst=max((row.severity for row in about), key=SEVERITIES.index),
        eur_per_h=sum(row.eur_per_h or 0.0 for row in opened),
        unpriced=sum(row.eur_per_h is None for row in opened),
    )


def _importance(change: Change) -> tuple[bool, int, float]:
    last = change.last
    return (change.kind == "opened", SEVERITIES.index(last.severity), last.eur_per_h or 0.0)


def _changes(pending: Sequence[Pending]) -> list[Change]:
    by_incident: dict[str, list[Pending]] = {}
    for row in sorted(pending, key=lambda row: (row.revision, row.state == "resolved")):
        by_incident.setdefault(row.incident_id, []).append(row)
    return [Change(_kind(rows), tuple(rows)) for rows in by_incident.values()]


def _kind(rows: Sequence[Pending]) -> Kind:
    last = rows[-1]
    if last.state == "open":
        return "opened"
    untold_open = any(row.state == "open" for row in rows)
    return "resolved" if last.told and not untold_open else "passed"


def _turn(change: Change) -> tuple[int, int]:
    """Fewest attempts first, so that one message that fails does not hold up the others; then oldest."""
    return (change.last.attempts, change.rows[0].recorded_ns)


def _waited(since_ns: int, seconds: float, now_ns: int) -> bool:
    """Also true when the clock was set back: rather early than never."""
    return not since_ns <= now_ns < since_ns + int(seconds * SECOND_NS)
