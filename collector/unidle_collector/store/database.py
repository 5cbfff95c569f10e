"""Where the state lives: an SQLite file, or a PostgreSQL that several collectors share; migrated when opened.

What differs between the two is here and nowhere else.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.dialects import postgresql, sqlite

from unidle_collector.store.errors import StoreError

MIGRATIONS = Path(__file__).with_name("migrations")
SQLITE_PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA busy_timeout = 10000",
)
CONNECT_S = 5
"""Longest that one try to reach a PostgreSQL takes."""
SESSION = {
    "statement_timeout": 15_000,  # ms; waiting for a lock included
    "idle_in_transaction_session_timeout": 5_000,  # a collector that was stopped half way holds no lock
    "tcp_keepalives_idle": 5,  # nor does one that was cut off
    "tcp_keepalives_interval": 2,
    "tcp_keepalives_count": 2,
}
"""Of every connection: what another collector waits for is over before a lease lapses."""
MIGRATION_LOCK = 0x756E69646C65
"""Advisory lock under which one collector at a time migrates: `unidle` in ASCII."""
_ALEMBIC = threading.Lock()
"""Alembic's environment is one per process: databases that are opened at once migrate one after the other."""
AWAY = (sa.exc.OperationalError, sa.exc.InterfaceError)
"""What SQLAlchemy raises where the database does not answer, or its disk is full."""


def connect(where: Path | str, schema: str = "") -> sa.Engine:
    """The database at a path (SQLite) or URL, its tables made or brought up to date in `schema`.

    Raises StoreError when it cannot be used; the password of a URL is never in the message.
    """
    engine = _sqlite(where) if isinstance(where, Path) else _of_url(where, schema)
    name = shown(engine)
    try:
        _migrate(engine, schema)
    except CommandError as error:
        engine.dispose()
        raise StoreError(
            f"{name}: expected a state database of this version of unidle or an older one ({error}): "
            "update unidle"
        ) from error
    except sa.exc.DBAPIError as error:
        engine.dispose()
        raise StoreError(
            f"{name}: expected a state database, came {error.orig}: see that it is there, that this user may "
            "write it and that its disk has room"
        ) from error
    return engine


def insert_new(engine: sa.Engine, table: sa.Table) -> Any:
    """Insert a row unless there is one that has its key."""
    return _insert(engine, table).on_conflict_do_nothing(index_elements=list(table.primary_key))


def upsert(engine: sa.Engine, table: sa.Table) -> Any:
    """Insert a row, or replace the one that has its key."""
    statement = _insert(engine, table)
    others = {column.name: statement.excluded[column.name] for column in table.c if not column.primary_key}
    return statement.on_conflict_do_update(index_elements=list(table.primary_key), set_=others)


def _insert(engine: sa.Engine, table: sa.Table) -> Any:
    return (postgresql.insert if is_postgresql(engine) else sqlite.insert)(table)


def is_postgresql(engine: sa.Engine) -> bool:
    """Or else it is SQLite."""
    return engine.dialect.name == "postgresql"


def shown(engine: sa.Engine) -> str:
    """What to call the database in a message: a path, or the URL without its password."""
    if is_postgresql(engine):
        return engine.url.render_as_string(hide_password=True)
    return str(engine.url.database)


@contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection to read by; raises StoreError where the database does not answer."""
    try:
        with engine.connect() as connection:
            yield connection
    except AWAY as error:
        raise StoreError(
            f"{shown(engine)}: expected to read the state, came {error.orig}: check the database; it is "
            "tried again"
        ) from error


def problems(engine: sa.Engine) -> tuple[str, ...]:
    """What the database finds wrong with itself; PostgreSQL is only asked to answer."""
    try:
        with engine.connect() as connection:
            if is_postgresql(engine):
                connection.execute(sa.select(1))
                return ()
            answers = connection.exec_driver_sql("PRAGMA quick_check").scalars().all()
    except sa.exc.DatabaseError as error:
        return (f"state database: {error.orig}",)
    return tuple(f"state database: {answer}" for answer in answers if answer != "ok")


def _sqlite(path: Path) -> sa.Engine:
    engine = sa.create_engine(sa.URL.create("sqlite", database=str(path)))

    def on_connect(connection: Any, _: object) -> None:
        connection.isolation_level = None  # transactions begin where the engine says, schema changes included
        for pragma in SQLITE_PRAGMAS:
            connection.execute(pragma)

    sa.event.listen(engine, "connect", on_connect)
    sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    return engine


def _of_url(text: str, schema: str) -> sa.Engine:
    try:
        url = sa.make_url(text)
    except sa.exc.ArgumentError as error:
        raise StoreError(
            "state_url: expected postgresql://USER:PASSWORD@HOST/DATABASE, came no URL"
        ) from error
    if url.get_backend_name() == "sqlite" and url.database:
        return _sqlite(Path(url.database))
    if url.get_backend_name() != "postgresql":
        raise StoreError(f"state_url: expected postgresql:// or sqlite:///, came {url.drivername}://")
    options = " ".join(f"-c {name}={value}" for name, value in SESSION.items())
    options += f" -c search_path={schema}" if schema else ""
    try:
        return sa.create_engine(
            url.set(drivername="postgresql+psycopg"),
            pool_pre_ping=True,  # a connection that died is found before it is used, not by losing a write
            pool_size=2,
            max_overflow=3,
            pool_recycle=1800,
            connect_args={"connect_timeout": CONNECT_S, "options": options},
        )
    except ModuleNotFoundError as error:
        raise StoreError(
            "state_url: expected the driver psycopg, it is not installed: pip install 'unidle[postgres]'"
        ) from error


def _migrate(engine: sa.Engine, schema: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    with _ALEMBIC, engine.begin() as connection:
        if is_postgresql(engine):
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
            if schema:
                connection.execute(sa.schema.CreateSchema(schema, if_not_exists=True))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
