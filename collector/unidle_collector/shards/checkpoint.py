"""A shard's accounts in PostgreSQL: with the position in the stream, in one transaction, under its lease.

Finished hours are rows of their own, Parquet in a column; everything else is one row, replaced each time.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa

from unidle_agent.wire import Batch
from unidle_collector.accounts import keeping
from unidle_collector.accounts.ledger import KEEP_NS
from unidle_collector.engine import Engine
from unidle_collector.shards.job_sizes import JOBS
from unidle_collector.shards.progress import Pace, Progress
from unidle_collector.store import State, Store, tables


class InState:
    """The keeper of one shard (see keeping.Keeper); `progress` and `pace` begin where the last one was."""

    def __init__(self, state: State, epoch: int, keep_ns: int = KEEP_NS) -> None:
        """Finished hours are kept for `keep_ns`."""
        self._state, self._keep_ns = state, keep_ns
        self._epoch = epoch
        row = state.one(sa.select(tables.checkpoints))
        self._document: bytes | None = row.document if row else None
        self.progress = Progress(row.position, row.held) if row else Progress()
        self.pace = Pace(row.pace_ns if row else 0)
        self.saves = 0

    def restore(self, engine: Engine) -> keeping.Restored:
        """See Keeper."""
        if self._document is None:
            return keeping.Restored(None)
        where = "checkpoint"
        try:
            header, arrays = keeping.read_arrays(io.BytesIO(zlib.decompress(self._document)))
        except (ValueError, KeyError, TypeError, EOFError, zlib.error) as error:
            return keeping.Restored(None, f"{where}: came {error}: accounts and timers start anew")
        self._document = None
        hours = self.hours(header["reached_ns"] - KEEP_NS, 2**63 - 1)
        return keeping.restore_from(engine, header, arrays, hours, where)

    def snapshot(self, engine: Engine, reached_ns: int) -> keeping.Snapshot:
        """See Keeper: accounts, position and pace belong together, so all are taken here."""
        kept = keeping.snapshot(engine, reached_ns)
        position, held = self.progress.mark(reached_ns)
        mark = {"position": position, "held": held, "pace_ns": self.pace(), "reached_ns": reached_ns}
        return replace(kept, mark=(mark, engine.inventory.held()))

    def write(self, kept: keeping.Snapshot) -> None:
        """See Keeper; raises FencedError when the shard is another's."""
        file = io.BytesIO()
        keeping.write_arrays(file, keeping.whole_header(kept), kept.arrays)
        mark, jobs = kept.mark
        row = {
            "id": 1,
            "epoch": self._epoch,
            **mark,
            "document": zlib.compress(file.getvalue(), 1),
            "nodes": len({ref.node for ref in kept.gpus.refs}),
            "gpus": len(kept.gpus.refs),
        }
        hours = [{"hour_ns": hour, "document": _parquet(of.table())} for hour, of in kept.hours]
        old = sa.delete(tables.account_hours).where(
            tables.account_hours.c.hour_ns < mark["reached_ns"] - max(self._keep_ns, KEEP_NS)
        )
        told = [{"key": JOBS, "value": json.dumps(jobs)}]
        rows = {tables.account_hours: hours, tables.checkpoints: [row], tables.meta: told}
        self._state.save_rows(rows, [old])
        self.saves += 1

    def hours(self, start_ns: int, end_ns: int) -> dict[int, Callable[[], pa.Table]]:
        """See Keeper."""
        hour_ns = tables.account_hours.c.hour_ns
        rows = self._state.many(_HOURS.where(hour_ns >= start_ns, hour_ns < end_ns))
        return {row.hour_ns: partial(self._hour, row.hour_ns) for row in rows}

    def past(self, store: Store) -> Iterator[tuple[int, int | None, Batch]]:
        """See Keeper: nothing, because the broker sends again what came after."""
        for _ in store.replay():  # this marks them as logged on this disk, which the accounts do not follow
            pass
        return iter(())

    def _hour(self, hour_ns: int) -> pa.Table:
        table = tables.account_hours
        row = self._state.one(sa.select(table.c.document).where(table.c.hour_ns == hour_ns))
        return pq.read_table(pa.BufferReader(row.document if row else b""))


_HOURS: sa.Select[Any] = sa.select(tables.account_hours.c.hour_ns).order_by(tables.account_hours.c.hour_ns)


def _parquet(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()
