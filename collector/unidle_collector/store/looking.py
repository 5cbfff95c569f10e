"""Look at a store from outside, its collector running or not: sizes, ranges, what is wrong with its files.

Nothing is changed and nothing is locked; a file that is merged meanwhile is passed over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from unidle_collector.accounts import keeping
from unidle_collector.checks import state_problem
from unidle_collector.store.compaction import HOUR_NS
from unidle_collector.store.errors import StoreError
from unidle_collector.store.log import LogFile, log_files
from unidle_collector.store.segments import KINDS, Segments, problem

LEVELS = ("raw", "10s", "1m", "1h", "jobs")


@dataclass(frozen=True, slots=True)
class Level:
    """What a store has of one level, or of its log or state."""

    name: str
    """`raw`, `10s`, `1m`, `1h`, `jobs`, `log`, `state`, `accounts`."""
    files: int
    size_bytes: int
    start_ns: int | None = None
    end_ns: int | None = None
    """First and last instant of the rows; of `jobs`, of their receipt; of `accounts`, of the hours that are
    over."""


def segments_of(directory: Path) -> Segments:
    """The segments below `directory`, to look at only; raises StoreError when there is no store."""
    if not (directory / "segments").is_dir():
        raise StoreError(f"{directory}: expected the folder of a store, found none: give it with --data-dir")
    return Segments(directory / "segments", read_only=True)


def levels_of(directory: Path) -> list[Level]:
    """What the store in `directory` holds, level by level, then its log, its state and the accounts."""
    present = segments_of(directory).counting()
    found = []
    for name in LEVELS:
        of_level = [segment for segment in present if segment.level == name]
        found.append(
            Level(
                name,
                len(of_level),
                sum(segment.size_bytes for segment in of_level),
                min((segment.start_ns for segment in of_level), default=None),
                max((segment.end_ns for segment in of_level), default=None),
            )
        )
    for name, paths in (
        ("log", log_files(directory / "log")),
        ("state", list(directory.glob("state.sqlite*"))),
    ):
        sizes = [path.stat().st_size for path in paths if path.exists()]
        found.append(Level(name, len(sizes), sum(sizes)))
    accounts = directory / "accounts"
    hours = list(keeping.hours_of(accounts, 0, 2**63 - 1))
    sizes = [path.stat().st_size for path in accounts.rglob("*") if path.is_file()]
    ends = (hours[0], hours[-1] + HOUR_NS) if hours else (None, None)
    return [*found, Level("accounts", len(sizes), sum(sizes), *ends)]


def problems_of(directory: Path, progress: Callable[[int, int], None] = lambda *_: None) -> list[str]:
    """What is wrong, in words; reads every row. `progress` is told (files done, files in all)."""
    segments = segments_of(directory).counting()
    logs = log_files(directory / "log")
    found = []
    damaged = sorted((directory / "segments").glob("*.damaged"))
    found += [f"{path}: was set aside because it could not be read" for path in damaged]
    for done, segment in enumerate(sorted(segments, key=lambda s: KINDS.index(s.kind))):
        progress(done, len(segments) + len(logs))
        found += [text for text in (problem(segment, thorough=True),) if text]
    for done, path in enumerate(logs):
        progress(len(segments) + done, len(segments) + len(logs))
        found += [text for text in (_log_problem(path, newest=path == logs[-1]),) if text]
    found += keeping.problems(directory / "accounts")
    state = state_problem(directory / "state.sqlite")
    return [*found, state] if state else found


def _log_problem(path: Path, *, newest: bool) -> str:
    file = LogFile(path)
    try:
        for _ in file:
            pass
    except FileNotFoundError:  # it has become a segment meanwhile
        return ""
    torn = 0 if newest else file.torn_bytes  # the newest may be in the middle of a write
    if not torn and not file.damaged:
        return ""
    return f"{path}: {file.damaged} damaged records, {torn} bytes torn off its end"
