"""The NVML child of `agent_ticks`: a second lies between two passes, however soon they come.

So what is asked every 10, 15 or 60 s is asked as often as in real time, and grows as it would there.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

from unidle_agent import poller_child
from unidle_agent.sample import GpuReading
from unidle_agent.sources import nvml
from unidle_agent.sources.nvml_calls import Values
from unidle_agent.sources.nvml_device import Device

PASS_S = 1.0


class AheadSource(nvml.NvmlSource):
    """NVML, read at a clock that a pass puts forward."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self._ahead_s = 0.0
        super().__init__(*arguments, monotonic=lambda: time.monotonic() + self._ahead_s, **settings)

    def readings(self, *arguments: Any, **settings: Any) -> Iterator[GpuReading]:
        self._ahead_s += PASS_S
        return super().readings(*arguments, **settings)

    def _ask_gpm(self, device: Device, gpu_handle: Any) -> Values:
        """At the real clock: the library measures the time between two samples itself."""
        ahead_s, self._ahead_s = self._ahead_s, 0.0
        try:
            return super()._ask_gpm(device, gpu_handle)
        finally:
            self._ahead_s = ahead_s


if __name__ == "__main__":
    nvml.NvmlSource = AheadSource  # type: ignore[misc]
    sys.exit(poller_child.main(sys.argv[1:]))
