"""The tables of the state database. Documents are JSON; times are integer nanoseconds since the epoch.

A change here needs a migration in migrations/versions/; a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, MetaData, Table, Text

metadata = MetaData()

incidents = Table(
    "incidents",
    metadata,
    Column("id", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("kind", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("opened_ns", BigInteger, nullable=False),
    Column("resolved_ns", BigInteger),
    Column("document", Text, nullable=False),
    Index("incidents_state_opened", "state", "opened_ns"),
)

incident_events = Table(
    "incident_events",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("time_ns", BigInteger, nullable=False),
    Column("incident_id", Text, nullable=False, index=True),
    Column("document", Text, nullable=False),
    sqlite_autoincrement=True,  # a seq is never given twice, not even after old events were removed
)

sequences = Table(
    "sequences",
    metadata,
    Column("node", Text, primary_key=True),
    Column("boot", Text, primary_key=True),
    Column("highest", BigInteger, nullable=False),
    Column("ranges", Text, nullable=False),
    Column("updated_ns", BigInteger, nullable=False),
)

facts = Table(
    "facts",
    metadata,
    Column("node", Text, primary_key=True),
    Column("boot", Text, primary_key=True),
    Column("facts_id", Text, primary_key=True),
    Column("updated_ns", BigInteger, nullable=False),
    Column("document", Text, nullable=False),
)

flights = Table(
    "flights",
    metadata,
    Column("id", Text, primary_key=True),
    Column("node", Text, nullable=False),
    Column("gpu", Text, nullable=False),
    Column("start_ns", BigInteger, nullable=False),
    Column("end_ns", BigInteger, nullable=False),
    Column("document", LargeBinary, nullable=False),
    Index("flights_gpu_end", "gpu", "end_ns"),
    Index("flights_end", "end_ns"),
)

meta = Table(
    "meta",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("hash", Text, nullable=False, unique=True),
    Column("created_ns", BigInteger, nullable=False),
    Column("expires_ns", BigInteger),
    Column("revoked_ns", BigInteger),
    Column("used_ns", BigInteger),
)

crossings = Table(
    "crossings",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("time_ns", BigInteger, nullable=False, index=True),
    Column("document", Text, nullable=False),
    sqlite_autoincrement=True,
)
