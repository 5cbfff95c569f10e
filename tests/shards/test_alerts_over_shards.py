"""`unidle alerts` at a site of two collectors: one message per incident, whichever of them it asks."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from tests.collector.postgres_server import postgres
from tests.collector.pushing import START_S, batch
from tests.collector.test_live import COOL
from tests.e2e.processes import Role, free_port, roles
from tests.fake_slack import FakeSlack
from tests.shards.nats_servers import Cluster
from tests.shards.test_one_view import BATCH_S, JOB, NODES, Nodes, World, _answers, _has_stream
from tests.shards.test_takeover import collector, wait_for

from unidle_agent.shards import SHARDS, shard_of
from unidle_agent.wire import Event, encode
from unidle_collector.client import Client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

OFF_THE_BUS, PAGE_FAULT = 79, 31
"""Of a node; of a job, and told as one though its nodes are in several shards."""


class FaultyNodes(Nodes):
    """Nodes whose driver repeats an XID as long as it is in `faults`."""

    def __init__(self, urls: str) -> None:
        super().__init__(urls)
        self.faults: dict[str, int] = {}

    def _batch(self, node: str, at_s: int, seq: int) -> bytes:
        gpus = (f"{node}-a", f"{node}-b")
        made = batch(seq, at_s - START_S, BATCH_S, COOL, node=node, gpus=gpus, job=JOB, simulated=True)
        if (code := self.faults.get(node)) is not None:
            made = replace(made, events=(Event(at_s * 10**9, gpus[0], "xid", code),))
        return encode(made)


def told(slack: FakeSlack, incident_id: str) -> int:
    """Messages about that incident."""
    return sum(incident_id in str(message) for message in slack.messages)


def test_each_incident_is_told_once_while_collectors_come_and_go(tmp_path: Path) -> None:
    with ExitStack() as stack:
        state_url = stack.enter_context(postgres()).database()
        brokers = Cluster(tmp_path / "nats")
        stack.callback(brokers.stop)
        a = stack.enter_context(collector(tmp_path / "a", brokers.urls, state_url, replicas=1))
        b = stack.enter_context(collector(tmp_path / "b", brokers.urls, state_url, replicas=1))
        slack = stack.enter_context(FakeSlack())
        start = stack.enter_context(roles(tmp_path))
        nodes = FaultyNodes(brokers.urls)
        world = World(a, b, nodes)
        wait_for(lambda: _answers(a) and _answers(b), "both answer")
        wait_for(lambda: len(world.held(a)) == len(world.held(b)) == SHARDS // 2, "an even share for both")
        wait_for(lambda: _has_stream(brokers.urls), "the stream")
        nodes.start()
        stack.callback(nodes.stop)

        def tell(url: str) -> Role:
            return start(
                "alerts",
                {
                    "collector_url": url,
                    "port": str(free_port()),
                    "state_dir": str(tmp_path / "alerts"),
                    "slack_webhook_url": slack.url,
                    "slack_hosts": slack.host,
                    "poll_s": "0.5",
                    "settle_s": "0.5",
                },
            )

        alerts = tell(b.url)
        client = Client(b.url)
        wait_for(lambda: client.fleet().gpus == 2 * len(NODES), "every GPU")
        of_a = [node for node in NODES if shard_of(node) in world.held(a)]
        of_b = [node for node in NODES if shard_of(node) in world.held(b)]
        assert len(of_a) >= 2
        assert len(of_b) >= 2

        nodes.faults = {of_a[0]: PAGE_FAULT, of_b[0]: PAGE_FAULT}
        (of_job,) = wait_for_incidents(client, 1)
        wait_for(lambda: len(client.incidents()[0].finding.nodes) == 2, "the parts of both shards")
        wait_for(lambda: told(slack, of_job) == 1, "one message about the job")

        nodes.faults[of_a[1]] = OFF_THE_BUS
        wait_for_incidents(client, 2)
        wait_for(lambda: len(slack.messages) == 2, "the second message")

        # Broken in the second in which its collector dies: nobody but the broker has heard of it.
        nodes.faults[of_a[0]] = OFF_THE_BUS
        a.process.kill()
        a.process.wait()
        wait_for(lambda: len(world.held(b)) == SHARDS, "the shards of the dead one")
        found = wait_for_incidents(client, 3)
        wait_for(lambda: len(slack.messages) == 3, "the third message")

        # Asks another collector from now on, after shards went there.
        alerts.stop()
        c = stack.enter_context(collector(tmp_path / "c", brokers.urls, state_url, replicas=1))
        wait_for(lambda: _answers(c) and len(world.held(c)) == SHARDS // 2, "shards of a new one")
        tell(c.url)
        nodes.faults[of_b[1]] = OFF_THE_BUS
        found = wait_for_incidents(Client(c.url), 4)
        wait_for(lambda: len(slack.messages) == 4, "the fourth message")
        b.process.kill()
        b.process.wait()
        wait_for(lambda: len(world.held(c)) == SHARDS, "all shards at the new one")
        last = Client(c.url).fleet().time_ns or 0
        wait_for(lambda: (Client(c.url).fleet().time_ns or 0) > last + 10 * 10**9, "time that goes on")

        assert {one.id for one in Client(c.url).incidents(state="all")} == found
        assert {incident: told(slack, incident) for incident in found} == dict.fromkeys(found, 1)
        assert len(slack.messages) == len(found), "and nothing else"


def wait_for_incidents(client: Client, count: int) -> set[str]:
    """Ids of all incidents once there are so many."""
    wait_for(lambda: len(client.incidents(state="all")) == count, f"{count} incidents")
    return {one.id for one in client.incidents(state="all")}
