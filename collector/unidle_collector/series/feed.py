"""The thread that writes what the collector accepts to the series store, and never holds the collector up.

Accepted batches lie in the log already; this reads them from there, makes lines, sends them in chunks and
remembers how far it came. A server that is away is tried again for as long as the queue has room.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from unidle_agent.errors import UnidleError, WireError
from unidle_agent.wire import Batch, GpuFacts, decode
from unidle_collector.series.answers import LinesRefusedError, TryLaterError
from unidle_collector.series.deadletters import DeadLetters
from unidle_collector.series.lines import lines_of
from unidle_collector.series.queue import LogQueue
from unidle_collector.store.log import records

CHUNK_LINES = 5000
"""Lines that travel in one request, about 2 MB."""
MOST_TRIES = 64
"""Requests spent on finding the lines at fault in one refused chunk; then what is left of it is buried."""
LOOK_EACH_S = 1.0
LEAST_WAIT_S, MOST_WAIT_S = 1.0, 60.0
ODD_WAIT_S = 10.0
"""After a failure of the disk or the state database."""

FactsOf = Callable[[tuple[str, str, int]], Sequence[GpuFacts] | None]
"""The facts kept under (node, boot, facts_id); None where there are none."""
COUNTERS = {
    "lines_written": "Lines written to the series store.",
    "lines_dead": "Lines that the series store refused for good; they are in series/dead.lines.",
    "writes_retried": "Writes to the series store that have to be tried again.",
    "queue_dropped_bytes": "Bytes of the log that went before they were written to the series store.",
}


class Writer(Protocol):
    """What takes lines."""

    def write(self, lines: bytes) -> None:
        """Return once they are written; raises TryLaterError or LinesRefusedError."""

    def close(self) -> None: ...


class Feed:
    """Everything between the log and a series store, in `directory`.

    `problem` says what is wrong now, empty when nothing is. `lag_s` is the age of the oldest batch that is
    not written, 0 when all are.
    """

    def __init__(
        self,
        directory: Path,
        queue: LogQueue,
        writer: Writer,
        facts_of: FactsOf,
        *,
        step_s: float = 0.0,
        most_bytes: int = 10 * 10**9,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._queue = queue
        self._writer = writer
        self._facts_of = facts_of
        self._step_ns = int(step_s * 1e9)
        self._most_bytes = most_bytes
        self._clock_ns = clock_ns
        self._dead = DeadLetters(directory)
        self._jobs: dict[tuple[str, str, int], dict[str, str]] = {}
        """(Node, boot, facts_id) -> GPU -> job; the newest of each node only."""
        self.counters = dict.fromkeys(COUNTERS, 0)
        self.problem = ""
        self.lag_s = 0.0
        self.queue_bytes = 0
        self._thread = threading.Thread(target=self._run, name="series-feed", daemon=True)
        self._stop = threading.Event()

    def start(self) -> None:
        """Begin where the last run ended."""
        self._thread.start()

    def stop(self) -> None:
        """End after the request that is under way."""
        self._stop.set()
        self._thread.join(timeout=30)
        self._writer.close()

    def learn(self) -> None:
        """Know the jobs of GPUs from facts that lie before the position; once, before the first step."""
        for path in self._queue.before():
            for _, record in records(path):
                self._remember(record.data)
        found = self._queue.next()
        if found:
            for offset, record in records(found[0]):
                if offset > self._queue.position.offset:
                    break
                self._remember(record.data)

    def step(self) -> bool:
        """Write the next chunk; False when there is nothing to write now. Raises TryLaterError, OSError."""
        self._bound()
        found = self._queue.next()
        if found is None:
            return self._nothing()
        path, end, growing = found
        offset = self._queue.position.offset
        lines: list[str] = []
        for after, record in records(path, offset, end):
            if not lines:
                self.lag_s = max(0.0, (self._clock_ns() - record.received_ns) / 1e9)
            lines += self._lines(record.data)
            offset = after
            if len(lines) >= CHUNK_LINES:
                break
        else:
            if not growing:
                self._send(lines)
                self._queue.done(path)
                return True
        if offset == self._queue.position.offset:
            return self._nothing()
        self._send(lines)
        self._queue.reached(offset)
        return True

    def _run(self) -> None:
        failures = 0
        learned = False
        while not self._stop.is_set():
            try:
                if not learned:
                    self.learn()
                    learned = True
                moved = self.step()
                failures, self.problem = 0, ""
                wait_s = 0.0 if moved else LOOK_EACH_S
            except TryLaterError as error:
                self.counters["writes_retried"] += 1
                self.problem = f"{error}; rows wait in the log, up to series_queue_gb"
                wait_s = max(error.after_s, min(MOST_WAIT_S, LEAST_WAIT_S * 2**failures))
                failures = min(failures + 1, 10)
            except (OSError, UnidleError) as error:
                self.problem = f"the queue of the series store cannot be read or written: {error}"
                wait_s = ODD_WAIT_S
            if wait_s:
                self._stop.wait(wait_s)

    def _nothing(self) -> bool:
        self.lag_s = 0.0
        return False

    def _bound(self) -> None:
        self.counters["queue_dropped_bytes"] += self._queue.drop_over(self._most_bytes)
        self.queue_bytes = self._queue.size_bytes()

    def _send(self, lines: Sequence[str]) -> None:
        """Write lines; those that are at fault are found by halves, and buried."""
        waiting, tries = [list(lines)] if lines else [], 0
        while waiting:
            part = waiting.pop()
            tries += 1
            try:
                self._writer.write("\n".join(part).encode())
                self.counters["lines_written"] += len(part)
            except LinesRefusedError as error:
                half = len(part) // 2
                if half and tries < MOST_TRIES:
                    waiting += [part[half:], part[:half]]
                else:
                    self._dead.bury(part, str(error), self._clock_ns())
                    self.counters["lines_dead"] += len(part)

    def _lines(self, data: bytes) -> list[str]:
        batch = self._remember(data)
        if batch is None:
            return []
        jobs = self._jobs_of(batch)
        return lines_of(batch, [jobs.get(uuid, "") for uuid in batch.gpus], self._step_ns)

    def _remember(self, data: bytes) -> Batch | None:
        """The batch, its facts noted; None for bytes that are none."""
        try:
            batch = decode(data)
        except WireError:
            return None
        if batch.facts is not None:
            self._note((batch.node, batch.boot, batch.facts_id), batch.facts)
        return batch

    def _jobs_of(self, batch: Batch) -> dict[str, str]:
        key = (batch.node, batch.boot, batch.facts_id)
        if key not in self._jobs:
            self._note(key, self._facts_of(key) or ())
        return self._jobs[key]

    def _note(self, key: tuple[str, str, int], facts: Sequence[GpuFacts]) -> None:
        for other in [other for other in self._jobs if other[0] == key[0] and other != key]:
            del self._jobs[other]
        self._jobs[key] = {one.uuid: one.owner.job for one in facts if one.owner.job}
