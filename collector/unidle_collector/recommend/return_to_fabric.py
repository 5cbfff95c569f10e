"""Return to the fabric: collectives over InfiniBand or RoCE instead of TCP.

What it proposes
    To start a job again so that NCCL takes the nodes' InfiniBand, when a finding `tcp_fallback` has been told
    with that cause (nodes without it call for something else). Lever: fix.

What it wins
    The time in which its GPUs wait for Ethernet, less what they will wait for the fabric.

What it risks
    The work since the last checkpoint. With NCCL_NET=IB a job that still finds no device fails at its start.
"""

from __future__ import annotations

from unidle_collector.detectors import plural
from unidle_collector.model import Finding, Recommendation
from unidle_collector.recommend import change_of_job


def advise(finding: Finding, now_ns: int) -> Recommendation | None:
    """For a fallback that is certain, None for any other."""
    if finding.kind != "tcp_fallback" or finding.cause != "tcp_fallback":
        return None
    return change_of_job(
        finding,
        now_ns,
        kind="return_to_fabric",
        title=(
            f"Bring {finding.subject} back to InfiniBand: {plural(len(finding.gpus), 'GPU')} on "
            f"{plural(len(finding.nodes), 'node')} reduce over TCP"
        ),
        constraint="the job's image and environment, which its owner changes; a restart",
        risk="the work since the last checkpoint; the job fails at its start where it still finds no device",
        assumptions=("over InfiniBand its GPUs are as active as their reference",),
        command=(
            "NCCL_DEBUG=INFO  # in the job, once: NET/Socket or NET/IB\n"
            "unset NCCL_IB_DISABLE; export NCCL_NET=IB  # fails rather than falls back\n"
            "# in a container: --device=/dev/infiniband --ulimit memlock=-1"
        ),
        undo="unset NCCL_NET",
        measure="bytes over InfiniBand and tensor activity of the job's next run, by node",
    )
