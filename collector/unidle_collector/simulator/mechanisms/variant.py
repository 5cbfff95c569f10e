"""What a variant says: ranges, from which each trial draws once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Set = Literal["tuning", "held_out"]
Range = tuple[float, float]
"""Lowest and highest value; drawn uniformly."""
NONE: Range = (0.0, 0.0)
HEALTHY = "healthy"
"""The truth of time in which nothing is lost."""
WEIGHT_OF_IDLE_S = 120.0
"""A gap without any work longer than this is idle, a shorter one is not (accounts: grace of a held GPU)."""
WEIGHT_OF_SESSION_S = 900.0
"""The same in an interactive session."""


def draw(ends: Range, rng: np.random.Generator) -> float:
    """A value of the range."""
    return float(rng.uniform(*ends))


@dataclass(frozen=True, slots=True)
class Levels:
    """What a GPU shows while it does one thing: ratios 0-1, power as a share of the limit, GB/s."""

    util: Range = (0.99, 1.0)
    sm: Range = (0.82, 0.92)
    tensor: Range = (0.45, 0.62)
    dram: Range = (0.3, 0.45)
    power: Range = (0.85, 1.15)
    """Above 1 it runs at its limit, with the software power-cap bit set all the time."""
    pcie_rx: Range = (0.02, 0.06)
    pcie_tx: Range = (0.01, 0.04)
    nvlink: Range = (1.0, 6.0)


WAITING = Levels(NONE, NONE, NONE, NONE, (0.165, 0.185), (0.0, 0.002), (0.0, 0.002), NONE)
"""A loaded GPU between two pieces of work: 120 of 700 W on H100."""


SPINNING = Levels(
    (0.99, 1.0), (0.25, 0.45), (0.0, 0.01), (0.01, 0.04), (0.34, 0.44), (0.02, 0.06), (0.01, 0.04), (1.0, 6.0)
)
"""A rank in a collective, until the others come: 45 to 50 % SM at 60 % of the power on 8xH100, work included."""
EVEN_SHARE = 0.9
WAVERS = 0.01


@dataclass(frozen=True, slots=True)
class Host:
    """What its node shows meanwhile: shares of time 0-1, MB/s for the whole node."""

    cpu: Range = (0.05, 0.2)
    iowait: Range = (0.0, 0.01)
    psi_io: Range = (0.0, 0.03)
    psi_cpu: Range = (0.0, 0.04)
    job_throttled: Range = NONE
    """Seconds per second for which the job's cgroup was held back."""
    nfs_read: Range = (0.0, 30.0)
    disk_read: Range = (0.0, 40.0)
    disk_written: Range = (0.0, 20.0)
    ethernet: Range = (1.0, 40.0)
    """Received."""
    ethernet_sent: Range = (1.0, 20.0)
    infiniband: Range = (0.0, 50.0)
    ib_ports: Range = (8.0, 8.0)
    """Ports whose link is active; below 0 nothing of InfiniBand is known."""


@dataclass(frozen=True, slots=True)
class Cycle:
    """Work and waiting in turn; each piece is drawn anew."""

    busy_s: Range
    wait_s: Range
    together: bool = True
    """All GPUs of the job in phase."""
    steady: bool = False
    """The pieces of one job are as long as each other, within WAVERS: steps of a training."""


@dataclass(frozen=True, slots=True)
class Slow:
    """Lower clocks, and what the driver says of them."""

    bits: int
    """Clock event reasons of nvml.h."""
    clock: Range
    """Over the clock of an unthrottled GPU."""
    counter: str = ""
    """The throttle-time counter that grows, where there is one."""
    cycle: Cycle | None = None
    """The driver lets go and seizes again; None holds all the time."""
    temperature: Range = (60.0, 72.0)
    ramp_s: Range = (1.0, 2.0)
    """How long the clocks take to fall."""


@dataclass(frozen=True, slots=True)
class Pipes:
    """Which pipes the work keeps busy beside the tensor cores, as shares of cycles at full work, 0-1."""

    fp32: Range = (0.02, 0.08)
    fp64: Range = NONE
    dtype_code: float = float("nan")
    """The number format that a reporter inside the job names; NaN: there is no reporter."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way in which one mechanism comes about."""

    name: str
    set: Set
    truth: str
    """`kind.cause`, or HEALTHY."""
    work: Levels = Levels()
    wait: Levels = WAITING
    host: Host = Host()
    pipes: Pipes = Pipes()
    ipoib: Range = NONE
    """Bytes that InfiniBand counts over those of the interfaces, whose packets and headers it carries; NONE: it
    carries `host.infiniband` on its own."""
    wait_host: Host | None = None
    """What its node shows while the job waits; None: the same."""
    cycle: Cycle | None = None
    slow: Slow | None = None
    gpu_state: int = 0
    """What the driver says of a GPU that does not answer."""
    process: bool = True
    """False: nobody opens the GPU."""
    interactive: bool = False
    """Does a person sit at it; the recording says so by the job's name."""
    said: bool | None = None
    """Does the recording name the job; None: some do."""
    before: Range = (300.0, 780.0)
    """Seconds of healthy work of the same job before it begins; (0, 0): from the first step on."""
    load_s: Range = (20.0, 180.0)
    """Model load at first."""
    affected: Range = (1.0, 1.0)
    """Share of the job's GPUs."""
    nodes: int = 1
    """That the job's GPUs lie on, as many on each."""
    step_share: tuple[Range, ...] = ()
    """Of each block of neighbouring GPUs, all of one size: the share of each step in which it works, else it
    spins (`wait`). Work over EVEN_SHARE is healthy. The others share their draw where two ranges are the same."""
    step_s: Range = NONE
    """How long a step is; (0, 0): too short to be seen in a sample. Who works a share of it does so at first."""
    shuffled: bool = False
    """Which block has which share is drawn."""
    memory: Range = (0.3, 0.9)
    models: tuple[str, ...] = ("NVIDIA H100 80GB HBM3",)
