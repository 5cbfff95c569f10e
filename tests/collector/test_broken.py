"""A bug in unidle, met by the thread that owns everything: said, counted, survived."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.collector.pushing import START_S, Values, batch, site

from unidle_agent.wire import Batch, Zlib, encode
from unidle_collector import taking
from unidle_collector.ring import Block, Refused
from unidle_collector.taking import Ack, BrokenError

BUSY: Values = {"gpu_util_ratio": 0.9, "sm_active_ratio": 0.8, "power_w": 600.0}


def test_a_batch_that_breaks_the_collector_is_answered_500_and_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    decode = taking.decode

    def poisoned(data: bytes, unzip: Zlib) -> Batch:
        found = decode(data, unzip)
        if found.node == "poison":
            raise ZeroDivisionError("by this node")
        return found

    monkeypatch.setattr(taking, "decode", poisoned)
    with site(tmp_path) as here:
        here.clock.at_s = START_S + 5
        begun, release = threading.Event(), threading.Event()
        here.live.ask(lambda: begun.set() or release.wait())  # type: ignore[func-returns-value]
        assert begun.wait(30)
        nodes = ("n1", "poison", "n2")  # one group: all wait while the collector answers a question
        pushes = [here.live.push(encode(batch(1, 0, 5, BUSY, node=n)), here.clock(), None) for n in nodes]
        release.set()
        with caplog.at_level(logging.ERROR, "unidle.collector"):
            answers = [push.exception(30) or push.result(30) for push in pushes]
        assert [type(answer) for answer in answers] == [Ack, BrokenError, Ack]
        assert "by this node" in here.get("health")["problems"][0]
        assert any(record.exc_info for record in caplog.records)
        headers = {"Authorization": f"Bearer {here.token}"}
        again = here.http.post(
            "/api/v1/push", content=encode(batch(1, 0, 5, BUSY, node="poison")), headers=headers
        )
        assert (again.status_code, "the log says where" in again.text) == (500, True)
        assert here.counter("pushes_broken") == 2
        assert here.push(batch(2, 5, 5, BUSY))[0] == 200
        assert here.counter("rows_ingested") == 30, (
            "the two others of the group and one more, of 2 GPUs x 5 s"
        )
        assert here.get("health")["ok"] is True


def test_a_batch_that_cannot_be_placed_costs_its_rows_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with site(tmp_path) as here:
        place, poison = here.live.window._gpus.place, float(np.float32(0.123))

        def broken(block: Block, raws: Sequence[Mapping[str, Any]], done: int) -> Refused:
            if any(poison in memoryview(raw["sm_active_ratio"]).cast("B").cast("f") for raw in raws):
                raise ZeroDivisionError("at this batch")
            return place(block, raws, done)

        monkeypatch.setattr(here.live.window._gpus, "place", broken)
        here.clock.at_s = START_S + 4
        with caplog.at_level(logging.ERROR, "unidle.collector"):
            here.push(batch(1, 0, 4, BUSY, node="n1"))
            here.push(batch(1, 0, 4, {"sm_active_ratio": 0.123}, node="poison"))
            here.settle(7)
        assert "at this batch" in here.get("health")["problems"][0]
        assert here.counter("window_broken") == 1
        window, refs = here.live.window, here.live.engine.inventory.refs
        for number, ref in enumerate(refs):
            _, values = window.recent("sm_active_ratio", number, ref.node)
            assert np.isfinite(values).any() == (ref.node == "n1")
        here.clock.at_s = START_S + 9
        for node in ("n1", "poison"):
            here.push(batch(2, 4, 5, BUSY, node=node))
        here.settle(10)
        assert here.get("health")["ok"] is True


def test_a_detector_that_breaks_costs_its_step_and_is_said_until_it_works_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with site(tmp_path) as here:
        detector = here.live.engine._detectors[0]
        look = detector.look

        def broken(view: Any) -> Any:
            if START_S + 2 <= view.step.end_ns / 1e9 <= START_S + 3:
                raise ZeroDivisionError("in a detector")
            return look(view)

        monkeypatch.setattr(detector, "look", broken)
        here.clock.at_s = START_S + 4
        with caplog.at_level(logging.ERROR, "unidle.collector"):
            here.push(batch(1, 0, 4, BUSY))
            here.settle(7)
        assert "in a detector" in here.get("health")["problems"][0]
        assert here.counter("steps_broken") == 2
        assert len([r for r in caplog.records if r.exc_info]) == 1, "not the same traceback each second"
        here.clock.at_s = START_S + 9
        here.push(batch(2, 4, 5, BUSY))
        here.settle(10)
        assert here.get("health")["ok"] is True
        assert (here.counter("steps"), here.counter("steps_broken")) == (9, 2)
