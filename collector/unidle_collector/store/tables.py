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

leases = Table(
    "leases",
    metadata,
    Column("shard", Integer, primary_key=True, autoincrement=False),
    Column("holder", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("until_ns", BigInteger, nullable=False),
)
"""Which collector holds which shard; only in the schema that all share."""

collectors = Table(
    "collectors",
    metadata,
    Column("holder", Text, primary_key=True),
    Column("url", Text, nullable=False),
    Column("seen_ns", BigInteger, nullable=False),
)
"""The collectors that live; only in the schema that all share."""

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("held", Text, nullable=False),
    Column("pace_ns", BigInteger, nullable=False),
    Column("reached_ns", BigInteger, nullable=False),
    Column("document", LargeBinary, nullable=False),
    Column("nodes", Integer, nullable=False, server_default="0"),
    Column("gpus", Integer, nullable=False, server_default="0"),
)
"""One row per shard, in its own schema: its accounts, and how far in the broker's stream they reach."""

account_hours = Table(
    "account_hours",
    metadata,
    Column("hour_ns", BigInteger, primary_key=True, autoincrement=False),
    Column("document", LargeBinary, nullable=False),
)
"""Finished hours of a shard's accounts as Parquet."""

incident_parts = Table(
    "incident_parts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("incident_id", Text, nullable=False),
    Column("shard", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("document", Text, nullable=False),
    Index("incident_parts_incident", "incident_id"),
)
"""The shards' incidents that the incidents of the site are made of; only in the schema that all share."""
