"""The flight recorder end to end: an XID, a dead collector, kill -9 of the agent, the incident, the CLI."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from tests.e2e.processes import answers, free_port, roles, wait_for
from tests.nvml_library import WELL, build, environment, gpu, write

from unidle_collector.client import Client
from unidle_collector.model import Incident

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

BUSY = {**WELL, "utilization__gpu": 99, "gpm__2": 88.0, "gpm__5": 55.0, "margin_c": 20}
UUIDS = [f"GPU-00000000-0000-4000-8000-{number:012d}" for number in range(2)]


def unidle(*words: str, url: str) -> str:
    """What the command prints."""
    environ = {key: text for key, text in os.environ.items() if not key.startswith("UNIDLE_")}
    done = subprocess.run(
        [sys.executable, "-m", "unidle_agent.cli", *words],
        env={**environ, "UNIDLE_READER_COLLECTOR_URL": url, "COLUMNS": "160"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def of_kind(client: Client, kind: str) -> list[Incident]:
    return [incident for incident in client.incidents() if incident.finding.kind == kind]


def page(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as reply:
        return reply.read().decode()


def test_an_xid_of_a_gpu_that_is_then_lost_is_kept_with_its_incident_whoever_is_killed_meanwhile(
    tmp_path: Path,
) -> None:
    library, answer_file = build(tmp_path), tmp_path / "gpus.txt"
    write(answer_file, [gpu(number, **BUSY) for number in range(2)])
    ports = {name: free_port() for name in ("collector", "agent")}
    url = f"http://127.0.0.1:{ports['collector']}"
    token = {"push_token": "e2e-push-token"}
    collector = {"port": str(ports["collector"]), "data_dir": str(tmp_path / "data"), **token}
    agent = {"port": str(ports["agent"]), "push_url": url, "gpm": "on", "batch_s": "1", "node": "real-1"}
    agent |= {"state_dir": str(tmp_path / "agent"), **token}
    client = Client(url)
    with roles(tmp_path) as start:
        first = start("collector", collector)
        wait_for(lambda: answers(f"{url}/api/v1/health"), "the collector")
        recording = start("agent", agent, environment(library, answer_file))
        wait_for(lambda: client.health().counters["rows_ingested"] >= 10, "ten rows")
        first.process.kill()
        first.process.wait(10)

        write(answer_file, [gpu(0, xid__0=79, **BUSY), gpu(1, **BUSY)])
        wait_for(
            lambda: 'unidle_agent_flights_total{outcome="sent"} 1' in page(ports["agent"], "/metrics"),
            "the window sent",
        )
        waiting = json.loads(page(ports["agent"], "/health"))["push"]["waiting_batches"]
        wait_for(
            lambda: json.loads(page(ports["agent"], "/health"))["push"]["waiting_batches"] > waiting,
            "the window spooled",
        )
        recording.process.kill()
        recording.process.wait(10)

        start("collector", collector)
        wait_for(lambda: answers(f"{url}/api/v1/health"), "the collector again")
        start("agent", agent, environment(library, answer_file))
        wait_for(lambda: client.health().counters.get("flights_received"), "the flight")
        wait_for(lambda: json.loads(page(ports["agent"], "/health"))["gpus"] == 2, "both GPUs sampled again")
        write(answer_file, [gpu(0, xid__0=79, lost_from_call=1, **BUSY), gpu(1, **BUSY)])
        (incident,) = wait_for(lambda: of_kind(client, "gpu_lost"), "the incident of the lost GPU")
        *_, flight = [one for one in client.flights(incident.id) if one.reason == "xid 79"]
    assert (flight.node, flight.gpu, flight.simulated) == ("real-1", UUIDS[0], False)
    assert len(flight.times_ns) >= 10
    assert flight.columns["gpu_util_ratio"] == (0.99,) * len(flight.times_ns)
    assert 0.88 in flight.columns["sm_active_ratio"]


def test_the_collector_asks_for_the_window_of_a_throttled_gpu_and_the_commands_show_it(
    tmp_path: Path,
) -> None:
    library, answer_file = build(tmp_path), tmp_path / "gpus.txt"
    cool = {**BUSY, "clock__sm_mhz": 1755}
    write(answer_file, [gpu(number, **cool) for number in range(2)])
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    token = {"push_token": "e2e-push-token"}
    client = Client(url)
    with roles(tmp_path) as start:
        start("collector", {"port": str(port), "data_dir": str(tmp_path / "data"), **token})
        wait_for(lambda: answers(f"{url}/api/v1/health"), "the collector")
        agent = {"port": "0", "push_url": url, "batch_s": "1", "state_dir": str(tmp_path / "agent")}
        start("agent", {**agent, **token, "gpm": "on"}, environment(library, answer_file))
        wait_for(lambda: client.health().counters["rows_ingested"] >= 10, "ten rows")
        write(answer_file, [gpu(0, **{**cool, "event_reasons": 0x40, "clock__sm_mhz": 1200}), gpu(1, **cool)])
        (incident,) = wait_for(client.incidents, "an incident")
        assert incident.finding.kind == "throttling_thermal"
        (flight,) = wait_for(lambda: client.flights(incident.id), "the flight that was asked for")
        assert (flight.gpu, flight.reason) == (UUIDS[0], "asked")
        clocks = [value for value in flight.columns["sm_clock_hz"] if value is not None]
        assert (clocks[0], clocks[-1]) == (1755e6, 1200e6), "before and after the onset"

        assert f"unidle flight {incident.id}" in unidle("explain", incident.id, url=url)
        shown = unidle("flight", incident.id, url=url)
        assert UUIDS[0] in shown
        assert "asked by the collector" in shown
        assert "1200.0" in shown
        assert "SIMULATED" not in shown
        file = tmp_path / "looks.csv"
        unidle("flight", incident.id, "--csv", str(file), url=url)
        with file.open() as lines:
            rows = list(csv.DictReader(lines))
        assert len(rows) == len(flight.times_ns)
        assert {row["gpu"] for row in rows} == {UUIDS[0]}
        assert float(rows[-1]["sm_clock_hz"]) == 1200e6
        assert json.loads(unidle("flight", incident.id, "--json", url=url))[0]["request"] == flight.request
