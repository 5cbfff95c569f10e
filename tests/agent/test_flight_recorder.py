"""When the flight recorder gives out a window: what sends one, what a storm costs, requests once each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from unidle_agent.batcher import Batcher
from unidle_agent.flight.recorder import AGAIN_S, MOST_AT_ONCE, MOST_WAITING, SAME_AGAIN_S, FlightRecorder
from unidle_agent.flight.ring import Ring
from unidle_agent.sample import DRIVER_HUNG, GPU_LOST, GPU_OK, GpuReading, Tick
from unidle_agent.wire import Event, GpuFacts, decode, encode
from unidle_agent.wire_flight import Flight

S = 1_000_000_000


@pytest.fixture
def recorder() -> Iterator[FlightRecorder]:
    ring = Ring.create(6)
    for gpu in ("GPU-a", "GPU-b"):
        for number in range(50):
            ring.write(gpu, number * S // 5, {"power_w": 100.0 + number})
    made = FlightRecorder(ring)
    yield made
    made.close()


def tick(at_s: float, *xids: tuple[str, int], **states: int) -> Tick:
    """An instant with XIDs (GPU, code) and states (a=1: gpu_state of GPU-a)."""
    gpus = tuple(GpuReading(GpuFacts(f"GPU-{name}"), {"gpu_state": state}) for name, state in states.items())
    events = tuple(Event(int(at_s * S), gpu, "xid", code) for gpu, code in xids)
    return Tick(int(at_s * S), gpus, {}, (), events)


def sent(recorder: FlightRecorder, instant: Tick) -> list[tuple[str, str]]:
    return [(flight.gpu, flight.reason) for flight in recorder.complete(instant).flights]


def test_an_xid_sends_the_window_of_its_gpu_unasked(recorder: FlightRecorder) -> None:
    (flight,) = recorder.complete(tick(10, ("GPU-a", 79))).flights
    assert (flight.gpu, flight.reason, flight.request) == ("GPU-a", "xid 79", "")
    assert list(flight.columns["power_w"]) == [100.0 + number for number in range(50)]
    assert list(flight.times_ns) == [number * S // 5 for number in range(50)]


def test_a_lost_gpu_and_a_hung_driver_send_theirs_once_each(recorder: FlightRecorder) -> None:
    assert sent(recorder, tick(10, a=GPU_OK, b=GPU_OK)) == []
    assert sent(recorder, tick(11, a=GPU_LOST, b=DRIVER_HUNG)) == [
        ("GPU-a", "gpu_lost"),
        ("GPU-b", "driver_hung"),
    ]
    assert sent(recorder, tick(12, a=GPU_LOST, b=DRIVER_HUNG)) == []


def test_an_event_of_another_kind_sends_nothing(recorder: FlightRecorder) -> None:
    event = Event(10 * S, "GPU-a", "recovery_action", 0)
    assert recorder.complete(Tick(10 * S, (), {}, (), (event,))).flights == ()


def test_a_mig_instance_sends_the_window_of_its_gpu(recorder: FlightRecorder) -> None:
    event = Event(10 * S, "GPU-a/GI1", "xid", 31)
    (flight,) = recorder.complete(Tick(10 * S, (), {}, (), (event,))).flights
    assert flight.gpu == "GPU-a"


def test_a_storm_of_xids_sends_one_window_per_gpu_and_minute_and_counts_the_rest(
    recorder: FlightRecorder,
) -> None:
    flights = [
        flight
        for second in range(600)
        for flight in recorder.complete(tick(second, *(("GPU-a", code) for code in range(20)))).flights
    ]
    assert [flight.time_ns // S for flight in flights] == list(range(0, 600, int(AGAIN_S)))
    assert recorder.counts == {"sent": 10, "left_out": 600 * 20 - 10}


def test_the_same_cause_comes_again_only_after_a_longer_while(recorder: FlightRecorder) -> None:
    assert sent(recorder, tick(0, ("GPU-a", 79)))
    assert not sent(recorder, tick(SAME_AGAIN_S - 1, ("GPU-a", 79)))
    assert sent(recorder, tick(SAME_AGAIN_S, ("GPU-a", 79)))


def test_a_clock_that_steps_back_does_not_silence_the_recorder(recorder: FlightRecorder) -> None:
    assert sent(recorder, tick(10_000, ("GPU-a", 79)))
    assert sent(recorder, tick(10, ("GPU-a", 79)))


def test_a_request_is_answered_once_however_often_it_comes(recorder: FlightRecorder) -> None:
    recorder.ask([("GPU-a", "r1"), ("GPU-a", "r1")])
    (flight,) = recorder.complete(tick(10)).flights
    assert (flight.gpu, flight.reason, flight.request) == ("GPU-a", "asked", "r1")
    recorder.ask([("GPU-a", "r1")])
    assert recorder.complete(tick(11)).flights == ()


def test_a_request_for_a_gpu_without_looks_is_answered_all_the_same(recorder: FlightRecorder) -> None:
    recorder.ask([("GPU-unknown", "r1")])
    (flight,) = recorder.complete(tick(10)).flights
    assert (flight.request, list(flight.times_ns), flight.columns) == ("r1", [], {})


def test_many_requests_are_answered_in_parts_and_too_many_are_counted(recorder: FlightRecorder) -> None:
    recorder.ask([("GPU-a", f"r{number}") for number in range(MOST_WAITING + 3)])
    answered: list[Flight] = []
    for second in range(10):
        flights = recorder.complete(tick(second)).flights
        assert len(flights) <= MOST_AT_ONCE
        answered += flights
    assert [flight.request for flight in answered] == [f"r{number}" for number in range(MOST_WAITING)]
    assert recorder.counts["left_out"] == 3


def test_a_flight_closes_its_batch_at_once_and_travels_whole(recorder: FlightRecorder) -> None:
    batcher = Batcher("n1", 1.0, 60.0)
    assert batcher.add(tick(9, a=GPU_OK))  # the first one carries the facts
    assert batcher.add(tick(10, a=GPU_OK)) == []
    recorder.ask([("GPU-a", "r1")])
    (closed,) = batcher.add(recorder.complete(tick(11, a=GPU_OK)))
    batch = replace(closed, boot="boot-1", seq=1)
    (flight,) = decode(encode(batch)).flights
    assert flight.request == "r1"
    assert list(flight.columns["power_w"]) == [100.0 + number for number in range(50)]
    assert len(encode(batch)) < 4096
