"""What goes wrong in the simulated fleet, on which node and when: the plan, and the jobs that live it.

Every fault has a node to itself, so that what is found there can be held against it. Times are whole
seconds since the fleet's first sample, or relative to the moment at which the fleet goes live.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from unidle_collector.simulator.jobs import (
    FOREVER_S,
    MEMORY_RATIO,
    Ints,
    Job,
    Segment,
    Staircase,
    healthy,
    settled,
)

NODES_WITH_FAULTS = 15
"""The first nodes of the fleet."""
ONE_GPU = 3
"""The GPU of a node that has a fault of its own."""
LEAK_FROM_RATIO, LEAK_TO_RATIO, LEAK_S = 0.60, 0.97, 2400
OUT_OF_MEMORY_RATIO = 0.985
"""The next allocation fails here and the job dies."""
AT_RISK_RATIO = 0.905
"""Less than 10 % of the memory is left, with a little to spare."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One fault of the plan."""

    kind: str
    """The detector that must find it."""
    cause: str
    node: int
    start_s: int
    """Relative to going live: negative in history."""
    lasts_s: int | None
    """None: until the end, or until something follows from it."""
    one_gpu: bool = False
    ends_live_s: int | None = None
    """A fault of the history that ends this long after going live."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One injected fault: the ground truth."""

    kind: str
    cause: str
    node: int
    gpus: Ints
    """Positions in the fleet."""
    job: str
    start_s: int
    end_s: int | None
    """None: not over yet."""
    evident_s: int
    """From here on the samples show it; a detector's own delay comes on top."""


HISTORY = (
    Planned("idle", "held", 0, -3900, None),
    Planned("idle", "no_process", 1, -3000, None),
    Planned("idle", "held", 2, -5100, 2400),
    Planned("starvation", "storage", 3, -2700, None),
    Planned("starvation", "cpu_preprocessing", 4, -2200, None),
    Planned("oom_risk", "leak", 5, -5200, None),
    Planned("oom_risk", "leak", 6, -2150, None),
    Planned("throttling_thermal", "cooling_lost", 7, -3000, 600),
    Planned("throttling_power", "power_brake", 8, -900, None, ends_live_s=15),
    Planned("xid", "reset", 11, -1500, None, one_gpu=True),
    Planned("ecc", "remap_pending", 12, -2400, None, one_gpu=True),
    Planned("nvlink", "links_down", 13, -1900, None, one_gpu=True),
)
LIVE = (
    Planned("throttling_thermal", "cooling_lost", 9, 5, 35, one_gpu=True),
    Planned("throttling_power", "power_brake", 10, 8, 600),
    Planned("gpu_lost", "lost", 14, 12, 900, one_gpu=True),
)
LIVE_AGAIN_S, LIVE_TIMES = 1800, 48
"""What begins live begins again this often, for a day, so that a demo left running stays alive."""
SHORTEST_HISTORY_S = 3600
"""Every kind of fault begins, and is due, within a history of this length."""
EVIDENT_AFTER_S = {"throttling_thermal": 5, "throttling_power": 1}
READS: Mapping[str, Mapping[str, float]] = {
    "xid": {"last_xid": 119, "recovery_action": 1},
    "ecc": {"row_remap_pending": 1},
    "nvlink": {"nvlink_links_up": 12},
    "gpu_lost": {"gpu_state": 1},
}
"""Kind -> what the driver says while it lasts; of a lost GPU it says nothing else."""
XIDS = {"xid": 119, "gpu_lost": 79}
"""Kind -> the XID that it begins with."""
OF_HARDWARE = {*EVIDENT_AFTER_S, *READS}
"""Kinds that come over whatever job is there; the others are a job's own."""
JOB_DIES_AFTER_S = 20
SPARE = {fault.node for fault in LIVE if fault.kind == "gpu_lost"}
"""Nodes that nobody has: the GPU of one falls off the bus when that surprises no job."""


def planned_history(history_s: int) -> tuple[Planned, ...]:
    """The faults of a history of this length: those that have at least two minutes before them."""
    return tuple(fault for fault in HISTORY if fault.start_s + history_s >= 120)


def planned_live() -> tuple[Planned, ...]:
    """The faults that begin after going live."""
    return tuple(
        replace(fault, start_s=fault.start_s + turn * LIVE_AGAIN_S)
        for turn in range(LIVE_TIMES)
        for fault in LIVE
    )


@dataclass(frozen=True, slots=True)
class Script:
    """What happens on one of the nodes with faults."""

    jobs: tuple[Job, ...]
    fault: Fault | None
    """The fault that a job brings with it; None where the hardware is at fault or nothing is."""


def script(planned: Planned | None, node: int, gpus: Ints, live_s: int, rng: np.random.Generator) -> Script:
    """The jobs of `node` up to and including the fault; `live_s` is when the history was to end."""
    steady = healthy(f"sim-{node:03d}-00", "tensor_parallel", gpus, -7200, FOREVER_S, rng, steady=True)
    if node in SPARE:
        return Script((_never(steady, rng),), None)
    if planned is None or (planned.kind in OF_HARDWARE and planned.kind not in XIDS):
        return Script((steady,), None)
    start_s = live_s + planned.start_s
    if planned.kind in XIDS:
        return Script((_dying(steady, start_s + JOB_DIES_AFTER_S), _never(steady, rng)), None)
    end_s = None if planned.lasts_s is None else start_s + planned.lasts_s
    fault = Fault(planned.kind, planned.cause, node, gpus, steady.name, start_s, end_s, start_s)
    if planned.kind == "oom_risk":
        return _leaking(steady, fault, rng)
    if planned.cause == "cpu_preprocessing":
        return _badly_fed_from_the_start(steady, fault, rng)
    turns_into = {"held": "held", "no_process": "no_process", "storage": "starved_storage"}[planned.cause]
    return Script((_turning(steady, turns_into, start_s, end_s),), fault)


def jobs_of(script: Script, rng: np.random.Generator) -> Iterator[Job]:
    """The script's jobs, then a healthy one for ever on the same GPUs."""
    yield from script.jobs
    last = script.jobs[-1]
    number = len(script.jobs)
    while True:
        start_s = last.end_s + int(rng.integers(20, 50))
        name = f"{last.name[:-2]}{number:02d}"
        last = healthy(name, "tensor_parallel", last.gpus, start_s, start_s + FOREVER_S, rng)
        yield last
        number += 1


def _turning(job: Job, workload: str, start_s: int, end_s: int | None) -> Job:
    """`job`, but from `start_s` on it only does `workload`; killed at `end_s`."""
    end = FOREVER_S if end_s is None else end_s
    begin, work = job.segments[0], job.segments[1]
    memory = job.memory
    if workload == "no_process":
        memory = Staircase(np.append(memory.times_s, start_s), np.append(memory.ratios, 0.0))
    segments = (
        begin,
        Segment(begin.end_s, start_s, work.workload),
        Segment(start_s, end, workload),
    )
    return replace(job, end_s=end, segments=segments, memory=memory)


def _dying(job: Job, end_s: int) -> Job:
    """`job`, but it ends here, with its GPU."""
    begin = job.segments[0]
    work = Segment(begin.end_s, end_s, job.segments[1].workload)
    return replace(job, end_s=end_s, segments=(begin, work))


def _never(job: Job, rng: np.random.Generator) -> Job:
    """A job on the same GPUs that begins when no demo runs any more: until then nobody has them."""
    return healthy(f"{job.name[:-2]}01", "tensor_parallel", job.gpus, FOREVER_S, 2 * FOREVER_S, rng)


def _badly_fed_from_the_start(before: Job, fault: Fault, rng: np.random.Generator) -> Script:
    """A healthy job ends; the next one's data loader is too slow from its first step on."""
    up_s = 120
    start_s = fault.start_s - up_s
    first = replace(
        before,
        end_s=start_s - 30,
        segments=(before.segments[0], Segment(before.segments[0].end_s, start_s - 30, "tensor_parallel")),
    )
    end_s = FOREVER_S if fault.end_s is None else fault.end_s
    second = Job(
        name=f"{before.name[:-2]}01",
        user=before.user,
        gpus=before.gpus,
        start_s=start_s,
        end_s=end_s,
        segments=(
            Segment(start_s, fault.start_s, "start_up"),
            Segment(fault.start_s, end_s, "starved_cpu"),
        ),
        memory=settled(start_s, fault.start_s, MEMORY_RATIO["tensor_parallel"], rng),
        checkpoint_every_s=0,
        checkpoint_s=0,
        seed=int(rng.integers(2**31)),
    )
    return Script((first, second), replace(fault, job=second.name))


def _leaking(job: Job, fault: Fault, rng: np.random.Generator) -> Script:
    """Memory rises in steps of uneven size, without flattening, until the job dies of it."""
    slope = (LEAK_TO_RATIO - LEAK_FROM_RATIO) / LEAK_S
    until_s = int((OUT_OF_MEMORY_RATIO - LEAK_FROM_RATIO) / slope)
    steps_s = np.unique(np.append(rng.integers(1, until_s, 120), until_s))
    leak = LEAK_FROM_RATIO + slope * steps_s
    base = settled(job.start_s, job.segments[0].end_s, LEAK_FROM_RATIO, rng)
    memory = Staircase(
        np.concatenate([base.times_s, fault.start_s + steps_s]), np.concatenate([base.ratios, leak])
    )
    end_s = fault.start_s + until_s
    evident_s = fault.start_s + int(steps_s[np.argmax(leak >= AT_RISK_RATIO)])
    segments = (job.segments[0], Segment(job.segments[0].end_s, end_s, "tensor_parallel"))
    died = replace(job, end_s=end_s, segments=segments, memory=memory)
    return Script((died,), replace(fault, end_s=end_s, evident_s=evident_s))
