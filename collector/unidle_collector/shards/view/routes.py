"""The API of a site in shards: the paths, parameters and answers of a single collector's."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response

from unidle_agent.shards import shard_of
from unidle_collector.api.accounts import By
from unidle_collector.api.forms import ERRORS, LISTED, MISSING, encoded, reply, wants_arrow
from unidle_collector.api.now import Fields
from unidle_collector.api.pages import Cut, Paged
from unidle_collector.api.past import GpuName, JobName, NodeName, Share, Simulated
from unidle_collector.api.words import FieldName, LongWindowS, Node, StepS, WindowS
from unidle_collector.api.wrong import (
    After,
    IncidentId,
    MostEvents,
    OpenedState,
    finding_key,
    incident_key,
    incident_place,
    worth_key,
)
from unidle_collector.client import ARROW, JSON
from unidle_collector.model import (
    Account,
    Finding,
    Fleet,
    FleetSeries,
    FlightRecording,
    GpuNow,
    Health,
    Incident,
    IncidentEvent,
    JobNow,
    JobQuantile,
    NodeNow,
    Queue,
    Recommendation,
    Series,
    TargetNow,
)
from unidle_collector.shards.view import merging
from unidle_collector.shards.view.asking import Query, Reader
from unidle_collector.shards.view.site import API, Site, account_key, advised

BY_SHARD = ("gpu", "node")
"""Accounts of what is in one shard only: listed shard by shard, because they are as many as the fleet is."""


def routes(site: Site) -> APIRouter:
    """Every path of a single collector that is about its fleet."""
    router = APIRouter(prefix=API, responses=ERRORS)
    _now(router, site)
    _past(router, site)
    _wrong(router, site)
    return router


def _now(router: APIRouter, site: Site) -> None:
    @router.get("/health")
    async def health(request: Request) -> Health:
        """Can what is shown here be trusted now."""
        return await site.health(reader_of(request))

    @router.get("/fleet")
    async def fleet(request: Request, window_s: WindowS = 3600.0) -> Fleet:
        """Everything at a glance."""
        return await site.fleet(reader_of(request), window_s)

    @router.get("/gpus", response_model=list[GpuNow], responses={**LISTED, **MISSING})
    async def gpus(request: Request, page: Paged, node: Node = "", fields: Fields = None) -> Response:
        """Every GPU as it is now, by shard, in the order in which they appeared there."""
        if node:
            return await _passed(site, request, shard_of(node))
        query: Query = [("fields", name) for name in fields or ()]
        as_arrow = wants_arrow(request)
        body, behind = await site.by_shard(reader_of(request), page, "gpus", query, as_arrow)
        return reply(request, body, as_arrow, behind)

    @router.get("/nodes", response_model=list[NodeNow], responses={**LISTED, **MISSING})
    async def nodes(request: Request, page: Paged, node: Node = "") -> Response:
        """Every node as it is now, by name."""
        if node:
            return await _passed(site, request, shard_of(node))
        return await _listing(request, NodeNow, await site.nodes(reader_of(request), page))

    @router.get("/jobs", response_model=list[JobNow], responses=LISTED)
    async def jobs(request: Request, page: Paged) -> Response:
        """Every job that holds GPUs now, with who says so; the most GPUs first."""
        found = await site.jobs(reader_of(request))
        return await _listing(request, JobNow, page.cut(found, merging.job_key))

    @router.get("/queue")
    async def queue(request: Request) -> Queue:
        """What waits for GPUs, as the scheduler says."""
        return await site.queue(reader_of(request))

    @router.get("/targets", response_model=list[TargetNow], responses=LISTED)
    async def targets(request: Request, page: Paged) -> Response:
        """No exporters: collectors of shards take rows from NATS only."""
        return await _listing(request, TargetNow, page.cut([], lambda target: (target.url, target.node)))


def _past(router: APIRouter, site: Site) -> None:
    @router.get("/accounts", response_model=list[Account], responses=LISTED)
    async def accounts(
        request: Request, page: Paged, by: By = "job", window_s: LongWindowS = 3600.0
    ) -> Response:
        """Where the time went: GPU-seconds by state and cause, and what was lost."""
        reader = reader_of(request)
        if by in BY_SHARD:
            query: Query = [("by", by), ("window_s", window_s)]
            as_arrow = wants_arrow(request)
            body, behind = await site.by_shard(reader, page, "accounts", query, as_arrow)
            return reply(request, body, as_arrow, behind)
        found = await site.accounts(reader, by, window_s)
        return await _listing(request, Account, page.cut(found, account_key(by)))

    @router.get(
        "/series",
        response_model=Series,
        responses={200: {"content": LISTED[200]["content"], "description": "the series"}},
    )
    async def series(
        request: Request,
        node: NodeName,
        field: FieldName,  # noqa: ARG001  # the shard that is asked reads it
        gpu: GpuName = "",  # noqa: ARG001
        window_s: LongWindowS = 3600.0,  # noqa: ARG001
        step_s: StepS = 0.0,  # noqa: ARG001
    ) -> Response:
        """One field of one GPU (or of the host, with no gpu) over time."""
        return await _passed(site, request, shard_of(node))

    @router.get("/fleet/series")
    async def fleet_series(
        request: Request,
        field: FieldName,
        window_s: LongWindowS = 24 * 3600.0,
        step_s: StepS = 60.0,
        simulated: Simulated = False,
    ) -> FleetSeries:
        """One field of all GPUs together over time, from the stored roll-ups; real and simulated apart.

        Rows become roll-ups within three minutes: the newest ones are not in them yet.
        """
        query: Query = [
            ("field", field), ("window_s", window_s), ("step_s", step_s), ("simulated", str(simulated)),
        ]  # fmt: skip
        return merging.fleet_series(
            await site.over_all(reader_of(request), FleetSeries, "fleet/series", query)
        )

    @router.get("/quantile", responses=MISSING)
    async def quantile(request: Request, job: JobName, field: FieldName, share: Share = 0.95) -> JobQuantile:
        """A quantile of one gauge over all that is kept of a job's life, up to the last minutes.

        Of a job in several shards whose series are kept by their collectors, between the shards' own.
        """
        query: Query = [("job", job), ("field", field), ("share", share)]
        return merging.quantile(await site.over_all(reader_of(request), JobQuantile, "quantile", query))


def _wrong(router: APIRouter, site: Site) -> None:
    @router.get("/findings", response_model=list[Finding], responses=LISTED)
    async def findings(request: Request, page: Paged) -> Response:
        """Everything that is wrong now, told or still developing, by kind and subject."""
        found = sorted(await site.findings(reader_of(request)), key=finding_key)
        return await _listing(request, Finding, page.cut(found, finding_key))

    @router.get("/recommendations", response_model=list[Recommendation], responses=LISTED)
    async def recommendations(request: Request, page: Paged) -> Response:
        """What to do, the most worth first."""
        found = sorted(advised(await site.findings(reader_of(request))), key=worth_key)
        return await _listing(request, Recommendation, page.cut(found, worth_key))

    @router.get("/incidents", response_model=list[Incident], responses=LISTED)
    async def incidents(request: Request, page: Paged, state: OpenedState = "open") -> Response:
        """Incidents, newest first; open ones as of now."""
        kept = await asyncio.to_thread(site.state.incidents, state, page.limit + 1, incident_place(page))
        here = page.of(kept, incident_key)
        now = await site.as_of_now(reader_of(request), here.items)
        return await _listing(request, Incident, Cut(now, here.following))

    @router.get("/incidents/{incident_id}", responses=MISSING)
    async def incident(request: Request, incident_id: IncidentId) -> Incident:
        """One incident, as of now while it is open."""
        return await site.incident(reader_of(request), incident_id)

    @router.get("/incidents/{incident_id}/flights", responses=MISSING)
    async def incident_flights(request: Request, incident_id: IncidentId) -> list[FlightRecording]:
        """What the flight recorders of its GPUs held around that time, newest first, at most 16."""
        return await site.flights(reader_of(request), incident_id)

    @router.get("/events")
    async def events(request: Request, after: After = 0, limit: MostEvents = 500) -> list[IncidentEvent]:
        """Changes of incidents in order, after a seq: ask again with the last one until none comes."""
        found = await asyncio.to_thread(site.state.events, after, limit)
        if any(event.incident.finding.simulated for event in found):
            reader_of(request).simulated = True
        return found


def reader_of(request: Request) -> Reader:
    """Who asks, as the application noted it."""
    reader: Reader = request.state.reader
    return reader


async def _passed(site: Site, request: Request, shard: int) -> Response:
    """What one shard answers, as it is."""
    as_arrow = wants_arrow(request)
    accept = ARROW if as_arrow else JSON
    query = list(request.query_params.multi_items())
    answer = await site.asking.one(reader_of(request), shard, request.url.path, query, accept)
    kind = answer.headers.get("content-type", JSON)
    headers = {name: value for name, value in answer.headers.items() if name in ("link", "vary")}
    return Response(answer.body, answer.status, headers, kind)


async def _listing(request: Request, kind: type[Any], page: Cut[Any]) -> Response:
    as_arrow = wants_arrow(request)
    body = await asyncio.to_thread(encoded, kind, page.items, as_arrow)
    return reply(request, body, as_arrow, page.following)
