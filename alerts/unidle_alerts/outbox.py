"""The outbox: what must be told, kept until it was. At least once; a duplicate has the same incident id.

Every public function is one transaction. Events and the place in the collector's log are committed
together, so a kill at any moment loses nothing: either both are there or the events are read again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy.engine import Connection, Engine, RowMapping

from unidle_alerts import schema
from unidle_alerts.notice import Notice
from unidle_alerts.notifiers import Outcome
from unidle_alerts.plan import SEVERITIES, Batch, Channel, Pending, most_important, tally
from unidle_alerts.privacy import permitted
from unidle_alerts.words import SECOND_NS
from unidle_collector.model import Incident, IncidentEvent

KEEP_S = 30 * 86_400
"""How long what is over is kept: deliveries, and rows of resolved incidents (eu-trust, section 1)."""

NO_DESTINATION = "none"
"""Stands for the destination while none is configured: transitions are recorded, not kept to be sent."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """The last event taken; `mark` says what it was."""

    seq: int = 0
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Policy:
    """What is told, and how much of it."""

    min_severity: str = "warning"
    content: str = "ids_only"


@dataclass(frozen=True, slots=True)
class ChannelState:
    """One destination as /health and /metrics show it; times in ns, ages by the reader's clock."""

    destination: str
    delivered: int
    retried: int
    dead: int
    pending: int
    dead_rows: int
    """Transitions that were given up and not told since."""
    untold: int
    """Transitions that had no destination."""
    oldest_pending_ns: int | None
    not_before_ns: int
    last_outcome: str
    last_reason: str


def cursor_of(event: IncidentEvent) -> Cursor:
    """The place just behind `event`."""
    return Cursor(event.seq, f"{event.time_ns}:{event.incident.id}")


class Outbox:
    """The database's only writer and reader."""

    def __init__(self, engine: Engine, policy: Policy) -> None:
        self._engine = engine
        self._policy = policy

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    def register(self, destinations: Collection[str], now_ns: int) -> None:
        """Make sure each has a channel. For a new one the log is read again from its beginning, so
        that it hears of what is open; the others have their keys and hear nothing twice."""
        with self._engine.begin() as connection:
            known = set(connection.scalars(sa.select(schema.channel.c.destination)))
            fresh = [name for name in destinations if name not in known]
            for name in fresh:
                connection.execute(
                    schema.channel.insert().values(
                        destination=name,
                        since_ns=now_ns,
                        not_before_ns=0,
                        failures=0,
                        delivered=0,
                        retried=0,
                        dead=0,
                    )
                )
            if fresh:
                connection.execute(schema.cursor.delete())

    def cursor(self) -> Cursor:
        """How far the collector's log was taken."""
        with self._engine.begin() as connection:
            row = connection.execute(sa.select(schema.cursor.c.seq, schema.cursor.c.mark)).first()
        return Cursor(row.seq, row.mark) if row else Cursor()

    def take(
        self, events: Sequence[IncidentEvent], cursor: Cursor, destinations: Sequence[str], now_ns: int
    ) -> int:
        """Commit `events` and the new place in the log as one; returns how many rows now wait."""
        with self._engine.begin() as connection:
            since = {
                row.destination: row.since_ns
                for row in connection.execute(
                    sa.select(schema.channel.c.destination, schema.channel.c.since_ns)
                )
            }
            added = sum(
                self._transition(connection, name, event, since[name], now_ns)
                for event in events
                for name in destinations
            )
            connection.execute(schema.cursor.delete())
            connection.execute(schema.cursor.insert().values(id=1, seq=cursor.seq, mark=cursor.mark))
        return added

    def _transition(
        self, connection: Connection, destination: str, event: IncidentEvent, since_ns: int, now_ns: int
    ) -> bool:
        """Put one change of an incident in the outbox where it is a transition that is to be told."""
        incident = permitted(event.incident, self._policy.content)
        box = schema.outbox
        mine = (box.c.destination == destination) & (box.c.incident_id == incident.id)
        rows = connection.execute(sa.select(box).where(mine)).mappings().all()
        last = max(rows, key=lambda row: _order(row["revision"], row["state"]), default=None)
        if last is None:
            if not self._is_told(incident):
                return False
        elif _order(incident.revision, incident.state) <= _order(last["revision"], last["state"]):
            return False
        elif incident.state == last["state"]:
            renewed = box.update().where(box.c.id == last["id"], box.c.status == "pending")
            connection.execute(renewed.values(_content(incident)))
            return False
        untold = last is None or last["status"] == "pending"
        forgotten_ns = now_ns - KEEP_S * SECOND_NS
        if untold and incident.state == "resolved" and _ended_ns(event) < max(since_ns, forgotten_ns):
            values = _skipped("over before this destination was configured", now_ns)
            connection.execute(box.update().where(mine, box.c.status == "pending").values(values))
            return False
        waits = destination != NO_DESTINATION
        connection.execute(
            box.insert().values(
                {
                    "destination": destination,
                    "incident_id": incident.id,
                    "state": incident.state,
                    "status": "pending",
                    "reason": "",
                    "recorded_ns": now_ns,
                    "attempts": 0,
                    **_content(incident),
                    **({} if waits else _skipped("no destination", now_ns)),
                }
            )
        )
        return waits

    def _is_told(self, incident: Incident) -> bool:
        return SEVERITIES.index(incident.finding.severity) >= SEVERITIES.index(self._policy.min_severity)

    def waiting(self, destination: str, window_s: float, now_ns: int) -> tuple[list[Pending], Channel]:
        """What waits for `destination`, and what its channel has had within `window_s`."""
        box, log, channel = schema.outbox, schema.delivery, schema.channel
        opened = box.alias()
        told = sa.exists().where(
            opened.c.destination == box.c.destination,
            opened.c.incident_id == box.c.incident_id,
            opened.c.state == "open",
            opened.c.status == "delivered",
        )
        columns = [getattr(box.c, name) for name in _PENDING]
        with self._engine.begin() as connection:
            rows = connection.execute(
                sa.select(*columns, told.label("told")).where(
                    box.c.destination == destination, box.c.status == "pending"
                )
            ).all()
            free = connection.scalar(
                sa.select(channel.c.not_before_ns).where(channel.c.destination == destination)
            )
            sent = connection.execute(
                sa.select(log.c.crowded, sa.func.count(), sa.func.max(log.c.time_ns))
                .where(
                    log.c.destination == destination,
                    log.c.outcome == "delivered",
                    log.c.time_ns > now_ns - int(window_s * SECOND_NS),
                )
                .group_by(log.c.crowded)
            ).all()
        had = {bool(crowded): (count, last) for crowded, count, last in sent}
        singles, crowded_ns = had.get(False, (0, 0))[0], had.get(True, (0, 0))[1]
        return [Pending(*row) for row in rows], Channel(free or 0, singles, crowded_ns)

    def begin(self, batch: Batch, site: str, now_ns: int) -> Notice:
        """Count the attempt before it is made, and read what the message needs."""
        box = schema.outbox
        with self._engine.begin() as connection:
            for ids in _chunks(batch.row_ids):
                connection.execute(box.update().where(box.c.id.in_(ids)).values(attempts=box.c.attempts + 1))
            ids = [change.last.row_id for change in most_important(batch.changes)]
            found = connection.execute(sa.select(box.c.id, box.c.payload).where(box.c.id.in_(ids))).all()
        payloads = {row.id: row.payload for row in found}
        # Once more: the content level may have been lowered since the row was written.
        incidents = tuple(
            permitted(_incident().validate_json(payloads[row_id]), self._policy.content) for row_id in ids
        )
        simulated = batch.changes[0].last.simulated
        counted = tally(batch.changes) if batch.kind == "group" else None
        return Notice(batch.kind, now_ns, site, simulated, incidents, counted)

    def finish(
        self, destination: str, batch: Batch, outcome: Outcome, not_before_ns: int, now_ns: int
    ) -> None:
        """Record what became of an attempt, and when the channel may be used again."""
        box, channel = schema.outbox, schema.channel
        settled: dict[str, Any] = {}
        if outcome.kind == "delivered":
            settled = {"status": "delivered", "reason": outcome.reason, "done_ns": now_ns, "payload": ""}
        elif outcome.kind == "dead":
            settled = {"status": "dead", "reason": outcome.reason, "done_ns": now_ns}
        counted = {"delivered": "delivered", "retry": "retried", "dead": "dead"}[outcome.kind]
        with self._engine.begin() as connection:
            for ids in _chunks(batch.row_ids if settled else []):
                connection.execute(box.update().where(box.c.id.in_(ids)).values(settled))
            if outcome.kind == "delivered":
                connection.execute(_overtaken(destination, now_ns))
            connection.execute(
                channel.update()
                .where(channel.c.destination == destination)
                .values(
                    {
                        "not_before_ns": not_before_ns,
                        "failures": channel.c.failures + 1 if outcome.kind == "retry" else 0,
                        counted: channel.c[counted] + 1,
                    }
                )
            )
            connection.execute(
                schema.delivery.insert().values(
                    time_ns=now_ns,
                    destination=destination,
                    kind=batch.kind,
                    incident_id=batch.changes[0].last.incident_id,
                    incidents=len(batch.changes),
                    crowded=batch.crowded,
                    outcome=outcome.kind,
                    reason=outcome.reason,
                )
            )

    def failures(self, destination: str) -> int:
        """Failed attempts in a row."""
        channel = schema.channel
        with self._engine.begin() as connection:
            found = connection.scalar(
                sa.select(channel.c.failures).where(channel.c.destination == destination)
            )
        return found or 0

    def retry_dead(self) -> int:
        """Put what was given up back in line; returns how many transitions."""
        box = schema.outbox
        with self._engine.begin() as connection:
            result = connection.execute(
                box.update()
                .where(box.c.status == "dead")
                .values(status="pending", reason="", done_ns=None, attempts=0)
            )
        return int(result.rowcount)

    def forget(self, now_ns: int) -> None:
        """Delete what has been over for KEEP_S. What is open or waits stays."""
        before_ns = now_ns - KEEP_S * SECOND_NS
        box, log = schema.outbox, schema.delivery
        ended = box.alias()
        over = sa.exists().where(
            ended.c.destination == box.c.destination,
            ended.c.incident_id == box.c.incident_id,
            ended.c.state == "resolved",
            ended.c.done_ns < before_ns,
        )
        with self._engine.begin() as connection:
            connection.execute(log.delete().where(log.c.time_ns < before_ns))
            connection.execute(
                box.delete().where(box.c.done_ns < before_ns, over | (box.c.status == "skipped"))
            )

    def states(self) -> list[ChannelState]:
        """Every destination that ever was, by name."""
        box, log, channel = schema.outbox, schema.delivery, schema.channel
        with self._engine.begin() as connection:
            channels = connection.execute(sa.select(channel).order_by(channel.c.destination)).mappings().all()
            counts = connection.execute(
                sa.select(box.c.destination, box.c.status, sa.func.count(), sa.func.min(box.c.recorded_ns))
                .where(box.c.status != "delivered")
                .group_by(box.c.destination, box.c.status)
            ).all()
            newest = sa.select(sa.func.max(log.c.id)).group_by(log.c.destination)
            last = {
                row.destination: row for row in connection.execute(sa.select(log).where(log.c.id.in_(newest)))
            }
        counted = {(name, status): (count, oldest) for name, status, count, oldest in counts}
        return [_state(row, counted, last.get(row["destination"])) for row in channels]


_PENDING = (
    "id", "incident_id", "state", "revision", "recorded_ns", "attempts", "kind", "severity", "eur_per_h",
    "simulated",
)  # fmt: skip
"""Columns of the outbox in the order of Pending's fields."""


def _order(revision: int, state: str) -> tuple[int, bool]:
    return (revision, state == "resolved")


def _overtaken(destination: str, now_ns: int) -> sa.Update:
    """What was given up and is told by a later message: reviving it would tell an old state."""
    box = schema.outbox
    later = box.alias()
    told = sa.exists().where(
        later.c.destination == box.c.destination,
        later.c.incident_id == box.c.incident_id,
        later.c.status == "delivered",
        later.c.id > box.c.id,
    )
    dead = (box.c.destination == destination) & (box.c.status == "dead")
    return box.update().where(dead, told).values(_skipped("told by a later message", now_ns))


def _ended_ns(event: IncidentEvent) -> int:
    return event.time_ns if event.incident.resolved_ns is None else event.incident.resolved_ns


def _skipped(reason: str, now_ns: int) -> dict[str, Any]:
    """The columns of a row that will not be told."""
    return {"status": "skipped", "reason": reason, "payload": "", "done_ns": now_ns}


def _content(incident: Incident) -> dict[str, Any]:
    """The columns that a newer revision renews."""
    finding = incident.finding
    return {
        "revision": incident.revision,
        "key": f"{incident.id}:{incident.state}:{incident.revision}",
        "kind": finding.kind,
        "severity": finding.severity,
        "eur_per_h": finding.cost_per_h.eur,
        "simulated": finding.simulated,
        "payload": _incident().dump_json(incident).decode(),
    }


@cache
def _incident() -> TypeAdapter[Incident]:
    return TypeAdapter(Incident)


def _chunks(ids: Sequence[int], size: int = 5000) -> list[Sequence[int]]:
    """SQLite takes 32,766 values in one statement."""
    return [ids[start : start + size] for start in range(0, len(ids), size)]


def _state(row: RowMapping, counted: Mapping[tuple[str, str], tuple[int, int]], last: Any) -> ChannelState:
    name = row["destination"]
    pending, oldest_ns = counted.get((name, "pending"), (0, None))
    return ChannelState(
        destination=name,
        delivered=row["delivered"],
        retried=row["retried"],
        dead=row["dead"],
        pending=pending,
        dead_rows=counted.get((name, "dead"), (0, 0))[0],
        untold=counted.get((name, "skipped"), (0, 0))[0] if name == NO_DESTINATION else 0,
        oldest_pending_ns=oldest_ns,
        not_before_ns=row["not_before_ns"],
        last_outcome=last.outcome if last else "",
        last_reason=last.reason if last else "",
    )
