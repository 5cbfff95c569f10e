"""What can go wrong in the store."""

from __future__ import annotations

from unidle_agent.errors import UnidleError


class StoreError(UnidleError):
    """The store cannot do what it was asked; the message says what to do."""


class StoreFull(StoreError):  # noqa: N818  # the name of a condition that passes, not of a mistake
    """Nothing can be written now: answer 503 with Retry-After, go on, and try again at the next push."""


class FencedError(StoreError):
    """This process may not write here any more: another has taken over. Nothing was written."""
