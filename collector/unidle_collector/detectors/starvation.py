"""Starvation: a GPU works, but below what it could, because it is fed too slowly.

What it means
    The job runs and the GPU waits: for storage, for the CPU that prepares the data, for transfers, for
    the next small kernel, or for other GPUs. The part of the GPU that it does not use is lost.

Evidence
    sm_active_ratio (else gpu_util_ratio) averaged over 60 s against the reference of the job or of the
    GPU model; for the cause: iowait and I/O pressure, CPU use, PCIe and NVLink traffic, tensor and DRAM
    activity, and the share of seconds without activity.

How it decides
    Useful activity e is the 60 s mean of SM activity, or of GPU utilization where the SM counter is
    not there (the finding says which). The reference is the 90th percentile of the job's own productive
    minutes once there are 30, else the default of the GPU model (SM 0.80: NVIDIA's guide calls less
    than that not sufficient; utilization 0.95). Starved when e is below 0.625 of the reference for 45 s,
    over when it is above 0.69 for 30 s. Memory-bandwidth bound work (DRAM active 60 % or more) is not
    starved. Of an interactive session nothing is said: a person sets its pace.
    One more case looks busy: utilization 90 % or more while tensor activity is below 20 %,
    SM activity between 30 and 65 %, NVLink above 20 GB/s (or the node's InfiniBand above 5 GB/s, half of
    what a tensor-parallel job on two nodes sends) and power below 75 % of the limit is a wait in
    collective communication.
    Cause, first that fits: `communication` (as above); `storage` (iowait at least 10 % or I/O pressure
    at least 20 % of the time); `cpu_preprocessing` (host CPU at least 85 % busy, or the job's CPU quota
    holds it back for half a second per second or more); `host_to_device`
    (PCIe at least 1 GB/s and a third of the seconds without activity); `small_kernels` (utilization
    at least 50 %, SM below half of it, DRAM below 20 %); else `undetermined`.
    Accounted within 90 s; a person is told after 10 min.

What to do
    storage: more loader workers and prefetching, stage the data set on local disk, larger shards.
    cpu_preprocessing: more cores per GPU, decode on the GPU, pre-process once and keep the result.
    host_to_device: pinned memory and asynchronous copies, less offload. small_kernels: a larger batch,
    torch.compile or CUDA graphs. communication: overlap, larger buckets, check the fabric.

How to silence it
    `silence = ["starvation:JOB"]` in `[collector]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from unidle_collector.detectors import About, Verdict, duration, mean_of, percent, plural
from unidle_collector.model import Evidence, State
from unidle_collector.pergpu import NEVER, SECOND_NS, Bools, Hold, PerGpu
from unidle_collector.reference import Reference
from unidle_collector.signals import NOTHING_RAN, View

CAUSES = ("undetermined", "communication", "storage", "cpu_preprocessing", "host_to_device", "small_kernels")

ADVICE = {
    "storage": (
        "Raise the loader's num_workers and prefetch_factor, stage the data set on local "
        "NVMe, or pack it into larger shards."
    ),
    "cpu_preprocessing": (
        "Request more CPU cores per GPU (8 or more), move decoding to the GPU, or keep the "
        "pre-processed data."
    ),
    "host_to_device": "Use pin_memory=True with non_blocking=True copies, and offload less to the host.",
    "small_kernels": "Raise the batch size, or use torch.compile(mode='reduce-overhead') or CUDA graphs.",
    "communication": (
        "Overlap gradient reduction with compute, raise bucket_cap_mb, and check that NCCL "
        "uses NVLink and InfiniBand (NCCL_DEBUG=INFO)."
    ),
    "undetermined": (
        "Cannot tell the cause, because no host or link signal stands out; profile one step "
        "of the job."
    ),
}  # fmt: skip

CONFIRM = {
    "storage": "iostat -x 5 on the node, and the loader's wait time per step",
    "cpu_preprocessing": "top on the node: the loader's processes at 100 % CPU",
    "host_to_device": "nvidia-smi dmon -s pt: PCIe traffic while utilization is 0",
    "small_kernels": "a profile of one step: many kernels of a few microseconds",
    "communication": "NCCL_DEBUG=INFO, and the share of NCCL kernels in a profile of one step",
    "undetermined": "a profile of one step of the job",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """Ratios 0-1, seconds, bytes per second."""

    below: float = 0.625
    above: float = 0.69
    on_after_s: float = 45.0
    off_after_s: float = 30.0
    forget_s: float = 1800.0
    dram_bound: float = 0.60
    iowait: float = 0.10
    io_pressure: float = 0.20
    cpu_busy: float = 0.85
    job_throttled: float = 0.5
    pcie_bytes_per_s: float = 1e9
    zero_share: float = 1 / 3
    nvlink_bytes_per_s: float = 2e10
    ib_bytes_per_s: float = 5e9


class Starvation:
    """The condition, vectorised."""

    kind: ClassVar[str] = "starvation"
    state: ClassVar[State | None] = "starved"
    causes: ClassVar[tuple[str, ...]] = CAUSES
    groups_by: ClassVar[Literal["job", "node"]] = "job"
    finding_delay_s: ClassVar[float] = 600.0
    accounting_delay_s: ClassVar[float] = 90.0
    grace: ClassVar[str] = "until a job has started (activity 10 % over 30 s, and 60 s more), at most 10 min"

    def __init__(self, size: int, period_s: float, settings: Settings) -> None:
        self._settings = settings
        self._reference = Reference(size)
        self._hold = Hold(size, settings.off_after_s, settings.forget_s)
        self._period_s = period_s
        self._a = PerGpu(size)
        self._a.make("waiting", np.bool_, False)  # in collective communication, rather than fed too slowly
        self._a.make("cause", np.int16, 0)
        self._a.make("since", np.int64, NEVER)

    def look(self, view: View) -> Verdict:
        """See the module's docstring."""
        s, step, means = self._settings, view.step, view.means
        e, reference = view.useful, self._reference.of(view)
        judged = view.allocated & ~view.in_grace & ~view.inventory.a["interactive"]
        running = view.alive & judged & (means.mean("activity") >= NOTHING_RAN)
        bound = means.mean("dram_active_ratio") >= s.dram_bound
        waiting = running & self._communication(view)
        tensor = means.mean("tensor_active_ratio")
        low = e < reference * np.where(self._hold.on, s.above, s.below)
        starved = running & ~bound & (low | waiting)
        known = view.alive & ~np.isnan(e) & (running | ~judged)
        on_after = np.int64(s.on_after_s * SECOND_NS)
        self._hold.update(starved, known, step.start_ns, step.end_ns, on_after)
        self._a["waiting"][:] = waiting
        cause = self._cause(view, waiting)
        self._a["cause"][:] = np.where(starved, cause, self._a["cause"])
        loss = np.where(
            waiting & ~low,
            1 - np.minimum(1.0, tensor / self._reference.tensor),
            1 - np.minimum(1.0, e / reference),
        )
        self._reference.learn(view, running & ~self._hold.on & ~low)
        since = np.where(self._hold.on, self._begin(view), NEVER)
        return Verdict(self._hold.on, since, self._a["cause"], np.nan_to_num(loss, nan=0.0))

    def _begin(self, view: View) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """The mean over the window falls below the threshold about half a window after the signal does."""
        lag = np.int64(view.means.window_s / 2 * SECOND_NS)
        since = self._hold.since
        earliest = np.maximum(view.held_since, NEVER + lag)
        return np.maximum(
            np.where(since == NEVER, NEVER, since - lag), np.where(since == NEVER, NEVER, earliest)
        )

    def _communication(self, view: View) -> Bools:
        """Busy-looking: spinning in collectives."""
        m = view.means
        s = self._settings
        link = np.fmax(m.mean("nvlink_tx_bytes_per_s"), m.mean("nvlink_bytes_per_s"))
        linked = (link >= s.nvlink_bytes_per_s) | (m.mean("ib_bytes_per_s") >= s.ib_bytes_per_s)
        sm = m.mean("sm_active_ratio")
        out: Bools = (
            (m.mean("gpu_util_ratio") >= 0.9)
            & (m.mean("tensor_active_ratio") < 0.2)
            & (sm >= 0.3)
            & (sm <= 0.65)
            & linked
            & ~(m.mean("power_w") >= 0.75 * view.step.get("power_limit_w"))
            & ~(m.mean("dram_active_ratio") >= s.dram_bound)
        )
        return out

    def _cause(self, view: View, waiting: Bools) -> np.ndarray[tuple[int], np.dtype[np.int16]]:
        m, s = view.means, self._settings
        util, sm, zero = m.mean("gpu_util_ratio"), m.mean("sm_active_ratio"), m.mean("zero")
        pcie = np.fmax(m.mean("pcie_rx_bytes_per_s"), 0) + np.fmax(m.mean("pcie_tx_bytes_per_s"), 0)
        storage = (m.mean("cpu_iowait_ratio") >= s.iowait) | (m.mean("psi_io_some_ratio") >= s.io_pressure)
        tests = (
            waiting,
            storage,
            (m.mean("cpu_busy_ratio") >= s.cpu_busy) | (m.mean("job_throttled_ratio") >= s.job_throttled),
            (pcie >= s.pcie_bytes_per_s) & (zero >= s.zero_share),
            (util >= 0.5) & (sm < 0.5 * util) & ~(m.mean("dram_active_ratio") >= 0.2),
        )
        return np.select(tests, range(1, 6), 0).astype(np.int16)

    def delay_s(self, cause: str) -> float:
        """10 min: long enough that an epoch's end or an evaluation does not page anybody."""
        return self.finding_delay_s

    def about(
        self, view: View, gpus: np.ndarray[tuple[int], np.dtype[np.intp]], cause: str, lasted_s: float
    ) -> About:
        """What a colleague would say."""
        s, m = self._settings, view.means
        graded = "sm_active_ratio" if bool(view.sm_grade[gpus].any()) else "gpu_util_ratio"
        e, reference = mean_of(view.useful, gpus), mean_of(self._reference.of(view), gpus) or 0.0
        threshold = s.below * reference
        name = "SM activity" if graded == "sm_active_ratio" else "GPU utilization"
        evidence = [
            Evidence(
                graded, e, "1", threshold, m.window_s,
                f"{name} {percent(e)} over {m.window_s:.0f} s, starved below {percent(threshold)} "
                f"({self._reference.source(gpus)})",
            )
        ]  # fmt: skip
        for field, limit, text in (
            ("cpu_iowait_ratio", s.iowait, "of host CPU time waits for I/O"),
            ("psi_io_some_ratio", s.io_pressure, "of the time some task of the host waits for I/O"),
            ("cpu_busy_ratio", s.cpu_busy, "of host CPU time is busy"),
            ("job_throttled_ratio", s.job_throttled, "of the time the job's CPU quota holds it back"),
            ("zero", s.zero_share, "of the seconds show no activity"),
            ("tensor_active_ratio", 0.2, "tensor activity"),
        ):
            value = mean_of(m.mean(field), gpus)
            if value is not None:
                shown = "zero_activity_ratio" if field == "zero" else field
                evidence.append(Evidence(shown, value, "1", limit, m.window_s, f"{percent(value)} {text}"))
        what = cause.replace("_", " ") if cause != "undetermined" else "a cause that cannot be told"
        certain = {"undetermined": 0.5, "small_kernels": 0.7}.get(cause, 0.85)
        return About(
            title=(
                f"{plural(gpus.size, 'GPU')} at {percent(e)} {name} for {duration(lasted_s)}, "
                f"starved by {what}"
            ),
            severity="warning",
            confidence=certain if graded == "sm_active_ratio" else certain - 0.15,
            evidence=tuple(evidence),
            advice=ADVICE[cause],
            confirm=CONFIRM[cause],
            runners_up=() if cause == "undetermined" else (("undetermined", round(1 - certain, 2)),),
        )

    def reset(self, gpus: Bools) -> None:
        """Another job: anew, its reference too."""
        self._hold.reset(gpus)
        self._reference.reset(gpus)

    def resize(self, size: int) -> None:
        """Grow."""
        for part in (self._hold, self._a, self._reference):
            part.resize(size)


def make(size: int, period_s: float) -> Starvation:
    """The detector with the product's defaults."""
    return Starvation(size, period_s, Settings())
