"""The kernel log, from /dev/kmsg: one record per read, none waited for.

Reading begins at the end of the log: what was written before is not told as new. A flood costs bounded
work per look; what is left waits in the kernel's own ring. Where that runs over before it is read, the
kernel says so (EPIPE) and goes on at the oldest record that is left: the numbers of the records tell how many
were lost. A character that is no plain text comes escaped (\\x0a), so a record is one line, whoever wrote it;
only root and the kernel can. Record format: Documentation/ABI/testing/dev-kmsg of Linux.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress

RECORD_BYTES = 8192
"""Longest record that the kernel gives out (CONSOLE_EXT_LOG_MAX)."""
MOST_RECORDS = 2000
"""Most records of one look."""
MOST_BYTES = 262_144
"""Most bytes of one look: a driver that dumps its state may write records of 1 kB."""

_ESCAPE = re.compile(rb"\\x([0-9a-f]{2})")


class KernelLog:
    """An open kernel log; raises OSError where there is none, or this process may not read it."""

    def __init__(self, path: str) -> None:
        self.lost = 0
        """Records that were overwritten before they were read."""
        self.full = 0
        """Looks that ended at a bound, with records left for the next."""
        self._last = b""
        """The newest record that was read."""
        self._gap = False
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with suppress(OSError):  # a pipe, as tests have, has no end to go to
            os.lseek(self._fd, 0, os.SEEK_END)

    def messages(self, mark: re.Pattern[bytes]) -> Iterator[str]:
        """Every new message with `mark` in it, oldest first; raises OSError when the log is gone."""
        size = 0
        for _ in range(MOST_RECORDS):
            try:
                record = os.read(self._fd, RECORD_BYTES)
            except BlockingIOError:
                return
            except BrokenPipeError:
                self._gap = True
                continue
            if not record:
                return
            if self._gap:
                self.lost += max(0, (_number(record) or 0) - (_number(self._last) or 0) - 1)
                self._gap = False
            self._last = record
            if mark.search(record):
                yield from _texts(record)
            size += len(record)
            if size >= MOST_BYTES:
                break
        self.full += 1

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)


def _number(record: bytes) -> int | None:
    """The sequence number, which is the second value before the semicolon; None in a garbled record."""
    parts = record.partition(b";")[0].split(b",")
    return int(parts[1]) if len(parts) > 1 and parts[1].isdigit() and len(parts[1]) < 20 else None


def _texts(record: bytes) -> Iterator[str]:
    """The message; lines that begin with a blank are what the kernel adds (device, subsystem)."""
    for line in record.split(b"\n"):
        head, mark, message = line.partition(b";")
        if mark and head[:1].isdigit():
            plain = _ESCAPE.sub(lambda found: bytes([int(found[1], 16)]), message)
            yield plain.decode("utf-8", "replace")
