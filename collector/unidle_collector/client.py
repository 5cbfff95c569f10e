"""The typed client of the collector's API: what alerts, dashboard and terminal commands read by.

Standard library plus pydantic for the types; raises ApiError with what to do about it.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Hashable
from functools import cache
from typing import Any, Protocol, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from unidle_agent.errors import UnidleError
from unidle_collector.federation.report import Crossing, SiteNow
from unidle_collector.model import (
    Account,
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
)

T = TypeVar("T")


class ApiError(UnidleError):
    """The collector could not be asked, or answered something unexpected."""


class CollectorApi(Protocol):
    """What can be asked of a collector."""

    def health(self) -> Health: ...
    def fleet(self, window_s: float = 3600, site: str = "") -> Fleet: ...
    def gpus(self) -> list[GpuNow]: ...
    def nodes(self) -> list[NodeNow]: ...
    def accounts(self, by: str, window_s: float = 3600) -> list[Account]: ...
    def incidents(self, state: str = "open") -> list[Incident]: ...
    def incident(self, incident_id: str) -> Incident: ...
    def flights(self, incident_id: str) -> list[FlightRecording]: ...
    def events(self, after: int = 0) -> list[IncidentEvent]: ...
    def recommendations(self) -> list[Recommendation]: ...
    def series(self, node: str, gpu: str, field: str, window_s: float = 3600) -> Series: ...
    def sites(self) -> list[SiteNow]: ...


class Client:
    """A collector at `url`, e.g. http://127.0.0.1:9470; `token` is its read token where it has one."""

    def __init__(self, url: str, token: str = "", timeout_s: float = 10.0) -> None:
        self._url = url.rstrip("/")
        self._token = token
        self._timeout_s = timeout_s

    def health(self) -> Health:
        """GET /api/v1/health"""
        return self._get(Health, "health")

    def fleet(self, window_s: float = 3600, site: str = "") -> Fleet:
        """GET /api/v1/fleet: everything at a glance, accounts over the last `window_s` seconds.

        `site`: only that one of a federation.
        """
        only = {"site": site} if site else {}
        return self._get(Fleet, "fleet", window_s=window_s, **only)

    def sites(self) -> list[SiteNow]:
        """GET /api/v1/sites of a federation: every site with the last that it told."""
        return self._get(list[SiteNow], "sites")

    def crossings(self) -> list[Crossing]:
        """GET /api/v1/federation/crossings of a site: what left it for a federation, newest first."""
        return self._get(list[Crossing], "federation/crossings")

    def gpus(self) -> list[GpuNow]:
        """GET /api/v1/gpus: every GPU as it is now."""
        return self._get(list[GpuNow], "gpus")

    def nodes(self) -> list[NodeNow]:
        """GET /api/v1/nodes: every node as it is now."""
        return self._get(list[NodeNow], "nodes")

    def jobs(self) -> list[JobNow]:
        """GET /api/v1/jobs: every job that holds GPUs now, the most GPUs first."""
        return self._get(list[JobNow], "jobs")

    def queue(self) -> Queue:
        """GET /api/v1/queue: what waits for GPUs."""
        return self._get(Queue, "queue")

    def accounts(self, by: str, window_s: float = 3600) -> list[Account]:
        """GET /api/v1/accounts: time by `gpu`, `node`, `job`, `user`, `model` or `hour`."""
        return self._get(list[Account], "accounts", by=by, window_s=window_s)

    def incidents(self, state: str = "open") -> list[Incident]:
        """GET /api/v1/incidents: `open`, `resolved` or `all`, newest first."""
        return self._get(list[Incident], "incidents", state=state)

    def incident(self, incident_id: str) -> Incident:
        """GET /api/v1/incidents/ID"""
        return self._get(Incident, f"incidents/{urllib.parse.quote(incident_id, safe='')}")

    def flights(self, incident_id: str) -> list[FlightRecording]:
        """GET /api/v1/incidents/ID/flights: the windows of flight recorders that belong to it."""
        return self._get(
            list[FlightRecording], f"incidents/{urllib.parse.quote(incident_id, safe='')}/flights"
        )

    def events(self, after: int = 0) -> list[IncidentEvent]:
        """GET /api/v1/events: changes of incidents with seq > `after`, in order, at most 500."""
        return self._get(list[IncidentEvent], "events", after=after)

    def recommendations(self) -> list[Recommendation]:
        """GET /api/v1/recommendations: most EUR (else GPU-hours) first."""
        return self._get(list[Recommendation], "recommendations")

    def series(self, node: str, gpu: str, field: str, window_s: float = 3600) -> Series:
        """GET /api/v1/series: one field of one GPU; `gpu` empty for a host field. At most 1,500 points."""
        return self._get(Series, "series", node=node, gpu=gpu, field=field, window_s=window_s)

    def _get(self, kind: type[T], path: str, **query: str | float) -> T:
        url = f"{self._url}/api/v1/{path}"
        if query:
            url += "?" + urllib.parse.urlencode(query)
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        request = urllib.request.Request(url, headers=headers)  # noqa: S310  # operator's own URL
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s) as reply:  # noqa: S310
                body = reply.read()
        except urllib.error.HTTPError as error:
            raise ApiError(f"{url}: expected an answer, came HTTP {error.code}: {_detail(error)}") from error
        except (OSError, ValueError) as error:
            raise ApiError(
                f"no collector answers at {self._url} ({error}); start one with: unidle collector"
            ) from error
        try:
            return cast(T, _adapter(cast(Hashable, kind)).validate_json(body))
        except ValidationError as error:
            raise ApiError(f"{url}: the answer does not fit this version of unidle: {error}") from error


@cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(Any, kind))


def _detail(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read(4096)).get("detail", error.reason))
    except (ValueError, AttributeError, OSError):
        return str(error.reason)
