"""The agent as a whole: sources -> sampler -> page and delivery.

The sampler runs in the caller's thread. Without `push_url` there is no delivery and no spool: the page
is all there is.
"""

from __future__ import annotations

import logging
import resource
import threading
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from unidle_agent.config import AgentSettings
from unidle_agent.delivery import Delivery
from unidle_agent.errors import SettingError, UnidleError
from unidle_agent.exporter import (
    Certificate,
    Exporter,
    Health,
    Metric,
    Snapshot,
    XidCounts,
    families,
    health_of,
    render,
    single,
)
from unidle_agent.faults import Faults
from unidle_agent.fields import HOST_FIELDS
from unidle_agent.flight.recorder import FlightRecorder
from unidle_agent.flight.ring import Ring
from unidle_agent.owners.watch import watch
from unidle_agent.privacy import pseudonymiser
from unidle_agent.release import Control, ReleasableSource
from unidle_agent.sample import REPLAY, Source, Tick
from unidle_agent.sampler import Sampler, SourceStats
from unidle_agent.sources import Counted, LateSource, infiniband, nfs
from unidle_agent.sources.dcgm_exporter import DcgmExporterSource
from unidle_agent.sources.host import HostSource
from unidle_agent.sources.infiniband import InfinibandSource
from unidle_agent.sources.nfs import NfsSource
from unidle_agent.sources.replay import ReplaySource
from unidle_agent.sources.reporter import ReporterSource

if TYPE_CHECKING:
    from unidle_agent.otlp import OtlpOutput

log = logging.getLogger("unidle.agent")

LONG_PERIOD_S = {"ib_": infiniband.PERIOD_S, "nfs_": nfs.PERIOD_S}
KEEP_FIELD_S = {
    spec.name: 3 * period_s
    for spec in HOST_FIELDS
    for prefix, period_s in LONG_PERIOD_S.items()
    if spec.name.startswith(prefix)
}
"""How long the page shows what is read at longer intervals than others, in seconds."""
RELEASE_S = 10.0
"""How long letting go of the driver may take beyond the next sample."""


def sources(
    settings: AgentSettings, dcgm_scrape_s: float | None = None, ring: Ring | None = None
) -> list[Source]:
    """What this agent reads; a driver or an exporter that is not there yet may come later.

    A recording stands alone: neither this machine's host nor its exporters belong to the GPUs in it.
    """
    if settings.replay:
        return [LateSource(REPLAY, 10, lambda: _replay(settings, ring), required=True)]
    scrape_s = settings.dcgm_scrape_s if dcgm_scrape_s is None else dcgm_scrape_s
    out: list[Source] = [HostSource(), NfsSource(), InfinibandSource()]
    if settings.nvml != "off":
        required = settings.nvml == "on"
        out.append(ReleasableSource("nvml", 10, lambda: _nvml(settings, ring), required=required))
    out += [DcgmExporterSource(url, scrape_s) for url in settings.dcgm_urls]
    if path := settings.reporter_path:
        out.append(LateSource("reporter", 30, lambda: ReporterSource(path), required=False))
    return out


def _nvml(settings: AgentSettings, ring: Ring | None) -> Source:
    return _polled(settings, settings.gpm, ring)


def _polled(settings: AgentSettings, gpm: str, ring: Ring | None) -> Source:
    from unidle_agent.poller import PolledNvml  # starts a child process: only where NVML is wanted

    return PolledNvml(
        gpm,
        fast_hz=settings.fast_hz,
        slow_s=settings.slow_s,
        deadline_s=settings.nvml_deadline_s,
        replay=settings.replay,
        ring=ring,
    )


def _certificate(settings: AgentSettings) -> Certificate | None:
    if settings.tls_cert_file:
        return Certificate(settings.tls_cert_file, settings.tls_key_file)
    if settings.tls_key_file:
        raise SettingError(
            "agent.tls_cert_file", "the certificate of tls_key_file", "", "tls_key_file is set"
        )
    return None


def _otlp(settings: AgentSettings, snapshot: Snapshot) -> OtlpOutput:
    from unidle_agent.otlp import OtlpOutput  # tens of MiB: only where it is wanted

    return OtlpOutput(settings.otlp_endpoint, settings.otlp_period_s, settings.node_name, snapshot.reading)


def _control(settings: AgentSettings, sources: Iterable[Source]) -> Control | None:
    """Where `unidle agent release` is heard; an agent that cannot listen samples all the same."""
    releasable = [source for source in sources if isinstance(source, ReleasableSource)]
    if not releasable:
        return None
    try:
        return Control(settings.state_path, releasable[0], patience_s=settings.period_s + RELEASE_S)
    except (OSError, UnidleError) as error:
        log.warning("`unidle agent release` will not be heard in %s: %s", settings.state_path, error)
        return None


def _replay(settings: AgentSettings, ring: Ring | None) -> Source:
    # A host engine of this machine is none of the recording's.
    return ReplaySource(_polled(settings, "off" if settings.gpm == "off" else "on", ring))


def _ring(settings: AgentSettings) -> Ring | None:
    """Memory for the flight recorder, where its recordings have a way to go; an agent does without it."""
    if not settings.push_url:
        return None
    try:
        # Looks, what the driver's own buffers hold instead of some of them, and rows.
        return Ring.create(2 * settings.fast_hz + 1 / settings.period_s)
    except OSError as error:
        log.warning("no flight recorder: no shared memory for it (%s)", error)
        return None


class Agent:
    """Everything of one agent, built from its settings; raises UnidleError where that cannot be."""

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        self._version = version("unidle")  # looked up on disk: not for each page
        self._tick: Tick | None = None
        self._tick_s: float | None = None
        self._uuids: tuple[str, ...] = ()
        ring = _ring(settings)
        self._recorder = FlightRecorder(ring) if ring else None
        self._sources = sources(settings, ring=ring)
        self._silent = set(range(len(self._sources)))
        slowest_s = max(settings.period_s, settings.dcgm_scrape_s if settings.dcgm_urls else 0)
        self._snapshot = Snapshot(keep_s=3 * slowest_s, keep_field_s=KEEP_FIELD_S)
        self._owners = watch(settings, pseudonymiser(settings))
        self._faults = Faults(
            "" if settings.replay else settings.kernel_log,  # this machine's is none of the recording's
            names=settings.privacy == "internal",
            job_of=self._owners.job_of,
        )
        self._xids = XidCounts()
        on_flights = self._recorder.ask if self._recorder else lambda _: None
        self._delivery = Delivery(settings, on_flights) if settings.push_url else None
        self._otlp: OtlpOutput | None = None
        self._sampler = Sampler(self._sources, settings.period_s, [self._take], finish=self._complete)
        try:
            if settings.otlp_endpoint:
                self._otlp = _otlp(settings, self._snapshot)
            self._exporter = Exporter(
                settings.bind,
                settings.port,
                self.page,
                self.health,
                token=settings.metrics_token,
                certificate=_certificate(settings),
            )
        except BaseException:
            self._close()
            raise
        self._control = _control(settings, self._sources)

    @property
    def url(self) -> str:
        """Where /metrics and /health are."""
        return self._exporter.url

    def run(self, stop: threading.Event) -> None:
        """Sample until `stop` is set, then hand over what is left and close everything."""
        try:
            self._owners.start()
            self._sampler.run(stop)
        finally:
            if self._control:
                self._control.close()
            self._exporter.close()
            self._close()

    def page(self, names: str = "", openmetrics: bool = False) -> str:
        """/metrics, under `names` (empty: as the settings say)."""
        settings = self._settings
        sampled = families(self._snapshot.reading(), names or settings.names, settings.node_name)
        delivery = self._delivery.metrics() if self._delivery else []
        flights = self._recorder.metrics() if self._recorder else []
        own = (*self._own_metrics(), *self._faults.metrics(), *delivery, *flights)
        return render([*sampled, self._xids.metric(), *own], openmetrics)

    def health(self) -> Health:
        """/health"""
        tick = self._tick
        document: dict[str, object] = {
            "node": self._settings.node_name,
            "version": self._version,
            "gpus": len(tick.gpus) if tick else 0,
            "sources": {stats.name: stats.up for stats in self._sampler.stats},
            "problems": list(tick.problems) if tick else [],
            "kernel_log": self._faults.problem or "read",
        }
        if self._delivery:
            document["push"] = self._delivery.document()
        return health_of(self._tick_s, self._settings.period_s, document)

    def _close(self) -> None:
        self._sampler.close()
        if self._otlp:
            self._otlp.close()
        self._owners.close()
        self._faults.close()
        if self._delivery:
            self._delivery.close()
        if self._recorder:
            self._recorder.close()

    def _complete(self, tick: Tick) -> Tick:
        """What no source says: the owners, the kernel's faults, and what the flight recorder gives out."""
        tick = self._faults.complete(self._owners.complete(tick))
        return self._recorder.complete(tick) if self._recorder else tick

    def _take(self, tick: Tick) -> None:
        self._tick, self._tick_s = tick, time.monotonic()
        self._snapshot.update(tick)
        self._xids.update(tick)
        if self._delivery:
            self._delivery.take(tick)
        uuids = tuple(gpu.facts.uuid for gpu in tick.gpus)
        if self._silent:
            self._introduce(bool(uuids))
        elif uuids != self._uuids:
            log.info("GPUs seen: %d, before %d", len(uuids), len(self._uuids))
        self._uuids = uuids

    def _introduce(self, gpus: bool) -> None:
        """One line per source at its first answer: what it gives, or why it does not."""
        for number, stats in enumerate(self._sampler.stats):
            if number in self._silent and stats.answers:
                self._silent.discard(number)
                log.info("source %s: %s", stats.name, _given(self._sources[number], stats))
        if not self._silent and not gpus:
            log.info("no GPU found: sampling the host alone; `unidle doctor` says what is missing")

    def _own_metrics(self) -> list[Metric]:
        used = resource.getrusage(resource.RUSAGE_SELF)
        info = Metric("unidle_agent_info", "info", "version of the agent", [({"version": self._version}, 1)])
        return [
            info,
            single("unidle_agent_ticks_total", "counter", "instants sampled", self._sampler.ticks),
            single(
                "unidle_agent_ticks_missed_total",
                "counter",
                "instants left out because the agent was late",
                self._sampler.missed,
            ),
            single(
                "unidle_agent_cpu_seconds_total",
                "counter",
                "processor time of the agent, without its children",
                used.ru_utime + used.ru_stime,
            ),
            single(
                "unidle_agent_resident_memory_bytes", "gauge", "main memory of the agent", _resident_bytes()
            ),
            *_source_metrics(self._sampler.stats),
            _source_events(self._sources),
        ]


def _given(source: Source, stats: SourceStats) -> str:
    if isinstance(source, LateSource) and source.absent_because:
        return f"not here: {source.absent_because}"
    if isinstance(source, HostSource | NfsSource | InfinibandSource):
        return f"{stats.fields} fields"
    return f"{stats.gpus} GPUs, {stats.fields} fields"


def _source_metrics(stats: Iterable[SourceStats]) -> list[Metric]:
    """Sources of one name (two exporters) are summed: a page must not give a series twice."""
    families: tuple[tuple[str, str, Callable[[SourceStats], int]], ...] = (
        ("reads_total", "reads of the source", lambda one: one.reads),
        ("errors_total", "reads that failed", lambda one: one.errors),
        ("skipped_total", "ticks that went out without the source", lambda one: one.skipped),
        ("problems_total", "problems that the source reported, each tick anew", lambda one: one.problems),
        ("gpus", "GPUs in the source's last answer", lambda one: one.gpus),
    )
    out = []
    for name, doc, value in families:
        sums: dict[str, int] = {}
        for one in stats:
            sums[one.name] = sums.get(one.name, 0) + value(one)
        samples = [({"source": source}, total) for source, total in sums.items()]
        kind: Literal["counter", "gauge"] = "counter" if name.endswith("_total") else "gauge"
        out.append(Metric(f"unidle_agent_source_{name}", kind, doc, samples))
    return out


def _source_events(sources: Iterable[Source]) -> Metric:
    sums: dict[tuple[str, str], int] = {}
    for source in sources:
        if isinstance(source, Counted):
            for event, count in source.counts.items():
                sums[source.name, event] = sums.get((source.name, event), 0) + count
    samples = [({"source": name, "event": event}, count) for (name, event), count in sums.items()]
    return Metric("unidle_agent_source_events_total", "counter", "what happened to the source", samples)


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()
