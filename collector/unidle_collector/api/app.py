"""The application: who may ask, how errors are answered, and the parts of the API; pushes in `ingest`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.metadata import version

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from unidle_agent.errors import UnidleError
from unidle_collector import reading
from unidle_collector.api import accounts, now, past, scraped, wrong
from unidle_collector.api.describe import complete
from unidle_collector.api.desk import ANSWER_WITHIN_S, Desk
from unidle_collector.api.forms import ERRORS
from unidle_collector.federation import gate as federation
from unidle_collector.federation.gate import PATH as FEDERATION_PATH
from unidle_collector.ingest.asgi import PushApp
from unidle_collector.ingest.door import Door
from unidle_collector.ingest.tokens import Tokens
from unidle_collector.live import Live
from unidle_collector.prometheus.receiver import PATH as WRITE_PATH
from unidle_collector.prometheus.receiver import Receiver, mount
from unidle_collector.prometheus.scraper import Scraper

OWN_DOOR = (WRITE_PATH, FEDERATION_PATH)
"""Paths that have their own answers to who may."""


def create_app(
    live: Live, tokens: Tokens, receiver: Receiver | None = None, scraper: Scraper | None = None
) -> PushApp:
    """The application; who may read and push is for `tokens` to say."""
    return PushApp(Door(live, tokens), reading_app(live, tokens, receiver, scraper))


def reading_app(
    live: Live, tokens: Tokens, receiver: Receiver | None = None, scraper: Scraper | None = None
) -> FastAPI:
    """Everything but pushes."""
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
        if request.url.path in OWN_DOOR:
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
            response.headers["X-Unidle-Simulated"] = _simulated_words(live)
        return response

    answer_errors(app)
    if receiver is not None:
        mount(app, receiver, tokens)
    federation.mount(app, live, ERRORS)
    desk = Desk(live)
    for router in (
        now.routes(desk, scraper),
        accounts.routes(desk),
        past.routes(desk),
        wrong.routes(desk),
        scraped.routes(desk, scraper),
    ):
        app.include_router(router)
    complete(app)
    return app


def answer_errors(app: FastAPI) -> None:
    """Say what went wrong in words, with the status that says whose fault it is."""

    @app.exception_handler(reading.AskedWrongError)
    async def asked_wrong(_: Request, error: reading.AskedWrongError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    @app.exception_handler(reading.NotHereError)
    async def not_here(_: Request, error: reading.NotHereError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 404)

    @app.exception_handler(RequestValidationError)
    async def unfit(_: Request, error: RequestValidationError) -> JSONResponse:
        words = [
            f"{one['loc'][-1]}: {one['msg']}, came {str(one['input'])[:100]!r}" for one in error.errors()
        ]
        return JSONResponse({"detail": "; ".join(words)}, 422)

    @app.exception_handler(TimeoutError)
    async def too_long(_: Request, error: TimeoutError) -> JSONResponse:  # noqa: ARG001
        text = f"no answer within {ANSWER_WITHIN_S:.0f} s: the collector is busy catching up; ask again"
        return JSONResponse({"detail": text}, 503)

    @app.exception_handler(UnidleError)
    async def failed(_: Request, error: UnidleError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 503)


def _simulated_words(live: Live) -> str:
    """SIMULATED, and how many of how many where real GPUs are there, too."""
    simulated, gpus = reading.simulated_gpus(live), len(live.engine.inventory)
    return "SIMULATED" if simulated == gpus else f"SIMULATED: {simulated} of {gpus} GPUs"
