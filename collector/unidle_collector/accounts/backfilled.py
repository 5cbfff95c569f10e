"""Accounts of rows that are filled in from the past: whole hours that hold none yet, booked as if lived.

    batches, in the order of time -> an hour of them -> a grid -> the engine -> a file of the hour

What a GPU did counts whenever it becomes known. Nobody is told of anything: findings are of the present.
Hours for which the collector has booked time itself, or that an earlier run filled in, stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unidle_agent.fields import BY_NAME, UNKNOWN_U8, Field
from unidle_agent.wire import Batch, GpuFacts
from unidle_collector.accounts.buckets import HOUR_NS
from unidle_collector.accounts.hours import Gpus, Hour
from unidle_collector.accounts.keeping import booked_hours, fill_in
from unidle_collector.engine import Engine
from unidle_collector.model import GpuRef
from unidle_collector.pergpu import SECOND_NS, Array, Floats
from unidle_collector.recorded.grid import to_grid
from unidle_collector.recorded.rows import NOBODY, NOT_SAID, RecordingError, Rows
from unidle_collector.recording import Recording
from unidle_collector.replay import play

MOST_CELLS = 40_000_000
"""Most values of an hour that are held on a grid, 0.3 GB; of more, means over longer steps are taken."""
WHOLE_NS = 600 * SECOND_NS
"""An hour is whole if rows come no later than this after its begin, and reach to this before its end."""


@dataclass(frozen=True, slots=True)
class Booked:
    """What became of the hours that rows were filled in for."""

    hours: int = 0
    """Booked now."""
    held: int = 0
    """Had accounts already."""
    partial: int = 0
    """Not whole, at the begin and the end of what was filled in."""
    old: int = 0
    """Of longer ago than accounts are kept."""


class PastAccounts:
    """Lives through batches of the past and writes what it finds into a directory of accounts."""

    def __init__(self, directory: Path, keep_ns: int, now_ns: int) -> None:
        """`directory` is that of keeping.InFiles, of a collector that does not run."""
        self._directory, self._oldest_ns, self._now_ns = directory, now_ns - keep_ns, now_ns
        self._taken = booked_hours(directory)
        self._engine: Engine | None = None
        self._period_ns = 0
        self._waiting: list[Batch] = []
        """Batches of one hour."""
        self._facts: dict[tuple[str, str], GpuFacts] = {}
        self._first_ns = self._last_ns = 0

    def take(self, batch: Batch) -> None:
        """The next batch; none is of an earlier hour than the one before."""
        if not len(batch.times_ns):
            return
        self._first_ns = min(self._first_ns or batch.times_ns[0], batch.times_ns[0])
        self._last_ns = max(self._last_ns, batch.times_ns[-1])
        if self._waiting and _hour(batch) != _hour(self._waiting[0]):
            self._live_through()
        self._waiting.append(batch)

    def finish(self) -> Booked:
        """Write the hours; raises StoreFull."""
        if self._waiting:
            self._live_through()
        if self._engine is None:
            return Booked()
        booked = held = partial = old = 0
        gpus = Gpus.of(self._engine.inventory)
        for begin, sums in self._engine.ledger.buckets.by_hour().items():
            if begin in self._taken:
                held += 1
            elif not self._whole(begin):
                partial += 1
            elif begin < self._oldest_ns:
                old += 1
            else:
                fill_in(self._directory, begin, Hour.of(self._engine, gpus, sums, given=True))
                booked += 1
        return Booked(booked, held, partial, old)

    def _whole(self, begin_ns: int) -> bool:
        end_ns = begin_ns + HOUR_NS
        reaches = self._first_ns <= begin_ns + WHOLE_NS and end_ns - WHOLE_NS <= self._last_ns
        return reaches and end_ns <= self._now_ns

    def _live_through(self) -> None:
        """The hour that waits, step by step."""
        batches, self._waiting = self._waiting, []
        begin_ns = _hour(batches[0])
        rows = _rows(batches, self._facts)
        cells = HOUR_NS // SECOND_NS * len(rows.gpus) * (len(rows.values) + 2)
        coarsest_s = self._period_ns / SECOND_NS or None
        try:
            if coarsest_s is None and cells > MOST_CELLS:
                coarsest_s = float(-(-cells // MOST_CELLS))
            found = to_grid(rows, coarsest_s)
        except RecordingError:  # not one known value
            return
        if self._engine is None:
            if found.instants < 2:  # it says nothing of how far apart they are
                return
            self._period_ns = round(found.period_s * SECOND_NS)
            self._engine = Engine(found.period_s, keep_accounts_ns=None)
        hour = _on_the_hour(found, begin_ns, self._period_ns)
        positions = []
        for ref in hour.gpus:
            facts = self._facts.get((ref.node, ref.gpu))
            share = facts.share if facts else 1.0
            positions.append(self._engine.add(ref, share, hour.simulated))
        for _ in play(hour, self._engine, np.array(positions, dtype=np.intp)):
            pass  # nobody is told


def _hour(batch: Batch) -> int:
    return batch.times_ns[0] // HOUR_NS * HOUR_NS


def _on_the_hour(found: Recording, begin_ns: int, period_ns: int) -> Recording:
    """A recording on the grid that all hours share, from the first step that ends in the hour to the last."""
    first, last = begin_ns // period_ns + 1, (begin_ns + HOUR_NS) // period_ns
    # A sample counts for the step that it begins: that of the hour's first moment is in the hour.
    place = np.clip(found.start_ns // period_ns + 1 + np.arange(found.instants), first, last) - first
    shape = (last - first + 1, len(found.gpus))

    def laid(values: Array, unknown: float) -> Array:
        out = np.full(shape, unknown, dtype=values.dtype)
        out[place] = values
        return out

    return Recording(
        start_ns=first * period_ns,
        period_s=found.period_s,
        gpus=found.gpus,
        columns={name: laid(values, np.nan) for name, values in found.columns.items()},
        sampled=laid(found.sampled, False),
        jobs=found.jobs,
        job=laid(found.job, NOT_SAID),
        notes=(),
        simulated=found.simulated,
    )


def _rows(batches: Sequence[Batch], facts: dict[tuple[str, str], GpuFacts]) -> Rows:
    """Batches as rows, a host's values at each of its GPUs; `facts` is brought up to date."""
    gpus: dict[tuple[str, str], int] = {}
    jobs: dict[str, int] = {"": NOBODY}
    times, places, owners = [], [], []
    names = sorted({name for batch in batches for name in (*batch.columns, *batch.host) if name in BY_NAME})
    values: dict[str, list[Floats]] = {name: [] for name in names}
    for batch in batches:
        facts |= {(batch.node, one.uuid): one for one in batch.facts or ()}
        instants, count = len(batch.times_ns), len(batch.gpus)
        of = [gpus.setdefault((batch.node, gpu), len(gpus)) for gpu in batch.gpus]
        times.append(np.repeat(np.asarray(batch.times_ns, dtype=np.int64), count))
        places.append(np.tile(np.array(of, dtype=np.int32), instants))
        job = [_job(facts.get((batch.node, gpu)), jobs) for gpu in batch.gpus]
        owners.append(np.tile(np.array(job, dtype=np.int32), instants))
        for name in names:
            spec = BY_NAME[name]
            column = (batch.columns if spec.scope == "gpu" else batch.host).get(name)
            if column is None:
                values[name].append(np.full(instants * count, np.nan))
            else:
                plain = _plain(spec, column)
                values[name].append(plain if spec.scope == "gpu" else np.repeat(plain, count))
    known = [(key, facts.get(key, GpuFacts(key[1]))) for key in gpus]
    return Rows(
        time_ns=np.concatenate(times),
        gpu=np.concatenate(places),
        gpus=tuple(GpuRef(node, gpu, one.index, one.model) for (node, gpu), one in known),
        values={name: np.concatenate(parts) for name, parts in values.items()},
        job=np.concatenate(owners),
        jobs=tuple(jobs),
        notes=(),
        simulated=any(batch.simulated for batch in batches),
    )


def _job(facts: GpuFacts | None, jobs: dict[str, int]) -> int:
    """As in Rows.job."""
    if facts is None or facts.owner.allocated is None:
        return NOT_SAID
    return jobs.setdefault(facts.owner.job, len(jobs)) if facts.owner.allocated else NOBODY


def _plain(spec: Field, column: Any) -> Floats:
    """A column of the wire in base units; NaN is unknown."""
    raw = np.frombuffer(column, dtype="<" + spec.dtype)
    plain = raw.astype(np.float64)
    return np.where(raw == UNKNOWN_U8, np.nan, plain * spec.resolution) if spec.dtype == "u8" else plain
