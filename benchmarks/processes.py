"""What a process and all below it take, from /proc; and a port for it."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    """`pid` and every process below it."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdecimal() and (fields := _stat(int(path.name))):
            children.setdefault(int(fields[1]), []).append(int(path.name))
    found, open_ = [], [pid]
    while open_:
        one = open_.pop()
        found.append(one)
        open_ += children.get(one, [])
    return found


def pss_mib(pid: int) -> float:
    """Proportional set size of the tree: a page that n processes share counts one nth in each."""
    return sum(_rollup_kib(one, "Pss:") for one in tree(pid)) / 1024


def private_mib(pid: int) -> float:
    """What the tree shares with nobody: PSS depends on who else runs, this does not."""
    names = ("Private_Clean:", "Private_Dirty:")
    return sum(_rollup_kib(one, name) for one in tree(pid) for name in names) / 1024


def anonymous_mib(pid: int) -> float:
    """What the tree has allocated. PSS also moves when other programs come and go, a leak shows here."""
    return sum(_rollup_kib(one, "Anonymous:") for one in tree(pid)) / 1024


def cpu_s(pid: int) -> float:
    """User and system time of the tree, children that have ended included."""
    ticks = 0
    for one in tree(pid):
        if fields := _stat(one):
            ticks += sum(int(fields[number]) for number in (11, 12, 13, 14))  # utime to cstime, proc(5)
    return ticks / TICKS_PER_S


def peak_rss_mib(pid: int) -> float:
    """Most resident memory that each process of the tree ever had, together."""
    total_kib = 0
    for one in tree(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            lines = Path(f"/proc/{one}/status").read_text(encoding="ascii", errors="replace").splitlines()
            total_kib += sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return total_kib / 1024


def free_port() -> int:
    """On loopback, free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _stat(pid: int) -> list[str]:
    """The fields behind the name, from `state` on; empty where the process is gone."""
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        )
    except (FileNotFoundError, ProcessLookupError):
        return []


def _rollup_kib(pid: int, name: str) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith(name)), 0)
