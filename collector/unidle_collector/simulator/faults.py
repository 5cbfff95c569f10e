"""What goes wrong in the simulated fleet, on which node and when: the plan, and the jobs that live it.

Every fault has its nodes to itself, so that what is found there can be held against it. Times are whole
seconds since the fleet's first sample, or relative to the moment at which the fleet goes live.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from unidle_collector.simulator.jobs import (
    FLOAT32,
    FOREVER_S,
    MEMORY_RATIO,
    Ints,
    Job,
    Segment,
    Staircase,
    healthy,
    settled,
)

NODES_WITH_FAULTS = 42
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
    nodes: int = 1
    """That its job lies on, from `node` on."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One injected fault: the ground truth."""

    kind: str
    cause: str
    node: int
    """The first one."""
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
    Planned("idle", "interactive", 15, -4700, None, one_gpu=True),
    Planned("over_provisioned", "large_gpu", 16, -5100, None, one_gpu=True),
    Planned("over_provisioned", "fewer_gpus", 17, -5100, None),
    Planned("starvation", "host_to_device", 18, -1800, None),
    Planned("starvation", "small_kernels", 19, -3500, None),
    Planned("checkpoint_stall", "checkpoint", 20, -4000, None),
    Planned("tensor_cores_unused", "precision", 21, -4200, None),
    Planned("starvation", "communication", 22, -2300, None, nodes=2),
    Planned("tcp_fallback", "tcp_fallback", 24, -2800, None, nodes=2),
    Planned("pipeline_imbalance", "pipeline_imbalance", 26, -3300, None, nodes=2),
    Planned("straggler", "straggler", 28, -1500, None, nodes=8),
    Planned("pcie", "width", 36, -2000, None, one_gpu=True),
    Planned("silent_zeros", "counters_silent", 37, -1200, None, one_gpu=True),
    Planned("infiniband", "port_down", 38, -600, None),
    Planned("infiniband", "errors", 39, -1000, None),
    Planned("clock_skew", "ahead", 40, -1700, None),
)
LIVE = (
    Planned("throttling_thermal", "cooling_lost", 9, 5, 35, one_gpu=True),
    Planned("throttling_power", "power_brake", 10, 8, 600),
    Planned("gpu_lost", "lost", 14, 12, 900, one_gpu=True),
    Planned("stale_agent", "silent", 41, 20, 300),
)
LIVE_AGAIN_S, LIVE_TIMES = 1800, 48
"""What begins live begins again this often, for a day, so that a demo left running stays alive."""
SHORTEST_HISTORY_S = 3600
"""Every kind of fault begins, and is due, within a history of this length; but for GPUs that are held and
hardly used, of which people are told after an hour."""
EVIDENT_AFTER_S = {"throttling_thermal": 5, "throttling_power": 1}
READS: Mapping[str, Mapping[str, float]] = {
    "xid": {"last_xid": 119, "recovery_action": 1},
    "ecc": {"row_remap_pending": 1},
    "nvlink": {"nvlink_links_up": 12},
    "gpu_lost": {"gpu_state": 1},
    "pcie": {"pcie_width": 8},
}
"""Kind -> what the driver says while it lasts; of a lost GPU it says nothing else."""
XIDS = {"xid": 119, "gpu_lost": 79}
"""Kind -> the XID that it begins with."""
LINK_ERRORS_PER_S = 4.0
CLOCK_AHEAD_S = 8
OF_NODES = {"infiniband", "clock_skew", "stale_agent"}
OF_HARDWARE = {*EVIDENT_AFTER_S, *READS, *OF_NODES, "silent_zeros"}
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


@dataclass(frozen=True, slots=True)
class Course:
    """What a job does that brings a fault with it from its first step on."""

    workload: str
    odd: tuple[str, float, float] | None = None
    """Another workload of a part of its GPUs: what it is, and from which share of them to which."""
    memory_ratio: float = MEMORY_RATIO["tensor_parallel"]
    checkpoint_every_s: int = 0
    checkpoint_s: int = 0
    dtype_code: int | None = None


COURSES: Mapping[str, Course] = {
    "cpu_preprocessing": Course("starved_cpu"),
    "host_to_device": Course("starved_offload", memory_ratio=0.40),
    "small_kernels": Course("small_kernels", memory_ratio=0.20),
    "communication": Course("communication", memory_ratio=0.45),
    "tcp_fallback": Course("tcp_fallback"),
    "pipeline_imbalance": Course("waits_for_others", odd=("tensor_parallel", 0.75, 1.0)),
    "checkpoint": Course("tensor_parallel", checkpoint_every_s=480, checkpoint_s=60),
    "precision": Course("float32", memory_ratio=0.60, dtype_code=FLOAT32),
    "fewer_gpus": Course("compute_bound", odd=("no_process", 0.5, 1.0)),
    "large_gpu": Course("small_service", memory_ratio=0.10),
}
"""Cause -> course."""
TURNS_INTO = {
    "held": "held",
    "no_process": "no_process",
    "interactive": "held",
    "storage": "starved_storage",
    "straggler": "waits_for_others",
}
"""Cause -> what a job that was healthy does from then on."""
PAUSES = 3
"""So many checkpoints make a habit."""


def script(planned: Planned | None, node: int, gpus: Ints, live_s: int, rng: np.random.Generator) -> Script:
    """The jobs of `node` up to and including the fault; `live_s` is when the history was to end."""
    kind = "tensor_parallel" if len(gpus) > 1 else "memory_bound"
    steady = healthy(f"sim-{node:03d}-00", kind, gpus, -7200, FOREVER_S, rng, steady=True)
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
    if planned.cause in COURSES:
        return _from_the_start(steady, fault, COURSES[planned.cause], rng)
    return Script((_turning(steady, fault),), fault)


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


def _turning(job: Job, fault: Fault) -> Job:
    """`job`, but from the fault on it only does what its cause turns it into; killed at the fault's end."""
    end_s = FOREVER_S if fault.end_s is None else fault.end_s
    begin, work = job.segments[0], job.segments[1]
    one = len(job.gpus) // 4 + ONE_GPU
    odd = (work.workload, one, one + 1) if fault.cause == "straggler" else None
    segments = (
        begin,
        Segment(begin.end_s, fault.start_s, work.workload),
        Segment(fault.start_s, end_s, TURNS_INTO[fault.cause], odd),
    )
    return replace(job, end_s=end_s, segments=segments, interactive=fault.cause == "interactive")


def _dying(job: Job, end_s: int) -> Job:
    """`job`, but it ends here, with its GPU."""
    begin = job.segments[0]
    work = Segment(begin.end_s, end_s, job.segments[1].workload)
    return replace(job, end_s=end_s, segments=(begin, work))


def _never(job: Job, rng: np.random.Generator) -> Job:
    """A job on the same GPUs that begins when no demo runs any more: until then nobody has them."""
    return healthy(f"{job.name[:-2]}01", "tensor_parallel", job.gpus, FOREVER_S, 2 * FOREVER_S, rng)


def _from_the_start(before: Job, fault: Fault, course: Course, rng: np.random.Generator) -> Script:
    """A healthy job ends; the next one is at fault from its first step on."""
    up_s, gpus = 120, len(before.gpus)
    start_s = fault.start_s - up_s
    work = before.segments[1].workload
    first = replace(
        before,
        end_s=start_s - 30,
        segments=(before.segments[0], Segment(before.segments[0].end_s, start_s - 30, work)),
    )
    end_s = FOREVER_S if fault.end_s is None else fault.end_s
    odd = None
    if course.odd is not None:
        workload, begin, end = course.odd
        odd = (workload, int(begin * gpus), int(end * gpus))
    never_starts = odd is not None and odd[0] == "no_process"
    second = Job(
        name=f"{before.name[:-2]}01",
        user=before.user,
        gpus=before.gpus,
        start_s=start_s,
        end_s=end_s,
        segments=(
            Segment(start_s, fault.start_s, "start_up", odd if never_starts else None),
            Segment(fault.start_s, end_s, course.workload, odd),
        ),
        memory=settled(start_s, fault.start_s, course.memory_ratio, rng),
        checkpoint_every_s=course.checkpoint_every_s,
        checkpoint_s=course.checkpoint_s,
        seed=int(rng.integers(2**31)),
        dtype_code=course.dtype_code,
    )
    evident_s = start_s + PAUSES * course.checkpoint_every_s if course.checkpoint_every_s else fault.start_s
    return Script((first, second), replace(fault, job=second.name, evident_s=evident_s))


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
