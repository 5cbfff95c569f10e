"""What waits to be written to the series store: the collector's own log files, under a second name.

The log is the durable queue already. Each of its files gets a hard link in `directory` when it is begun, so
that it outlives its becoming a segment until everything in it is written elsewhere; nothing is copied.
`position.json` says how far that is. After a restart what was written last may be written again.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from unidle_collector.store.log import MAGIC, log_files, log_id


@dataclass(frozen=True, slots=True)
class Position:
    """Everything before byte `offset` of log file `file` is written, and every file before that one."""

    file: int = 0
    offset: int = len(MAGIC)


class LogQueue:
    """The files of `directory`, oldest first; for one thread.

    `logs` is where the collector writes its log, `durable` gives the id of the file that it writes now
    (0: none) and how many bytes of that are on disk.
    """

    def __init__(self, directory: Path, logs: Path, durable: Callable[[], tuple[int, int]]) -> None:
        self._directory = directory
        self._logs = logs
        self._durable = durable
        self._kept = directory / "position.json"
        directory.mkdir(parents=True, exist_ok=True)
        self.position = self._read()

    def next(self) -> tuple[Path, int, bool] | None:
        """(file, bytes of it that may be read, may it still grow) of the oldest that is not done."""
        writing, size = self._durable()
        self._link()
        for path in log_files(self._directory):
            number = log_id(path)
            if number < self.position.file:
                path.unlink()  # done; a restart came before it was removed
                continue
            if number > self.position.file:
                self.position = Position(number)
            growing = number == writing
            return path, size if growing else path.stat().st_size, growing
        return None

    def reached(self, offset: int) -> None:
        """Remember that everything before `offset` of the present file is written."""
        self._keep(Position(self.position.file, offset))

    def done(self, path: Path) -> None:
        """Let go of a file that does not grow any more: it is written to its end, or given up."""
        self._keep(Position(max(self.position.file, log_id(path) + 1)))
        path.unlink(missing_ok=True)

    def drop_over(self, most_bytes: int) -> int:
        """Remove the oldest files while all take more than `most_bytes`; returns the bytes that are lost."""
        present = log_files(self._directory)
        sizes = [path.stat().st_size for path in present]
        lost = 0
        for path, size in zip(present[:-1], sizes, strict=False):
            if sum(sizes) - lost <= most_bytes:
                break
            self.done(path)
            lost += size
        return lost

    def size_bytes(self) -> int:
        """Bytes of all that waits."""
        return sum(path.stat().st_size for path in log_files(self._directory))

    def before(self) -> list[Path]:
        """Log files that lie before the position: their rows are written, their facts still hold."""
        return [path for path in log_files(self._logs) if log_id(path) < self.position.file]

    def _keep(self, position: Position) -> None:
        self.position = position
        temporary = self._kept.with_suffix(".new")
        document = {"file": position.file, "offset": position.offset}
        temporary.write_text(json.dumps(document), encoding="ascii")
        temporary.replace(self._kept)

    def _link(self) -> None:
        """Give every log file that may not be done a second name: those of an earlier run have none yet."""
        for path in log_files(self._logs):
            if log_id(path) >= self.position.file:
                with contextlib.suppress(FileExistsError, FileNotFoundError):
                    os.link(path, self._directory / path.name)

    def _read(self) -> Position:
        try:
            kept = json.loads(self._kept.read_text(encoding="ascii"))
            return Position(int(kept["file"]), int(kept["offset"]))
        except (OSError, ValueError, KeyError, TypeError):
            return Position()  # then all that waits is written once more, which changes nothing
