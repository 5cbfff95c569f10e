"""What the NVIDIA driver writes into the kernel log: XIDs of GPUs and SXids of NVSwitches, line by line.

    NVRM: Xid (PCI:0000:9b:00): 31, pid=4242, name=python3, Ch 00000008, MMU Fault: ...
    nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 20034, Fatal, Link 30 ...

Process and name may be quoted, '<unknown>' or absent, and an SXid may have `Severity 1 Engine instance ...`
in the place of its class. Only what stands up to the first comma after the code is the code: the words
after it may hold anything, a second "Xid" and the name that a user gave a process included. So they are
bounded, and plain letters, before anybody sees them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

MOST_NAME = 15
"""Bytes of a process's name in the kernel (TASK_COMM_LEN less its end)."""
MOST_WORDS = 160
"""Characters of a line's words that are kept."""

_PCI = r"([0-9a-fA-F]{4,8}):([0-9a-fA-F]{2}):([0-9a-fA-F]{2})(?:\.[0-7])?"
_ADDRESS = re.compile(_PCI)
_XID = re.compile(rf"NVRM: Xid \(PCI:{_PCI}[^)]{{0,24}}\): (\d{{1,6}})(?![^,\s])(.*)", re.DOTALL)
_SXID = re.compile(
    rf"nvidia-nvswitch(\d{{1,3}}): SXid \(PCI:{_PCI}\): (\d{{5}}), *((?:fatal|non-fatal|severity|data)\b.*)",
    re.DOTALL | re.IGNORECASE,
)
_PID = re.compile(r",?\s*pid='?(\d{1,10}|<unknown>)'?(?:,\s*|$)")
_LINK = re.compile(r"\bLink (\d{1,3})\b")
_STRANGE = re.compile(r"[^A-Za-z0-9 .,:;()_=+/@%#-]+")


@dataclass(frozen=True, slots=True)
class XidLine:
    """One line about a GPU."""

    pci: str
    """As `pci_address` gives it."""
    code: int
    pid: int | None
    """In the ids of the machine, not of a container; None where the line names none."""
    name: str
    """Of the process; empty where the line names none. A user chooses it."""
    words: str
    """What follows."""


@dataclass(frozen=True, slots=True)
class SxidLine:
    """One line about an NVSwitch."""

    switch: int
    pci: str
    code: int
    fatal: bool | None
    """By the line's own word; None where it has none, as the lines that follow the first one of an error."""
    link: int | None
    words: str


@lru_cache(maxsize=256)
def pci_address(text: str) -> str | None:
    """`text` as the kernel log writes it: domain of 4 digits, no function, lower case; None for no address.

    NVML and dcgm-exporter write 00000000:9B:00.0, the log 0000:9b:00.
    """
    found = _ADDRESS.fullmatch(text.strip())
    return _address(*found.groups()) if found else None


def parse(line: str) -> XidLine | SxidLine | None:
    """What one message of the kernel log says; None for anything else, garbled ones included."""
    if found := _XID.match(line):
        domain, bus, device, code, rest = found.groups()
        pid, name, words = _process(rest)
        words = words.partition("name=")[0]  # a driver that names a process elsewhere, too
        return XidLine(_address(domain, bus, device), int(code), pid, plain(name), plain(words))
    if found := _SXID.match(line):
        switch, domain, bus, device, code, rest = found.groups()
        fatal = {"fatal": True, "non-f": False}.get(rest[:5].casefold())
        link = _LINK.search(rest)
        return SxidLine(
            switch=int(switch),
            pci=_address(domain, bus, device),
            code=int(code),
            fatal=fatal,
            link=int(link[1]) if link else None,
            words=plain(rest),
        )
    return None


def plain(text: str) -> str:
    """`text` as it can be shown anywhere: no markup, no control characters, of bounded length."""
    words = " ".join(_STRANGE.sub("?", " ".join(text.split())).split()).strip(" ,")
    return words if len(words) <= MOST_WORDS else words[: MOST_WORDS - 3] + "..."


def _address(domain: str, bus: str, device: str) -> str:
    return f"{int(domain, 16):04x}:{bus}:{device}".lower()


def _process(rest: str) -> tuple[int | None, str, str]:
    """(pid, name of the process, words) of what follows the code."""
    found = _PID.match(rest)
    if not found:
        return None, "", rest
    pid = int(found[1]) if found[1].isdecimal() else None
    rest = rest[found.end() :]
    if not rest.startswith("name="):
        return pid, "", rest
    rest = rest.removeprefix("name=")
    # A name may hold commas: all that can be of it is taken for it, and no part of it is left in the words.
    end = rest.rfind(",", 0, MOST_NAME + 3)
    end = rest.find(",") if end < 0 else end
    name, words = (rest, "") if end < 0 else (rest[:end], rest[end:])
    name = name.strip().strip("'")
    return pid, "" if name == "<unknown>" else name, words
