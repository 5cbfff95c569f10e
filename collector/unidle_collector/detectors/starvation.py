"""Starvation: a GPU works, but below what it could, because it is fed too slowly.

What it means
    The job runs and the GPU waits: for storage, for the CPU that prepares the data, for transfers, for
    the next small kernel, or for other GPUs. The part of the GPU that it does not use is lost.

Evidence
    sm_active_ratio (else gpu_util_ratio) averaged over 60 s against the reference of the job or of the
    GPU model; for the cause: iowait and I/O pressure, CPU use, PCIe and NVLink traffic, tensor and DRAM
    activity, and the share of seconds without activity.

How it decides
    Useful activity e is the 60 s mean of SM activity, or of GPU utilization where the SM counter is not there
    (the finding says which). The reference is the 90th percentile of the job's own productive minutes once
    there are 30, else the default of the GPU model (SM 0.80: NVIDIA's guide calls less than that not
    sufficient; utilization 0.95). Starved when e is below 0.625 of the reference for 45 s, over when it is
    above 0.69 for 30 s. One more case looks busy, a wait in collective communication: utilization 90 % or
    more while tensor activity is below 20 %, SM activity between 30 and 65 %, NVLink above 20 GB/s (or the
    node's InfiniBand above 5 GB/s, half of what a tensor-parallel job on two nodes sends) and power below
    75 % of the limit.

    Not starved is:
    - work bound by memory bandwidth (DRAM active 60 % or more);
    - an interactive session: a person sets its pace;
    - the load of a process that follows one which let go of its memory (80 % of it): it starts as a job does;
    - the load with which a recording begins: memory grows by a fifth, and 1 GiB, before anything works;
    - work between the samples (long steps, rare samples): where 5 % more energy was drawn in the window than
      the power at its samples would have, and 40 % of the limit or more (where that is known), those fell
      into pauses.

    Cause, the first that fits:
    - `communication`: as above, and none where it does less than 87 % of what another GPU of its job does,
      which works at a tensor activity above 20 %: it may wait for that one.
    - `storage`: iowait at least 10 % or I/O pressure at least 20 % of the time.
    - `host_to_device`: PCIe at least 0.3 GB/s and at least 6 GB/s for a fully used GPU, kernels resident for
      less than 90 % of the time, SM activity at least half of that: samples that are fed move about 2 GB/s,
      offloaded parameters 16 to 25, and small kernels do not fill the GPU.
    - `cpu_preprocessing`: host CPU at least 85 % busy, CPU pressure at least 20 % of the time, or the job's
      CPU quota holds it back for 0.2 s per second or more.
    - `small_kernels`: kernels resident at least 50 % of the time, SM below half of that, tensor below 10 %
      and DRAM below 20 %, or power below 45 % of the limit where those are unknown; not where it may wait for
      another, whose job or, where nobody names that, rate on its node's NVLink is the same, nor where kernels
      are there 90 % of the time and DRAM activity is below 0.5 %: those only wait.
    - `undetermined`: else.

    The probability of each cause comes from how far its signs are beyond their thresholds, averaged over the
    GPUs and the life of the finding (docs/diagnosis.md); a sign that is not measured speaks neither for nor
    against, and no cause is told as surer than 95 %.

    A GPU on which kernels run a tenth of the time at most while next to nothing is copied (PCIe below
    0.1 GB/s) is `starved` like any other, by docs/accounting.md; its finding says "hardly used", because rare
    requests are as likely as a wait, and what the other GPUs of its node do meanwhile.

    Accounted within 90 s; a person is told after 10 min, and of GPUs sampled more rarely than each 40 s after
    15 samples.

What to do
    storage: more loader workers and prefetching, stage the data set on local disk, larger shards.
    cpu_preprocessing: more cores per GPU, decode on the GPU, pre-process once and keep the result.
    host_to_device: pinned memory and asynchronous copies, less offload. small_kernels: a larger batch,
    torch.compile or CUDA graphs. communication: overlap, larger buckets, check the fabric.

How to silence it
    `silence = ["starvation:JOB"]` in `[collector]`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from unidle_collector.detectors import (
    About,
    Detector,
    Verdict,
    duration,
    enough_ns,
    mean_of,
    percent,
    plural,
)
from unidle_collector.model import Evidence
from unidle_collector.pergpu import NEVER, SECOND_NS, Bools, Causes, Hold, PerGpu, Positions, Times, known_or
from unidle_collector.signals import NOTHING_RAN, View
from unidle_collector.signs import starving
from unidle_collector.signs.jobmates import compare
from unidle_collector.signs.lasting import where
from unidle_collector.signs.reference import Reference
from unidle_collector.signs.starving import UNDETERMINED, Signs, Thresholds
from unidle_collector.signs.starving_words import cannot_tell, evidence, hardly_used
from unidle_collector.story import places

CAUSES = ("undetermined", "communication", "storage", "cpu_preprocessing", "host_to_device", "small_kernels")

CODES = np.array([*(CAUSES.index(cause) for cause in starving.ORDER), 0], dtype=np.int16)
"""Position in the order of decision -> position in CAUSES."""

ADVICE = {
    "storage": (
        "Stage the data set on the node's local NVMe before the job reads it; else raise "
        "DataLoader(num_workers=16, prefetch_factor=4, persistent_workers=True) and pack small files into "
        "shards of 100 MB or more."
    ),
    "cpu_preprocessing": (
        "Give the loader more cores: sbatch --cpus-per-gpu=12 (Kubernetes: resources.limits.cpu), with "
        "DataLoader(num_workers=12) per GPU; or decode on the GPU (NVIDIA DALI), or keep the pre-processed "
        "data."
    ),
    "host_to_device": (
        "Keep more on the GPU: FSDP CPUOffload(offload_params=False), DeepSpeed offload_optimizer.device "
        '"none", and make room by activation checkpointing; for what has to be copied '
        "DataLoader(pin_memory=True) and .to(device, non_blocking=True)."
    ),
    "small_kernels": (
        "Raise the batch size; torch.compile(mode='reduce-overhead') or CUDA graphs (vLLM: without "
        "--enforce-eager); where the work stays this small, a MIG instance or MPS."
    ),
    "communication": (
        "Run once with NCCL_DEBUG=INFO: NET/Socket means that RDMA is not used. Keep tensor parallelism "
        "within a node, and overlap: DDP(bucket_cap_mb=100), FSDP(forward_prefetch=True), "
        "Megatron --overlap-grad-reduce."
    ),
}
BY = {
    "storage": "storage",
    "cpu_preprocessing": "CPU preprocessing",
    "host_to_device": "host-to-device copies",
    "small_kernels": "small kernels",
    "communication": "communication",
}
CONFIRM = {
    "storage": (
        "iostat -x 5 (nfsiostat 5) on {node}; and an epoch with the data set cached in memory: if that one "
        "is faster, it was storage"
    ),
    "cpu_preprocessing": "top -H on {node}: the loader's processes at 100 % CPU, or throttled by cpu.stat",
    "host_to_device": "nvidia-smi dmon -s ut -i {gpus} on {node}: PCIe traffic while sm is 0",
    "small_kernels": "nsys profile of one step: thousands of kernels of a few microseconds, gaps in between",
    "communication": "nsys profile of one step: the share of ncclDevKernel; NCCL_DEBUG=INFO: the transport",
    UNDETERMINED: "a profile of one step of the job (torch.profiler, nsys)",
}


TOLD_SAMPLES = 15
"""Bursts and steps of half a minute lie between samples that are a minute apart: fewer prove nothing."""
JUDGED_EACH_S = 5
"""What holds a GPU back lasts minutes."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Ratios 0-1, seconds, bytes per second."""

    below: float = 0.625
    above: float = 0.69
    on_after_s: float = 45.0
    least_samples: int = 2
    off_after_s: float = 30.0
    forget_s: float = 1800.0
    unseen_energy: float = 1.05
    work_power: float = 0.40
    causes: Thresholds = field(default_factory=Thresholds)


class Starvation(Detector):
    """The condition, vectorised."""

    kind = "starvation"
    state = "starved"
    causes = CAUSES
    groups_by = "job"
    finding_delay_s = 600.0
    """Longer than an epoch's end or an evaluation."""
    accounting_delay_s = 90.0
    grace = "until a job has started (activity 10 % over 30 s, and 60 s more), at most 10 min"

    def __init__(self, size: int, settings: Settings) -> None:
        self._settings = settings
        self._reference = Reference(size)
        self._hold = Hold(size, settings.off_after_s, settings.forget_s)
        self._a = PerGpu(size)
        self._a.make("cause", np.int16, 0)
        self._a.make("held", np.bool_, False)
        self._a.make("starved", np.bool_, False)
        self._a.at["tick"] = -1

    def look(self, view: View) -> Verdict:
        """See the module's docstring."""
        s, step, means = self._settings, view.step, view.means
        freed = view.alive & ~view.allocated & self._a["held"]
        if freed.any():  # where nobody names the jobs: what comes next is another one
            self._reference.reset(freed)
        np.copyto(self._a["held"], view.allocated, where=view.alive)
        e, reference = view.useful, self._reference.of(view)
        judged = view.allocated & ~view.in_grace & ~view.inventory.a["interactive"]
        works = (means.mean("activity") >= NOTHING_RAN) | view.moving
        running = view.alive & judged & works
        bound = means.mean("dram_active_ratio") >= s.causes.dram_bound
        waiting = self._communication(view, running)
        tensor = means.mean("tensor_active_ratio")
        low = e < reference * np.where(self._hold.on, s.above, s.below)
        starved = running & ~bound & (low | waiting)
        known = view.alive & ~np.isnan(e) & (running | ~judged)
        known &= ~(starved & self._pauses_only(view))
        enough = enough_ns(view, s.on_after_s, s.least_samples)
        self._hold.update(starved, known, step.start_ns, step.end_ns, enough)
        self._judge(view, starved)
        loss = np.where(
            waiting & ~low,
            1 - np.minimum(1.0, tensor / self._reference.tensor),
            1 - np.minimum(1.0, e / reference),
        )
        self._reference.learn(view, running & ~self._hold.on & ~low)
        since = np.where(self._hold.on, self._begin(view), NEVER)
        return Verdict(self._hold.on, since, self._a["cause"], known_or(loss), seen=starved & known)

    def _begin(self, view: View) -> Times:
        """The mean over the window falls below the threshold about half a window after the signal does."""
        lag = np.int64(view.means.window_s / 2 * SECOND_NS)
        since = self._hold.since
        earliest = np.maximum(view.held_since, NEVER + lag)
        return np.maximum(
            np.where(since == NEVER, NEVER, since - lag), np.where(since == NEVER, NEVER, earliest)
        )

    def _pauses_only(self, view: View) -> Bools:
        """Where the samples fell into pauses: more energy was drawn than they show, as much as work draws."""
        s, m = self._settings, view.means
        drawn_w = m.mean("drawn_w")
        rests: Bools = drawn_w < s.work_power * view.step.get("power_limit_w")
        out: Bools = (drawn_w >= s.unseen_energy * m.mean("power_w")) & ~rests
        return out

    def _communication(self, view: View, running: Bools) -> Bools:
        """Busy-looking: spinning in collectives."""
        at, tensor = self._settings.causes, view.means.mean("tensor_active_ratio")
        gpus = np.flatnonzero(running & (tensor <= at.spinning_tensor))  # the others are not worth a look
        out = np.zeros_like(running)
        out[gpus] = starving.communication(starving.signs(view, gpus), at) >= 0
        return out

    def _judge(self, view: View, starved: Bools) -> None:
        """Who begins to starve gets its cause at once; it is looked at again every JUDGED_EACH_S."""
        a = self._a
        tick = view.step.end_ns // (JUDGED_EACH_S * SECOND_NS)
        here = np.flatnonzero(starved if tick != a.at["tick"] else starved & ~a["starved"])
        a.at["tick"] = tick
        a["starved"][:] = starved
        if here.size:
            a["cause"][here] = self._cause(view, here)

    def _cause(self, view: View, gpus: Positions) -> Causes:
        """Positions in CAUSES."""
        of = starving.margins(_signs(view, gpus), self._settings.causes)
        out: Causes = CODES[starving.decided(of)]
        return out

    def about(self, view: View, gpus: Positions, cause: str, lasted_s: float) -> About:
        """What a colleague would say."""
        s, m = self._settings, view.means
        graded = "sm_active_ratio" if bool(view.sm_grade[gpus].any()) else "gpu_util_ratio"
        e, reference = mean_of(view.useful, gpus), mean_of(self._reference.of(view), gpus) or 0.0
        threshold = s.below * reference
        name = "SM activity" if graded == "sm_active_ratio" else "GPU utilization"
        until = f" and until above {percent(s.above * reference)}" if (e or 0.0) >= threshold else ""
        facts = [
            Evidence(
                graded, e, "1", threshold, m.window_s,
                f"{name} {percent(e)} over {m.window_s:.0f} s, starved below {percent(threshold)}{until} "
                f"({self._reference.source(gpus)})",
            )
        ]  # fmt: skip
        facts += self._beside(view, gpus, graded)
        found = _signs(view, gpus)
        of = starving.margins(found, s.causes)
        shares = starving.likely(of)
        facts += evidence(found, s.causes, m.window_s, first=cause)
        if (still := mean_of(m.mean("zero"), gpus)) is not None:
            words = f"{percent(still)} of the samples show no activity"
            facts.append(Evidence("zero_activity_ratio", still, "1", None, m.window_s, words))
        told = cause != UNDETERMINED
        unknown = ": hardly used" if hardly_used(found) else ": starved, cannot tell by what"
        what = f", starved by {BY[cause]}" if told else unknown
        node, numbers = where(view, gpus)
        return About(
            title=f"{plural(gpus.size, 'GPU')} at {percent(e)} {name} for {duration(lasted_s)}{what}",
            severity="warning",
            confidence=shares[cause],
            evidence=tuple(facts),
            advice=ADVICE[cause] if told else cannot_tell(found, of, s.causes),
            confirm=CONFIRM[cause].format(node=node, gpus=numbers),
            shares=shares,
            told_after_s=max(self.delay_s(cause), TOLD_SAMPLES * float(view.sampled_each_s[gpus].max())),
        )

    def _beside(self, view: View, gpus: Positions, field: str) -> Iterator[Evidence]:
        """What the others of their node do meanwhile, where they are all of one: its mean would hide both."""
        node = view.inventory.a["node"]
        others = np.setdiff1d(np.flatnonzero((node == node[gpus[0]]) & view.alive & view.allocated), gpus)
        if (
            not others.size
            or np.unique(node[gpus]).size > 1
            or (value := mean_of(view.useful, others)) is None
        ):
            return
        text = f"{places([view.inventory.refs[int(gpu)] for gpu in others])} at {percent(value)} meanwhile"
        yield Evidence(field, value, "1", None, view.means.window_s, text)

    def reset(self, gpus: Bools) -> None:
        """Another job: anew, its reference too."""
        self._hold.reset(gpus)
        self._reference.reset(gpus)
        self._a["starved"][gpus] = False


def _signs(view: View, gpus: Positions) -> Signs:
    return starving.signs(view, gpus, view.once(compare))


def make(size: int, period_s: float) -> Starvation:
    """The detector with the product's defaults."""
    return Starvation(size, Settings())
