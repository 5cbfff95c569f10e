"""Which GPU the NVML child is about to touch, in memory that outlives it.

Between two rows the child looks at every GPU several times a second. Were it to say each time by its pipe
where it goes, that would be most of what the two say to each other; here it is one copy of 97 bytes. The
agent reads it only when the child hangs or has died, so nobody writes then.
"""

from __future__ import annotations

import mmap
import os
import weakref

_MOST_BYTES = 96
"""Longest name of a GPU or MIG instance: an UUID has 40 characters."""


class Whereabouts:
    """The shared memory; made by `create` in the agent, found again by `attach` in its child."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        """To be inherited by the child."""
        weakref.finalize(self, os.close, fd)
        self._memory = mmap.mmap(fd, 0)
        self._cells: dict[str, bytes] = {}

    @classmethod
    def create(cls) -> Whereabouts:
        """New memory, which says nothing yet; raises OSError where there is none."""
        fd = os.memfd_create("unidle-whereabouts")
        os.ftruncate(fd, 1 + _MOST_BYTES)
        return cls(fd)

    @classmethod
    def attach(cls, fd: int) -> Whereabouts:
        """The memory behind an inherited descriptor."""
        return cls(fd)

    def write(self, gpu: str) -> None:
        """Say that `gpu` is touched next; "" is none in particular."""
        cell = self._cells.get(gpu)
        if cell is None:
            name = gpu.encode()[:_MOST_BYTES]
            cell = self._cells[gpu] = bytes([len(name)]) + name.ljust(_MOST_BYTES, b"\0")
        self._memory[:] = cell

    def read(self) -> str:
        """What was said last; "" at first."""
        cell = self._memory[:]
        return cell[1 : 1 + cell[0]].decode()
