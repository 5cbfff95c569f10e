"""What can go wrong in the agent and in everything built on it.

A message says what was expected, what came, and what to do. Secrets never appear in one.
"""

from __future__ import annotations


class UnidleError(Exception):
    """Root of every error that unidle raises for a person to read."""


class SettingError(UnidleError):
    """A setting has a value that it cannot have."""

    def __init__(self, key: str, expected: str, came: object, where: str) -> None:
        super().__init__(f"{key}: expected {expected}, came {came!r} (from {where})")
        self.key = key


class WireError(UnidleError):
    """A batch could not be read."""


class SourceError(UnidleError):
    """A source of samples cannot be read now."""
