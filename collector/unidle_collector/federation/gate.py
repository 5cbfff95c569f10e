"""The one door through which anything leaves a site: GET /api/v1/federation, for receivers of its policy.

Each answer is written to the audit log first: what cannot be written down does not cross. What stands behind
the door is a `Site`: one live collector (`OfLive`), or all shards of a site (`shards.view.federation`).
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Collection
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import TypeAdapter

from unidle_agent.errors import UnidleError
from unidle_collector.federation.parts import About, Hours, Part, about, part
from unidle_collector.federation.policy import Policy, Receiver, load_policy
from unidle_collector.federation.report import DIMENSIONS, WINDOWS_S, Crossing, SiteReport
from unidle_collector.federation.sending import dimensions, report, window
from unidle_collector.live import Live
from unidle_collector.settings import CollectorSettings
from unidle_collector.store import State

T = TypeVar("T")

PATH = "/api/v1/federation"
PART = "/api/v1/federation/part"
"""What a report is made of, for readers of the site: collectors of shards ask each other for it."""
Wanted = Annotated[list[str], Query(description="of DIMENSIONS; others are not known here")]
MADE_EACH_S = 2.0
"""A report to the same receiver is not made more often: the same one crosses again."""
ANSWER_WITHIN_S = 30.0


class Site(Protocol):
    """What a report is made of."""

    async def part(self, request: Request, window_s: float, wanted: Collection[str]) -> Part:
        """The accounts of a window by these of DIMENSIONS; raises UnidleError."""

    async def about(self, request: Request) -> About:
        """The site as it is now; raises UnidleError."""


class OfLive:
    """A site that is one collector."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._hours = Hours()

    async def part(self, _: Request, window_s: float, wanted: Collection[str]) -> Part:
        """See Site."""
        return await self._ask(partial(part, self._live, window_s, wanted, self._hours))

    async def about(self, _: Request) -> About:
        """See Site."""
        return await self._ask(partial(about, self._live))

    async def _ask(self, question: Callable[[], T]) -> T:
        return await asyncio.wait_for(asyncio.wrap_future(self._live.ask(question)), ANSWER_WITHIN_S)


class Gate:
    """Answers the receivers of one site's policy; made once per process."""

    def __init__(
        self,
        settings: CollectorSettings,
        site: Site,
        state: State,
        clock_ns: Callable[[], int],
        count: Callable[[str], None],
    ) -> None:
        """`state` keeps the audit log; `count` notes what came of a request.

        Raises SettingError where the policy file says something that cannot be.
        """
        file, jurisdiction = settings.federation_file, settings.jurisdiction
        self._site, self._state, self._clock_ns, self._count = site, state, clock_ns, count
        self._policy = load_policy(Path(file), jurisdiction) if file else Policy(jurisdiction)
        self._made: dict[str, tuple[float, bytes]] = {}
        """Receiver -> monotonic time and bytes of the last report."""

    async def answer(self, request: Request) -> Response:
        """200 with the report, 401 for anybody else, 503 where it cannot be made or written down."""
        receiver = self._policy.receiver(request.headers.get("authorization", ""))
        if receiver is None:
            self._count("requests_unauthorized")
            text = (
                "expected the header 'Authorization: Bearer TOKEN' of a receiver in the federation_file here"
            )
            return JSONResponse({"detail": text}, 401, {"WWW-Authenticate": "Bearer"})
        try:
            body = await self._body(request, receiver)
            await asyncio.to_thread(self._write_down, receiver, body)
        except (UnidleError, TimeoutError) as error:
            return JSONResponse({"detail": str(error) or "too busy to report"}, 503, {"Retry-After": "10"})
        return Response(body, media_type="application/json", headers={"Cache-Control": "no-store"})

    async def _body(self, request: Request, receiver: Receiver) -> bytes:
        made_s, body = self._made.get(receiver.name, (float("-inf"), b""))
        if time.monotonic() - made_s < MADE_EACH_S:
            return body
        shared, smallest = self._policy.shared_with(receiver), self._policy.smallest_group
        windows, merged = [], dict[str, int]()
        for window_s in WINDOWS_S:  # one question each, so that pushes need not wait for all of them
            found = await self._site.part(request, window_s, dimensions(shared))
            told, merged = window(found, window_s, shared, smallest)
            windows.append(told)
        whole = report(await self._site.about(request), self._policy, receiver, windows, merged)
        body = await asyncio.to_thread(_reports().dump_json, whole)
        self._made[receiver.name] = (time.monotonic(), body)
        return body

    def _write_down(self, receiver: Receiver, body: bytes) -> None:
        shared = self._policy.shared_with(receiver)
        self._state.save_crossing(
            Crossing(
                seq=0,  # the database gives it
                time_ns=self._clock_ns(),
                receiver=receiver.name,
                receiver_jurisdiction=receiver.jurisdiction,
                shared=tuple(sorted(shared)),
                bytes=len(body),
                sha256=hashlib.sha256(body).hexdigest(),
            )
        )
        self._count("federation_crossings")


def mount(app: FastAPI, live: Live, errors: dict[int | str, dict[str, Any]]) -> None:
    """The door of a collector that is a site of its own, or one shard of a site."""
    site = OfLive(live)

    def count(what: str) -> None:
        live.counters[what] += 1

    mount_gate(app, Gate(live.settings, site, live.state, live.clock_ns, count), live.state, errors)

    @app.get(PART, include_in_schema=False)
    async def of_part(request: Request, window_s: float, by: Wanted) -> Part:
        return await site.part(request, window_s, [name for name in by if name in DIMENSIONS])


def mount_gate(app: FastAPI, gate: Gate, state: State, errors: dict[int | str, dict[str, Any]]) -> None:
    """The door for receivers, and the audit log for readers of the site, refused as `errors` says."""

    @app.get(PATH, include_in_schema=False)
    async def federation(request: Request) -> Response:
        return await gate.answer(request)

    @app.get(f"{PATH}/crossings", tags=["past"], responses=errors)
    def crossings(
        limit: int = Query(default=100, ge=1, le=5000, description="most crossings of the answer"),
    ) -> list[Crossing]:
        """What left this site, to whom and when; newest first."""
        return state.crossings(limit)


@cache
def _reports() -> TypeAdapter[SiteReport]:
    return TypeAdapter(SiteReport)
