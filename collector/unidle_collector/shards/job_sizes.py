"""How many GPUs a job has at the whole site: each shard says how many of them it sees, with its checkpoint.

A comparison of the GPUs of a job sees those of one shard. By this it can say of how many.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable

import sqlalchemy as sa

from unidle_agent.errors import UnidleError
from unidle_agent.shards import SHARDS
from unidle_collector.live import Live
from unidle_collector.store import database, tables

log = logging.getLogger("unidle.collector")

JOBS = "gpus_of_jobs"
"""Key of a shard's own word: a JSON object, job -> GPUs."""
EACH_S = 20.0
"""As often as checkpoints are kept."""


class JobSizes:
    """Hands the sizes of the site's jobs to the shards that are held here, as long as it runs."""

    def __init__(self, engine: sa.Engine, held: Callable[[], Iterable[Live]]) -> None:
        self._engine, self._held = engine, held
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="job-sizes", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, after what is under way."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    def _run(self) -> None:
        while not self._stop.wait(EACH_S):
            try:
                self.hand_out()
            except UnidleError as error:  # what was known last holds; the leases tell of the database
                log.debug("sizes of jobs: %s", error)
            except Exception:  # a bug here must not end it for good
                log.exception("sizes of jobs: unexpected error")

    def hand_out(self) -> None:
        """Once; raises StoreError."""
        sizes = read(self._engine)
        for live in self._held():
            live.engine.inventory.at_site = sizes  # a whole one takes the place of a whole one


def read(engine: sa.Engine) -> dict[str, int]:
    """Job -> GPUs that hold it by the last word of every shard; raises StoreError."""
    meta = {
        shard: tables.meta.to_metadata(sa.MetaData(), schema=f"shard_{shard:02d}") for shard in range(SHARDS)
    }
    there = sa.select(
        *(sa.func.to_regclass(f"{t.schema}.{t.name}").label(f"s{shard}") for shard, t in meta.items())
    )
    with database.reading(engine) as connection:
        known = connection.execute(there).one()
        queries = [
            sa.select(table.c.value).where(table.c.key == JOBS)
            for shard, table in meta.items()
            if known[shard] is not None
        ]
        rows = connection.execute(sa.union_all(*queries)).scalars().all() if queries else []
    sizes: Counter[str] = Counter()
    for row in rows:
        sizes.update(json.loads(row))
    return dict(sizes)
