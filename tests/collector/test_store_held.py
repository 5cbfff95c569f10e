"""Batches that are still in memory become segments without being decoded again."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tests.collector.store_fleet import NOON, SECOND, SmallDisk, batch

from unidle_agent.wire import Batch, Owner, decode, encode
from unidle_collector.store import Store, StoreFull
from unidle_collector.store.log import Log


def fleet() -> list[Batch]:
    """Two nodes out of order, one batch twice, a job that becomes known, columns that only some have."""
    owner = {"GPU-a": Owner(True, "job-1")}
    sent = [
        batch("node-2", seq=2, times=[NOON + 2 * SECOND], host={"load_1m": [1]}, jobs=owner, facts_id=2),
        batch(
            "node-2",
            seq=1,
            times=[NOON, NOON + SECOND],
            gpus=("GPU-b", "GPU-a"),
            columns={"last_xid": [0] * 4},
        ),
        batch("node-1", seq=1, times=[NOON + 5 * SECOND], simulated=True),
        batch("node-2", seq=2, times=[NOON + 2 * SECOND], host={"load_1m": [1]}, jobs=owner, facts_id=2),
        batch("node-2", seq=3, times=[], gpus=()),
    ]
    return [decode(encode(one)) for one in sent]


def segments(directory: Path) -> dict[str, list[dict[str, object]]]:
    return {path.name: pq.read_table(path).to_pylist() for path in (directory / "segments").glob("*.parquet")}


def test_segments_are_the_same_from_memory_and_from_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for name in ("memory", "log"):
        store = Store(tmp_path / name)
        for one in fleet():
            store.append(encode(one), NOON, batch=one if name == "memory" else None)
        store.sync()
        with monkeypatch.context() as broken:
            if name == "memory":
                broken.setattr("unidle_collector.store.conversion.decode", None)
            store.convert_all(NOON + SECOND)
        found.append(segments(tmp_path / name))
        store.close()
    assert found[0] == found[1]
    assert len(found[0]) == 7  # rows, 10 s and 1 min of GPUs and hosts; the fleet's minutes


def test_what_was_refused_is_not_held(tmp_path: Path) -> None:
    disk = SmallDisk(100_000)
    log = Log(tmp_path, disk=disk)
    one, two, three = (batch(seq=seq) for seq in range(3))
    log.append(encode(one), NOON, batch=one)
    log.sync()
    disk.room = 10
    log.append(encode(two), NOON, batch=two)
    with pytest.raises(StoreFull):
        log.sync()
    disk.room = 100_000
    log.append(encode(three), NOON, batch=three)
    log.close()
    (path,) = log.closed()
    assert log.held(path) == [one, three]
    log.let_go(path)
    assert log.held(path) is None


@pytest.mark.parametrize("why", ["one is missing", "too many"])
def test_what_is_not_held_whole_is_read_from_the_log(tmp_path: Path, why: str) -> None:
    log = Log(tmp_path, hold_bytes=10_000 if why == "too many" else 2**30)
    for seq in range(20):
        one = batch(seq=seq)
        log.append(encode(one), NOON, batch=None if why == "one is missing" and seq == 7 else one)
        log.sync()
    log.close()
    assert log.held(log.closed()[0]) is None


def test_only_the_log_files_that_were_asked_for_become_segments(tmp_path: Path) -> None:
    store = Store(tmp_path, roll_age_s=1.0)
    for second in (0, 2, 4):
        at_ns = NOON + second * SECOND
        store.append(encode(batch("node-1", seq=second, times=[at_ns])), at_ns)
        store.sync()
    older, newer = store.closed()
    store.upkeep(NOON + 6 * SECOND, [older])
    assert store.closed()[0] == newer, "the caller has not saved what follows from it"
    store.upkeep(NOON + 6 * SECOND)
    assert store.closed() == []
    store.close()


def test_the_jobs_of_a_log_file_without_facts_need_no_database_but_after_a_restart(tmp_path: Path) -> None:
    asked: list[str] = []

    def turn(
        store: Store, seq: int, boot: str = "boot-1", jobs: dict[str, Owner] | None = None
    ) -> list[object]:
        """The jobs in the rows of one more log file."""
        facts = store.state.facts
        with pytest.MonkeyPatch.context() as watched:
            watched.setattr(store.state, "facts", lambda key: (asked.append(key[1]), facts(key))[1])
            at = NOON + seq * SECOND
            one = decode(encode(batch(seq=seq, boot=boot, times=[at], jobs=jobs)))
            store.append(encode(one), at, batch=one)
            store.sync()
            store.convert_all(at + SECOND)
        newest = max((store.directory / "segments").glob("gpu-*.parquet"))
        return list(pq.read_table(newest).column("job").to_pylist())

    store = Store(tmp_path)
    assert turn(store, 1, jobs={"GPU-a": Owner(True, "one")}) == ["one"]
    assert turn(store, 2) == ["one"]
    assert asked == []
    assert turn(store, 3, jobs={"GPU-a": Owner(True, "two")}) == ["two"]
    assert turn(store, 4) == ["two"]
    assert asked == []
    assert turn(store, 5, boot="boot-2") == [None]
    assert turn(store, 6, boot="boot-2") == [None]
    assert asked == ["boot-2"]
    store.close()

    store = Store(tmp_path)
    assert turn(store, 7) == turn(store, 8) == ["two"]
    assert asked == ["boot-2", "boot-1"]
    store.close()
