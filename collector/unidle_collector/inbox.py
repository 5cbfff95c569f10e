"""What waits for the thread that owns the live collector: pushes, taken by the group, and questions.

A question is answered between two steps. A group of pushes costs little more than one push: where many come,
the first waits a moment for others.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from unidle_collector.taking import BusyError, Push

MOST_WAITING = 4096
"""Batches that may wait; beyond that a push is answered 503. Nodes send within the same second: three batches
of 1,250 nodes find room while the collector is held up."""
GROUP = 512
"""Batches that share one sync of the log."""
CROWD_PER_S = 5.0
"""From this many pushes a second on, which is 25 nodes, ..."""
LINGER_S = 0.4
"""... the first of a group waits this long for others: nodes send within the same 0.8 s, and of 250 that are
taken one by one each costs eight times as much. While a node catches up, which sends when it has its answer,
nobody waits."""
DECIDE_EACH_S = 6.0
"""Batches of 5 s come at about the same time: a shorter look would find a crowd and a desert in turn."""
REST_S = 1.0
"""Without pushes and questions, time is looked at this often: it goes on when nobody pushes any more."""
QUESTIONS_AT_ONCE = 8
"""Questions answered before the pushes that came meanwhile have their turn, however many readers ask."""

T = TypeVar("T")


@dataclass(slots=True)
class _Question:
    ask: Callable[[], Any]
    future: Future[Any]

    def answer(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            self.future.set_result(self.ask())
        except Exception as error:  # handed to who asked
            self.future.set_exception(error)


class _Crowd:
    """Do so many push that it pays to wait for a few and take them together."""

    def __init__(self) -> None:
        self.is_there = False
        self._pushes = 0
        self._since_s = time.monotonic()

    def count(self, pushes: int) -> None:
        """Take more into account; decides every DECIDE_EACH_S."""
        self._pushes += pushes
        passed_s = time.monotonic() - self._since_s
        if passed_s >= DECIDE_EACH_S:
            self.is_there = self._pushes >= CROWD_PER_S * passed_s
            self._pushes, self._since_s = 0, time.monotonic()


class Inbox:
    """Filled by any thread, emptied by the owning one."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Push | _Question | None] = queue.SimpleQueue()
        self._hurry = threading.Event()
        """Has a push come that should not wait for others."""
        self._crowd = _Crowd()
        self._closed = False

    def put(self, push: Push) -> None:
        """Take a push; raises BusyError when too many wait."""
        if self._queue.qsize() >= MOST_WAITING:
            raise BusyError(f"{MOST_WAITING} batches wait already")
        self._queue.put(push)
        if push.hurried:
            self._hurry.set()

    def ask(self, question: Callable[[], T]) -> Future[T]:
        """Run `question` in the owning thread."""
        future: Future[T] = Future()
        self._queue.put(_Question(question, future))
        return future

    def close(self) -> None:
        """From now on nobody waits for anything."""
        self._closed = True
        self._hurry.set()
        self._queue.put(None)

    def collect(self) -> list[Push]:
        """In the owning thread: questions are answered at once, pushes come back as a group."""
        pushes: list[Push] = []
        wait_s, answered = REST_S, 0
        while len(pushes) < GROUP and answered < QUESTIONS_AT_ONCE:
            try:
                item = self._queue.get(timeout=wait_s) if wait_s else self._queue.get_nowait()
            except queue.Empty:
                break
            if item is None:
                break
            if isinstance(item, Push):
                if not pushes and self._crowd.is_there and self._queue.qsize() < GROUP:
                    self._hurry.wait(LINGER_S)
                pushes.append(item)
            else:
                item.answer()
                answered += 1
            wait_s = 0.0
        if not self._closed:
            self._hurry.clear()
        self._crowd.count(sum(not push.hurried for push in pushes))
        return pushes

    def answer_waiting(self) -> None:
        """In the owning thread: questions do not wait for a long catch-up; pushes do, which slows senders."""
        waiting: list[Push | _Question | None] = []
        while not self._queue.empty():
            waiting.append(self._queue.get_nowait())
        for item in waiting:
            if isinstance(item, _Question):
                item.answer()
            else:
                self._queue.put(item)
