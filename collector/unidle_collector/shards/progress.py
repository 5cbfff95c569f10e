"""How far a shard has come in the broker's stream, and which batches its accounts hold.

A message is done once every row of it is booked, which is some seconds after it was taken in. The position
that a checkpoint carries is that of the last message up to which all are done; after a takeover the stream
is read on from there. Messages beyond it are read again, and their rows that are booked already are late.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from unidle_collector.pergpu import SECOND_NS
from unidle_collector.store.sequences import Sequences

Key = tuple[str, str, int]
"""(node, boot, sequence)."""

GAP_NS = 8 * SECOND_NS
"""Nothing heard of the broker for this long is an outage of it (or of this process), ..."""
HOLD_NS = 15 * SECOND_NS
"""... after which agents get this long to bring what they kept, before any counts as silent."""


@dataclass(slots=True)
class Message:
    """One of the stream that was taken out of it."""

    position: int
    """Its sequence in the stream."""
    key: Key | None = None
    until_ns: int | None = None
    """Time of its last row; None until it was taken in."""


class Progress:
    """Position and batches of one shard; the feed offers messages, the owner of the accounts answers."""

    def __init__(self, position: int = 0, held: str = "[]") -> None:
        self.position = position
        self._lock = threading.Lock()
        self._open: deque[Message] = deque()
        self._held = _sequences(held)
        self._seen = _sequences(held)

    def offer(self, message: Message) -> None:
        """A message that comes next in the stream; for the feed."""
        with self._lock:
            self._open.append(message)

    def seen(self, node: str, boot: str, seq: int) -> bool:
        """Was this batch taken in; see taking.Accounted."""
        known = self._seen.get((node, boot))
        return known is not None and seq in known

    def remember(self, batches: Iterable[Key]) -> None:
        """These were taken in."""
        for node, boot, seq in batches:
            self._seen.setdefault((node, boot), Sequences()).add(seq)

    def highest(self) -> dict[tuple[str, str], int]:
        """(node, boot) -> the highest sequence taken in."""
        return {key: known.highest for key, known in self._seen.items()}

    def mark(self, reached_ns: int) -> tuple[int, str]:
        """Position and batches for accounts that reach `reached_ns`; for the thread that owns them."""
        with self._lock:
            while self._open and _done(self._open[0], reached_ns):
                message = self._open.popleft()
                self.position = message.position
                if message.key is not None:
                    node, boot, seq = message.key
                    self._held.setdefault((node, boot), Sequences()).add(seq)
            held = [[node, boot, known.ranges] for (node, boot), known in self._held.items()]
        return self.position, json.dumps(held)

    @property
    def waiting(self) -> int:
        """Messages that are taken out of the stream and not done."""
        return len(self._open)


class Pace:
    """Up to when the rows of a shard have come, by the clock of the receivers.

    While there is a backlog it is the time of the message that is taken in; without one, now. It stands
    still while the broker is away: silence of the broker must not be taken for silence of the nodes.
    """

    def __init__(self, at_ns: int = 0) -> None:
        self._at_ns = at_ns
        self._last_ns = at_ns
        self._until_ns = 0

    def __call__(self) -> int:
        """Now, as far as this shard can know."""
        return self._at_ns

    def see(self, now_ns: int) -> None:
        """Everything that was received until `now_ns` is here."""
        if now_ns <= self._last_ns:
            return
        if self._last_ns and now_ns - self._last_ns > GAP_NS:
            self._until_ns = now_ns + HOLD_NS
        self._last_ns = now_ns
        if now_ns >= self._until_ns:
            self._at_ns = max(self._at_ns, now_ns)

    def creep(self, by_ns: int) -> None:
        """Nothing more can be taken in until time goes on: let it."""
        self._at_ns += by_ns
        self._last_ns = max(self._last_ns, self._at_ns)


def _done(message: Message, reached_ns: int) -> bool:
    if message.until_ns is None:
        return False
    return (message.until_ns + SECOND_NS // 2) // SECOND_NS * SECOND_NS <= reached_ns


def _sequences(held: str) -> dict[tuple[str, str], Sequences]:
    return {
        (node, boot): Sequences((first, last) for first, last in ranges)
        for node, boot, ranges in json.loads(held)
    }
