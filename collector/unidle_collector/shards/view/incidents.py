"""The incidents of the site, made of the shards' own, in the schema that all collectors share.

Each shard numbers the events of its incidents by itself. One collector at a time, under a lock, takes new
ones in, folds them into the site's incidents and numbers what a person has to hear: that an incident is
there, has another cause or severity, or is over. What several shards find about one job is one incident,
under the id that its first part has. So every collector reads the same incidents and the same numbers, and
they are there while a shard is not.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter

from unidle_agent.shards import SHARDS
from unidle_collector.model import Incident
from unidle_collector.recommend import recommend
from unidle_collector.shards.view import findings
from unidle_collector.shards.view.findings import Part
from unidle_collector.store import database, tables
from unidle_collector.store.errors import StoreError

log = logging.getLogger("unidle.collector")

EACH_S = 1.0
AT_ONCE = 500
"""Events of one transaction."""
LOCK = 0x756E69646C66
"""Advisory lock of who takes in events; the one of migrations is the number before."""
FORGET_EACH_S = 3600.0


class SiteIncidents:
    """Takes the shards' events in, as long as it runs."""

    def __init__(self, engine: sa.Engine, keep_ns: int, clock_ns: Callable[[], int] = time.time_ns) -> None:
        """`keep_ns`: how long events and incidents that are over are kept."""
        self._engine, self._keep_ns, self._clock_ns = engine, keep_ns, clock_ns
        self.problem = ""
        self._forget_at_s = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="incidents", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, after what is under way."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                while self.take() == AT_ONCE and not self._stop.is_set():
                    pass
                self.problem = ""
            except StoreError as error:
                self._say(str(error))
            except Exception as error:  # a bug must not end it for good: nobody would be told of anything
                self._say(f"unexpected {type(error).__name__}: {error}; the log says where", error)
            self._stop.wait(EACH_S)

    def _say(self, text: str, error: Exception | None = None) -> None:
        if not self.problem:
            log.warning("%s", text, exc_info=error)
        self.problem = f"incidents of the site: {text}"

    def take(self) -> int:
        """Take in what is new, unless another collector is at it; how many events. Raises StoreError."""
        try:
            with self._engine.begin() as connection:
                if not connection.execute(sa.select(sa.func.pg_try_advisory_xact_lock(LOCK))).scalar():
                    return 0
                taken = _take(connection)
                if not taken and time.monotonic() >= self._forget_at_s:
                    _forget(connection, self._clock_ns() - self._keep_ns)
                    self._forget_at_s = time.monotonic() + FORGET_EACH_S
                return taken
        except sa.exc.DBAPIError as error:
            raise StoreError(
                f"{database.shown(self._engine)}: expected to keep the site's incidents, came {error.orig}: "
                "check the database; it is tried again"
            ) from error

    def parts(self) -> list[Part]:
        """The parts of every incident of the site that is open; raises StoreError."""
        part, whole = tables.incident_parts, tables.incidents
        over = sa.case((part.c.state == "resolved", part.c.document)).label("document")
        query = (
            sa.select(part.c.id, part.c.incident_id, over)
            .join(whole, whole.c.id == part.c.incident_id)
            .where(whole.c.state == "open")
            .order_by(part.c.id)
        )
        with database.reading(self._engine) as connection:
            rows = connection.execute(query).all()
        return [
            Part(row.id, row.incident_id, _read(row.document).finding if row.document else None)
            for row in rows
        ]

    def parts_of(self, incident_id: str) -> list[tuple[int, str]]:
        """(shard, id there) of each part of an incident of the site; raises StoreError."""
        part = tables.incident_parts
        query = sa.select(part.c.shard, part.c.id).where(part.c.incident_id == incident_id)
        with database.reading(self._engine) as connection:
            return [(row.shard, row.id) for row in connection.execute(query.order_by(part.c.id))]

    def kept(self, shard: int) -> tuple[int, int] | None:
        """(nodes, GPUs) of the last checkpoint of a shard; None where there is none. Raises StoreError."""
        table = _of_shard(tables.checkpoints, shard)
        with database.reading(self._engine) as connection:
            if not connection.execute(
                sa.select(sa.func.to_regclass(f"{table.schema}.{table.name}"))
            ).scalar():
                return None
            row = connection.execute(sa.select(table.c.nodes, table.c.gpus)).first()
        return (row.nodes, row.gpus) if row else None


def _of_shard(table: sa.Table, shard: int) -> sa.Table:
    return table.to_metadata(sa.MetaData(), schema=f"shard_{shard:02d}")


def _take(connection: sa.Connection) -> int:
    """Fold the next events of all shards; how many."""
    positions = _positions(connection)
    rows = _new_events(connection, positions)
    for row in rows:
        _fold(connection, row.shard, row.time_ns, _read(row.document))
        positions[row.shard] = row.seq
    if rows:
        values = [
            {"key": f"{POSITION}{shard:02d}", "value": str(seq)} for shard, seq in sorted(positions.items())
        ]
        _upsert(connection, tables.meta, values)
    return len(rows)


POSITION = "events_of_shard_"
"""Beginning of the keys under which it is kept how far each shard's events are taken in."""


def _positions(connection: sa.Connection) -> dict[int, int]:
    query = sa.select(tables.meta).where(tables.meta.c.key.startswith(POSITION))
    return {int(row.key.removeprefix(POSITION)): int(row.value) for row in connection.execute(query)}


def _new_events(connection: sa.Connection, positions: dict[int, int]) -> list[sa.Row[Any]]:
    """What no event of the site tells yet, in the order of time, each shard's in its own."""
    events = {shard: _of_shard(tables.incident_events, shard) for shard in range(SHARDS)}
    asked = sa.select(
        *(sa.func.to_regclass(f"{t.schema}.{t.name}").label(f"s{shard}") for shard, t in events.items())
    )
    there = connection.execute(asked).one()
    queries = [
        sa.select(sa.literal(shard).label("shard"), table.c.seq, table.c.time_ns, table.c.document)
        .where(table.c.seq > positions.get(shard, 0))
        .order_by(table.c.seq)
        .limit(AT_ONCE)
        for shard, table in events.items()
        if there[shard] is not None
    ]
    if not queries:
        return []
    new = connection.execute(sa.union_all(*(query.subquery().select() for query in queries))).all()
    waiting = {shard: [row for row in new if row.shard == shard] for shard in range(SHARDS)}
    for rows in waiting.values():
        rows.sort(key=lambda row: row.seq)
    taken: list[sa.Row[Any]] = []
    while len(taken) < AT_ONCE and (heads := [rows[0] for rows in waiting.values() if rows]):
        first = min(heads, key=lambda row: (row.time_ns, row.shard))
        taken.append(waiting[first.shard].pop(0))
    return taken


def _fold(connection: sa.Connection, shard: int, time_ns: int, part: Incident) -> None:
    """Take one event of a shard's incident into the incident of the site that it belongs to."""
    whole = _incident_of(connection, part)
    key = whole.id if whole is not None else part.id
    row = {
        "id": part.id,
        "incident_id": key,
        "shard": shard,
        "state": part.state,
        "document": _written(part),
    }
    _upsert(connection, tables.incident_parts, [row])
    table = tables.incident_parts
    documents = connection.execute(
        sa.select(table.c.document).where(table.c.incident_id == key).order_by(table.c.id)
    )
    after = fold(whole, key, [_read(one.document) for one in documents])
    heard = whole is None or _told(whole) != _told(after)
    if heard and whole is not None:
        after = replace(after, revision=whole.revision + 1)
    document = _written(after)
    finding = after.finding
    _upsert(
        connection,
        tables.incidents,
        [
            {
                "id": after.id,
                "state": after.state,
                "revision": after.revision,
                "kind": finding.kind,
                "subject": f"{finding.subject_kind}:{finding.subject}",
                "opened_ns": after.opened_ns,
                "resolved_ns": after.resolved_ns,
                "document": document,
            }
        ],
    )
    if heard:
        event = {"time_ns": time_ns, "incident_id": after.id, "document": document}
        connection.execute(sa.insert(tables.incident_events), event)


def fold(whole: Incident | None, key: str, parts: list[Incident]) -> Incident:
    """The incident of the site, of revision `whole`'s, by all its parts as they are now."""
    running = [part.finding for part in parts if part.state == "open"]
    over = [part.finding for part in parts if part.state != "open"]
    finding = findings.merged(key, running, over) if running else findings.merged(key, over)
    return Incident(
        id=key,
        state="open" if running else "resolved",
        revision=whole.revision if whole else 1,
        opened_ns=whole.opened_ns if whole else min(part.opened_ns for part in parts),
        resolved_ns=None if running else max(part.resolved_ns or 0 for part in parts),
        finding=finding,
        recommendations=tuple(recommend([finding], finding.updated_ns)) if running else (),
    )


def _told(incident: Incident) -> tuple[str, str, str]:
    """Whatever makes a person hear of it again."""
    return incident.state, incident.finding.cause, incident.finding.severity


def _incident_of(connection: sa.Connection, part: Incident) -> Incident | None:
    """The site's incident that a part is in, or joins: the open one of its kind about the same job."""
    parts, whole = tables.incident_parts, tables.incidents
    query = sa.select(whole.c.document).join(parts, parts.c.incident_id == whole.c.id)
    row = connection.execute(query.where(parts.c.id == part.id)).first()
    if row is None and (group := findings.group_of(part.finding)) is not None:
        kind, job = group
        same = (whole.c.state == "open", whole.c.kind == kind, whole.c.subject == f"job:{job}")
        row = connection.execute(sa.select(whole.c.document).where(*same)).first()
    return _read(row.document) if row else None


def _forget(connection: sa.Connection, before_ns: int) -> None:
    """Remove what is over since before that time."""
    whole, event, part = tables.incidents, tables.incident_events, tables.incident_parts
    connection.execute(sa.delete(event).where(event.c.time_ns < before_ns))
    connection.execute(sa.delete(whole).where(whole.c.state == "resolved", whole.c.resolved_ns < before_ns))
    connection.execute(sa.delete(part).where(part.c.incident_id.not_in(sa.select(whole.c.id))))


def _upsert(connection: sa.Connection, table: sa.Table, rows: list[dict[str, Any]]) -> None:
    connection.execute(database.upsert(connection.engine, table), rows)


def _written(incident: Incident) -> str:
    return _incidents().dump_json(incident).decode()


def _read(document: str) -> Incident:
    return _incidents().validate_json(document)


@cache
def _incidents() -> TypeAdapter[Incident]:
    return TypeAdapter(Incident)
