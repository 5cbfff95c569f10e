from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tests.collector.store_fleet import NOON, SECOND, SmallDisk, batch, environment

from unidle_agent.wire import Batch, Owner, encode
from unidle_collector.store import Store, StoreError, StoreFull
from unidle_collector.store.compaction import HOUR_NS
from unidle_collector.store.log import log_files
from unidle_collector.store.segments import Segment


def take(store: Store, *batches: Batch, received_ns: int = NOON) -> None:
    """Do with batches what the collector does."""
    for item in batches:
        assert not store.state.seen(item.node, item.boot, item.seq)
        store.append(encode(item), received_ns)
    store.sync()
    store.state.remember([(item.node, item.boot, item.seq) for item in batches])


def of_rows(store: Store) -> list[Segment]:
    """The segments of rows, without roll-ups."""
    return [segment for segment in store.segments.counting() if segment.level == "raw"]


def instants(directory: Path) -> list[int]:
    """The times of all rows in segments, whatever files they are in."""
    paths = (directory / "segments").glob("gpu-*.parquet")
    return sorted(time_ns for path in paths for time_ns in pq.read_table(path)["time_ns"].to_pylist())


def test_rows_go_from_the_log_to_a_segment_and_are_read_there(tmp_path: Path) -> None:
    store = Store(tmp_path, roll_age_s=60)
    take(store, batch(seq=0, jobs={"GPU-a": Owner(True, "j")}), batch(seq=1, times=[NOON + SECOND]))
    window = ("node-1", "GPU-a", "power_w", NOON, NOON + 2 * SECOND, 1)
    assert list(store.series(*window)[1] > 0) == [False, False]  # the log is for the live window to answer
    store.upkeep(NOON + 59 * SECOND)
    assert store.sizes()["segments"] == 0
    store.upkeep(NOON + 60 * SECOND)
    assert list(store.series(*window)[1]) == [100, 101]
    assert store.sizes()["log"] == 0
    assert all(size > 0 for name, size in store.sizes().items() if name not in ("log", "accounts"))
    assert store.export(tmp_path / "out.parquet", NOON, NOON + SECOND) == 1
    assert store.counters()["rows_stored"] == 2
    assert store.verify() == ()
    store.close()


def test_after_a_stop_the_log_is_replayed_and_its_batches_are_known(tmp_path: Path) -> None:
    store = Store(tmp_path, roll_age_s=60)
    take(store, batch(seq=4), batch(seq=5, times=[NOON + 1]))
    store.close()
    store = Store(tmp_path, roll_age_s=60)
    assert [(received_ns, item.seq) for received_ns, _, item in store.replay()] == [(NOON, 4), (NOON, 5)]
    assert store.state.seen("node-1", "boot-1", 4)
    assert not store.state.seen("node-1", "boot-1", 6)
    store.upkeep(NOON)  # the file of the last run is closed: no need to wait
    assert instants(tmp_path) == [NOON, NOON + 1]
    store.close()
    assert list(Store(tmp_path).replay()) == []


def test_a_batch_stays_known_after_its_log_has_become_a_segment(tmp_path: Path) -> None:
    store = Store(tmp_path, roll_age_s=60)
    take(store, batch(seq=4))
    store.upkeep(NOON + 60 * SECOND)
    store.close()
    assert Store(tmp_path).state.seen("node-1", "boot-1", 4)


def test_the_job_is_known_in_later_files_than_the_one_that_brought_it(tmp_path: Path) -> None:
    store = Store(tmp_path, roll_age_s=60)
    take(store, batch(seq=0, jobs={"GPU-a": Owner(True, "job-1")}))
    store.upkeep(NOON + 60 * SECOND)
    take(store, batch(seq=1, times=[NOON + 1]), received_ns=NOON + 61 * SECOND)
    store.upkeep(NOON + 200 * SECOND)
    tables = [pq.read_table(path) for path in sorted((tmp_path / "segments").glob("gpu-*"))]
    assert [table["job"].to_pylist() for table in tables] == [["job-1"], ["job-1"]]
    store.close()


CRASH = """
import os, sys
from pathlib import Path
from tests.collector.store_fleet import NOON, SECOND, batch
from tests.collector.test_store import take
from unidle_collector.store import Store, segments, conversion

def crash(*_):
    os._exit(9)

where = sys.argv[2]
store = Store(Path(sys.argv[1]), roll_age_s=60)
take(store, batch(seq=0, host={"load_1m": [1]}), batch(seq=1, times=[NOON + 1]))
if where == "before the segment has its name":
    store.segments.publish = crash
elif where == "between the host's and the gpus' segment":
    rename = Path.rename
    def rename_one(path, target):
        rename(path, target)
        crash()
    Path.rename = rename_one
elif where == "before the log is deleted":
    unlink = Path.unlink
    Path.unlink = lambda path, **options: crash() if path.suffix == ".log" else unlink(path, **options)
store.upkeep(NOON + 60 * SECOND)
"""


@pytest.mark.parametrize(
    "where",
    [
        "before the segment has its name",
        "between the host's and the gpus' segment",
        "before the log is deleted",
    ],
)
def test_a_crash_while_converting_neither_loses_nor_doubles_a_row(tmp_path: Path, where: str) -> None:
    crashed = subprocess.run([sys.executable, "-c", CRASH, tmp_path, where], env=environment())
    assert crashed.returncode == 9
    assert len(log_files(tmp_path / "log")) == 1
    store = Store(tmp_path, roll_age_s=60)
    list(store.replay())
    assert all(store.state.seen("node-1", "boot-1", seq) for seq in (0, 1))
    store.upkeep(NOON)
    assert instants(tmp_path) == [NOON, NOON + 1]
    hosts = list((tmp_path / "segments").glob("host-*"))
    assert [pq.read_table(path)["load_1m"].to_pylist() for path in hosts] == [[1]]
    assert log_files(tmp_path / "log") == []
    assert not list((tmp_path / "segments").glob("*.tmp"))
    store.close()


def test_hours_that_are_over_are_merged_and_old_ones_removed(tmp_path: Path) -> None:
    store = Store(tmp_path, roll_age_s=60, keep_days=1)
    for number in range(3):
        received_ns = NOON + number * 100 * SECOND
        take(store, batch(seq=number, times=[received_ns]), received_ns=received_ns)
        store.upkeep(received_ns + 60 * SECOND)
    assert len(of_rows(store)) == 3
    store.upkeep(NOON + HOUR_NS)
    assert len(of_rows(store)) == 1
    assert len(instants(tmp_path)) == 3
    assert store.counters()["segments_merged"] == 12  # rows, roll-ups of 10 s and 1 min, the fleet's
    store.upkeep(NOON + 24 * HOUR_NS + 300 * SECOND)
    assert instants(tmp_path) == []
    assert store.counters()["segments_removed"] == 1
    store.close()


def test_what_cannot_become_a_segment_stays_in_the_log_and_is_not_merged_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path, roll_age_s=1)
    for number in range(3):
        take(store, batch(seq=number, times=[NOON + number]), received_ns=NOON + number * 2 * SECOND)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("unidle_collector.store.conversion.Sheet", full)
        with pytest.raises(StoreFull, match="the rows stay in the log"):
            store.upkeep(NOON + 2 * HOUR_NS)
    assert len(log_files(tmp_path / "log")) == 3
    store.upkeep(NOON + 2 * HOUR_NS)
    assert instants(tmp_path) == [NOON, NOON + 1, NOON + 2]
    assert len(of_rows(store)) == 1
    store.close()


def test_a_batch_that_was_refused_is_stored_once_when_it_comes_again(tmp_path: Path) -> None:
    disk = SmallDisk(1_000_000)
    store = Store(tmp_path, roll_age_s=60, disk=disk)
    take(store, batch(seq=0))
    disk.room = 20
    with pytest.raises(StoreFull):
        take(store, batch(seq=1, times=[NOON + 1]))
    disk.room = 1_000_000
    take(store, batch(seq=1, times=[NOON + 1]))
    store.upkeep(NOON + 60 * SECOND)
    assert instants(tmp_path) == [NOON, NOON + 1]
    store.close()


def test_a_torn_log_is_replayed_up_to_the_tear_and_counted(tmp_path: Path) -> None:
    store = Store(tmp_path, roll_age_s=60)
    take(store, batch(seq=0), batch(seq=1, times=[NOON + 1]))
    store.close()
    (path,) = log_files(tmp_path / "log")
    os.truncate(path, path.stat().st_size - 3)
    store = Store(tmp_path, roll_age_s=60)
    assert "torn off" in store.verify()[0]
    assert [item.seq for _, _, item in store.replay()] == [0]
    assert not store.state.seen("node-1", "boot-1", 1)
    store.upkeep(NOON)
    assert instants(tmp_path) == [NOON]
    assert store.counters()["log_torn_bytes"] > 0
    store.close()


def test_conversion_and_merging_import_no_pandas(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from tests.collector.store_fleet import NOON, SECOND, batch
from unidle_agent.wire import encode
from unidle_collector.store import Store
store = Store(Path(sys.argv[1]), roll_age_s=1)
for number in range(3):
    store.append(encode(batch(seq=number, host={"load_1m": [1]})), NOON + number * 10 * SECOND)
    store.sync()
store.upkeep(NOON + 7200 * SECOND)
assert store.counters()["segments_merged"] == 21
assert "pandas" not in sys.modules, "50 MB for nothing"
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path], env=environment(), stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr.decode()


def test_two_collectors_never_share_a_directory(tmp_path: Path) -> None:
    store = Store(tmp_path, roll_age_s=60)
    with pytest.raises(StoreError, match="another collector"):
        Store(tmp_path)
    store.close()
    Store(tmp_path).close()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file/store"):
        Store(tmp_path / "file" / "store")
