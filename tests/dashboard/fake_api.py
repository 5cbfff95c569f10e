"""A collector that is not there: 64 nodes x 8 GPUs with known faults, as a CollectorApi and over HTTP.

All of it is made from one list of node groups, so that fleet, GPUs, incidents and recommendations agree.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.error import HTTPError
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import TypeAdapter

from unidle_agent.fields import BY_NAME
from unidle_agent.owners.resolve import CONFLICT, ORPHAN, OUTSIDE
from unidle_collector.client import ApiError
from unidle_collector.model import (
    STATES,
    Account,
    CauseShare,
    Cost,
    Evidence,
    Finding,
    Fleet,
    FlightRecording,
    Gain,
    GpuNow,
    GpuRef,
    Health,
    Incident,
    IncidentEvent,
    NodeNow,
    Recommendation,
    Series,
    Severity,
    State,
)

NOW_NS = 1_795_269_730_000_000_000
"""2026-11-21 14:02:10 UTC."""
LAG_S = 1.5
EUR_PER_GPU_H = 6.0
VERBS = {"idle": "Give back", "starved": "Feed", "throttled": "Move", "failed": "Drain"}
LOST: tuple[State, ...] = ("idle", "throttled", "starved", "failed")


@dataclass(frozen=True)
class Group:
    """Nodes that do the same."""

    nodes: int
    state: State
    cause: str
    job: str
    loss: float
    util: float
    sm: float
    power_w: float
    temperature_c: float


GROUPS = (
    Group(12, "productive", "", "gpt-pretrain-7", 0.0, 0.98, 0.81, 890, 63),
    Group(9, "productive", "", "vision-tower-12", 0.0, 0.95, 0.72, 830, 61),
    Group(4, "starved", "storage", "whisper-finetune", 0.55, 0.71, 0.31, 410, 47),
    Group(8, "productive", "", "moe-router-3", 0.0, 0.97, 0.77, 870, 62),
    Group(2, "throttled", "software_thermal", "protein-fold-21", 0.22, 0.99, 0.79, 960, 88),
    Group(7, "productive", "", "rlhf-policy-5", 0.0, 0.93, 0.66, 780, 59),
    Group(1, "idle", "held", "notebook-eval", 1.0, 0.0, 0.0, 145, 36),
    Group(2, "idle", "no_process", "sweep-0412", 1.0, 0.0, 0.0, 120, 34),
    Group(3, "starved", "cpu_preprocessing", "video-caption-2", 0.38, 0.84, 0.44, 520, 51),
    Group(8, "productive", "", "diffusion-xl-9", 0.0, 0.96, 0.74, 850, 62),
    Group(6, "unallocated", "", "", 0.0, 0.0, 0.0, 110, 33),
    Group(1, "unknown", "", "rlhf-policy-5", 0.0, math.nan, math.nan, math.nan, math.nan),
    Group(1, "failed", "reboot", "diffusion-xl-9", 1.0, math.nan, math.nan, math.nan, math.nan),
)
assert sum(group.nodes for group in GROUPS) == 64


DOUBTS = {
    (42, 3): (CONFLICT, "sweep-0398"),
    (56, 5): (ORPHAN, "notebook-31,sweep-0398"),
    (57, 0): (OUTSIDE, ""),
}
"""(Node, GPU) -> what is peculiar about its owner, and who uses it."""


def _gpus(groups: tuple[Group, ...], simulated: bool) -> list[GpuNow]:
    gpus = []
    node = 0
    for group in groups:
        for _ in range(group.nodes):
            for index in range(8):
                gpus.append(_gpu(f"b200-{node:02d}", node, index, group, simulated))
            node += 1
    return gpus


def _gpu(name: str, node: int, index: int, group: Group, simulated: bool) -> GpuNow:
    wobble = math.sin(node * 8 + index)
    known = not math.isnan(group.util)
    values: dict[str, float | None] = dict.fromkeys(
        ("gpu_util_ratio", "sm_active_ratio", "power_w", "temperature_c", "memory_used_bytes", "sm_clock_hz")
    )
    if known:
        busy = group.util > 0
        values = {
            "gpu_util_ratio": min(1.0, group.util + 0.02 * wobble) if busy else 0.0,
            "sm_active_ratio": min(1.0, group.sm + 0.05 * wobble) if busy else 0.0,
            "tensor_active_ratio": group.sm * 0.6,
            "memory_used_bytes": (120 + 20 * wobble) * 2**30 if group.job else 0.0,
            "memory_total_bytes": 180.0 * 2**30,
            "power_w": group.power_w + 15 * wobble,
            "power_limit_w": 1000.0,
            "temperature_c": group.temperature_c + 2 * wobble,
            "sm_clock_hz": 1.6e9 if group.state == "throttled" else 1.965e9,
        }
    note, used_by = DOUBTS.get((node, index), ("", ""))
    return GpuNow(
        node=name,
        gpu=f"GPU-{node:04d}-{index}",
        index=index,
        model="NVIDIA B200",
        state=group.state,
        cause=group.cause,
        inferred=False,
        sampled_ns=NOW_NS - 700_000_000 if known else NOW_NS - 900_000_000_000,
        job=group.job,
        user="u-3f9a" if group.job else "",
        values=values,
        simulated=simulated,
        owner_note=note,
        used_by=used_by,
    )


class FakeApi:
    """CollectorApi over a made-up fleet; `rename` puts another name in place of every job and node."""

    def __init__(self, simulated: bool = True, groups: tuple[Group, ...] = GROUPS, name: str = "") -> None:
        self.simulated = simulated
        self.groups = tuple(replace(group, job=name if name and group.job else group.job) for group in groups)
        self.name = name
        self.priced = True
        self.down = False
        self.simulated_gpus = len(_gpus(self.groups, simulated)) if simulated else 0
        self.asked: list[str] = []
        self._gpu_list = [replace(gpu, node=f"{gpu.node}{name}") for gpu in _gpus(self.groups, simulated)]

    def health(self) -> Health:
        self._note("health")
        return Health(
            ok=True,
            problems=("1 node has been silent for 15 min: b200-62",),
            version="0.1.0",
            simulated=self.simulated,
            uptime_s=93_784.0,
            event_time_ns=NOW_NS,
            lag_s=LAG_S,
            counters={"rows_ingested": 46_231_552.0, "batches_rejected": 3.0, "batches_duplicate": 12.0},
        )

    def fleet(self, window_s: float = 3600) -> Fleet:
        self._note(f"fleet {window_s:.0f}")
        states = {state: sum(1 for gpu in self._gpu_list if gpu.state == state) for state in STATES}
        return Fleet(
            site="fra-1",
            time_ns=NOW_NS,
            simulated=self.simulated or self.simulated_gpus > 0,
            nodes=len({gpu.node for gpu in self._gpu_list}),
            gpus=len(self._gpu_list),
            jobs=len({group.job for group in self.groups if group.job}),
            states=states,
            account=self._account(window_s),
            open_incidents=len(self.incidents("open")),
            recommendations=len(self.recommendations()),
            simulated_gpus=self.simulated_gpus,
        )

    def _account(self, window_s: float) -> Account:
        gpus = len(self._gpu_list)
        if not gpus:
            return Account("fleet", NOW_NS - int(window_s * 1e9), NOW_NS, 0, {})
        seconds = dict.fromkeys(STATES, 0.0)
        lost: dict[str, float] = {}
        costs: dict[str, Cost] = {}
        effective = util = sm = 0.0
        for group in self.groups:
            time_s = group.nodes * 8 * window_s
            seconds[group.state] += time_s
            if group.state in LOST:
                key = f"{group.state}.{group.cause}"
                lost[key] = lost.get(key, 0.0) + time_s * group.loss
                hours = lost[key] / 3600
                costs[key] = Cost(hours, self._eur(hours), hours * group.power_w / 1e3)
            if group.state not in ("unknown", "unallocated"):
                effective += time_s * (1 - group.loss)
            if not math.isnan(group.util):
                util += time_s * group.util
                sm += time_s * group.sm
        known_s = sum(seconds.values()) - seconds["unknown"]
        per_known = 1 / known_s if known_s else math.nan
        lost_h = sum(lost.values()) / 3600
        free_h = seconds["unallocated"] / 3600
        return Account(
            key="fleet",
            start_ns=NOW_NS - int(window_s * 1e9),
            end_ns=NOW_NS,
            gpus=gpus,
            seconds=seconds,
            causes=lost,
            cause_costs={key: cost for key, cost in costs.items() if key != "failed.reboot"},
            lost=Cost(lost_h, self._eur(lost_h), lost_h * 0.38),
            unallocated=Cost(free_h, self._eur(free_h), free_h * 0.11),
            allocated_ratio=_known(1 - seconds["unallocated"] * per_known),
            active_ratio=_known(1 - (seconds["unallocated"] + seconds["idle"]) * per_known),
            effective_ratio=_known(effective * per_known),
            gpu_util_ratio=_known(util * per_known),
            sm_active_ratio=_known(sm * per_known),
            grade="sm",
        )

    def _eur(self, hours: float) -> float | None:
        return hours * EUR_PER_GPU_H if self.priced else None

    def gpus(self, fields: Sequence[str] = (), node: str = "") -> list[GpuNow]:
        self._note(f"gpus {node}".strip())
        return [
            replace(gpu, values={n: v for n, v in gpu.values.items() if not fields or n in fields})
            for gpu in self._gpu_list
            if node in ("", gpu.node)
        ]

    def nodes(self) -> list[NodeNow]:
        self._note("nodes")
        nodes: dict[str, list[GpuNow]] = {}
        for gpu in self._gpu_list:
            nodes.setdefault(gpu.node, []).append(gpu)
        return [
            NodeNow(
                node=name,
                gpus=len(gpus),
                last_sample_ns=gpus[0].sampled_ns,
                last_push_ns=gpus[0].sampled_ns,
                clock_skew_s=7.4 if number == 17 else 0.004 * math.sin(number),
                rows=722_368,
                duplicates=8 if number == 5 else 0,
                late_rows=16 if number == 5 else 0,
                counter_resets=1 if number == 9 else 0,
                values={
                    "cpu_busy_ratio": 0.41,
                    "cpu_iowait_ratio": 0.03,
                    "host_memory_available_bytes": 9e11,
                },
                simulated=self.simulated,
            )
            for number, (name, gpus) in enumerate(nodes.items())
        ]

    def accounts(self, by: str, window_s: float = 3600) -> list[Account]:
        self._note(f"accounts {by}")
        return [self._account(window_s)]

    def incidents(self, state: str = "open") -> list[Incident]:
        self._note(f"incidents {state}")
        return [one for one in self._incidents() if state in ("all", one.state)]

    def incident(self, incident_id: str) -> Incident:
        self._note(f"incident {incident_id}")
        found = next((one for one in self._incidents(old=True) if one.id == incident_id), None)
        if found is None:
            message = f"/api/v1/incidents/{incident_id}: expected an answer, came HTTP 404: no such incident"
            raise ApiError(message) from HTTPError("", 404, "Not Found", None, None)  # type: ignore[arg-type]
        return found

    def _incidents(self, old: bool = False) -> list[Incident]:
        made: list[Incident] = []
        for number, group in enumerate(self.groups):
            if group.state not in LOST:
                continue
            gpus = [gpu for gpu in self._gpu_list if gpu.job == group.job and gpu.state == group.state]
            if gpus:
                made.append(self._incident(number, group, gpus))
        if made:
            done = replace(made[0], id="inc-0001", state="resolved", resolved_ns=NOW_NS - 7_200 * 10**9)
            made.append(done)
            if old:
                made.append(replace(done, id="inc-old"))
        return made

    def _incident(self, number: int, group: Group, gpus: list[GpuNow]) -> Incident:
        hours = 0.4 + 0.7 * number
        since_ns = NOW_NS - int(hours * 3600 * 1e9)
        rate = len(gpus) * group.loss
        refs = tuple(GpuRef(gpu.node, gpu.gpu, gpu.index, gpu.model) for gpu in gpus)
        severity: Severity = "critical" if group.state in ("failed", "throttled") else "warning"
        finding = Finding(
            id=f"find-{number:04d}",
            kind={"idle": "idle", "starved": "starvation", "failed": "gpu_failed"}.get(
                group.state, "throttling_thermal"
            ),
            cause=f"{group.state}.{group.cause}",
            severity=severity,
            confidence=0.86,
            subject_kind="job",
            subject=group.job,
            title=_title(group, len(gpus)),
            since_ns=since_ns,
            updated_ns=NOW_NS,
            told_ns=since_ns + 900 * 10**9,
            job=group.job,
            user="u-3f9a",
            nodes=tuple(sorted({gpu.node for gpu in gpus})),
            gpus=refs,
            runners_up=(
                CauseShare(f"{group.state}.undetermined", 0.09),
                CauseShare("starved.communication", 0.05),
            ),
            evidence=(
                Evidence(
                    "sm_active_ratio",
                    None if math.isnan(group.sm) else group.sm,
                    "1",
                    0.6,
                    1800.0,
                    "SM activity stays below the job's own productive level",
                ),
                Evidence("psi_io_full_s", 0.42, "s/s", 0.2, 1800.0, "every task of the host waits for I/O"),
                Evidence("gpu_util_ratio", None, "1", None, 1800.0, "GPU_UTIL over the same window"),
            ),
            cost_so_far=Cost(rate * hours, self._eur(rate * hours), rate * hours * 0.4),
            cost_per_h=Cost(rate, self._eur(rate), rate * 0.4),
            advice=_advice(group),
            confirm="Read the data set from local NVMe for ten minutes: SM activity should rise above 60 %.",
            simulated=self.simulated,
        )
        return Incident(
            id=f"inc-{1000 + number}",
            state="open",
            revision=2,
            opened_ns=since_ns + 900 * 10**9,
            resolved_ns=None,
            finding=finding,
            recommendations=(self._recommendation(number, group, refs),),
        )

    def _recommendation(self, number: int, group: Group, refs: tuple[GpuRef, ...]) -> Recommendation:
        rate = len(refs) * group.loss * 24

        def cost(share: float) -> Cost:
            return Cost(rate * share, self._eur(rate * share), rate * share * 0.4)

        nodes = tuple(sorted({gpu.node for gpu in refs}))
        return Recommendation(
            id=f"rec-{number:04d}",
            kind="reclaim_idle" if group.state == "idle" else "fix",
            lever="reclaim" if group.state == "idle" else "fix",
            title=f"{VERBS[group.state]} {len(refs)} GPUs of job {group.job}",
            subject=group.job,
            finding_ids=(f"find-{number:04d}",),
            gain=Gain(24.0, cost(0.6), cost(0.8), cost(0.95)),
            binding_constraint="the job's own end: it may finish before the day is over",
            risk="low: the job keeps its checkpoint of 13:40 UTC; work since then is repeated",
            assumptions=("nobody uses the GPUs by hand", "a queue of at least 24 GPUs waits"),
            command="scancel --signal=USR1 184223   # then: scontrol update jobid=184223 NumNodes=1",
            undo="sbatch resubmit-184223.sh",
            notice="the owner is told 30 minutes before and keeps the GPUs with: touch ~/.unidle-keep",
            measure="allocated minus idle GPU-hours of the same nodes over the next 24 h, in the ledger",
            created_ns=NOW_NS - 600 * 10**9,
            job=group.job,
            user="u-3f9a",
            nodes=nodes,
            gpus=refs,
            simulated=self.simulated,
        )

    def events(self, after: int = 0) -> list[IncidentEvent]:
        self._note("events")
        return []

    def recommendations(self) -> list[Recommendation]:
        self._note("recommendations")
        found = [
            one
            for incident in self._incidents()
            for one in incident.recommendations
            if incident.state == "open"
        ]
        return sorted(found, key=lambda one: -one.gain.expected.gpu_h)

    def series(self, node: str, gpu: str, field: str, window_s: float = 3600) -> Series:
        self._note(f"series {node} {gpu} {field}")
        count = 240
        step_s = window_s / count
        times = tuple(NOW_NS - int((count - at) * step_s * 1e9) for at in range(count))
        factor = {"1": 0.5, "W": 800.0, "Cel": 60.0}.get(BY_NAME[field].unit, 1.0)
        values = tuple(
            None if 100 <= at < 108 else factor * (1 + 0.3 * math.sin(at / 9)) for at in range(count)
        )
        return Series(node, gpu, field, BY_NAME[field].unit, step_s, times, values, self.simulated)

    def flights(self, incident_id: str) -> list[FlightRecording]:
        """One of the first GPU of what is throttled: five looks a second, the last 30 s held back by heat."""
        self._note(f"flights {incident_id}")
        finding = self.incident(incident_id).finding
        if finding.kind != "throttling_thermal":
            return []
        count, hot = 600, 450
        taken_ns = finding.told_ns or NOW_NS
        times_ns = tuple(taken_ns - (count - 1 - at) * 200_000_000 for at in range(count))

        def series(cool: float, held: float, each: int = 1) -> tuple[float | None, ...]:
            return tuple(
                None if at % each else (cool if at < hot else held) * (1 + 0.01 * math.sin(at / 3))
                for at in range(count)
            )

        columns = {
            "gpu_util_ratio": tuple(1.0 for _ in range(count)),
            "sm_active_ratio": series(0.81, 0.62, each=5),
            "power_instant_w": series(905.0, 640.0),
            "power_w": series(900.0, 650.0, each=5),
            "sm_clock_hz": series(1.965e9, 1.35e9),
            "temperature_c": series(86.0, 91.0, each=5),
            "memory_used_bytes": series(1.5e11, 1.5e11, each=5),
            "clock_event_reasons": tuple(0.0 if at < hot else float(0x40) for at in range(count)),
        }
        first = finding.gpus[0]
        request = f"{finding.id}/0"
        return [
            FlightRecording(
                first.node, first.gpu, "asked", request, taken_ns, times_ns, columns, self.simulated
            )
        ]

    def _note(self, question: str) -> None:
        self.asked.append(question)
        if self.down:
            raise ApiError(
                "no collector answers at http://127.0.0.1:9470 (refused); start one with: unidle collector"
            )


def _known(ratio: float) -> float | None:
    return None if math.isnan(ratio) else ratio


def _title(group: Group, gpus: int) -> str:
    words = {
        "storage": "wait for storage: SM activity 31 %, 55 % of their time is lost",
        "cpu_preprocessing": "wait for CPU preprocessing: 38 % of their time is lost",
        "software_thermal": "run 22 % slower because of heat (88 °C)",
        "held": "hold memory and have run nothing for 4 h",
        "no_process": "have had no process for 5 h",
        "reboot": "failed: XID 79, fallen off the bus",
    }
    return f"{gpus} GPUs of job {group.job} {words[group.cause]}"


def _advice(group: Group) -> str:
    if group.state == "idle":
        return "Give the GPUs back: nothing has run on them since 09:40 UTC."
    return "Stage the data set on local NVMe and raise num_workers from 4 to 16: 2 of 224 cores are busy."


class _Handler(BaseHTTPRequestHandler):
    """The fake over HTTP at the paths of client.py."""

    server: FakeServer

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        path = parts.path.removeprefix("/api/v1/")
        api = self.server.api
        if self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self._reply(401, {"detail": "wrong token"})
            return
        try:
            answer = self._answer(api, path, query)
        except ApiError as error:
            cause = error.__cause__
            self._reply(cause.code if isinstance(cause, HTTPError) else 503, {"detail": str(error)})
            return
        self._reply(200, answer)

    @staticmethod
    def _answer(api: FakeApi, path: str, query: dict[str, str]) -> Any:
        window_s = float(query.get("window_s", 3600))
        if path.startswith("incidents/") and path.endswith("/flights"):
            return api.flights(unquote(path.removeprefix("incidents/").removesuffix("/flights")))
        if path.startswith("incidents/"):
            return api.incident(unquote(path.removeprefix("incidents/")))
        answers = {
            "health": api.health,
            "fleet": lambda: api.fleet(window_s),
            "gpus": lambda: api.gpus(node=query.get("node", "")),
            "nodes": api.nodes,
            "accounts": lambda: api.accounts(query["by"], window_s),
            "incidents": lambda: api.incidents(query["state"]),
            "events": lambda: api.events(int(query["after"])),
            "recommendations": api.recommendations,
            "series": lambda: api.series(query["node"], query["gpu"], query["field"], window_s),
        }
        return answers[path]()

    def _reply(self, status: int, answer: Any) -> None:
        body = (
            json.dumps(answer).encode()
            if isinstance(answer, dict)
            else TypeAdapter(type(answer)).dump_json(answer)
        )
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class's name
        """Silence."""


class FakeServer(ThreadingHTTPServer):
    """Serves a FakeApi on a free port of the loopback."""

    daemon_threads = True

    def __init__(self, api: FakeApi, token: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.api = api
        self.token = token

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving(api: FakeApi, token: str = "") -> Iterator[FakeServer]:
    """The fake over HTTP for as long as the block runs."""
    server = FakeServer(api, token)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
