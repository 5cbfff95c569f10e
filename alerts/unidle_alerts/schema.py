"""The alerts' own database: SQLite in WAL mode, synced at every commit, one file per role.

Tables are read by SQLAlchemy Core; their history is in migrations/ (Alembic), run when it is opened.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry

from unidle_alerts.errors import StoreError

metadata = sa.MetaData()

cursor = sa.Table(
    "cursor",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("mark", sa.String, nullable=False),
)
"""One row: the last event that was taken, and what it was, so that another log is recognised."""

channel = sa.Table(
    "channel",
    metadata,
    sa.Column("destination", sa.String, primary_key=True),
    sa.Column("since_ns", sa.BigInteger, nullable=False),
    sa.Column("not_before_ns", sa.BigInteger, nullable=False),
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("delivered", sa.Integer, nullable=False),
    sa.Column("retried", sa.Integer, nullable=False),
    sa.Column("dead", sa.Integer, nullable=False),
)
"""One row per destination: when it was first configured, when it may be used next, failures in a row,
and messages counted since then."""

outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("destination", sa.String, nullable=False),
    sa.Column("incident_id", sa.String, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("key", sa.String, nullable=False),
    sa.Column("status", sa.String, nullable=False),
    sa.Column("reason", sa.String, nullable=False),
    sa.Column("recorded_ns", sa.BigInteger, nullable=False),
    sa.Column("done_ns", sa.BigInteger),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("severity", sa.String, nullable=False),
    sa.Column("eur_per_h", sa.Float),
    sa.Column("simulated", sa.Boolean, nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
    sa.UniqueConstraint("destination", "key", name="outbox_once"),
    sa.Index("outbox_by_status", "destination", "status"),
    sa.Index("outbox_by_incident", "destination", "incident_id"),
)
"""One row per destination and transition of an incident (key incident:state:revision). status:
pending, delivered, dead (will not be tried again), skipped (not told, reason says why). payload is the
incident as JSON as far as it may leave; emptied once it is delivered or skipped."""

delivery = sa.Table(
    "delivery",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("time_ns", sa.BigInteger, nullable=False),
    sa.Column("destination", sa.String, nullable=False),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("incident_id", sa.String, nullable=False),
    sa.Column("incidents", sa.Integer, nullable=False),
    sa.Column("crowded", sa.Boolean, nullable=False),
    sa.Column("outcome", sa.String, nullable=False),
    sa.Column("reason", sa.String, nullable=False),
    sa.Index("delivery_by_time", "destination", "time_ns"),
)
"""One row per attempt to send, in order: which message, how many incidents, what became of it.
crowded: sent as the one message that many changes share."""

FILE = "alerts.db"


def open_database(folder: Path) -> Engine:
    """Open, create or migrate the database in `folder`; raises StoreError with what to do."""
    file = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        engine = sa.create_engine(f"sqlite:///{file}", hide_parameters=True)
        event.listen(engine, "connect", _configure)
        event.listen(engine, "begin", _begin)
        with engine.begin() as connection:
            _migrate(connection)
    except CommandError as error:
        raise StoreError(
            f"{file}: expected a database of this or an older unidle ({error}); "
            "install the newer unidle again, or set alerts.state_dir to another folder"
        ) from error
    except (OSError, SQLAlchemyError) as error:
        raise StoreError(
            f"{file}: expected a writable SQLite database, came: {error}; set alerts.state_dir"
        ) from error
    return engine


def _configure(connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
    # The driver's own transaction handling starts one late; ours begins where SQLAlchemy says.
    connection.isolation_level = None
    for pragma in ("busy_timeout=10000", "journal_mode=WAL", "synchronous=FULL"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    # Take the write lock at once: a read that turns into a write would fail beside another writer.
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _migrate(connection: Connection) -> None:
    config = Config()
    folder = Path(__file__).parent / "migrations"
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
