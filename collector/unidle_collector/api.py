"""The HTTP face of the collector: push for agents, typed JSON for readers, /metrics for Prometheus."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from importlib.metadata import version
from typing import Literal, TypeVar

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from unidle_agent.errors import UnidleError, WireError
from unidle_agent.wire import CLOCK_HEADER
from unidle_collector import reading
from unidle_collector.live import Live
from unidle_collector.metrics import render
from unidle_collector.model import (
    Account,
    Finding,
    Fleet,
    GpuNow,
    Health,
    Incident,
    IncidentEvent,
    JobNow,
    NodeNow,
    Queue,
    Recommendation,
    Series,
)
from unidle_collector.store import StoreFull
from unidle_collector.taking import Ack, BusyError

MAX_BODY_BYTES = 8 * 1024 * 1024
"""Most bytes of a push as it travels: a 60 s batch of 16 GPUs is about 0.3 MB."""
ANSWER_WITHIN_S = 30.0
MOST_WINDOW_S = 8 * 24 * 3600.0

T = TypeVar("T")
Window = Query(default=3600.0, gt=0, le=MOST_WINDOW_S, description="seconds up to now, in event time")


def create_app(live: Live, push_token: str, read_token: str) -> FastAPI:
    """The application; `read_token` empty leaves reading open (the command allows that on loopback only)."""
    app = FastAPI(
        title="unidle collector",
        version=version("unidle"),
        description="Every time is ns since the epoch, every value in base units, unknown is null.",
        docs_url=None,  # the page loads its scripts from outside; the schema is at /openapi.json
        redoc_url=None,
    )
    if not read_token:  # a page elsewhere that rebinds its name cannot send a token, but needs none here
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(live.settings.allowed_hosts))

    @app.middleware("http")
    async def guard(request: Request, follow: Callable[[Request], Awaitable[Response]]) -> Response:
        needed = push_token if request.url.path == "/api/v1/push" else read_token
        if needed and not _bears(request, needed):
            live.counters["requests_unauthorized"] += 1
            which = "push_token" if request.url.path == "/api/v1/push" else "read_token"
            text = f"expected the header 'Authorization: Bearer TOKEN' with the collector's {which}"
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

    @app.post("/api/v1/push", include_in_schema=False)
    async def push(request: Request) -> Response:
        return await _push(live, request)

    _add_reads(app, live)
    return app


def _bears(request: Request, token: str) -> bool:
    header = request.headers.get("authorization", "")
    return hmac.compare_digest(header.encode(), f"Bearer {token}".encode())


async def _push(live: Live, request: Request) -> Response:
    """One batch: 200 with its ack, 400 what is wrong with it, 413 too large, 503 come again."""
    body = await _body(request)
    if body is None:
        live.counters["batches_too_large"] += 1
        text = f"expected at most {MAX_BODY_BYTES} bytes, there are more: send shorter batches"
        return JSONResponse({"detail": text}, 413)
    clock = request.headers.get(CLOCK_HEADER, "")
    try:
        ack = await _wait(live.push(body, live.clock_ns(), int(clock) if clock.isdecimal() else None))
    except WireError as error:
        return JSONResponse({"detail": str(error)}, 400)
    except BusyError as error:
        return JSONResponse({"detail": str(error)}, 503, {"Retry-After": str(error.retry_after_s)})
    except StoreFull as error:
        return JSONResponse({"detail": str(error)}, 503, {"Retry-After": "10"})
    return JSONResponse(_reply(ack))


def _reply(ack: Ack) -> dict[str, int | bool]:
    return {"ack": ack.ack, "send_facts": ack.send_facts, "duplicate": ack.duplicate}


async def _body(request: Request) -> bytes | None:
    """The body, None when it is too large; never holds more than the limit."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > MAX_BODY_BYTES:
        return None
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY_BYTES:
            return None
        parts.append(part)
    return b"".join(parts)


async def _wait(future: Future[T]) -> T:
    return await asyncio.wait_for(asyncio.wrap_future(future), ANSWER_WITHIN_S)


def _add_reads(app: FastAPI, live: Live) -> None:
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

    @app.get("/api/v1/events")
    def events(
        after: int = Query(default=0, ge=0), limit: int = Query(default=500, ge=1, le=500)
    ) -> list[IncidentEvent]:
        """Changes of incidents in order, after a seq."""
        return live.store.state.events(after, limit)

    @app.get("/api/v1/series")
    async def series(node: str, field: str, gpu: str = "", window_s: float = Window) -> Series:
        """One field of one GPU (or of the host, with no gpu) over time."""
        return await _wait(live.ask(lambda: reading.series(live, node, gpu, field, window_s)))

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> PlainTextResponse:
        text = await _wait(live.ask(lambda: render(live)))
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")
