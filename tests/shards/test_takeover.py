"""Two collectors, three nats-servers, a PostgreSQL and the agents' own senders, while everything breaks."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from tests.collector.postgres_server import Server, postgres
from tests.collector.pushing import batch
from tests.shards.nats_servers import Cluster, free_ports

from unidle_agent.fields import BY_NAME
from unidle_agent.push_nats import NatsPusher
from unidle_agent.settings import Secret
from unidle_agent.shards import SHARDS, shard_of
from unidle_agent.spool import Spool
from unidle_agent.wire import column, encode
from unidle_collector.engine import Engine
from unidle_collector.shards.checkpoint import InState
from unidle_collector.shards.leases import Leases
from unidle_collector.store import database, open_state

NODES = 32
GPUS = ("GPU-a", "GPU-b")
BATCH_S = 5
TAKEOVER_S = 15


def util(second: int) -> float:
    """Of every GPU at that second: no two near each other are alike, so one for another is noticed."""
    return (second * 7919 % 1000) / 1000


class Node:
    """One node with the agent's spool and sender, whose rows are made up."""

    def __init__(self, number: int, urls: str, folder: Path) -> None:
        self.name = f"node-{number:03d}"
        self.spool = Spool(folder / self.name, 2**24, 3600)
        self.push = NatsPusher(urls, self.name, Secret(), self.spool, timeout_s=2, on_send_facts=self._ask)
        self.seconds: list[int] = []
        self._facts_wanted = threading.Event()
        self._facts_wanted.set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.push.run, args=(self._stop,), daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        self._facts_wanted.set()

    def sample(self, seconds: range) -> None:
        """Spool the rows of some seconds."""
        self.seconds += seconds
        facts = self._facts_wanted.is_set()
        self._facts_wanted.clear()
        made = batch(0, 0, 1, {}, node=self.name, gpus=GPUS, facts=facts, job="j1", simulated=True)
        values = [util(second) for second in seconds for _ in GPUS]
        made = replace(
            made,
            boot=self.spool.boot,
            seq=self.spool.next_seq,
            sent_ns=time.time_ns(),
            times_ns=[second * 10**9 for second in seconds],
            columns={"gpu_util_ratio": column(BY_NAME["gpu_util_ratio"], values)},
        )
        self.spool.append(encode(made))
        self.push.wake()

    def close(self) -> None:
        self._stop.set()
        self.push.wake()
        self._thread.join(timeout=10)
        self.push.close()
        self.spool.close()


class Fleet:
    """All nodes, sampling in real time in a thread of their own."""

    def __init__(self, urls: str, folder: Path) -> None:
        self.nodes = [Node(number, urls, folder) for number in range(NODES)]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        """All begin at once; from then on each second a fifth of them, so that none is as far as the next."""
        now_s = begun_s = int(time.time())
        while not self._stop.wait(max(0.0, now_s + 1 - time.time())):
            now_s += 1
            for number, node in enumerate(self.nodes):
                if not node.seconds:
                    node.sample(range(begun_s, now_s))
                elif (now_s + number) % BATCH_S == 0:
                    node.sample(range(node.seconds[-1] + 1, now_s))

    def stop_sampling(self) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def waiting(self) -> int:
        return sum(node.spool.pending for node in self.nodes)


@dataclass
class Collector:
    """A collector in a process of its own."""

    process: subprocess.Popen[bytes]
    url: str
    name: str

    def get(self, path: str) -> object:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=10) as answer:
            return json.load(answer)


@contextmanager
def collector(folder: Path, urls: str, state_url: str, *more: str, replicas: int = 3) -> Iterator[Collector]:
    (port,) = free_ports(1)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state.url").write_text(state_url)
    command = [
        sys.executable, "-m", "unidle_agent.cli", "collector", "--port", str(port), "--data-dir", str(folder),
        "--state-url-file", str(folder / "state.url"), "--nats-url", urls,
        "--nats-replicas", str(replicas), *more,
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | _path())
    try:
        yield Collector(process, f"http://127.0.0.1:{port}", f"{os.uname().nodename}:{port}")
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()


def _path() -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def wait_for(done: Callable[[], object], what: str, within_s: float = 60) -> float:
    """Seconds until it held."""
    began_s = time.monotonic()
    while not done():
        assert time.monotonic() - began_s < within_s, f"not within {within_s} s: {what}"
        time.sleep(0.1)
    return time.monotonic() - began_s


class Site:
    """What the tests look at from outside: the leases and the checkpoints."""

    def __init__(self, state_url: str) -> None:
        self.state_url = state_url
        self._leases = Leases(database.connect(state_url), "test", "")

    def held(self, by: Collector) -> int:
        return sum(lease.holder == by.name for lease in self._leases.all())

    def booked(self, shard: int) -> tuple[int, dict[tuple[str, str], tuple[float, float, float]]]:
        """(time reached, (node, GPU) -> seconds booked, seconds known, integral of util)."""
        state = open_state(self.state_url, f"shard_{shard:02d}")
        engine = Engine(1.0)
        restored = InState(state, 0).restore(engine)
        state.close()
        assert restored.note == ""
        tenures = engine.inventory.tenures
        sums = engine.ledger.buckets.total(0, 2**62, len(tenures))
        out: dict[tuple[str, str], tuple[float, float, float]] = {}
        for number, tenure in enumerate(tenures):
            ref = engine.inventory.refs[tenure.gpu]
            before = out.get((ref.node, ref.gpu), (0.0, 0.0, 0.0))
            now = (sums.seconds[:, number].sum(), sums.activity[0, 1, number], sums.activity[0, 0, number])
            out[ref.node, ref.gpu] = tuple(a + b for a, b in zip(before, map(float, now), strict=True))  # type: ignore[assignment]
        return (restored.reached_ns or 0) // 10**9, out


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgres() as running:
        yield running


def check(site: Site, fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    """Every row is in the accounts of its GPU once, and every second of event time is booked once."""
    lost = doubled = rows = 0
    for shard in range(SHARDS):
        nodes = [node for node in fleet.nodes if shard_of(node.name) == shard]
        if not nodes:
            continue
        reached_s, booked = site.booked(shard)
        first_s = min(node.seconds[0] for node in nodes)  # time of a shard begins with its first row
        for node, gpu in itertools.product(nodes, GPUS):
            total_s, known_s, integral = booked[node.name, gpu]
            sent = len(node.seconds)
            rows += sent
            assert reached_s >= node.seconds[-1], f"shard {shard} has not come far enough"
            lost += max(0, sent - round(known_s))
            doubled += max(0, round(known_s) - sent)
            assert total_s <= reached_s - first_s + 1, f"{node.name}: a second was booked twice"
            expected = float(np.sum([util(second) for second in node.seconds]))
            assert integral == pytest.approx(expected, abs=1e-3), f"{node.name} {gpu}: another's value"
    with capsys.disabled():
        print(f"\n  rows {rows}, lost {lost}, doubled {doubled}")
    assert (lost, doubled) == (0, 0)


@pytest.mark.slow
def test_no_row_is_lost_or_counted_twice_while_collectors_and_brokers_come_and_go(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    url = server.database()
    brokers = Cluster(tmp_path / "nats", 3)
    said: list[str] = []
    try:
        with (
            collector(tmp_path / "a", brokers.urls, url) as a,
            collector(tmp_path / "b", brokers.urls, url) as b,
        ):
            site = Site(url)
            wait_for(lambda: site.held(a) == site.held(b) == SHARDS // 2, "an even share for both")
            fleet = Fleet(brokers.urls, tmp_path / "agents")
            wait_for(lambda: _gpus(a) + _gpus(b) == NODES * len(GPUS), "every GPU known")
            time.sleep(25)  # past a checkpoint

            a.process.kill()
            a.process.wait()
            took_s = wait_for(lambda: site.held(b) == SHARDS, "the shards of the dead one")
            said.append(f"killed: taken over within {took_s:.1f} s")
            assert took_s <= TAKEOVER_S
            with collector(tmp_path / "c", brokers.urls, url) as c:
                wait_for(lambda: site.held(c) == SHARDS // 2, "shards given back to the new one")
                time.sleep(5)

                b.process.send_signal(signal.SIGSTOP)
                took_s = wait_for(lambda: site.held(c) == SHARDS, "the shards of the one that is cut off")
                said.append(f"cut off: taken over within {took_s:.1f} s")
                assert took_s <= TAKEOVER_S
                time.sleep(3)
                b.process.send_signal(signal.SIGCONT)
                wait_for(lambda: site.held(b) == SHARDS // 2, "shards given back to the one that came back")
                assert _metric(b, "unidle_collector_shards_lost_total") == SHARDS // 2

                for number in range(3):
                    brokers.kill(number)
                    time.sleep(2)
                    brokers.start(number)
                    time.sleep(3)
                for number in range(3):
                    brokers.kill(number)
                time.sleep(3)
                for number in range(3):
                    brokers.start(number)
                time.sleep(10)
                fleet.stop_sampling()
                wait_for(lambda: fleet.waiting == 0, "every batch with the broker", 90)
                last_s = max(node.seconds[-1] for node in fleet.nodes)
                wait_for(lambda: _booked(b, c, last_s), "every row in the accounts", 90)
                for one in (b, c):
                    one.process.terminate()
                    one.process.wait(timeout=60)
        with capsys.disabled():
            print("\n  " + "\n  ".join(said))
        check(site, fleet, capsys)
        for node in fleet.nodes:
            node.close()
    finally:
        brokers.stop()


def _here(of: Collector) -> list[dict[str, int]]:
    return [one for one in of.get("/api/v1/shards") if one["here"]]  # type: ignore[attr-defined]


def _gpus(of: Collector) -> int:
    return sum(one["gpus"] for one in _here(of))


def _booked(b: Collector, c: Collector, last_s: int) -> bool:
    """Is everything that was sent in the accounts of whoever holds it, late rows too."""
    held = [*_here(b), *_here(c)]
    known = [one for one in held if one["gpus"]]
    reached = all((one["reached_ns"] or 0) >= last_s * 10**9 and not one["correcting"] for one in known)
    return len(held) == SHARDS and sum(one["gpus"] for one in known) == NODES * len(GPUS) and reached


def _metric(of: Collector, name: str) -> float:
    with urllib.request.urlopen(f"{of.url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))
