"""A whole agent whose clock does not wait: many ticks in little time, to see whether memory grows.

    python -m benchmarks.agent_ticks TICKS SECONDS

The settings come from the environment, as for `unidle agent`. The sampler's clock is put forward by what
it would have waited, and its NVML child's by a second per pass (`benchmarks.agent_child`); everything else
(batches, spool with its syncs, pushes) is as it is. Time waits for the disk and for the pushes, which follow
at once: a real agent has 5 s for each batch, and those that pile up behind a slow sync would count as growth.

Every 200 ticks the number of ticks is printed, for others to look at the memory: looking from inside (lists
of processes, paths) takes memory itself. It ends after TICKS ticks or SECONDS seconds.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from unidle_agent import sampler, schedule
from unidle_agent.config import AgentSettings
from unidle_agent.runtime import Agent
from unidle_agent.settings import load

CHILD = "unidle_agent.poller_child"
POPEN = subprocess.Popen
EVERY = 200
MOST_WAITING = 1
"""Batches above which time waits."""


class FastClock(sampler.SystemClock):
    """The system's clock, put forward instead of waited for."""

    def __init__(self) -> None:
        self.ahead_s = 0.0
        self.ticks = 0
        self.between: Callable[[threading.Event], None] = lambda _: None
        """What is to happen between two ticks."""

    def time_ns(self) -> int:
        return super().time_ns() + int(self.ahead_s * 1e9)

    def wait(self, stop: threading.Event, timeout_s: float) -> None:
        self.ahead_s += max(0.0, timeout_s)
        self.ticks += 1
        if self.ticks % EVERY == 0:
            print(self.ticks, flush=True)
        self.between(stop)


def started(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """A process of the agent; its NVML child as the one whose clock is put forward."""
    if CHILD in command:
        # Without -P, which hides the folder of this repository.
        command = ["benchmarks.agent_child" if part == CHILD else part for part in command if part != "-P"]
    return POPEN(command, **options)


def main() -> int:
    """Tick until there were enough or time is up."""
    most, until_s = int(sys.argv[1]), time.monotonic() + float(sys.argv[2])
    clock = FastClock()
    sampler.SystemClock = lambda: clock  # type: ignore[assignment,misc]
    subprocess.Popen = started  # type: ignore[assignment,misc]
    schedule.SPREAD_S = 0.0
    agent = Agent(load(AgentSettings, "agent"))
    stop = threading.Event()

    def between(_: threading.Event) -> None:
        if clock.ticks >= most or time.monotonic() > until_s:
            stop.set()
        while not stop.is_set() and waiting() > MOST_WAITING:
            time.sleep(0.005)

    def waiting() -> int:
        return agent.health().document["push"]["waiting_batches"]  # type: ignore[index,no-any-return]

    clock.between = between
    agent.run(stop)
    return 0


if __name__ == "__main__":
    sys.exit(main())
