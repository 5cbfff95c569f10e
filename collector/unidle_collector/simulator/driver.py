"""Plays the fleet into a collector: first the history as fast as it is taken, then at the speed of life.

Every node's first batch is a single row, so that the collector knows all nodes before time moves on; no
node is ever more than one batch ahead of another. What was injected goes into a file that also says how
far the play has come: `truth_file`.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
import urllib.parse
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TextIO

from unidle_agent.errors import UnidleError
from unidle_agent.settings import Secret, setting
from unidle_agent.wire import CLOCK_HEADER, CONTENT_TYPE, encode
from unidle_collector.simulator.agents import NodeAgent, Shares, node_agents
from unidle_collector.simulator.faults import SHORTEST_HISTORY_S
from unidle_collector.simulator.fleet import FEWEST_GPUS_PER_NODE, FEWEST_NODES, SECOND_NS, Block, Fleet
from unidle_collector.simulator.flown import Flown
from unidle_collector.simulator.truth import Progress, truth_document, write_truth

SECTION = "simulator"
WORKERS = 4
"""Connections to the collector."""
PATIENCE_S = 120.0
"""How long a collector may refuse or not answer before the play is given up."""
MOST_WAIT_S = 30.0


@dataclass(frozen=True, slots=True)
class SimulatorSettings:
    """What `python -m unidle_collector.simulator` can be told."""

    collector_url: str = setting("http://127.0.0.1:9470", "the collector to push to")
    push_token: Secret = setting(Secret(), "push token of the collector")
    nodes: int = setting(64, "nodes", low=FEWEST_NODES, high=4096)
    gpus_per_node: int = setting(8, "GPUs per node", low=FEWEST_GPUS_PER_NODE, high=16)
    seed: int = setting(1, "one seed gives one fleet", low=0, high=2**31)
    history_s: int = setting(
        5400, "seconds of history before the live part", low=SHORTEST_HISTORY_S, high=30 * 86_400
    )
    history_batch_s: int = setting(60, "seconds per batch in the history", low=1, high=60)
    live_batch_s: int = setting(5, "seconds per batch when live", low=1, high=30)
    truth_file: Path = setting(Path("simulator-truth.json"), "where to write what was injected")


@dataclass(frozen=True, slots=True)
class Reply:
    """What a collector wants with its acknowledgement."""

    send_facts: bool = False
    flights: tuple[tuple[str, str], ...] = ()
    """(GPU, request id) of windows of the flight recorder."""


class Transport(Protocol):
    """The way to a collector, for one thread."""

    def push(self, body: bytes, ahead_ns: int = 0) -> Reply:
        """Deliver one batch of a node whose clock is ahead; what does the collector want? Raises UnidleError
        for good."""


class Clock(Protocol):
    """Time."""

    def now_ns(self) -> int: ...
    def wait(self, seconds: float) -> None: ...


class WallClock:
    """The machine's time; `stop` ends a wait at once."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop

    def now_ns(self) -> int:
        """Nanoseconds since the epoch."""
        return time.time_ns()

    def wait(self, seconds: float) -> None:
        """Wait, or until stopped."""
        self._stop.wait(seconds)


class HttpTransport:
    """One kept-alive connection; waits as the collector asks, and tries again when it cannot be reached."""

    def __init__(self, collector_url: str, token: Secret, clock: Clock) -> None:
        parts = urllib.parse.urlsplit(collector_url)
        if parts.scheme != "http" or not parts.hostname:
            raise UnidleError(f"collector_url: expected http://HOST:PORT, came {collector_url!r}")
        self._url, self._clock = collector_url, clock
        self._path = parts.path.rstrip("/") + "/api/v1/push"
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=60)
        self._headers = {"Content-Type": CONTENT_TYPE, "Authorization": f"Bearer {token.reveal()}"}

    def push(self, body: bytes, ahead_ns: int = 0) -> Reply:
        """Deliver one batch."""
        waited_s, pause_s = 0.0, 0.2
        while True:
            try:
                status, retry_after, answer = self._post(body, ahead_ns)
            except (OSError, http.client.HTTPException) as error:
                self._connection.close()
                status, retry_after, answer = 503, None, str(error).encode()
            if status == 200:
                reply = json.loads(answer)
                flights = tuple((one["gpu"], one["request"]) for one in reply.get("flight", ()))
                return Reply(bool(reply.get("send_facts", False)), flights)
            if status not in (429, 503):
                raise UnidleError(
                    f"{self._url}: expected the batch to be taken, came HTTP {status}: {answer[:300]!r}"
                )
            if waited_s >= PATIENCE_S:
                raise UnidleError(
                    f"{self._url} has taken nothing for {waited_s:.0f} s: {answer[:300]!r}; is it running?"
                )
            pause_s = min(_seconds(retry_after) or pause_s * 2, MOST_WAIT_S)
            self._clock.wait(pause_s)
            waited_s += pause_s

    def _post(self, body: bytes, ahead_ns: int) -> tuple[int, str | None, bytes]:
        clock = {CLOCK_HEADER: str(time.time_ns() + ahead_ns)}
        self._connection.request("POST", self._path, body, {**self._headers, **clock})
        with self._connection.getresponse() as reply:
            return reply.status, reply.getheader("Retry-After"), reply.read()


class Play:
    """A fleet, the agents that speak for it, and the ways to the collector."""

    def __init__(
        self,
        settings: SimulatorSettings,
        transports: list[Transport],
        clock: Clock,
        stop: threading.Event,
        say: TextIO = sys.stderr,
    ) -> None:
        self._settings, self._transports, self._clock, self._stop = settings, transports, clock, stop
        self._say = say
        began_ns = clock.now_ns()
        start_ns = (began_ns // SECOND_NS - settings.history_s) * SECOND_NS
        self.fleet = Fleet(
            settings.seed, settings.nodes, settings.gpus_per_node, start_ns, settings.history_s
        )
        self._agents = node_agents(settings.seed, settings.nodes, settings.gpus_per_node)
        self._flown = Flown()
        self._progress = Progress(began_ns)

    def run(self) -> None:
        """Play until stopped; raises UnidleError when the collector takes no more."""
        pool = ThreadPoolExecutor(len(self._transports), thread_name_prefix="push")
        try:
            under_way = self._push(pool, self.fleet.step(1))
            while not self._stop.is_set():
                seconds = self._due_s()
                if seconds == 0:
                    self._clock.wait(0.05)
                    continue
                block = self.fleet.step(seconds)  # made while the one before is on its way
                _finish(under_way)
                self._report()
                under_way = self._push(pool, block)
                if self.fleet.live_s is not None:
                    _finish(under_way)
            _finish(under_way)
        finally:
            self._stop.set()
            pool.shutdown(cancel_futures=True)

    def _due_s(self) -> int:
        """How many seconds to step now: 0 where the next batch is not over yet."""
        behind_s = (self._clock.now_ns() - self.fleet.now_ns) // SECOND_NS
        if self.fleet.live_s is None and behind_s < 2 * self._settings.live_batch_s:
            self.fleet.go_live()
        if self.fleet.live_s is not None and behind_s < self._settings.live_batch_s:
            return 0
        return int(min(behind_s, self._settings.history_batch_s))

    def _push(self, pool: ThreadPoolExecutor, block: Block) -> list[Future[None]]:
        self._flown.add(block)
        shares = Shares(block, self._settings.nodes, self._flown)
        width = len(self._transports)
        return [
            pool.submit(self._push_nodes, transport, shares, self._agents[number::width])
            for number, transport in enumerate(self._transports)
        ]

    def _push_nodes(self, transport: Transport, shares: Shares, agents: list[NodeAgent]) -> None:
        for agent in agents:
            for batch in shares.batches(agent, self._clock.now_ns):
                if self._stop.is_set():
                    return
                reply = transport.push(encode(batch), agent.ahead_ns)
                agent.must_send_facts |= reply.send_facts
                agent.ask(reply.flights)

    def _report(self) -> None:
        """Write the truth file, and a line at every tenth of the history."""
        fleet, settings = self.fleet, self._settings
        news = self._progress.moved(fleet, self._clock.now_ns(), settings.history_s)
        if self._progress.write_now:
            write_truth(settings.truth_file, truth_document(fleet, settings.seed, self._progress))
        if news:
            self._say.write(f"SIMULATED fleet: {news}\n")
            self._say.flush()


def play(settings: SimulatorSettings, stop: threading.Event) -> None:
    """Play over HTTP until `stop`."""
    clock = WallClock(stop)
    transports: list[Transport] = [
        HttpTransport(settings.collector_url, settings.push_token, clock) for _ in range(WORKERS)
    ]
    Play(settings, transports, clock, stop).run()


def _finish(futures: list[Future[None]]) -> None:
    for future in futures:
        future.result()


def _seconds(retry_after: str | None) -> float | None:
    try:
        return max(0.05, float(retry_after or ""))
    except ValueError:
        return None
