"""Accounts of longer ago than memory holds: what disk and memory say together is what was booked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tests.collector.pushing import START_S, site
from tests.collector.test_live import COOL, HELD, play

from unidle_agent.wire import Owner
from unidle_collector.accounts import keeping
from unidle_collector.accounts.buckets import HOUR_NS
from unidle_collector.accounts.dimensions import NOTHING
from unidle_collector.accounts.grouping import Grouping
from unidle_collector.accounts.past_hours import Asked, PastHours
from unidle_collector.engine import Engine
from unidle_collector.model import GpuRef
from unidle_collector.signals import Step

SECOND = 10**9
STEP = 300 * SECOND
BEGIN = START_S * SECOND // HOUR_NS * HOUR_NS
HOURS = 6
H100, STRANGE = "NVIDIA H100 80GB HBM3", "of which no price is known"

KEYS: dict[str, Any] = {
    "fleet": lambda _ref, _owner, _kept: "fleet",
    "gpu": lambda ref, _owner, _kept: ref.gpu,
    "job": lambda _ref, owner, _kept: owner.job or None,
    "model": lambda ref, _owner, _kept: ref.model,
}


def booked(random: np.random.Generator, engine: Engine) -> None:
    """Some hours of a few GPUs, by five minutes, that change their jobs and their work."""
    refs = [GpuRef(f"n{n % 2}", f"GPU-{n}", n, STRANGE if n == 3 else H100) for n in range(4)]
    positions = [engine.add(ref, 0.5 if n == 2 else 1.0) for n, ref in enumerate(refs)]
    size = engine.inventory.capacity
    for number in range(1, HOURS * 12 + 1):
        if number % 9 == 1:
            for position in positions:
                job = ("", "a", "b", f"c-{number}")[random.integers(4)]
                engine.own(position, Owner(allocated=bool(job), job=job))
            level = random.choice([0.0, 0.2, 0.9], size)
            power = random.choice([120.25, 612.5, np.nan], size)
        columns = {
            "sm_active_ratio": level,
            "gpu_util_ratio": np.ceil(level),
            "power_w": power,
            "memory_used_bytes": np.full(size, 7e10),
        }
        sampled = np.arange(size) < random.choice([3, 4, 4, 4])
        engine.step(Step(BEGIN + number * STEP, STEP, columns, sampled))


@settings(max_examples=8, phases=(Phase.generate,))  # a booked day is slow to shrink
@given(st.integers(0, 2**32 - 1), st.integers(0, HOURS), st.sampled_from(sorted(KEYS)))
def test_wherever_memory_begins_the_accounts_are_those_that_were_booked(
    tmp_path_factory: pytest.TempPathFactory, seed: int, held: int, by: str
) -> None:
    directory, end_ns = tmp_path_factory.mktemp("accounts"), BEGIN + HOURS * HOUR_NS
    engine = Engine(300.0, keep_accounts_ns=None)
    booked(np.random.default_rng(seed), engine)
    refs, key = engine.inventory.refs, KEYS[by]
    whole = engine.ledger.tally(lambda tenure: key(refs[tenure.gpu], tenure.owner, NOTHING), BEGIN, end_ns)
    keeping.write(keeping.snapshot(engine, end_ns), directory)
    until_ns = BEGIN + min(held, HOURS - 2) * HOUR_NS  # the last two hours are not over yet
    groups = Grouping(lambda tenure: key(refs[tenure.gpu], tenure.owner, NOTHING))
    now = engine.ledger.tally(groups, until_ns, end_ns)
    past = PastHours(keeping.InFiles(directory, 0), engine.ledger.codes)
    asked = Asked(by, key, None, BEGIN, until_ns, engine.inventory.find, now)
    for _ in range(2):  # the second time from memory
        found = {account.key: account for account in past.whole(asked).accounts()}
        assert found.keys() == {account.key for account in whole.accounts()}
        for account in whole.accounts():
            other = found[account.key]
            assert other.seconds == account.seconds
            same = ("gpus", "start_ns", "end_ns", "grade")
            assert [getattr(other, name) for name in same] == [getattr(account, name) for name in same]
            assert (other.sm_active_ratio or 0.0) == pytest.approx(account.sm_active_ratio or 0.0, rel=1e-6)
            for name in ("gpu_h", "eur", "kwh"):
                lost, expected = getattr(other.lost, name), getattr(account.lost, name)
                assert (lost is None) is (expected is None)
                assert (lost or 0.0) == pytest.approx(expected or 0.0, rel=1e-6)
            assert other.causes == pytest.approx(account.causes, rel=1e-6)


@pytest.mark.slow
def test_a_window_beyond_what_memory_holds_is_read_from_disk(tmp_path: Path) -> None:
    day_s = 24 * 3600
    with site(tmp_path) as here:
        seq = play(here, 0, 5400, HELD, job="old")
        here.settle(20 * day_s)
        here.live._write(here.live.ask(here.live._snapshot).result(timeout=60))
        play(here, 20 * day_s, 20 * day_s + 60, COOL, seq=seq, job="new")
        held = {one["key"]: one for one in here.get("accounts", by="job", window_s=8 * day_s)}
        assert held["old"]["seconds"]["idle"] == 0.0
        jobs = {one["key"]: one for one in here.get("accounts", by="job", window_s=30 * day_s)}
        assert jobs.keys() == {"old", "new"}
        assert (jobs["old"]["gpus"], jobs["old"]["seconds"]["idle"]) == (2, 10800.0)
        assert jobs["old"]["lost"]["gpu_h"] == 3.0
        whole = here.get("accounts", by="fleet", window_s=30 * day_s)[0]
        assert whole["gpus"] == 2
        hours = here.get("accounts", by="hour", window_s=30 * day_s)
        for state, seconds in whole["seconds"].items():
            assert sum(hour["seconds"][state] for hour in hours) == seconds, state
    damaged = sorted((tmp_path / "accounts" / "hours").iterdir())[0]
    damaged.write_bytes(b"torn")
    with site(tmp_path) as here:
        here.clock.at_s = START_S + 20 * day_s + 90
        answer = here.http.get("/api/v1/accounts", params={"by": "job", "window_s": 30 * day_s})
        assert answer.status_code == 503
        assert "2023-11-14 22:00" in answer.json()["detail"]
