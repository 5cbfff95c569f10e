"""The host source, over golden /proc files of real machines."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unidle_agent.errors import SourceError
from unidle_agent.fields import HOST_FIELDS
from unidle_agent.sources.host import CHUNK_BYTES, Disks, HostSource, cpu_shares, network

STAT = "cpu  100 0 50 800 40 0 10 0 7 0\ncpu0 100 0 50 800 40 0 10 0 7 0\nprocs_running 1\n"
STAT_LATER = (
    "cpu  160 0 80 840 60 0 10 0 9 0\ncpu0 80 0 40 420 30 0 5 0 5 0\ncpu1 80 0 40 420 30 0 5 0 4 0\n"
    "intr 1 2 3\nprocs_running 9\nprocs_blocked 4\n"
)
VMSTAT = (
    "nr_free_pages 1\nallocstall_dma 1\nallocstall_normal 20\nallocstall_movable 300\npgmajfault 77\n"
    "workingset_refault_anon 5\nworkingset_refault_file 123456789\n"
)
AVERAGES = "avg10=1.00 avg60=0.10 avg300=0.00"
PRESSURE = {
    "cpu": f"some {AVERAGES} total=5888167\nfull {AVERAGES} total=0\n",
    "io": f"some {AVERAGES} total=2323110\nfull {AVERAGES} total=2177402\n",
    "memory": f"some {AVERAGES} total=11\nfull {AVERAGES} total=7\n",
}
DISKSTATS = """\
   7       0 loop0 9 0 900 1 0 0 0 0 0 1 1 0 0 0 0 0 0
   8       0 sda 500 10 2000 80 300 20 4000 90 0 100 170 0 0 0 0 0 0
   8       1 sda1 400 10 1900 80 300 20 4000 90 0 100 170 0 0 0 0 0 0
 259       0 nvme0n1 70 0 10 5 30 0 20 6 0 9 11 0 0 0 0 0 0
 259       1 nvme0n1p1 70 0 10 5 30 0 20 6 0 9 11 0 0 0 0 0 0
 253       0 dm-0 70 0 10 5 30 0 20 6 0 9 11 0 0 0 0 0 0
   9       0 md127 70 0 10 5 30 0 20 6 0 9 11 0 0 0 0 0 0
 179       0 mmcblk0 1 0 100 5 1 0 200 6 0 9 11
 179       8 mmcblk0boot0 1 0 100 5 1 0 200 6 0 9 11
"""
NETDEV = """\
Inter-|   Receive                                    |  Transmit
 face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier ...
    lo: 999 1 0 0 0 0 0 0 999 1 0 0 0 0 0 0
  eth0:1000 1 0 0 0 0 0 0 200 1 0 0 0 0 0 0
   ib0: 5000000000000 1 0 0 0 0 0 0 7 1 0 0 0 0 0 0
"""


def write_proc(root: Path, **changes: str | None) -> Path:
    files: dict[str, str | None] = {
        "stat": STAT,
        "loadavg": "12.50 3.00 1.00 3/456 789\n",
        "meminfo": "MemTotal:       1000 kB\nMemFree: 100 kB\nMemAvailable:    600 kB\nCached: 300 kB\n",
        "vmstat": VMSTAT,
        "diskstats": DISKSTATS,
        "net/dev": NETDEV,
        **{f"pressure/{what}": text for what, text in PRESSURE.items()},
        **changes,
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            path.unlink(missing_ok=True)
        else:
            path.write_text(text)
    return root


def test_every_host_field_is_read_in_base_units(tmp_path: Path) -> None:
    source = HostSource(write_proc(tmp_path))
    source.read()
    write_proc(tmp_path, stat=STAT_LATER)
    reading = source.read()
    assert reading.problems == ()
    assert reading.host == {
        "cpu_busy_ratio": pytest.approx(90 / 150),  # 60 user + 30 system of 150 jiffies
        "cpu_iowait_ratio": pytest.approx(20 / 150),
        "load_1m": 12.5,
        "host_memory_total_bytes": 1000 * 1024,
        "host_memory_available_bytes": 600 * 1024,
        "page_cache_bytes": 300 * 1024,
        "psi_cpu_some_s": 5888167,
        "psi_io_some_s": 2323110,
        "psi_io_full_s": 2177402,
        "psi_memory_some_s": 11,
        "psi_memory_full_s": 7,
        "disk_read_bytes": (2000 + 10 + 100) * 512,
        "disk_written_bytes": (4000 + 20 + 200) * 512,
        "net_received_bytes": 5000000001000,
        "net_sent_bytes": 207,
        "cpus_online": 2,
        "tasks_running": 9,
        "tasks_blocked": 4,
        "page_cache_refaults": 123456789,
        "major_faults": 77,
        "allocation_stalls": 321,
    }
    others = {field.name for field in HOST_FIELDS if field.name.startswith(("ib_", "nfs_"))}
    assert set(reading.host) == {field.name for field in HOST_FIELDS} - others


def test_first_reading_knows_no_cpu_shares(tmp_path: Path) -> None:
    host = HostSource(write_proc(tmp_path)).read().host
    assert "cpu_busy_ratio" not in host
    assert "cpu_iowait_ratio" not in host


def test_no_time_between_two_readings_gives_no_share_rather_than_zero(tmp_path: Path) -> None:
    source = HostSource(write_proc(tmp_path))
    source.read()
    assert "cpu_busy_ratio" not in source.read().host


def test_iowait_that_steps_back_is_no_negative_share() -> None:
    shares = cpu_shares((100, 0, 50, 800, 40, 0, 10, 0), (110, 0, 50, 890, 35, 0, 10, 0))
    assert shares == {"cpu_busy_ratio": pytest.approx(0.1), "cpu_iowait_ratio": 0.0}


def test_missing_pressure_is_unknown_and_said_once_with_what_to_do(tmp_path: Path) -> None:
    write_proc(tmp_path, **{f"pressure/{what}": None for what in PRESSURE})
    source = HostSource(tmp_path)
    first = source.read()
    assert not [name for name in first.host if name.startswith("psi_")]
    assert len(first.problems) == 3
    assert all("psi=1" in problem for problem in first.problems)
    assert source.read().problems == ()
    assert first.host["load_1m"] == 12.5


def test_garbled_file_loses_its_own_fields_only(tmp_path: Path) -> None:
    write_proc(tmp_path, loadavg="\n", **{"net/dev": "x\ny\neth0: oops\n"})
    reading = HostSource(tmp_path).read()
    assert "load_1m" not in reading.host
    assert "net_sent_bytes" not in reading.host
    assert reading.host["disk_read_bytes"] == 2110 * 512
    assert len(reading.problems) == 2


def test_a_file_that_is_longer_than_one_read_is_read_to_its_end(tmp_path: Path) -> None:
    disks = "".join(
        f" 8 0 disk{chr(97 + number % 26) * (1 + number // 26)} 1 0 1 0 1 0 2 0 0 0 0 0\n"
        for number in range(1500)
    )
    assert len(disks) > CHUNK_BYTES
    assert (
        HostSource(write_proc(tmp_path, diskstats=disks)).read().host["disk_written_bytes"] == 1500 * 2 * 512
    )


def test_a_file_that_comes_later_is_read_from_then_on(tmp_path: Path) -> None:
    source = HostSource(write_proc(tmp_path, loadavg=None))
    assert "load_1m" not in source.read().host
    (tmp_path / "loadavg").write_text("2.5 1 1 1/1 1\n")
    assert source.read().host["load_1m"] == 2.5
    source.close()
    assert source.read().host["load_1m"] == 2.5


def test_no_procfs_at_all_is_an_error_that_names_the_place(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=str(tmp_path / "none")):
        HostSource(tmp_path / "none").read()


@pytest.mark.parametrize(
    ("names", "counted"),
    [
        pytest.param(("sda", "sda1", "sda2"), {"sda"}, id="partitions of a SCSI disk count with the disk"),
        pytest.param(("nvme1n1", "nvme1n1p2"), {"nvme1n1"}, id="partitions of an NVMe disk"),
        pytest.param(("xvda1",), {"xvda1"}, id="a partition whose disk is not there is counted itself"),
        pytest.param(("vda", "dm-0", "md0", "loop3", "zram0", "sr0"), {"vda"}, id="layers are not disks"),
        pytest.param(("nvme0n1", "nvme0c0n1"), {"nvme0n1"}, id="paths of a multipath NVMe disk"),
        pytest.param(
            ("nvme0n1", "nvme0n11"), {"nvme0n1", "nvme0n11"}, id="namespace 11 is no partition of 1"
        ),
        pytest.param(("sda", "sdaa"), {"sda", "sdaa"}, id="the 27th disk is no partition of the first"),
    ],
)
def test_whole_disks(names: tuple[str, ...], counted: set[str]) -> None:
    weights = {name: 1 << place for place, name in enumerate(names)}
    text = "".join(f" 8 0 {name} 1 0 {weights[name]} 0 1 0 0 0 0 0 0\n" for name in names)
    assert Disks()(text.encode())["disk_read_bytes"] == 512 * sum(weights[name] for name in counted)


def test_a_node_without_disks_reads_zero_bytes() -> None:
    assert Disks()(b"") == {"disk_read_bytes": 0, "disk_written_bytes": 0}


def test_loopback_traffic_is_left_out() -> None:
    assert network(NETDEV.encode()) == {"net_received_bytes": 5000000001000, "net_sent_bytes": 207}


@given(
    st.lists(st.integers(0, 2**40), min_size=8, max_size=8),
    st.lists(st.integers(0, 2**20), min_size=8, max_size=8),
)
def test_cpu_shares_are_shares(before: list[int], spent: list[int]) -> None:
    now = tuple(a + b for a, b in zip(before, spent, strict=True))
    shares = cpu_shares(tuple(before), now)
    if sum(spent):
        assert 0 <= shares["cpu_busy_ratio"] <= 1
        assert shares["cpu_busy_ratio"] + shares["cpu_iowait_ratio"] <= 1 + 1e-9
    else:
        assert shares == {}


def test_this_machine_can_be_read() -> None:
    host = HostSource().read().host
    assert host["host_memory_total_bytes"] > 0
    assert "load_1m" in host
