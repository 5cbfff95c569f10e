"""What the agent and its NVML child say to each other: MessagePack over pipes, an array per message.

The rows of a pass come a fraction of a millisecond apart, and waking up for each would cost more than they
do. So messages lie in their pipe until the child rings a bell, which is a second pipe: when a pass is over,
or before the first is full. Whoever does not want to wait any longer can look without the bell: what was
said before a call that hangs, or kills the child, is there.
"""

from __future__ import annotations

import os
import select
import time
from collections import deque
from typing import Any

import msgpack

CHUNK_BYTES = 65536
"""Read at once: as much as a pipe holds."""
UNRUNG_BYTES = 16384
"""Most that is said without the bell. A message that begins a new page leaves up to half of the page before
it empty, so a pipe of 64 KiB may be full at half of that (pipe(7))."""


def unpacker(bytes_at_once: int = CHUNK_BYTES) -> Any:
    """A msgpack.Unpacker with no more room than it needs.

    By default it has a MiB, which it goes through to its end before it begins anew: with a question of 8
    bytes a second the child would grow by that for a day and a half.
    """
    return msgpack.Unpacker(read_size=bytes_at_once)


class Outbox:
    """The end at which the child speaks."""

    def __init__(self, fd: int, bell_fd: int) -> None:
        self._fd, self._bell_fd = fd, bell_fd
        self._pack = msgpack.Packer(buf_size=UNRUNG_BYTES).pack  # packb would make one for each message
        self._unrung_bytes = 0

    def say(self, *message: Any) -> None:
        """Put a message into the pipe; raises BrokenPipeError when the agent hung up."""
        data: bytes = self._pack(message)
        if self._unrung_bytes + len(data) > UNRUNG_BYTES:
            self.ring()
        self._unrung_bytes += len(data)
        while data:
            data = data[os.write(self._fd, data) :]

    def ring(self) -> None:
        """Wake the agent for all that was said."""
        self._unrung_bytes = 0
        os.write(self._bell_fd, b"\0")


class Inbox:
    """The end at which the agent listens."""

    def __init__(self, fd: int, bell_fd: int) -> None:
        """`fd` is made not to block."""
        os.set_blocking(fd, False)
        self._fd, self._bell_fd = fd, bell_fd
        self._unpacker = unpacker()
        self._heard: deque[list[Any]] = deque()

    def hear(self, timeout_s: float) -> list[Any] | None:
        """The next message, waiting for the bell; None when there is none after `timeout_s`, bell or not.

        Raises EOFError when the child is gone and everything that it said was heard.
        """
        until_s = time.monotonic() + timeout_s
        while not self._heard:
            left_s = max(0.0, until_s - time.monotonic())
            rung = bool(select.select([self._bell_fd], [], [], left_s)[0])
            gone = rung and not os.read(self._bell_fd, CHUNK_BYTES)
            self._look()
            if not self._heard:
                if gone:
                    raise EOFError
                if not rung:
                    return None
        return self._heard.popleft()

    def _look(self) -> None:
        """Take what lies in the pipe."""
        try:
            while data := os.read(self._fd, CHUNK_BYTES):
                self._unpacker.feed(data)
                self._heard.extend(self._unpacker)
                if len(data) < CHUNK_BYTES:
                    return
        except BlockingIOError:
            pass
