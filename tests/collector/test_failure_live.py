"""What goes wrong around a running collector; docs/failure-modes.md names these tests."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from tests.collector.fleets import HEALTHY, Column, recording
from tests.collector.pushing import START_S, Site, Values, batch, site
from tests.e2e.processes import answers, free_port, roles, wait_for

from unidle_agent.wire import CLOCK_HEADER, encode
from unidle_collector.accounts.keeping import restore
from unidle_collector.engine import Engine
from unidle_collector.inbox import MOST_WAITING
from unidle_collector.replay import replay

BUSY: Values = {"gpu_util_ratio": 0.9, "sm_active_ratio": 0.8, "power_w": 600.0, "memory_used_bytes": 3e10}


def test_a_collector_with_too_much_waiting_asks_to_come_again_and_forgets_none(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        here.clock.at_s = START_S + 5
        begun, release = threading.Event(), threading.Event()
        held = here.live.ask(lambda: begun.set() or release.wait())  # type: ignore[func-returns-value]
        assert begun.wait(30)
        waiting = [
            here.live.push(encode(batch(seq, 0, 1, BUSY, node=f"n{seq}")), here.clock(), None)
            for seq in range(MOST_WAITING)
        ]
        late = encode(batch(1, 0, 1, BUSY, node="late"))
        headers = {"Authorization": f"Bearer {here.token}"}
        reply = here.http.post("/api/v1/push", content=late, headers=headers)
        assert (reply.status_code, reply.headers["Retry-After"]) == (503, "1")
        release.set()
        assert held.result(30)
        assert [future.result(60).ack for future in waiting] == list(range(MOST_WAITING))
        assert here.push(late)[0] == 200
        assert here.counter("pushes_busy") == 1
        assert here.counter("rows_ingested") == 2 * (MOST_WAITING + 1)


def test_a_fleet_that_falls_silent_is_a_problem_and_its_gpus_are_unknown(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        here.clock.at_s = START_S + 30
        here.push(batch(1, 0, 30, BUSY))
        here.settle(33)
        assert here.get("health")["ok"] is True
        here.settle(200)
        health = here.get("health")
        assert (health["ok"], health["problems"]) == (False, ["no node has pushed for 60 s"])
        assert here.get("fleet")["states"] == {"unknown": 2}
        (node,) = here.get("nodes")
        assert node["last_push_ns"] == (START_S + 30) * 10**9


@pytest.mark.parametrize("hours", [-5, 5])
def test_a_clock_hours_off_costs_no_row_and_no_other_node(tmp_path: Path, hours: int) -> None:
    off_s = hours * 3600
    with site(tmp_path) as here:
        here.clock.at_s = START_S + 5
        here.push(batch(1, 0, 5, BUSY), clock_s=START_S + 5)
        status, _ = here.push(
            batch(1, off_s, 5, BUSY, node="n2", gpus=("GPU-z",)), clock_s=START_S + off_s + 5
        )
        assert status == 200
        here.settle(10)
        assert here.live.window.time_ns == (START_S + 4) * 10**9
        assert [here.counter(name) for name in ("rows_ingested", "rows_late", "rows_future")] == [15, 0, 0]
        skews = {node["node"]: node["clock_skew_s"] for node in here.get("nodes")}
        assert skews == {"n1": 0, "n2": -off_s}
        assert {gpu["sampled_ns"] for gpu in here.get("gpus")} == {(START_S + 4) * 10**9}


@pytest.mark.parametrize("hours", [-3, 0, 3])
def test_a_restart_while_a_clock_is_wrong_costs_nothing(tmp_path: Path, hours: int) -> None:
    off_s = hours * 3600

    def push(here: Site, first_s: int) -> None:
        here.clock.at_s = START_S + first_s + 5
        sent_s = START_S + off_s + first_s + 5
        assert here.push(batch(first_s, off_s + first_s, 5, BUSY), clock_s=sent_s)[0] == 200
        here.settle(first_s + 8)

    with site(tmp_path) as here:
        for first_s in range(0, 30, 5):
            push(here, first_s)
    with site(tmp_path) as here:
        for first_s in range(30, 90, 5):
            push(here, first_s)
        seconds = here.get("fleet")["account"]["seconds"]
    assert sum(seconds.values()) == pytest.approx(2 * 90, abs=4)
    assert seconds["unknown"] <= 2 * 2


def hung(first_min: int, last_min: int) -> Column:
    def build(instants: int, gpus: int) -> np.ndarray:
        column = np.zeros((instants, gpus))
        column[first_min * 60 : last_min * 60, 0] = 2
        return column

    return build


def test_a_driver_that_hangs_on_a_gpu_is_told_and_its_time_has_failed() -> None:
    result = replay(recording(HEALTHY | {"gpu_state": hung(10, 30)}, minutes=30))
    (finding,) = [one for one in result.findings if one.told_ns is not None]
    assert (finding.kind, finding.cause, len(finding.gpus)) == ("driver_hung", "hung", 1)
    assert result.gpus[0].states["failed"] == pytest.approx(1200, abs=45)
    assert result.gpus[1].states["productive"] == pytest.approx(1800, abs=45)


@pytest.mark.slow
def test_a_stopped_collector_saves_its_accounts_first(tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    data = tmp_path / "data"
    with roles(tmp_path) as start:
        role = start("collector", {"port": str(port), "data_dir": str(data), "push_token": "t0ken"})
        wait_for(lambda: answers(f"{url}/api/v1/health"), "the collector")
        first_s = int(time.time()) - 10 - START_S
        request = urllib.request.Request(
            f"{url}/api/v1/push",
            data=encode(batch(1, first_s, 5, BUSY)),
            headers={"Authorization": "Bearer t0ken", CLOCK_HEADER: str(time.time_ns())},
        )
        with urllib.request.urlopen(request, timeout=10) as reply:
            assert json.load(reply)["ack"] == 1
        last_ns = (START_S + first_s + 4) * 10**9
        wait_for(lambda: event_time_ns(url) >= last_ns, "the rows to be accounted")
        role.process.send_signal(signal.SIGTERM)
        assert role.process.wait(60) == 0
    engine = Engine(1.0)
    restored = restore(engine, data / "accounts")
    assert restored.reached_ns is not None
    assert restored.reached_ns >= last_ns
    (account,) = engine.ledger.accounts(lambda _: "all", 0, time.time_ns())
    assert (account.gpus, account.seconds["productive"]) == (2, 10.0)


def event_time_ns(url: str) -> int:
    with urllib.request.urlopen(f"{url}/api/v1/health", timeout=10) as reply:
        return json.load(reply)["event_time_ns"] or 0


@pytest.mark.slow
def test_a_collector_that_listens_beyond_this_machine_without_a_read_token_does_not_start(
    tmp_path: Path,
) -> None:
    command = [
        sys.executable,
        "-m",
        "unidle_agent.cli",
        "collector",
        "--bind",
        "0.0.0.0",
        "--data-dir",
        "data",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "collector.read_token: expected a token" in done.stderr
    assert not (tmp_path / "data").exists()
