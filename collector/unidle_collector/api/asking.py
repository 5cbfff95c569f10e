"""What every endpoint of the reading half has: a question to the thread that owns the state, and a window."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, TypeVar

from fastapi import Query

from unidle_collector.live import Live

ANSWER_WITHIN_S = 30.0
MOST_WINDOW_S = 8 * 24 * 3600.0

T = TypeVar("T")
WindowS = Annotated[float, Query(gt=0, le=MOST_WINDOW_S, description="seconds up to now, in event time")]


async def ask(live: Live, question: Callable[[], T]) -> T:
    """What `question` gives in the thread that owns the state."""
    return await asyncio.wait_for(asyncio.wrap_future(live.ask(question)), ANSWER_WITHIN_S)
