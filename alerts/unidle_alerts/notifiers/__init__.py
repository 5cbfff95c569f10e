"""Notifiers: one file each, named after where it sends; found by walking this package.

A file provides `make(settings) -> Notifier | None`: None where the settings do not ask for it, a
SettingError where they ask for something impossible. Adding one edits no other file.
"""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from importlib import import_module
from typing import Literal, Protocol

from unidle_alerts.notice import Notice
from unidle_alerts.settings import AlertsSettings


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one attempt to send, and whether another one helps."""

    kind: Literal["delivered", "retry", "dead"]
    reason: str
    """For a person; never holds the secret."""
    retry_after_s: float | None = None
    """When the other side named a time; None leaves it to the worker's backoff."""


class Notifier(Protocol):
    """One way to one channel."""

    @property
    def name(self) -> str:
        """The destination in the outbox, in metrics and in /health."""

    def send(self, notice: Notice) -> Outcome:
        """Try once, within a deadline. Does not sleep, does not raise for what the network does."""


def configured(settings: AlertsSettings) -> tuple[Notifier, ...]:
    """The notifiers that `settings` ask for; raises SettingError."""
    names = sorted(info.name for info in pkgutil.iter_modules(__path__))
    made = (import_module(f"{__name__}.{name}").make(settings) for name in names)
    return tuple(notifier for notifier in made if notifier is not None)
