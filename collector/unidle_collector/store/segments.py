"""The Parquet segments of a store: their names, and which of the files in the directory count.

`gpu-START-END-FIRST-LAST.parquet` holds one row per GPU and instant, `host-...` one per node and
instant, sorted by node, GPU and time; `gpu_10s`, `gpu_1m`, `gpu_1h` and the same of `host` are roll-ups of
them, `fleet_1m` and `fleet_1h` those of all GPUs together, `jobs` histograms by job. START and END are the
first and last time of its rows in ns; FIRST and LAST the ids of the first and last log file that it was
made from. So a crash between writing one file and deleting what it was made from can never double a row:
- a file whose ids lie within those of a larger one of the same kind has been merged into it;
- a log file whose id lies within those of a gpu segment has been converted (the gpu segment is the
  last to get its name, and logs are converted in order).
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from unidle_collector.store.log import sync_directory

SegmentKind = Literal[
    "gpu", "host", "gpu_10s", "host_10s", "gpu_1m", "host_1m", "fleet_1m", "gpu_1h", "host_1h", "fleet_1h",
    "jobs",
]  # fmt: skip
KINDS: tuple[SegmentKind, ...] = get_args(SegmentKind)
TEMPORARY = ".tmp"
DAMAGED = ".damaged"
_NAME = re.compile(r"([a-z0-9_]+)-(\d{20})-(\d{20})-(\d{20})-(\d{20})\.parquet")
_LARGEST = 10**20 - 1


@dataclass(frozen=True, slots=True)
class Segment:
    """One Parquet file: what its name says."""

    path: Path
    kind: SegmentKind
    start_ns: int
    end_ns: int
    """Time of the last row."""
    first: int
    last: int
    size_bytes: int

    @property
    def level(self) -> str:
        """`raw` for rows, the width of the buckets of roll-ups (`10s`, `1m`, `1h`), `jobs` for histograms."""
        scope, _, width = self.kind.partition("_")
        return width or ("jobs" if scope == "jobs" else "raw")

    def covers(self, other: Segment) -> bool:
        """Was it made from every log file that `other` was made from?"""
        return self.first <= other.first and other.last <= self.last

    def holds(self, other: Segment) -> bool:
        """Was `other` merged into this one?"""
        same = (self.first, self.last) == (other.first, other.last)
        return self.kind == other.kind and not same and self.covers(other)


@dataclass(frozen=True, slots=True)
class Removed:
    """What retention took away."""

    files: int
    size_bytes: int


def segment_name(kind: SegmentKind, start_ns: int, end_ns: int, first: int, last: int) -> str:
    """The file name of a segment; times before 1970 count as 0."""
    start_ns, end_ns = (min(max(time_ns, 0), _LARGEST) for time_ns in (start_ns, end_ns))
    return f"{kind}-{start_ns:020d}-{end_ns:020d}-{first:020d}-{last:020d}.parquet"


class Segments:
    """The segments in `directory`. Safe to use from several threads.

    `read_only` leaves every file where it is: for looking at the store of a collector that runs.
    """

    def __init__(self, directory: Path, *, read_only: bool = False) -> None:
        self.directory = directory
        self.damaged = 0
        """Files set aside because they could not be read."""
        self._read_only = read_only
        self._lock = threading.Lock()
        self._listed: tuple[int, list[Segment]] | None = None

    def clean(self) -> None:
        """Remove what a crash left behind: half-written files, and files that were merged already."""
        with self._lock:
            for path in self.directory.glob(f"*{TEMPORARY}"):
                path.unlink()
            present = self._present()
            for segment in set(present) - set(_counting(present)):
                segment.path.unlink()
            self._listed = None

    def counting(self) -> list[Segment]:
        """The segments whose rows count, by their ids."""
        with self._lock:
            changed_ns = self.directory.stat().st_mtime_ns
            if self._listed is None or self._listed[0] != changed_ns:
                self._listed = changed_ns, _counting(self._present())
            return self._listed[1]

    def overlapping(self, start_ns: int, end_ns: int) -> list[Segment]:
        """Those that can hold rows with start_ns <= time < end_ns."""
        return [s for s in self.counting() if s.start_ns < end_ns and s.end_ns >= start_ns]

    def converted(self, log_id: int) -> bool:
        """Has the log file of this id become a segment?"""
        return any(s.kind == "gpu" and s.first <= log_id <= s.last for s in self.counting())

    def last_id(self) -> int:
        """The highest id of a log file that became a segment; 0 if none did."""
        return max((segment.last for segment in self.counting()), default=0)

    def publish(self, drafts: Sequence[tuple[Path, str]], replaced: Iterable[Path] = ()) -> None:
        """Give written and synced temporary files their names, in order, then remove what they replace."""
        with self._lock:
            for temporary, name in drafts:
                temporary.rename(self.directory / name)
            sync_directory(self.directory)
            for path in replaced:
                path.unlink(missing_ok=True)
            self._listed = None

    def retain(self, oldest_ns: int, max_bytes: int, levels: Sequence[str] = ("raw",)) -> Removed:
        """Remove segments of `levels` received before `oldest_ns`, then the oldest until `max_bytes` remain.

        Where several levels share their bytes, the first one goes first.
        """
        with self._lock:
            kept = [s for s in _counting(self._present()) if s.level in levels]
            total = sum(segment.size_bytes for segment in kept)
            files = removed = 0
            for segment in sorted(kept, key=lambda s: (s.last >= oldest_ns, levels.index(s.level), s.last)):
                if segment.last >= oldest_ns and total - removed <= max_bytes:
                    break
                segment.path.unlink(missing_ok=True)
                files, removed = files + 1, removed + segment.size_bytes
            self._listed = None
            return Removed(files, removed)

    def set_aside_damaged(self, segments: Iterable[Segment], *, thorough: bool = False) -> int:
        """Take those that are not readable Parquet out of the way, kept beside as .damaged; how many."""
        found = 0
        if self._read_only:
            return found
        for segment in segments:
            if problem(segment, thorough=thorough):
                with self._lock:
                    segment.path.rename(segment.path.with_name(segment.path.name + DAMAGED))
                    self._listed = None
                found += 1
        self.damaged += found
        return found

    def _present(self) -> list[Segment]:
        found = []
        for path in self.directory.iterdir():
            match = _NAME.fullmatch(path.name)
            if match and match[1] in KINDS:
                kind = cast(SegmentKind, match[1])
                start_ns, end_ns, first, last = (int(part) for part in match.groups()[1:])
                with contextlib.suppress(
                    FileNotFoundError
                ):  # merged meanwhile, where another process owns it
                    size_bytes = path.stat().st_size
                    found.append(Segment(path, kind, start_ns, end_ns, first, last, size_bytes))
        return found


def problem(segment: Segment, *, thorough: bool = False) -> str:
    """Why the file is not readable Parquet; empty when it is (or was merged away meanwhile).

    Looks at the footer, or, `thorough`, at every row.
    """
    try:
        with pq.ParquetFile(segment.path) as file:
            for group in range(file.num_row_groups if thorough else 0):
                file.read_row_group(group)
    except FileNotFoundError:
        return ""
    except (pa.ArrowException, OSError) as error:
        return f"{segment.path}: expected a Parquet file: {error}"
    return ""


def _counting(present: Sequence[Segment]) -> list[Segment]:
    """Those that no larger one holds; in the order of their ids."""
    ordered = sorted(present, key=lambda s: (s.kind, s.first, -s.last))
    kept: list[Segment] = []
    for segment in ordered:
        if not (kept and kept[-1].holds(segment)):
            kept.append(segment)
    return sorted(kept, key=lambda s: (s.last, s.kind))
