"""A state database that takes nothing for a while; docs/failure-modes.md names this test."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.collector.pushing import site
from tests.collector.test_live import COOL, HOT, play

from unidle_collector.store import StoreFull


def test_an_incident_that_could_not_be_kept_is_kept_later_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StoreFull("the disk is full: free some space")

    with site(tmp_path) as here:
        seq = play(here, 0, 120, COOL)
        with monkeypatch.context() as broken:
            broken.setattr(here.live.store.state, "save_incident", full)
            seq = play(here, 120, 180, HOT, seq=seq)
            assert here.get("incidents") == []
            assert here.get("health")["problems"] == ["the disk is full: free some space"]
            seq = play(here, 180, 300, COOL, seq=seq)
        play(here, 300, 330, COOL, seq=seq)
        events = here.get("events")
        while len(events) < 2:  # it waits for longer where a failure took long
            time.sleep(0.02)
            events = here.get("events")
        assert [event["incident"]["state"] for event in events] == ["open", "resolved"]
        assert here.get("health")["ok"] is True
