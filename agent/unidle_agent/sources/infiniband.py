"""InfiniBand and RoCE ports, from /sys/class/infiniband, summed over all ports of the node.

Read every 10 s, because a card answers for each counter by its firmware; at the ticks between, there is no
value, and a counter loses nothing by that. When ports or their errors turned bad, those are read again at the
next ticks (`unidle_agent.recheck`). Data counters are 4-byte words. A counter that a card does not
have is left out of the sum; where no card has it, the field is unknown. Only ports of one kind of link
(InfiniBand, Ethernet) are compared in rate; a slower card that is meant for storage shows as a slow port.
Names: Documentation/ABI/stable/sysfs-class-infiniband of Linux.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from unidle_agent.recheck import Rechecks, infiniband_signs
from unidle_agent.sample import Reading, Value
from unidle_agent.sources import Rest

PERIOD_S = 10.0
WORD_BYTES = 4
ACTIVE = "4"
"""First word of `state`: 4 is ACTIVE."""
LINK_ERRORS = (
    "symbol_error",
    "link_downed",
    "link_error_recovery",
    "local_link_integrity_errors",
    "port_rcv_errors",
    "port_xmit_discards",
    "excessive_buffer_overrun_errors",
    "VL15_dropped",
)
COUNTERS: dict[str, tuple[tuple[str, ...], int]] = {
    "ib_received_bytes": (("port_rcv_data",), WORD_BYTES),
    "ib_sent_bytes": (("port_xmit_data",), WORD_BYTES),
    "ib_transmit_waits": (("port_xmit_wait",), 1),
    "ib_link_errors": (LINK_ERRORS, 1),
}
"""Field -> the files of `counters/` that it sums, and what one of them counts."""


class InfinibandSource:
    """The ports under `root`; a node without any has no fields."""

    name = "infiniband"
    precedence = 50

    def __init__(
        self, root: Path = Path("/sys/class/infiniband"), *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._root = root
        self._monotonic = monotonic
        self._rest = Rest(PERIOD_S, monotonic)
        self._again = Rechecks()

    def due(self) -> bool:
        """Is it time to ask the cards again."""
        return self._rest.over or self._again.due(self._monotonic())

    def read(self) -> Reading:
        """All ports; before their time their states and errors only."""
        wanted = COUNTERS if self._rest.over else ("ib_link_errors",)
        if self._rest.over:
            self._rest.begin()
        else:
            self._again.spend(self._monotonic())
        ports = sorted(self._root.glob("*/ports/*"))
        if not ports:
            return Reading()
        host = {**_states(ports), **_counts(ports, wanted)}
        self._again.note(infiniband_signs(host))
        return Reading(host=host)

    def close(self) -> None:
        """Nothing is held."""


def _counts(ports: list[Path], wanted: Iterable[str]) -> dict[str, Value]:
    out: dict[str, Value] = {}
    for field in wanted:
        files, size = COUNTERS[field]
        counts = [count for port in ports for file in files if (count := _count(port / "counters" / file))]
        known = [int(count) for count in counts if count.isdecimal()]
        if known:
            out[field] = sum(known) * size
    return out


def _states(ports: list[Path]) -> dict[str, Value]:
    rates: dict[str, list[float]] = {}
    active = 0
    for port in ports:
        if _count(port / "state").partition(":")[0] != ACTIVE:
            continue
        active += 1
        rate = _count(port / "rate").partition(" ")[0]  # "400 Gb/sec (4X NDR)"
        if rate.replace(".", "", 1).isdecimal():
            rates.setdefault(_count(port / "link_layer"), []).append(float(rate))
    slow = sum(rate < max(same) for same in rates.values() for rate in same)
    return {"ib_ports_active": active, "ib_ports_inactive": len(ports) - active, "ib_ports_slow": slow}


def _count(file: Path) -> str:
    """The file's text, empty where it cannot be read: cards differ in what they have."""
    try:
        return file.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
