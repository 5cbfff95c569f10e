"""Power-cycle the node of a lost GPU: nothing less brings it back onto the bus.

What it proposes
    To drain the node, and to switch it off and on when its other jobs have ended. Lever: fix.

What it wins
    All the time of the lost GPU, which has failed until then. The other GPUs of the node are out of service
    while it boots, which is not counted.

What it risks
    The jobs on the other GPUs, if somebody does not wait for them. A GPU that is lost again after this has
    to be reseated or replaced.
"""

from __future__ import annotations

from unidle_collector.detectors import duration, plural
from unidle_collector.model import Finding, Recommendation
from unidle_collector.pergpu import SECOND_NS
from unidle_collector.recommend import common, shell
from unidle_collector.repairs import drain, resume, wait


def advise(finding: Finding, now_ns: int) -> Recommendation | None:
    """Power-cycle for a finding `gpu_lost`, None for any other."""
    if finding.kind != "gpu_lost" or not finding.nodes:
        return None
    node, count = finding.nodes[0], plural(len(finding.gpus), "GPU")
    lasted = duration((now_ns - finding.since_ns) / SECOND_NS)
    return Recommendation(
        id=f"power-cycle-{finding.id.partition('-')[2]}",
        kind="power_cycle_lost",
        lever="fix",
        title=f"Power-cycle {node}: {count} lost for {lasted}",
        subject=node,
        binding_constraint="the jobs on the node's other GPUs have to end first: draining waits for them",
        risk="the node is away while it boots; a GPU that is lost again has to be reseated or replaced",
        assumptions=(
            "what is lost this long stays lost in proportion: half of such GPUs as long again or longer",
            "the GPU answers again after power was off: a reboot alone often does not do it",
        ),
        command="\n".join(
            [
                drain(finding, f"{count} lost"),
                wait(finding),
                f"ssh {shell(node)} systemctl poweroff  # then power on by its BMC",
                f"{resume(finding)}  # when nvidia-smi lists all GPUs again",
            ]
        ),
        undo=resume(finding),
        notice="running jobs end normally under drain; the job that had the GPU is dead: tell its owner",
        measure="24 h later: failed GPU-hours of this node, and whether a GPU was lost again",
        **common(finding, now_ns),
    )
