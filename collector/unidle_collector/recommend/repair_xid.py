"""Repair after a fatal XID: reset the GPU, or boot its node, and have it back.

What it proposes
    To drain the node and, when nothing runs there, to reset the GPU or to boot the machine: what the
    driver itself asks for where it does, else what the class of the XID calls for. The agent lets go of the
    driver for the reset. Lever: fix.

What it wins
    All the time of the GPU, which has failed until then.

What it risks
    A reset ends nothing that runs on other GPUs, but on boards with NVSwitch the driver may ask for all
    GPUs of the node together. A GPU that fails again within days has to be replaced.
"""

from __future__ import annotations

from unidle_collector.detectors import duration, plural
from unidle_collector.model import Finding, Recommendation
from unidle_collector.pergpu import SECOND_NS
from unidle_collector.recommend import common
from unidle_collector.repairs import drain, reboot, reset, resume, wait
from unidle_collector.signs.xids import recovery_action, xid


def advise(finding: Finding, now_ns: int) -> Recommendation | None:
    """Repair for a finding `xid`, None for any other."""
    if finding.kind != "xid" or not finding.nodes:
        return None
    told = {item.field: item.value for item in reversed(finding.evidence)}  # the newest of a field stays
    asked = recovery_action(told.get("recovery_action") or 0.0)
    boots = (asked.class_ if asked else finding.cause) == "reboot"
    code = told.get("last_xid")
    why = f"XID {xid(int(code)).code}" if code else "fatal XID"
    repair = reboot(finding, why) if boots else [wait(finding), *reset(finding), resume(finding)]
    node, lasted = finding.nodes[0], duration((now_ns - finding.since_ns) / SECOND_NS)
    what = "Boot" if boots else "Reset"
    whose = "the driver asks for it" if asked else "what the catalogue of XIDs calls for repairs it"
    return Recommendation(
        id=f"repair-{finding.id.partition('-')[2]}",
        kind="repair_xid",
        lever="fix",
        title=f"{what} {plural(len(finding.gpus), 'GPU')} of {node}: {why}, failed for {lasted}",
        subject=node,
        binding_constraint="the other jobs of the node have to end first: draining waits for them",
        risk="boards with NVSwitch may need all GPUs of the node reset together; the failure may come again",
        assumptions=(
            "what has failed this long fails on in proportion: half of such GPUs as long again or longer",
            whose,
        ),
        command="\n".join([drain(finding, why), *repair]),
        undo=resume(finding),
        notice="running jobs end normally under drain; the job that had the GPU is dead: tell its owner",
        measure="24 h later: failed GPU-hours of this node, and whether the XID has come again",
        **common(finding, now_ns),
    )
