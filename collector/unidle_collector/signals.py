"""From one step of samples to what the detectors look at: activity, allocation, windows, grace.

One step is one sampling period of the whole fleet, [end - period, end], on event time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from unidle_collector.inventory import NO, UNSAID, YES, Inventory
from unidle_collector.pergpu import NEVER, SECOND_NS, Bools, Floats, PerGpu, RunningMean, Times, known_or
from unidle_collector.signs.sampling import Sampling
from unidle_collector.signs.silence import believed, silent

ACTIVITY = ("gpu_util_ratio", "sm_active_ratio", "graphics_active_ratio")
"""The most of these that is known says whether anything ran."""
NOTHING_RAN = 0.01
"""Activity below this is nothing: profilers have a noise floor, exactly 0 misses idle GPUs (gpu-pruner)."""
BLIP = 0.05
"""Activity up to this may be a probe of some tool; above it something runs."""
MOVES_BYTES_PER_S = 1e8
"""PCIe traffic from here on is work on the GPU's memory, though no kernel may run meanwhile: offloading, a
load, a checkpoint. A loaded GPU that nobody asks shows 0.001 GB/s, light inference 0.03 (8xH100)."""
HELD_BYTES = float(1 << 30)
HELD_RATIO = 0.008
"""Memory above both is held by somebody: an empty GPU shows a few hundred MiB of the driver's own."""
LET_GO = 0.2
"""Memory that falls below this part of what was used has been let go by a process that ended."""
LOADS = 1.2
"""Memory that has grown by this factor, and by HELD_BYTES, since a GPU was seen for the first time, without
work meanwhile: its job is only starting, though it held memory before."""
START_GRACE_S = 600.0
"""Longest start-up (imports, model load, compilation) in which nothing is held against a job."""
STARTED_RATIO = 0.10
"""Mean activity over STARTED_WINDOW_S from which on a job has started, ..."""
SETTLE_S = 60.0
"""... and after this long it is judged."""
STARTED_WINDOW_S = 30.0
RESTS_S = 30.0
"""A source that answers more rarely than its node sends rows (InfiniBand: each 10 s) tells all since its last
answer at once: in between nothing is added, for this long."""
ENERGY_RESTS_S = 60.0
"""The same of energy, which comes as the rate since it was read before: in between it is taken to go on."""
WINDOW_S = 60.0
"""Window of the means that starvation is judged by."""

MEANS = (
    "activity",
    "gpu_util_ratio",
    "resident",
    "sm_active_ratio",
    "tensor_active_ratio",
    "dram_active_ratio",
    "fp32_active_ratio",
    "power_w",
    "pcie_rx_bytes_per_s",
    "pcie_tx_bytes_per_s",
    "nvlink_tx_bytes_per_s",
    "nvlink_bytes_per_s",
    "cpu_busy_ratio",
    "cpu_iowait_ratio",
    "psi_io_some_ratio",
    "psi_cpu_some_ratio",
    "ib_bytes_per_s",
    "job_throttled_ratio",
    "ib_received_bytes_per_s",
    "ib_sent_bytes_per_s",
    "net_received_bytes_per_s",
    "net_sent_bytes_per_s",
    "drawn_w",
    "zero",
)


PER_SECOND = {
    "psi_io_some_ratio": "psi_io_some_s",
    "psi_cpu_some_ratio": "psi_cpu_some_s",
    "job_throttled_ratio": "job_cpu_throttled_s",
}
"""Mean -> the counter that it is the rate of."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Happened:
    """Something that happened to one GPU at an instant."""

    gpu: int
    """Its position."""
    time_ns: int
    kind: str
    """That of `unidle_agent.wire.Event`; or REBOOTED, RESET: what the collector concludes itself."""
    code: int = 0
    text: str = ""
    part: int = -1
    """As in the event."""


REBOOTED, RESET = "rebooted", "counters_reset"
"""The node was booted anew; the driver's own counters began anew: it was loaded again, or the GPU reset."""


@dataclass(frozen=True, slots=True)
class Step:
    """One sampling period of the fleet. `columns`: field -> [GPUs] in base units, NaN unknown; a
    counter is its increase within the step. `sampled`: is there a row at all."""

    end_ns: int
    period_ns: int
    columns: Mapping[str, Floats]
    sampled: Bools
    events: tuple[Happened, ...] = ()
    """By time; those that came too late for their own step come with the next one."""

    @property
    def start_ns(self) -> int:
        """Begin of the step."""
        return self.end_ns - self.period_ns

    def get(self, name: str) -> Floats:
        """[GPUs] values of a field, all unknown where nobody sent it."""
        found = self.columns.get(name)
        return np.full(self.sampled.shape, np.nan) if found is None else found


@dataclass(frozen=True, slots=True)
class View:
    """What detectors see at one step; every array is [GPUs]."""

    step: Step
    inventory: Inventory
    means: RunningMean
    activity: Floats
    """The most of gpu_util, sm_active, graphics_active that is known: did anything run."""
    moving: Bools
    """Data moves over PCIe, whether or not a kernel runs."""
    useful: Floats
    """Useful activity e over the window: sm_active where known, else gpu_util."""
    sm_grade: Bools
    """Does `useful` rest on sm_active."""
    allocated: Bools
    inferred: Bools
    """Allocation was concluded from use."""
    unseen: Bools
    """Nobody says whose it is, and nothing was ever known of its use: neither activity nor memory nor
    processes."""
    alive: Bools
    """The GPU answers and has a sample."""
    in_grace: Bools
    """The job on it is still starting."""
    never_ran: Bools
    """Nothing has run since the job got the GPU."""
    held_since: Times
    """Since when the owner holds it, NEVER where not known."""
    row_s: Floats
    """Seconds from row to row: in the live window one may speak for many steps."""
    sampled_each_s: Floats
    """Seconds from sample to sample: from row to row, or more where the source of the rows repeats itself."""
    anew: Bools
    """Begins a new sample at this step; where none is repeated each step is taken for one."""
    silent: Bools
    """The profiling counters say 0 while the GPU works: they are unknown in `step`."""
    made: dict[Callable[[View], Any], Any] = field(default_factory=dict, repr=False)
    """What `once` has made."""

    def once(self, make: Callable[[View], T]) -> T:
        """What `make` makes of this step, once for all detectors that ask."""
        if make not in self.made:
            self.made[make] = make(self)
        found: T = self.made[make]
        return found


class Signals:
    """Keeps what is needed to make a View of each step."""

    def __init__(self, inventory: Inventory, period_s: float) -> None:
        size = inventory.capacity
        self._inventory = inventory
        self._means = RunningMean(MEANS, WINDOW_S, period_s, size, 0.5)
        self._sampling = Sampling(size)
        self._started = RunningMean(("activity",), STARTED_WINDOW_S, period_s, size, 0.5)
        self._a = PerGpu(size)
        self._a.make("held_since", np.int64, NEVER)
        self._a.make("grace_until", np.int64, NEVER)
        self._a.make("never_ran", np.bool_, True)
        self._a.make("was_allocated", np.bool_, False)
        self._a.make("seen", np.bool_, False)
        self._a.make("use_seen", np.bool_, False)
        self._a.make("ib_seen_ns", np.int64, NEVER)
        self._a.make("drawn_ns", np.int64, NEVER)
        self._a.make("drawn_w", np.float64, np.nan)
        self._a.make("used_bytes", np.float64, np.nan)
        self._a.make("first_bytes", np.float64, np.nan)  # of a job that had begun before, until it works

    def resize(self, size: int) -> None:
        """Grow to `size` GPUs."""
        for part in (self._means, self._sampling, self._started, self._a):
            part.resize(size)

    def changed_owner(self, gpus: Bools) -> None:
        """The job on `gpus` is another one: windows and grace start anew at the next step."""
        self._means.forget(gpus)
        self._started.forget(gpus)
        self._a["was_allocated"][gpus] = False
        self._a["drawn_ns"][gpus] = NEVER

    def view(self, step: Step) -> View:
        """Take one step and say what is to be seen."""
        row_s = np.fmax(self._inventory.a["period_s"], step.period_ns / SECOND_NS)
        anew = self._sampling.look(step.columns, step.end_ns, row_s, self._inventory.a["node"])
        step = replace(step, columns=self._sampling.carried_on(step.columns, anew, row_s))
        quiet = silent(step.columns, step.sampled.size)
        step = replace(step, columns=believed(step.columns, quiet)) if quiet.any() else step
        activity = _most(*(step.get(name) for name in ACTIVITY))
        self._push(step, activity)
        alive = step.sampled & ~(step.get("gpu_state") > 0)
        allocated, inferred = self._allocation(step, activity)
        self._follow(step, allocated, alive, activity)
        sm = self._means.mean("sm_active_ratio")
        sm_grade = ~np.isnan(sm)
        useful = np.where(sm_grade, sm, self._means.mean("gpu_util_ratio"))
        return View(
            step=step,
            inventory=self._inventory,
            means=self._means,
            activity=activity,
            moving=_moving(step),
            useful=np.where(np.isnan(useful), self._means.mean("activity"), useful),
            sm_grade=sm_grade,
            allocated=allocated,
            inferred=inferred,
            unseen=inferred & ~self._a["use_seen"],
            alive=alive,
            in_grace=allocated & (step.end_ns <= self._a["grace_until"]),
            never_ran=self._a["never_ran"],
            held_since=self._a["held_since"],
            row_s=row_s,
            sampled_each_s=np.fmax(row_s, self._sampling.each_s),
            anew=anew | np.isnan(self._sampling.each_s),
            silent=quiet,
        )

    def _push(self, step: Step, activity: Floats) -> None:
        seconds = step.period_ns / SECOND_NS
        zero = np.where(np.isnan(activity), np.nan, activity < BLIP)
        ib_received, ib_sent = self._infiniband(step)
        derived = {
            "activity": activity,
            "zero": zero,
            "resident": np.fmax(step.get("gpu_util_ratio"), step.get("graphics_active_ratio")),
            "ib_bytes_per_s": np.fmax(ib_received, ib_sent) / seconds,
            "ib_received_bytes_per_s": ib_received / seconds,
            "ib_sent_bytes_per_s": ib_sent / seconds,
            "net_received_bytes_per_s": _without(step, "net_received_bytes", "nfs_read_bytes") / seconds,
            "net_sent_bytes_per_s": _without(step, "net_sent_bytes", "nfs_written_bytes") / seconds,
        }
        if "energy_j" in step.columns:
            derived["drawn_w"] = self._drawn(step)
        columns = step.columns
        for name, field_name in PER_SECOND.items():
            if field_name in columns:
                derived[name] = columns[field_name] / seconds
        self._means.push({name: columns[name] for name in MEANS if name in columns} | derived)
        self._started.push({"activity": activity})

    def _infiniband(self, step: Step) -> tuple[Floats, Floats]:
        """Bytes received and sent; nothing where the node's row comes between two answers of its ports."""
        received, sent = step.get("ib_received_bytes"), step.get("ib_sent_bytes")
        seen = self._a["ib_seen_ns"]
        seen[~np.isnan(received) | ~np.isnan(sent)] = step.end_ns
        rests = step.sampled & (step.end_ns - seen <= int(RESTS_S * SECOND_NS))
        nothing = rests & np.isnan(received), rests & np.isnan(sent)
        return np.where(nothing[0], 0.0, received), np.where(nothing[1], 0.0, sent)

    def _drawn(self, step: Step) -> Floats:
        """W by the energy counter; what it was before where the node's row comes between two readings."""
        a = self._a
        fresh = step.get("energy_j") / (step.period_ns / SECOND_NS)
        known = ~np.isnan(fresh)
        a["drawn_w"][known], a["drawn_ns"][known] = fresh[known], step.end_ns
        rests = step.sampled & (step.end_ns - a["drawn_ns"] <= int(ENERGY_RESTS_S * SECOND_NS))
        out: Floats = np.where(rests, a["drawn_w"], np.nan)
        return out

    def _allocation(self, step: Step, activity: Floats) -> tuple[Bools, Bools]:
        """Who is held (docs/accounting.md): by a scheduler's or label's word, else by its use."""
        said = self._inventory.a["said"]
        used, total, processes = (
            step.get("memory_used_bytes"),
            step.get("memory_total_bytes"),
            step.get("process_count"),
        )
        limit = np.where(np.isnan(total), HELD_BYTES, np.maximum(HELD_BYTES, HELD_RATIO * total))
        use = (processes > 0) | (used > limit) | (activity >= NOTHING_RAN)
        empty = ~use & (~np.isnan(used) | ~np.isnan(processes))
        self._a["use_seen"][:] |= ~(np.isnan(activity) & np.isnan(used) & np.isnan(processes))
        before = self._a["was_allocated"]
        from_use = np.where(use, True, np.where(empty, False, before))
        allocated = np.where(said == UNSAID, from_use, said == YES)
        return allocated & (said != NO), said == UNSAID

    def _follow(self, step: Step, allocated: Bools, alive: Bools, activity: Floats) -> None:
        """Job starts, their grace, and whether anything has run since."""
        a = self._a
        used = step.get("memory_used_bytes")
        # Of a GPU seen for the first time with memory held, the job has started before. Where memory is not
        # known, as in somebody's recording, it has, too: recordings begin in the middle of jobs.
        said = self._inventory.a["said"] == YES
        held = np.where(np.isnan(used), (activity >= NOTHING_RAN) | said, used > HELD_BYTES)
        already = ~a["seen"] & held
        begins = allocated & ~a["was_allocated"] & alive
        a["held_since"][begins] = step.start_ns
        a["never_ran"][begins] = True
        a["grace_until"][begins] = np.where(
            already[begins], NEVER, step.start_ns + int(START_GRACE_S * SECOND_NS)
        )
        a["never_ran"][begins & already] = False
        a["first_bytes"][begins] = np.where(already, used, np.nan)[begins]
        first = a["first_bytes"]
        loads = alive & ~begins & (used >= LOADS * first) & (used - first >= HELD_BYTES)
        if loads.any():  # it had only just begun
            first[loads] = np.nan
            a["never_ran"][loads] = True
            a["grace_until"][loads] = a["held_since"][loads] + int(START_GRACE_S * SECOND_NS)
        again = allocated & alive & ~begins & (used < LET_GO * a["used_bytes"])
        if again.any():  # a process has gone: the next one starts as a job does, whoever holds the GPU
            self._means.forget(again)
            self._started.forget(again)
            a["grace_until"][again] = step.start_ns + int(START_GRACE_S * SECOND_NS)
        np.copyto(a["used_bytes"], np.where(used > HELD_BYTES, used, np.nan), where=alive & ~np.isnan(used))
        ends = ~allocated & alive
        a["held_since"][ends] = NEVER
        ran = alive & (activity >= BLIP)
        a["never_ran"][ran] = False
        started = self._started.mean("activity") >= STARTED_RATIO
        first[started | ends] = np.nan
        settle = step.end_ns + int(SETTLE_S * SECOND_NS)
        a["grace_until"][started] = np.minimum(a["grace_until"][started], settle)
        a["was_allocated"][alive] = allocated[alive]
        a["seen"][alive] = True


def _moving(step: Step) -> Bools:
    rx, tx = (known_or(step.get(f"pcie_{way}_bytes_per_s")) for way in ("rx", "tx"))
    out: Bools = rx + tx >= MOVES_BYTES_PER_S
    return out


def _without(step: Step, name: str, part: str) -> Floats:
    """[GPUs] a counter less one that it contains; where that one is unknown it is nothing."""
    return step.get(name) - known_or(step.get(part))


def _most(*columns: Floats) -> Floats:
    """Largest known value per GPU; NaN where none is known."""
    out: Floats = np.fmax.reduce(columns)
    return out
