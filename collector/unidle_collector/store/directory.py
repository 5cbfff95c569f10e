"""The store's directory: made and locked for one process; what its files take."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from unidle_collector.store.errors import StoreError


def take(directory: Path, links: Path | None) -> int:
    """Make the folders of a store and lock it until the descriptor that comes back is closed.

    Raises StoreError when another collector holds the directory or it cannot be used.
    """
    try:
        (directory / "log").mkdir(parents=True, exist_ok=True)
        if links is not None:
            links.mkdir(parents=True, exist_ok=True)
        (directory / "segments").mkdir(exist_ok=True)
        return _hold(directory)
    except OSError as error:
        raise StoreError(
            f"{directory}: expected a directory that can be written, came {error}: "
            "give another one or correct its owner"
        ) from error


def _hold(directory: Path) -> int:
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise StoreError(
            f"{directory}: expected a directory of our own, another collector is using it: "
            "stop that one or give another directory"
        ) from error
    return fd


def size(directory: Path, pattern: str) -> int:
    """Bytes of the files in it that match."""
    total = 0
    for path in directory.glob(pattern):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # merged or removed meanwhile
            continue
    return total
