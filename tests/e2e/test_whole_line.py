"""From a GPU's counters to a Slack message and a recommendation: real processes, the real pynvml."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.e2e.processes import Role, answers, free_port, roles, wait_for
from tests.fake_slack import FakeSlack
from tests.nvml_library import WELL, build, environment, gpu, write

from unidle_collector.client import Client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

BUSY = {**WELL, "utilization__gpu": 99, "gpm__2": 88.0, "gpm__5": 55.0, "margin_c": 20, "clock__sm_mhz": 1755}
HOT = {**BUSY, "event_reasons": 0x40, "clock__sm_mhz": 1200, "margin_c": -4, "temperature_c": 91}


def test_a_fault_is_found_told_and_resolved(tmp_path: Path) -> None:
    library, answer_file = build(tmp_path), tmp_path / "gpus.txt"
    write(answer_file, [gpu(number, **BUSY) for number in range(4)])
    ports = {name: free_port() for name in ("collector", "agent", "alerts", "dashboard")}
    url = f"http://127.0.0.1:{ports['collector']}"
    with FakeSlack() as slack, roles(tmp_path) as start:
        _start_all(start, tmp_path, ports, url, slack, environment(library, answer_file))
        client = Client(url)
        wait_for(lambda: len(client.gpus()) == 4, "four GPUs at the collector")
        wait_for(lambda: {g.state for g in client.gpus()} == {"productive"}, "all GPUs productive")
        assert client.gpus()[0].values["sm_active_ratio"] == pytest.approx(0.88)
        assert client.incidents() == []

        write(answer_file, [gpu(0, **HOT), *(gpu(number, **BUSY) for number in range(1, 4))])
        (incident,) = wait_for(client.incidents, "an open incident")
        finding = incident.finding
        assert (finding.kind, [ref.index for ref in finding.gpus]) == ("throttling_thermal", [0])
        assert not finding.simulated
        assert [item.field for item in finding.evidence][:2] == ["sm_clock_hz", "clock_event_reasons"]
        (advice,) = client.recommendations()
        assert advice.kind == "move_off_throttled"
        assert "State=drain" in advice.command
        assert advice.gain.expected.gpu_h > 0
        wait_for(lambda: len(slack.messages) == 1, "a message in Slack")
        assert incident.id in str(slack.messages[0])
        assert "SIMULATED" not in str(slack.messages[0])

        write(answer_file, [gpu(number, **BUSY) for number in range(4)])
        wait_for(lambda: not client.incidents(), "the incident to resolve")
        wait_for(lambda: len(slack.messages) == 2, "the second message in Slack")
        assert incident.id in str(slack.messages[1])
        assert answers(f"http://127.0.0.1:{ports['dashboard']}/_stcore/health")


def _start_all(
    start: Callable[..., Role],
    folder: Path,
    ports: dict[str, int],
    url: str,
    slack: FakeSlack,
    gpus: dict[str, str],
) -> None:
    token = {"push_token": "e2e-push-token"}
    start("collector", {"port": str(ports["collector"]), "data_dir": str(folder / "data"), **token})
    wait_for(lambda: answers(f"{url}/api/v1/health"), "the collector")
    agent = {"port": str(ports["agent"]), "push_url": url, "gpm": "on", "batch_s": "1", "node": "real-1"}
    start("agent", {**agent, "state_dir": str(folder / "agent"), **token}, gpus)
    alerts = {"collector_url": url, "port": str(ports["alerts"]), "state_dir": str(folder / "alerts")}
    start("alerts", {**alerts, "slack_webhook_url": slack.url, "slack_hosts": slack.host, "poll_s": "0.5"})
    start("dashboard", {"collector_url": url, "port": str(ports["dashboard"])})
    wait_for(lambda: answers(f"http://127.0.0.1:{ports['dashboard']}/_stcore/health"), "the dashboard")


def test_a_killed_collector_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    library, answer_file = build(tmp_path), tmp_path / "gpus.txt"
    write(answer_file, [gpu(number, **BUSY) for number in range(2)])
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    collector = {"port": str(port), "data_dir": str(tmp_path / "data"), "push_token": "e2e-push-token"}
    with roles(tmp_path) as start:
        first = start("collector", collector)
        wait_for(lambda: answers(f"{url}/api/v1/health"), "the collector")
        agent = {"port": "0", "push_url": url, "batch_s": "1", "state_dir": str(tmp_path / "agent")}
        start("agent", {**agent, "push_token": "e2e-push-token"}, environment(library, answer_file))
        client = Client(url)
        wait_for(lambda: client.health().counters["rows_ingested"] >= 20, "twenty rows")
        first.process.kill()
        first.process.wait(10)
        start("collector", collector)
        wait_for(lambda: answers(f"{url}/api/v1/health"), "the collector again")
        wait_for(lambda: client.health().counters["rows_ingested"] >= 30, "rows again")
        account = wait_for(lambda: client.fleet(600).account, "accounts")
        known = sum(account.seconds.values()) - account.seconds["unknown"]
        wait_for(lambda: client.fleet(600).account.seconds["unknown"] <= 4, "no hole but a second or two")
        assert known >= 20
