from __future__ import annotations

import os
import signal
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.collector.store_fleet import SmallDisk, environment

from unidle_collector.store.errors import StoreError, StoreFull
from unidle_collector.store.log import (
    HEADER,
    MAGIC,
    OLD_HEADER,
    OLD_MAGIC,
    Log,
    LogFile,
    OsDisk,
    Record,
    log_files,
    records,
)

SECOND = 1_000_000_000


def stored(directory: Path) -> list[bytes]:
    return [record.data for path in log_files(directory) for record in LogFile(path)]


def test_what_was_synced_reads_back_as_it_came(tmp_path: Path) -> None:
    log = Log(tmp_path)
    positions = [log.append(b"one", 5), log.append(b"two" * 1000, 7, clock_ns=-3)]
    assert stored(tmp_path) == []  # nothing is written before the sync
    assert log.sync() == positions[-1]
    assert log.append(b"three", 9) == 3
    log.sync()
    (path,) = log_files(tmp_path)
    assert list(LogFile(path)) == [Record(5, b"one"), Record(7, b"two" * 1000, -3), Record(9, b"three")]


def test_a_log_of_before_the_senders_clock_still_reads(tmp_path: Path) -> None:
    path, content = tmp_path / "00000000000000000001.log", OLD_MAGIC
    for number, data in enumerate((b"one", b"two" * 1000)):
        checksum = zlib.crc32(data, zlib.crc32(OLD_HEADER.pack(len(data), 0, number)))
        content += OLD_HEADER.pack(len(data), checksum, number) + data
    path.write_bytes(content + b"torn")
    file = LogFile(path)
    assert list(file) == [Record(0, b"one", None), Record(1, b"two" * 1000, None)]
    assert (file.torn_bytes, file.damaged) == (4, 0)


def test_a_reader_of_its_own_reads_on_from_where_it_was_and_no_further_than_what_is_durable(
    tmp_path: Path,
) -> None:
    log = Log(tmp_path)
    assert log.durable() == (0, 0)
    log.append(b"one", 5)
    log.append(b"two", 7, clock_ns=-3)
    log.sync()
    (path,) = log_files(tmp_path)
    assert log.durable() == (int(path.stem), path.stat().st_size)
    (after, first), (end, second) = records(path)
    assert (first, second, end) == (Record(5, b"one"), Record(7, b"two", -3), log.durable()[1])
    assert list(records(path, after)) == [(end, second)]
    assert list(records(path, len(MAGIC), end - 1)) == [(after, first)]
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert list(records(path)) == [(after, first)]


def test_a_second_name_keeps_a_file_and_a_missing_folder_for_it_keeps_no_batch_out(
    tmp_path: Path,
) -> None:
    links = tmp_path / "links"
    for there in (True, False):
        if there:
            links.mkdir()
        log = Log(tmp_path, links=links if there else tmp_path / "none")
        log.append(b"one", 5)
        log.sync()
        log.close()
    assert [path.read_bytes() for path in log_files(links)] == [log_files(tmp_path)[0].read_bytes()]
    log_files(tmp_path)[0].unlink()
    assert stored(links) == [b"one"]


def test_one_sync_covers_all_that_was_appended(tmp_path: Path) -> None:
    class Counting(OsDisk):
        syncs = 0

        def sync(self, fd: int) -> None:
            self.syncs += 1
            super().sync(fd)

    disk = Counting()
    log = Log(tmp_path, disk=disk)
    for number in range(100):
        log.append(b"%d" % number, number)
    log.sync()
    log.sync()  # nothing new: no second one
    assert disk.syncs == 1
    assert len(stored(tmp_path)) == 100


@given(cut=st.integers(1, 200), sizes=st.lists(st.integers(1, 60), min_size=1, max_size=5))
def test_a_torn_tail_loses_only_the_record_that_it_tore(
    tmp_path_factory: pytest.TempPathFactory, cut: int, sizes: list[int]
) -> None:
    directory = tmp_path_factory.mktemp("log")
    log = Log(directory)
    for number, size in enumerate(sizes):
        log.append(bytes([number + 1]) * size, number)
    log.close()
    (path,) = log_files(directory)
    length = max(0, path.stat().st_size - cut)
    os.truncate(path, length)
    ends, position = [], len(MAGIC)
    for size in sizes:
        position += HEADER.size + size
        ends.append(position)
    file = LogFile(path)
    whole = sum(end <= length for end in ends)
    assert [len(record.data) for record in file] == sizes[:whole]
    end_of_whole = ends[whole - 1] if whole else len(MAGIC) * (length >= len(MAGIC))
    assert (file.torn_bytes, file.damaged) == (length - end_of_whole, 0)


def test_a_damaged_record_is_skipped_and_counted(tmp_path: Path) -> None:
    log = Log(tmp_path)
    for data in (b"first", b"second", b"third"):
        log.append(data, 1)
    log.close()
    (path,) = log_files(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"second", b"sec0nd"))
    file = LogFile(path)
    assert [record.data for record in file] == [b"first", b"third"]
    assert (file.torn_bytes, file.damaged) == (0, 1)


@pytest.mark.parametrize("room", [0, 3, len(MAGIC), len(MAGIC) + 5, len(MAGIC) + HEADER.size + 10])
def test_a_full_disk_refuses_keeps_what_was_synced_and_recovers_by_itself(tmp_path: Path, room: int) -> None:
    disk = SmallDisk(10_000)
    log = Log(tmp_path, disk=disk, roll_age_s=1)
    log.append(b"before", 0)
    log.sync()
    disk.room = room
    for received_ns in (SECOND // 2, 5 * SECOND):  # in the same file, and where a new one is due
        log.append(b"x" * 500, received_ns)
        with pytest.raises(StoreFull, match="free space"):
            log.sync()
        assert stored(tmp_path) == [b"before"]
    disk.room = 10_000
    log.append(b"after", 6 * SECOND)
    log.sync()
    assert stored(tmp_path) == [b"before", b"after"]
    assert all(LogFile(path).torn_bytes == 0 for path in log_files(tmp_path))


def test_a_failed_sync_stores_nothing_even_where_the_write_went_well(tmp_path: Path) -> None:
    disk = SmallDisk(10_000)
    log = Log(tmp_path, disk=disk)
    log.append(b"before", 1)
    log.sync()
    disk.broken = {"sync", "truncate"}
    log.append(b"refused", 2)
    with pytest.raises(StoreFull, match="check the disk"):
        log.sync()
    log.append(b"refused too", 3)
    with pytest.raises(StoreFull):  # the refused record is still there and cannot be cut off yet
        log.sync()
    disk.broken = set()
    log.append(b"after", 4)
    log.sync()
    assert stored(tmp_path) == [b"before", b"after"]


def test_the_kernel_refusing_to_grow_the_file_is_a_full_store(tmp_path: Path) -> None:
    script = f"""
import resource, sys
from pathlib import Path
from unidle_collector.store.errors import StoreFull
from unidle_collector.store.log import Log
log = Log(Path({str(tmp_path)!r}))
log.append(b"a" * 3000, 1); log.sync()
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
log.append(b"b" * 3000, 2)
try:
    log.sync()
except StoreFull as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.append(b"c" * 3000, 3); log.sync()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment())
    assert "File too large" in done.stdout, done.stderr
    assert stored(tmp_path) == [b"a" * 3000, b"c" * 3000]


@pytest.mark.parametrize("synced", [1, 40])
def test_kill_9_in_mid_write_loses_no_synced_record(tmp_path: Path, synced: int) -> None:
    script = f"""
import itertools
from pathlib import Path
from unidle_collector.store.log import Log
log = Log(Path({str(tmp_path)!r}), roll_bytes=200_000)
for number in itertools.count():
    for part in range(3):
        log.append(b"%d.%d " % (number, part) + b"x" * 5000, number)
    log.sync()
    print(number, flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment()
    ) as process:
        assert process.stdout is not None
        for _ in range(synced):
            process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
        acknowledged = synced - 1 + len(process.stdout.read().splitlines())
    names = [data.split()[0].decode() for data in stored(tmp_path)]
    everything = [f"{number}.{part}" for number in range(acknowledged + 2) for part in range(3)]
    assert names == everything[: len(names)]
    assert len(names) >= (acknowledged + 1) * 3


def test_files_roll_by_size_and_by_age_and_their_ids_rise(tmp_path: Path) -> None:
    log = Log(tmp_path, after_id=10 * SECOND, roll_bytes=1000, roll_age_s=60)
    log.append(b"x" * 1000, 5 * SECOND)  # the clock was set back: the id still rises
    log.sync()
    log.append(b"y", 6 * SECOND)
    log.sync()
    assert [int(path.stem) for path in log_files(tmp_path)] == [10 * SECOND + 1, 10 * SECOND + 2]
    assert len(log.closed()) == 1
    assert not log.roll(65 * SECOND)
    assert log.roll(66 * SECOND)
    assert len(log.closed()) == 2
    assert not log.roll(1000 * SECOND)  # nothing is written
    log.append(b"z", 5000 * SECOND)
    log.sync()
    assert log.roll(70 * SECOND)  # the clock was set back: waiting for 5060 s would be for ever


def test_a_new_log_never_writes_into_the_file_of_the_last_run(tmp_path: Path) -> None:
    for number in range(3):
        log = Log(tmp_path)
        log.append(b"%d" % number, 77)
        log.close()
    assert stored(tmp_path) == [b"0", b"1", b"2"]
    assert len(log_files(tmp_path)) == 3


def test_an_empty_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="came none"):
        Log(tmp_path).append(b"", 1)


@pytest.mark.parametrize("limits", [{"roll_age_s": 60.0}, {"roll_bytes": 12_000}])
def test_a_file_is_closed_where_a_bucket_of_its_roll_ups_ends(tmp_path: Path, limits: dict[str, Any]) -> None:
    log = Log(tmp_path, after_id=SECOND, **limits)
    for second in range(20, 320, 5):
        for late_s in (0.1, 0.4, 0.8):  # of rows that end at `second`
            log.append(b"x" * 300, int((second + late_s) * SECOND))
            log.sync()
    log.close()
    begins = [next(iter(LogFile(path))).received_ns / SECOND for path in log_files(tmp_path)]
    assert len(begins) >= 4
    assert [round(begin - 5.1, 3) % 10 for begin in begins[1:]] == [0.0] * (len(begins) - 1)
