"""A group of pushes: who is told what, and whose GPU is whose from when."""

from __future__ import annotations

from pathlib import Path

from tests.collector.pushing import START_S, batch, site

from unidle_agent.wire import encode
from unidle_collector.taking import Ack, ForbiddenError, Push

BUSY = {"gpu_util_ratio": 0.9, "sm_active_ratio": 0.8, "power_w": 600.0, "memory_used_bytes": 3e10}


def test_a_job_that_changes_within_a_group_is_accounted_to_both_jobs(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        here.clock.at_s = START_S + 60
        told: list[list[Push]] = []
        group = [
            Push(encode(batch(seq, first_s, 30, BUSY, job=job)), here.clock(), None, told.append)
            for seq, first_s, job in ((1, 0, "first"), (2, 30, "second"))
        ]
        here.live.ask(lambda: here.live.taking.accept(group)).result(30)
        assert told == [group]
        here.settle(65)
        accounts = here.get("accounts", by="job", window_s=120)
        seconds = {one["key"]: sum(one["seconds"].values()) for one in accounts}
        assert seconds == {"first": 60, "second": 60}


def test_a_batch_of_another_node_is_refused_and_its_neighbours_are_taken(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        here.clock.at_s = START_S + 5
        told: list[list[Push]] = []
        own, foreign = (
            Push(encode(batch(1, 0, 5, BUSY, node=node)), here.clock(), None, told.append, writes_for=("n1",))
            for node in ("n1", "n2")
        )
        here.live.ask(lambda: here.live.taking.accept([foreign, own])).result(30)
        assert own.answer == Ack(1, send_facts=False)
        assert isinstance(foreign.answer, ForbiddenError)
        assert "n1" in str(foreign.answer)
        assert [node["node"] for node in here.get("nodes")] == ["n1"]
        assert here.counter("batches_forbidden") == 1
        assert here.counter("rows_ingested") == 10


def test_a_copy_within_a_group_counts_once(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        here.clock.at_s = START_S + 5
        data = encode(batch(1, 0, 5, BUSY))
        pair = [Push(data, here.clock(), None, lambda _: None) for _ in range(2)]
        here.live.ask(lambda: here.live.taking.accept(pair)).result(30)
        assert [push.answer for push in pair] == [Ack(1, False), Ack(1, False, duplicate=True)]
        assert here.counter("rows_ingested") == 10
