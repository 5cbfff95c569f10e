"""OTLP by the OpenTelemetry SDK, into a server that reads it with the SDK's own protocol."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.agent.scripted_server import Reply, dead_url, serving

from unidle_agent.config import AgentSettings
from unidle_agent.errors import SettingError
from unidle_agent.fields import FIELDS
from unidle_agent.runtime import Agent
from unidle_agent.sample import GpuReading, Reading, Tick
from unidle_agent.wire import GpuFacts, Owner

WHY = "needs the extra unidle[otlp]"
service = pytest.importorskip("opentelemetry.proto.collector.metrics.v1.metrics_service_pb2", reason=WHY)
otlp = pytest.importorskip("unidle_agent.otlp", reason=WHY)

GPU = GpuReading(
    GpuFacts("GPU-a", 3, "NVIDIA B200", driver="570.1", owner=Owner(True, job="4711", source="slurm")),
    {"gpu_util_ratio": 0.57, "memory_used_bytes": 2.0**30, "energy_j": 1_500, "sm_active_ratio": 0.0},
)
IDENTITY = {
    "hw.id": "GPU-a",
    "hw.type": "gpu",
    "hw.vendor": "NVIDIA",
    "hw.name": "gpu3",
    "hw.model": "NVIDIA B200",
    "hw.driver_version": "570.1",
}


def metrics_of(body: bytes) -> dict[str, Any]:
    request = service.ExportMetricsServiceRequest.FromString(body)
    return {
        metric.name: metric
        for resource in request.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def plain(attributes: Any) -> dict[str, object]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


@contextlib.contextmanager
def exported(reading: Callable[[], Reading]) -> Iterator[tuple[Any, list[Any]]]:
    """An output whose exports the test asks for, and the requests that came of them."""
    with serving(lambda _: Reply()) as server:
        output = otlp.OtlpOutput(server.url, 3600, "n1", reading)
        try:
            yield output, server.requests
        finally:
            output.close()


def test_values_arrive_under_the_names_of_the_conventions() -> None:
    with exported(lambda: Reading((GPU,), {"load_1m": 2.5})) as (output, requests):
        output._provider.force_flush()
        (request,) = requests
    assert request.path == "/v1/metrics"
    got = metrics_of(request.body)
    (point,) = got["hw.gpu.utilization"].gauge.data_points
    assert point.as_double == 0.57
    assert plain(point.attributes) == IDENTITY
    assert got["hw.gpu.utilization"].unit == "1"
    memory = got["hw.gpu.memory.usage"]
    assert (memory.unit, memory.sum.is_monotonic, memory.sum.data_points[0].as_double) == ("By", False, 2**30)
    energy = got["hw.energy"]
    assert (energy.unit, energy.sum.is_monotonic, energy.sum.data_points[0].as_double) == ("J", True, 1.5)
    assert got["unidle.gpu.sm_active_ratio"].gauge.data_points[0].as_double == 0.0
    assert got["unidle.host.load_1m"].gauge.data_points[0].as_double == 2.5
    (job,) = got["unidle.gpu.job"].gauge.data_points
    assert plain(job.attributes) == {
        "hw.id": "GPU-a",
        "hw.type": "gpu",
        "unidle.job": "4711",
        "unidle.owner.source": "slurm",
    }
    assert got.keys() == {
        *("hw.gpu.utilization", "hw.gpu.memory.usage", "hw.energy", "unidle.gpu.sm_active_ratio"),
        *("unidle.host.load_1m", "unidle.gpu.job"),
    }, "what is unknown is absent"
    resource = service.ExportMetricsServiceRequest.FromString(request.body).resource_metrics[0].resource
    said = plain(resource.attributes)
    assert (said["service.name"], said["host.name"]) == ("unidle-agent", "n1")


def test_what_is_no_longer_known_is_no_longer_sent() -> None:
    readings = [Reading((GPU,), {}), Reading((), {"load_1m": 1.0})]
    with exported(lambda: readings[0]) as (output, requests):
        output._provider.force_flush()
        del readings[0]
        output._provider.force_flush()
        assert metrics_of(requests[0].body).keys() > {"hw.energy", "hw.gpu.memory.usage"}
        assert metrics_of(requests[1].body).keys() == {"unidle.host.load_1m"}


def test_a_mig_instance_names_its_parent_and_simulated_data_says_so() -> None:
    facts = GpuFacts("GPU-a/GI9", sources={"power_w": "simulator"})
    assert otlp.attributes(facts) == {
        "hw.id": "GPU-a/GI9",
        "hw.type": "gpu",
        "hw.vendor": "NVIDIA",
        "hw.parent": "GPU-a",
        "unidle.simulated": True,
    }


def test_every_field_has_an_instrument_of_its_own() -> None:
    names = [otlp.otel_name(field) for field in FIELDS]
    assert len(set(names)) == len(names)
    assert "unidle.gpu.state" in names


def test_the_agent_sends_its_last_values_when_it_stops(tmp_path: Path) -> None:
    with serving(lambda _: Reply()) as server:
        settings = AgentSettings(
            nvml="off", port=0, state_dir=str(tmp_path), node="n1", otlp_endpoint=f"{server.url}/v1/metrics"
        )
        agent = Agent(settings)
        agent._take(Tick(10**18, (GPU,), {}, ()))
        stop = threading.Event()
        stop.set()
        agent.run(stop)
        assert "hw.gpu.utilization" in metrics_of(server.requests[-1].body)
        assert server.requests[-1].path == "/v1/metrics"


def test_a_collector_that_is_away_holds_up_neither_page_nor_end(tmp_path: Path) -> None:
    agent = Agent(AgentSettings(nvml="off", port=0, state_dir=str(tmp_path), otlp_endpoint=dead_url()))
    agent._take(Tick(10**18, (GPU,), {}, ()))
    assert "unidle_gpu_util_ratio" in agent.page()
    stop = threading.Event()
    stop.set()
    agent.run(stop)


@pytest.mark.parametrize("endpoint", ["localhost:4318", "ftp://x", "http://user:secret@x"])
def test_a_bad_address_is_a_clear_error(endpoint: str) -> None:
    with pytest.raises(SettingError, match="otlp_endpoint") as error:
        otlp.OtlpOutput(endpoint, 15, "n1", lambda: Reading())
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("blocked", "code", "said"), [("opentelemetry", 1, "pip install 'unidle[otlp]'"), ("nothing", 0, "")]
)
def test_without_the_sdk_only_the_setting_fails(blocked: str, code: int, said: str, tmp_path: Path) -> None:
    program = (
        "import sys, threading\n"
        f"sys.modules[{blocked!r}] = None\n"
        "from unidle_agent.config import AgentSettings\n"
        "from unidle_agent.runtime import Agent\n"
        f"base = dict(nvml='off', port=0, state_dir={str(tmp_path)!r})\n"
        "agent = Agent(AgentSettings(**base))\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry.')], 'costs memory'\n"
        f"agent = Agent(AgentSettings(**base, otlp_endpoint={dead_url()!r}))\n"
        "import os; sys.stderr.flush(); os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, said in done.stderr) == (code, True)
    assert "costs memory" not in done.stderr
