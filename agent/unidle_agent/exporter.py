"""The agent's own page: /metrics for Prometheus and /health for people and probes.

Names and units come from the field table by one function. Every GPU has the labels `gpu` (index) and
`uuid` only; what is known about it, its job included, is in the one series `unidle_gpu_info`, joined on
`uuid`. The user is left out: that is personal data. A value that no source has renewed for some seconds
is absent, never 0.
"""

from __future__ import annotations

import http.server
import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from unidle_agent.batcher import sendable
from unidle_agent.errors import UnidleError
from unidle_agent.fields import GPU_FIELDS, HOST_FIELDS, Field
from unidle_agent.sample import Tick, Value, is_simulated
from unidle_agent.wire import GpuFacts

log = logging.getLogger("unidle.agent")

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
UNIT_WORDS = (
    ("_bytes_per_s", "_bytes_per_second"),
    ("_hz", "_hertz"),
    ("_w", "_watts"),
    ("_j", "_joules"),
    ("_c", "_celsius"),
    ("_s", "_seconds"),
    ("process_count", "processes"),  # `_count` is kept for histograms
)
"""Ending of a field's name -> Prometheus's word for it; the first that fits counts."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One family: its samples are (labels, value)."""

    name: str
    kind: Literal["gauge", "counter"]
    doc: str
    samples: Sequence[tuple[Mapping[str, str], float]]


def single(name: str, kind: Literal["gauge", "counter"], doc: str, value: float) -> Metric:
    """A family of one sample without labels."""
    return Metric(name, kind, doc, [({}, value)])


@dataclass(frozen=True, slots=True)
class Health:
    """What /health says."""

    ok: bool
    document: Mapping[str, object]


def metric_name(field: Field) -> str:
    """The name of a field on /metrics: `power_w` of a GPU is `unidle_gpu_power_watts`."""
    stem = field.name.removeprefix(f"{field.scope}_")
    for ending, word in UNIT_WORDS:
        if stem.endswith(ending):
            stem = stem.removesuffix(ending) + word
            break
    return f"unidle_{field.scope}_{stem}" + ("_total" if field.kind == "counter" else "")


def render(metrics: Iterable[Metric]) -> str:
    """The page in Prometheus's text format 0.0.4; families without samples are left out."""
    lines = []
    for metric in metrics:
        if not metric.samples:
            continue
        lines.append(f"# HELP {metric.name} {_escape(metric.doc, quote=False)}")
        lines.append(f"# TYPE {metric.name} {metric.kind}")
        for labels, value in metric.samples:
            inside = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
            lines.append(f"{metric.name}{f'{{{inside}}}' if inside else ''} {_number(value)}")
    return "\n".join(lines) + "\n" if lines else ""


def _escape(text: str, *, quote: bool = True) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quote else text


def _number(value: float) -> str:
    return str(int(value)) if isinstance(value, int) or value.is_integer() else repr(value)


class Snapshot:
    """The latest value of every field, each for at most `keep_s` seconds. Guarded for many threads."""

    def __init__(self, keep_s: float) -> None:
        self._keep_ns = int(keep_s * 1e9)
        self._lock = threading.Lock()
        self._now_ns = 0
        self._facts: dict[str, tuple[int, GpuFacts]] = {}
        self._gpus: dict[str, dict[str, tuple[int, Value]]] = {}
        self._host: dict[str, tuple[int, Value]] = {}

    def update(self, tick: Tick) -> None:
        """Take one tick."""
        with self._lock:
            if tick.time_ns < self._now_ns:  # the clock was set back: ages mean nothing now
                self._facts, self._gpus, self._host = {}, {}, {}
            self._now_ns = tick.time_ns
            for gpu in tick.gpus:
                self._facts[gpu.facts.uuid] = (tick.time_ns, gpu.facts)
                self._gpus.setdefault(gpu.facts.uuid, {}).update(_stamped(tick.time_ns, gpu.values))
            self._host.update(_stamped(tick.time_ns, tick.host))
            self._forget()

    def metrics(self) -> list[Metric]:
        """Everything known now, as families."""
        with self._lock:
            facts = {uuid: known for uuid, (_, known) in self._facts.items()}
            gpus = {uuid: dict(self._gpus.get(uuid, {})) for uuid in facts}
            host = dict(self._host)
        labels = {uuid: _labels(known) for uuid, known in facts.items()}
        out = [_info(facts)]
        if any(is_simulated(known) for known in facts.values()):
            out.append(
                Metric("unidle_simulated", "gauge", "1: SIMULATED data, not of a real machine", [({}, 1)])
            )
        for spec in GPU_FIELDS:
            samples = [
                (labels[uuid], in_base_units(spec, values[spec.name][1]))
                for uuid, values in gpus.items()
                if spec.name in values
            ]
            out.append(_family(spec, samples))
        out.extend(
            _family(spec, [({}, in_base_units(spec, host[spec.name][1]))])
            for spec in HOST_FIELDS
            if spec.name in host
        )
        return out

    def _forget(self) -> None:
        oldest = self._now_ns - self._keep_ns
        self._facts = {uuid: item for uuid, item in self._facts.items() if item[0] >= oldest}
        self._gpus = {
            uuid: {name: item for name, item in values.items() if item[0] >= oldest}
            for uuid, values in self._gpus.items()
            if uuid in self._facts
        }
        self._host = {name: item for name, item in self._host.items() if item[0] >= oldest}


def in_base_units(field: Field, value: Value) -> float:
    """A counter's whole number of its resolution as a number of its unit; anything else as it is."""
    if field.kind != "counter":
        return value
    per_unit = round(1 / field.resolution)
    return value if per_unit == 1 else value / per_unit


def _stamped(time_ns: int, values: Mapping[str, Value]) -> dict[str, tuple[int, Value]]:
    known = {}
    for spec in (*GPU_FIELDS, *HOST_FIELDS):
        value = sendable(spec, values.get(spec.name))
        if value is not None:
            known[spec.name] = (time_ns, value)
    return known


def _family(spec: Field, samples: Sequence[tuple[Mapping[str, str], float]]) -> Metric:
    return Metric(metric_name(spec), "counter" if spec.kind == "counter" else "gauge", spec.doc, samples)


def _labels(facts: GpuFacts) -> dict[str, str]:
    return {"gpu": "" if facts.index is None else str(facts.index), "uuid": facts.uuid}


def _info(facts: Mapping[str, GpuFacts]) -> Metric:
    samples = []
    for known in facts.values():
        owner = known.owner
        labels = {
            **_labels(known),
            "model": known.model,
            "driver": known.driver,
            "pci_bus_id": known.pci_bus_id,
            "mig_profile": known.mig_profile,
            "allocated": {True: "yes", False: "no", None: ""}[owner.allocated],
            "job": owner.job,
        }
        samples.append(({key: text for key, text in labels.items() if text or key == "gpu"}, 1))
    return Metric("unidle_gpu_info", "gauge", "what is known about the GPU; always 1", samples)


class Exporter:
    """Serves `page` and `health` on `bind`:`port` (0: a free one) in threads of its own."""

    def __init__(self, bind: str, port: int, page: Callable[[], str], health: Callable[[], Health]) -> None:
        class Handler(_Handler):
            render_page = staticmethod(page)
            render_health = staticmethod(health)

        family = socket.AF_INET6 if ":" in bind else socket.AF_INET
        server_class = type("_Server", (_Server,), {"address_family": family})
        try:
            self._server = server_class((bind, port), Handler)
        except OSError as error:
            raise UnidleError(
                f"cannot listen on {bind}:{port} ({error.strerror or error}); is another agent running? "
                "Choose another with --port, or --port 0 for a free one"
            ) from error
        host, self.port = self._server.server_address[:2]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="exporter", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002
        """A scraper that hangs up in the middle is its own affair; anything else is a bug to be seen."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            log.exception("a request from %s could not be answered", client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "unidle"
    sys_version = ""
    timeout = 10
    render_page: Callable[[], str]
    render_health: Callable[[], Health]

    def do_GET(self) -> None:  # the name that http.server calls
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self._answer(200, CONTENT_TYPE, self.render_page().encode())
        elif path == "/health":
            health = self.render_health()
            body = json.dumps({"ok": health.ok, **health.document}).encode()
            self._answer(200 if health.ok else 503, "application/json", body)
        else:
            self._answer(404, "text/plain; charset=utf-8", b"there are /metrics and /health\n")

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Scrapes each few seconds are no news."""


def health_of(
    last_tick_s: float | None, period_s: float, document: Mapping[str, object], now_s: float | None = None
) -> Health:
    """Healthy is: a tick came within the last three periods and two seconds."""
    now_s = time.monotonic() if now_s is None else now_s
    age_s = None if last_tick_s is None else now_s - last_tick_s
    ok = age_s is not None and age_s <= 3 * period_s + 2
    return Health(ok, {"last_tick_age_s": age_s, **document})
