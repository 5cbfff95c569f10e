"""The typed client of the collector's API: what alerts, dashboard and terminal commands read by.

Standard library, pydantic for the types, and pyarrow where a table comes; raises ApiError with what to do
about it.
"""

from __future__ import annotations

import http.client
import json
import re
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from unidle_agent import fetch
from unidle_agent.errors import UnidleError, reason
from unidle_collector.federation.report import Crossing, SiteNow
from unidle_collector.gpu_table import gpus_of
from unidle_collector.model import (
    Account,
    Finding,
    Fleet,
    FleetSeries,
    FlightRecording,
    GpuNow,
    Health,
    Incident,
    IncidentEvent,
    JobNow,
    JobQuantile,
    NodeNow,
    Queue,
    Recommendation,
    Series,
)

T = TypeVar("T")
Query = list[tuple[str, str | float]]

JSON, ARROW = "application/json", "application/vnd.apache.arrow.stream"
MOST = 10_000
"""Items of a page, where all of them are wanted anyway."""
MOST_INCIDENTS = 500


class ApiError(UnidleError):
    """The collector could not be asked, or answered something unexpected."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        """Of HTTP, where it answered."""


class CollectorApi(Protocol):
    """What can be asked of a collector."""

    def health(self) -> Health: ...
    def fleet(self, window_s: float = 3600, site: str = "") -> Fleet: ...
    def gpus(self, fields: Sequence[str] = (), node: str = "") -> list[GpuNow]: ...
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
        fetch.target(url, "collector_url")  # raises SettingError
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

    def gpus(self, fields: Sequence[str] = (), node: str = "") -> list[GpuNow]:
        """GET /api/v1/gpus: every GPU (of `node`) as it is now, with `fields` only where any are given."""
        query: Query = [("limit", MOST), *(("fields", name) for name in fields)]
        query += [("node", node)] if node else []
        return self._list(GpuNow, "gpus", query, arrow=gpus_of)

    def nodes(self) -> list[NodeNow]:
        """GET /api/v1/nodes: every node as it is now."""
        return self._list(NodeNow, "nodes", [("limit", MOST)])

    def jobs(self) -> list[JobNow]:
        """GET /api/v1/jobs: every job that holds GPUs now, the most GPUs first."""
        return self._list(JobNow, "jobs", [("limit", MOST)])

    def queue(self) -> Queue:
        """GET /api/v1/queue: what waits for GPUs."""
        return self._get(Queue, "queue")

    def accounts(self, by: str, window_s: float = 3600) -> list[Account]:
        """GET /api/v1/accounts: time by `gpu`, `node`, `job`, `user`, `team`, `site`, `model`, `hour`, ..."""
        return self._list(Account, "accounts", [("by", by), ("window_s", window_s), ("limit", MOST)])

    def findings(self) -> list[Finding]:
        """GET /api/v1/findings: everything that is wrong now, told or still developing."""
        return self._list(Finding, "findings", [("limit", MOST)])

    def incidents(self, state: str = "open") -> list[Incident]:
        """GET /api/v1/incidents: `open` (all of them), `resolved` or `all` (at most 500), newest first."""
        query: Query = [("state", state), ("limit", MOST_INCIDENTS)]
        return self._list(Incident, "incidents", query, only_first=state != "open")

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
        return self._list(Recommendation, "recommendations", [("limit", MOST)])

    def series(self, node: str, gpu: str, field: str, window_s: float = 3600) -> Series:
        """GET /api/v1/series: one field of one GPU; `gpu` empty for a host field. At most 1,500 points."""
        return self._get(Series, "series", node=node, gpu=gpu, field=field, window_s=window_s)

    def fleet_series(self, field: str, window_s: float = 86400, simulated: bool = False) -> FleetSeries:
        """GET /api/v1/fleet/series: one field of all real (or all simulated) GPUs together."""
        made_up = "true" if simulated else "false"
        return self._get(FleetSeries, "fleet/series", field=field, window_s=window_s, simulated=made_up)

    def quantile(self, job: str, field: str, share: float = 0.95) -> JobQuantile:
        """GET /api/v1/quantile: of one gauge over a job's life; HTTP 404 where nothing is kept."""
        return self._get(JobQuantile, "quantile", job=job, field=field, share=share)

    def _get(self, kind: type[T], path: str, **query: str | float) -> T:
        url = self._address(path, list(query.items()))
        return cast(T, _parsed(cast(Hashable, kind), url, self._ask(url, JSON).body))

    def _list(
        self,
        kind: type[T],
        path: str,
        query: Query,
        *,
        arrow: Callable[[Any], list[T]] | None = None,
        only_first: bool = False,
    ) -> list[T]:
        """Every page of a list; `arrow` reads the records of a page that comes as a table."""
        url = self._address(path, query)
        found: list[T] = []
        while True:
            page = self._ask(url, f"{ARROW}, {JSON};q=0.5" if arrow else JSON)
            if arrow is not None and page.kind == ARROW:
                found += arrow(_table(url, page.body))
            else:
                found += cast(list[T], _parsed(cast(Hashable, list[kind]), url, page.body))  # type: ignore[valid-type]
            if only_first or not page.following:
                return found
            if page.following == urllib.parse.urlsplit(url).query:
                raise ApiError(f"{url}: expected that the next page is another one, came the same")
            url = f"{self._url}/api/v1/{path}?{page.following}"

    def _address(self, path: str, query: Query) -> str:
        return f"{self._url}/api/v1/{path}" + ("?" + urllib.parse.urlencode(query) if query else "")

    def _ask(self, url: str, accept: str) -> _Reply:
        headers = {"Accept": accept} | ({"Authorization": f"Bearer {self._token}"} if self._token else {})
        request = urllib.request.Request(url, headers=headers)  # noqa: S310  # operator's own URL
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s) as reply:  # noqa: S310
                behind = following(reply.headers.get("Link", ""))
                return _Reply(reply.headers.get_content_type(), reply.read(), behind)
        except urllib.error.HTTPError as error:
            if error.code == 401:
                raise ApiError(f"{self._url} {self._refused()}", error.code) from error
            raise ApiError(
                f"{url}: expected an answer, came HTTP {error.code}: {_detail(error)}", error.code
            ) from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ApiError(
                f"no collector answers at {self._url} ({_why(error)}); start one with: unidle collector, or "
                "name another with --collector-url"
            ) from error

    def _refused(self) -> str:
        how = "give one with --collector-token-file FILE (unidle tokens create --read NAME makes one)"
        return f"does not take this read token: {how}" if self._token else f"wants a read token: {how}"


@dataclass(frozen=True, slots=True)
class _Reply:
    """One page."""

    kind: str
    """Media type."""
    body: bytes
    following: str
    """Query of the next page; empty on the last one."""


def following(link: str) -> str:
    """Of a Link header only the query is taken: the token goes to no other place than it was given for."""
    found = re.fullmatch(r'\s*<([^>]*)>\s*;\s*rel="?next"?\s*', link)
    return urllib.parse.urlsplit(found[1]).query if found else ""


def _parsed(kind: Hashable, url: str, body: bytes) -> Any:
    try:
        return _adapter(kind).validate_json(body)
    except ValidationError as error:
        raise ApiError(f"{url}: the answer does not fit this version of unidle: {error}") from error


def _table(url: str, body: bytes) -> Any:
    import pyarrow as pa  # 40 MB, which the alerts never need

    try:
        return pa.ipc.open_stream(body).read_all()
    except pa.ArrowInvalid as error:
        raise ApiError(f"{url}: expected an Arrow stream, came {error}") from error


@cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(Any, kind))


def _why(error: Exception) -> str:
    """Without urllib's own words, which name the error's class."""
    why = getattr(error, "reason", error)
    if isinstance(why, ssl.SSLError) and why.reason == "WRONG_VERSION_NUMBER":
        return "it does not speak TLS: try http://"
    if isinstance(error, http.client.BadStatusLine):
        return "what listens there does not speak HTTP, or only TLS: try https://"
    return reason(why) if isinstance(why, Exception) else str(why)


def _detail(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read(4096)).get("detail", error.reason))
    except (ValueError, AttributeError, OSError):
        return str(error.reason)
