"""What people are told about the signs of starving: each beside its threshold, and what is missing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unidle_collector.detectors import percent
from unidle_collector.model import Evidence
from unidle_collector.pergpu import Floats, known_or
from unidle_collector.signals import MOVES_BYTES_PER_S
from unidle_collector.signs.starving import (
    ORDER,
    WIDEST,
    Signs,
    Thresholds,
    behind,
    may_be_behind,
    touches,
)


@dataclass(frozen=True, slots=True)
class Sign:
    """One sign that has a threshold of its own, as it is shown."""

    cause: str
    """Which it speaks for."""
    field: str
    unit: str
    value: str
    """Name in Signs."""
    limit: str
    """Name in Thresholds."""
    words: str
    """`{}` is the value, `{limit}` the threshold, as people read them."""


SHARE, RATE = "1", "By/s"
SIGNS = (
    Sign(
        "communication", "nvlink_tx_bytes_per_s", RATE, "nvlink_bytes_per_s", "nvlink_bytes_per_s",
        "{} over NVLink (collectives: {limit} or more)",
    ),
    Sign(
        "communication", "ib_bytes_per_s", RATE, "ib_bytes_per_s", "ib_bytes_per_s",
        "{} over the node's InfiniBand (collectives: {limit} or more)",
    ),
    Sign(
        "communication", "tensor_active_ratio", SHARE, "tensor", "spinning_tensor",
        "tensor activity {} (waiting in collectives: below {limit})",
    ),
    Sign(
        "storage", "cpu_iowait_ratio", SHARE, "iowait", "iowait",
        "{} of host CPU time waits for I/O (storage: {limit} or more)",
    ),
    Sign(
        "storage", "psi_io_some_ratio", SHARE, "io_stalled", "stalled",
        "some task of the host waits for I/O {} of the time (storage: {limit} or more)",
    ),
    Sign(
        "host_to_device", "pcie_per_activity", RATE, "pcie_per_activity", "pcie_per_activity",
        "PCIe traffic of {} for a fully used GPU (offloading: {limit} or more; feeding samples: about 2)",
    ),
    Sign(
        "host_to_device", "pcie_bytes_per_s", RATE, "pcie_bytes_per_s", "pcie_bytes_per_s",
        "{} over PCIe, both ways (offloading: {limit} or more)",
    ),
    Sign(
        "cpu_preprocessing", "cpu_busy_ratio", SHARE, "cpu_busy", "cpu_busy",
        "{} of host CPU time is busy (preprocessing: {limit} or more)",
    ),
    Sign(
        "cpu_preprocessing", "psi_cpu_some_ratio", SHARE, "cpu_stalled", "stalled",
        "some task of the host waits for a CPU {} of the time (preprocessing: {limit} or more)",
    ),
    Sign(
        "cpu_preprocessing", "job_throttled_ratio", "s/s", "quota_held", "stalled",
        "the job's CPU quota holds its tasks back for {} (preprocessing: {limit} or more)",
    ),
    Sign(
        "small_kernels", "gpu_util_ratio", SHARE, "resident", "small_resident",
        "kernels resident {} of the time (small kernels: {limit} or more)",
    ),
    Sign(
        "small_kernels", "dram_active_ratio", SHARE, "dram", "small_dram",
        "DRAM activity {} (small kernels: below {limit})",
    ),
)  # fmt: skip
"""In the order of the causes."""


def evidence(found: Signs, at: Thresholds, window_s: float, first: str) -> list[Evidence]:
    """Every sign that is known, as a mean of the GPUs; those of the cause `first` come first."""
    out = []
    for sign in sorted(SIGNS, key=lambda sign: sign.cause != first):
        values, limit = getattr(found, sign.value), getattr(at, sign.limit)
        known = values[~np.isnan(values)]
        if known.size:
            value = float(known.mean())
            text = sign.words.format(_shown(value, sign.unit), limit=_shown(limit, sign.unit))
            out.append(Evidence(sign.field, value, sign.unit, limit, window_s, text))
    return out


def _shown(value: float, unit: str) -> str:
    if unit == "s/s":
        return f"{value:.1f} s in each second"
    return percent(value) if unit == "1" else f"{value / 1e9:.2g} GB/s"


SOURCES: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (
        "the host's CPU and I/O",
        ("iowait", "io_stalled", "cpu_busy", "cpu_stalled"),
        "run unidle agent on the node (cpu_busy_ratio, cpu_iowait_ratio, psi_io_some_s, psi_cpu_some_s)",
    ),
    (
        "PCIe traffic",
        ("pcie_bytes_per_s",),
        "add DCGM_FI_PROF_PCIE_RX_BYTES and DCGM_FI_PROF_PCIE_TX_BYTES to the exporter's counters",
    ),
    (
        "SM activity",
        ("sm",),
        "add DCGM_FI_PROF_SM_ACTIVE to the exporter's counters, or run unidle agent on Hopper or newer",
    ),
    (
        "tensor and DRAM activity",
        ("tensor", "dram"),
        "add DCGM_FI_PROF_PIPE_TENSOR_ACTIVE and DCGM_FI_PROF_DRAM_ACTIVE to the exporter's counters",
    ),
    (
        "NVLink and InfiniBand traffic",
        ("nvlink_bytes_per_s", "ib_bytes_per_s"),
        "add DCGM_FI_PROF_NVLINK_TX_BYTES to the exporter's counters, or run unidle agent",
    ),
)
"""What is missed, the signs that are all unknown then, and how to get them."""


def cannot_tell(found: Signs, margins: Floats, at: Thresholds) -> str:
    """Why no cause is named: it may wait for others of its job; or what is missing and how to get it; or
    which cause is nearest by its `margins` [causes of ORDER, n]."""
    for waits, beside, whose in (
        (behind(found, at), found.beside, "of the job"),
        (may_be_behind(found, at), found.near, "of the node that are linked to them"),
    ):
        if bool((waits < 0).all()):
            return (
                f"Cannot tell the cause, because other GPUs {whose} do more (these "
                f"{percent(float(beside.mean()))} of the most): they may wait for a slow rank or a heavier "
                "stage. The step's time by rank (Megatron-LM --timing-log-level 2) or unidle diagnose "
                "--timeline FILE tells."
            )
    if bool((touches(found, at) < 0).all()):
        return (
            "Cannot tell the cause, because kernels are there all the time and touch hardly any memory (DRAM "
            f"activity {percent(float(found.dram.mean()))}): they may wait in a collective that hangs. "
            "py-spy dump --pid PID on each rank shows where, and so does TORCH_NCCL_TRACE_BUFFER_SIZE=2000 "
            "with TORCH_NCCL_DUMP_ON_TIMEOUT=1."
        )
    light = HARDLY_USED if hardly_used(found) else ""
    missing = [
        (what, how)
        for what, names, how in SOURCES
        if all(bool(np.isnan(getattr(found, name)).all()) for name in names)
    ]
    if missing:
        unknown, how = (tuple(column) for column in zip(*missing, strict=True))
        return f"{light}Cannot tell the cause, because nothing is known of {_and(unknown)}: {'; '.join(how)}."
    known = np.where(np.isnan(margins), -WIDEST, margins)
    nearest = ORDER[int(known.mean(axis=1).argmax())]
    return (
        f"{light}Cannot tell the cause, because no sign reaches its threshold; nearest is "
        f"{nearest.replace('_', ' ')}. Profile one step of the job (torch.profiler, nsys), or load unidle's "
        "in-job reporter, which tells how long a step waits for its data."
    )


HARDLY_USED = (
    "Hardly anything runs and next to nothing is copied: if they serve requests, those are few. Serve them "
    "from fewer GPUs, or let them share one (MIG, MPS). "
)


def hardly_used(found: Signs) -> bool:
    """Kernels run a tenth of the time at most, or in half of the samples none does, and next to nothing moves
    over PCIe: a GPU that waits for data is fed some."""
    rests = (known_or(found.resident, 1.0) <= 0.1) | (known_or(found.still) >= 0.5)
    moved = known_or(found.pcie_bytes_per_s, np.inf)
    return bool((rests & (moved < MOVES_BYTES_PER_S)).all())


def _and(words: tuple[str, ...]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
