"""What was: accounts, and one field over time."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter

from unidle_collector import reading
from unidle_collector.api.asking import WindowS, ask
from unidle_collector.live import Live
from unidle_collector.model import Account, Series


def routes(live: Live) -> APIRouter:
    """Everything over a window."""
    router = APIRouter(prefix="/api/v1")

    @router.get("/accounts")
    async def accounts(by: str = "job", window_s: WindowS = 3600.0) -> list[Account]:
        """Where the time went, by fleet, gpu, node, job, user, team, partition, model, site or hour."""
        return await ask(live, lambda: reading.accounts(live, by, window_s))

    @router.get("/series")
    async def series(node: str, field: str, gpu: str = "", window_s: WindowS = 3600.0) -> Series:
        """One field of one GPU (or of the host, with no gpu) over time."""
        now = await ask(live, lambda: reading.recent(live, node, gpu, field, window_s))
        return await asyncio.to_thread(reading.with_stored, live.series, now)

    return router
