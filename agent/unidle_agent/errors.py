"""What can go wrong in the agent and in everything built on it.

A message says what was expected, what came, and what to do. Secrets never appear in one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UnidleError(Exception):
    """Root of every error that unidle raises for a person to read."""


class UsageError(UnidleError):
    """What was asked for cannot be: words, flags or settings that are wrong or do not go together."""


class SettingError(UsageError):
    """A setting has a value that it cannot have."""

    def __init__(self, key: str, expected: str, came: object, where: str) -> None:
        super().__init__(f"{key}: expected {expected}, came {came!r} (from {where})")
        self.key = key


class WireError(UnidleError):
    """A batch could not be read."""


class SourceError(UnidleError):
    """A source of samples cannot be read now."""


class NotStartedError(SourceError):
    """The process that reads it cannot be started: that says nothing of the source itself."""


def nearest(came: str, known: Iterable[str]) -> str:
    """`, did you mean 'x'?` for a misspelt or shortened word of `known`; empty where none is near."""
    words = list(known)
    begin = [word for word in words if len(came) > 2 and word.startswith(came)]
    near = difflib.get_close_matches(came, words, 1) or begin
    return f", did you mean {near[0]!r}?" if near else ""


def reason(error: Exception) -> str:
    """`Permission denied`: an error of the system without the number and the file name that Python adds."""
    return getattr(error, "strerror", None) or str(error)
