"""What can go wrong in the alerts, for a person to read."""

from __future__ import annotations

from unidle_agent.errors import UnidleError


class AlertsError(UnidleError):
    """Root of the errors of this package."""


class StoreError(AlertsError):
    """The outbox cannot be opened or belongs to somebody else."""
