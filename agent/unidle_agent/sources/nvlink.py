"""NVLink of one GPU in three numbers: links there, links up, and errors of all links together.

One batch of fields with the link as their scope. Which of the error counters a GPU has differs by
generation: those that no link answers are not asked again, and a sum is over the others.
"""

from __future__ import annotations

from typing import Any

import pynvml

from unidle_agent.sample import Value
from unidle_agent.sources.nvml_direct import FieldBatch

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
        ((code, count),) = FieldBatch(handle, [(pynvml.NVML_FI_DEV_NVLINK_LINK_COUNT, 0)]).ask()
        _raise(code)
        self._links = min(int(count), MOST_LINKS)
        if self._links == 0:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        self._plan()

    def read(self) -> dict[str, Value]:
        """All that the links answer; raises pynvml.NVMLError."""
        found: dict[int, int] = {}
        for number, (code, value) in zip(self._asked, self._batch.ask(), strict=True):
            if code == pynvml.NVML_ERROR_GPU_IS_LOST:
                _raise(code)
            if code == pynvml.NVML_SUCCESS:
                found[number] = found.get(number, 0) + int(value)
        if found.keys() != self._ids:
            self._ids = set(found)
            self._plan()
        values: dict[str, Value] = {"nvlink_links": self._links}
        if STATE in found:
            values["nvlink_links_up"] = found[STATE]
        for name, numbers in SUMS.items():
            if found.keys() & set(numbers):
                values[name] = sum(found.get(number, 0) for number in numbers)
        return values

    def _plan(self) -> None:
        """Every counter of every link, to be asked in one call."""
        wanted = [(number, link) for number in sorted(self._ids) for link in range(self._links)]
        self._asked = [number for number, _ in wanted]
        self._batch = FieldBatch(self._handle, wanted)


def _raise(code: int) -> None:
    if code != pynvml.NVML_SUCCESS:
        raise pynvml.NVMLError(code)
