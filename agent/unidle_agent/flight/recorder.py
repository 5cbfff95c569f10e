"""When a window of the ring leaves the node: unasked when something happened to a GPU, or on request.

| cause | told by |
|---|---|
| `xid 79`, `gpu_unavailable`, `poison_fatal`, `ecc_uncorrected` | an event of the driver |
| `gpu_lost`, `driver_hung` | the field gpu_state, when it becomes that |
| `asked` | the reply to a push |

A storm of events must not fill the spool: a GPU sends unasked at most once per `AGAIN_S` and, for the
same cause, once per `SAME_AGAIN_S`; what is left out is counted. A request is answered once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace

from unidle_agent.exporter import Metric
from unidle_agent.flight.ring import Ring
from unidle_agent.sample import DRIVER_HUNG, GPU_LOST, Tick, Value
from unidle_agent.wire_flight import Flight, whole

AGAIN_S = 60.0
"""Two flights of one GPU that are closer than this show the same minute."""
SAME_AGAIN_S = 600.0
MOST_AT_ONCE = 16
"""Most flights of one tick: what is asked beyond that waits for the next."""
MOST_WAITING = 64
"""Most requests that wait; further ones are left out and counted."""
MOST_REMEMBERED = 4096
"""Answered requests that are known when they come again."""

EVENTS = frozenset({"xid", "gpu_unavailable", "poison_fatal", "ecc_uncorrected"})
"""Kinds of events that send a window."""
STATES: dict[Value, str] = {GPU_LOST: "gpu_lost", DRIVER_HUNG: "driver_hung"}


class FlightRecorder:
    """Puts flights into the ticks in which they are due."""

    def __init__(self, ring: Ring) -> None:
        self.counts = {"sent": 0, "left_out": 0}
        """What became of the windows that were due or asked for."""
        self._ring = ring
        self._states: dict[str, Value] = {}
        self._sent_ns: dict[tuple[str, str], int] = {}
        """(GPU, cause) -> when its last flight went; the empty cause is any."""
        self._guard = threading.Lock()
        self._asked: deque[tuple[str, str]] = deque()
        self._answered: deque[str] = deque(maxlen=MOST_REMEMBERED)

    def ask(self, requests: Iterable[tuple[str, str]]) -> None:
        """Take (GPU, request id) from the collector; may be called by any thread."""
        with self._guard:
            for gpu, request in requests:
                if request in self._answered or any(request == other for _, other in self._asked):
                    continue
                if len(self._asked) >= MOST_WAITING:
                    self.counts["left_out"] += 1
                else:
                    self._asked.append((gpu, request))

    def complete(self, tick: Tick) -> Tick:
        """`tick` with the flights that are due in it."""
        flights = (*self._unasked(tick), *self._requested(tick))
        self.counts["sent"] += len(flights)
        return replace(tick, flights=flights) if flights else tick

    def close(self) -> None:
        """Let go of the ring."""
        self._ring.close()

    def metrics(self) -> list[Metric]:
        """The counts as a family."""
        samples = [({"outcome": outcome}, count) for outcome, count in self.counts.items()]
        return [Metric("unidle_agent_flights_total", "counter", "flight recordings that were due", samples)]

    def _unasked(self, tick: Tick) -> list[Flight]:
        flights: list[Flight] = []
        for gpu, cause in dict.fromkeys(self._causes(tick)):
            if len(flights) >= MOST_AT_ONCE or not self._may_send(gpu, cause, tick.time_ns):
                self.counts["left_out"] += 1
                continue
            flight = self._flight(gpu, cause, tick.time_ns)
            if flight.times_ns:
                flights.append(flight)
                self._sent_ns[gpu, cause] = self._sent_ns[gpu, ""] = tick.time_ns
        return flights

    def _causes(self, tick: Tick) -> Iterator[tuple[str, str]]:
        """(GPU, cause) of what happened in this tick."""
        for event in tick.events:
            if event.kind in EVENTS:
                cause = f"xid {event.code}" if event.kind == "xid" else event.kind
                yield whole(event.gpu), cause
        for gpu in tick.gpus:
            uuid, state = whole(gpu.facts.uuid), gpu.values.get("gpu_state")
            if state is not None:
                before, self._states[uuid] = self._states.get(uuid), state
                if state != before and state in STATES:
                    yield uuid, STATES[state]

    def _may_send(self, gpu: str, cause: str, now_ns: int) -> bool:
        for which, again_s in (("", AGAIN_S), (cause, SAME_AGAIN_S)):
            last_ns = self._sent_ns.get((gpu, which))
            if last_ns is not None and 0 <= now_ns - last_ns < again_s * 1e9:
                return False
        return True

    def _requested(self, tick: Tick) -> list[Flight]:
        """The answers to what was asked; one without looks says that there are none."""
        flights: list[Flight] = []
        with self._guard:
            while self._asked and len(flights) < MOST_AT_ONCE:
                gpu, request = self._asked.popleft()
                self._answered.append(request)
                flights.append(self._flight(whole(gpu), "asked", tick.time_ns, request))
        return flights

    def _flight(self, gpu: str, reason: str, time_ns: int, request: str = "") -> Flight:
        looks = self._ring.read(gpu)
        return Flight(gpu, reason, time_ns, looks.times_ns, looks.columns, request)
