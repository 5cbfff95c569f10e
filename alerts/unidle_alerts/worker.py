"""Worker: sends what waits in the outbox, one message at a time per channel."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from pydantic import ValidationError

from unidle_alerts.notice import Notice
from unidle_alerts.notifiers import Notifier, Outcome
from unidle_alerts.outbox import Outbox
from unidle_alerts.plan import Batch, Rules, next_batch
from unidle_alerts.words import SECOND_NS

MESSAGE_EVERY_S = 1.0
"""Slack's posting rate: one message per second and channel."""
BACKOFF_FIRST_S = 2.0
BACKOFF_MAX_S = 300.0

log = logging.getLogger("unidle.alerts")


class Worker:
    """Delivers for each of `notifiers`; `intake_lock` keeps it from telling half of a page."""

    def __init__(
        self,
        outbox: Outbox,
        notifiers: Sequence[Notifier],
        rules: Rules,
        site: str,
        now_ns: Callable[[], int],
        intake_lock: AbstractContextManager[object],
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._outbox = outbox
        self._notifiers = notifiers
        self._rules = rules
        self._site = site
        self._now_ns = now_ns
        self._intake_lock = intake_lock
        self._uniform = uniform

    def step(self) -> int:
        """Send at most one message per channel; returns how many attempts were made."""
        return sum(self._deliver(notifier) for notifier in self._notifiers)

    def _deliver(self, notifier: Notifier) -> bool:
        with self._intake_lock:
            now_ns = self._now_ns()
            pending, channel = self._outbox.waiting(notifier.name, self._rules.group_window_s, now_ns)
            batch = next_batch(pending, channel, self._rules, now_ns)
            if batch is None:
                return False
            notice = self._read(batch, now_ns)
        outcome = _send(notifier, notice) if isinstance(notice, Notice) else notice
        done_ns = self._now_ns()
        wait_s = self._wait_s(notifier.name, outcome)
        self._outbox.finish(notifier.name, batch, outcome, done_ns + int(wait_s * SECOND_NS), done_ns)
        level = {"delivered": logging.INFO, "retry": logging.WARNING, "dead": logging.ERROR}[outcome.kind]
        again = f"; again in {wait_s:.0f} s" if outcome.kind == "retry" else ""
        log.log(
            level,
            "%s: %s, %s of incident %s%s: %s%s",
            notifier.name,
            outcome.kind,
            batch.kind,
            batch.changes[0].last.incident_id,
            f" and {len(batch.changes) - 1} more" if len(batch.changes) > 1 else "",
            outcome.reason,
            again,
        )
        return True

    def _read(self, batch: Batch, now_ns: int) -> Notice | Outcome:
        try:
            return self._outbox.begin(batch, self._site, now_ns)
        except ValidationError:
            return Outcome("dead", "the incident was written by another version of unidle, which reads it")

    def _wait_s(self, destination: str, outcome: Outcome) -> float:
        """Seconds until the channel may be used again: Retry-After, else backoff with full jitter."""
        if outcome.kind != "retry":
            return MESSAGE_EVERY_S
        if outcome.retry_after_s is not None:
            return max(outcome.retry_after_s, MESSAGE_EVERY_S)
        exponent = min(self._outbox.failures(destination), 16)
        most_s = min(BACKOFF_FIRST_S * 2.0**exponent, BACKOFF_MAX_S)
        return max(self._uniform(0.0, most_s), MESSAGE_EVERY_S)


def _send(notifier: Notifier, notice: Notice) -> Outcome:
    try:
        return notifier.send(notice)
    except Exception as error:
        # Our own mistake on one message must not stop all others. No traceback: it may hold data.
        return Outcome("dead", f"a defect of unidle, please report it: {type(error).__name__}")
