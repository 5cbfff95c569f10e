"""`unidle up`: the whole line with real processes, from simulated counters to a message; and its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from unidle_collector.up.score import KINDS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
WITHIN_A_MINUTE = set(KINDS) - {"stale_agent"}
"""What is due before the run ends: an agent is silent for 90 s before anybody is told."""
UP = [sys.executable, "-m", "unidle_agent.cli", "up"]


class Up:
    """A running `unidle up`, what it said so far, and its children."""

    def __init__(self, folder: Path, *arguments: str, **environ: str) -> None:
        self.folder = folder
        self._out = folder / "out.txt"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("UNIDLE_")}
        command = [*UP, "--data-dir", str(folder / "data"), "--port-base", str(free_ports()), *arguments]
        with self._out.open("wb") as out:
            self.process = subprocess.Popen(
                command, cwd=folder, env={**kept, **environ}, stdout=out, stderr=subprocess.STDOUT
            )

    @property
    def said(self) -> str:
        return self._out.read_text()

    def wait_until_said(self, text: str, seconds: float = 120) -> None:
        def heard() -> bool:
            assert text in self.said or self.process.poll() is None, self.said
            return text in self.said

        wait_for(heard, seconds, lambda: self.said)

    def children(self) -> dict[int, str]:
        """pid -> command line of its direct children."""
        out = {}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if parent == self.process.pid:
                out[int(folder.name)] = line
        return out


def wait_for(what: Callable[[], bool], seconds: float, context: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, context()
        time.sleep(0.1)


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def free_ports() -> int:
    """The first of four ports in a row that are free now."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first = int(probe.getsockname()[1])
        if first + 3 < 65_536 and all(is_free(port) for port in range(first, first + 4)):
            return first


def is_free(port: int) -> bool:
    with socket.socket() as trial:
        try:
            trial.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    """Starts `unidle up`, and ends what is left of it."""
    started: list[Up] = []

    def begin(*arguments: str, **environ: str) -> Up:
        started.append(Up(tmp_path, *arguments, **environ))
        return started[-1]

    yield begin
    for each in started:
        if each.process.poll() is None:
            each.process.terminate()
            each.process.wait(60)


def test_a_demo_finds_every_fault_and_nothing_else(start: Callable[..., Up]) -> None:
    up = start("--demo", "--for", "60s", "--summary", "summary.json")
    code = up.process.wait(800)
    assert code == 0, up.said
    summary = json.loads((up.folder / "summary.json").read_text())
    assert summary["simulated"] is True
    assert summary["faults_injected"].keys() == WITHIN_A_MINUTE
    assert (summary["faults_missed"], summary["false_findings"]) == (0, 0), summary["details"]
    assert set(summary["findings"]) == WITHIN_A_MINUTE
    assert summary["gpus"] == 512
    assert summary["rows_ingested"] >= 512 * summary["history_s"]
    assert summary["history_s"] >= 3600
    assert summary["sim_speed"] > 1
    assert summary["recommendations"] >= 1
    assert summary["dashboard_http_status"] == 200
    lines = (up.folder / "data" / "demo" / "slack-messages.jsonl").read_text().splitlines()
    # What is under way when the summary is made arrives before the end, and is not in it.
    assert len(lines) >= summary["messages_delivered"] >= 2
    assert all("SIMULATED" in json.loads(line)["text"] for line in lines)
    assert any("RESOLVED" in json.loads(line)["text"] for line in lines)
    assert not up.children()


def test_ctrl_c_stops_everything_while_the_history_runs(start: Callable[..., Up]) -> None:
    up = start("--demo")
    up.wait_until_said("SIMULATED history")
    children = up.children()
    assert len(children) == 5
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(90) == 0, up.said
    assert up.said.endswith("unidle up: stopped\n")
    assert all(is_gone(pid) for pid in children)


def test_nothing_is_left_when_up_itself_is_killed(start: Callable[..., Up]) -> None:
    up = start("--demo")
    up.wait_until_said("dashboard  ready")
    children = up.children()
    assert len(children) == 5
    up.process.kill()
    up.process.wait()
    wait_for(lambda: all(is_gone(pid) for pid in children), 60, lambda: str(children))


def test_a_role_that_dies_ends_all_and_is_named(start: Callable[..., Up]) -> None:
    up = start("--demo")
    up.wait_until_said("dashboard  ready")
    children = up.children()
    collector = next(pid for pid, line in children.items() if "unidle_agent.cli collector" in line)
    os.kill(collector, signal.SIGKILL)
    assert up.process.wait(90) == 1
    assert "collector ended with exit code -9" in up.said or "simulator ended" in up.said
    assert all(is_gone(pid) for pid in children)


def test_a_machine_without_gpus_gets_the_simulated_fleet_in_one_line(start: Callable[..., Up]) -> None:
    up = start(UNIDLE_AGENT_NVML="off")
    up.wait_until_said("collector  ready")
    assert up.said.startswith("unidle up: no GPU here (")
    assert "starting a SIMULATED fleet" in up.said.splitlines()[0]
    up.process.terminate()
    assert up.process.wait(90) == 0, up.said
