"""Over-provisioned: a job holds more GPU than it has use for, all its life.

What it means
    `fewer_gpus`: some GPUs of a job have done nothing since it began, while its others work. `large_gpu`:
    what runs is far too small for the GPU; a MIG instance, a cheaper model or fewer GPUs would do it, too.

Evidence
    The most and the 95th percentile of activity (the largest of gpu_util, sm_active and graphics_active) of
    each GPU since the job got it, and the most memory_used_bytes; host signals that explain low activity in
    another way: cpu_busy_ratio, cpu_iowait_ratio, psi_io_some_s, job_cpu_throttled_s, PCIe traffic.

How it decides
    Start-up is left out.
    - `fewer_gpus`: no sample of 5 % activity or more since the job got the GPU and minutes below 1 % for
      5 min, while another of its GPUs has worked within the last 30 min. Needs the job's name, and to have
      been there when it began; interactive sessions are `idle`.
    - `large_gpu`: over its life, 5 min at least, 95 % of the samples below 40 % activity and never half of
      the memory used, but something runs (5 % and more in some samples, or 1 % in half of them); over at 45 %
      and 55 %. It is advice, severity info.

    For `large_gpu` all GPUs of a job have to be like that, else it is uneven and not too large. It may be fed
    too slowly where in a fifth of the minutes the host was busy (CPU 85 %, I/O waits 10 %, I/O pressure 20 %,
    or the job's CPU quota held it back for 0.5 s per second) or PCIe moved 1 GB/s; where nobody knows the
    host's CPU and I/O waits, that cannot be told: then nothing is said. Nor where 15 % more energy was drawn
    than the power at the samples would have: they fell into pauses, and missed work.

    A person is told after 60 min: a stage that starts within the hour is none. While it is on, `idle` and
    `starvation` are not told of the same GPUs, and the account stays theirs.

What to do
    Ask for the GPUs that are used, for a MIG instance that fits, or for a cheaper model; the finding names
    them. Or start a process per GPU (torchrun --nproc-per-node), if that was the intention.

How to silence it
    `silence = ["over_provisioned:JOB"]` in `[collector]`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from unidle_collector.detectors import About, Detector, Verdict, duration, mean_of, percent, plural
from unidle_collector.inventory import YES
from unidle_collector.model import Evidence
from unidle_collector.pergpu import NEVER, SECOND_NS, Bools, Hold, PerGpu, Positions
from unidle_collector.signals import BLIP, NOTHING_RAN, View
from unidle_collector.signs.smaller import COMPUTE_ROOM, MEMORY_ROOM, cheaper_model, slice_for

FEWER_GPUS, LARGE_GPU = range(2)
BINS = 20
"""Of the histogram of activity: 5 points each."""
MINUTE_NS = 60 * SECOND_NS


@dataclass(frozen=True, slots=True)
class Settings:
    """Ratios 0-1, seconds, bytes per second. Busy and memory ratios: (begins below, over from)."""

    busy: tuple[float, float] = (0.40, 0.45)
    memory: tuple[float, float] = (0.50, 0.55)
    quantile: float = 0.95
    fed_share: tuple[float, float] = (0.20, 0.30)
    known_share: float = 0.5
    least_s: float = 300.0
    least_samples: int = 8
    works_within_s: float = 1800.0
    ran_share: float = 0.5
    ran_within_s: float = 1500.0
    cpu_busy: float = 0.85
    iowait: float = 0.10
    io_pressure: float = 0.20
    job_throttled: float = 0.5
    pcie_bytes_per_s: float = 1e9
    unseen_energy: float = 1.15


class OverProvisioned(Detector):
    """Counts each step of each GPU's job, and judges once a minute of event time."""

    kind = "over_provisioned"
    state = None
    causes = ("fewer_gpus", "large_gpu")
    groups_by = "job"
    explains = ("idle", "starvation")
    finding_delay_s = 3600.0
    """As long as peers wait before they warn about an unused GPU."""
    accounting_delay_s = 0.0
    grace = "until a job has started, at most 10 min; a stage may start within the hour"

    def __init__(self, size: int, period_s: float, settings: Settings) -> None:
        self._settings = settings
        self._period_s = period_s
        self._unused = Hold(size, 60.0, settings.works_within_s)
        self._a = PerGpu(size)
        self._a.at["minute"] = NEVER
        self._a.make("histogram", np.int32, 0, BINS)
        self._a.make("ran", np.int32, 0)  # steps
        self._a.make("minutes", np.int32, 0)
        self._a.make("host_known", np.int32, 0)  # minutes, as the next
        self._a.make("fed_slowly", np.int32, 0)
        self._a.make("peak_bytes", np.float64, 0.0)
        self._a.make("total_bytes", np.float64, np.nan)
        self._a.make("drawn_j", np.float64, 0.0)  # by the counter, ...
        self._a.make("shown_j", np.float64, 0.0)  # ... and by the power at the samples meanwhile
        self._a.make("first_ns", np.int64, NEVER)
        self._a.make("ran_ns", np.int64, NEVER)
        self._a.make("large", np.bool_, False)
        self._a.make("busy", np.float64, np.nan)  # the quantile, as last judged
        self._a.make("spare", np.float64, 0.0)  # share of the GPU that something smaller would free

    def look(self, view: View) -> Verdict:
        """See the module's docstring."""
        a, step = self._a, view.step
        freed = view.alive & ~view.allocated & (a["first_ns"] != NEVER)
        if freed.any():
            self.reset(freed)
        self._count(view)
        minute = step.end_ns // MINUTE_NS
        if minute != a.at["minute"]:
            a.at["minute"] = minute
            self._judge(view)
        unused = self._unused.on
        on = unused | a["large"]
        since = np.where(unused, self._unused.since, np.where(a["large"], a["first_ns"], NEVER))
        cause = np.where(unused, FEWER_GPUS, LARGE_GPU).astype(np.int16)
        loss = np.where(unused, 1.0, np.where(a["large"], a["spare"], 0.0))
        return Verdict(on, since, cause, loss, explains=on)

    def _count(self, view: View) -> None:
        """Take one step into the life of each job."""
        a, step = self._a, view.step
        counted = view.alive & view.allocated & ~view.in_grace & ~np.isnan(view.activity)
        at = np.flatnonzero(counted)
        bins = np.minimum((view.activity[at] * BINS).astype(np.intp), BINS - 1)
        a["histogram"][bins, at] += 1
        a["ran"][:] += counted & (view.activity >= NOTHING_RAN)
        held = view.alive & view.allocated
        np.fmax(a["peak_bytes"], np.where(held, step.get("memory_used_bytes"), np.nan), out=a["peak_bytes"])
        np.copyto(a["total_bytes"], step.get("memory_total_bytes"), where=step.get("memory_total_bytes") > 0)
        energy_j = np.where(counted, step.get("energy_j"), np.nan)
        shown_j = step.get("power_w") * (step.period_ns / SECOND_NS)
        both = ~np.isnan(energy_j + shown_j)
        a["drawn_j"][both] += energy_j[both]
        a["shown_j"][both] += shown_j[both]
        a["first_ns"][counted & (a["first_ns"] == NEVER)] = step.start_ns
        a["ran_ns"][held & (view.activity >= NOTHING_RAN)] = step.end_ns

    def _judge(self, view: View) -> None:
        """Once a minute."""
        a, s, step = self._a, self._settings, view.step
        job, named = view.inventory.a["job"], view.inventory.a["said"] == YES
        held = view.alive & view.allocated
        in_job = held & named & (job > 0)
        worked_ns = np.full(int(job.max()) + 1, NEVER)
        works = in_job & ~view.never_ran
        np.maximum.at(worked_ns, job[works], a["ran_ns"][works])
        others_work = step.end_ns - worked_ns[job] <= int(s.works_within_s * SECOND_NS)
        activity = view.means.mean("activity")
        nothing = view.never_ran & (activity < NOTHING_RAN) & ~view.inventory.a["interactive"]
        self._unused.update(
            in_job & nothing & others_work,
            held & ~np.isnan(activity),
            step.end_ns - MINUTE_NS,
            step.end_ns,
            np.int64(s.least_s * SECOND_NS),
        )
        self._count_minute(view, held & ~view.in_grace)
        small = held & ~view.inventory.a["interactive"] & self._small(view.in_grace)
        uneven = np.zeros(worked_ns.size, dtype=np.bool_)
        uneven[job[in_job & ~small]] = True
        uneven[job[in_job & self._unused.on]] = True
        runs = (a["busy"] > BLIP) | (a["ran"] >= s.ran_share * a["histogram"].sum(axis=0))
        runs &= step.end_ns - a["ran_ns"] <= int(s.ran_within_s * SECOND_NS)
        before = a["large"].copy()
        a["large"][:] = np.where(view.alive, small & runs & ~(in_job & uneven[job]), before)
        for gpu in np.flatnonzero(a["large"]):
            one = slice_for(
                view.inventory.refs[gpu].model, a["total_bytes"][gpu], a["peak_bytes"][gpu], a["busy"][gpu]
            )
            a["spare"][gpu] = 0.0 if one is None else 1 - one.share

    def _count_minute(self, view: View, counted: Bools) -> None:
        """Was anything busy that explains low activity in another way; the means are of this minute."""
        a, s, m = self._a, self._settings, view.means
        cpu, iowait = m.mean("cpu_busy_ratio"), m.mean("cpu_iowait_ratio")
        pcie = np.fmax(m.mean("pcie_rx_bytes_per_s"), 0) + np.fmax(m.mean("pcie_tx_bytes_per_s"), 0)
        fed_slowly = (
            (cpu >= s.cpu_busy)
            | (iowait >= s.iowait)
            | (m.mean("psi_io_some_ratio") >= s.io_pressure)
            | (m.mean("job_throttled_ratio") >= s.job_throttled)
            | (pcie >= s.pcie_bytes_per_s)
        )
        a["minutes"][:] += counted
        a["host_known"][:] += counted & ~np.isnan(cpu + iowait)
        a["fed_slowly"][:] += counted & fed_slowly

    def _small(self, in_grace: Bools) -> Bools:
        """[GPUs] is what has run so far far too small for the GPU, and nothing else explains it."""
        a, s = self._a, self._settings
        over, counts = a["large"].astype(np.intp), a["histogram"]
        steps = counts.sum(axis=0)
        reached = (counts.cumsum(axis=0) >= s.quantile * steps).argmax(axis=0)
        a["busy"][:] = np.where(steps > 0, (reached + 1) / BINS, np.nan)
        enough = (steps * self._period_s >= s.least_s) & (steps >= s.least_samples) & ~in_grace
        out: Bools = (
            enough
            & (a["busy"] <= np.array(s.busy)[over] + 1e-9)
            & (a["peak_bytes"] < np.array(s.memory)[over] * a["total_bytes"])
            & (a["peak_bytes"] > 0)
            & ~(a["drawn_j"] > s.unseen_energy * a["shown_j"])
            & (a["minutes"] > 0)
            & (a["host_known"] >= s.known_share * a["minutes"])
            & (a["fed_slowly"] < np.array(s.fed_share)[over] * a["minutes"])
        )
        return out

    def about(self, view: View, gpus: Positions, cause: str, lasted_s: float) -> About:
        """What a colleague would say."""
        if cause == "fewer_gpus":
            return self._fewer(view, gpus, lasted_s)
        return self._large(view, gpus, lasted_s)

    def _fewer(self, view: View, gpus: Positions, lasted_s: float) -> About:
        inventory = view.inventory
        whole = np.flatnonzero(
            (inventory.a["job"] == inventory.a["job"][gpus[0]]) & (inventory.a["said"] == YES)
        )
        used = whole[~self._unused.on[whole]]
        most = max(self._most(int(gpu)) for gpu in gpus)
        others = mean_of(view.means.mean("activity"), used)
        return About(
            title=(
                f"{gpus.size} of {plural(whole.size, 'GPU')} of job {inventory.owner(int(gpus[0])).job} "
                f"never used in {duration(lasted_s)}, while the others work"
            ),
            severity="warning",
            confidence=0.9,
            evidence=(
                Evidence(
                    "gpu_util_ratio", most, "1", BLIP, lasted_s,
                    f"activity never above {percent(most)} since the job began",
                ),
                Evidence(
                    "gpu_util_ratio", others, "1", BLIP, view.means.window_s,
                    f"{percent(others)} activity on the other {plural(used.size, 'GPU')}",
                ),
            ),
            advice=(
                f"Ask for {plural(used.size, 'GPU')} ({_request(used.size)}); or start a process on each: "
                f"torchrun --nproc-per-node, srun --ntasks={whole.size}."
            ),
            confirm="CUDA_VISIBLE_DEVICES, the device map and the number of processes of the job",
            runners_up=(("a stage that starts later", 0.1),),
        )  # fmt: skip

    def _large(self, view: View, gpus: Positions, lasted_s: float) -> About:
        a, s = self._a, self._settings
        busy, peak = float(a["busy"][gpus].max()), float(a["peak_bytes"][gpus].max())
        total = float(a["total_bytes"][gpus].max())
        fed = float((a["fed_slowly"][gpus] / np.maximum(a["minutes"][gpus], 1)).max())
        sure = 0.6 if bool(view.inferred[gpus].any()) else 0.75
        return About(
            title=(
                f"{plural(gpus.size, 'GPU')} too large for the work: 95 % of the time at {percent(busy)} or "
                f"less, {peak / 2**30:.1f} of {total / 2**30:.0f} GiB used at most, for {duration(lasted_s)}"
            ),
            severity="info",
            confidence=sure,
            evidence=(
                Evidence(
                    "gpu_util_ratio", busy, "1", s.busy[0], lasted_s,
                    f"95 % of the samples at {percent(busy)} or less, small up to {percent(s.busy[0])}",
                ),
                Evidence(
                    "memory_used_bytes", peak, "By", s.memory[0] * total, lasted_s,
                    f"{percent(peak / total)} of the memory used at most",
                ),
                Evidence(
                    "cpu_iowait_ratio", fed, "1", s.fed_share[0], lasted_s,
                    f"in {percent(fed)} of the minutes the host or the PCIe link was busy",
                ),
            ),
            advice=_smaller(view, gpus, busy, peak, total),
            confirm="whether the load is meant to grow; the answer times on the smaller one under this load",
            runners_up=(("undetermined", round(1 - sure, 2)),),
        )  # fmt: skip

    def _most(self, gpu: int) -> float:
        """Upper end of the highest bin of activity that a GPU has reached."""
        reached = np.flatnonzero(self._a["histogram"][:, gpu])
        return float((reached[-1] + 1) / BINS) if reached.size else 0.0

    def reset(self, gpus: Bools) -> None:
        """Another job: anew."""
        a = self._a
        self._unused.reset(gpus)
        a["histogram"][:, gpus] = 0
        for name in (
            "ran",
            "minutes",
            "host_known",
            "fed_slowly",
            "peak_bytes",
            "drawn_j",
            "shown_j",
            "large",
            "spare",
        ):
            a[name][gpus] = 0
        a["first_ns"][gpus] = a["ran_ns"][gpus] = NEVER
        a["busy"][gpus] = np.nan


def _request(gpus: int) -> str:
    """How a job asks for GPUs, by both schedulers."""
    return f"sbatch --gpus={gpus}, or nvidia.com/gpu: {gpus}"


def _smaller(view: View, gpus: Positions, busy: float, peak: float, total: float) -> str:
    """The change to make, by what the catalogues know of the model."""
    model = view.inventory.refs[int(gpus[0])].model
    named = view.inventory.owner(int(gpus[0])).job
    needed = max(COMPUTE_ROOM * busy, MEMORY_ROOM * peak / total)
    fewer = math.ceil(gpus.size * needed)
    if named and gpus.size > 1 and fewer < gpus.size:
        return (
            f"Ask for {plural(fewer, 'GPU')} in the place of {gpus.size} ({_request(fewer)}) and give each "
            f"the work of {gpus.size / fewer:.2g}."
        )
    one = slice_for(model, total, peak, busy)
    if one is not None:
        return (
            f"Ask for a MIG instance {one.profile}: sbatch --gres=gpu:{one.profile}:1, or "
            f"nvidia.com/mig-{one.profile}: 1 in the pod's limits. It has {percent(one.share)} of the "
            f"compute and {one.memory_bytes / 2**30:.0f} GiB; short bursts take longer on it."
        )
    other = cheaper_model(model, peak, busy)
    if other is not None:
        return f"Ask for a cheaper model: {other} has the memory and the throughput for this load."
    if not model:
        return (
            "Cannot name what would do, because the model of the GPU is not known; share it with another job."
        )
    return f"Share the GPU with another small job; no smaller one is known for {model}."


def make(size: int, period_s: float) -> OverProvisioned:
    """The detector with the product's defaults."""
    return OverProvisioned(size, period_s, Settings())
