"""The HTTP face of a federation: what a site's collector answers of its whole, for all sites together.

GPUs, nodes, jobs, series and incidents stay with their sites; asked for one of them, it says so.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from unidle_collector.federation import merging
from unidle_collector.federation.following import Following
from unidle_collector.federation.report import SiteNow
from unidle_collector.federation.settings import FederationSettings
from unidle_collector.model import Account, Fleet, Health
from unidle_collector.pergpu import SECOND_NS

Window = Query(default=3600.0, description="3600, 86400 or 604800: seconds up to now")
Site = Query(default="", description="only this site, by its key in /api/v1/sites; empty: all")


def create_app(
    settings: FederationSettings, following: Following, clock_ns: Callable[[], int] = time.time_ns
) -> FastAPI:
    """The application; an empty read token leaves reading open (the command allows that on loopback only)."""
    app = FastAPI(
        title="unidle federation",
        version=version("unidle"),
        description="Every time is ns since the epoch, every value in base units, unknown is null.",
        docs_url=None,  # the page loads its scripts from outside; the schema is at /openapi.json
        redoc_url=None,
    )
    token = settings.read_token.reveal()
    if not token:  # a page elsewhere that rebinds its name cannot send a token, but needs none here
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(settings.allowed_hosts))

    def now() -> list[SiteNow]:
        return merging.sites(following.seen(), clock_ns(), settings.poll_s)

    _guard(app, token, now)

    @app.exception_handler(merging.AskedWrongError)
    async def asked_wrong(_: Request, error: merging.AskedWrongError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    _questions(app, settings.name, now, clock_ns)
    return app


def _guard(app: FastAPI, token: str, now: Callable[[], list[SiteNow]]) -> None:
    """Who may ask, and the word SIMULATED on every answer that it belongs on."""

    @app.middleware("http")
    async def guard(request: Request, follow: Callable[[Request], Awaitable[Response]]) -> Response:
        said = request.headers.get("authorization", "")
        if token and not hmac.compare_digest(said.encode(), f"Bearer {token}".encode()):
            text = "expected the header 'Authorization: Bearer TOKEN' with the federation's read_token"
            return JSONResponse({"detail": text}, 401, {"WWW-Authenticate": "Bearer"})
        response = await follow(request)
        if any(one.report is not None and one.report.simulated for one in now()):
            response.headers["X-Unidle-Simulated"] = "SIMULATED"
        return response


def _questions(
    app: FastAPI, name: str, now: Callable[[], list[SiteNow]], clock_ns: Callable[[], int]
) -> None:
    """What can be asked."""
    started_ns = clock_ns()

    @app.get("/api/v1/health")
    def health() -> Health:
        """Can what is shown here be trusted now."""
        return _health(now(), clock_ns(), started_ns)

    @app.get("/api/v1/sites")
    def sites() -> list[SiteNow]:
        """Every site, with the last that it told and what it withholds."""
        return now()

    @app.get("/api/v1/fleet")
    def fleet(window_s: float = Window, site: str = Site) -> Fleet:
        """All sites at a glance, or one."""
        return merging.fleet(name, merging.chosen(now(), site), window_s, clock_ns())

    @app.get("/api/v1/accounts")
    def accounts(by: str = "site", window_s: float = Window, site: str = Site) -> list[Account]:
        """Where the time went, by fleet, site, jurisdiction, model, hour, team, node, user or job."""
        return merging.accounts(merging.chosen(now(), site), by, window_s)

    @app.get("/metrics", include_in_schema=False)
    def metrics() -> PlainTextResponse:
        return PlainTextResponse(_metrics(now()), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/api/v1/{rest:path}", include_in_schema=False)
    def elsewhere(rest: str) -> JSONResponse:
        text = f"{rest}: rows stay with their sites; /api/v1/sites lists the collectors that hold them"
        return JSONResponse({"detail": text}, 404)


def _health(sites: list[SiteNow], now_ns: int, started_ns: int) -> Health:
    reports = [one.report for one in sites if one.report is not None]
    problems = [
        f"{one.key}: {one.state}, {one.error or 'no answer'}" for one in sites if one.state != "current"
    ]
    problems += [
        f"{one.key}: its collector is not well"
        for one in sites
        if one.report is not None and one.report.health is not None and not one.report.health.ok
    ]
    reached = min((report.as_of_ns for report in reports if report.as_of_ns is not None), default=None)
    return Health(
        ok=not problems,
        problems=tuple(problems),
        version=version("unidle"),
        simulated=any(report.simulated for report in reports),
        uptime_s=(now_ns - started_ns) / SECOND_NS,
        event_time_ns=reached,
        lag_s=None if reached is None else (now_ns - reached) / SECOND_NS,
        counters={f"sites_{state}": float(_count(sites, state)) for state in ("current", "away", "never")},
    )


def _count(sites: list[SiteNow], state: str) -> int:
    return sum(1 for one in sites if one.state == state)


def _metrics(sites: list[SiteNow]) -> str:
    lines = [
        "# HELP unidle_federation_site_up 1 where the site answers, 0 where it is away or never answered.",
        "# TYPE unidle_federation_site_up gauge",
    ]
    lines += [f"unidle_federation_site_up{_labels(one)} {int(one.state == 'current')}" for one in sites]
    lines += [
        "# HELP unidle_federation_report_age_seconds Age of the last report of the site.",
        "# TYPE unidle_federation_report_age_seconds gauge",
    ]
    lines += [
        f"unidle_federation_report_age_seconds{_labels(one)} {one.age_s:.3f}"
        for one in sites
        if one.age_s is not None
    ]
    return "\n".join(lines) + "\n"


def _labels(one: SiteNow) -> str:
    texts = {"site": one.key, "jurisdiction": one.report.jurisdiction if one.report else ""}
    return "{" + ",".join(f'{name}="{_escaped(text)}"' for name, text in texts.items()) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
