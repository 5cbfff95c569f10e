"""Faults that dcgm-exporter pages count, told as events: what is more on a page than on the one before.

`DCGM_EXP_XID_ERRORS_TOTAL` (4.8.3 and newer, off by default) has a series per GPU and XID from the first one
on, counted since the exporter was started. The SXids of NVSwitches are last values, which stick, under two
generations of names. The first page, and the first after the exporter was started anew (a count is lower, or
gone), say what has been, not what is new. The sticky last XID is a field, `last_xid`; where both tell the
same XID, `unidle_agent.faults` and the collector take them for one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from unidle_agent.dcgm_values import INT32_BLANK
from unidle_agent.wire import COUNTED_WORDS, NODE, SXID, SXID_FATAL, Event, part_of_switch

XIDS_COUNTED = "DCGM_EXP_XID_ERRORS_TOTAL"
LAST_SXIDS = {
    "DCGM_FI_DEV_NVSWITCH_FATAL_ERRORS": SXID_FATAL,
    "DCGM_FI_DEV_SXID_FATAL_ERROR": SXID_FATAL,
    "DCGM_FI_DEV_NVSWITCH_NON_FATAL_ERRORS": SXID,
    "DCGM_FI_DEV_SXID_NON_FATAL_ERROR": SXID,
}
"""Family -> kind of event (DCGM 4.6 and 4.7 field lists)."""
FAMILIES = frozenset({XIDS_COUNTED, *LAST_SXIDS})


@dataclass(slots=True)
class Counted:
    """What one page says of faults."""

    xids: dict[tuple[str, int], int] = field(default_factory=dict)
    """(UUID, XID) -> how many since the exporter was started."""
    sxids: dict[tuple[str, int], int] = field(default_factory=dict)
    """(kind of event, switch and link as in `Event.part`) -> last SXid, 0 for none."""

    def take(self, family: str, uuid: str, labels: Mapping[str, str], value: object) -> bool:
        """Take in a sample of one of FAMILIES; False where it says nothing: no code, no switch, no value."""
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or not 0 <= value < INT32_BLANK:
            return False
        if family == XIDS_COUNTED:
            code = labels.get("xid") or labels.get("err_code", "")
            if not uuid or not code.isdecimal():
                return False
            key = uuid.partition("/GI")[0], int(code[:6])  # every instance of a GPU repeats its count
            self.xids[key] = max(value, self.xids.get(key, 0))
            return True
        switch, link = _number(labels.get("nvswitch", "")), _number(labels.get("nvlink", ""))
        if switch is None:
            return False
        self.sxids[LAST_SXIDS[family], part_of_switch(switch, link)] = value
        return True


class News:
    """Finds what is new from page to page of one exporter."""

    def __init__(self) -> None:
        self._before: Counted | None = None

    def events(self, page: Counted, time_ns: int, *, whole: bool) -> tuple[Event, ...]:
        """One event per fault that came since the page before; `whole` says that no line is missing."""
        before = self._before
        if before is None or _restarted(before, page, whole=whole):
            self._before = page
            return ()
        out = [
            Event(time_ns, uuid, "xid", code, f"{COUNTED_WORDS}{more} more")
            for (uuid, code), count in page.xids.items()
            if (more := count - before.xids.get((uuid, code), 0)) > 0
        ]
        out += [
            Event(time_ns, NODE, kind, code, f"{COUNTED_WORDS}last SXid", part)
            for (kind, part), code in page.sxids.items()
            if code and code != before.sxids.get((kind, part), 0)
        ]
        self._before = page if whole else Counted(before.xids | page.xids, before.sxids | page.sxids)
        return tuple(out)


def _restarted(before: Counted, page: Counted, *, whole: bool) -> bool:
    """Is any count lower than it was, or gone from a whole page."""
    return any(page.xids.get(key, 0 if whole else count) < count for key, count in before.xids.items())


def _number(label: str) -> int | None:
    """`3`, or `nvswitch3`."""
    digits = label.lstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_")
    return int(digits) if digits.isdecimal() and len(digits) < 4 else None
