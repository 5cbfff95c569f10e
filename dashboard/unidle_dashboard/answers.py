"""The collector's answers, asked once for all who look and kept when it falls silent.

One `Answers` serves every browser session of the process. An answer older than `ttl_s` is renewed
behind the readers' backs, once for all of them; only who comes after a pause, or first, waits for the
collector. When it does not answer, the last answers stay readable and say so; nothing turns into zero.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from time import time_ns
from typing import Any, Generic, TypeVar, cast
from urllib.error import HTTPError

from unidle_collector.client import ApiError, CollectorApi

T = TypeVar("T")

MOST_KEPT = 256
"""Answers kept; the one unused for longest goes first."""

PAUSE = 3
"""An answer older than this many times its time to live is from before a pause: better wait for a new one."""

Run = Callable[[Callable[[], object]], object]
"""Runs a job, now or beside the caller."""


def in_background(job: Callable[[], object]) -> None:
    """Run `job` in a thread of its own."""
    threading.Thread(target=job, daemon=True, name="unidle-answers").start()


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What the collector said, and when."""

    value: T
    asked_ns: int


@dataclass(frozen=True, slots=True)
class Silence:
    """The collector does not answer."""

    since_ns: int
    """First failure after the last answer."""
    last_ok_ns: int | None
    """The last answer to anything; None when there never was one."""
    reason: str


class NoAnswerError(ApiError):
    """A question that was never answered, and cannot be now."""


class Answers:
    """Questions to one collector, shared by all threads of the process."""

    def __init__(
        self,
        api: CollectorApi,
        ttl_s: float,
        now_ns: Callable[[], int] = time_ns,
        run: Run = in_background,
    ) -> None:
        self._api = api
        self._ttl_ns = int(ttl_s * 1e9)
        self._now_ns = now_ns
        self._run = run
        self._kept: OrderedDict[Hashable, Answer[Any]] = OrderedDict()
        self._asking: dict[Hashable, threading.Lock] = {}
        self._guard = threading.Lock()
        self._last_ok_ns: int | None = None
        self._silence: Silence | None = None
        self._failed_ns = 0

    @property
    def silence(self) -> Silence | None:
        """Why the answers are old; None while the collector answers."""
        return self._silence

    def ask(self, key: Hashable, question: Callable[[CollectorApi], T]) -> Answer[T]:
        """The answer to `question`; `key` names it. Raises NoAnswerError where there is none to show."""
        kept = self._get(key)
        age_ns = self._now_ns() - kept.asked_ns if kept is not None else 0
        if kept is None or (age_ns >= PAUSE * self._ttl_ns and not self._silence):
            with self._lock(key):
                return cast(Answer[T], self._renew(key, question, before=kept))
        lock = self._lock(key)
        if age_ns >= self._ttl_ns and lock.acquire(blocking=False):
            self._run(partial(self._renew_and_release, key, question, kept, lock))
        return cast(Answer[T], self._get(key) or kept)

    def _renew_and_release(
        self,
        key: Hashable,
        question: Callable[[CollectorApi], Any],
        kept: Answer[Any],
        lock: threading.Lock,
    ) -> None:
        try:
            self._renew(key, question, before=kept)
        except NoAnswerError:
            pass  # the answer before stays
        finally:
            lock.release()

    def _lock(self, key: Hashable) -> threading.Lock:
        with self._guard:
            return self._asking.setdefault(key, threading.Lock())

    def _renew(
        self, key: Hashable, question: Callable[[CollectorApi], T], before: Answer[Any] | None
    ) -> Answer[Any]:
        """Ask now; the caller holds the lock of `key`."""
        kept = self._get(key)
        if kept is not None and kept is not before:
            return kept  # somebody else asked while we waited
        if self._silence and self._now_ns() - self._failed_ns < self._ttl_ns:
            return self._fall_back(kept, self._silence.reason)
        try:
            value = question(self._api)
        except ApiError as error:
            if isinstance(error.__cause__, HTTPError) and error.__cause__.code < 500:
                self._heard()
                raise NoAnswerError(str(error)) from error
            self._unheard(str(error))
            return self._fall_back(kept, str(error), error)
        self._heard()
        answer = Answer(value, self._now_ns())
        with self._guard:
            self._kept[key] = answer
            while len(self._kept) > MOST_KEPT:
                self._asking.pop(self._kept.popitem(last=False)[0], None)
        return answer

    def _get(self, key: Hashable) -> Answer[Any] | None:
        with self._guard:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def _heard(self) -> None:
        with self._guard:
            self._last_ok_ns, self._silence = self._now_ns(), None

    def _unheard(self, reason: str) -> None:
        with self._guard:
            self._failed_ns = self._now_ns()
            since_ns = self._silence.since_ns if self._silence else self._failed_ns
            self._silence = Silence(since_ns, self._last_ok_ns, reason)

    @staticmethod
    def _fall_back(kept: Answer[Any] | None, reason: str, error: ApiError | None = None) -> Answer[Any]:
        if kept is None:
            raise NoAnswerError(reason) from error
        return kept
