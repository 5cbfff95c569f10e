"""Findings of one kind about one job, from several shards, told as one; the same of incidents' parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from unidle_collector.detectors import plural
from unidle_collector.federation.adding import add_costs
from unidle_collector.model import Finding, Severity

SEVERITIES: tuple[Severity, ...] = ("info", "warning", "critical")


@dataclass(frozen=True, slots=True)
class Part:
    """What is kept of a shard's incident that is part of one of the site's."""

    id: str
    """Of the shard's incident, which is that of its finding."""
    incident_id: str
    over: Finding | None
    """Its last word where it is over; None while it is open."""


def of_site(found: Iterable[Finding], parts: Iterable[Part]) -> list[Finding]:
    """The shards' open findings as those of the site, under the ids of the site's incidents."""
    incident_of: dict[str, str] = {}
    over: dict[str, list[Finding]] = {}
    for part in parts:
        incident_of[part.id] = part.incident_id
        if part.over is not None:
            over.setdefault(part.incident_id, []).append(part.over)
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for finding in found:
        groups.setdefault(group_of(finding) or (finding.id,), []).append(finding)
    out = []
    for members in groups.values():
        known = sorted(incident_of[one.id] for one in members if one.id in incident_of)
        key = known[0] if known else _first(members).id
        out.append(merged(key, members, over.get(key, ())))
    return out


def group_of(finding: Finding) -> tuple[str, str] | None:
    """What several shards can find about one subject: only a job is in more than one."""
    return (finding.kind, finding.subject) if finding.subject_kind == "job" else None


def merged(key: str, members: Sequence[Finding], over: Sequence[Finding] = ()) -> Finding:
    """Findings of one group as one of that id. `over`: parts that have ended, whose cost counts on.

    Cause, words and evidence are those of the part that loses most; who it concerns and what it costs is
    the whole.
    """
    lead = max(
        members, key=lambda one: (one.told_ns is not None, one.cost_per_h.gpu_h, len(one.gpus), one.id)
    )
    if len(members) == 1 and not over:
        return lead if lead.id == key else replace(lead, id=key)
    rest = [one for one in members if one is not lead]
    title = lead.title
    if rest:
        gpus, nodes = sum(len(one.gpus) for one in rest), len({name for one in rest for name in one.nodes})
        title += f" (and {plural(gpus, 'GPU')} of the job on {plural(nodes, 'other node')})"
    ended = [one.ended_ns for one in members]
    return replace(
        lead,
        id=key,
        title=title,
        severity=max((one.severity for one in members), key=SEVERITIES.index),
        since_ns=min(one.since_ns for one in (*members, *over)),
        updated_ns=max(one.updated_ns for one in members),
        told_ns=min((one.told_ns for one in (*members, *over) if one.told_ns is not None), default=None),
        ended_ns=None if None in ended else max(at for at in ended if at is not None),
        job=_names(members, lambda one: one.job),
        user=_names(members, lambda one: one.user),
        nodes=tuple(sorted({name for one in members for name in one.nodes})),
        gpus=tuple(sorted({ref for one in members for ref in one.gpus}, key=lambda ref: (ref.node, ref.gpu))),
        cost_so_far=add_costs(one.cost_so_far for one in (*members, *over)),
        cost_per_h=add_costs(one.cost_per_h for one in members),
        simulated=any(one.simulated for one in members),
    )


def _first(members: Sequence[Finding]) -> Finding:
    return min(members, key=lambda one: (one.since_ns, one.id))


def _names(members: Sequence[Finding], of: Callable[[Finding], str]) -> str:
    return ", ".join(sorted({name for one in members for name in of(one).split(", ") if name}))
