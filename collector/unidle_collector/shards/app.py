"""The HTTP face of a collector of shards.

GET /api/v1/...               the whole site, as of a single collector; any collector answers so
GET /api/v1/shards            who holds which shard, and how far it is
GET /api/v1/collector         is anything wrong with this collector
GET /shards/N/...             the whole API of shard N, from here or by a redirect to who holds it
GET /api/v1/federation        the site's report, for receivers of its policy
GET /metrics                  of this collector
GET /metrics/site             of the whole site: any collector answers the same, so one of them is scraped
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from unidle_agent.errors import UnidleError
from unidle_collector.api import create_app
from unidle_collector.api.app import answer_errors
from unidle_collector.api.describe import complete
from unidle_collector.api.forms import ERRORS
from unidle_collector.api.scraped import TEXT
from unidle_collector.federation.gate import PATH as FEDERATION_PATH
from unidle_collector.federation.gate import Gate, mount_gate
from unidle_collector.ingest.door import PATH as PUSH_PATH
from unidle_collector.ingest.tokens import Tokens
from unidle_collector.live import Live
from unidle_collector.shards.service import Shards
from unidle_collector.shards.view.asking import PASSED_ON, Asking, Reader, gap_words
from unidle_collector.shards.view.federation import SITE_ID, OfShards
from unidle_collector.shards.view.metrics import page_of
from unidle_collector.shards.view.routes import reader_of, routes
from unidle_collector.shards.view.site import Site

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

GAPS = "X-Unidle-Gaps"
"""Header that names the shards of which an answer holds nothing, and why."""
MOST_OF_GAPS = 2000

_OF_SHARD = re.compile(r"/shards/(\d{1,3})(/.*)")


@dataclass(frozen=True, slots=True)
class ShardNow:
    """One shard as it is now."""

    shard: int
    holder: str
    """Empty when nobody holds it."""
    url: str
    epoch: int
    """How often it changed hands."""
    here: bool
    nodes: int | None = None
    """The rest is known of shards that are held here."""
    gpus: int | None = None
    position: int | None = None
    """In the broker's stream: up to there the last checkpoint holds everything."""
    behind: int | None = None
    """Messages that wait in the broker."""
    reached_ns: int | None = None
    """Event time that the accounts reach."""
    correcting: bool | None = None
    """Are there late rows that came and are not in the accounts yet."""


@dataclass(frozen=True, slots=True)
class CollectorNow:
    """One of the collectors that share a site."""

    holder: str
    ok: bool
    shards: int
    problems: tuple[str, ...]


class ShardsApp:
    """ASGI application: paths below /shards/N go to that shard."""

    def __init__(self, shards: Shards, tokens: Tokens) -> None:
        self._shards = shards
        self._tokens = tokens
        self._apps: dict[int, tuple[Live, Any]] = {}
        asking = Asking(shards.holder, shards.table, self._here, shards.settings.advertise_ca_file)
        self._own = _own(shards, tokens, asking)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (or run the lifespan)."""
        found = _OF_SHARD.fullmatch(scope["path"]) if scope["type"] == "http" else None
        if found is None:
            await self._own(scope, receive, send)
            return
        shard, rest = int(found[1]), found[2]
        if rest == PUSH_PATH:
            answer: Response = JSONResponse(
                {"detail": "expected rows by way of NATS: set the agent's push_url"}, 404
            )
        elif (live := self._live(shard)) is not None:
            await self._app(shard, live)({**scope, "path": rest, "raw_path": rest.encode()}, receive, send)
            return
        else:
            answer = await self._elsewhere(shard, scope)
        await answer(scope, receive, send)

    def _live(self, shard: int) -> Live | None:
        one = self._shards.held.get(shard)
        return one.live if one is not None and not one.closing else None

    def _here(self, shard: int) -> Any:
        live = self._live(shard)
        return None if live is None else self._app(shard, live)

    def _app(self, shard: int, live: Live) -> Any:
        known = self._apps.get(shard)
        if known is None or known[0] is not live:
            known = self._apps[shard] = (live, create_app(live, self._tokens))
        return known[1]

    async def _elsewhere(self, shard: int, scope: Scope) -> Response:
        """A redirect to the holder: a reader asks any collector."""
        try:
            leases = await asyncio.to_thread(self._shards.table)
        except UnidleError as error:
            return JSONResponse({"detail": str(error)}, 503)
        lease = next((one for one in leases if one.shard == shard), None)
        if lease is None:
            return JSONResponse({"detail": f"expected a shard from 0 to {len(leases) - 1}"}, 404)
        if not lease.holder or lease.holder == self._shards.holder:
            text = f"shard {shard} is changing hands: come again"
            return JSONResponse({"detail": text}, 503, {"Retry-After": "2"})
        query = scope.get("query_string", b"").decode("latin-1")
        return RedirectResponse(f"{lease.url}{scope['path']}{'?' if query else ''}{query}", 307)


def _own(shards: Shards, tokens: Tokens, asking: Asking) -> FastAPI:
    app = FastAPI(
        title="unidle collector of shards",
        version=version("unidle"),
        description="Every time is ns since the epoch, every value in base units, unknown is null.",
        docs_url=None,  # the page loads its scripts from outside; the schema is at /openapi.json
        redoc_url=None,
    )
    if tokens.reading_is_open():
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(shards.settings.allowed_hosts))

    @app.middleware("http")
    async def guard(request: Request, follow: Callable[[Request], Awaitable[Response]]) -> Response:
        if request.url.path == FEDERATION_PATH:  # which has its own answer to who may
            return await follow(request)
        if not (tokens.reading_is_open() or tokens.may_read(request.headers.get("authorization", ""))):
            text = "expected the header 'Authorization: Bearer TOKEN' with a read token"
            return JSONResponse({"detail": text}, 401, {"WWW-Authenticate": "Bearer"})
        reader = Reader({name: value for name, value in request.headers.raw if name in PASSED_ON})
        request.state.reader = reader
        response = await follow(request)
        if reader.simulated:
            response.headers["X-Unidle-Simulated"] = "SIMULATED"
        if reader.gaps:
            words = "; ".join(gap_words(*gap) for gap in sorted(reader.gaps.items()))
            response.headers[GAPS] = words.encode("ascii", "replace").decode()[:MOST_OF_GAPS]
        return response

    answer_errors(app)
    site = Site(
        asking,
        shards.state,
        shards.incidents,
        shards.settings.site,
        shards.settings.series,
        lambda: own_problems(shards),
    )
    _of_collector(app, shards, site)
    _federated(app, shards, site)
    app.include_router(routes(site))
    complete(app, pushes=False)
    return app


def _of_collector(app: FastAPI, shards: Shards, site: Site) -> None:
    """What this collector says of itself, and the page of metrics of its site."""

    @app.get("/api/v1/shards")
    def all_shards() -> list[ShardNow]:
        """Who holds which shard, and how far those are that are held here."""
        return status(shards)

    @app.get("/api/v1/collector")
    def collector() -> CollectorNow:
        """Is anything wrong with this collector; of the site, /api/v1/health says it."""
        problems = problems_of(shards)
        return CollectorNow(shards.holder, not problems, len(shards.held), problems)

    @app.get("/metrics", include_in_schema=False)
    def metrics() -> PlainTextResponse:
        return PlainTextResponse(render(shards), media_type=TEXT)

    @app.get("/metrics/site", include_in_schema=False)
    async def metrics_of_site(request: Request) -> PlainTextResponse:
        return PlainTextResponse(await page_of(site, reader_of(request)), media_type=TEXT)


def _federated(app: FastAPI, shards: Shards, site: Site) -> None:
    """The whole site as a part of a fleet of several."""

    def count(what: str) -> None:
        shards.counters[what] += 1

    site_id = shards.state.meta_once(SITE_ID, uuid.uuid4().hex)
    whole = OfShards(site, site_id, shards.settings.read_token)
    gate = Gate(shards.settings, whole, shards.state, site.clock_ns, count)
    mount_gate(app, gate, shards.state, ERRORS)


def status(shards: Shards) -> list[ShardNow]:
    """Every shard as its lease and this collector see it; raises StoreError."""
    out = []
    for lease in shards.table():
        one = shards.held.get(lease.shard)
        mine = ShardNow(lease.shard, lease.holder, lease.url, lease.epoch, here=False)
        if one is not None and one.live is not None and one.keeper is not None and one.feed is not None:
            mine = ShardNow(
                lease.shard,
                lease.holder,
                lease.url,
                lease.epoch,
                here=True,
                nodes=len(one.live.nodes),
                gpus=len(one.live.engine.inventory),
                position=one.keeper.progress.position,
                behind=one.feed.behind,
                reached_ns=one.live.window.time_ns,
                correcting=one.live.late.busy,
            )
        out.append(mine)
    return out


def own_problems(shards: Shards) -> tuple[str, ...]:
    """What is wrong with this collector beside its shards, in words."""
    unkept = shards.incidents.problem
    return (*shards.problems.values(), *([unkept] if unkept else []))


def problems_of(shards: Shards) -> tuple[str, ...]:
    """What is wrong with this collector and the shards that it holds, in words."""
    found = list(own_problems(shards))
    for one in list(shards.held.values()):
        if one.live is not None:
            found += [f"shard {one.shard}: {text}" for text in list(one.live.problems.values())]
    return tuple(found)


COUNTERS = {
    "rows_ingested": "GPU rows taken in.",
    "rows_late": "GPU rows whose time had been handed out already.",
    "batches_duplicate": "Batches that had been taken in before.",
    "batches_malformed": "Batches that could not be read.",
    "batches_forbidden": "Batches whose subject is another node's.",
    "batches_expired": "Batches that left the broker's stream before they were read.",
}


def render(shards: Shards) -> str:
    """Prometheus text."""
    held = [one for one in list(shards.held.values()) if one.live is not None]
    lines = [
        *_family("shards_held", "gauge", "Shards that this collector holds.", [("", len(held))]),
        *_family("takeovers_total", "counter", "Shards taken.", [("", shards.counters["takeovers"])]),
        *_family(
            "shards_lost_total",
            "counter",
            "Shards that another collector took from this one.",
            [("", shards.counters["shards_lost"])],
        ),
        *_family(
            "writes_fenced_total",
            "counter",
            "Writes refused because another collector had taken the shard.",
            [("", shards.counters["writes_fenced"] + sum(one.live.state.fenced for one in held if one.live))],
        ),
        *_family(
            "shard_behind_messages",
            "gauge",
            "Messages in the broker that wait for a shard held here.",
            [
                (f'{{shard="{one.shard}"}}', one.feed.behind)
                for one in held
                if one.feed is not None and one.feed.behind is not None
            ],
        ),
        *_family(
            "shard_checkpoints_total",
            "counter",
            "Checkpoints kept of a shard held here.",
            [(f'{{shard="{one.shard}"}}', one.keeper.saves) for one in held if one.keeper is not None],
        ),
        *_family(
            "shard_gpus",
            "gauge",
            "GPUs of a shard held here.",
            [(f'{{shard="{one.shard}"}}', len(one.live.engine.inventory)) for one in held if one.live],
        ),
    ]
    for name, text in COUNTERS.items():
        rows = [(f'{{shard="{one.shard}"}}', one.live.counters[name]) for one in held if one.live]
        lines += _family(f"{name}_total", "counter", text, rows)
    return "\n".join(lines) + "\n"


def _family(name: str, kind: str, text: str, rows: list[tuple[str, int]]) -> list[str]:
    name = f"unidle_collector_{name}"
    return [
        f"# HELP {name} {text}",
        f"# TYPE {name} {kind}",
        *(f"{name}{labels} {value}" for labels, value in rows),
    ]
