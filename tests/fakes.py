"""Fakes of the world's edges that several areas' tests share: a clock, a collector, a notifier."""

from __future__ import annotations

import json
import threading
import urllib.parse
from collections.abc import Callable, Iterable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pydantic import TypeAdapter

from unidle_alerts.notice import Notice
from unidle_alerts.notifiers import Outcome
from unidle_collector.client import ApiError
from unidle_collector.model import (
    Cost,
    Evidence,
    Finding,
    Gain,
    GpuRef,
    Incident,
    IncidentEvent,
    Recommendation,
)

SECOND_NS = 1_000_000_000
START_NS = 1_795_269_720 * SECOND_NS
"""2026-11-21 14:02:00 UTC."""


class FakeClock:
    """A clock that stands still until it is told to move."""

    def __init__(self, now_ns: int = START_NS) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns

    def forward(self, seconds: float) -> None:
        self.now_ns += int(seconds * SECOND_NS)


def make_incident(
    incident_id: str = "inc-1",
    state: str = "open",
    revision: int = 1,
    *,
    opened_ns: int = START_NS,
    resolved_ns: int | None = None,
    **finding: Any,
) -> Incident:
    """An incident as the collector would tell it; `finding` overrides fields of its finding."""
    gpus = tuple(GpuRef("gpu-07", f"GPU-{i:08x}", i, "NVIDIA B200") for i in range(8))
    fields: dict[str, Any] = {
        "id": f"f-{incident_id}",
        "kind": "idle",
        "cause": "held",
        "severity": "warning",
        "confidence": 0.95,
        "subject_kind": "job",
        "subject": "4711",
        "title": "8 GPUs idle for 31 min: a process holds them",
        "since_ns": opened_ns - 1860 * SECOND_NS,
        "updated_ns": opened_ns,
        "told_ns": opened_ns,
        "job": "4711",
        "user": "u-5f3a",
        "nodes": ("gpu-07",),
        "gpus": gpus,
        "evidence": (Evidence("gpu_util_ratio", 0.002, "1", 0.01, 1860, "activity 0.2 % for 31 min"),),
        "cost_so_far": Cost(4.13, 12.4, 2.6),
        "cost_per_h": Cost(8.0, 24.0, 5.2),
        "advice": "Ask the owner whether the work is over.",
        "confirm": "nvidia-smi on the node",
    } | finding
    return Incident(
        incident_id, state, revision, opened_ns, resolved_ns, Finding(**fields), (make_recommendation(),)
    )


def make_recommendation(**fields: Any) -> Recommendation:
    """What to do about it."""
    gain = Gain(1.0, Cost(4.0, 12.0, 2.0), Cost(8.0, 24.0, 5.2), Cost(8.0, 24.0, 5.2))
    defaults: dict[str, Any] = {
        "id": "rec-1",
        "kind": "reclaim_idle",
        "lever": "reclaim",
        "title": "Give back 8 idle GPUs",
        "subject": "4711",
        "finding_ids": ("f-1",),
        "gain": gain,
        "binding_constraint": "the owner's answer",
        "risk": "state in memory is lost",
        "assumptions": ("the job stays idle",),
        "command": "scancel --signal=TERM 4711",
        "undo": "sbatch the job again",
        "notice": "u-5f3a has 2 h to say keep",
        "measure": "GPU-hours idle of job 4711",
        "created_ns": START_NS,
        "job": "4711",
        "user": "u-5f3a",
    }
    return Recommendation(**(defaults | fields))


def resolve(incident: Incident, at_ns: int) -> Incident:
    """The same incident, over."""
    finding = replace(incident.finding, ended_ns=at_ns)
    return replace(
        incident, state="resolved", revision=incident.revision + 1, resolved_ns=at_ns, finding=finding
    )


class FakeCollector:
    """The collector's log of incidents, in memory: `CollectorApi.events` with its page size."""

    def __init__(self, page: int = 500) -> None:
        self.log: list[IncidentEvent] = []
        self.page = page
        self.asked: list[int] = []
        self.problem = ""

    def add(self, *incidents: Incident) -> None:
        for incident in incidents:
            time_ns = incident.resolved_ns or incident.opened_ns
            self.log.append(IncidentEvent(len(self.log) + 1, time_ns, incident))

    def events(self, after: int = 0) -> list[IncidentEvent]:
        self.asked.append(after)
        if self.problem:
            raise ApiError(self.problem)
        return [event for event in self.log if event.seq > after][: self.page]


class FakeCollectorServer:
    """`collector` behind the collector's HTTP API (GET /api/v1/events only), for real processes."""

    def __init__(self, collector: FakeCollector, on_request: Callable[[], None] = lambda: None) -> None:
        events: TypeAdapter[list[IncidentEvent]] = TypeAdapter(list[IncidentEvent])

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                url = urllib.parse.urlsplit(self.path)
                known = url.path == "/api/v1/events"
                after = int(dict(urllib.parse.parse_qsl(url.query)).get("after", 0))
                body = events.dump_json(collector.events(after)) if known else b'{"detail": "no such page"}'
                on_request()
                self.send_response(200 if known else 404)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FakeCollectorServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class FakeNotifier:
    """Takes messages; answers by `plan`, then "delivered" for ever."""

    def __init__(self, plan: Iterable[Outcome] = (), name: str = "slack_webhook") -> None:
        self.name = name
        self.plan = list(plan)
        self.notices: list[Notice] = []
        self.attempts: list[Notice] = []

    def send(self, notice: Notice) -> Outcome:
        self.attempts.append(notice)
        outcome = self.plan.pop(0) if self.plan else Outcome("delivered", "ok")
        if outcome.kind == "delivered":
            self.notices.append(notice)
        return outcome


def as_text(document: Any) -> str:
    """JSON as Slack counts it: one character each, no \\u escapes."""
    return json.dumps(document, ensure_ascii=False)
