"""The durable log of accepted batches: the bytes of the wire, exactly as they came.

A file is MAGIC and then records: length, CRC-32 (over everything else), time of receipt, the sender's
clock at that time, bytes. Files of before (OLD_MAGIC) know no sender's clock; they are read, not written.
`append` only remembers; `sync` writes everything appended since, in one write and one fdatasync (group
commit), and only then may a batch be acknowledged. A sync that fails leaves nothing behind: its records
are cut off the file again, so that a batch which was refused and is sent again is not stored twice.

What was decoded already may be handed along: it is held in memory, up to a bound, until its file has become
a segment, so that nothing is decoded twice. After a restart the file itself is decoded.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import threading
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from unidle_agent.wire import Batch, Columns
from unidle_collector.store.errors import StoreError, StoreFull

MAGIC = b"unidlog2"
HEADER = struct.Struct("<IIqq")
OLD_MAGIC = b"unidlog1"
OLD_HEADER = struct.Struct("<IIq")
NO_CLOCK = -(2**63)
"""Stands in a header for the clock of a sender that did not tell it."""
SUFFIX = ".log"
BUCKET_NS = 10_000_000_000
COME_NS = 2_500_000_000
"""Agents close their batches at multiples of 5 s and send them within the second after: by then all rows of a
bucket of 10 s have come, ..."""
NEARLY_FULL, NEARLY_OLD = 0.75, 0.95
"""... and a file that is nearly due is closed there: no bucket of its roll-ups is cut in two."""
ROLL_AGE_S = 120.0
"""A file that is not full by then is closed: what its rows become costs less the more of them there are, and
until then only the live window shows them."""


class Disk(Protocol):
    """The three calls by which a log reaches its disk; each raises OSError."""

    def write(self, fd: int, data: memoryview) -> int: ...
    def sync(self, fd: int) -> None: ...
    def truncate(self, fd: int, size: int) -> None: ...


class OsDisk:
    """The real disk."""

    def write(self, fd: int, data: memoryview) -> int:
        """Append; returns how many bytes went in, which may be fewer than given."""
        return os.write(fd, data)

    def sync(self, fd: int) -> None:
        """Return once the bytes and the size of the file are on the disk."""
        os.fdatasync(fd)

    def truncate(self, fd: int, size: int) -> None:
        """Cut the file to `size` bytes."""
        os.ftruncate(fd, size)


@dataclass(frozen=True, slots=True)
class Record:
    """One accepted batch as it came."""

    received_ns: int
    data: bytes
    clock_ns: int | None = None
    """The sender's clock when it sent; None where it did not say."""


class LogFile:
    """A log file to read: iterate once, then `torn_bytes` and `damaged` say what could not be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.torn_bytes = 0
        """Bytes after the last whole record: a write that the end of the process cut short."""
        self.damaged = 0
        """Whole records whose checksum is wrong; they are skipped."""

    def __iter__(self) -> Iterator[Record]:
        with self.path.open("rb") as file:
            left = os.fstat(file.fileno()).st_size - len(MAGIC)
            layout = {MAGIC: HEADER, OLD_MAGIC: OLD_HEADER}.get(file.read(len(MAGIC)))
            if layout is None:
                self.torn_bytes = left + len(MAGIC)
                return
            while left > 0:
                length, checksum, *times_ns = layout.unpack(file.read(layout.size).ljust(layout.size, b"\0"))
                if length == 0 or length > left - layout.size:
                    self.torn_bytes = left
                    return
                data = file.read(length)
                left -= layout.size + length
                if _checksum(layout.pack(length, 0, *times_ns), data) == checksum:
                    received_ns, clock_ns = (*times_ns, NO_CLOCK)[:2]
                    yield Record(received_ns, data, None if clock_ns == NO_CLOCK else clock_ns)
                else:
                    self.damaged += 1


def records(path: Path, offset: int = len(MAGIC), end: int | None = None) -> Iterator[tuple[int, Record]]:
    """(offset after it, record) of a log file from `offset` on, up to byte `end`; whole records only."""
    with path.open("rb") as file:
        end = os.fstat(file.fileno()).st_size if end is None else end
        layout = {MAGIC: HEADER, OLD_MAGIC: OLD_HEADER}.get(file.read(len(MAGIC)))
        if layout is None:
            return
        file.seek(offset)
        while end - offset >= layout.size:
            length, checksum, *times_ns = layout.unpack(file.read(layout.size))
            if length == 0 or length > end - offset - layout.size:
                return
            data = file.read(length)
            offset += layout.size + length
            if _checksum(layout.pack(length, 0, *times_ns), data) == checksum:
                received_ns, clock_ns = (*times_ns, NO_CLOCK)[:2]
                yield offset, Record(received_ns, data, None if clock_ns == NO_CLOCK else clock_ns)


class Log:
    """The log files of `directory`; the newest is written, the others wait to become segments.

    Any thread may append. One at a time syncs, and answers for every record appended before it did:
    when it raises, none of those is stored. A file is closed once it is `roll_bytes` long or its first
    record is `roll_age_s` old. Files are named by an id: the time of their first record in ns, made to
    rise always, above `after_id`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        after_id: int = 0,
        roll_bytes: int = 64 * 1024 * 1024,
        roll_age_s: float = ROLL_AGE_S,
        hold_bytes: int = 512 * 1024 * 1024,
        disk: Disk | None = None,
        links: Path | None = None,
    ) -> None:
        """`links` is a directory in which every file gets a second name, for a reader that takes its time."""
        self._directory = directory
        self._links = links
        self._hold_bytes = hold_bytes
        self._held: dict[int, list[Batch] | None] = {}
        """Id of a file -> its batches; None once one of them is missing or there were too many."""
        self._held_bytes: dict[int, int] = {}
        self._roll_bytes = roll_bytes
        self._roll_age_ns = int(roll_age_s * 1e9)
        self._disk = disk or OsDisk()
        self._pending: list[bytes] = []
        self._pending_batches: list[Batch | None] = []
        self._newest_ns = 0
        self._edge = 0
        """Number of the last bucket whose rows have come, all but those that are late."""
        self._appended = 0
        self._pending_lock = threading.Lock()
        self._commit_lock = threading.Lock()
        self._fd = -1
        self._path: Path | None = None
        self._first_ns = 0
        self._size = 0
        self._cut = True
        """False while bytes of a failed sync may still be at the end of the file."""
        self._last_id = max([after_id, *(log_id(path) for path in log_files(directory))])

    def append(
        self, data: bytes, received_ns: int, clock_ns: int | None = None, batch: Batch | None = None
    ) -> int:
        """Take one batch for the next sync; returns its position, counted from 1 in this process.

        `clock_ns` is what the sender's clock showed when it sent, None where it did not say; `batch` is
        what `data` decodes to, where somebody has it.
        """
        if not data:
            raise StoreError("expected the bytes of a batch, came none")
        times_ns = (received_ns, NO_CLOCK if clock_ns is None else clock_ns)
        checksum = _checksum(HEADER.pack(len(data), 0, *times_ns), data)
        header = HEADER.pack(len(data), checksum, *times_ns)
        with self._pending_lock:
            self._pending += (header, data)
            self._pending_batches.append(batch)
            self._newest_ns = max(self._newest_ns, received_ns)
            self._appended += 1
            return self._appended

    def sync(self) -> int:
        """Make everything appended so far durable; returns the position of the last such record.

        Raises StoreFull when the disk takes it not: then none of the records since the sync before is
        stored, and each has to be sent again.
        """
        with self._commit_lock:
            with self._pending_lock:
                data, self._pending = b"".join(self._pending), []
                batches, self._pending_batches = self._pending_batches, []
                last, newest_ns = self._appended, self._newest_ns
            if data:
                try:
                    self._commit(data, newest_ns)
                except OSError as error:
                    self._undo()
                    raise _full(self._directory, error) from error
                self._hold(batches)
            return last

    def durable(self) -> tuple[int, int]:
        """(id of the file that is written now, 0 when none is; its bytes that are on disk)."""
        with self._commit_lock:
            return (self._last_id, self._size) if self._fd >= 0 else (0, 0)

    def held(self, path: Path) -> list[Batch] | None:
        """All batches of a closed file, in order; None when not all of them are in memory."""
        with self._commit_lock:
            return self._held.get(log_id(path))

    def let_go(self, path: Path) -> None:
        """Hold the batches of a file no longer."""
        with self._commit_lock:
            self._held.pop(log_id(path), None)
            self._held_bytes.pop(log_id(path), None)

    def roll(self, now_ns: int, *, due: bool = False) -> bool:
        """Close the file that is written if it is `due`, be it by `now_ns`; True when it was."""
        with self._commit_lock:
            try:
                return self._roll_if_due(now_ns, due=due)
            except OSError as error:
                raise _full(self._directory, error) from error

    def closed(self) -> list[Path]:
        """The files that are not written any more, oldest first."""
        with self._commit_lock:
            return [path for path in log_files(self._directory) if path != self._path]

    def close(self) -> None:
        """Sync what is pending and let go of the file."""
        try:
            self.sync()
        finally:
            with self._commit_lock:
                self._release()

    def _hold(self, batches: list[Batch | None]) -> None:
        held = self._held.setdefault(self._last_id, [])
        if held is None:
            return
        size = sum(_memory(batch) for batch in batches if batch is not None)
        if (
            any(batch is None for batch in batches)
            or sum(self._held_bytes.values()) + size > self._hold_bytes
        ):
            self._held[self._last_id] = None
            self._held_bytes.pop(self._last_id, None)
            return
        held += [batch for batch in batches if batch is not None]
        self._held_bytes[self._last_id] = self._held_bytes.get(self._last_id, 0) + size

    def _commit(self, data: bytes, newest_ns: int) -> None:
        edge = (newest_ns - COME_NS) // BUCKET_NS
        nearly = edge != self._edge and self._is_nearly_due(newest_ns)
        self._roll_if_due(newest_ns - min(BUCKET_NS, self._roll_age_ns // 4), due=nearly)
        self._edge = edge
        if self._fd < 0:
            self._start(newest_ns)
        elif not self._cut:
            self._truncate()
        self._write(data)
        self._disk.sync(self._fd)
        self._size += len(data)

    def _start(self, first_ns: int) -> None:
        self._last_id = max(first_ns, self._last_id + 1)
        path = self._directory / f"{self._last_id:020d}{SUFFIX}"
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o640)
        self._path, self._first_ns, self._size, self._cut = path, first_ns, 0, True
        self._write(MAGIC)
        sync_directory(self._directory)
        if self._links is not None:
            with contextlib.suppress(
                OSError
            ):  # the reader links what it misses; taking batches never fails by it
                os.link(path, self._links / path.name)
        self._size = len(MAGIC)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._disk.write(self._fd, view) :]

    def _undo(self) -> None:
        """Cut off what a failed sync may have written; what was durable before stays."""
        if self._fd < 0:
            return
        if self._size == 0 and self._path:  # a new file that did not come to be; it holds no record
            with contextlib.suppress(OSError):
                self._path.unlink()
            self._release()
            return
        self._cut = False
        with contextlib.suppress(OSError):  # the cut is tried again before anything else happens to the file
            self._truncate()

    def _truncate(self) -> None:
        self._disk.truncate(self._fd, self._size)
        self._cut = True

    def _is_nearly_due(self, now_ns: int) -> bool:
        return (
            self._size >= NEARLY_FULL * self._roll_bytes
            or now_ns - self._first_ns >= NEARLY_OLD * self._roll_age_ns
        )

    def _roll_if_due(self, now_ns: int, *, due: bool = False) -> bool:
        age_ns = abs(now_ns - self._first_ns)  # a clock that was set back must not keep the file open
        due = due or self._size >= self._roll_bytes or age_ns >= self._roll_age_ns
        if self._fd < 0 or not due:
            return False
        if not self._cut:
            self._truncate()
        self._release()
        return True

    def _release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._path = -1, None


def log_files(directory: Path) -> list[Path]:
    """All log files of `directory`, oldest first."""
    return sorted(path for path in directory.glob(f"*{SUFFIX}") if path.stem.isdigit())


def log_id(path: Path) -> int:
    """The id in the name of a log file."""
    return int(path.stem)


def _memory(batch: Batch) -> int:
    """About how many bytes a decoded batch takes."""
    return 2048 + sum(_size(columns) for columns in (batch.columns, batch.host))


def _size(columns: Mapping[str, Any]) -> int:
    if isinstance(columns, Columns):
        return len(columns.data)
    return sum(memoryview(column).nbytes + 96 for column in columns.values())


def sync_directory(directory: Path) -> None:
    """Make names that were created, changed or removed in `directory` durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _checksum(blank_header: bytes, data: bytes) -> int:
    """Over a header whose checksum is 0, and the bytes."""
    return zlib.crc32(data, zlib.crc32(blank_header))


def _full(directory: Path, error: OSError) -> StoreFull:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        advice = "free space there or lower the store's limits"
    else:
        advice = "check the disk"
    return StoreFull(
        f"{directory}: expected to write the log, came {error.strerror or error}: {advice}; "
        "pushes are answered 503 until it works again, agents keep their batches"
    )
