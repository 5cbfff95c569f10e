"""What is wrong and what to do: findings, recommendations, incidents and their changes."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request, Response

from unidle_collector import reading
from unidle_collector.api.desk import Desk
from unidle_collector.api.forms import ERRORS, LISTED, MISSING, listing
from unidle_collector.api.pages import Cut, Page, Paged
from unidle_collector.flights import flights_of
from unidle_collector.model import Finding, FlightRecording, Incident, IncidentEvent, Recommendation
from unidle_collector.recommend import recommend

Opened = Literal["open", "resolved", "all"]
OpenedState = Annotated[Opened, Query(description="open, resolved or all", examples=["open"])]
After = Annotated[int, Query(ge=0, description="seq of the last event known", examples=[0])]
MostEvents = Annotated[int, Query(ge=1, le=500, description="most events of the answer", examples=[500])]
IncidentId = Annotated[
    str, Path(max_length=500, description="id of the incident", examples=["idle-k3jv5qq2"])
]


def routes(desk: Desk) -> APIRouter:
    """From a finding to its incident."""
    router = APIRouter(prefix="/api/v1", tags=["wrong"], responses=ERRORS)
    live, state_of = desk.live, desk.live.state

    async def as_of_now(kept: list[Incident]) -> list[Incident]:
        time_ns, findings = await desk.ask(
            lambda: (live.window.time_ns or live.clock_ns(), live.engine.findings())
        )
        now = {finding.id: finding for finding in findings}
        return await desk.beside(lambda: [reading.as_of_now(one, now, time_ns) for one in kept])

    async def one(incident_id: str) -> Incident:
        kept = await desk.beside(lambda: state_of.incident(incident_id))
        if kept is None:
            raise reading.NotHereError(f"no incident {incident_id!r}; /api/v1/incidents?state=all lists them")
        return (await as_of_now([kept]))[0]

    @router.get("/findings", response_model=list[Finding], responses=LISTED)
    async def findings(request: Request, page: Paged) -> Response:
        """Everything that is wrong now, told or still developing, by kind and subject."""
        found = sorted(await desk.ask(live.engine.findings), key=finding_key)
        return await listing(desk, request, Finding, page.cut(found, finding_key))

    @router.get("/recommendations", response_model=list[Recommendation], responses=LISTED)
    async def recommendations(request: Request, page: Paged) -> Response:
        """What to do, the most worth first."""
        time_ns, findings = await desk.ask(
            lambda: (live.window.time_ns or live.clock_ns(), live.engine.findings())
        )
        advised = await desk.beside(lambda: sorted(recommend(findings, time_ns), key=worth_key))
        return await listing(desk, request, Recommendation, page.cut(advised, worth_key))

    @router.get("/incidents", response_model=list[Incident], responses=LISTED)
    async def incidents(request: Request, page: Paged, state: OpenedState = "open") -> Response:
        """Incidents, newest first; open ones as of now."""
        after = incident_place(page)
        kept = await desk.beside(lambda: state_of.incidents(state, page.limit + 1, after))
        here = page.of(kept, incident_key)
        return await listing(desk, request, Incident, Cut(await as_of_now(here.items), here.following))

    @router.get("/incidents/{incident_id}", responses=MISSING)
    async def incident(incident_id: IncidentId) -> Incident:
        """One incident, as of now while it is open."""
        return await one(incident_id)

    @router.get("/incidents/{incident_id}/flights", responses=MISSING)
    async def incident_flights(incident_id: IncidentId) -> list[FlightRecording]:
        """What the flight recorders of its GPUs held around that time, newest first, at most 16."""
        found = await one(incident_id)
        return await desk.beside(lambda: flights_of(state_of, found))

    @router.get("/events")
    async def events(after: After = 0, limit: MostEvents = 500) -> list[IncidentEvent]:
        """Changes of incidents in order, after a seq: ask again with the last one until none comes."""
        return await desk.beside(lambda: state_of.events(after, limit))

    return router


def incident_place(page: Page) -> tuple[int, str] | None:
    """(opened_ns, id) of the last incident before a page; None on the first one."""
    match page.after:
        case None:
            return None
        case (int(opened_ns), str(incident_id)):
            return -opened_ns, incident_id
        case _:
            raise page.wrong()


def incident_key(incident: Incident) -> tuple[int, str]:
    """The order of a list of incidents: the newest first."""
    return -incident.opened_ns, incident.id


def finding_key(finding: Finding) -> tuple[str, str, str]:
    """The order of a list of findings."""
    return finding.kind, finding.subject_kind, finding.subject


def worth_key(item: Recommendation) -> tuple[float, float, str]:
    """The order of a list of recommendations: the most worth first."""
    expected = item.gain.expected
    return -(expected.eur or 0.0), -expected.gpu_h, item.id
