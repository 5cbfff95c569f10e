"""The latest values to an OpenTelemetry collector, by OTLP over HTTP (extra `unidle[otlp]`).

Imported only where `otlp_endpoint` is set: the SDK and what it brings cost tens of MiB. Names are the
semantic conventions' where the field table has one (`hw.gpu.utilization`); all other fields are
`unidle.gpu.NAME` and `unidle.host.NAME`. What is unknown has no data point. Headers, proxies and
certificates are the SDK's affair: OTEL_EXPORTER_OTLP_HEADERS and its relatives.

https://opentelemetry.io/docs/specs/semconv/hardware/gpu/ (status Development)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version

from unidle_agent.errors import UnidleError
from unidle_agent.exporter.own_names import in_base_units
from unidle_agent.fetch import target
from unidle_agent.fields import FIELDS, Field
from unidle_agent.sample import Reading, is_simulated
from unidle_agent.wire import GpuFacts

try:
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.metrics import CallbackOptions, Meter, Observation
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource
except ImportError as error:
    raise UnidleError(
        f"otlp_endpoint is set, but the OpenTelemetry SDK is not installed ({error.name}): "
        "pip install 'unidle[otlp]', or unset otlp_endpoint"
    ) from error

PATH = "/v1/metrics"
LEAVE_MS = 2000
"""How long a stopping agent still tries to hand its last values over."""
UP_DOWN = ("hw.gpu.memory.limit", "hw.gpu.memory.usage")
"""What the conventions call an UpDownCounter; all else that is no counter is a gauge."""


class OtlpOutput:
    """Exports what `reading` gives to `endpoint` every `period_s`; raises UnidleError for a bad address."""

    def __init__(self, endpoint: str, period_s: float, node: str, reading: Callable[[], Reading]) -> None:
        target(endpoint, "agent.otlp_endpoint")
        self._reading = reading
        url = endpoint.rstrip("/")
        exporter = OTLPMetricExporter(url if url.endswith(PATH) else url + PATH)
        reader = PeriodicExportingMetricReader(exporter, export_interval_millis=period_s * 1000)
        resource = Resource.create(
            {"service.name": "unidle-agent", "service.version": version("unidle"), "host.name": node}
        )
        self._provider = MeterProvider([reader], resource, shutdown_on_exit=False)
        meter = self._provider.get_meter("unidle.agent", version("unidle"))
        for spec in FIELDS:
            self._create(meter, spec)
        meter.create_observable_gauge(
            "unidle.gpu.job", [self._jobs], "", "1: who holds the GPU is in the attributes; join on hw.id"
        )

    def close(self) -> None:
        """Export once more and stop."""
        self._provider.shutdown(timeout_millis=LEAVE_MS)

    def _create(self, meter: Meter, spec: Field) -> None:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            return observations(spec, self._reading())

        name, doc = otel_name(spec), spec.doc
        if spec.kind == "counter":
            meter.create_observable_counter(name, [observe], spec.unit, doc)
        elif name in UP_DOWN:
            meter.create_observable_up_down_counter(name, [observe], spec.unit, doc)
        else:
            meter.create_observable_gauge(name, [observe], spec.unit, doc)

    def _jobs(self, _: CallbackOptions) -> Iterator[Observation]:
        for gpu in self._reading().gpus:
            owner = gpu.facts.owner
            known = {"unidle.job": owner.job, "unidle.user": owner.user, "unidle.owner.source": owner.source}
            if owner.job or owner.user:
                said = {key: text for key, text in known.items() if text}
                yield Observation(1, {"hw.id": gpu.facts.uuid, "hw.type": "gpu", **said})


def otel_name(spec: Field) -> str:
    """The instrument that carries a field."""
    return spec.otel or f"unidle.{spec.scope}.{spec.name.removeprefix(f'{spec.scope}_')}"


def observations(spec: Field, reading: Reading) -> Iterator[Observation]:
    """The data points of one field, in its unit."""
    if spec.scope == "host":
        if spec.name in reading.host:
            yield Observation(in_base_units(spec, reading.host[spec.name]))
        return
    for gpu in reading.gpus:
        if spec.name in gpu.values:
            yield Observation(in_base_units(spec, gpu.values[spec.name]), attributes(gpu.facts))


def attributes(facts: GpuFacts) -> dict[str, str | bool]:
    """What the conventions say about a piece of hardware, as far as known."""
    parent, instance, _ = facts.uuid.partition("/GI")
    known = {
        "hw.id": facts.uuid,
        "hw.type": "gpu",
        "hw.vendor": "NVIDIA",
        "hw.name": "" if facts.index is None else f"gpu{facts.index}",
        "hw.model": facts.model,
        "hw.driver_version": facts.driver,
        "hw.parent": parent if instance else "",
    }
    said: dict[str, str | bool] = {key: text for key, text in known.items() if text}
    return {**said, "unidle.simulated": True} if is_simulated(facts) else said
