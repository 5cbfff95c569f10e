"""Repair after a fatal error of an NVSwitch: boot the node, which resets its switches and all its GPUs.

What it proposes
    For a finding `nvswitch` that is fatal: to drain the node and to boot it when nothing runs there. A reset
    of all its GPUs together does the same where the fabric manager is stopped first. Lever: fix.

What it wins
    Nothing by the hour that could be counted: jobs on one GPU go on, those on several hang or die, and which
    would have come is not known.

What it risks
    Every job of the node has to end first, those that do without NVLink, too.
"""

from __future__ import annotations

from unidle_collector.detectors import plural
from unidle_collector.model import Finding, Recommendation
from unidle_collector.recommend import common
from unidle_collector.repairs import drain, reboot, resume


def advise(finding: Finding, now_ns: int) -> Recommendation | None:
    """Repair for a switch that failed, None for any other finding."""
    if finding.kind != "nvswitch" or finding.cause != "fatal" or not finding.nodes:
        return None
    node = finding.nodes[0]
    code = next((item.value for item in finding.evidence if item.field == "sxid"), None)
    why = f"SXid {int(code)}" if code else "fatal SXid"
    return Recommendation(
        id=f"switch-{finding.id.partition('-')[2]}",
        kind="repair_nvswitch",
        lever="fix",
        title=f"Boot {node}: an NVSwitch failed ({why}), {plural(len(finding.gpus), 'GPU')} behind it",
        subject=node,
        binding_constraint="all jobs of the node have to end first: draining waits for them",
        risk="the failure may come again: then the baseboard wants service",
        assumptions=(
            "no hour is counted as lost: which jobs would have needed NVLink is not known",
            "booting resets the switches; where it does not help, the hardware is at fault",
        ),
        command="\n".join([drain(finding, why), *reboot(finding, why)]),
        undo=resume(finding),
        notice="running jobs end normally under drain; those that use several GPUs of the node may hang",
        measure="24 h later: no SXid of this node, and nvidia-smi nvlink -s shows all links",
        **common(finding, now_ns),
    )
