"""The flight recorders' windows: asked for when a finding opens, kept, and found again with an incident.

A flight arrives within a batch, asked for or not (see `unidle_agent.flight.recorder`); it may come before
or after the incident that it explains. So it is kept by GPU and time, and belongs to every incident of
its GPU around that time. The same flight that comes again (a batch replayed from the log) is one.

Everything here runs in the thread that owns the live collector, but for `flights_of`.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgpack

from unidle_agent.errors import UnidleError
from unidle_agent.wire import Batch
from unidle_agent.wire_flight import Flight, decode_flights, encode_flight, whole
from unidle_collector.model import Finding, FlightRecording, Incident
from unidle_collector.store.state import KeptFlight, State

SECOND_NS = 1_000_000_000
BEFORE_NS = AFTER_NS = 120 * SECOND_NS
"""A flight belongs to an incident that begins at most this long after it, or ended so long before it."""
MOST_OF_INCIDENT = 16
"""Most flights of one incident that are shown, the newest."""
MOST_ASKED_AT_ONCE = 8
"""GPUs of one finding that are asked for: more say the same."""
ASK_WITHIN_NS = 120 * SECOND_NS
"""A finding older than this (a history that is caught up on) is past what any ring still holds."""
ASK_FOR_NS = 600 * SECOND_NS
"""How long a node is asked, at each of its pushes, before the request is given up."""
FRESH_NS = 60 * SECOND_NS
"""A GPU whose flight came this short a time ago, unasked as a rule, is not asked for another."""
MOST_WAITING = 256
"""Flights that wait in memory while the state database takes nothing."""


@dataclass(frozen=True, slots=True)
class _Request:
    gpu: str
    asked_ns: int


class FlightBook:
    """Requests that are open, and flights on their way into the state database."""

    def __init__(self, state: State, clock_ns: Callable[[], int], counters: Counter[str]) -> None:
        self._state = state
        self._clock_ns = clock_ns
        self._counters = counters
        self._open: dict[str, dict[str, _Request]] = {}
        """Node -> request id -> what is asked of it."""
        self._last_ns: dict[tuple[str, str], int] = {}
        """(Node, physical GPU) -> when its last flight arrived."""
        self._waiting: OrderedDict[str, KeptFlight] = OrderedDict()

    def ask(self, finding: Finding) -> None:
        """Ask the nodes of a finding that was just told for the windows of its GPUs."""
        now_ns = self._clock_ns()
        if finding.told_ns is None or now_ns - finding.told_ns > ASK_WITHIN_NS:
            return
        gpus = dict.fromkeys((ref.node, whole(ref.gpu)) for ref in finding.gpus)
        for number, (node, gpu) in enumerate(list(gpus)[:MOST_ASKED_AT_ONCE]):
            last_ns = self._last_ns.get((node, gpu))
            if last_ns is None or now_ns - last_ns > FRESH_NS:
                self._open.setdefault(node, {})[f"{finding.id}/{number}"] = _Request(gpu, now_ns)
                self._counters["flights_asked"] += 1

    def wanted(self, node: str) -> tuple[tuple[str, str], ...]:
        """(GPU, request id) for the next reply to `node`: the same until answered, as a reply may be lost."""
        requests = self._open.get(node)
        if not requests:
            return ()
        now_ns = self._clock_ns()
        for request in [key for key, one in requests.items() if now_ns - one.asked_ns > ASK_FOR_NS]:
            del requests[request]
        return tuple((one.gpu, request) for request, one in requests.items())

    def take(self, batch: Batch, shift_ns: int) -> None:
        """Note the flights of a batch, whose clock is to be shifted; `keep` makes them durable."""
        for flight in batch.flights:
            self._counters["flights_received"] += 1
            self._open.get(batch.node, {}).pop(flight.request, None)
            self._last_ns[batch.node, flight.gpu] = self._clock_ns()
            kept = _kept(batch, flight, shift_ns)
            self._waiting[kept.id] = kept
            if len(self._waiting) > MOST_WAITING:
                self._waiting.popitem(last=False)
                self._counters["flights_dropped"] += 1

    def keep(self) -> None:
        """Write what waits, in one transaction; what the database refuses waits on, within bounds."""
        if not self._waiting:
            return
        try:
            self._state.save_flights(self._waiting.values())
        except UnidleError:  # the database says so itself, in health: see Live._keep
            return
        self._waiting.clear()


def flights_of(state: State, incident: Incident) -> list[FlightRecording]:
    """The flights that belong to `incident`, newest first."""
    finding = incident.finding
    places = {(ref.node, whole(ref.gpu)) for ref in finding.gpus}
    end_ns = None if incident.resolved_ns is None else incident.resolved_ns + AFTER_NS
    kept = state.flights({gpu for _, gpu in places}, finding.since_ns - BEFORE_NS, end_ns)
    return [_recording(one) for one in kept if (one.node, one.gpu) in places][:MOST_OF_INCIDENT]


def _kept(batch: Batch, flight: Flight, shift_ns: int) -> KeptFlight:
    name = f"{batch.node}\0{flight.gpu}\0{flight.request or flight.time_ns}"
    times_ns = [time_ns + shift_ns for time_ns in flight.times_ns]
    moved = Flight(
        whole(flight.gpu),
        flight.reason,
        flight.time_ns + shift_ns,
        times_ns,
        flight.columns,
        flight.request,
    )
    document = {"flight": encode_flight(moved), "simulated": batch.simulated}
    return KeptFlight(
        id=hashlib.sha256(name.encode()).hexdigest()[:32],
        node=batch.node,
        gpu=moved.gpu,
        start_ns=min(times_ns, default=moved.time_ns),
        end_ns=moved.time_ns,
        document=zlib.compress(msgpack.packb(document), 6),
    )


def _recording(kept: KeptFlight) -> FlightRecording:
    document = msgpack.unpackb(zlib.decompress(kept.document))
    (flight,) = decode_flights([document["flight"]])
    return FlightRecording(
        node=kept.node,
        gpu=flight.gpu,
        reason=flight.reason,
        request=flight.request,
        taken_ns=flight.time_ns,
        times_ns=tuple(flight.times_ns),
        columns={name: tuple(_known(values)) for name, values in flight.columns.items()},
        simulated=document["simulated"],
    )


def _known(values: Iterable[float]) -> Iterable[float | None]:
    """Values with the 7 digits that an f4 has; NaN is None."""
    return (float(f"{value:.7g}") if value == value else None for value in values)
