"""The HTTP face of a collector of shards, without a broker: what it says of itself and where it sends one."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient
from tests.collector.pushing import FakeTime, batch, site

from unidle_agent.errors import SettingError
from unidle_agent.shards import SHARDS
from unidle_collector.commands import collector as command
from unidle_collector.ingest.tokens import Tokens, make
from unidle_collector.settings import CollectorSettings
from unidle_collector.shards.app import ShardsApp
from unidle_collector.shards.leases import Lease
from unidle_collector.shards.progress import Progress
from unidle_collector.store import open_state
from unidle_collector.store.errors import StoreError


class World:
    """Shard 3 is held here, 4 elsewhere, 5 by nobody."""

    def __init__(self, folder: Path, live: object) -> None:
        self.holder = "here:1"
        self.settings = CollectorSettings(data_dir=folder, allowed_hosts=("testserver",))
        self.problems: dict[str, str] = {}
        self.counters = dict.fromkeys(("takeovers", "shards_lost", "writes_fenced"), 2)
        keeper = SimpleNamespace(progress=Progress(41), saves=7)
        feed = SimpleNamespace(behind=5, problem="")
        self.held = {3: SimpleNamespace(shard=3, epoch=2, live=live, keeper=keeper, feed=feed, closing=False)}
        self.away = False
        self.state = open_state(folder / "site.sqlite")
        self.incidents = SimpleNamespace(
            problem="", parts=list, kept=lambda shard: (1, 8) if shard == 4 else None
        )

    def table(self) -> list[Lease]:
        if self.away:
            raise StoreError("expected to read the state, came nothing")
        free = [Lease(shard, "", "", 1, -1.0) for shard in range(SHARDS)]
        free[3] = Lease(3, self.holder, "http://here", 2, 9.0)
        free[4] = Lease(4, "there:1", "http://there:9470", 6, 9.0)
        return free


@pytest.fixture
def world(tmp_path: Path) -> Iterator[tuple[World, TestClient]]:
    with site(tmp_path / "shard") as running:
        assert running.push(batch(1, 0, 5, {"gpu_util_ratio": 0.5}))[0] == 200
        here = World(tmp_path, running.live)
        tokens = Tokens(running.live.state, running.clock)
        yield here, TestClient(ShardsApp(here, tokens))  # type: ignore[arg-type]


def test_every_shard_is_listed_with_how_far_those_are_that_are_held_here(
    world: tuple[World, TestClient],
) -> None:
    _, http = world
    shards = http.get("/api/v1/shards").json()
    assert len(shards) == SHARDS
    assert (shards[3]["here"], shards[3]["gpus"], shards[3]["position"], shards[3]["behind"]) == (
        True,
        2,
        41,
        5,
    )
    assert (shards[4]["holder"], shards[4]["epoch"], shards[4]["gpus"]) == ("there:1", 6, None)
    assert shards[5]["holder"] == ""


def test_the_api_of_a_shard_comes_from_here_or_by_a_redirect_to_its_holder(
    world: tuple[World, TestClient],
) -> None:
    _, http = world
    assert [gpu["gpu"] for gpu in http.get("/shards/3/api/v1/gpus").json()] == ["GPU-a", "GPU-b"]
    away = http.get("/shards/4/api/v1/fleet?window_s=60", follow_redirects=False)
    assert (away.status_code, away.headers["location"]) == (
        307,
        "http://there:9470/shards/4/api/v1/fleet?window_s=60",
    )
    free = http.get("/shards/5/api/v1/fleet")
    assert (free.status_code, free.headers["retry-after"]) == (503, "2")
    assert http.get("/shards/99/api/v1/fleet").status_code == 404


def test_rows_do_not_come_past_the_broker(world: tuple[World, TestClient]) -> None:
    _, http = world
    refused = http.post("/shards/3/api/v1/push", content=b"rows")
    assert refused.status_code == 404
    assert "by way of NATS" in refused.json()["detail"]


def test_a_collector_says_what_is_wrong_with_it_and_how_much_waits(world: tuple[World, TestClient]) -> None:
    here, http = world
    assert http.get("/api/v1/collector").json()["ok"] is True
    here.problems["nats"] = "NATS does not answer"
    here.held[3].live.problems["state"] = "the state is away"
    now = http.get("/api/v1/collector").json()
    assert (now["ok"], now["shards"]) == (False, 1)
    assert now["problems"] == ["NATS does not answer", "shard 3: the state is away"]
    page = http.get("/metrics").text
    for line in (
        "unidle_collector_shards_held 1",
        'unidle_collector_shard_behind_messages{shard="3"} 5',
        'unidle_collector_rows_ingested_total{shard="3"} 10',
        "unidle_collector_takeovers_total 2",
    ):
        assert f"\n{line}\n" in page
    here.away = True
    assert http.get("/api/v1/shards").status_code == 503


def test_without_a_read_token_nothing_is_answered_once_there_is_one(tmp_path: Path) -> None:
    state = open_state(tmp_path / "state.sqlite")
    clock = FakeTime(1_700_000_000)
    secret, token = make("read", "r", clock(), None)
    state.save_tokens([token])
    tokens = Tokens(state, clock, may_be_open=False)
    tokens.start()
    try:
        http = TestClient(ShardsApp(World(tmp_path, None), tokens))  # type: ignore[arg-type]
        assert http.get("/api/v1/shards").status_code == 401
        answer = http.get("/api/v1/collector", headers={"Authorization": f"Bearer {secret}"})
        assert answer.status_code == 200
    finally:
        tokens.stop()
        state.close()


@pytest.mark.parametrize("flags", [["--remote-write"], ["--scrape-targets", "h:9400"]])
def test_what_a_collector_of_shards_does_not_do_is_refused_and_not_left_out(
    tmp_path: Path, flags: list[str]
) -> None:
    parser = argparse.ArgumentParser()
    command.arguments(parser)
    args = ["--nats-url", "nats://127.0.0.1:1", "--data-dir", str(tmp_path), *flags]
    with pytest.raises(SettingError, match=r"nothing beside nats_url"):
        command.run(parser.parse_args(args))


def test_a_report_to_a_federation_needs_the_token_that_collectors_ask_each_other_with(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    command.arguments(parser)
    state = open_state(tmp_path / "state.sqlite")
    state.save_tokens([make("read", "r", FakeTime(1_700_000_000)(), None)[1]])
    state.close()
    args = ["--nats-url", "nats://127.0.0.1:1", "--data-dir", str(tmp_path), "--federation-file", "f"]
    with pytest.raises(SettingError, match="the same token on all collectors of the site"):
        command.run(parser.parse_args([*args, "--bind", "192.0.2.1"]))
