"""Kinds and causes of findings in words, for the pages and messages that people read: one table for all.

An id that is not here, as of a newer collector, is its own words.
"""

from __future__ import annotations

from collections.abc import Mapping

KINDS: Mapping[str, str] = {
    "checkpoint_stall": "checkpoint stall",
    "clock_skew": "clock skew",
    "driver_hung": "driver does not answer",
    "ecc": "memory errors",
    "gpu_lost": "GPU lost",
    "idle": "idle",
    "infiniband": "InfiniBand",
    "node_down": "node down",
    "nvlink": "NVLink",
    "nvswitch": "NVSwitch",
    "oom_risk": "out-of-memory risk",
    "over_provisioned": "over-provisioned",
    "pcie": "PCIe",
    "pipeline_imbalance": "pipeline imbalance",
    "silent_zeros": "silent counters",
    "stale_agent": "stale agent",
    "starvation": "starvation",
    "straggler": "straggler",
    "tcp_fallback": "TCP fallback",
    "tensor_cores_idle": "tensor cores idle",
    "tensor_cores_unused": "tensor cores unused",
    "throttling_power": "throttled by power",
    "throttling_thermal": "throttled by heat",
    "xid": "fatal XID",
    "xid_application": "XID of the application",
    "xid_warning": "XID to look at",
}
CAUSES: Mapping[str, str] = {
    "ahead": "clock ahead",
    "alert": "a person has to judge it",
    "application": "the job's own error",
    "behind": "clock behind",
    "checkpoint": "checkpointing",
    "communication": "waits for collectives",
    "counters_silent": "profiling counters say 0",
    "cpu_preprocessing": "CPU preprocessing too slow",
    "down": "node down",
    "errors": "link errors",
    "fabric": "fabric not healthy",
    "fatal": "a switch failed",
    "fewer_gpus": "GPUs never used",
    "generation": "PCIe generation too low",
    "hardware_thermal": "hardware thermal slowdown",
    "held": "memory held, nothing runs",
    "host_to_device": "host-to-device copies",
    "hung": "driver does not answer",
    "hw_slowdown": "hardware slowdown",
    "interactive": "interactive session left open",
    "large_gpu": "GPU too large for the work",
    "links_down": "links down",
    "lost": "GPU lost",
    "no_process": "no process at all",
    "number_format_unknown": "number format not known",
    "pipeline_imbalance": "unbalanced pipeline stages",
    "port_down": "port down",
    "power_brake": "power brake",
    "power_cap": "power limit",
    "precision": "trains in float32",
    "reboot": "needs a reboot",
    "recovery_action": "the driver asks for a repair",
    "recovery_failed": "a link did not recover",
    "remap_failed": "remapping memory failed",
    "remap_pending": "memory waits for a reset",
    "repeated": "errors that keep coming",
    "reset": "needs a reset",
    "retired": "memory retired",
    "retirement_failed": "memory could not be retired",
    "rising_memory": "memory keeps rising",
    "silent": "nothing comes from the node",
    "slow_port": "port below its rate",
    "small_kernels": "small kernels, launch-bound",
    "software_thermal": "software thermal slowdown",
    "spares_used_up": "no spare memory left",
    "sram_threshold": "on-chip memory fails too often",
    "storage": "storage too slow",
    "straggler": "waits for a straggler",
    "tcp_fallback": "collectives over TCP",
    "uncorrectable": "errors beyond correction",
    "undetermined": "cause not determined",
    "unknown": "code in no catalogue",
    "width": "fewer PCIe lanes than it could use",
}


def kind_words(kind: str) -> str:
    """`out-of-memory risk` for `oom_risk`."""
    return KINDS.get(kind, kind.replace("_", " "))


def cause_words(cause: str) -> str:
    """`storage too slow` for `storage`."""
    return CAUSES.get(cause, cause.replace("_", " "))
