"""The commands of a repair, line by line, for a person to read and run; nothing here is executed."""

from __future__ import annotations

import shlex

from unidle_collector.model import Finding


def numbers(finding: Finding) -> str:
    """Its GPUs as `nvidia-smi -i` takes them: indices, or UUIDs where there are none."""
    return ",".join(ref.gpu if ref.index is None else str(ref.index) for ref in finding.gpus)


def drain(finding: Finding, why: str) -> str:
    """No new job comes to its node; what runs there goes on."""
    reason = shlex.quote(f"unidle: {why}, {finding.id}")
    return f"scontrol update NodeName={shlex.quote(finding.nodes[0])} State=drain Reason={reason}"


def resume(finding: Finding) -> str:
    """Jobs come to its node again."""
    return f"scontrol update NodeName={shlex.quote(finding.nodes[0])} State=resume"


def wait(finding: Finding) -> str:
    """How to see that nothing runs on its node any more."""
    return f"squeue -w {shlex.quote(finding.nodes[0])}  # go on when this is empty"


def reset(finding: Finding) -> list[str]:
    """Reset its GPUs: an agent that holds the driver stands in the way, so it lets go meanwhile."""
    node = shlex.quote(finding.nodes[0])
    return [
        f"ssh {node} unidle agent release --for 10m",
        f"ssh {node} nvidia-smi --gpu-reset -i {shlex.quote(numbers(finding))}",
        f"ssh {node} unidle agent release --now",
    ]


def reboot(finding: Finding, why: str) -> str:
    """Boot its node when nothing runs there; it comes back into service by itself."""
    reason = shlex.quote(f"unidle: {why}, {finding.id}")
    return f"scontrol reboot ASAP nextstate=RESUME reason={reason} {shlex.quote(finding.nodes[0])}"
