"""NFS as this node's mounts see it: bytes from and to the servers, and requests that were sent again.

Read every 5 s. From /proc/self/mountstats, so of the agent's mount namespace: an agent in a container
sees its own mounts. The kernel counts per file system, and shows the same counts at each of its mount
points: one that is mounted twice (bind mounts, two folders of one export) counts once, told by its device
number in /proc/self/mountinfo. Where no NFS is mounted, its fields are unknown. Format: statvers 1.0 and
1.1 of Linux, fs/nfs/super.c and net/sunrpc/stats.c; nfs-utils reads the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from unidle_agent.errors import SourceError
from unidle_agent.sample import Reading, Value
from unidle_agent.sources import Rest

PERIOD_S = 5.0
"""A node may have hundreds of mounts with hundreds of lines each; counters lose nothing in between."""
SERVER_READ, SERVER_WRITTEN = 4, 5
"""Places in the line `bytes:` of what went over the network."""


class NfsSource:
    """The NFS mounts of this process. `proc` is where procfs is mounted."""

    name = "nfs"
    precedence = 50

    def __init__(
        self, proc: Path = Path("/proc"), *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._self = proc / "self"
        self._rest = Rest(PERIOD_S, monotonic)

    def due(self) -> bool:
        """Is it time to read again."""
        return self._rest.over

    def read(self) -> Reading:
        """The sums over all mounted NFS file systems; raises SourceError where the kernel does not say."""
        self._rest.begin()
        try:
            text = _read(self._self / "mountstats")
            if " with fstype nfs" not in text:
                return Reading()
            return Reading(host=totals(text, devices(_read(self._self / "mountinfo"))))
        except (OSError, ValueError, IndexError) as error:
            # Neither text nor path of a mount: they name people and projects.
            why = error.strerror if isinstance(error, OSError) else "a line is not as expected"
            raise SourceError(f"{self._self}/mountstats cannot be read: {why}") from None

    def close(self) -> None:
        """Nothing is held."""


def devices(mountinfo: str) -> dict[str, str]:
    """Mount point -> device number of the file system mounted there last."""
    words = (line.split() for line in mountinfo.splitlines())
    return {line[4]: line[2] for line in words if len(line) > 4}


def totals(mountstats: str, device_of: dict[str, str]) -> dict[str, Value]:
    """Bytes and retransmits of every NFS file system, each once."""
    read = written = again = 0
    seen = set()
    for where, lines in _mounts(mountstats.splitlines()):
        device = device_of.get(where, where)
        if device in seen:
            continue
        seen.add(device)
        operations = False
        for line in lines:
            key, _, rest = line.strip().partition(":")
            if key == "bytes":
                counts = rest.split()
                read += int(counts[SERVER_READ])
                written += int(counts[SERVER_WRITTEN])
            elif key == "per-op statistics":
                operations = True
            elif operations and rest:
                requests, transmissions = rest.split()[:2]
                again += max(0, int(transmissions) - int(requests))
    return {"nfs_read_bytes": read, "nfs_written_bytes": written, "nfs_retransmits": again}


def _mounts(lines: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Mount point and lines of each NFS mount."""
    where, block = "", list[str]()
    for line in lines:
        if line.startswith("device "):
            if where:
                yield where, block
            words = line.split()
            is_nfs = "fstype" in words and words[words.index("fstype") + 1] in ("nfs", "nfs4")
            where, block = (words[words.index("on") + 1] if is_nfs else ""), []
        else:
            block.append(line)
    if where:
        yield where, block


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
