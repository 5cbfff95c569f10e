"""When a scheduler is asked, and what holds while it does not answer: the last snapshot, with its age.

One thread per cluster asks, one question at a time. After a failure it waits twice as long each time, up to
five minutes, or as long as the scheduler asked for. A snapshot older than three polls is stale. The last one
is kept on disk: a collector that restarts knows the jobs at once, and takes none of them for another.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from unidle_collector.model import SchedulerNow
from unidle_collector.scheduler import Job, SchedulerError, Snapshot, Source

log = logging.getLogger("unidle.collector")

MOST_WAIT_S = 300.0
STALE_POLLS = 3
JUST_OVER_NS = 300 * 10**9
"""A job that is over is kept this long with the last snapshot: several times as long as it may take until the
accounts, which know its team, are saved."""
SECOND_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the last look brought; replaced as a whole, so that any thread may read it."""

    snapshot: Snapshot | None = None
    read_s: float | None = None
    failures: int = 0
    error: str = ""


class Poller:
    """Asks `source` each `interval_s` and calls `deliver` after each look, whether it brought anything."""

    def __init__(
        self,
        source: Source,
        interval_s: float,
        deliver: Callable[[Snapshot | None], None],
        *,
        keep: Path | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`keep` is the file of the last snapshot, None for none."""
        self._source = source
        self._file = keep
        self._interval_s = interval_s
        self._deliver = deliver
        self._clock_ns = clock_ns
        self._monotonic = monotonic
        self._seen = _Seen()
        self._over: dict[str, tuple[int, Job]] = {}
        """Jobs that no snapshot names any more, with the time of the first one that did not."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scheduler-poller", daemon=True)

    def restore(self) -> Snapshot | None:
        """The last snapshot before a restart; None where there is none that this version can read."""
        if self._file is None or not self._file.is_file():
            return None
        try:
            snapshot = _snapshots().validate_json(self._file.read_bytes())
        except (OSError, ValidationError) as error:
            log.warning("%s: the scheduler's last word is lost: %s", self._file, error)
            return None
        if snapshot.scheduler != self._source.name:
            return None
        self._seen = _Seen(snapshot)
        self._over = {job: (snapshot.taken_ns, was) for job, was in snapshot.ended.items()}
        return snapshot

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """Ask no more; a question under way is left to its deadline."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=2)

    @property
    def stale_after_ns(self) -> int:
        """Age from which a snapshot is not that of now."""
        return int(STALE_POLLS * self._interval_s * SECOND_NS)

    def look(self) -> float:
        """Ask once; returns after how many seconds to ask again."""
        begin, seen, wait_s = self._monotonic(), self._seen, self._interval_s
        try:
            snapshot = self._source.read()
        except SchedulerError as error:
            failures = seen.failures + 1
            if str(error) != seen.error:
                log.warning("%s: %s", self._source.name, error)
            self._seen = _Seen(seen.snapshot, seen.read_s, failures, str(error))
            wait_s = max(min(MOST_WAIT_S, self._interval_s * 2 ** min(failures, 16)), error.retry_after_s)
            self._deliver(None)
        else:
            self._seen = _Seen(snapshot, self._monotonic() - begin)
            self._keep(snapshot, seen.snapshot)
            self._deliver(snapshot)
        return max(0.0, wait_s - (self._monotonic() - begin))

    def status(self) -> SchedulerNow:
        """The poller as it is now."""
        seen, now_ns = self._seen, self._clock_ns()
        snapshot = seen.snapshot
        if snapshot is None:
            return SchedulerNow(self._source.name, failures=seen.failures, error=seen.error)
        age_ns = now_ns - snapshot.taken_ns
        return SchedulerNow(
            scheduler=self._source.name,
            cluster=snapshot.cluster,
            version=snapshot.version,
            taken_ns=snapshot.taken_ns,
            age_s=age_ns / SECOND_NS,
            stale=age_ns > self.stale_after_ns,
            failures=seen.failures,
            error=seen.error,
            read_s=seen.read_s,
            jobs=sum(job.state != "pending" for job in snapshot.jobs),
            waiting=sum(job.tasks for job in snapshot.jobs if job.state == "pending"),
            nodes=len(snapshot.nodes),
            problems=snapshot.problems,
        )

    def _keep(self, snapshot: Snapshot, before: Snapshot | None) -> None:
        """On a full disk the answer still holds; only a restart would not know it."""
        if self._file is None:
            return
        over = self._just_over(snapshot, before)
        draft = self._file.with_suffix(".draft")
        try:
            draft.write_bytes(_snapshots().dump_json(replace(snapshot, ended=over)))
            draft.replace(self._file)
        except OSError as error:
            log.warning("%s: the scheduler's word cannot be kept: %s", self._file, error.strerror)

    def _just_over(self, now: Snapshot, before: Snapshot | None) -> dict[str, Job]:
        here = {job.id for job in now.jobs}
        for job in before.jobs if before else ():
            if job.id not in here and job.state != "pending":
                self._over[job.id] = (now.taken_ns, job)
        self._over = {
            job: (since_ns, was)
            for job, (since_ns, was) in self._over.items()
            if job not in here and now.taken_ns - since_ns < JUST_OVER_NS
        }
        return {job: was for job, (_, was) in self._over.items()}

    def _run(self) -> None:
        while True:
            try:
                wait_s = self.look()
            except Exception:  # a thread that dies would leave a snapshot that never grows old visibly
                log.exception("%s: the poller failed", self._source.name)
                wait_s = MOST_WAIT_S
            if self._stop.wait(wait_s):
                return


@cache
def _snapshots() -> TypeAdapter[Snapshot]:
    return TypeAdapter(Snapshot)
