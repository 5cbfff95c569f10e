"""The fleet as it is now: GPUs, nodes, jobs, what waits, and whether the collector can be trusted."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request, Response

from unidle_collector import gpu_sheet, over_time, reading
from unidle_collector.api import arrow
from unidle_collector.api.desk import Desk
from unidle_collector.api.forms import ERRORS, LISTED, MISSING, listing, reply, wants_arrow
from unidle_collector.api.pages import Cut, Paged
from unidle_collector.api.words import Node, WindowS
from unidle_collector.gpu_sheet import GpuSheet
from unidle_collector.model import Fleet, GpuNow, Health, JobNow, NodeNow, Queue, TargetNow
from unidle_collector.prometheus.scraper import Scraper

Fields = Annotated[
    list[str] | None,
    Query(description="fields to have in `values`; none: all that anybody sent", examples=[["power_w"]]),
]


def routes(desk: Desk, scraper: Scraper | None) -> APIRouter:
    """Everything without a past."""
    router = APIRouter(prefix="/api/v1", tags=["now"], responses=ERRORS)
    _at_a_glance(router, desk)
    _lists(router, desk)

    @router.get("/targets", response_model=list[TargetNow], responses=LISTED)
    async def targets(request: Request, page: Paged) -> Response:
        """Every exporter that is scraped, as its last scrape found it."""
        found = sorted(scraper.targets() if scraper is not None else [], key=_target_key)
        return await listing(desk, request, TargetNow, page.cut(found, _target_key))

    return router


def _at_a_glance(router: APIRouter, desk: Desk) -> None:
    live = desk.live

    @router.get("/health")
    async def health() -> Health:
        """Can this collector be trusted now."""
        return await desk.ask(lambda: reading.health(live))

    @router.get("/fleet")
    async def fleet(window_s: WindowS = 3600.0) -> Fleet:
        """Everything at a glance."""
        return await desk.ask(lambda: reading.fleet(live, window_s))

    @router.get("/queue")
    async def queue() -> Queue:
        """What waits for GPUs, as the scheduler says."""
        return await desk.ask(lambda: reading.queue(live))


def _lists(router: APIRouter, desk: Desk) -> None:
    live = desk.live

    @router.get("/gpus", response_model=list[GpuNow], responses={**LISTED, **MISSING})
    async def gpus(request: Request, page: Paged, node: Node = "", fields: Fields = None) -> Response:
        """Every GPU as it is now, in the order in which they appeared.

        As Arrow it has one column per field in place of `values`, its unit in the column's metadata.
        """
        for name in fields or ():
            over_time.field_of(name)

        def look() -> tuple[GpuSheet, str]:
            here = page.cut(reading.positions(live, node).tolist(), lambda position: (position,))
            return gpu_sheet.take(live, np.array(here.items, dtype=np.intp), fields), here.following

        sheet, following = await desk.ask(look)
        as_arrow = wants_arrow(request)
        body = await desk.beside(lambda: arrow.stream(sheet.table()) if as_arrow else sheet.json())
        return reply(request, body, as_arrow, following)

    @router.get("/nodes", response_model=list[NodeNow], responses={**LISTED, **MISSING})
    async def nodes(request: Request, page: Paged, node: Node = "") -> Response:
        """Every node as it is now, by name."""

        def look() -> Cut[NodeNow]:
            names = reading.node_names(live)
            if node and node not in names:
                raise reading.NotHereError(f"node: expected one that has sent something, came {node!r}")
            here = page.cut([node] if node else names, lambda name: (name,))
            return Cut(reading.nodes(live, here.items), here.following)

        return await listing(desk, request, NodeNow, await desk.ask(look))

    @router.get("/jobs", response_model=list[JobNow], responses=LISTED)
    async def jobs(request: Request, page: Paged) -> Response:
        """Every job that holds GPUs now, with who says so; the most GPUs first."""

        def look() -> Cut[JobNow]:
            here = page.cut(reading.holdings(live), lambda holding: holding.key)
            return Cut(reading.jobs(live, here.items), here.following)

        return await listing(desk, request, JobNow, await desk.ask(look))


def _target_key(target: TargetNow) -> tuple[str, str]:
    return target.url, target.node
