"""Reclaim idle GPUs: give back what is held and not used.

What it proposes
    To end the job (or session) whose GPUs have been idle, or to ask its owner to, when a finding `idle`
    has been told. Lever: reclaim.

What it wins
    All GPU-hours that the idle GPUs would go on losing, and the energy they draw while idle. How long
    that would be is not known: expected as long again as it has lasted, with the interval that holds for
    eight in ten (Lindy's law).

What it risks
    A loaded model has to be loaded again; an interactive session loses its state. A job whose other
    GPUs work loses that work since its last checkpoint: then only a smaller request helps.
"""

from __future__ import annotations

from unidle_collector.detectors import duration, plural
from unidle_collector.model import Finding, Recommendation
from unidle_collector.pergpu import SECOND_NS
from unidle_collector.recommend import common, shell
from unidle_collector.repairs import numbers


def advise(finding: Finding, now_ns: int) -> Recommendation | None:
    """Reclaim for an idle finding, None for any other."""
    if finding.kind != "idle":
        return None
    count = len(finding.gpus)
    lasted = duration((now_ns - finding.since_ns) / SECOND_NS)
    return Recommendation(
        id=f"reclaim-{finding.id.partition('-')[2]}",
        kind="reclaim_idle",
        lever="reclaim",
        title=f"Reclaim {plural(count, 'GPU')} idle for {lasted} in {finding.subject_kind} {finding.subject}",
        subject=finding.subject,
        binding_constraint="the owner's consent: only the owner knows whether the session is still needed",
        risk="what is loaded on the GPUs is lost; starting again costs the model load",
        assumptions=(
            "what has idled this long idles on in proportion: half of such GPUs as long again or longer",
            "no time limit of the job is known that would end it earlier",
        ),
        command=_command(finding),
        undo="submit the job again",
        notice=(
            "tell the owner first; give 30 minutes; silence this finding if the owner wants to keep the GPUs"
        ),
        measure="24 h later: idle GPU-hours of this subject against the interval above",
        **common(finding, now_ns),
    )


def _command(finding: Finding) -> str:
    job = finding.job
    if job.isdigit():
        return f"scancel {job}"
    if job.count("/") == 1:
        namespace, _, pod = job.partition("/")
        return f"kubectl -n {shell(namespace)} delete pod {shell(pod)}"
    node = finding.nodes[0] if finding.nodes else "NODE"
    query = "nvidia-smi --query-compute-apps=gpu_uuid,pid,used_memory --format=csv"
    return f"ssh {shell(node)} {query} -i {shell(numbers(finding))}  # then end the process with its owner"
