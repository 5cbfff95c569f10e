"""One segment file of the spool: how records are laid out in it, written whole and read back.

A segment is a magic and then records: length, CRC32, sequence, time of writing, payload. Numbers are
little-endian. Reading stops at the first record that is not whole.
"""

from __future__ import annotations

import logging
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger("unidle.agent")

MAGIC = b"UNIDLES1"
HEADER = struct.Struct("<IIQq")
"""Payload length, CRC32 of the rest of the header and the payload, sequence, time of writing in ns."""
CHECKED = struct.Struct("<Qq")


@dataclass(frozen=True, slots=True)
class Record:
    """One payload that waits."""

    seq: int
    written_ns: int
    payload: bytes

    @property
    def size_bytes(self) -> int:
        return HEADER.size + len(self.payload)


@dataclass(slots=True)
class Segment:
    """One file: the sequences in it, and how far it is written."""

    path: Path
    first_seq: int
    last_seq: int
    """The last one in it, `first_seq - 1` where it is empty."""
    size_bytes: int
    newest_ns: int


def framed(record: Record) -> bytes:
    """The bytes of a record in its file."""
    checked = CHECKED.pack(record.seq, record.written_ns)
    crc = zlib.crc32(record.payload, zlib.crc32(checked))
    return HEADER.pack(len(record.payload), crc, record.seq, record.written_ns) + record.payload


def records(path: Path, offset: int) -> Iterator[tuple[Record, int]]:
    """Whole records from `offset` on, each with the offset of its end; stops at the first that is not."""
    try:
        file = path.open("rb")
    except OSError as error:
        log.warning("%s cannot be read: %s", path, error)
        return
    with file:
        if file.read(len(MAGIC)) != MAGIC:
            return
        file.seek(offset)
        while len(header := file.read(HEADER.size)) == HEADER.size:
            length, crc, seq, written_ns = HEADER.unpack(header)
            if length > os.fstat(file.fileno()).st_size:
                return
            payload = file.read(length)
            if zlib.crc32(payload, zlib.crc32(header[8:])) != crc or len(payload) != length:
                return
            offset += HEADER.size + length
            yield Record(seq, written_ns, payload), offset


def scan(path: Path) -> Segment:
    """Read a segment to its last whole record and cut off what is torn behind it."""
    first = int(path.stem)
    segment = Segment(path, first, first - 1, len(MAGIC), 0)
    with path.open("rb") as file:
        whole = file.read(len(MAGIC)) == MAGIC
    if not whole:
        path.write_bytes(MAGIC)
    for record, end in records(path, len(MAGIC)):
        segment.last_seq, segment.size_bytes, segment.newest_ns = record.seq, end, record.written_ns
    torn = path.stat().st_size - segment.size_bytes
    if torn > 0:
        log.info("%s: %d bytes of a record that was never finished are cut off", path, torn)
        os.truncate(path, segment.size_bytes)
    return segment


def write_all(file: int, data: bytes) -> None:
    """Write all of `data` to a descriptor: one call may take only part of it."""
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable: syncing a new file alone does not."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
