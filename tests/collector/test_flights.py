"""Flights at the collector: asked for when a finding opens, kept once, found with the incident."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.collector.pushing import GPUS, START_S, batch, site
from tests.collector.test_live import COOL, HOT, play
from tests.fakes import FakeClock, make_incident

from unidle_agent.errors import WireError
from unidle_agent.wire import Batch, decode, encode
from unidle_agent.wire_flight import MAX_LOOKS, Flight
from unidle_collector.flights import (
    ASK_FOR_NS,
    ASK_WITHIN_NS,
    FRESH_NS,
    MOST_ASKED_AT_ONCE,
    MOST_WAITING,
    FlightBook,
    flights_of,
)
from unidle_collector.model import GpuRef
from unidle_collector.store import State, StoreFull, open_state
from unidle_collector.store import state as state_module

S = 1_000_000_000
NAN = float("nan")


def flight(
    at_s: float, gpu: str = "GPU-a", request: str = "", reason: str = "xid 79", looks: int = 10
) -> Flight:
    """So many looks, five a second, that end at `at_s` after START_S."""
    end_ns = int((START_S + at_s) * S)
    times_ns = [end_ns - (looks - 1 - number) * S // 5 for number in range(looks)]
    power = array("f", [NAN if number % 5 else 100.25 + number for number in range(looks)])
    return Flight(gpu, reason, end_ns, times_ns, {"power_w": power}, request)


def carrying(seq: int, first_s: int, *flights: Flight, **more: object) -> Batch:
    return replace(batch(seq, first_s, 1, COOL, **more), flights=flights)  # type: ignore[arg-type]


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    opened = open_state(tmp_path / "state.sqlite")
    yield opened
    opened.close()


# -- over HTTP, with real detectors


def test_a_told_finding_asks_its_node_and_the_answer_is_found_with_the_incident(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        seq = play(here, 0, 120, COOL)
        seq = play(here, 120, 150, HOT, seq=seq)
        (incident,) = here.get("incidents")
        here.clock.at_s = START_S + 151
        reply = here.push(batch(seq, 150, 1, HOT))[1]
        asked = {one["gpu"]: one["request"] for one in reply["flight"]}
        assert set(asked) == set(GPUS)
        assert here.push(batch(seq + 1, 151, 1, HOT))[1]["flight"] == reply["flight"], "until it is answered"
        assert "flight" not in here.push(batch(0, 150, 1, HOT, node="n2"))[1], "another node is not asked"

        answers = [flight(150, gpu, request, "asked") for gpu, request in asked.items()]
        assert "flight" not in here.push(carrying(seq + 2, 152, *answers))[1]
        kept = here.get(f"incidents/{incident['id']}/flights")
        assert {one["gpu"] for one in kept} == set(GPUS)
        (one,) = [one for one in kept if one["gpu"] == "GPU-a"]
        assert (one["node"], one["reason"], one["request"]) == ("n1", "asked", asked["GPU-a"])
        assert one["columns"] == {"power_w": [100.25, *[None] * 4, 105.25, *[None] * 4]}
        assert one["times_ns"][-1] == (START_S + 150) * S
        assert not one["simulated"]
        assert here.counter("flights_asked") == 2


def test_a_flight_that_came_before_its_incident_belongs_to_it_and_is_not_asked_for_again(
    tmp_path: Path,
) -> None:
    with site(tmp_path) as here:
        seq = play(here, 0, 120, COOL)
        here.clock.at_s = START_S + 121
        assert here.push(carrying(seq, 120, *(flight(120, gpu) for gpu in GPUS)))[0] == 200
        lost = {"gpu_state": 1}
        here.clock.at_s = START_S + 131
        here.push(batch(seq + 1, 121, 10, lost))
        here.settle(134)
        (incident,) = here.get("incidents")
        assert incident["finding"]["kind"] == "gpu_lost"
        here.clock.at_s = START_S + 135
        assert "flight" not in here.push(batch(seq + 2, 131, 4, lost))[1]
        kept = here.get(f"incidents/{incident['id']}/flights")
        assert [one["reason"] for one in kept] == ["xid 79", "xid 79"]


def test_a_flight_survives_a_restart_and_a_batch_that_comes_twice_counts_once(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        seq = play(here, 0, 120, COOL)
        seq = play(here, 120, 150, HOT, seq=seq)
        (incident,) = here.get("incidents")
        carrier = carrying(seq, 150, flight(150))
        assert here.push(carrier)[0] == 200
        assert here.push(carrier)[1]["duplicate"]
        assert here.push(carrying(seq + 1, 151, flight(150)))[0] == 200, "the agent's kill -9 sends it anew"
    with site(tmp_path) as here:
        (one,) = here.get(f"incidents/{incident['id']}/flights")
        assert one["reason"] == "xid 79"


def test_simulated_flights_say_so_and_a_wrong_clock_is_shifted(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        seq = play(here, 0, 120, COOL, simulated=True)
        play(here, 120, 150, HOT, seq=seq, simulated=True)
        (incident,) = here.get("incidents")
        behind = carrying(50, 151 - 3600, flight(150 - 3600), simulated=True)
        here.clock.at_s = START_S + 152
        assert here.push(behind, clock_s=START_S + 152 - 3600)[0] == 200
        (one,) = here.get(f"incidents/{incident['id']}/flights")
        assert one["simulated"]
        assert one["times_ns"][-1] == (START_S + 150) * S


def test_an_incident_without_flights_has_an_empty_list_and_no_incident_is_an_error(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        seq = play(here, 0, 120, COOL)
        play(here, 120, 150, HOT, seq=seq)
        (incident,) = here.get("incidents")
        assert here.get(f"incidents/{incident['id']}/flights") == []
        assert here.http.get("/api/v1/incidents/none/flights").status_code == 404


# -- who is asked, and for how long


def asking(state: State, clock: FakeClock) -> FlightBook:
    return FlightBook(state, clock, Counter())


def test_an_unanswered_request_is_given_up_after_a_while(state: State) -> None:
    clock = FakeClock()
    book = asking(state, clock)
    book.ask(make_incident().finding)
    assert len(book.wanted("gpu-07")) == MOST_ASKED_AT_ONCE
    clock.forward(ASK_FOR_NS / S + 1)
    assert book.wanted("gpu-07") == ()


def test_a_finding_of_the_past_asks_nobody(state: State) -> None:
    clock = FakeClock()
    book = asking(state, clock)
    finding = make_incident().finding
    clock.forward(ASK_WITHIN_NS / S + 1)
    book.ask(finding)
    assert book.wanted("gpu-07") == ()


def test_a_gpu_that_has_just_sent_a_flight_is_not_asked_until_that_is_old(state: State) -> None:
    clock = FakeClock()
    book = asking(state, clock)
    ref = GpuRef("n1", "GPU-a/GI3", 0)
    finding = make_incident(nodes=("n1",), gpus=(ref,)).finding
    book.take(carrying(1, 0, flight(0)), 0)
    book.ask(finding)
    assert book.wanted("n1") == ()
    clock.forward(FRESH_NS / S + 1)
    book.ask(replace(finding, told_ns=clock()))
    assert book.wanted("n1") == (("GPU-a", f"{finding.id}/0"),), "the whole GPU of a MIG instance"


def test_a_database_that_takes_nothing_keeps_flights_waiting_within_bounds(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    counters: Counter[str] = Counter()
    book = FlightBook(state, FakeClock(), counters)
    incident = make_incident(
        opened_ns=START_S * S, since_ns=START_S * S, nodes=("n1",), gpus=(GpuRef("n1", "GPU-a"),)
    )
    with monkeypatch.context() as patch:

        def full(_: object) -> None:
            raise StoreFull("no space")

        patch.setattr(state, "save_flights", full)
        for number in range(MOST_WAITING + 3):
            book.take(carrying(number, 0, flight(number)), 0)
            book.keep()
        assert flights_of(state, incident) == []
    book.keep()
    assert counters["flights_dropped"] == 3
    newest = flights_of(state, incident)
    assert newest[0].taken_ns == (START_S + MOST_WAITING + 2) * S
    assert newest == sorted(newest, key=lambda one: -one.taken_ns)


def test_only_flights_of_the_gpu_around_the_time_of_the_incident_belong_to_it(state: State) -> None:
    book = asking(state, FakeClock())
    began_ns = (START_S + 1000) * S
    incident = make_incident(
        state="resolved",
        opened_ns=began_ns,
        resolved_ns=began_ns + 600 * S,
        since_ns=began_ns,
        nodes=("n1",),
        gpus=(GpuRef("n1", "GPU-a"),),
    )
    for at_s in (870, 890, 1300, 1700, 1730):  # 130 s and 110 s before; within; 100 s and 130 s after
        book.take(carrying(1, 0, flight(at_s)), 0)
    book.take(carrying(1, 0, flight(1300, "GPU-b")), 0)
    book.take(carrying(1, 0, flight(1300), node="n2"), 0)
    book.keep()
    assert [one.taken_ns // S - START_S for one in flights_of(state, incident)] == [1700, 1300, 890]


def test_the_oldest_flights_go_when_there_are_too_many_and_with_the_incidents_time(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_module, "MOST_FLIGHTS", 3)
    book = asking(state, FakeClock())
    for at_s in range(0, 5000, 1000):
        book.take(carrying(1, 0, flight(at_s)), 0)
        book.keep()
    ends = [one.end_ns // S - START_S for one in state.flights(["GPU-a"], 0)]
    assert ends == [4000, 3000, 2000]
    state.forget((START_S + 3500) * S)
    assert [one.end_ns // S - START_S for one in state.flights(["GPU-a"], 0)] == [4000]


# -- the wire


def test_a_batch_with_flights_comes_back_as_it_went_and_one_without_has_none() -> None:
    sent = carrying(1, 0, flight(0, request="r1"))
    (back,) = decode(encode(sent)).flights
    assert (back.gpu, back.reason, back.request, back.time_ns) == ("GPU-a", "xid 79", "r1", START_S * S)
    assert list(back.times_ns) == list(sent.flights[0].times_ns)
    assert bytes(back.columns["power_w"]) == bytes(sent.flights[0].columns["power_w"])
    assert decode(encode(batch(1, 0, 1, COOL))).flights == ()


def test_a_field_that_this_version_does_not_know_is_dropped_from_a_flight() -> None:
    odd = replace(flight(0), columns={"of_a_later_version": array("f", [0.0] * 10)})
    (back,) = decode(encode(carrying(1, 0, odd))).flights
    assert back.columns == {}


@pytest.mark.parametrize(
    "wrong",
    [
        replace(flight(0), gpu=""),
        replace(flight(0), reason="x" * 300),
        replace(flight(0), columns={"power_w": array("f", [1.0])}),
        replace(flight(0), times_ns=[0] * (MAX_LOOKS + 1), columns={}),
    ],
    ids=["no GPU", "a long reason", "columns of another length", "too many looks"],
)
def test_a_flight_that_is_not_one_is_refused_with_the_batch(wrong: Flight) -> None:
    with pytest.raises(WireError, match="flights"):
        decode(encode(carrying(1, 0, wrong)))
