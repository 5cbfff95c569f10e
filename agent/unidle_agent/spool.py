"""Batches on disk until the collector has acknowledged them.

A folder of append-only segment files (`segment.py`). Each append is synced, so a record survives
`kill -9`, and a power cut as far as the disk keeps its word; a torn end is cut off at the next start. The
newest segment always stays, also when everything in it is acknowledged: its name and records say where
the sequence goes on.

Bounds are in bytes and in age; what exceeds them is dropped oldest first and counted. Where the disk
refuses (full, read-only, not ours) records wait in memory, in the same order, until it takes them.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import logging
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from pathlib import Path

from unidle_agent.errors import UnidleError
from unidle_agent.segment import MAGIC, Record, Segment, framed, records, scan, sync_folder, write_all

log = logging.getLogger("unidle.agent")

MEMORY_BYTES = 16 * 1024 * 1024
"""Most that waits in memory while the disk refuses: hours of batches of 8 GPUs."""
REJECTED_BYTES = 4 * 1024 * 1024
SEGMENTS = 16
"""Into so many segments the bytes bound is divided: the step in which old records are dropped."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Spool:
    """The queue in `folder`, at most `max_bytes` on disk and `max_age_s` old.

    Any thread may call any method. Raises UnidleError where another process holds the folder.
    """

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        max_age_s: float,
        now_ns: Callable[[], int] = time.time_ns,
        boot_id_file: Path = BOOT_ID,
    ) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._now_ns = now_ns
        self._lock = threading.RLock()
        self._segments: deque[Segment] = deque()
        self._memory: deque[Record] = deque()
        self._memory_bytes = 0
        self._file: int | None = None
        self._acked_file: int | None = None
        self._guard: int | None = None
        self._cursor = (0, len(MAGIC))
        """First sequence of the segment that is being read, and the offset in it."""
        self._acked = 0
        self._last_seq = 0
        self.dropped = 0
        """Records lost to a bound, or to damage on the disk, since the start."""
        self.rejected = 0
        """Records set aside because the collector calls them bad, since the start."""
        self.problem = ""
        """Why the disk does not take records now; empty when it does."""
        self.boot = f"{_boot_id(boot_id_file)}.{uuid.uuid4().hex[:8]}"
        """Boot of the machine and generation of this spool, a new one at every start: a sequence is never
        used twice within it, also after batches were sent from memory that no disk remembers."""
        self._open()

    @property
    def next_seq(self) -> int:
        """The sequence that the next appended payload gets."""
        return self._last_seq + 1

    # The next two take a copy instead of the lock: a disk that is slow to sync must not stall /metrics.

    @property
    def size_bytes(self) -> int:
        """Bytes on disk and waiting in memory."""
        return sum(segment.size_bytes for segment in tuple(self._segments)) + self._memory_bytes

    @property
    def pending(self) -> int:
        """Records that are not acknowledged (an upper bound where the disk was damaged)."""
        on_disk = sum(
            max(0, segment.last_seq - max(self._acked, segment.first_seq - 1))
            for segment in tuple(self._segments)
        )
        return on_disk + len(self._memory)

    def append(self, payload: bytes) -> int:
        """Keep `payload`; returns its sequence once it is synced, or in memory where the disk refuses."""
        with self._lock:
            record = Record(self.next_seq, self._now_ns(), payload)
            self._last_seq = record.seq
            self._memory.append(record)
            self._memory_bytes += record.size_bytes
            self._flush()
            self._hold_bounds()
            return record.seq

    def peek(self) -> Record | None:
        """The oldest record that is neither acknowledged nor too old; None when there is none."""
        with self._lock:
            self._hold_bounds()
            while (record := self._next_on_disk()) is not None:
                if record.seq <= self._acked:
                    self._advance(record)
                elif self._too_old(record.written_ns):
                    self.dropped += 1
                    self._acked = record.seq
                    self._advance(record)
                else:
                    return record
            return self._memory[0] if self._memory else None

    def ack(self, seq: int) -> None:
        """Every record up to `seq` is with the collector."""
        with self._lock:
            self._acked = max(self._acked, min(seq, self._last_seq))
            while self._memory and self._memory[0].seq <= self._acked:
                self._memory_bytes -= self._memory.popleft().size_bytes
            while len(self._segments) > 1 and self._segments[0].last_seq <= self._acked:
                self._remove(self._segments.popleft())
            self._write_acked()

    def set_aside(self, record: Record) -> None:
        """Take a record that the collector calls bad out of the queue, into the file `rejected`."""
        with self._lock:
            self.rejected += 1
            path = self._folder / "rejected"
            try:
                size = path.stat().st_size if path.exists() else 0
                if size + record.size_bytes <= REJECTED_BYTES:
                    with path.open("ab") as file:
                        file.write(framed(record))
            except OSError as error:
                self._refused(error)
            self.ack(record.seq)

    def close(self) -> None:
        """Let go of the files; what is still in memory is tried on the disk once more."""
        with self._lock:
            self._flush()
            self.dropped += len(self._memory)
            for file in (self._file, self._acked_file, self._guard):
                if file is not None:
                    os.close(file)
            self._file = self._acked_file = self._guard = None

    # -- at the start

    def _open(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._guard = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._recover()
        except BlockingIOError as error:
            self.close()
            raise UnidleError(
                f"{self._folder}: another agent uses this folder; stop it, or give this one its own "
                "with --state-dir"
            ) from error
        except OSError as error:
            self._refused(error)

    def _recover(self) -> None:
        for path in sorted(path for path in self._folder.glob("*.seg") if path.stem.isdecimal()):
            self._segments.append(scan(path))
        self._acked = _number(self._folder / "acked")
        if self._segments:
            self._last_seq = max(self._segments[-1].last_seq, self._acked)
            self._cursor = (self._segments[0].first_seq, len(MAGIC))
        for before, after in itertools.pairwise(self._segments):
            self.dropped += max(0, after.first_seq - max(before.last_seq, self._acked) - 1)

    # -- writing

    def _flush(self) -> None:
        """Write what waits in memory, oldest first, until the disk refuses."""
        while self._memory:
            record = self._memory[0]
            try:
                self._write(record)
            except OSError as error:
                self._refused(error)
                break
            self._memory.popleft()
            self._memory_bytes -= record.size_bytes
            self._accepted()
        while self._memory_bytes > MEMORY_BYTES:
            lost = self._memory.popleft()
            self._memory_bytes -= lost.size_bytes
            self.dropped += 1

    def _write(self, record: Record) -> None:
        if self._guard is None:
            raise OSError("its folder could not be opened at the start")
        current = self._segments[-1] if self._segments else None
        full = current is not None and current.size_bytes >= max(4096, self._max_bytes // SEGMENTS)
        if current is None or full:
            current = self._new_segment(record.seq)
        if self._file is None:
            self._file = os.open(current.path, os.O_WRONLY | os.O_CLOEXEC)
        data = framed(record)
        try:
            os.lseek(self._file, current.size_bytes, os.SEEK_SET)
            write_all(self._file, data)
            os.fdatasync(self._file)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, current.size_bytes)
            raise
        current.size_bytes += len(data)
        current.last_seq, current.newest_ns = record.seq, record.written_ns

    def _new_segment(self, first_seq: int) -> Segment:
        path = self._folder / f"{first_seq:020}.seg"
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            write_all(file, MAGIC)
            os.fsync(file)
            sync_folder(self._folder)
        except OSError:
            os.close(file)
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        if self._file is not None:
            os.close(self._file)
        self._file = file
        segment = Segment(path, first_seq, first_seq - 1, len(MAGIC), self._now_ns())
        self._segments.append(segment)
        return segment

    def _write_acked(self) -> None:
        """Not synced: an older number after a crash sends some batches twice, which the collector knows.

        Always as many digits, over those of before: one write, which is there whole or not at all.
        """
        if self._guard is None:
            return
        try:
            if self._acked_file is None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
                self._acked_file = os.open(self._folder / "acked", flags, 0o600)
            os.pwrite(self._acked_file, b"%020d" % self._acked, 0)
        except OSError as error:
            self._refused(error)

    def _refused(self, error: OSError) -> None:
        if not self.problem:
            log.warning("spool %s: %s; batches wait in memory", self._folder, error)
        self.problem = f"{self._folder} takes no records ({error}): batches wait in memory"

    def _accepted(self) -> None:
        if self.problem:
            log.info("spool %s takes records again", self._folder)
        self.problem = ""

    # -- reading

    def _next_on_disk(self) -> Record | None:
        for segment in self._segments:
            first, offset = self._cursor
            if segment.first_seq < first:
                continue
            if segment.first_seq > first:
                offset = len(MAGIC)
            self._cursor = (segment.first_seq, offset)
            if offset < segment.size_bytes:
                found = next(records(segment.path, offset), None)
                if found is not None:
                    return found[0]
                self._damaged(segment)
        return None

    def _damaged(self, segment: Segment) -> None:
        """Skip the rest of a segment that can no longer be read."""
        lost = max(0, segment.last_seq - max(self._acked, segment.first_seq - 1))
        log.warning("%s: unreadable from byte %d: %d batches are lost", segment.path, self._cursor[1], lost)
        self.dropped += lost
        self._acked = max(self._acked, segment.last_seq)
        self._cursor = (segment.first_seq, segment.size_bytes)

    def _advance(self, record: Record) -> None:
        first, offset = self._cursor
        self._cursor = (first, offset + record.size_bytes)

    # -- bounds

    def _too_old(self, written_ns: int) -> bool:
        return self._now_ns() - written_ns > self._max_age_s * 1e9

    def _hold_bounds(self) -> None:
        """Drop whole segments, oldest first, until the folder is within bytes and age."""
        while len(self._segments) > 1 and (
            sum(segment.size_bytes for segment in self._segments) > self._max_bytes
            or self._too_old(self._segments[0].newest_ns)
        ):
            oldest = self._segments.popleft()
            self.dropped += max(0, oldest.last_seq - max(self._acked, oldest.first_seq - 1))
            self._acked = max(self._acked, oldest.last_seq)
            self._remove(oldest)

    def _remove(self, segment: Segment) -> None:
        try:
            segment.path.unlink(missing_ok=True)
        except OSError as error:
            self._refused(error)


def _number(path: Path) -> int:
    try:
        return int(path.read_text("ascii"))
    except (OSError, ValueError):
        return 0


def _boot_id(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except OSError:
        return "unknown-boot"
