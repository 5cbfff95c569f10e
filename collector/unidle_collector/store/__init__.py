"""The collector's embedded store: a durable log of what was accepted, Parquet segments, a state database.

    store = Store(directory)
    for received_ns, clock_ns, batch in store.replay(): ...   # what the last run left, into the live window
    store.append(data, received_ns, clock_ns, batch)   # each accepted batch, from any thread
    store.sync()                                    # then it may be acknowledged; StoreFull: answer 503
    store.state.remember([(node, boot, seq)])       # and is known when it comes again
    store.upkeep(now_ns)                            # every few seconds, from a background thread
    store.series(node, gpu, field, start_ns, end_ns, step_s)
    store.fleet(field, start_ns, end_ns, step_s)
    store.job_quantile(job, field, 0.95)

Rows are in exactly one place: the log, then a segment, with roll-ups of 10 s, 1 min and 1 h and histograms
by job beside it. Queries see segments only; what is still in the
log (the newest one or two minutes) is for the collector's live window to answer.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from unidle_agent.errors import WireError
from unidle_agent.fields import BY_NAME
from unidle_agent.wire import Batch, decode
from unidle_collector.store.compaction import DAY_NS, HOUR_NS, compact
from unidle_collector.store.conversion import convert
from unidle_collector.store.directory import size, take
from unidle_collector.store.errors import StoreError, StoreFull
from unidle_collector.store.histograms import Histograms, Quantile, quantile
from unidle_collector.store.known_facts import KnownFacts
from unidle_collector.store.log import ROLL_AGE_S, Disk, Log, LogFile, log_files, log_id
from unidle_collector.store.reader import Reader
from unidle_collector.store.segments import TEMPORARY, Segments, problem, segment_name
from unidle_collector.store.state import State, open_state
from unidle_collector.store.steps import Steps

__all__ = [
    "KeepRollups",
    "Quantile",
    "State",
    "Steps",
    "Store",
    "StoreError",
    "StoreFull",
    "open_state",
]


@dataclass(frozen=True, slots=True)
class KeepRollups:
    """How long roll-ups are kept; a coarser one never for less time than a finer one."""

    days_10s: float = 30.0
    days_1m: float = 400.0
    days_1h: float = 1500.0
    """The same for the histograms by job."""
    most_bytes: int = 100 * 1024**3
    """Of all of them together; over it, the oldest of 10 s go first, then of 1 min, then of 1 h."""


class Store:
    """Everything the collector keeps, in `directory`, which belongs to one collector at a time.

    A log file is closed at `roll_bytes` or `roll_age_s`. Rows are kept for `keep_days` and up to
    `keep_bytes`, the oldest go first; roll-ups as `keep_rollups` says; accounts and resolved incidents
    for `keep_state_days`.
    Raises StoreError when another collector holds the directory or it cannot be used.
    """

    def __init__(
        self,
        directory: Path,
        *,
        roll_bytes: int = 64 * 1024 * 1024,
        roll_age_s: float = ROLL_AGE_S,
        keep_days: float = 30.0,
        keep_bytes: int = 100 * 1024**3,
        keep_rollups: KeepRollups | None = None,
        keep_state_days: float = 400.0,
        disk: Disk | None = None,
        links: Path | None = None,
    ) -> None:
        """`links` is a directory of this disk in which every log file gets a second name; see Log."""
        self.directory = directory
        self._keep_days, self._keep_bytes = keep_days, keep_bytes
        self._keep_rollups = keep_rollups or KeepRollups()
        self.keep_state_ns = int(keep_state_days * DAY_NS)
        """How long accounts and resolved incidents are kept."""
        self.give_way: Callable[[], None] = lambda: None
        """Called by `upkeep` every few ms; may block for a moment while there is something more urgent."""
        self._upkeep_lock = threading.Lock()
        self._forgot_hour = -1
        self._counters = dict.fromkeys(
            ("log_torn_bytes", "log_records_damaged", "rows_stored", "segments_merged",
             "segments_removed", "segments_removed_bytes", "state_rows_removed"), 0
        )  # fmt: skip
        self._log_directory = directory / "log"
        self._held = take(directory, links)
        try:
            self.segments = Segments(directory / "segments")
            self.segments.clean()
            self.state = open_state(directory / "state.sqlite")
            for path in log_files(self._log_directory):
                if self.segments.converted(log_id(path)):
                    path.unlink()
            self._left = log_files(self._log_directory)
            self._log = Log(
                self._log_directory,
                after_id=self.segments.last_id(),
                roll_bytes=roll_bytes,
                roll_age_s=roll_age_s,
                disk=disk,
                links=links,
            )
            self._reader = Reader(self.segments)
            self._facts = KnownFacts(self.state)
            self._histograms: Histograms | None = None
            """None: what the newest segments of rows hold has to be counted first."""
        except BaseException:
            os.close(self._held)
            raise

    def replay(self) -> Iterator[tuple[int, int | None, Batch]]:
        """(time of receipt, sender's clock then, batch) of all that the last run left; go through it first.

        They count as seen from then on. Torn or damaged records are skipped, and counted when the file
        becomes a segment.
        """
        for path in self._left:
            for record in LogFile(path):
                try:
                    batch = decode(record.data)
                except WireError:
                    continue
                self.state.remember([(batch.node, batch.boot, batch.seq)])
                yield record.received_ns, record.clock_ns, batch

    def append(
        self, data: bytes, received_ns: int, clock_ns: int | None = None, batch: Batch | None = None
    ) -> int:
        """Take the bytes of an accepted batch for the next sync; returns its position; see Log.append.

        With what they decode to, nothing is decoded again when the log becomes a segment.
        """
        return self._log.append(data, received_ns, clock_ns, batch)

    def sync(self) -> int:
        """Make all that was appended durable, with one fdatasync; returns the last position.

        Raises StoreFull: then none of it is stored, and it has to be sent again.
        """
        return self._log.sync()

    def closed(self) -> list[Path]:
        """Log files that wait to become segments: what `replay` would give after a crash, but the newest."""
        return self._log.closed()

    def upkeep(self, now_ns: int, closed: Collection[Path] | None = None) -> None:
        """Turn closed logs into segments, merge those of past hours, remove what is too old or too much.

        With `closed`, only those log files become segments: of them the caller needs no replay any more.
        For a background thread, every few seconds. Raises StoreFull when the disk takes no more;
        nothing is lost then, and the next call goes on.
        """
        with self._upkeep_lock:
            self._retain(now_ns)
            between = self._convert_closed if closed is None else self.give_way
            try:
                if closed is None:
                    self._log.roll(now_ns)
                self._convert_closed(closed)
                if self._counted().last // HOUR_NS < now_ns // HOUR_NS:
                    self._publish_histograms()
                self._count(segments_merged=compact(self.segments, now_ns, between))
            except OSError as error:
                raise StoreFull(
                    f"{self.directory}: expected to write segments, came {error}: free space there or lower "
                    "the store's limits; the rows stay in the log until then"
                ) from error
            except pa.ArrowException as error:
                raise StoreError(f"{self.directory}: expected to write segments, came {error}") from error

    def convert_all(self, now_ns: int) -> None:
        """As `upkeep`, the log file that is written included: for who ends and wants all of it queryable."""
        self._log.roll(now_ns, due=True)
        self.upkeep(now_ns)

    def durable(self) -> tuple[int, int]:
        """(id of the log file that is written now, 0 when none is; its bytes that are on disk)."""
        return self._log.durable()

    @property
    def log_directory(self) -> Path:
        """Where the log files are."""
        return self._log_directory

    def roll(self, now_ns: int) -> bool:
        """Close the log file that is written, if it is due; True when it was."""
        return self._log.roll(now_ns)

    def series(
        self, node: str, gpu: str, field: str, start_ns: int, end_ns: int, step_s: float
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """One field over time from the segments, at most 1,500 points; see Reader.series."""
        return self._reader.series(node, gpu, field, start_ns, end_ns, step_s)

    def steps(self, node: str, gpu: str, field: str, start_ns: int, end_ns: int, step_s: float) -> Steps:
        """As `series`, with extremes and numbers of rows; see Reader.steps."""
        return self._reader.steps(node, gpu, field, start_ns, end_ns, step_s)

    def fleet(
        self, field: str, start_ns: int, end_ns: int, step_s: float, *, simulated: bool = False
    ) -> Steps:
        """One field of all GPUs together, by a minute or more; see Reader.fleet."""
        return self._reader.fleet(field, start_ns, end_ns, step_s, simulated=simulated)

    def job_quantile(self, job: str, field: str, share: float) -> Quantile | None:
        """A quantile of a gauge over a job's life, up to the newest segment; see Reader.job_quantile."""
        with self._upkeep_lock:  # what was counted in memory goes to a segment under it
            counts = self._reader.job_counts(job, field)
            for number, count in self._counted().cells(job, field):
                counts[number] = counts.get(number, 0) + count
        return quantile(BY_NAME[field], counts, share)

    def export(self, path: Path, start_ns: int, end_ns: int) -> int:
        """Write rows to a .parquet or .csv file for `unidle diagnose`; how many; see Reader.export."""
        return self._reader.export(path, start_ns, end_ns)

    def sizes(self) -> dict[str, int]:
        """Bytes on disk by what they hold: `log`, `segments` (rows), `rollups` (histograms too), `state`,
        `accounts`."""
        present = self.segments.counting()
        return {
            "log": size(self._log_directory, "*"),
            "segments": sum(s.size_bytes for s in present if s.level == "raw"),
            "rollups": sum(s.size_bytes for s in present if s.level != "raw"),
            "state": size(self.directory, "state.sqlite*"),
            "accounts": size(self.directory / "accounts", "*") + size(self.directory / "accounts", "*/*"),
        }

    def counters(self) -> dict[str, int]:
        """What happened since the start, by name; everything that was dropped is here."""
        return {**self._counters, "segments_damaged": self.segments.damaged}

    def verify(self) -> tuple[str, ...]:
        """What is wrong with the files, in words; empty when nothing is. Reads all logs and all footers."""
        problems = [text for segment in self.segments.counting() if (text := problem(segment))]
        for path in self._log.closed():
            file = LogFile(path)
            for _ in file:
                pass
            if file.torn_bytes or file.damaged:
                problems.append(
                    f"{path}: {file.damaged} damaged records, {file.torn_bytes} bytes torn off its end"
                )
        return (*problems, *self.state.verify())

    def close(self) -> None:
        """Sync what is pending and let go of the directory; what is in the log is replayed next time."""
        try:
            self._log.close()
        finally:
            with self._upkeep_lock:
                with contextlib.suppress(OSError, pa.ArrowException):  # else the next run counts again
                    self._publish_histograms()
                self._reader.close()
                self.state.close()
                os.close(self._held)

    def _convert_closed(self, only: Collection[Path] | None = None) -> None:
        """Turn closed logs into segments, `only` those if given, the oldest first.

        The first that fails ends it, and with it the upkeep: a log that is not converted must never come
        to lie between the ids of a merged segment, which would count as holding it.
        """
        for path in self._log.closed():
            if only is not None and path not in only:
                return
            number = log_id(path)
            counted = self._counted_until(number)
            fresh = Histograms()
            draft = convert(
                path,
                self.segments.directory,
                self._facts.of,
                held=self._log.held(path),
                histograms=fresh,
                give_way=self.give_way,
            )
            self.state.acknowledge(draft.sequences, number)
            self._facts.save(draft.facts, number)
            self.segments.publish(draft.files, [path])
            self._log.let_go(path)
            counted.add(fresh)
            counted.covered(number)
            self._count(
                log_torn_bytes=draft.torn_bytes, log_records_damaged=draft.damaged, rows_stored=draft.rows
            )

    def _counted_until(self, number: int) -> Histograms:
        """The histograms that log `number` goes into; those of an hour before are published first."""
        counted = self._counted()
        if counted.last and counted.last // HOUR_NS < number // HOUR_NS:
            self._publish_histograms()
            self._histograms = counted = Histograms()
        return counted

    def _counted(self) -> Histograms:
        if self._histograms is None:
            self._histograms = self._count_again()
        return self._histograms

    def _count_again(self) -> Histograms:
        """The histograms of the rows that no segment of kind `jobs` counts: those of the last run."""
        present = self.segments.counting()
        counted = max((s.last for s in present if s.kind == "jobs"), default=0)
        histograms = Histograms()
        for segment in present:
            if segment.kind == "gpu" and segment.first > counted:
                try:
                    histograms.count_segment(segment.path)
                except (pa.ArrowException, OSError):
                    if not self.segments.set_aside_damaged([segment], thorough=True):
                        raise
                histograms.covered(segment.first)
                histograms.covered(segment.last)
        return histograms

    def _publish_histograms(self) -> None:
        """Write what was counted as a segment and begin anew."""
        counted = self._histograms
        if counted is None or not counted.last:
            return
        name = segment_name("jobs", counted.first, counted.last, counted.first, counted.last)
        temporary = self.segments.directory / (name + TEMPORARY)
        self.segments.publish([(counted.write(temporary), name)])
        self._histograms = Histograms()

    def _retain(self, now_ns: int) -> None:
        keep = self._keep_rollups
        days = self._keep_days
        removed = [self.segments.retain(now_ns - int(days * DAY_NS), self._keep_bytes)]
        for levels, of_level in (
            (("10s",), keep.days_10s), (("1m",), keep.days_1m), (("1h", "jobs"), keep.days_1h)
        ):  # fmt: skip
            days = max(days, of_level)
            removed.append(self.segments.retain(now_ns - int(days * DAY_NS), 2**63, levels))
        removed.append(self.segments.retain(0, keep.most_bytes, ("10s", "1m", "1h", "jobs")))
        self._count(
            segments_removed=sum(one.files for one in removed),
            segments_removed_bytes=sum(one.size_bytes for one in removed),
        )
        if now_ns // HOUR_NS != self._forgot_hour:
            self._count(state_rows_removed=self.state.forget(now_ns - self.keep_state_ns))
            self._forgot_hour = now_ns // HOUR_NS

    def _count(self, **counts: int) -> None:
        for name, count in counts.items():
            self._counters[name] += count
