"""The host: CPU, run queue, memory, pressure (PSI), local disks and network, from /proc.

The CPU shares are those of the interval since the reading before, so the first reading has none. In a
container /proc/stat, /proc/pressure and /proc/diskstats are the whole machine's; /proc/net/dev is that
of the agent's network namespace. Formats: proc(5), Documentation/accounting/psi.rst and
Documentation/admin-guide/iostats.rst of Linux.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from unidle_agent.errors import SourceError
from unidle_agent.sample import Reading, Value

SECTOR_BYTES = 512
"""Sectors of /proc/diskstats are 512 bytes whatever the disk's own are."""
KIB = 1024
PSI_FIELDS = {
    ("cpu", "some"): "psi_cpu_some_s",
    ("io", "some"): "psi_io_some_s",
    ("io", "full"): "psi_io_full_s",
    ("memory", "some"): "psi_memory_some_s",
    ("memory", "full"): "psi_memory_full_s",
}
CPU_LINE = re.compile(r"^cpu\d+ ", re.MULTILINE)
TASK_FIELDS = {"procs_running": "tasks_running", "procs_blocked": "tasks_blocked"}
VMSTAT_FIELDS = {"workingset_refault_file": "page_cache_refaults", "pgmajfault": "major_faults"}
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

    def read(self) -> Reading:
        """What is readable now; a file that is missing is said once and its fields stay unknown."""
        parts: list[tuple[str, Callable[[str], dict[str, Value]]]] = [
            ("stat", self._cpus),
            ("loadavg", load),
            ("meminfo", memory),
            ("vmstat", reclaim),
            ("diskstats", disks),
            ("net/dev", network),
            *((f"pressure/{what}", _pressure_of(what)) for what in ("cpu", "io", "memory")),
        ]
        host: dict[str, Value] = {}
        problems = []
        for file, parse in parts:
            try:
                host.update(parse((self._proc / file).read_text(encoding="ascii", errors="replace")))
            except (OSError, ValueError, IndexError, KeyError) as error:
                if file not in self._said:
                    self._said.add(file)
                    problems.append(_missing(self._proc / file, error))
        if not host:
            raise SourceError(f"expected a Linux procfs at {self._proc}, nothing there could be read")
        return Reading(host=host, problems=tuple(problems))

    def close(self) -> None:
        """Nothing is held."""

    def _cpus(self, text: str) -> dict[str, Value]:
        now = cpu_jiffies(text)
        before, self._cpu = self._cpu, now
        return {**tasks(text), **({} if before is None else cpu_shares(before, now))}


def cpu_jiffies(text: str) -> tuple[int, ...]:
    """user, nice, system, idle, iowait, irq, softirq, steal of all CPUs, from /proc/stat.

    guest and guest_nice are left out: the kernel counts them within user and nice already.
    """
    words = text.split("\n", 1)[0].split()
    if len(words) < 6 or words[0] != "cpu":
        raise ValueError(f"expected a first line 'cpu ...' with its times, came {text[:40]!r}")
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


def tasks(text: str) -> dict[str, Value]:
    """CPUs and run queue, from /proc/stat."""
    out: dict[str, Value] = {"cpus_online": len(CPU_LINE.findall(text))}
    for line in text.splitlines():
        key, _, rest = line.partition(" ")
        if key in TASK_FIELDS:
            out[TASK_FIELDS[key]] = int(rest)
    return {name: value for name, value in out.items() if name != "cpus_online" or value}


def load(text: str) -> dict[str, Value]:
    """/proc/loadavg"""
    return {"load_1m": float(text.split()[0])}


def memory(text: str) -> dict[str, Value]:
    """/proc/meminfo; `Cached` holds tmpfs and shared memory too, as the kernel counts it."""
    sizes = {}
    for line in text.splitlines():
        key, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            sizes[key] = int(words[0]) * KIB
    names = {
        "MemTotal": "host_memory_total_bytes",
        "MemAvailable": "host_memory_available_bytes",
        "Cached": "page_cache_bytes",
    }
    found: dict[str, Value] = {field: sizes[key] for key, field in names.items() if key in sizes}
    if not found:
        raise ValueError("expected lines such as 'MemTotal: 1 kB', came none")
    return found


def reclaim(text: str) -> dict[str, Value]:
    """/proc/vmstat: what becomes of pages when memory is short."""
    counts = dict(line.split(" ", 1) for line in text.splitlines() if " " in line)
    found: dict[str, Value] = {
        field: int(counts[key]) for key, field in VMSTAT_FIELDS.items() if key in counts
    }
    # One count per zone since Linux 4.10.
    stalls = [int(count) for key, count in counts.items() if key.startswith("allocstall")]
    if stalls:
        found["allocation_stalls"] = sum(stalls)
    if not found:
        raise ValueError("expected lines such as 'pgmajfault 1', came none")
    return found


def pressure(what: str, text: str) -> dict[str, Value]:
    """/proc/pressure/`what`: stall totals in microseconds, the resolution of their fields."""
    out: dict[str, Value] = {}
    for line in text.splitlines():
        kind, _, rest = line.partition(" ")
        field = PSI_FIELDS.get((what, kind))
        if field is not None:
            out[field] = int(dict(word.split("=", 1) for word in rest.split())["total"])
    return out


def disks(text: str) -> dict[str, Value]:
    """/proc/diskstats: bytes of whole disks; partitions and devices layered over disks count once."""
    sectors = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 10:
            sectors[words[2]] = (int(words[5]), int(words[9]))
    whole = [counts for name, counts in sectors.items() if _whole_disk(name, sectors)]
    if not whole:  # a diskless node reads 0 bytes from local disks: that is known, not unknown
        return {"disk_read_bytes": 0, "disk_written_bytes": 0}
    return {
        "disk_read_bytes": sum(read for read, _ in whole) * SECTOR_BYTES,
        "disk_written_bytes": sum(written for _, written in whole) * SECTOR_BYTES,
    }


def _whole_disk(name: str, known: dict[str, tuple[int, int]]) -> bool:
    if LAYERED.match(name):
        return False
    part = PARTITION.fullmatch(name)
    return part is None or (part["disk"] or part["emmc"]) not in known


def network(text: str) -> dict[str, Value]:
    """/proc/net/dev: bytes of every interface but loopback.

    A byte that crosses a bond or bridge and its member counts on both, as the kernel counts it.
    """
    received = sent = 0
    lines = text.splitlines()[2:]
    for line in lines:
        name, _, rest = line.partition(":")
        words = rest.split()
        if name.strip() != "lo":
            received += int(words[0])
            sent += int(words[8])
    return {"net_received_bytes": received, "net_sent_bytes": sent}


def _pressure_of(what: str) -> Callable[[str], dict[str, Value]]:
    return lambda text: pressure(what, text)


def _missing(file: Path, error: Exception) -> str:
    if file.parent.name == "pressure":
        return (
            f"{file} is not there: pressure (PSI) stays unknown; it needs a kernel with CONFIG_PSI, "
            "booted with psi=1 where it is off by default"
        )
    return f"{file} could not be read ({error}): its fields stay unknown"
