"""Two collectors, real NATS, PostgreSQL and VictoriaMetrics: one site, whichever is asked, after a loss."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nats
import pytest
from playwright.sync_api import expect, sync_playwright
from tests.collector.postgres_server import postgres
from tests.collector.prometheus_server import victoria_metrics
from tests.collector.pushing import START_S, batch
from tests.collector.test_live import COOL
from tests.dashboard.test_dashboard_browser import CHROMIUM, CHROMIUM_FLAGS, PAINTED, Watched, start, stop
from tests.shards.nats_servers import Cluster
from tests.shards.test_takeover import Collector, _path, collector, wait_for

from unidle_agent.shards import SHARDS, STREAM, rows_subject, shard_of
from unidle_agent.wire import Event, encode
from unidle_collector.client import Client

pytestmark = pytest.mark.slow

NODES = ("n28", "n42", "n09", "n06", "n19", "n15")
BROKEN = "n09"
BATCH_S = 2
JOB = "4711"


class Nodes(threading.Thread):
    """All nodes: what their agents would publish, from now on, each with two GPUs of one job."""

    def __init__(self, urls: str) -> None:
        super().__init__(daemon=True)
        self._urls = urls
        self._over = threading.Event()
        self.broken = threading.Event()
        self.since_s = int(time.time())

    def stop(self) -> None:
        self._over.set()
        self.join(timeout=10)

    def run(self) -> None:
        asyncio.run(self._publish())

    async def _publish(self) -> None:
        client = await nats.connect(self._urls)
        jetstream = client.jetstream()
        at_s, seq = self.since_s, 0
        while not self._over.is_set():
            if time.time() < at_s + BATCH_S:
                await asyncio.sleep(0.1)
                continue
            for node in NODES:
                await jetstream.publish(rows_subject(node), self._batch(node, at_s, seq))
            at_s, seq = at_s + BATCH_S, seq + 1
        await client.close()

    def _batch(self, node: str, at_s: int, seq: int) -> bytes:
        gpus = (f"{node}-a", f"{node}-b")
        made = batch(seq, at_s - START_S, BATCH_S, COOL, node=node, gpus=gpus, job=JOB, simulated=True)
        if node == BROKEN and self.broken.is_set():
            made = replace(made, events=(Event(at_s * 10**9, gpus[0], "xid", 79),))
        return encode(made)


@dataclass
class World:
    a: Collector
    b: Collector
    nodes: Nodes

    def held(self, by: Collector) -> set[int]:
        found: Any = by.get("/api/v1/shards")
        return {one["shard"] for one in found if one["here"]}


@contextmanager
def two_collectors(folder: Path) -> Iterator[World]:
    with ExitStack() as stack:
        series = stack.enter_context(victoria_metrics(folder / "vm"))
        state_url = stack.enter_context(postgres()).database()
        brokers = Cluster(folder / "nats")
        stack.callback(brokers.stop)
        more = ("--series", "victoriametrics", "--series-url", series, "--series-step-s", "0")
        a = stack.enter_context(collector(folder / "a", brokers.urls, state_url, *more, replicas=1))
        b = stack.enter_context(collector(folder / "b", brokers.urls, state_url, *more, replicas=1))
        world = World(a, b, Nodes(brokers.urls))
        wait_for(lambda: _answers(a) and _answers(b), "both answer")
        wait_for(lambda: len(world.held(a)) == len(world.held(b)) == SHARDS // 2, "an even share for both")
        wait_for(lambda: _has_stream(brokers.urls), "the stream")
        world.nodes.start()
        stack.callback(world.nodes.stop)
        yield world


def _answers(of: Collector) -> bool:
    try:
        of.get("/api/v1/shards")
    except OSError:
        return False
    return True


def _has_stream(urls: str) -> bool:
    async def look() -> bool:
        client = await nats.connect(urls)
        try:
            await client.jetstream().stream_info(STREAM)
        except nats.errors.Error:
            return False
        finally:
            await client.close()
        return True

    return asyncio.run(look())


def gaps(of: Collector) -> str:
    with urllib.request.urlopen(f"{of.url}/api/v1/nodes", timeout=10) as answer:
        return answer.headers.get("X-Unidle-Gaps", "")


def said(of: Collector, *command: str) -> str:
    """What a sub-command prints that is pointed at that collector."""
    done = subprocess.run(
        [sys.executable, "-m", "unidle_agent.cli", *command, "--collector-url", of.url],
        capture_output=True,
        text=True,
        timeout=60,
        env=_path() | {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "COLUMNS": "160"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_site_of_two_collectors_is_one_to_all_who_read_it_and_stays_so_when_one_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with two_collectors(tmp_path) as world:
        a, b = Client(world.a.url), Client(world.b.url)
        assert {shard_of(node) for node in NODES} & world.held(world.a)
        assert {shard_of(node) for node in NODES} & world.held(world.b)
        wait_for(lambda: a.fleet().gpus == b.fleet().gpus == 2 * len(NODES), "every GPU, from both")
        assert [one.node for one in a.nodes()] == [one.node for one in b.nodes()] == sorted(NODES)
        assert {(gpu.node, gpu.gpu) for gpu in a.gpus()} == {(gpu.node, gpu.gpu) for gpu in b.gpus()}
        wait_for(lambda: sum(len(job.gpus) for job in a.jobs()) == 2 * len(NODES), "whose they are")
        (job,) = a.jobs()
        assert (job.job, len(job.gpus), len(job.nodes)) == (JOB, 2 * len(NODES), len(NODES))
        assert b.jobs() == [job]
        assert a.fleet().jobs == 1

        world.nodes.broken.set()
        wait_for(lambda: a.incidents(), "the incident")
        (incident,), (same,) = a.incidents(), b.incidents()
        assert (incident.id, incident.revision, incident.finding.nodes) == (same.id, same.revision, (BROKEN,))
        assert a.events() == b.events() != []
        assert a.fleet().open_incidents == b.fleet().open_incidents == 1
        for one in (world.a, world.b):
            assert incident.id in said(one, "explain", incident.id)
            assert "SIMULATED" in said(one, "top", "--once")

        look_at_it(world.b, tmp_path)

        whole = a.accounts("job", 3600)
        assert [one.key for one in whole] == [JOB]
        wait_for(lambda: time.time() - world.nodes.since_s > 60, "rows that are flushed and checkpointed", 90)
        moved = next(node for node in NODES if shard_of(node) in world.held(world.a))
        before_s = time.time()
        world.a.process.kill()
        world.a.process.wait()
        lost = wait_for(lambda: "shard" in gaps(world.b), "the lost shards by their numbers", 20)
        fleet = b.fleet()
        assert fleet.gaps
        assert fleet.gpus == 2 * len(NODES), "they are not gone, they are unknown"
        assert fleet.states["unknown"] > 0
        assert b.health().ok is False
        assert b.incident(incident.id).state == "open", "incidents are there while the shard is not"
        took_s = wait_for(lambda: not gaps(world.b), "all shards at the other one", 60)
        with capsys.disabled():
            print(f"\n  killed: told after {lost:.1f} s, whole again after {lost + took_s:.1f} s")

        look_back(b, moved, before_s)
        assert b.incident(incident.id).id == incident.id
        assert [event.seq for event in b.events()] == sorted({event.seq for event in b.events()})


def look_at_it(of: Collector, folder: Path) -> None:
    """The dashboard over one of the collectors, in a browser."""
    if not Path(CHROMIUM).exists():
        pytest.skip(f"needs {CHROMIUM}: apt-get install chromium")
    watched = Watched()
    dashboard = start(SimpleNamespace(url=of.url, token=""), folder)  # type: ignore[arg-type]  # two fields of it
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(CHROMIUM_FLAGS))
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.on("console", watched.console)
            page.route("**/*", watched.route)
            for path, text in (
                ("", f"of {2 * len(NODES)} GPUs"),
                ("fleet", "Failed 1"),
                ("incidents", "XID 79"),
                ("health", "6"),
            ):
                page.goto(f"{dashboard.url}/{path}")
                expect(page.locator(".stMainBlockContainer")).to_contain_text(text, timeout=30_000)
                expect(page.locator(".u-simulated")).to_contain_text("SIMULATED")
                page.evaluate(PAINTED)
                page.screenshot(path=folder / f"{path or 'today'}.png")
            browser.close()
    finally:
        stop(dashboard)
    assert watched == Watched()


def look_back(client: Client, node: str, before_s: float) -> None:
    """Rows that the lost collector took are read from the engine by who took its shard over."""

    def old() -> list[float]:
        found = client.series(node, f"{node}-a", "power_w", 600)
        times = [
            at / 1e9 for at, value in zip(found.times_ns, found.values, strict=True) if value is not None
        ]
        return [at for at in times if at < before_s - 20]

    wait_for(old, f"series of {node} from before", 60)
