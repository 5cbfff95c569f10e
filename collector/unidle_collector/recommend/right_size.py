"""Right-size a request: the same work on fewer GPUs, or on a part of one.

What it proposes
    To submit the job the next time with the request that the finding `over_provisioned` names: the GPUs that
    it uses, or a MIG instance that holds it. Lever: reclaim for GPUs that are not used, pack for a part of
    a GPU. A finding that knows nothing smaller calls for nothing.

What it wins
    The whole of each unused GPU; of a GPU that is too large the share of its compute that the MIG instance
    leaves to others. Nothing before the job is submitted again, so the gain counts from then; how long it
    would go on like this is not known: as long again as it has lasted, with the interval that holds for
    eight in ten (Lindy's law).

What it risks
    A load that grows finds less to grow into; short bursts take longer on a part of a GPU. A GPU is cut into
    MIG instances only while nothing runs on it.
"""

from __future__ import annotations

from unidle_collector.detectors import duration, plural
from unidle_collector.model import Finding, Recommendation
from unidle_collector.pergpu import SECOND_NS
from unidle_collector.recommend import common, shell


def advise(finding: Finding, now_ns: int) -> Recommendation | None:
    """A smaller request for an over-provisioned job, None for anything else."""
    if finding.kind != "over_provisioned" or not finding.cost_per_h.gpu_h > 0:
        return None
    count, unused = len(finding.gpus), finding.cause == "fewer_gpus"
    lasted = duration((now_ns - finding.since_ns) / SECOND_NS)
    what = "never used" if unused else "too large for the work"
    return Recommendation(
        id=f"rightsize-{finding.id.partition('-')[2]}",
        kind="right_size",
        lever="reclaim" if unused else "pack",
        title=(
            f"Right-size {finding.subject_kind} {finding.subject}: {plural(count, 'GPU')} {what} for {lasted}"
        ),
        subject=finding.subject,
        binding_constraint=(
            "the owner's next submission: a running job cannot give GPUs back"
            if unused
            else "a node whose GPUs are cut into such MIG instances"
        ),
        risk=(
            "a stage that uses them later finds them missing"
            if unused
            else "a load that grows has less to grow into; short bursts take longer on a part of a GPU"
        ),
        assumptions=(
            "what has been so for this long goes on in proportion: half of such jobs as long again or longer",
            "the job asks for the same again",
            "what is given back is used by others",
        ),
        command=_command(finding),
        undo="submit with the request as it was",
        notice="send the owner this finding; nothing is changed under a running job",
        measure="24 h after the next submission: GPU-hours and run time of this job against this one",
        **common(finding, now_ns),
    )


def _command(finding: Finding) -> str:
    job = finding.job
    if job.isdigit():
        asked = f"scontrol show job {job}"
    elif job.count("/") == 1:
        namespace, _, pod = job.partition("/")
        limits = "jsonpath={.spec.containers[*].resources.limits}"
        asked = f"kubectl -n {shell(namespace)} get pod {shell(pod)} -o {shell(limits)}"
    else:
        node = finding.nodes[0] if finding.nodes else "NODE"
        asked = f"ssh {shell(node)} nvidia-smi"
    return f"{asked}  # what it has now\n# next time: {finding.advice}"
