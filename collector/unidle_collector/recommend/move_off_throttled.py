"""Move jobs off a throttled GPU: the same work runs at full clock elsewhere.

What it proposes
    To drain the node and move its jobs when a finding `throttling_thermal` or `throttling_power` with a
    brake or hardware cause has been told. Lever: place.

What it wins
    The clocks that the throttled GPUs lose. A job over many GPUs runs as fast as its slowest one, so the
    true gain is larger for such a job; only the measured loss of the throttled GPUs is counted.

What it risks
    The work since the last checkpoint, and the wait for a free place of the same size.
"""

from __future__ import annotations

from unidle_collector.detectors import duration, plural
from unidle_collector.model import Finding, Recommendation
from unidle_collector.pergpu import SECOND_NS
from unidle_collector.recommend import common
from unidle_collector.repairs import drain, resume, start_elsewhere

KINDS = ("throttling_thermal", "throttling_power")


def advise(finding: Finding, now_ns: int) -> Recommendation | None:
    """Move for a throttling finding, None for any other; a power cap is set right in place."""
    if finding.kind not in KINDS or finding.cause == "power_cap" or not finding.nodes:
        return None
    node = finding.nodes[0]
    heat = finding.kind == "throttling_thermal"
    lasted = duration((now_ns - finding.since_ns) / SECOND_NS)
    what = "heat" if heat else "power"
    return Recommendation(
        id=f"move-{finding.id.partition('-')[2]}",
        kind="move_off_throttled",
        lever="place",
        title=(
            f"Move the work off {plural(len(finding.gpus), 'GPU')} of {node}, slowed by {what} for {lasted}"
        ),
        subject=node,
        binding_constraint="a free place of the same GPU count and model elsewhere",
        risk=(
            "the work since the last checkpoint is lost if the job is moved now; draining alone loses nothing"
        ),
        assumptions=(
            "what has lasted this long lasts on in proportion: half of them as long again or longer",
            "other nodes run unthrottled",
            "only the clock loss of the throttled GPUs is counted, not that of GPUs that wait for them",
        ),
        command="\n".join([drain(finding, f"{what} throttling"), *start_elsewhere(finding)]),
        undo=resume(finding),
        notice="running jobs end normally under drain; requeue a job only with its owner's consent",
        measure="24 h later: clock of the moved job's GPUs, and throttled GPU-hours of this node",
        **common(finding, now_ns),
    )
