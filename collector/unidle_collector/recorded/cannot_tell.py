"""What a recording leaves open: each question, and what would answer it.

Judged by what is there, not by where it came from: a server that scrapes unidle's agents can tell more
than one that scrapes dcgm-exporter alone, and a file of either as much as its server.
"""

from __future__ import annotations

import numpy as np

from unidle_agent.fields import HOST_FIELDS
from unidle_collector.recorded.rows import NOBODY, NOT_SAID
from unidle_collector.recording import Recording
from unidle_collector.signals import ACTIVITY

SHORT_S = 5.0
"""Sampled more rarely, what comes and goes within seconds is not seen (bursts, stalls between steps)."""

LIMITING = ("clock_event_reasons", "power_cap_s", "thermal_throttle_s")
"""Any of these says that, and most of them why, clocks are held down."""


def cannot_tell(recording: Recording, interval_s: float, step_s: float) -> tuple[str, ...]:
    """The open questions of a recording, sampled each `interval_s` and put on a grid of `step_s`."""
    known = {name for name, column in recording.columns.items() if not np.isnan(column).all()}
    out = []
    if not any(spec.name in known for spec in HOST_FIELDS):
        out.append(
            "Why a GPU waited: nothing says what its host did (CPU, memory, disk, network, data loader). Run "
            "unidle agent on the nodes in question."
        )
    if (recording.job <= NOBODY).all():
        free = (recording.job == NOBODY).any()
        out.append(
            "Whose a GPU was: nothing names a pod or job. "
            + (
                ""
                if free
                else "A GPU that runs something or holds memory counts as somebody's, any other as free. "
            )
            + "Turn on the exporter's Kubernetes or HPC job mapping, or run unidle agent."
        )
    elif (recording.job == NOT_SAID).any():
        out.append("Whose the GPUs of some nodes were: nothing from there names a pod or job.")
    if max(interval_s, step_s) > SHORT_S:
        seen = f"samples are {interval_s:g} s apart"
        if step_s > 1.5 * interval_s:
            seen += f" and were averaged over {step_s:g} s"
        out.append(
            f"What is over within seconds: {seen}. Bursts, stalls between steps and short throttling are "
            "averaged away or missed; time lost in them is not in the accounts."
        )
    if "sm_active_ratio" not in known:
        out.append(
            "How full a busy GPU was: there is no SM activity (DCGM_FI_PROF_SM_ACTIVE), only whether any "
            "kernel ran. Add the profiling fields to the exporter's counters file."
        )
    if not known.intersection(ACTIVITY):
        out.append(
            "What GPUs did: neither utilization (DCGM_FI_DEV_GPU_UTIL) nor SM activity is there. A GPU "
            "whose memory and processes are unknown, too, is unknown."
        )
    elif not known.intersection({"memory_used_bytes", "process_count"}) and (recording.job <= NOBODY).all():
        out.append(
            "Whether a GPU that did nothing was held: neither memory used (DCGM_FI_DEV_FB_USED) nor "
            "processes nor jobs are there. It counts as belonging to nobody until something runs on it."
        )
    if not known.intersection(LIMITING):
        out.append(
            "Why clocks fell: neither DCGM_FI_DEV_CLOCK_THROTTLE_REASONS nor the POWER_VIOLATION and "
            "THERMAL_VIOLATION counters are there (the exporter's default list has them commented out)."
        )
    if not known.intersection({"memory_total_bytes", "memory_free_bytes"}):
        out.append(
            "How near memory was to its end: DCGM_FI_DEV_FB_FREE is not there, so its size is not known."
        )
    if "gpu_state" not in known and not recording.sampled.all():
        out.append(
            "Whether a GPU without samples had failed: an exporter that is down and a GPU that is lost "
            "both end what is recorded."
        )
    return tuple(out)
