"""SIMULATED jobs whose memory runs out, or never does: part of `python -m benchmarks.diagnosis`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.mechanism_runs import watch
from unidle_collector.model import GpuRef
from unidle_collector.recording import Recording
from unidle_collector.simulator.mechanisms.memory import MEMORY_VARIANTS, memory
from unidle_collector.simulator.mechanisms.variant import Set
from unidle_collector.simulator.recordings import SECOND_NS, START_NS

OOM_EACH_S = 30


def oom(which: Set, jobs: int, hours: int, seed: int) -> dict[str, Any]:
    """Jobs of one GPU each: alarms where memory does not run out, and the lead where it does."""
    chosen = [v for v in MEMORY_VARIANTS if v.set == which]
    instants = hours * 3600 // OOM_EACH_S
    used, full = np.zeros((instants, jobs)), []
    for job in range(jobs):
        rng = np.random.default_rng([seed, 2, job])
        used[:, job], at = memory(chosen[job % len(chosen)], hours * 60, OOM_EACH_S, rng)
        full.append(at)
        if at is not None:
            used[at:, job] = 0.0
    recording = _memory_recording(used)
    told = {f.gpus[0].index: f.told_ns or 0 for f in watch(recording).told if f.kind == "oom_risk"}
    leads_s, false, caught, fails = [], 0, 0, 0
    for job, at in enumerate(full):
        if at is None:
            false += job in told
            continue
        fails += 1
        if job in told:
            caught += 1
            end_ns = recording.start_ns + at * OOM_EACH_S * SECOND_NS
            leads_s.append((end_ns - told[job]) / SECOND_NS)
    gpu_days = sum(at is None for at in full) * hours / 24
    return {
        "gpu_days": gpu_days,
        "false_alarms": false,
        "false_per_100_gpu_days": 100 * false / gpu_days,
        "out_of_memory_jobs": fails,
        "told_before": caught,
        "lead_s_median": float(np.median(leads_s)) if leads_s else None,
        "lead_10min_ratio": float((np.array(leads_s) >= 600).mean()) if leads_s else None,
    }


def _memory_recording(used: NDArray[np.float64]) -> Recording:
    """`used` [T, jobs] ratio of an H100's memory, the GPU busy while it holds any."""
    total = 85_520_809_984.0
    busy = np.where(used > 0, 1.0, 0.0)
    return Recording(
        start_ns=START_NS + OOM_EACH_S * SECOND_NS,
        period_s=float(OOM_EACH_S),
        gpus=tuple(
            GpuRef(f"job-{n:04d}", f"GPU-{n:04d}", n, "NVIDIA H100 80GB HBM3") for n in range(used.shape[1])
        ),
        columns={
            "gpu_util_ratio": busy,
            "sm_active_ratio": 0.86 * busy,
            "memory_used_bytes": used * total,
            "memory_total_bytes": np.full(used.shape, total),
        },
        sampled=np.ones(used.shape, dtype=np.bool_),
        jobs=("",),
        job=np.full(used.shape, -1, dtype=np.int32),
        notes=(),
        simulated=True,
    )
