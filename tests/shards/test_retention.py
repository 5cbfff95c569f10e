"""Messages that leave the broker's stream before a shard has read them, with a real nats-server."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nats
import pytest
from nats.js.api import StreamConfig
from tests.collector.pushing import START_S, batch
from tests.shards.nats_servers import Cluster

from unidle_agent.shards import ROWS, STREAM, rows_subject, shard_of
from unidle_agent.wire import encode
from unidle_collector.live import Live
from unidle_collector.settings import CollectorSettings
from unidle_collector.shards import feed as feeding
from unidle_collector.shards.feed import Feed
from unidle_collector.shards.progress import Pace, Progress
from unidle_collector.store.opening import open_store

pytestmark = pytest.mark.slow

NODE, OTHER = "n28", "n09"
SHARD = 3


@dataclass
class World:
    """A stream, and shard 3 over it."""

    server: Cluster
    live: Live
    progress: Progress
    pace: Pace

    async def publish(self, *seqs: int, node: str = NODE) -> None:
        """Batches of `node` by their numbers."""
        client = await nats.connect(self.server.urls)
        for seq in seqs:
            first_s = int(time.time()) - START_S - 10
            await client.jetstream().publish(
                rows_subject(node), encode(batch(seq, first_s, 1, {}, node=node))
            )
        await client.close()

    async def remove_all(self) -> None:
        """What retention does to messages in time."""
        client = await nats.connect(self.server.urls)
        await client.jetstream().purge_stream(STREAM)
        await client.close()

    async def read(self, done: Callable[[], object]) -> None:
        """Let the shard read until it holds, then let it go as a crash would."""
        client = await nats.connect(self.server.urls)
        feed = Feed(client, SHARD, self.live, self.progress, self.pace, time.time_ns)
        task = asyncio.create_task(feed.run())
        for _ in range(300):
            if done():
                break
            await asyncio.sleep(0.05)
        else:
            raise AssertionError(f"not within 15 s: {self.live.problems}, {dict(self.live.counters)}")
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await client.close()
        self.progress.mark(2**62)

    def rows(self) -> float:
        return self.live.counters["rows_ingested"]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    assert (shard_of(NODE), shard_of(OTHER)) == (SHARD, 4)
    server = Cluster(tmp_path / "nats")
    settings = CollectorSettings(data_dir=tmp_path / "shard")
    settings.data_dir.mkdir()
    progress, pace = Progress(), Pace()
    live = Live(settings, open_store(settings), accounted=progress, pace_ns=pace)
    live.start()

    async def make() -> None:
        client = await nats.connect(server.urls)
        await client.jetstream().add_stream(StreamConfig(name=STREAM, subjects=[f"{ROWS}.*.*"]))
        await client.close()

    asyncio.run(make())
    try:
        yield World(server, live, progress, pace)
    finally:
        live.stop()
        server.stop()


def test_batches_that_were_removed_unread_are_told_and_counted(world: World) -> None:
    async def steps() -> None:
        await world.publish(0, 1)
        await world.read(lambda: world.rows() == 4)
        assert "retention" not in world.live.problems
        await world.publish(2, 3, 4)
        await world.remove_all()
        await world.publish(5, 6)
        await world.read(lambda: world.rows() == 8)

    asyncio.run(steps())
    assert world.live.counters["batches_expired"] == 3
    assert "NATS removed messages 3 to 5 before they were read" in world.live.problems["retention"]


def test_what_is_removed_after_it_was_read_is_not_told(world: World) -> None:
    async def steps() -> None:
        await world.publish(0, 1)
        await world.read(lambda: world.rows() == 4)
        await world.remove_all()
        await world.publish(2)
        await world.read(lambda: world.rows() == 6)

    asyncio.run(steps())
    assert world.live.counters["batches_expired"] == 0
    assert "retention" not in world.live.problems


def test_a_shard_whose_nodes_are_quiet_misses_nothing_of_the_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeding, "PASS_EACH_NS", 0)

    async def steps() -> None:
        await world.publish(0)
        await world.read(lambda: world.rows() == 2)
        await world.publish(0, 1, 2, node=OTHER)
        await world.read(lambda: world.progress.waiting)
        assert world.progress.position == 4
        await world.remove_all()
        await world.publish(1)
        await world.read(lambda: world.rows() == 4)

    asyncio.run(steps())
    assert "retention" not in world.live.problems
    assert world.live.counters["batches_expired"] == 0


def test_health_stops_saying_so_after_an_hour(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "SAY_UNREAD_NS", 0)

    async def steps() -> None:
        await world.publish(0)
        await world.read(lambda: world.rows() == 2)
        await world.publish(1)
        await world.remove_all()
        await world.publish(2)
        await world.read(lambda: world.rows() == 4 and "retention" not in world.live.problems)

    asyncio.run(steps())
    assert world.live.counters["batches_expired"] == 1
