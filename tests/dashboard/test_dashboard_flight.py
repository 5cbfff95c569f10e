"""The flight recorder on the incident's page: panels, shading, holes, and what is said under it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.dashboard.fake_api import FakeApi

from unidle_collector.model import FlightRecording, Incident
from unidle_dashboard.view import flight

S = 1_000_000_000
MS = 1_000_000


@pytest.fixture
def incident() -> Incident:
    return next(one for one in FakeApi().incidents() if one.finding.kind == "throttling_thermal")


@pytest.fixture
def recording(incident: Incident) -> FlightRecording:
    (made,) = FakeApi().flights(incident.id)
    return made


def points(figure: dict, name: str) -> list[list[float | None]]:
    (series,) = [one for one in figure["series"] if one["name"] == name]
    return series["data"]


def test_each_panel_has_one_unit_and_only_fields_that_are_known(recording: FlightRecording) -> None:
    figure = flight.figure(recording)
    assert [axis["name"] for axis in figure["yAxis"]] == [
        "Activity, %",
        "Power, W",
        "Clock, MHz",
        "Heat, °C",
        "Memory, GiB",
    ]
    assert {one["name"] for one in figure["series"]} == {
        "GPU util, %",
        "SM active, %",
        "power instant, W",
        "power, W",
        "SM clock, MHz",
        "temperature, °C",
        "memory used, GiB",
    }
    assert len(figure["grid"]) == len(figure["xAxis"]) == 5
    assert flight.height_px(recording) > figure["grid"][-1]["top"] + figure["grid"][-1]["height"]


def test_values_are_in_the_units_that_people_read_and_zero_stays(recording: FlightRecording) -> None:
    zero = replace(recording, columns={"gpu_util_ratio": (0.0,) * 600, "sm_clock_hz": (1.755e9,) * 600})
    figure = flight.figure(zero)
    assert points(figure, "GPU util, %")[0] == [recording.times_ns[0] // MS, 0.0]
    assert points(figure, "SM clock, MHz")[0][1] == 1755.0


def test_a_look_that_did_not_ask_is_no_hole_but_a_silence_of_the_recorder_is() -> None:
    times_ns = tuple(at * S for at in (0, 1, 2, 60, 61))
    power = {"power_w": (1.0, None, 2.0, 3.0, 4.0)}
    one = FlightRecording("n1", "GPU-a", "asked", "", 61 * S, times_ns, power, simulated=False)
    drawn = [(at_ms, value) for at_ms, value in points(flight.figure(one), "power, W")]
    assert drawn == [(0, 1.0), (2000, 2.0), (2001, None), (60_000, 3.0), (61_000, 4.0)]


def test_the_time_in_which_the_clocks_were_held_back_is_shaded_in_every_panel(
    recording: FlightRecording,
) -> None:
    figure = flight.figure(recording)
    (area,) = {str(one["markArea"]["data"]) for one in figure["series"] if "markArea" in one}
    begins, ends = recording.times_ns[450] // MS, recording.times_ns[-1] // MS
    assert area == str([[{"xAxis": begins}, {"xAxis": ends}]])
    assert sum("markArea" in one for one in figure["series"]) == len(figure["grid"])
    power_cap = replace(recording, columns={**recording.columns, "clock_event_reasons": (4.0,) * 600})
    assert not any("markArea" in one for one in flight.figure(power_cap)["series"])
    assert "Shaded" not in flight.caption(power_cap)


def test_the_caption_says_rate_window_and_source_and_simulated(recording: FlightRecording) -> None:
    assert flight.caption(recording) == (
        "600 looks, 5.0 a second, 11:03:10 UTC to 11:05:10 UTC; source: SIMULATED, the node's flight "
        "recorder. Shaded: clocks held back by heat, hardware slowdown or power brake."
    )
    assert "source: NVML" in flight.caption(replace(recording, simulated=False))


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("xid 79", "XID 79"),
        ("gpu_lost", "the GPU was lost"),
        ("driver_hung", "the driver hung"),
        ("poison_fatal", "poison fatal"),
        ("asked", "asked for when the finding was told"),
    ],
)
def test_a_recording_is_named_by_place_reason_and_time(
    recording: FlightRecording, incident: Incident, reason: str, words: str
) -> None:
    name = flight.name_of(replace(recording, reason=reason), incident.finding.gpus)
    assert name == f"b200-33 GPU 0, {words}, 11:05:10 UTC"


def test_what_the_driver_reported_comes_first_and_what_holds_nothing_is_left_out(
    recording: FlightRecording, incident: Incident
) -> None:
    xid = replace(recording, reason="xid 79")
    empty = replace(recording, times_ns=(), columns={})
    assert flight.order([empty, recording, xid], incident) == [xid, recording]
