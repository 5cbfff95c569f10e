"""XIDs as the driver's events: each comes once, with its code; the kernel log has the words.

`last_xid` is unknown until the first event since this process began to listen: NVML does not tell the
past. An XID that comes while the poller is replaced is missed here, and still in the kernel log.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pynvml

from unidle_agent.sources.nvml_calls import LOST, Problems, address, quietly

XID = pynvml.nvmlEventTypeXidCriticalError
MAX_EVENTS = 256
"""Most events taken at once; the rest waits in the driver."""


class XidEvents:
    """Listens to the GPUs it is given, until closed."""

    def __init__(self, problems: Problems) -> None:
        self._problems = problems
        self._uuids: dict[int | None, str] = {}
        self._set: Any = None
        try:
            self._set = pynvml.nvmlEventSetCreate()
        except pynvml.NVMLError as error:
            problems.refusal("XID events", error.value)

    def listen(self, handle: Any, uuid: str) -> None:
        """Hear of this GPU from now on, where it has such events."""
        if self._set is None:
            return
        try:
            if pynvml.nvmlDeviceGetSupportedEventTypes(handle) & XID:
                pynvml.nvmlDeviceRegisterEvents(handle, XID, self._set)
                self._uuids[address(handle)] = uuid
        except pynvml.NVMLError as error:
            if error.value != LOST:
                self._problems.refusal("XID events", error.value)

    def take(self) -> Iterator[tuple[str, int]]:
        """UUID and code of every XID that is there, oldest first; waits for none."""
        for _ in range(MAX_EVENTS if self._uuids else 0):
            try:
                event = pynvml.nvmlEventSetWait_v2(self._set, 0)
            except pynvml.NVMLError as error:
                # 10 is "no event"; a lost GPU says so where it is read.
                if error.value not in (pynvml.NVML_ERROR_TIMEOUT, LOST):
                    self._problems.error("XID events", error)
                return
            if event.eventType == XID and (uuid := self._uuids.get(address(event.device))):
                yield uuid, int(event.eventData)

    def close(self) -> None:
        """Listen no more."""
        if self._set is not None:
            quietly(pynvml.nvmlEventSetFree, self._set)
