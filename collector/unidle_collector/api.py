"""The HTTP face of the collector: typed JSON for readers, /metrics for Prometheus; pushes in `ingest`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from importlib.metadata import version
from typing import Literal, TypeVar

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from unidle_agent.errors import UnidleError
from unidle_collector import reading
from unidle_collector.federation import gate as federation
from unidle_collector.federation.gate import PATH as FEDERATION_PATH
from unidle_collector.flights import flights_of
from unidle_collector.ingest.asgi import PushApp
from unidle_collector.ingest.door import Door
from unidle_collector.ingest.tokens import Tokens
from unidle_collector.live import Live
from unidle_collector.metrics import render
from unidle_collector.model import (
    Account,
    Finding,
    Fleet,
    FlightRecording,
    GpuNow,
    Health,
    Incident,
    IncidentEvent,
    JobNow,
    NodeNow,
    Queue,
    Recommendation,
    Series,
    TargetNow,
)
from unidle_collector.prometheus.receiver import PATH as WRITE_PATH
from unidle_collector.prometheus.receiver import Receiver, mount
from unidle_collector.prometheus.scraper import Scraper

ANSWER_WITHIN_S = 30.0
MOST_WINDOW_S = 8 * 24 * 3600.0

T = TypeVar("T")
Window = Query(default=3600.0, gt=0, le=MOST_WINDOW_S, description="seconds up to now, in event time")


def create_app(
    live: Live, tokens: Tokens, receiver: Receiver | None = None, scraper: Scraper | None = None
) -> PushApp:
    """The application; who may read and push is for `tokens` to say."""
    app = FastAPI(
        title="unidle collector",
        version=version("unidle"),
        description="Every time is ns since the epoch, every value in base units, unknown is null.",
        docs_url=None,  # the page loads its scripts from outside; the schema is at /openapi.json
        redoc_url=None,
    )
    if (
        tokens.reading_is_open()
    ):  # a page elsewhere that rebinds its name cannot send a token, but needs none here
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(live.settings.allowed_hosts))

    @app.middleware("http")
    async def guard(request: Request, follow: Callable[[Request], Awaitable[Response]]) -> Response:
        if request.url.path in (WRITE_PATH, FEDERATION_PATH):  # they have their own answers to who may
            return await follow(request)
        if not (tokens.reading_is_open() or tokens.may_read(request.headers.get("authorization", ""))):
            live.counters["requests_unauthorized"] += 1
            text = (
                "expected the header 'Authorization: Bearer TOKEN' with the collector's read_token "
                "or one of unidle tokens create --read NAME"
            )
            return JSONResponse({"detail": text}, 401, {"WWW-Authenticate": "Bearer"})
        response = await follow(request)
        if reading.simulated(live):
            response.headers["X-Unidle-Simulated"] = "SIMULATED"
        return response

    @app.exception_handler(reading.AskedWrongError)
    async def asked_wrong(_: Request, error: reading.AskedWrongError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    @app.exception_handler(UnidleError)
    async def failed(_: Request, error: UnidleError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 503)

    if receiver is not None:
        mount(app, receiver, tokens)
    federation.mount(app, live)
    _add_reads(app, live, scraper)
    return PushApp(Door(live, tokens), app)


async def _wait(future: Future[T]) -> T:
    return await asyncio.wait_for(asyncio.wrap_future(future), ANSWER_WITHIN_S)


def _add_reads(app: FastAPI, live: Live, scraper: Scraper | None) -> None:
    """The reading half: each endpoint asks the thread that owns the state."""

    @app.get("/api/v1/health")
    async def health() -> Health:
        """Can this collector be trusted now."""
        return await _wait(live.ask(lambda: reading.health(live)))

    @app.get("/api/v1/fleet")
    async def fleet(window_s: float = Window) -> Fleet:
        """Everything at a glance."""
        return await _wait(live.ask(lambda: reading.fleet(live, window_s)))

    @app.get("/api/v1/gpus")
    async def gpus() -> list[GpuNow]:
        """Every GPU as it is now."""
        return await _wait(live.ask(lambda: reading.gpus(live)))

    @app.get("/api/v1/nodes")
    async def nodes() -> list[NodeNow]:
        """Every node as it is now."""
        return await _wait(live.ask(lambda: reading.nodes(live)))

    @app.get("/api/v1/jobs")
    async def jobs() -> list[JobNow]:
        """Every job that holds GPUs now, with who says so."""
        return await _wait(live.ask(lambda: reading.jobs(live)))

    @app.get("/api/v1/queue")
    async def queue() -> Queue:
        """What waits for GPUs, as the scheduler says."""
        return await _wait(live.ask(lambda: reading.queue(live)))

    @app.get("/api/v1/targets")
    def targets() -> list[TargetNow]:
        """Every exporter that is scraped, as its last scrape found it."""
        return scraper.targets() if scraper is not None else []

    @app.get("/api/v1/accounts")
    async def accounts(by: str = "job", window_s: float = Window) -> list[Account]:
        """Where the time went, by fleet, gpu, node, job, user, team, partition, model, site or hour."""
        return await _wait(live.ask(lambda: reading.accounts(live, by, window_s)))

    @app.get("/api/v1/findings")
    async def findings() -> list[Finding]:
        """Everything that is wrong now, told or still developing."""
        return await _wait(live.ask(live.engine.findings))

    @app.get("/api/v1/recommendations")
    async def recommendations() -> list[Recommendation]:
        """What to do, the most worth first."""
        return await _wait(live.ask(lambda: reading.recommendations(live)))

    @app.get("/api/v1/incidents")
    async def incidents(
        state: Literal["open", "resolved", "all"] = "open", limit: int = Query(default=500, ge=1, le=5000)
    ) -> list[Incident]:
        """Incidents, newest first; open ones as of now."""
        return await _wait(live.ask(lambda: reading.incidents(live, state, limit)))

    @app.get("/api/v1/incidents/{incident_id}")
    async def incident(incident_id: str) -> Incident:
        """One incident, as of now while it is open."""
        return await _wait(live.ask(lambda: reading.incident(live, incident_id)))

    @app.get("/api/v1/incidents/{incident_id}/flights")
    async def incident_flights(incident_id: str) -> list[FlightRecording]:
        """What the flight recorders of its GPUs held around that time, newest first, at most 16."""
        found = await _wait(live.ask(lambda: reading.incident(live, incident_id)))
        return await asyncio.to_thread(flights_of, live.store.state, found)

    @app.get("/api/v1/events")
    def events(
        after: int = Query(default=0, ge=0), limit: int = Query(default=500, ge=1, le=500)
    ) -> list[IncidentEvent]:
        """Changes of incidents in order, after a seq."""
        return live.store.state.events(after, limit)

    @app.get("/api/v1/series")
    def series(node: str, field: str, gpu: str = "", window_s: float = Window) -> Series:
        """One field of one GPU (or of the host, with no gpu) over time."""
        now = live.ask(lambda: reading.recent(live, node, gpu, field, window_s)).result(ANSWER_WITHIN_S)
        return reading.with_stored(live.series, now)  # in this thread: a series store may take its time

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> PlainTextResponse:
        text = await _wait(live.ask(lambda: render(live, targets())))
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")
