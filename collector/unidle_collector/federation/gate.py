"""The one door through which anything leaves a site: GET /api/v1/federation, for receivers of its policy.

Each answer is written to the audit log first: what cannot be written down does not cross.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import TypeAdapter

from unidle_agent.errors import UnidleError
from unidle_collector.federation.policy import Policy, Receiver, load_policy
from unidle_collector.federation.report import WINDOWS_S, Crossing, SiteReport
from unidle_collector.federation.sending import Hours, report, window
from unidle_collector.live import Live

T = TypeVar("T")

PATH = "/api/v1/federation"
MADE_EACH_S = 2.0
"""A report to the same receiver is not made more often: the same one crosses again."""
ANSWER_WITHIN_S = 30.0


class Gate:
    """Answers the receivers of one site's policy; made once per process."""

    def __init__(self, live: Live) -> None:
        """Raises SettingError where the policy file says something that cannot be."""
        file, jurisdiction = live.settings.federation_file, live.settings.jurisdiction
        self._live = live
        self._policy = load_policy(Path(file), jurisdiction) if file else Policy(jurisdiction)
        self._hours = Hours()
        self._made: dict[str, tuple[float, bytes]] = {}
        """Receiver -> monotonic time and bytes of the last report."""

    async def answer(self, request: Request) -> Response:
        """200 with the report, 401 for anybody else, 503 where it cannot be made or written down."""
        receiver = self._policy.receiver(request.headers.get("authorization", ""))
        if receiver is None:
            self._live.counters["requests_unauthorized"] += 1
            text = (
                "expected the header 'Authorization: Bearer TOKEN' of a receiver in the federation_file here"
            )
            return JSONResponse({"detail": text}, 401, {"WWW-Authenticate": "Bearer"})
        try:
            body = await self._body(receiver)
            await asyncio.to_thread(self._write_down, receiver, body)
        except (UnidleError, TimeoutError) as error:
            return JSONResponse({"detail": str(error) or "too busy to report"}, 503, {"Retry-After": "10"})
        return Response(body, media_type="application/json", headers={"Cache-Control": "no-store"})

    async def _body(self, receiver: Receiver) -> bytes:
        made_s, body = self._made.get(receiver.name, (float("-inf"), b""))
        if time.monotonic() - made_s < MADE_EACH_S:
            return body
        shared, smallest = self._policy.shared_with(receiver), self._policy.smallest_group
        windows, merged = [], dict[str, int]()
        for window_s in WINDOWS_S:  # one question each, so that pushes need not wait for all of them
            told, merged = await self._ask(
                partial(window, self._live, window_s, shared, smallest, self._hours)
            )
            windows.append(told)
        found = await self._ask(partial(report, self._live, self._policy, receiver, windows, merged))
        body = await asyncio.to_thread(_reports().dump_json, found)
        self._made[receiver.name] = (time.monotonic(), body)
        return body

    async def _ask(self, question: Callable[[], T]) -> T:
        return await asyncio.wait_for(asyncio.wrap_future(self._live.ask(question)), ANSWER_WITHIN_S)

    def _write_down(self, receiver: Receiver, body: bytes) -> None:
        shared = self._policy.shared_with(receiver)
        self._live.state.save_crossing(
            Crossing(
                seq=0,  # the database gives it
                time_ns=self._live.clock_ns(),
                receiver=receiver.name,
                receiver_jurisdiction=receiver.jurisdiction,
                shared=tuple(sorted(shared)),
                bytes=len(body),
                sha256=hashlib.sha256(body).hexdigest(),
            )
        )
        self._live.counters["federation_crossings"] += 1


def mount(app: FastAPI, live: Live, errors: dict[int | str, dict[str, Any]]) -> None:
    """The door for receivers, and the audit log for readers of the site, refused as `errors` says."""
    gate = Gate(live)

    @app.get(PATH, include_in_schema=False)
    async def federation(request: Request) -> Response:
        return await gate.answer(request)

    @app.get(f"{PATH}/crossings", tags=["past"], responses=errors)
    def crossings(
        limit: int = Query(default=100, ge=1, le=5000, description="most crossings of the answer"),
    ) -> list[Crossing]:
        """What left this site, to whom and when; newest first."""
        return live.state.crossings(limit)


@cache
def _reports() -> TypeAdapter[SiteReport]:
    return TypeAdapter(SiteReport)
