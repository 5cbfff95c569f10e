"""The live collector: from pushes to accounts and incidents, over restarts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.collector.pushing import START_S, Site, batch, site

from unidle_agent.fields import COLUMNS
from unidle_agent.wire import Event, column

HELD = {
    "gpu_util_ratio": 0.0,
    "sm_active_ratio": 0.0,
    "power_w": 120.0,
    "memory_used_bytes": 1.6e10,
    "memory_total_bytes": 8e10,
}
HOT = {
    "gpu_util_ratio": 1.0,
    "sm_active_ratio": 0.9,
    "power_w": 600.0,
    "memory_used_bytes": 6e10,
    "sm_clock_hz": 1.2e9,
    "clock_event_reasons": 0x40,
}
COOL = HOT | {"clock_event_reasons": 0, "sm_clock_hz": 1.7e9}


def play(here: Site, first_s: int, last_s: int, values: dict, seq: int = 0, **more: object) -> int:
    """Push 30 s batches from first_s to last_s; returns the next sequence number."""
    for start in range(first_s, last_s, 30):
        here.clock.at_s = START_S + start + 30
        assert here.push(batch(seq, start, 30, values, **more))[0] == 200  # type: ignore[arg-type]
        here.settle(start + 33)
        seq += 1
    return seq


def test_an_idle_job_becomes_an_incident_with_a_recommendation_and_resolves(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        seq = play(here, 0, 1830, HELD, job="4711")
        (incident,) = here.get("incidents")
        assert incident["finding"]["kind"] == "idle"
        assert incident["finding"]["subject"] == "4711"
        (advice,) = here.get("recommendations")
        assert advice["command"] == "scancel 4711"
        assert advice["gain"]["expected"]["gpu_h"] > 0
        play(here, 1830, 1890, COOL, seq=seq, job="4711")
        assert here.get("incidents") == []
        (resolved,) = here.get("incidents", state="resolved")
        assert resolved["state"] == "resolved"
        events = here.get("events")
        assert [(e["incident"]["state"], e["incident"]["revision"]) for e in events] == [
            ("open", 1),
            ("resolved", 2),
        ]
        assert here.get("events", after=events[0]["seq"])[0]["seq"] == events[1]["seq"]


def test_throttling_is_told_within_seconds_of_the_data(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        seq = play(here, 0, 120, COOL)
        play(here, 120, 150, HOT, seq=seq)
        (incident,) = here.get("incidents")
        assert incident["finding"]["kind"] == "throttling_thermal"
        told_after_s = (incident["opened_ns"] / 1e9) - (START_S + 120)
        assert told_after_s <= 10


def test_a_restart_keeps_incidents_accounts_and_sequence_numbers(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        seq = play(here, 0, 1860, HELD, job="4711")
        (before,) = here.get("incidents")
        account = here.get("fleet", window_s=7200)["account"]
    with site(tmp_path) as here:
        here.clock.at_s = START_S + 1860
        assert here.push(batch(seq - 1, 1830, 30, HELD, job="4711"))[1]["duplicate"] is True
        play(here, 1860, 2100, HELD, seq=seq, job="4711")
        (after,) = here.get("incidents")
        assert after["id"] == before["id"]
        assert after["finding"]["since_ns"] == before["finding"]["since_ns"]
        assert [event["incident"]["state"] for event in here.get("events")] == ["open"]
        later = here.get("fleet", window_s=7200)["account"]
        grown = later["seconds"]["idle"] - account["seconds"]["idle"]
        assert grown == pytest.approx(2 * 240, abs=20)


def test_the_api_says_simulated_on_every_answer(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        here.clock.at_s = START_S + 5
        here.push(batch(0, 0, 5, HELD, simulated=True))
        here.settle(10)
        for path in ("fleet", "health"):
            assert here.get(path)["simulated"] is True
        assert here.get("gpus")[0]["simulated"] is True
        assert here.http.get("/api/v1/fleet").headers["x-unidle-simulated"] == "SIMULATED"
        assert "unidle_simulated 1" in here.http.get("/metrics").text


def test_a_node_that_samples_each_30_s_leaves_no_hole(tmp_path: Path) -> None:
    from dataclasses import replace

    with site(tmp_path) as here:
        for number in range(10):
            here.clock.at_s = START_S + number * 30 + 1
            one = replace(batch(number, number * 30, 1, COOL), period_s=30.0)
            assert here.push(one)[0] == 200
            here.settle(number * 30 + 4)
        seconds = here.get("fleet")["account"]["seconds"]
        assert seconds["unknown"] == 0
        assert seconds["productive"] == pytest.approx(2 * 271, abs=4)


def test_a_silent_node_becomes_unknown_not_idle(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        play(here, 0, 60, COOL)
        here.settle(200)
        states = here.get("fleet")["states"]
        assert states == {"unknown": 2}


def test_one_slow_node_does_not_hold_up_the_fleet(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        here.clock.at_s = START_S + 5
        here.push(batch(0, 0, 5, COOL))
        here.push(batch(0, 0, 5, COOL, node="n2", gpus=("GPU-z",)))
        here.settle(8)
        for seq in range(1, 8):
            here.clock.at_s = START_S + 5 + seq * 5
            here.push(batch(seq, seq * 5, 5, COOL))
            here.push(batch(seq, 0, 5, COOL, node="n2", gpus=("GPU-z",)))  # it repeats an old time
            here.settle(8 + seq * 5)
        here.settle(60)
        reached = here.live.window.time_ns
        assert reached is not None
        assert reached >= (START_S + 30) * 10**9


def test_an_owner_holds_from_its_first_instant_on_however_late_time_advances(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        here.clock.at_s = START_S + 1
        here.push(batch(0, 0, 60, COOL, job="first"))
        here.push(batch(1, 60, 60, COOL, job="second"))
        here.settle(5)
        seconds = {
            account["key"]: sum(account["seconds"].values()) for account in here.get("accounts", by="job")
        }
        assert seconds == {"first": 120.0, "second": 120.0}


def test_statistics_and_events_of_a_batch_cost_nothing_that_came_before_them(tmp_path: Path) -> None:
    plain = batch(0, 0, 30, COOL)
    name = "power_instant_w.max"
    statistics = {name: column(COLUMNS[name], [700.0] * (30 * len(plain.gpus)))}
    event = Event(START_S * 10**9, plain.gpus[0], "xid", 79, "the driver reported XID 79")
    with site(tmp_path) as here:
        here.clock.at_s = START_S + 30
        sent = replace(plain, columns={**plain.columns, **statistics}, events=(event,))
        assert here.push(sent)[0] == 200
        here.settle(33)
        assert here.counter("rows_ingested") == 30 * len(plain.gpus)
        assert here.counter("events_received") == 1
        assert list(here.live.events) == [("n1", event)]
        (gpu, *_) = here.get("gpus")
        assert gpu["values"]["sm_active_ratio"] == pytest.approx(0.9)
        assert name not in gpu["values"]


def test_accounts_by_team_partition_and_site_leave_no_second_out(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        play(here, 0, 60, COOL, job="4711")
        for by, key in (("team", "unknown"), ("partition", "unknown"), ("site", "local")):
            (account,) = here.get("accounts", by=by)
            assert (account["key"], sum(account["seconds"].values())) == (key, 120.0)
