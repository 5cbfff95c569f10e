"""Requests that were acknowledged and are not rows on disk yet: what a collector that is killed takes up.

A few short files, each written and synced before the answer, and deleted once everything in it is in the
store. What was handed over just before a crash may be handed over again: the same values at the same
instants, which the accounts count as late.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from unidle_agent.segment import MAGIC, Record, framed, records, sync_folder, write_all

TURN_S = 5.0
"""A file takes requests for this long."""


class Journal:
    """Bodies of requests in `folder`, in the order in which they came; not for several threads at once.

    Every method may raise OSError.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._left = sorted(folder.glob("*.requests"), key=lambda path: int(path.stem))
        self._number = int(self._left[-1].stem) + 1 if self._left else 0
        self._closed: list[tuple[Path, float]] = []
        """(File, time of its last request), oldest first."""
        self._file: int | None = None
        self._begun_s = self._last_s = 0.0

    def replay(self, now_s: float) -> Iterator[bytes]:
        """What the last run left; it counts as written now. A torn end is left out."""
        for path in self._left:
            for record, _ in records(path, len(MAGIC)):
                yield record.payload
            self._closed.append((path, now_s))
        self._left = []

    def append(self, body: bytes, now_s: float) -> None:
        """Keep a body; it is on disk when this returns."""
        if self._file is not None and now_s - self._begun_s >= TURN_S:
            self._turn()
        if self._file is None:
            path = self._path()
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
            self._begun_s = now_s
        self._last_s = now_s
        try:
            if os.fstat(self._file).st_size == 0:
                write_all(self._file, MAGIC)
                sync_folder(self._folder)
            write_all(self._file, framed(Record(self._number, 0, body)))
            os.fdatasync(self._file)
        except OSError:
            self._turn()  # what comes after a torn record would not be read
            raise

    def forget(self, until_s: float) -> None:
        """Delete what was written up to `until_s`: it is in the store."""
        if self._file is not None and self._last_s <= until_s:
            self._turn()
        while self._closed and self._closed[0][1] <= until_s:
            self._closed[0][0].unlink(missing_ok=True)
            self._closed.pop(0)

    def _path(self) -> Path:
        return self._folder / f"{self._number:012}.requests"

    def _turn(self) -> None:
        assert self._file is not None
        os.close(self._file)
        self._file = None
        self._closed.append((self._path(), self._last_s))
        self._number += 1
