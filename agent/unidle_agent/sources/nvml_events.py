"""What the driver reports of GPUs as it happens: XIDs, memory errors, what it wants done.

Each event comes once, with its code; of an XID the kernel log has the words. `last_xid` is unknown until
the first XID since this process began to listen: NVML does not tell the past. An event that comes while
the poller is replaced is missed here; an XID is still in the kernel log.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from typing import Any

import pynvml

from unidle_agent.sources.nvml_calls import LOST, Problems, address, quietly
from unidle_agent.sources.nvml_direct import call_code, plain
from unidle_agent.wire import Event

XID = pynvml.nvmlEventTypeXidCriticalError
KINDS: dict[int, tuple[str, str]] = {
    XID: ("xid", "the driver reported XID {code}"),
    pynvml.nvmlEventTypeGpuRecoveryAction: ("recovery_action", "the driver changed what it wants done"),
    pynvml.nvmlEventTypeGpuUnavailableError: ("gpu_unavailable", "the GPU became unavailable"),
    pynvml.nvmlEventTypeFatalPoisonError: ("poison_fatal", "poisoned memory was used, fatally"),
    pynvml.nvmlEventTypeNonFatalPoisonError: ("poison", "poisoned memory was contained"),
    pynvml.nvmlEventTypeDramRetirementEvent: ("memory_retired", "device memory was retired"),
    pynvml.nvmlEventTypeDramRetirementFailure: (
        "memory_retirement_failed",
        "device memory could not be retired",
    ),
    pynvml.nvmlEventTypeDoubleBitEccError: ("ecc_uncorrected", "a double-bit memory error"),
    pynvml.nvmlEventTypeSingleBitEccErrorStorm: ("ecc_storm", "a storm of single-bit memory errors"),
}
"""Event type (nvml.h) -> our kind, and words."""
MAX_EVENTS = 256
"""Most events taken at once; the rest waits in the driver."""


_EventData = plain(pynvml.c_nvmlEventData_t)


class NvmlEvents:
    """Listens to the GPUs it is given, until closed."""

    def __init__(self, problems: Problems, time_ns: Callable[[], int] = time.time_ns) -> None:
        self._problems, self._time_ns = problems, time_ns
        self._uuids: dict[int | None, str] = {}
        self._set: Any = None
        self._event = _EventData()
        self._reference = ctypes.byref(self._event)
        try:
            self._set = pynvml.nvmlEventSetCreate()
        except pynvml.NVMLError as error:
            problems.refusal("events", error.value)

    def listen(self, handle: Any, uuid: str) -> None:
        """Hear of this GPU from now on, as far as it has such events."""
        if self._set is None:
            return
        try:
            types = pynvml.nvmlDeviceGetSupportedEventTypes(handle) & sum(KINDS)
            if types:
                pynvml.nvmlDeviceRegisterEvents(handle, types, self._set)
                self._uuids[address(handle)] = uuid
        except pynvml.NVMLError as error:
            if error.value != LOST:
                self._problems.refusal("events", error.value)

    def take(self) -> Iterator[Event]:
        """Every event that is there, oldest first; waits for none."""
        for _ in range(MAX_EVENTS if self._uuids else 0):
            code = call_code("nvmlEventSetWait_v2", self._set, self._reference, 0)
            if code != pynvml.NVML_SUCCESS:
                # 10 is "no event"; a lost GPU says so where it is read.
                if code not in (pynvml.NVML_ERROR_TIMEOUT, LOST):
                    self._problems.error("events", pynvml.NVMLError(code))
                return
            event = self._event
            uuid, known = self._uuids.get(address(event.device)), KINDS.get(event.eventType)
            if uuid and known:
                kind, text = known
                code = int(event.eventData)
                yield Event(self._time_ns(), uuid, kind, code, text.format(code=code))

    def close(self) -> None:
        """Listen no more."""
        if self._set is not None:
            quietly(pynvml.nvmlEventSetFree, self._set)
