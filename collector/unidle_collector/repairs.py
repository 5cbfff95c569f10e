"""The commands of a repair, line by line, for a person to read and run; nothing here is executed.

They are Slurm's, and kubectl where the finding is about a pod.
"""

from __future__ import annotations

import shlex

from unidle_collector.model import Finding


def numbers(finding: Finding) -> str:
    """Its GPUs as `nvidia-smi -i` takes them: indices, or UUIDs where there are none."""
    return ",".join(ref.gpu if ref.index is None else str(ref.index) for ref in finding.gpus)


def drain(finding: Finding, why: str, node: str = "") -> str:
    """No new job comes to its node, or to `node`; what runs there goes on."""
    node, reason = shlex.quote(node or finding.nodes[0]), shlex.quote(f"unidle: {why}, {finding.id}")
    if _about_pod(finding):
        return f"kubectl cordon {node}"
    return f"scontrol update NodeName={node} State=drain Reason={reason}"


def resume(finding: Finding, node: str = "") -> str:
    """Jobs come to its node, or to `node`, again."""
    node = shlex.quote(node or finding.nodes[0])
    if _about_pod(finding):
        return f"kubectl uncordon {node}"
    return f"scontrol update NodeName={node} State=resume"


def wait(finding: Finding) -> str:
    """How to see that nothing runs on its node any more."""
    node = shlex.quote(finding.nodes[0])
    if _about_pod(finding):
        return f"kubectl get pods -A --field-selector spec.nodeName={node}  # go on when only daemons stay"
    return f"squeue -w {node}  # go on when this is empty"


def start_elsewhere(finding: Finding) -> list[str]:
    """Its job starts anew on other nodes; none where nobody names the job."""
    when = "after a checkpoint, with the owner's consent"
    if _about_pod(finding):
        return [f"# {when}: delete the pods, so that they start elsewhere"]
    return [f"scontrol requeue {finding.job}  # {when}"] if finding.job.isdigit() else []


def reset(finding: Finding) -> list[str]:
    """Reset its GPUs: an agent that holds the driver stands in the way, so it lets go meanwhile."""
    node = shlex.quote(finding.nodes[0])
    return [
        f"ssh {node} unidle agent release --for 10m",
        f"ssh {node} nvidia-smi --gpu-reset -i {shlex.quote(numbers(finding))}",
        f"ssh {node} unidle agent release --now",
    ]


def reboot(finding: Finding, why: str) -> list[str]:
    """Boot its node when nothing runs there, and have it back in service."""
    node, reason = shlex.quote(finding.nodes[0]), shlex.quote(f"unidle: {why}, {finding.id}")
    if _about_pod(finding):
        return [wait(finding), f"ssh {node} systemctl reboot", f"{resume(finding)}  # when it is ready again"]
    return [f"scontrol reboot ASAP nextstate=RESUME reason={reason} {node}"]


def _about_pod(finding: Finding) -> bool:
    return "/" in finding.job
