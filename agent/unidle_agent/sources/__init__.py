"""The edges of the world that samples come from, one file each; see `unidle_agent.sample.Source`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from unidle_agent.errors import SourceError
from unidle_agent.sample import Paced, Reading, Source


@runtime_checkable
class Counted(Protocol):
    """A source that counts what happened to it, for /metrics."""

    @property
    def counts(self) -> dict[str, int]:
        """Event -> how often since the start."""


SLACK_S = 0.25
"""Ticks are not exactly one period apart; without it a source would often rest for one tick too long."""


class Rest:
    """The pause between two reads of a source that is read every `period_s` seconds."""

    def __init__(self, period_s: float, monotonic: Callable[[], float]) -> None:
        self._period_s = period_s
        self._monotonic = monotonic
        self._until_s = float("-inf")

    @property
    def over(self) -> bool:
        """Is it time to read again."""
        return self._monotonic() >= self._until_s

    def begin(self) -> None:
        """A read begins now."""
        self._until_s = self._monotonic() + self._period_s - SLACK_S


class LateSource:
    """A source that may appear after the agent did: a driver that is loaded later in the boot.

    `build` is tried at the first read and then every `retry_s`; `required` says whether its absence is a
    problem each time (SourceError) or the plain fact that this node has none (an empty reading).
    """

    def __init__(
        self,
        name: str,
        precedence: int,
        build: Callable[[], Source],
        *,
        required: bool,
        retry_s: float = 60.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.precedence = precedence
        self._build = build
        self._required = required
        self._retry_s = retry_s
        self._monotonic = monotonic
        self._source: Source | None = None
        self._source_due: Callable[[], bool] = lambda: True
        self._next_s = float("-inf")
        self.absent_because = ""
        """Why there is no source yet; empty when there is one."""

    @property
    def counts(self) -> dict[str, int]:
        """Those of the source, once it is there and counts."""
        return self._source.counts if isinstance(self._source, Counted) else {}

    def due(self) -> bool:
        """While there is no source, when it is tried again; a required one is a problem at each tick."""
        if self._source is None:
            return self._required or self._monotonic() >= self._next_s
        return self._source_due()

    def read(self) -> Reading:
        if self._source is None:
            self._try()
        if self._source is not None:
            return self._source.read()
        if self._required:
            raise SourceError(self.absent_because)
        return Reading()

    def close(self) -> None:
        if self._source is not None:
            self._source.close()

    def _try(self) -> None:
        if self._monotonic() < self._next_s:
            return
        try:
            self._source = source = self._build()
            if isinstance(source, Paced):
                self._source_due = source.due
            self.absent_because = ""
        except (SourceError, ImportError) as error:
            self.absent_because = str(error)
            self._next_s = self._monotonic() + self._retry_s
