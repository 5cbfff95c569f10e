"""Playing the simulated fleet into a collector: the wire, the order of time, and what went in."""

from __future__ import annotations

import io
import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from unidle_agent.errors import UnidleError
from unidle_agent.settings import Secret
from unidle_agent.wire import Batch, decode
from unidle_collector.simulator.agents import Shares, gpu_uuid, node_agents
from unidle_collector.simulator.driver import HttpTransport, Play, Reply, SimulatorSettings
from unidle_collector.simulator.fleet import FEWEST_NODES, SECOND_NS, Fleet
from unidle_collector.simulator.flown import Flown
from unidle_collector.up.score import KINDS

HISTORY_S = 3600
LIVE_ALONE = {"gpu_lost", "stale_agent"}
NODES, SKEWED, STALE = FEWEST_NODES, "sim-040", "sim-041"
START_NS = 1_700_000_000 * SECOND_NS + 123


class FakeClock:
    """Waiting moves it; it stops the play at `until_ns`."""

    def __init__(self, stop: threading.Event, until_ns: int) -> None:
        self._stop, self._until_ns, self._now_ns = stop, until_ns, START_NS

    def now_ns(self) -> int:
        return self._now_ns

    def wait(self, seconds: float) -> None:
        self._now_ns += int(seconds * SECOND_NS)
        if self._now_ns >= self._until_ns:
            self._stop.set()


ASKED_GPU = gpu_uuid(3, 2)


class Inbox:
    """A collector that keeps what it gets; asks once for the facts of sim-003, twice for one flight."""

    def __init__(self) -> None:
        self.batches: dict[str, list[Batch]] = defaultdict(list)
        self.order: list[tuple[str, int]] = []
        self.ahead_ns: dict[str, set[int]] = defaultdict(set)
        self._lock = threading.Lock()

    def push(self, body: bytes, ahead_ns: int = 0) -> Reply:
        batch = decode(body)
        with self._lock:
            self.ahead_ns[batch.node].add(ahead_ns)
            self.batches[batch.node].append(batch)
            self.order.append((batch.node, batch.times_ns[-1]))
        flights = ((ASKED_GPU, "incident/0"),) if batch.node == "sim-003" and batch.seq in (20, 21) else ()
        return Reply(batch.node == "sim-003" and batch.seq == 5, flights)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Inbox, dict, str]:
    """An hour of history and 20 live seconds of the smallest fleet: what arrived, the truth, the words."""
    truth = tmp_path_factory.mktemp("play") / "truth.json"
    settings = SimulatorSettings(nodes=NODES, gpus_per_node=4, history_s=HISTORY_S, truth_file=truth)
    stop, said, inbox = threading.Event(), io.StringIO(), Inbox()
    clock = FakeClock(stop, START_NS + 20 * SECOND_NS)
    Play(settings, [inbox, inbox], clock, stop, said).run()
    return inbox, json.loads(truth.read_text()), said.getvalue()


def test_a_flight_that_is_asked_for_comes_once_and_is_what_the_gpu_did(
    played: tuple[Inbox, dict, str],
) -> None:
    inbox = played[0]
    (carrier,) = [batch for batches in inbox.batches.values() for batch in batches if batch.flights]
    (flight,) = carrier.flights
    assert (carrier.node, carrier.seq, carrier.simulated) == ("sim-003", 21, True)
    assert (flight.gpu, flight.request) == (ASKED_GPU, "incident/0")
    sent = {
        time_ns: batch.columns["power_w"][row * len(batch.gpus) + batch.gpus.index(ASKED_GPU)]
        for batch in inbox.batches["sim-003"]
        for row, time_ns in enumerate(batch.times_ns)
    }
    assert len(flight.times_ns) == 121
    assert list(flight.columns["power_w"]) == [sent[time_ns] for time_ns in flight.times_ns]


def test_every_nodes_first_batch_is_one_row_before_time_moves_on(played: tuple[Inbox, dict, str]) -> None:
    inbox = played[0]
    assert len(inbox.batches) == NODES
    assert all(len(batches[0].times_ns) == 1 for batches in inbox.batches.values())
    assert len({node for node, _ in inbox.order[:NODES]}) == NODES


def test_no_node_is_more_than_one_batch_ahead(played: tuple[Inbox, dict, str]) -> None:
    reached: dict[str, int] = {}
    for node, time_ns in played[0].order:
        reached[node] = time_ns
        if len(reached) == NODES:
            there = [time_ns for name, time_ns in reached.items() if name not in (SKEWED, STALE)]
            assert max(there) - min(there) <= 60 * SECOND_NS


def test_every_second_of_every_node_arrives_once_and_in_order(played: tuple[Inbox, dict, str]) -> None:
    for node, batches in played[0].batches.items():
        if node in (SKEWED, STALE):
            continue
        times = np.concatenate([np.asarray(batch.times_ns) for batch in batches])
        np.testing.assert_array_equal(np.diff(times), SECOND_NS)
        assert times[0] == (START_NS // SECOND_NS - HISTORY_S) * SECOND_NS
        assert times[-1] > START_NS + 5 * SECOND_NS
        assert [batch.seq for batch in batches] == list(range(1, len(batches) + 1))
        assert len({batch.boot for batch in batches}) == 1


def test_a_clock_that_jumps_shows_in_rows_and_in_the_header(played: tuple[Inbox, dict, str]) -> None:
    batches = played[0].batches[SKEWED]
    steps = np.diff(np.concatenate([np.asarray(batch.times_ns) for batch in batches])) // SECOND_NS
    assert sorted(steps)[-2:] == [1, 9]
    assert played[0].ahead_ns[SKEWED] == {0, 8 * SECOND_NS}
    assert {ahead_ns for node, seen in played[0].ahead_ns.items() for ahead_ns in seen if node != SKEWED} == {
        0
    }


def test_an_agent_that_died_comes_back_with_a_spool_of_its_own() -> None:
    fleet = Fleet(1, NODES, 4, history_s=HISTORY_S)
    fleet.go_live()
    (agent,) = [one for one in node_agents(1, NODES, 4) if one.name == STALE]
    machine = agent.boot
    sent = [
        batch for _ in range(35) for batch in Shares(fleet.step(10), NODES, Flown()).batches(agent, lambda: 0)
    ]
    boots = [batch.boot for batch in sent]
    assert boots == [machine] * 2 + [f"{machine}.2"] * 3
    assert [batch.seq for batch in sent] == [1, 2, 1, 2, 3]
    assert [batch.facts is not None for batch in sent] == [True, False, True, False, False]
    assert sent[2].times_ns[0] - sent[1].times_ns[-1] == 301 * SECOND_NS


def test_live_batches_are_short_and_nothing_is_sent_before_it_happened(
    played: tuple[Inbox, dict, str],
) -> None:
    for node, batches in played[0].batches.items():
        began_ns = START_NS + max(played[0].ahead_ns[node])
        live = [batch for batch in batches if batch.times_ns[-1] >= began_ns]
        assert live
        assert max(len(batch.times_ns) for batch in live) <= 10
        assert all(batch.times_ns[-1] <= batch.sent_ns for batch in batches)


def test_everything_says_that_it_is_simulated(played: tuple[Inbox, dict, str]) -> None:
    inbox, truth, said = played
    assert all(batch.simulated for batches in inbox.batches.values() for batch in batches)
    assert truth["simulated"] is True
    assert all(line.startswith("SIMULATED") for line in said.splitlines())
    gpus = [uuid for batches in inbox.batches.values() for uuid in batches[0].gpus]
    assert len(set(gpus)) == NODES * 4
    assert all(uuid.startswith("GPU-sim") and len(uuid) == 40 for uuid in gpus)


def test_owners_travel_with_the_rows_that_they_hold_for(played: tuple[Inbox, dict, str]) -> None:
    changes = 0
    for batches in played[0].batches.values():
        assert batches[0].facts is not None
        for before, after in pairwise(batches):
            if after.facts_id != before.facts_id:
                changes += 1
                assert after.facts is not None
                assert {fact.owner.allocated for fact in after.facts} <= {True, False}
            elif not (after.node == "sim-003" and after.seq == 6):
                assert after.facts is None
    assert changes > 2
    job = played[0].batches["sim-005"][0].facts[0].owner
    assert (job.job, job.source, job.confidence) == ("sim-005-00", "simulator", "high")


def test_facts_are_sent_again_when_the_collector_asks(played: tuple[Inbox, dict, str]) -> None:
    sixth = played[0].batches["sim-003"][5]
    assert sixth.facts is not None
    assert [fact.uuid for fact in sixth.facts] == list(sixth.gpus)
    assert sixth.facts[0].model == "NVIDIA B200"


def test_an_xid_is_an_event_of_its_node_in_the_batch_of_its_time(played: tuple[Inbox, dict, str]) -> None:
    inbox, truth, _ = played
    carriers = [
        (batch, event) for batches in inbox.batches.values() for batch in batches for event in batch.events
    ]
    assert {event.code for _, event in carriers} == {119, 79}
    for batch, event in carriers:
        (cause,) = [
            one for one in truth["faults"] if one["node"] == batch.node and one["start_ns"] == event.time_ns
        ]
        assert cause["gpus"] == [event.gpu]
        assert batch.times_ns[0] <= event.time_ns <= batch.times_ns[-1]
        assert "SIMULATED" in event.text


def test_the_truth_names_the_faults_and_where_the_play_is(played: tuple[Inbox, dict, str]) -> None:
    truth = played[1]
    assert truth["phase"] == "live"
    assert truth["gpus"] == NODES * 4
    assert truth["sim_speed"] > 1
    assert truth["live_start_ns"] <= START_NS + 10 * SECOND_NS
    kinds = {fault["kind"] for fault in truth["faults"] if fault["start_ns"] < truth["live_start_ns"]}
    assert kinds == set(KINDS) - {"over_provisioned", "tensor_cores_unused", "checkpoint_stall", *LIVE_ALONE}
    known = {uuid for batches in played[0].batches.values() for uuid in batches[0].gpus}
    for fault in truth["faults"]:
        assert fault["gpus"]
        assert set(fault["gpus"]) <= known
        assert fault["end_ns"] is None or fault["start_ns"] < fault["end_ns"]
        assert fault["evident_ns"] >= fault["start_ns"]


class Script(BaseHTTPRequestHandler):
    """Answers what the server's `answers` says, one after the other, and notes what came."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, self.headers["Authorization"], body, self.client_address))
        status, headers, answer = self.server.answers.pop(0)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(answer)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Script)
    server.seen, server.answers = [], []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


class Waits:
    """A clock that only notes how long it was asked to wait."""

    def __init__(self) -> None:
        self.waited: list[float] = []

    def now_ns(self) -> int:
        return 0

    def wait(self, seconds: float) -> None:
        self.waited.append(seconds)


def transport(server: ThreadingHTTPServer, clock: Waits) -> HttpTransport:
    return HttpTransport(f"http://127.0.0.1:{server.server_port}", Secret("tok"), clock)


def test_a_busy_collector_gets_the_same_batch_again_when_it_says(server: ThreadingHTTPServer) -> None:
    server.answers = [
        (503, {"Retry-After": "3"}, b""),
        (429, {"Retry-After": "0.5"}, b""),
        (200, {}, b'{"ack": 1, "send_facts": true}'),
        (200, {}, b'{"ack": 2, "send_facts": false, "flight": [{"gpu": "GPU-a", "request": "r1"}]}'),
    ]
    clock = Waits()
    way = transport(server, clock)
    assert way.push(b"one") == Reply(send_facts=True)
    assert way.push(b"two") == Reply(flights=(("GPU-a", "r1"),))
    assert clock.waited == [3.0, 0.5]
    assert [body for _, _, body, _ in server.seen] == [b"one", b"one", b"one", b"two"]
    assert {(path, token) for path, token, _, _ in server.seen} == {("/api/v1/push", "Bearer tok")}
    assert len({address for _, _, _, address in server.seen}) == 1, "one connection is kept"


def test_a_refused_batch_says_what_the_collector_said(server: ThreadingHTTPServer) -> None:
    server.answers = [(401, {}, b'{"detail": "wrong token"}')]
    with pytest.raises(UnidleError, match=r"HTTP 401.*wrong token") as caught:
        transport(server, Waits()).push(b"x")
    assert "tok'" not in str(caught.value)


def test_a_collector_that_is_away_is_waited_for_but_not_for_ever(server: ThreadingHTTPServer) -> None:
    clock = Waits()
    way = HttpTransport("http://127.0.0.1:9", Secret("tok"), clock)
    with pytest.raises(UnidleError, match="is it running"):
        way.push(b"x")
    assert 100 < sum(clock.waited) < 200


def test_an_address_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(UnidleError, match="http://HOST:PORT"):
        HttpTransport("collector:9470", Secret(), Waits())


def test_a_failing_push_ends_the_play(tmp_path: Path) -> None:
    class Broken:
        def push(self, body: bytes, ahead_ns: int = 0) -> Reply:
            raise UnidleError("no more")

    stop = threading.Event()
    settings = SimulatorSettings(nodes=NODES, history_s=HISTORY_S, truth_file=tmp_path / "truth.json")
    with pytest.raises(UnidleError, match="no more"):
        Play(settings, [Broken()], FakeClock(stop, START_NS * 2), stop, io.StringIO()).run()
