"""What a cgroup uses of CPU and memory: version 2, and version 1 where the path is not mounted as 2.

The caller says which cgroup is the job's (`unidle_agent.owners.cgroup`). A file that is not there leaves
its field unknown. Formats: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/ of Linux.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from unidle_agent.sample import Value

CGROUP_ROOT = Path("/sys/fs/cgroup")
NO_LIMIT_BYTES = 1 << 62
"""Version 1 writes no limit as the largest multiple of the page size that fits 63 bits."""
NS_PER_US = 1000


def usage(paths: Mapping[str, str], root: Path = CGROUP_ROOT) -> dict[str, Value]:
    """The job_* fields of one cgroup. `paths`: controller -> path; version 2 has the controller ""."""
    for mount in ("", "unified"):
        folder = root / mount / paths.get("", "").lstrip("/")
        if "" in paths and (cpu := _keyed(folder / "cpu.stat")).get("usage_usec") is not None:
            return _known(
                {
                    "job_cpu_s": cpu["usage_usec"],
                    "job_cpu_throttled_s": cpu.get("throttled_usec"),
                    "job_memory_bytes": _number(folder / "memory.current"),
                    "job_memory_limit_bytes": _number(folder / "memory.max"),
                    "job_oom_kills": _keyed(folder / "memory.events").get("oom_kill"),
                }
            )
    return _usage_v1(paths, root)


def _usage_v1(paths: Mapping[str, str], root: Path) -> dict[str, Value]:
    folders = {name: root / name / path.lstrip("/") for name, path in paths.items() if name}
    out: dict[str, int | None] = {}
    if "cpuacct" in folders:
        out["job_cpu_s"] = _microseconds(_number(folders["cpuacct"] / "cpuacct.usage"))
    if "cpu" in folders:
        out["job_cpu_throttled_s"] = _microseconds(_keyed(folders["cpu"] / "cpu.stat").get("throttled_time"))
    if "memory" in folders:
        limit = _number(folders["memory"] / "memory.limit_in_bytes")
        out["job_memory_bytes"] = _number(folders["memory"] / "memory.usage_in_bytes")
        out["job_memory_limit_bytes"] = limit if limit is not None and limit < NO_LIMIT_BYTES else None
        out["job_oom_kills"] = _keyed(folders["memory"] / "memory.oom_control").get("oom_kill")
    return _known(out)


def _known(values: Mapping[str, int | None]) -> dict[str, Value]:
    return {name: value for name, value in values.items() if value is not None}


def _microseconds(nanoseconds: int | None) -> int | None:
    return None if nanoseconds is None else nanoseconds // NS_PER_US


def _number(file: Path) -> int | None:
    """A file of one number; `max` and what cannot be read are None."""
    text = _text(file).strip()
    return int(text) if text.isdecimal() else None


def _keyed(file: Path) -> dict[str, int]:
    """A file of lines `key number`."""
    pairs = (line.split() for line in _text(file).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
