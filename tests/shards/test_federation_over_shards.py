"""A site of two collectors in a federation: one report whichever answers, also while one of them is lost."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.collector.postgres_server import postgres
from tests.e2e.processes import answers, free_port, roles, wait_for
from tests.federation.test_federation_policy import write
from tests.shards.nats_servers import Cluster
from tests.shards.test_one_view import NODES, Nodes, World, _answers, _has_stream
from tests.shards.test_takeover import collector

from unidle_agent.shards import SHARDS, shard_of
from unidle_collector.client import Client
from unidle_collector.federation.report import SiteReport
from unidle_collector.model import Fleet

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

POLICY = '[share]\nanywhere = ["fleet.now", "accounts.fleet", "accounts.hour", "health"]\n'
GPUS = 2 * len(NODES)


def sites_file(folder: Path, *urls: str) -> Path:
    """Both collectors: it is not known to the federation that they are one site."""
    entries = [f'[[site]]\nurl = "{url}"\ntoken_file = "{folder}/hq.token"\n' for url in urls]
    path = folder / "sites.toml"
    path.write_text("\n".join(entries))
    return path


def test_a_site_in_shards_is_one_site_to_a_federation_and_stays_whole_when_a_collector_is_lost(
    tmp_path: Path,
) -> None:
    policy = ("--federation-file", str(write(tmp_path, POLICY)), "--jurisdiction", "EU", "--site", "fra")
    with ExitStack() as stack:
        state_url = stack.enter_context(postgres()).database()
        brokers = Cluster(tmp_path / "nats")
        stack.callback(brokers.stop)
        a = stack.enter_context(collector(tmp_path / "a", brokers.urls, state_url, *policy, replicas=1))
        b = stack.enter_context(collector(tmp_path / "b", brokers.urls, state_url, *policy, replicas=1))
        world = World(a, b, Nodes(brokers.urls))
        wait_for(lambda: _answers(a) and _answers(b), "both answer")
        wait_for(lambda: len(world.held(a)) == len(world.held(b)) == SHARDS // 2, "an even share for both")
        wait_for(lambda: _has_stream(brokers.urls), "the stream")
        world.nodes.start()
        stack.callback(world.nodes.stop)
        start = stack.enter_context(roles(tmp_path))
        port = free_port()
        sites = sites_file(tmp_path, a.url, b.url)
        settings = {"sites_file": str(sites), "port": str(port), "data_dir": str(tmp_path / "hq")}
        start("federation", {**settings, "poll_s": "3"})
        hq = Client(f"http://127.0.0.1:{port}")
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/api/v1/health"), "the federation")

        def fleet() -> Fleet:
            return hq.fleet(3600)

        def report() -> SiteReport:
            (site,) = hq.sites()
            assert site.report is not None
            assert site.report.now is not None
            return site.report

        wait_for(lambda: [one.state for one in hq.sites()] == ["current"], "one site, though asked at two")
        wait_for(lambda: fleet().gpus == GPUS, "every GPU once")
        (site,) = hq.sites()
        assert len(site.also_at) == 1
        whose = report().site_id
        wait_for(lambda: time.time() - world.nodes.since_s > 60, "checkpoints of all shards", 90)

        of_a = world.held(a)
        a.process.kill()
        a.process.wait()
        unknown = wait_for(lambda: report().now.states.get("unknown", 0), "GPUs of which nobody knows", 30)
        assert unknown in (GPUS, sum(2 for node in NODES if shard_of(node) in of_a))
        assert fleet().gpus == GPUS, "they are not gone"
        wait_for(lambda: len(world.held(b)) == SHARDS, "all shards at the other one")
        wait_for(lambda: fleet().states.get("unknown", 0) == 0, "the whole site again")
        told = report()
        assert (told.site_id, told.site, told.simulated) == (whose, "fra", True)
        assert told.now.gpus == told.now.simulated_gpus == GPUS
        assert told.health is not None
        (account,) = told.accounts(3600.0, "fleet") or ()
        assert account.gpus == GPUS
        known = sum(seconds for state, seconds in account.seconds.items() if state != "unknown")
        lived_s = (account.end_ns / 1e9 - world.nodes.since_s) * GPUS
        assert 0.5 * lived_s < known <= lived_s + GPUS, "counted once"
