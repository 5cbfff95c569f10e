"""The host: CPU, run queue, memory, pressure (PSI), local disks and network, from /proc.

The CPU shares are those of the interval since the reading before, so the first reading has none. In a
container /proc/stat, /proc/pressure and /proc/diskstats are the whole machine's; /proc/net/dev is that
of the agent's network namespace. The files stay open and are read again from their beginning: finding and
opening one costs several times as much as reading it. Formats: proc(5), Documentation/accounting/psi.rst and
Documentation/admin-guide/iostats.rst of Linux.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from unidle_agent.errors import SourceError
from unidle_agent.sample import Reading, Value

SECTOR_BYTES = 512
"""Sectors of /proc/diskstats are 512 bytes whatever the disk's own are."""
KIB = 1024
PSI_FIELDS = {
    "cpu": {b"some ": "psi_cpu_some_s"},
    "io": {b"some ": "psi_io_some_s", b"full ": "psi_io_full_s"},
    "memory": {b"some ": "psi_memory_some_s", b"full ": "psi_memory_full_s"},
}
"""File -> beginning of the line -> field."""
CHUNK_BYTES = 65536
TASK_FIELDS = {b"procs_running ": "tasks_running", b"procs_blocked ": "tasks_blocked"}
MEMORY_FIELDS = {
    b"MemTotal:": "host_memory_total_bytes",
    b"MemAvailable:": "host_memory_available_bytes",
    b"Cached:": "page_cache_bytes",
}
VMSTAT_FIELDS = {b"workingset_refault_file ": "page_cache_refaults", b"pgmajfault ": "major_faults"}
LAYERED = re.compile(r"(loop|ram|zram|dm-|md|sr|fd|drbd|bcache)\d|nvme\d+c\d+n\d+")
"""Devices whose bytes are counted again on the disk below them, or that are no disk."""
PARTITION = re.compile(r"(?P<emmc>mmcblk\d+)(boot\d+|rpmb)|(?P<disk>.+?)(?:(?<=\d)p|(?<!\d))\d+")
"""nvme0n1p2 of nvme0n1, sda1 of sda, mmcblk0boot0 of mmcblk0."""


class HostSource:
    """This machine. `proc` is where procfs is mounted (a container may have the host's elsewhere)."""

    name = "host"
    precedence = 50

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._cpu: tuple[int, ...] | None = None
        self._said: set[str] = set()
        parts: dict[str, Callable[[bytes], dict[str, Value]]] = {
            "stat": self._cpus,
            "loadavg": load,
            "meminfo": memory,
            "vmstat": reclaim,
            "diskstats": Disks(),
            "net/dev": network,
            **{f"pressure/{what}": _pressure_of(what) for what in PSI_FIELDS},
        }
        self._parts = [(_File(proc / name), parse) for name, parse in parts.items()]

    def read(self) -> Reading:
        """What is readable now; a file that is missing is said once and its fields stay unknown."""
        host: dict[str, Value] = {}
        problems = []
        for file, parse in self._parts:
            try:
                host.update(parse(file.read()))
            except (OSError, ValueError, IndexError, KeyError) as error:
                if file.path.as_posix() not in self._said:
                    self._said.add(file.path.as_posix())
                    problems.append(_missing(file.path, error))
        if not host:
            raise SourceError(f"expected a Linux procfs at {self._proc}, nothing there could be read")
        return Reading(host=host, problems=tuple(problems))

    def close(self) -> None:
        """Close the files."""
        for file, _ in self._parts:
            file.close()

    def _cpus(self, data: bytes) -> dict[str, Value]:
        now = cpu_jiffies(data)
        before, self._cpu = self._cpu, now
        return {**tasks(data), **({} if before is None else cpu_shares(before, now))}


class _File:
    """A file that is kept open once it could be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def read(self) -> bytes:
        """All of it as it is now; raises OSError, and opens it anew the next time."""
        if self._fd is None:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = b""
            while chunk := os.pread(self._fd, CHUNK_BYTES, len(data)):  # procfs hands out a page at a time
                data += chunk
        except OSError:
            self.close()
            raise
        return data

    def close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            with contextlib.suppress(OSError):
                os.close(fd)


def cpu_jiffies(data: bytes) -> tuple[int, ...]:
    """user, nice, system, idle, iowait, irq, softirq, steal of all CPUs, from /proc/stat.

    guest and guest_nice are left out: the kernel counts them within user and nice already.
    """
    words = data[: data.find(b"\n")].split()
    if len(words) < 6 or words[0] != b"cpu":
        raise ValueError(f"expected a first line 'cpu ...' with its times, came {data[:40]!r}")
    return tuple(int(word) for word in words[1:9])


def cpu_shares(before: tuple[int, ...], now: tuple[int, ...]) -> dict[str, Value]:
    """Busy and waiting shares between two readings; nothing where no time has passed.

    idle and iowait may step back a little (proc(5) says so of iowait): such a step counts as 0.
    """
    spent = [max(0, b - a) for a, b in zip(before, now, strict=True)]
    total = sum(spent)
    if total == 0:
        return {}
    idle, iowait = spent[3], spent[4]
    return {"cpu_busy_ratio": (total - idle - iowait) / total, "cpu_iowait_ratio": iowait / total}


def tasks(data: bytes) -> dict[str, Value]:
    """CPUs and run queue, from /proc/stat."""
    out: dict[str, Value] = dict(_numbers(data, TASK_FIELDS))
    cpus = data.count(b"\ncpu")  # the line of all together is the first
    return {**out, "cpus_online": cpus} if cpus else out


def load(data: bytes) -> dict[str, Value]:
    """/proc/loadavg"""
    return {"load_1m": float(data.split(None, 1)[0])}


def memory(data: bytes) -> dict[str, Value]:
    """/proc/meminfo; `Cached` holds tmpfs and shared memory too, as the kernel counts it."""
    found: dict[str, Value] = {field: size * KIB for field, size in _numbers(data, MEMORY_FIELDS)}
    if not found:
        raise ValueError("expected lines such as 'MemTotal: 1 kB', came none")
    return found


def reclaim(data: bytes) -> dict[str, Value]:
    """/proc/vmstat: what becomes of pages when memory is short."""
    found: dict[str, Value] = dict(_numbers(data, VMSTAT_FIELDS))
    # One count per zone since Linux 4.10.
    lines = (b"\n" + data).split(b"\nallocstall")[1:]
    if lines:
        found["allocation_stalls"] = sum(int(line.split(None, 2)[1]) for line in lines)
    if not found:
        raise ValueError("expected lines such as 'pgmajfault 1', came none")
    return found


def pressure(what: str, data: bytes) -> dict[str, Value]:
    """/proc/pressure/`what`: stall totals in microseconds, the resolution of their fields."""
    out: dict[str, Value] = {}
    for line in data.splitlines():
        field = PSI_FIELDS[what].get(line[:5])
        if field is not None:
            out[field] = int(line[line.index(b"total=") + 6 :].split(None, 1)[0])
    return out


class Disks:
    """/proc/diskstats: bytes of whole disks; partitions and devices layered over disks count once."""

    def __init__(self) -> None:
        self._names: list[bytes] = []
        self._whole: set[bytes] = set()
        """Which of the names are whole disks: worked out only when the names change."""

    def __call__(self, data: bytes) -> dict[str, Value]:
        """Totals; a diskless node reads 0 bytes from local disks: that is known, not unknown."""
        lines = [words for line in data.splitlines() if len(words := line.split(None, 10)) >= 10]
        names = [words[2] for words in lines]
        if names != self._names:
            known = {name.decode("ascii", "replace") for name in names}
            self._names = names
            self._whole = {name for name in names if _whole_disk(name.decode("ascii", "replace"), known)}
        whole = [words for words in lines if words[2] in self._whole]
        return {
            "disk_read_bytes": sum(int(words[5]) for words in whole) * SECTOR_BYTES,
            "disk_written_bytes": sum(int(words[9]) for words in whole) * SECTOR_BYTES,
        }


def _whole_disk(name: str, known: set[str]) -> bool:
    if LAYERED.match(name):
        return False
    part = PARTITION.fullmatch(name)
    return part is None or (part["disk"] or part["emmc"]) not in known


def network(data: bytes) -> dict[str, Value]:
    """/proc/net/dev: bytes of every interface but loopback.

    A byte that crosses a bond or bridge and its member counts on both, as the kernel counts it.
    """
    received = sent = 0
    for line in data.splitlines()[2:]:
        name, _, rest = line.partition(b":")
        words = rest.split(None, 9)
        if name.strip() != b"lo":
            received += int(words[0])
            sent += int(words[8])
    return {"net_received_bytes": received, "net_sent_bytes": sent}


def _numbers(data: bytes, fields: Mapping[bytes, str]) -> Iterator[tuple[str, int]]:
    """(Field, first number behind it) for the beginnings of lines in `fields` that there are."""
    data = b"\n" + data
    for key, field in fields.items():
        start = data.find(b"\n" + key)
        if start >= 0:
            yield field, int(data[start + 1 + len(key) : data.find(b"\n", start + 1)].split(None, 1)[0])


def _pressure_of(what: str) -> Callable[[bytes], dict[str, Value]]:
    return lambda data: pressure(what, data)


def _missing(file: Path, error: Exception) -> str:
    if file.parent.name == "pressure":
        return (
            f"{file} is not there: pressure (PSI) stays unknown; it needs a kernel with CONFIG_PSI, "
            "booted with psi=1 where it is off by default"
        )
    return f"{file} could not be read ({error}): its fields stay unknown"
