"""GET /metrics, for a Prometheus."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse

from unidle_collector.api.desk import Desk
from unidle_collector.metrics import render
from unidle_collector.prometheus.scraper import Scraper


def routes(desk: Desk, scraper: Scraper | None) -> APIRouter:
    """The one page."""
    router = APIRouter()

    @router.get("/metrics", include_in_schema=False)
    async def metrics() -> PlainTextResponse:
        targets = scraper.targets() if scraper is not None else []
        text = await desk.ask(lambda: render(desk.live, targets))
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    return router
