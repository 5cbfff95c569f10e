"""Intake: reads the collector's log of incidents into the outbox."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Protocol

from unidle_alerts.outbox import Cursor, Outbox, cursor_of
from unidle_collector.model import IncidentEvent

PAGE = 500
"""Most events of one answer (collector API, GET /events)."""

log = logging.getLogger("unidle.alerts")


class EventLog(Protocol):
    """What is asked of the collector: the one call of its client that alerts need."""

    def events(self, after: int = 0) -> list[IncidentEvent]:
        """Changes of incidents with seq > `after`, in order, at most PAGE; raises ApiError."""


class Intake:
    """Takes what is new, page by page.

    Whoever holds `lock` sees no half of it: it is held for every commit, and over all pages while
    there is a backlog to read.
    """

    def __init__(
        self, api: EventLog, outbox: Outbox, destinations: Sequence[str], now_ns: Callable[[], int]
    ) -> None:
        self._api = api
        self._outbox = outbox
        self._destinations = destinations
        self._now_ns = now_ns
        self.lock = threading.RLock()

    def poll(self, stopped: Callable[[], bool] = lambda: False) -> int:
        """Take everything new; returns how many rows were put in the outbox. Raises ApiError."""
        added = 0
        cursor = self._outbox.cursor()
        with ExitStack() as backlog:
            while not stopped():
                # The last event is asked for again: it shows whether this is still the same log.
                page = self._api.events(max(cursor.seq - 1, 0))
                if cursor.seq and not (page and cursor_of(page[0]) == cursor):
                    log.warning(
                        "the collector's log of incidents is not the one read before "
                        "(a new database, or pruned): reading it from its beginning"
                    )
                    cursor = Cursor()
                    self._take([], cursor)
                    continue
                if len(page) >= PAGE:
                    backlog.enter_context(self.lock)
                news = page[1:] if cursor.seq else page
                if news:
                    cursor = cursor_of(news[-1])
                    added += self._take(news, cursor)
                if len(page) < PAGE:
                    break
        return added

    def _take(self, events: Sequence[IncidentEvent], cursor: Cursor) -> int:
        with self.lock:
            return self._outbox.take(events, cursor, self._destinations, self._now_ns())
