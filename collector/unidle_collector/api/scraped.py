"""GET /metrics, for a Prometheus; and what a collector of shards makes the page of the whole site of."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse

from unidle_collector.api.desk import Desk
from unidle_collector.fleet_metrics import Sums, take
from unidle_collector.metrics import render
from unidle_collector.prometheus.scraper import Scraper

TEXT = "text/plain; version=0.0.4; charset=utf-8"
SUMS = "/api/v1/sums"


def routes(desk: Desk, scraper: Scraper | None) -> APIRouter:
    """The one page."""
    router = APIRouter()

    @router.get("/metrics", include_in_schema=False)
    async def metrics() -> PlainTextResponse:
        targets = scraper.targets() if scraper is not None else []
        text = await desk.ask(lambda: render(desk.live, targets))
        return PlainTextResponse(text, media_type=TEXT)

    @router.get(SUMS, include_in_schema=False)
    async def sums() -> Sums:
        return await desk.ask(lambda: take(desk.live))

    return router
