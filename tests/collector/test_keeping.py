"""What outlives the process: accounts, timers of findings that nobody was told of yet, and their ids."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.collector.pushing import START_S, Site, batch, site
from tests.collector.test_live import COOL, HELD, HOT, play

from unidle_agent.wire import Owner
from unidle_collector.accounts import keeping
from unidle_collector.accounts.buckets import HOUR_NS
from unidle_collector.engine import Engine
from unidle_collector.model import GpuRef
from unidle_collector.signals import Step

SECOND = 10**9


def save(here: Site) -> None:
    """What the upkeep does about once a minute."""
    here.live._write(here.live.ask(here.live._snapshot).result(timeout=30))


def killed(here: Site, image: Path) -> Path:
    """What kill -9 leaves on the disk at this moment."""
    shutil.copytree(here.live.store.directory, image)
    return image


def told(here: Site) -> list[tuple[str, str, int, int]]:
    return [
        (found["id"], found["finding"]["kind"], found["finding"]["since_ns"], found["opened_ns"])
        for found in here.get("incidents", state="all")
    ]


def test_killed_within_the_grace_of_an_idle_job_it_is_told_on_time_with_its_since(tmp_path: Path) -> None:
    with site(tmp_path / "a") as here:
        seq = play(here, 0, 900, HELD, job="4711")
        save(here)
        seq = play(here, 900, 960, HELD, seq=seq, job="4711")  # in the log only
        image = killed(here, tmp_path / "b")
        play(here, 960, 1890, HELD, seq=seq, job="4711")
        never_killed, account = told(here), here.get("fleet", window_s=7200)["account"]
    with site(image) as here:
        assert here.live.notes == []
        play(here, 960, 1890, HELD, seq=seq, job="4711", facts=False)
        assert told(here) == never_killed
        assert len(never_killed) == 1
        assert here.get("fleet", window_s=7200)["account"] == account
        (gpu, _) = here.get("gpus")
        assert (gpu["model"], gpu["job"], gpu["simulated"]) == ("NVIDIA H100", "4711", False)


def test_what_was_told_after_the_last_checkpoint_is_not_told_again(tmp_path: Path) -> None:
    with site(tmp_path / "a") as here:
        seq = play(here, 0, 60, COOL)
        save(here)
        seq = play(here, 60, 90, HOT, seq=seq)
        play(here, 90, 150, COOL, seq=seq)
        image = killed(here, tmp_path / "b")
        before = here.get("events")
    assert [event["incident"]["state"] for event in before] == ["open", "resolved"]
    with site(image) as here:
        play(here, 150, 210, COOL, seq=seq + 2)
        assert here.get("events") == before


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda header: header | {"version": 99}, "expected a checkpoint of version 2, came 99"),
        (lambda header: header | {"layout": header["layout"][1:]}, "their timers start anew"),
    ],
)
def test_an_unknown_layout_starts_anew_and_says_so(
    tmp_path: Path, spoil: Callable[[dict], dict], words: str
) -> None:
    with site(tmp_path) as here:
        play(here, 0, 60, HELD, job="4711")
    path = tmp_path / "accounts" / keeping.CHECKPOINT
    with path.open("rb") as file:
        header, arrays = keeping.read_arrays(file)
    with path.open("wb") as file:
        keeping.write_arrays(file, spoil(header), arrays)
    with site(tmp_path) as here:
        (note,) = here.live.notes
        assert words in note
        here.clock.at_s = START_S + 90
        assert here.push(batch(7, 60, 30, HELD, job="4711"))[0] == 200


def test_a_torn_checkpoint_starts_anew_and_says_so(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        play(here, 0, 60, HELD, job="4711")
    path = tmp_path / "accounts" / keeping.CHECKPOINT
    path.write_bytes(path.read_bytes()[:1000])
    with site(tmp_path) as here:
        (note,) = here.live.notes
        assert "expected a checkpoint, came" in note


def test_finished_hours_are_written_once_and_read_back_exactly(tmp_path: Path) -> None:
    engine = Engine(60.0)
    for number in range(3):
        engine.add(GpuRef(f"n{number}", "GPU-0", 0, "NVIDIA H100"))
        engine.own(number, Owner(allocated=True, job=f"job-{number % 2}", user="u"))
    size = engine.inventory.capacity
    busy = np.where(np.arange(size) == 1, 0.0, 0.9)
    columns = {"sm_active_ratio": busy, "power_w": np.full(size, 612.3), "memory_used_bytes": busy + 7e10}
    start = START_S * SECOND // HOUR_NS * HOUR_NS
    for minute in range(1, 5 * 60 + 1):
        columns = columns | {"sm_active_ratio": busy * (0.5 + (minute % 7) / 14)}
        engine.step(Step(start + minute * 60 * SECOND, 60 * SECOND, columns, np.arange(size) < 3))
    reached = start + 5 * HOUR_NS
    keeping.write(keeping.snapshot(engine, reached), tmp_path)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "hours").iterdir()}
    assert len(written) == 4
    keeping.write(keeping.snapshot(engine, reached), tmp_path)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "hours").iterdir()} == written
    again = Engine(60.0)
    assert keeping.restore(again, tmp_path) == keeping.Restored(reached)
    for key in (lambda t: t.owner.job, lambda t: str(t.gpu), lambda _: "all"):
        before = engine.ledger.accounts(key, start, reached)
        after = {account.key: account for account in again.ledger.accounts(key, start, reached)}
        for account in before:
            assert after[account.key].seconds == account.seconds
            assert after[account.key].lost.gpu_h == pytest.approx(account.lost.gpu_h, rel=1e-6)
            assert after[account.key].lost.kwh == pytest.approx(account.lost.kwh, rel=1e-6)
            assert after[account.key].sm_active_ratio == pytest.approx(account.sm_active_ratio, rel=1e-6)


def test_hours_live_as_long_as_they_are_kept_and_a_restart_reads_those_of_eight_days(tmp_path: Path) -> None:
    engine = Engine(60.0)
    engine.add(GpuRef("n", "GPU-0", 0, "NVIDIA H100"))
    size = engine.inventory.capacity
    start = START_S * SECOND // HOUR_NS * HOUR_NS
    day = 24 * HOUR_NS
    for at in (start, start + 3 * HOUR_NS, start + 10 * day, start + 10 * day + 3 * HOUR_NS):
        engine.step(Step(at + 60 * SECOND, 60 * SECOND, {}, np.arange(size) < 1))
        keeping.write(keeping.snapshot(engine, at), tmp_path, 400 * day)
    assert len(list((tmp_path / "hours").iterdir())) == 3, "two hours of ten days ago, one of today"
    again = Engine(60.0)
    keeping.restore(again, tmp_path)
    assert again.ledger.buckets.first_ns(0, 2**62) == start + 10 * day
    keeping.write(keeping.snapshot(engine, start + 411 * day), tmp_path, 400 * day)
    assert [path.name for path in (tmp_path / "hours").iterdir()] == []


class SlowKeeper(keeping.InFiles):
    """Its first write takes until `go_on`; says between which event times each write lay."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, 10**18)
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.said: list[tuple[str, int]] = []

    def write(self, kept: keeping.Snapshot) -> None:
        self.said.append(("begins", kept.header["reached_ns"]))
        if not self.begun.is_set():
            self.begun.set()
            assert self.go_on.wait(30)
        super().write(kept)
        self.said.append(("ends", kept.header["reached_ns"]))


def test_a_checkpoint_that_is_being_written_at_the_stop_never_replaces_the_last_one(tmp_path: Path) -> None:
    here = Site(tmp_path)
    keeper = here.live._keeper = SlowKeeper(here.live.store.directory / "accounts")
    seq = play(here, 0, 60, HELD)
    upkeep = threading.Thread(target=here.live._upkeep_once)
    upkeep.start()
    assert keeper.begun.wait(30)
    play(here, 60, 120, HELD, seq=seq)
    stopping = threading.Thread(target=here.live.stop)
    stopping.start()
    stopping.join(timeout=0.5)
    assert [what for what, _ in keeper.said] == ["begins"], "the last one waits for the one before"
    keeper.go_on.set()
    for thread in (upkeep, stopping):
        thread.join(timeout=30)
    first, last = keeper.said[0][1], keeper.said[-1][1]
    assert keeper.said == [("begins", first), ("ends", first), ("begins", last), ("ends", last)]
    assert first < last
