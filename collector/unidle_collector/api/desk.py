"""Where readers' questions are answered: in the thread that owns the state, and beside it.

A question to the owning thread copies what it needs and ends; whatever takes long (encoding, files, the
state database) is done in a few threads of our own, so that no reader holds up what agents push.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from unidle_collector.live import Live

ANSWER_WITHIN_S = 30.0
AT_ONCE = 2
"""Answers that are worked on beside the owning thread at a time, which bounds what they take of memory."""

T = TypeVar("T")


class Desk:
    """Asks on behalf of the endpoints."""

    def __init__(self, live: Live) -> None:
        self.live = live
        self._beside = ThreadPoolExecutor(AT_ONCE, "api")
        self._long = ThreadPoolExecutor(1, "api-long")

    async def ask(self, question: Callable[[], T]) -> T:
        """What `question` gives in the thread that owns the state; it has to be short."""
        return await asyncio.wait_for(asyncio.wrap_future(self.live.ask(question)), ANSWER_WITHIN_S)

    async def beside(self, work: Callable[[], T]) -> T:
        """What `work` gives in a thread of its own; it may take longer."""
        return await asyncio.get_running_loop().run_in_executor(self._beside, work)

    async def long(self, work: Callable[[], T]) -> T:
        """The same for what may take many seconds: it keeps nobody but its like waiting."""
        return await asyncio.get_running_loop().run_in_executor(self._long, work)
