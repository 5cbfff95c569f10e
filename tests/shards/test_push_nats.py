"""The agent's way to NATS, against a real nats-server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import nats
import pytest
from nats.js.api import StreamConfig
from tests.shards.nats_servers import Cluster

from unidle_agent.errors import SettingError
from unidle_agent.push_nats import NatsPusher
from unidle_agent.settings import Secret
from unidle_agent.shards import ROWS, SHARDS, STREAM, node_of, reply_subject, rows_subject, shard_of, token_of
from unidle_agent.spool import Spool
from unidle_agent.wire import CLOCK_HEADER


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path / "nats")
    try:
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    opened = Spool(tmp_path / "spool", 2**24, 3600)
    yield opened
    opened.close()


def make_stream(server: Cluster, **who: str) -> None:
    async def make() -> None:
        client = await nats.connect(server.urls, **who)
        await client.jetstream().add_stream(StreamConfig(name=STREAM, subjects=[f"{ROWS}.*.*"]))
        await client.close()

    asyncio.run(make())


def stored(server: Cluster, **who: str) -> list[tuple[str, bytes, dict[str, str]]]:
    async def read() -> list[tuple[str, bytes, dict[str, str]]]:
        client = await nats.connect(server.urls, **who)
        jetstream = client.jetstream()
        last = (await jetstream.stream_info(STREAM)).state.last_seq
        found = [await jetstream.get_msg(STREAM, seq) for seq in range(1, last + 1)]
        await client.close()
        return [(str(one.subject), one.data or b"", dict(one.headers or {})) for one in found]

    return asyncio.run(read())


def until(done: Callable[[], object], push: NatsPusher) -> None:
    """Step until it holds; a step waits for its answer itself."""
    for _ in range(100):
        if done():
            return
        push.step()
        threading.Event().wait(0.05)
    raise AssertionError(push.problem)


@pytest.mark.slow
def test_batches_are_published_once_each_and_forgotten_when_the_broker_has_them(
    server: Cluster, spool: Spool
) -> None:
    make_stream(server)
    push = NatsPusher(server.urls, "rack1.node7", Secret(), spool, now_ns=lambda: 77)
    try:
        for payload in (b"one", b"two"):
            spool.append(payload)
        assert [push.step(), push.step(), push.step()] == [0, 0, None]
        assert spool.pending == 0
        assert push.counts["acknowledged"] == 2
        subject = f"unidle.rows.{shard_of('rack1.node7')}.rack1=2e=node7"
        (first, second) = stored(server)
        assert first[:2] == (subject, b"one")
        assert second[2]["Nats-Msg-Id"] == f"rack1.node7/{spool.boot}/2"
        assert second[2][CLOCK_HEADER] == "77"
    finally:
        push.close()


@pytest.mark.slow
def test_a_batch_whose_acknowledgement_was_lost_is_kept_by_the_broker_once(
    server: Cluster, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_stream(server)
    push = NatsPusher(server.urls, "n1", Secret(), spool)
    try:
        spool.append(b"one")
        with monkeypatch.context() as lost:
            lost.setattr(spool, "ack", lambda seq: None)
            assert push.step() == 0
        assert push.step() == 0
        assert [data for _, data, _ in stored(server)] == [b"one"]
        assert spool.pending == 0
    finally:
        push.close()


@pytest.mark.slow
def test_without_a_stream_the_batch_waits_and_goes_once_there_is_one(server: Cluster, spool: Spool) -> None:
    push = NatsPusher(server.urls, "n1", Secret(), spool)
    try:
        spool.append(b"one")
        assert push.step() == 10
        assert "has no stream UNIDLE" in push.problem
        make_stream(server)
        until(lambda: spool.pending == 0, push)
        assert push.problem == ""
    finally:
        push.close()


@pytest.mark.slow
def test_a_broker_that_is_away_is_waited_for(server: Cluster, spool: Spool) -> None:
    make_stream(server)
    server.kill(0)
    push = NatsPusher(server.urls, "n1", Secret(), spool, timeout_s=0.5)
    try:
        spool.append(b"one")
        waits = [push.step() for _ in range(2)]
        assert all(wait is not None and 0 < wait <= 10 for wait in waits)
        assert "does not answer" in push.problem
        assert spool.pending == 1
        server.start(0)
        until(lambda: spool.pending == 0, push)
        assert [data for _, data, _ in stored(server)] == [b"one"]
    finally:
        push.close()


@pytest.mark.slow
def test_what_is_too_large_for_the_server_is_set_aside_and_blocks_nothing(
    server: Cluster, spool: Spool
) -> None:
    make_stream(server)
    push = NatsPusher(server.urls, "n1", Secret(), spool)
    try:
        spool.append(b"x" * (1024 * 1024 + 1))  # the default max_payload is 1 MiB
        spool.append(b"next")
        until(lambda: spool.pending == 0, push)
        assert push.counts["rejected"] == 1
        assert [data for _, data, _ in stored(server)] == [b"next"]
    finally:
        push.close()


@pytest.mark.slow
def test_a_collector_that_asks_for_facts_and_flights_is_heard(server: Cluster, spool: Spool) -> None:
    make_stream(server)
    asked, flown = threading.Event(), threading.Event()
    flights: list[tuple[str, str]] = []

    def on_flights(wanted: Sequence[tuple[str, str]]) -> None:
        flights.extend(wanted)
        flown.set()

    push = NatsPusher(server.urls, "n.1", Secret(), spool, on_send_facts=asked.set, on_flights=on_flights)
    try:
        spool.append(b"one")
        assert push.step() == 0

        async def ask() -> None:
            client = await nats.connect(server.urls)
            for text in (
                b"no JSON",
                b"[]",
                b'{"send_facts": true}',
                b'{"flight": [{"gpu": "g", "request": "r"}]}',
            ):
                await client.publish(reply_subject("n.1"), text)
            await client.close()

        asyncio.run(ask())
        assert asked.wait(10)
        assert flown.wait(10)
        assert flights == [("g", "r")]
    finally:
        push.close()


@pytest.mark.slow
def test_a_wrong_token_is_said_and_never_shown(tmp_path: Path, spool: Spool) -> None:
    server = Cluster(tmp_path / "locked", extra=("--auth", "the-right-one"))
    push = NatsPusher(server.urls, "n1", Secret("s3cret"), spool, timeout_s=1)
    try:
        spool.append(b"one")
        assert (push.step() or 0) > 0
        assert push.problem
        assert "s3cret" not in push.problem
        assert spool.pending == 1
    finally:
        push.close()
        server.stop()


@pytest.mark.slow
def test_by_the_example_configuration_a_node_writes_its_own_rows_only(
    tmp_path: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = (Path(__file__).parents[2] / "deploy/scale-out/nats.conf").read_text()
    conf = tmp_path / "nats.conf"
    conf.write_text(example[example.index("authorization {") :])
    monkeypatch.setenv("COLLECTOR_PASSWORD", "c")
    monkeypatch.setenv("NODE1_PASSWORD", "n")
    server = Cluster(tmp_path / "nats", extra=("-c", str(conf)))
    try:
        make_stream(server, user="collector", password="c")
        spool.append(b"one")
        other = NatsPusher(server.urls, "node2", Secret("node1:n"), spool, timeout_s=1)
        assert (other.step() or 0) > 0
        other.close()
        own = NatsPusher(server.urls, "node1", Secret("node1:n"), spool)
        until(lambda: spool.pending == 0, own)
        own.close()
        (kept,) = stored(server, user="collector", password="c")
        assert kept[:2] == (rows_subject("node1"), b"one")
    finally:
        server.stop()


def test_a_password_in_the_url_is_refused_and_not_shown(spool: Spool) -> None:
    with pytest.raises(SettingError) as told:
        NatsPusher("nats://user:s3cret@127.0.0.1:4222", "n1", Secret(), spool)
    assert "s3cret" not in str(told.value)


@pytest.mark.parametrize("node", ["n1", "rack1.node7", "a*b>c d", "zürich", "a=2e=b", "a.b"])
def test_a_nodes_name_becomes_one_token_and_comes_back(node: str) -> None:
    token = token_of(node)
    assert node_of(token) == node
    assert not set(token) & set(".*> \t")
    assert rows_subject(node) == f"unidle.rows.{shard_of(node)}.{token}"


def test_nodes_spread_evenly_over_the_shards_and_stay_where_they_are() -> None:
    counts = [0] * SHARDS
    for number in range(1250):
        counts[shard_of(f"node-{number:05d}")] += 1
    assert min(counts) > 50
    assert max(counts) < 110
    assert [shard_of(name) for name in ("n1", "node-00000")] == [13, 7]  # of every version
