"""Lines that the series store refuses for good, kept on disk with the reason, up to a bound."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

MOST_BYTES = 64 * 1024 * 1024
"""Of the file that is written; one more of that size is kept beside it."""


class DeadLetters:
    """`directory`/dead.lines: line protocol, each group below a comment that says when and why.

    A full file becomes dead.lines.1, and the one before that is gone. Once the cause is put right, the file
    can be written again as it is: lines that begin with # are comments of line protocol.
    """

    def __init__(self, directory: Path, most_bytes: int = MOST_BYTES) -> None:
        self.path = directory / "dead.lines"
        self._most_bytes = most_bytes

    def bury(self, lines: Sequence[str], reason: str, now_ns: int) -> None:
        """Append lines; raises OSError when the disk takes them not."""
        when = datetime.fromtimestamp(now_ns / 1e9, UTC).isoformat(timespec="seconds")
        text = "".join(f"{line}\n" for line in (f"# {when} {' '.join(reason.split())}", *lines))
        if self.path.exists() and self.path.stat().st_size + len(text) > self._most_bytes:
            self.path.replace(self.path.with_name("dead.lines.1"))
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text)
