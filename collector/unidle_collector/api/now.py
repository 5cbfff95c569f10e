"""The fleet as it is now: GPUs, nodes, jobs, what waits, and whether the collector can be trusted."""

from __future__ import annotations

from fastapi import APIRouter

from unidle_collector import reading
from unidle_collector.api.asking import WindowS, ask
from unidle_collector.live import Live
from unidle_collector.model import Fleet, GpuNow, Health, JobNow, NodeNow, Queue, TargetNow
from unidle_collector.prometheus.scraper import Scraper


def routes(live: Live, scraper: Scraper | None) -> APIRouter:
    """Everything without a past."""
    router = APIRouter(prefix="/api/v1")

    @router.get("/health")
    async def health() -> Health:
        """Can this collector be trusted now."""
        return await ask(live, lambda: reading.health(live))

    @router.get("/fleet")
    async def fleet(window_s: WindowS = 3600.0) -> Fleet:
        """Everything at a glance."""
        return await ask(live, lambda: reading.fleet(live, window_s))

    @router.get("/gpus")
    async def gpus() -> list[GpuNow]:
        """Every GPU as it is now."""
        return await ask(live, lambda: reading.gpus(live))

    @router.get("/nodes")
    async def nodes() -> list[NodeNow]:
        """Every node as it is now."""
        return await ask(live, lambda: reading.nodes(live))

    @router.get("/jobs")
    async def jobs() -> list[JobNow]:
        """Every job that holds GPUs now, with who says so."""
        return await ask(live, lambda: reading.jobs(live))

    @router.get("/queue")
    async def queue() -> Queue:
        """What waits for GPUs, as the scheduler says."""
        return await ask(live, lambda: reading.queue(live))

    @router.get("/targets")
    def targets() -> list[TargetNow]:
        """Every exporter that is scraped, as its last scrape found it."""
        return scraper.targets() if scraper is not None else []

    return router
