"""Repair a GPU's memory before it costs a job: reset it while it is idle, or have it replaced.

What it proposes
    For a row that waits to be remapped, retired memory and uncorrectable errors: to drain the node and reset
    the GPU when nothing runs there; the driver remaps the row on that occasion. Where remapping or
    retirement failed, or the on-chip memory has failed too often: to drain the node and have the GPU
    replaced. For spares that are used up: nothing yet. Lever: fix.

What it wins
    Nothing by the hour: the GPU works. It spares the crash of a job that would touch the row again, of
    which nobody can say when it comes; so no gain is claimed.

What it risks
    Minutes of the node for a reset; its absence for a replacement.
"""

from __future__ import annotations

from unidle_collector.detectors import plural
from unidle_collector.model import Finding, Recommendation
from unidle_collector.recommend import common
from unidle_collector.repairs import drain, numbers, reset, resume, wait

REPLACE = ("remap_failed", "retirement_failed", "sram_threshold")


def advise(finding: Finding, now_ns: int) -> Recommendation | None:
    """Repair for a finding `ecc`, None for any other."""
    if finding.kind != "ecc" or finding.cause == "spares_used_up" or not finding.nodes:
        return None
    node, count = finding.nodes[0], plural(len(finding.gpus), "GPU")
    replaces = finding.cause in REPLACE
    why = f"memory of GPU {numbers(finding)}"
    repair = (
        [f"{wait(finding)}: then have it replaced"]
        if replaces
        else [wait(finding), *reset(finding), resume(finding)]
    )
    return Recommendation(
        id=f"memory-{finding.id.partition('-')[2]}",
        kind="repair_memory",
        lever="fix",
        title=f"{'Replace' if replaces else 'Reset'} {count} of {node}: {finding.title}",
        subject=node,
        binding_constraint="a time at which no job runs on the node",
        risk=(
            "the node is away until the GPU is replaced"
            if replaces
            else "boards with NVSwitch may need all GPUs of the node reset together"
        ),
        assumptions=(
            "the GPU loses no time by itself: what is spared is a crash that nobody can date, not counted",
            "a job that touches the row again may die of it",
        ),
        command="\n".join([drain(finding, why), *repair]),
        undo=resume(finding),
        notice="running jobs end normally under drain",
        measure="afterwards: nvidia-smi -q -d ECC,ROW_REMAPPER shows nothing pending; no XID 48, 94, 95",
        **common(finding, now_ns),
    )
