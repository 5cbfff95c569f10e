"""What every way to the collector has in common: oldest first, until acknowledged, with a backoff.

A way is a `Sender` with its own `step`: one try with the oldest batch of the spool.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from unidle_agent.segment import Record
from unidle_agent.spool import Spool
from unidle_agent.wire_flight import MAX_TEXT

log = logging.getLogger("unidle.agent")

FIRST_BACKOFF_S, MAX_BACKOFF_S = 1.0, 60.0
OUTCOMES = ("acknowledged", "rejected", "busy", "misconfigured", "failed")
"""What a push can come to; `Sender.counts` has one number for each."""


class Sender(ABC):
    """Sends from `spool` to `url`; what the collector asks for goes to `on_send_facts` and `on_flights`.

    The latter gets (GPU, request id) of each window of the flight recorder.
    """

    most_backoff_s = MAX_BACKOFF_S

    def __init__(
        self,
        url: str,
        spool: Spool,
        *,
        timeout_s: float,
        on_send_facts: Callable[[], None] = lambda: None,
        on_flights: Callable[[Sequence[tuple[str, str]]], None] = lambda _: None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.url = url
        self.counts = dict.fromkeys(OUTCOMES, 0)
        self.problem = ""
        """Why nothing goes through now; empty while it does."""
        self._spool = spool
        self._timeout_s = timeout_s
        self._on_send_facts = on_send_facts
        self._on_flights = on_flights
        self._chance = chance
        self._failures = 0
        self._wake = threading.Event()
        self._due_s = 0.0
        """When to look for something to send, by the clock that never steps; infinite: not before a wake."""

    @abstractmethod
    def step(self) -> float | None:
        """Send one batch; returns the seconds to wait before the next, None when nothing is left."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection."""

    def wake(self, after_s: float = 0.0) -> None:
        """Say that there is something new, to be sent after `after_s` at the latest. For any thread."""
        self._due_s = min(self._due_s, time.monotonic() + after_s)
        self._wake.set()

    def run(self, stop: threading.Event) -> None:
        """Send until `stop` is set (call `wake` too, to leave at once)."""
        while not stop.is_set():
            self._wake.clear()
            early_s = self._due_s - time.monotonic()
            if early_s > 0:
                self._wake.wait(None if math.isinf(early_s) else early_s)
                continue
            self._due_s = math.inf  # before the look: whoever wakes after it is not overlooked
            try:
                wait_s = self.step()
            except Exception:  # a bug must not end all delivery: the batch is still in the spool
                log.exception("unexpected error while pushing; trying again in %g s", MAX_BACKOFF_S)
                wait_s = MAX_BACKOFF_S
            if wait_s is not None:
                stop.wait(wait_s)
                self._due_s = 0.0

    def drain(self, for_s: float) -> None:
        """Send what is left for at most about `for_s` seconds, giving up at the first failure."""
        end_s = time.monotonic() + for_s
        self._timeout_s = min(self._timeout_s, for_s)
        while self.step() == 0 and time.monotonic() < end_s:
            pass

    def _accepted(self, record: Record) -> float:
        """The collector has this batch for good."""
        self._spool.ack(record.seq)
        self.counts["acknowledged"] += 1
        self._failures = 0
        self._say("")
        return 0

    def _set_aside(self, record: Record, why: str) -> float:
        """This batch will never be taken."""
        log.warning("batch %d is set aside, the collector cannot take it: %s", record.seq, why)
        self._spool.set_aside(record)
        self.counts["rejected"] += 1
        self._failures = 0
        return 0

    def _back_off(self, why: str, *, busy: bool = False) -> float:
        """Not now: come again after a while that doubles, half of it random."""
        self.counts["busy" if busy else "failed"] += 1
        delay_s: float = min(self.most_backoff_s, FIRST_BACKOFF_S * 2.0 ** min(self._failures, 30))
        self._failures += 1
        self._say(f"{why}; batches wait in the spool")
        return delay_s * (0.5 + 0.5 * self._chance())

    def _say(self, problem: str) -> None:
        """Log a problem when it begins, changes or ends; who has read the log finds it on the page."""
        before, self.problem = self.problem, problem
        if problem and problem != before:
            log.warning("%s", problem)
        if not problem and before:
            log.info("the collector at %s takes batches again", self.url)


def flights_asked(wanted: Any) -> list[tuple[str, str]]:
    """(GPU, request id) of every request that is one; no request is worth an acknowledgement."""
    found = []
    for one in wanted if isinstance(wanted, list) else ():
        if isinstance(one, dict):
            pair = one.get("gpu"), one.get("request")
            if all(isinstance(text, str) and 0 < len(text) <= MAX_TEXT for text in pair):
                found.append((str(pair[0]), str(pair[1])))
    return found
