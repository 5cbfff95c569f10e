"""Histograms by job: a quantile over a job's life is exact to the width of its bin."""

from __future__ import annotations

import errno
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.collector.store_fleet import NOON, SECOND, batch, environment
from tests.collector.test_store import instants, take
from tests.collector.test_store_rollups import fill, ten_seconds

from unidle_agent.fields import BY_NAME
from unidle_agent.wire import Owner
from unidle_collector.store import Store, StoreError, StoreFull, histograms
from unidle_collector.store.columns import DTYPES
from unidle_collector.store.compaction import HOUR_NS
from unidle_collector.store.histograms import FIELDS, bins_of, bounds_of, quantile

WHOLE_LIFE = ("node-1", "GPU-a", "power_w", NOON, NOON + HOUR_NS, 1)


@settings(max_examples=200)
@given(data=st.data(), spec=st.sampled_from(FIELDS))
def test_every_quantile_lies_within_its_bin_and_bins_are_narrow(data: st.DataObject, spec: object) -> None:
    assert isinstance(spec, type(FIELDS[0]))
    steps = data.draw(st.lists(st.integers(-(2**20), 2**20), min_size=1, max_size=60))
    values = np.array([step * spec.resolution for step in steps], DTYPES[spec.dtype])
    numbers, counts = np.unique(bins_of(spec, values), return_counts=True)
    for share in (0.0, 0.5, 0.95, 1.0):
        found = quantile(spec, dict(zip(numbers.tolist(), counts.tolist(), strict=True)), share)
        exact = float(np.sort(values)[max(1, math.ceil(share * len(values))) - 1])
        assert found is not None
        slack = abs(exact) * 1e-6
        assert found.low - slack <= exact <= found.high + slack
        narrow = 0.01 if spec.unit == "1" else max(spec.resolution, abs(exact) / 120)
        assert found.high - found.low <= narrow * 1.001
        assert found.samples == len(values)


def test_bins_follow_each_other_without_gaps() -> None:
    for spec in (BY_NAME["power_w"], BY_NAME["gpu_util_ratio"]):
        edges = [bounds_of(spec, number) for number in range(300)]
        assert all(edges[n][1] == pytest.approx(edges[n + 1][0]) for n in range(299))


def test_a_jobs_quantile_is_the_same_in_memory_on_disk_and_after_a_crash(tmp_path: Path) -> None:
    store = Store(tmp_path, roll_age_s=60)
    fill(store, 10)
    store.upkeep(NOON + 700 * SECOND)
    for now_ns in (NOON + 700 * SECOND, NOON + HOUR_NS, NOON + 30 * HOUR_NS):
        store.upkeep(now_ns)
        p95 = store.job_quantile("job-1", "power_w", 0.95)
        assert p95 is not None
        assert p95.samples == 600
        assert p95.low <= 9 < p95.high  # the last of ten minutes, in each of which power is its number
    assert store.job_quantile("job-2", "power_w", 0.95) is None
    with pytest.raises(StoreError, match="a gauge of GPUs"):
        store.job_quantile("job-1", "energy_j", 0.5)
    store.close()
    store = Store(tmp_path, roll_age_s=60)  # a stop writes what is counted: it is not counted again
    p95 = store.job_quantile("job-1", "power_w", 0.95)
    assert p95 is not None
    assert p95.samples == 600
    store.close()
    (tmp_path / "segments" / next(iter((tmp_path / "segments").glob("jobs-*"))).name).unlink()
    store = Store(tmp_path, roll_age_s=60)  # as after a crash: nothing counted is on disk
    take(store, ten_seconds(100), received_ns=NOON + HOUR_NS)
    store.upkeep(NOON + HOUR_NS + 100 * SECOND)
    p95 = store.job_quantile("job-1", "power_w", 0.0)
    assert p95 is not None
    assert p95.samples == 610
    store.close()


@pytest.mark.parametrize("where", ["rollup.combine", "histograms.write_sheet", "compaction.write_sheet"])
def test_a_full_disk_at_any_stage_loses_no_row_and_counts_none_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = Store(tmp_path, roll_age_s=60)
    fill(store, 2)
    name = {"rollup.combine": "conversion.combine"}.get(where, where)
    take(store, ten_seconds(12), received_ns=NOON + 130 * SECOND)
    with monkeypatch.context() as broken:
        broken.setattr(f"unidle_collector.store.{name}", full)
        for _ in range(2):
            with pytest.raises(StoreFull, match="the rows stay in the log"):
                store.upkeep(NOON + HOUR_NS)
        take(store, ten_seconds(13), received_ns=NOON + HOUR_NS)  # pushes are still taken
    store.upkeep(NOON + 2 * HOUR_NS)
    store.upkeep(NOON + 2 * HOUR_NS)
    assert len(instants(tmp_path)) == 140
    for step in (1, 10, 60):
        assert store.steps(*WHOLE_LIFE[:5], step).rows.sum() == 140, step
    found = store.job_quantile("job-1", "power_w", 1.0)
    assert found is not None
    assert found.samples == 140
    store.close()


WORK = """
import sys, time
from pathlib import Path
from tests.collector.store_fleet import NOON, SECOND
from tests.collector.test_store import take
from tests.collector.test_store_rollups import ten_seconds
from unidle_collector.store import Store

store = Store(Path(sys.argv[1]), roll_age_s=20)
for _ in store.replay():
    pass
number = 0
while True:
    if not store.state.seen("node-1", "boot-1", number):
        take(store, ten_seconds(number), received_ns=NOON + number * 10 * SECOND)
        print(number, flush=True)
    store.upkeep(NOON + number * 600 * SECOND)
    number += 1
"""


@pytest.mark.slow
def test_killed_at_random_instants_nothing_acknowledged_is_lost_or_counted_twice(tmp_path: Path) -> None:
    chance = random.Random(4)
    acknowledged: set[int] = set()
    for _ in range(12):
        process = subprocess.Popen(
            [sys.executable, "-c", WORK, tmp_path], env=environment(), stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        acknowledged.add(int(process.stdout.readline()))
        time.sleep(chance.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        acknowledged |= {int(line) for line in process.stdout if line.endswith("\n")}
        process.wait()
    store = Store(tmp_path, roll_age_s=60)
    list(store.replay())
    assert all(store.state.seen("node-1", "boot-1", number) for number in acknowledged)
    last = max(acknowledged) + 2
    store.upkeep(NOON + last * 600 * SECOND)
    store.upkeep(NOON + last * 600 * SECOND)
    stored = instants(tmp_path)
    assert len(stored) == len(set(stored))
    assert {NOON + number * 10 * SECOND for number in acknowledged} <= set(stored)
    for step in (1, 10, 60, 3600):
        rows = store.steps("node-1", "GPU-a", "power_w", NOON - HOUR_NS, NOON + 1500 * HOUR_NS, step).rows
        assert rows.sum() == len(stored), step
    found = store.job_quantile("job-1", "power_w", 0.5)
    assert found is not None
    assert found.samples == len(stored)
    store.close()


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_a_real_full_disk_refuses_and_recovers_by_itself(tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        store = Store(tmp_path, roll_age_s=60)
        fill(store, 2)
        filler = tmp_path / "filler"
        with pytest.raises(OSError, match="No space left"):
            filler.write_bytes(bytes(4 * 2**20))
        with pytest.raises(StoreFull):
            fill(store, 300, skip=range(12))
        with pytest.raises(StoreFull):
            store.upkeep(NOON + HOUR_NS)
        filler.unlink()
        take(store, ten_seconds(3000), received_ns=NOON + HOUR_NS)
        store.upkeep(NOON + 2 * HOUR_NS)
        store.upkeep(NOON + 2 * HOUR_NS)
        stored = instants(tmp_path)
        assert len(stored) == len(set(stored)) >= 130
        assert {NOON + 30_000 * SECOND, NOON} <= set(stored)
        found = store.job_quantile("job-1", "power_w", 0.5)
        assert found is not None
        assert found.samples == len(stored)
        store.close()
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_rows_of_no_job_are_in_no_histogram(tmp_path: Path) -> None:
    store = Store(tmp_path, roll_age_s=60)
    owners = {"GPU-b": Owner(True, "job-7"), "GPU-a": Owner(False)}
    take(store, batch(gpus=("GPU-a", "GPU-b"), columns={"power_w": [1, 2]}, jobs=owners))
    store.upkeep(NOON + 100 * SECOND)
    store.upkeep(NOON + 2 * HOUR_NS)
    (file,) = (tmp_path / "segments").glob("jobs-*")
    table = histograms.pq.read_table(file).to_pylist()
    assert [(row["job"], row["field"], row["count"]) for row in table] == [("job-7", "power_w", 1)]
    store.close()
