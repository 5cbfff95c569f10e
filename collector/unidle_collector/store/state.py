"""The collector's state: incidents and their events, sequence numbers, facts of
nodes, windows of flight recorders.

SQLite with a write-ahead log and full syncs, or PostgreSQL: what a method has returned from survives a
crash. One method is one transaction. Any thread may call any method; writers wait for each other, readers
for nobody.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from pydantic import TypeAdapter

from unidle_agent.wire import GpuFacts
from unidle_collector.federation.report import Crossing
from unidle_collector.ingest.tokens import Token
from unidle_collector.model import Incident, IncidentEvent
from unidle_collector.store import database, tables
from unidle_collector.store.errors import FencedError, StoreError, StoreFull
from unidle_collector.store.sequences import Sequences

TOKENS_REVISION = "tokens_revision"
MOST_FLIGHTS, MOST_FLIGHTS_READ = 10_000, 64
"""Windows of flight recorders that are kept (about 10 kB each), and given in one answer."""
CROSSINGS_KEPT_NS = 400 * 24 * 3600 * 10**9
"""A year and a month: longer than any report on it is due."""
_LARGEST = 2**63 - 1
"""The largest whole number that the databases hold."""
_LARGEST_SEQ = 2**31 - 1
"""The same of a column that counts itself up."""

Fence = Callable[[sa.Connection], None]
"""Raises where this process may not write any more; asked within each transaction that writes."""


@dataclass(frozen=True, slots=True)
class KeptFlight:
    """A window of a node's flight recorder (see `unidle_collector.flights`)."""

    id: str
    node: str
    gpu: str
    start_ns: int
    end_ns: int
    document: bytes


def open_state(where: Path | str, schema: str = "", fence: Fence = lambda _: None) -> State:
    """Open the database at a path or URL, made or brought up to date first; see database.connect."""
    return State(database.connect(where, schema), fence)


class State:
    """The state database; made by `open_state`."""

    def __init__(self, engine: sa.Engine, fence: Fence = lambda _: None) -> None:
        self._engine = engine
        self._fence = fence
        self.fenced = 0
        """Writes that the fence refused."""
        self._write_lock = threading.Lock()
        self._sequences: dict[tuple[str, str], Sequences] = {}
        self._sequences_lock = threading.Lock()
        for row in self._rows(sa.select(tables.sequences)):
            self._sequences[row.node, row.boot] = Sequences(tuple(pair) for pair in json.loads(row.ranges))

    def save_incident(self, incident: Incident, time_ns: int) -> IncidentEvent:
        """Keep `incident` as it is now and add the event that says so, both or neither."""
        document = _incidents().dump_json(incident).decode()
        _incidents().validate_json(document)  # what is written can be read again: a NaN could not
        finding = incident.finding
        row = {
            "id": incident.id,
            "state": incident.state,
            "revision": incident.revision,
            "kind": finding.kind,
            "subject": f"{finding.subject_kind}:{finding.subject}",
            "opened_ns": incident.opened_ns,
            "resolved_ns": incident.resolved_ns,
            "document": document,
        }
        event = {"time_ns": time_ns, "incident_id": incident.id, "document": document}
        with self._writing() as connection:
            connection.execute(database.upsert(self._engine, tables.incidents), row)
            result = connection.execute(sa.insert(tables.incident_events), event)
            key = result.inserted_primary_key
        if key is None:
            raise StoreError(
                f"expected the seq of the event of incident {incident.id}, the database gave none"
            )
        return IncidentEvent(int(key[0]), time_ns, incident)

    def open_incidents(self) -> list[Incident]:
        """Every incident that is open, newest first."""
        return self.incidents("open", limit=None)

    def incidents(
        self,
        state: Literal["open", "resolved", "all"] = "open",
        limit: int | None = 500,
        after: tuple[int, str] | None = None,
    ) -> list[Incident]:
        """Incidents by state, newest first; those behind the one of `after` (opened_ns, id) where given."""
        table = tables.incidents
        query = sa.select(table.c.document).order_by(table.c.opened_ns.desc(), table.c.id).limit(limit)
        if state != "all":
            query = query.where(table.c.state == state)
        if after is not None:
            opened_ns, incident_id = after
            same = (table.c.opened_ns == opened_ns) & (table.c.id > incident_id)
            query = query.where((table.c.opened_ns < opened_ns) | same)
        return [_incidents().validate_json(row.document) for row in self._rows(query)]

    def open_count(self) -> int:
        """How many incidents are open."""
        table = tables.incidents
        query = sa.select(sa.func.count()).select_from(table).where(table.c.state == "open")
        return int(self._rows(query)[0][0])

    def incident(self, incident_id: str) -> Incident | None:
        """The incident of that id, None when there is none."""
        rows = self._rows(sa.select(tables.incidents.c.document).where(tables.incidents.c.id == incident_id))
        return _incidents().validate_json(rows[0].document) if rows else None

    def events(self, after: int = 0, limit: int = 500) -> list[IncidentEvent]:
        """Changes of incidents with seq > `after`, in order."""
        table = tables.incident_events
        query = (
            sa.select(table).where(table.c.seq > min(after, _LARGEST_SEQ)).order_by(table.c.seq).limit(limit)
        )
        return [
            IncidentEvent(row.seq, row.time_ns, _incidents().validate_json(row.document))
            for row in self._rows(query)
        ]

    def seen(self, node: str, boot: str, seq: int) -> bool:
        """Was this batch acknowledged before? Answered from memory."""
        with self._sequences_lock:
            known = self._sequences.get((node, boot))
            return known is not None and seq in known

    def remember(self, batches: Iterable[tuple[str, str, int]]) -> None:
        """Count (node, boot, seq) as seen in this process: for batches whose bytes the log holds.

        This is what an acknowledgement needs. The log is their durable record; `acknowledge` takes
        over before a log file is deleted.
        """
        with self._sequences_lock:
            for node, boot, seq in batches:
                self._sequences.setdefault((node, boot), Sequences()).add(seq)

    def acknowledge(self, batches: Sequence[tuple[str, str, int]], time_ns: int) -> None:
        """Count (node, boot, seq) as seen, durably."""
        self.remember(batches)
        rows = []
        with self._sequences_lock:
            for node, boot in {(node, boot) for node, boot, _ in batches}:
                known = self._sequences[node, boot]
                rows.append(
                    {
                        "node": node,
                        "boot": boot,
                        "highest": min(known.highest, _LARGEST),
                        "ranges": json.dumps(known.ranges),
                        "updated_ns": time_ns,
                    }
                )
        self._upsert_all(tables.sequences, rows)

    def save_facts(self, facts: Mapping[tuple[str, str, int], Sequence[GpuFacts]], time_ns: int) -> None:
        """Keep what nodes said of their GPUs, by (node, boot, facts_id)."""
        rows = [
            {
                "node": node,
                "boot": boot,
                "facts_id": str(facts_id),
                "updated_ns": time_ns,
                "document": _gpu_facts().dump_json(tuple(gpus)).decode(),
            }
            for (node, boot, facts_id), gpus in facts.items()
        ]
        self._upsert_all(tables.facts, rows)

    def facts(self, key: tuple[str, str, int]) -> tuple[GpuFacts, ...] | None:
        """What was kept under (node, boot, facts_id); None when nothing was."""
        node, boot, facts_id = key
        table = tables.facts
        rows = self._rows(
            sa.select(table.c.document).where(
                table.c.node == node, table.c.boot == boot, table.c.facts_id == str(facts_id)
            )
        )
        return _gpu_facts().validate_json(rows[0].document) if rows else None

    def save_flights(self, flights: Iterable[KeptFlight]) -> None:
        """Keep windows of flight recorders, the newest `MOST_FLIGHTS`; one that is known is replaced."""
        rows = [
            {name: getattr(flight, name) for name in tables.flights.columns.keys()}  # noqa: SIM118
            for flight in flights
        ]
        table = tables.flights
        too_many = sa.select(table.c.id).order_by(table.c.end_ns.desc()).offset(MOST_FLIGHTS)
        with self._writing() as connection:
            connection.execute(database.upsert(self._engine, table), rows)
            connection.execute(sa.delete(table).where(table.c.id.in_(too_many)))

    def flights(self, gpus: Iterable[str], start_ns: int, end_ns: int | None = None) -> list[KeptFlight]:
        """Windows of these GPUs that touch the time from `start_ns` to `end_ns` (None: now), newest first."""
        table = tables.flights
        query = sa.select(table).where(table.c.gpu.in_(list(gpus)), table.c.end_ns >= start_ns)
        if end_ns is not None:
            query = query.where(table.c.start_ns <= end_ns)
        rows = self._rows(query.order_by(table.c.end_ns.desc(), table.c.id).limit(MOST_FLIGHTS_READ))
        return [KeptFlight(**row._mapping) for row in rows]

    def meta(self, key: str) -> str | None:
        """The value kept under `key`; None when there is none."""
        rows = self._rows(sa.select(tables.meta.c.value).where(tables.meta.c.key == key))
        return str(rows[0].value) if rows else None

    def set_meta(self, key: str, value: str) -> None:
        """Keep one value."""
        self._upsert_all(tables.meta, [{"key": key, "value": value}])

    def meta_once(self, key: str, value: str) -> str:
        """The value kept under `key`; this one where there was none, whoever else asks at the same time."""
        with self._writing() as connection:
            connection.execute(database.insert_new(self._engine, tables.meta), [{"key": key, "value": value}])
        return self.meta(key) or value

    def tokens(self) -> list[Token]:
        """Every token that was ever made, oldest first."""
        rows = self._rows(sa.select(tables.tokens).order_by(tables.tokens.c.created_ns, tables.tokens.c.id))
        return [Token(**row._mapping) for row in rows]

    def save_tokens(self, tokens: Sequence[Token]) -> None:
        """Keep tokens, new ones and changed ones, all or none; a running collector takes notice."""
        if not tokens:
            return
        with self._writing() as connection:
            connection.execute(
                database.upsert(self._engine, tables.tokens), [asdict(token) for token in tokens]
            )
            revision = {"key": TOKENS_REVISION, "value": secrets.token_hex(8)}
            connection.execute(database.upsert(self._engine, tables.meta), revision)

    def tokens_revision(self) -> str:
        """Another text whenever tokens were made or changed."""
        return self.meta(TOKENS_REVISION) or ""

    def tokens_used(self, used_ns: Mapping[str, int]) -> None:
        """Note when tokens were last used, by id."""
        table = tables.tokens
        statement = (
            sa.update(table).where(table.c.id == sa.bindparam("of")).values(used_ns=sa.bindparam("at"))
        )
        with self._writing() as connection:
            connection.execute(statement, [{"of": key, "at": at_ns} for key, at_ns in used_ns.items()])

    def save_crossing(self, crossing: Crossing) -> None:
        """Write down what is about to leave the site; what is older than CROSSINGS_KEPT_NS goes."""
        table = tables.crossings
        row = {"time_ns": crossing.time_ns, "document": _crossings().dump_json(crossing).decode()}
        with self._writing() as connection:
            connection.execute(sa.insert(table), row)
            connection.execute(sa.delete(table).where(table.c.time_ns < crossing.time_ns - CROSSINGS_KEPT_NS))

    def crossings(self, limit: int) -> list[Crossing]:
        """What left the site, newest first."""
        table = tables.crossings
        rows = self._rows(sa.select(table).order_by(table.c.seq.desc()).limit(limit))
        return [replace(_crossings().validate_json(row.document), seq=row.seq) for row in rows]

    def one(self, query: sa.Select[Any]) -> sa.Row[Any] | None:
        """The first row that `query` finds."""
        return next(iter(self._rows(query)), None)

    def many(self, query: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        """Every row that `query` finds."""
        return self._rows(query)

    def save_rows(
        self, rows: Mapping[sa.Table, list[dict[str, Any]]], then: Iterable[sa.Delete] = ()
    ) -> None:
        """Insert or replace rows, then delete some, all in one transaction."""
        with self._writing() as connection:
            for table, values in rows.items():
                if values:
                    connection.execute(database.upsert(self._engine, table), values)
            for statement in then:
                connection.execute(statement)

    def forget(self, before_ns: int) -> int:
        """Remove what is older than `before_ns`; returns how many rows.

        Open incidents stay, and so do the newest sequence numbers and facts of every node.
        """
        incidents, events = tables.incidents, tables.incident_events
        statements = [
            sa.delete(incidents).where(incidents.c.state == "resolved", incidents.c.resolved_ns < before_ns),
            sa.delete(events).where(events.c.time_ns < before_ns),
            sa.delete(tables.flights).where(tables.flights.c.end_ns < before_ns),
        ]
        for table, scope in ((tables.sequences, ("node",)), (tables.facts, ("node", "boot"))):
            newer = table.alias()
            superseded = sa.exists().where(
                *(newer.c[name] == table.c[name] for name in scope), newer.c.updated_ns > table.c.updated_ns
            )
            statements.append(sa.delete(table).where(table.c.updated_ns < before_ns, superseded))
        with self._writing() as connection:
            return sum(connection.execute(statement).rowcount for statement in statements)

    def verify(self) -> tuple[str, ...]:
        """What the database finds wrong with itself; empty when nothing is."""
        return database.problems(self._engine)

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    def _rows(self, query: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        with database.reading(self._engine) as connection:
            return connection.execute(query).all()

    def _upsert_all(self, table: sa.Table, rows: list[dict[str, Any]]) -> None:
        if rows:
            with self._writing() as connection:
                connection.execute(database.upsert(self._engine, table), rows)

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        try:
            with self._write_lock, self._engine.begin() as connection:
                self._fence(connection)
                yield connection
        except FencedError:
            self.fenced += 1
            raise
        except database.AWAY as error:
            raise StoreFull(
                f"{database.shown(self._engine)}: expected to write the state, came {error.orig}: "
                "free space there or check the disk"
            ) from error


@cache
def _crossings() -> TypeAdapter[Crossing]:
    return TypeAdapter(Crossing)


@cache
def _incidents() -> TypeAdapter[Incident]:
    return TypeAdapter(Incident)


@cache
def _gpu_facts() -> TypeAdapter[tuple[GpuFacts, ...]]:
    return TypeAdapter(tuple[GpuFacts, ...])
