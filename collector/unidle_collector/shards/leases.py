"""Who holds which shard: rows of PostgreSQL, by its clock.

A lease lasts LEASE_S and is renewed each BEAT_S. Whoever takes one that has lapsed raises its epoch; every
transaction that writes a shard's state checks, under a lock on the row, that the epoch is still its own. So
a collector that was cut off, or stopped for a while, writes nothing once another has taken its shard.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from unidle_agent.shards import SHARDS
from unidle_collector.store import database, tables
from unidle_collector.store.errors import FencedError, StoreError
from unidle_collector.store.state import Fence

LEASE_S = 10
BEAT_S = 2.0

_now_ns = sa.cast(sa.extract("epoch", sa.func.clock_timestamp()) * 1_000_000_000, sa.BigInteger)


@dataclass(frozen=True, slots=True)
class Lease:
    """One shard's row."""

    shard: int
    holder: str
    """Name of the collector; empty when nobody holds it."""
    url: str
    """Where that collector answers."""
    epoch: int
    """How often the shard changed hands."""
    left_s: float
    """Until it lapses, s; negative when it has."""


class Leases:
    """The leases of one collector, `holder`, which answers at `url`."""

    def __init__(self, engine: sa.Engine, holder: str, url: str) -> None:
        self._engine = engine
        self.holder, self._url = holder, url

    def prepare(self) -> None:
        """Make the rows of all shards where they are missing."""
        rows = [
            {"shard": shard, "holder": "", "url": "", "epoch": 0, "until_ns": 0} for shard in range(SHARDS)
        ]
        with self._writing() as connection:
            connection.execute(insert(tables.leases).on_conflict_do_nothing(), rows)

    def beat(self) -> int:
        """Say that this collector lives; how many do."""
        table = tables.collectors
        row = insert(table).values(holder=self.holder, url=self._url, seen_ns=_now_ns)
        row = row.on_conflict_do_update(
            index_elements=[table.c.holder], set_={"url": self._url, "seen_ns": _now_ns}
        )
        lapsed_ns = _now_ns - LEASE_S * 10**9
        with self._writing() as connection:
            connection.execute(row)
            connection.execute(sa.delete(table).where(table.c.seen_ns < lapsed_ns - 3600 * 10**9))
            count = sa.select(sa.func.count()).select_from(table).where(table.c.seen_ns >= lapsed_ns)
            return int(connection.execute(count).scalar_one())

    def renew(self, held: Iterable[tuple[int, int]]) -> set[int]:
        """Renew (shard, epoch); which shards are still ours."""
        table = tables.leases
        kept: set[int] = set()
        with self._writing() as connection:
            for shard, epoch in sorted(held):
                statement = sa.update(table).where(table.c.shard == shard, table.c.epoch == epoch)
                statement = statement.values(until_ns=_now_ns + LEASE_S * 10**9)
                if connection.execute(statement).rowcount:
                    kept.add(shard)
        return kept

    def claim(self, most: int) -> list[tuple[int, int]]:
        """Take up to `most` shards that nobody holds; (shard, epoch) of each."""
        table = tables.leases
        free = (
            sa.select(table.c.shard)
            .where(table.c.until_ns < _now_ns)
            .order_by(table.c.shard)
            .limit(max(0, most))
            .with_for_update(skip_locked=True)
        )
        with self._writing() as connection:
            shards = connection.execute(free).scalars().all()
            taken = []
            for shard in shards:
                statement = (
                    sa.update(table)
                    .where(table.c.shard == shard)
                    .values(
                        holder=self.holder,
                        url=self._url,
                        epoch=table.c.epoch + 1,
                        until_ns=_now_ns + LEASE_S * 10**9,
                    )
                    .returning(table.c.epoch)
                )
                taken.append((int(shard), int(connection.execute(statement).scalar_one())))
            return taken

    def release(self, shard: int, epoch: int) -> None:
        """Let go of a shard that is saved: another may take it at once."""
        table = tables.leases
        statement = sa.update(table).where(table.c.shard == shard, table.c.epoch == epoch)
        with self._writing() as connection:
            connection.execute(statement.values(until_ns=0, holder="", url=""))

    def all(self) -> list[Lease]:
        """Every shard's lease, by shard."""
        table = tables.leases
        left = (table.c.until_ns - _now_ns).label("left_ns")
        with database.reading(self._engine) as connection:
            rows = connection.execute(sa.select(table, left).order_by(table.c.shard)).all()
        return [
            Lease(row.shard, row.holder if row.left_ns > 0 else "", row.url, row.epoch, row.left_ns / 1e9)
            for row in rows
        ]

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except sa.exc.DBAPIError as error:
            raise StoreError(
                f"{database.shown(self._engine)}: expected to keep the leases, came {error.orig}: check the "
                "database; it is tried again"
            ) from error


def fence(shard: int, epoch: int) -> Fence:
    """Within a transaction: raises FencedError unless the lease is still of `epoch`, and holds it so."""
    table = tables.leases.to_metadata(sa.MetaData(), schema="public")  # the shard's own schema comes first
    asked = sa.select(table.c.epoch).where(table.c.shard == shard).with_for_update(read=True)

    def check(connection: sa.Connection) -> None:
        now = connection.execute(asked).scalar()
        if now != epoch:
            raise FencedError(
                f"shard {shard}: expected the lease of epoch {epoch}, it is {now}: another collector has it, "
                "nothing was written"
            )

    return check
