"""What is wrong and what to do: findings, recommendations, incidents and their changes."""

from __future__ import annotations

import asyncio
from typing import Literal

from fastapi import APIRouter, Query

from unidle_collector import reading
from unidle_collector.api.asking import ask
from unidle_collector.flights import flights_of
from unidle_collector.live import Live
from unidle_collector.model import Finding, FlightRecording, Incident, IncidentEvent, Recommendation


def routes(live: Live) -> APIRouter:
    """From a finding to its incident."""
    router = APIRouter(prefix="/api/v1")

    @router.get("/findings")
    async def findings() -> list[Finding]:
        """Everything that is wrong now, told or still developing."""
        return await ask(live, live.engine.findings)

    @router.get("/recommendations")
    async def recommendations() -> list[Recommendation]:
        """What to do, the most worth first."""
        return await ask(live, lambda: reading.recommendations(live))

    @router.get("/incidents")
    async def incidents(
        state: Literal["open", "resolved", "all"] = "open", limit: int = Query(default=500, ge=1, le=5000)
    ) -> list[Incident]:
        """Incidents, newest first; open ones as of now."""
        return await ask(live, lambda: reading.incidents(live, state, limit))

    @router.get("/incidents/{incident_id}")
    async def incident(incident_id: str) -> Incident:
        """One incident, as of now while it is open."""
        return await ask(live, lambda: reading.incident(live, incident_id))

    @router.get("/incidents/{incident_id}/flights")
    async def incident_flights(incident_id: str) -> list[FlightRecording]:
        """What the flight recorders of its GPUs held around that time, newest first, at most 16."""
        found = await ask(live, lambda: reading.incident(live, incident_id))
        return await asyncio.to_thread(flights_of, live.store.state, found)

    @router.get("/events")
    def events(
        after: int = Query(default=0, ge=0), limit: int = Query(default=500, ge=1, le=500)
    ) -> list[IncidentEvent]:
        """Changes of incidents in order, after a seq."""
        return live.store.state.events(after, limit)

    return router
