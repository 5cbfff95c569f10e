"""Hands rows that no agent pushed to the collector, by the door that pushed ones take.

Log, de-duplication, window and accounts are the same; only the node's side is here: batches with a boot
and sequence of their own, facts when they change or are asked for, and patience while the collector is
busy or its disk is full.
"""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

from unidle_agent.batcher import Batcher
from unidle_agent.errors import UnidleError, WireError
from unidle_agent.privacy import Pseudonymiser
from unidle_agent.sample import Reading, merge
from unidle_agent.wire import encode

MOST_WAITING = 5_000
"""Batches that wait while the collector takes none; beyond that the oldest go, counted."""
AT_ONCE = 256
"""Batches under way at a time: half of what the collector lets wait."""
ANSWER_WITHIN_S = 30.0

FROM_LABELS = "dcgm-labels"
"""`Owner.source` of what the labels of an exporter say."""

Push = Callable[[bytes, int, "int | None"], "Future[Any]"]
"""`Live.push`: bytes, when they were received, the node's clock."""


@dataclass(slots=True)
class _Node:
    batcher: Batcher
    seq: int = 0


@dataclass(frozen=True, slots=True)
class _Waiting:
    node: str
    data: bytes
    received_ns: int


@dataclass(slots=True)
class Fed:
    """What became of batches."""

    taken: int = 0
    dropped: int = 0
    """The oldest, where too many waited."""
    refused: int = 0
    """The collector called them bad."""
    problem: str = ""
    """Why batches wait; empty while none does."""


class Feed:
    """Rows in, batches out. May be used by several threads."""

    def __init__(self, push: Push, clock_ns: Callable[[], int], origin: str, names: Pseudonymiser) -> None:
        self._push = push
        self._names = names
        self._clock_ns = clock_ns
        # A boot of its own for each start: sequences begin anew, and so do the facts.
        self._boot = f"{origin}-{secrets.token_hex(8)}"
        self._nodes: dict[str, _Node] = {}
        self._waiting: deque[_Waiting] = deque()
        self._lock = threading.RLock()
        self.fed = Fed()

    @property
    def waiting(self) -> int:
        """Batches that the collector has not taken yet."""
        return len(self._waiting)

    def add(
        self, node: str, time_ns: int, readings: Sequence[tuple[str, int, Reading]], period_s: float
    ) -> None:
        """One instant of a node, from (source, precedence, reading); `send` takes it further."""
        tick = merge(time_ns, [(name, rank, self._hidden(reading)) for name, rank, reading in readings])
        with self._lock:
            known = self._nodes.get(node)
            if known is None:
                known = self._nodes[node] = _Node(Batcher(node, 1.0, 0.0))
            for batch in known.batcher.add(tick):
                now_ns = self._clock_ns()
                numbered = replace(
                    batch, boot=self._boot, seq=known.seq, sent_ns=now_ns, period_s=max(1.0, period_s)
                )
                try:
                    data = encode(numbered)
                except (
                    ValueError,
                    OverflowError,
                    TypeError,
                ) as error:  # a label that the wire has no room for
                    self.fed.refused += 1
                    self.fed.problem = f"{node}: {error}"
                    continue
                known.seq += 1
                self._waiting.append(_Waiting(node, data, now_ns))
            while len(self._waiting) > MOST_WAITING:
                self._waiting.popleft()
                self.fed.dropped += 1

    def _hidden(self, reading: Reading) -> Reading:
        """With pseudonyms for the names on an exporter's labels; what an agent said is hidden already."""
        gpus = tuple(
            replace(gpu, facts=replace(gpu.facts, owner=self._names.owner(gpu.facts.owner)))
            if gpu.facts.owner.source == FROM_LABELS
            else gpu
            for gpu in reading.gpus
        )
        return replace(reading, gpus=gpus)

    def send(self) -> bool:
        """Hand over what waits, oldest first; True when all of it is on disk."""
        with self._lock:
            while self._waiting:
                group = [self._waiting.popleft() for _ in range(min(AT_ONCE, len(self._waiting)))]
                again = self._send_group(group)
                if again:
                    self._waiting.extendleft(reversed(again))
                    return False
            self.fed.problem = ""
            return True

    def _send_group(self, group: list[_Waiting]) -> list[_Waiting]:
        """Those that have to be sent again."""
        under_way: list[tuple[_Waiting, Future[Any]]] = []
        again = []
        for item in group:
            try:
                under_way.append((item, self._push(item.data, item.received_ns, None)))
            except UnidleError as error:
                self.fed.problem = str(error)
                again.append(item)
        for item, future in reversed(under_way):
            try:
                ack = future.result(timeout=ANSWER_WITHIN_S)
            except WireError as error:
                self.fed.refused += 1
                self.fed.problem = str(error)
                continue
            except (UnidleError, TimeoutError) as error:
                self.fed.problem = str(error) or "the collector does not answer"
                again.insert(0, item)
                continue
            self.fed.taken += 1
            if ack.send_facts:
                self._nodes[item.node].batcher.request_facts()
        return again
