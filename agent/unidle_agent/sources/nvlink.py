"""NVLink of one GPU in three numbers: links there, links up, and errors of all links together.

One batch of fields with the link as their scope. Which of the error counters a GPU has differs by
generation: those that no link answers are not asked again, and a sum is over the others.
"""

from __future__ import annotations

from typing import Any

import pynvml

from unidle_agent.sample import Value
from unidle_agent.sources.nvml_calls import VALUE_MEMBERS

STATE = pynvml.NVML_FI_DEV_NVLINK_GET_STATE
SUMS: dict[str, tuple[int, ...]] = {
    "nvlink_errors": tuple(
        range(
            pynvml.NVML_FI_DEV_NVLINK_COUNT_MALFORMED_PACKET_ERRORS,
            pynvml.NVML_FI_DEV_NVLINK_COUNT_XMIT_DISCARDS + 1,
        )
    ),
    "nvlink_recoveries_failed": (pynvml.NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_FAILED_EVENTS,),
    "nvlink_recoveries": (pynvml.NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_EVENTS,),
}
"""Counter -> the fields that it is the sum of, over all links."""

MOST_LINKS = pynvml.NVML_NVLINK_MAX_LINKS


class NvLinks:
    """The NVLinks of one GPU; remembers how many there are and which counters they have."""

    def __init__(self, handle: Any) -> None:
        """Raises pynvml.NVMLError: 3 where the GPU has none."""
        self._handle = handle
        self._ids = {STATE, *(number for ids in SUMS.values() for number in ids)}
        (count,) = pynvml.nvmlDeviceGetFieldValues(handle, [pynvml.NVML_FI_DEV_NVLINK_LINK_COUNT])
        _raise(count.nvmlReturn)
        self._links = min(int(count.value.uiVal), MOST_LINKS)
        if self._links == 0:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    def read(self) -> dict[str, Value]:
        """All that the links answer; raises pynvml.NVMLError."""
        asked = [(number, link) for number in sorted(self._ids) for link in range(self._links)]
        found: dict[int, int] = {}
        for (number, _), entry in zip(
            asked, pynvml.nvmlDeviceGetFieldValues(self._handle, asked), strict=True
        ):
            if entry.nvmlReturn == pynvml.NVML_ERROR_GPU_IS_LOST:
                _raise(entry.nvmlReturn)
            if entry.nvmlReturn == pynvml.NVML_SUCCESS:
                found[number] = found.get(number, 0) + _whole(entry)
        self._ids = set(found)
        values: dict[str, Value] = {"nvlink_links": self._links}
        if STATE in found:
            values["nvlink_links_up"] = found[STATE]
        for name, numbers in SUMS.items():
            if found.keys() & set(numbers):
                values[name] = sum(found.get(number, 0) for number in numbers)
        return values


def _whole(entry: Any) -> int:
    return int(getattr(entry.value, VALUE_MEMBERS[entry.valueType]))


def _raise(code: int) -> None:
    if code != pynvml.NVML_SUCCESS:
        raise pynvml.NVMLError(code)
