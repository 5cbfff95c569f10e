"""What a process and all below it take: proportional memory and processor time, from /proc."""

from __future__ import annotations

import os
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
