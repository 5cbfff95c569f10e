"""What may leave in a message: an allow-list by content level (design input: eu-trust, section 1).

`ids_only` keeps severity, kind, cause, node, GPU, numbers and ids. Every free text goes, because a job
name, user or path may stand in it. `full` keeps the job and the texts; the user never leaves.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from unidle_collector.model import Finding, Incident, Recommendation

ANONYMOUS = "[user]"


def permitted(incident: Incident, content: str) -> Incident:
    """`incident` with only what the content level lets out. Idempotent."""
    if content == "full":
        return _without_user(incident)
    return replace(
        incident,
        finding=_bare_finding(incident.finding),
        recommendations=tuple(_bare_recommendation(each) for each in incident.recommendations),
    )


def _bare_finding(finding: Finding) -> Finding:
    return replace(
        finding,
        subject="" if finding.subject_kind == "job" else finding.subject,
        title="",
        job="",
        user="",
        evidence=tuple(replace(each, text="") for each in finding.evidence),
        advice="",
        confirm="",
    )


def _bare_recommendation(recommendation: Recommendation) -> Recommendation:
    return replace(
        recommendation,
        title="",
        subject="",
        binding_constraint="",
        risk="",
        assumptions=(),
        command="",
        undo="",
        notice="",
        measure="",
        job="",
        user="",
    )


def _without_user(incident: Incident) -> Incident:
    users = {incident.finding.user, *(each.user for each in incident.recommendations)} - {""}
    hide = _hider(users)
    finding = incident.finding
    return replace(
        incident,
        finding=replace(
            finding,
            user="",
            title=hide(finding.title),
            advice=hide(finding.advice),
            confirm=hide(finding.confirm),
            evidence=tuple(replace(each, text=hide(each.text)) for each in finding.evidence),
        ),
        recommendations=tuple(
            replace(
                each,
                user="",
                title=hide(each.title),
                risk=hide(each.risk),
                command=hide(each.command),
                undo=hide(each.undo),
                notice=hide(each.notice),
                binding_constraint=hide(each.binding_constraint),
                assumptions=tuple(hide(text) for text in each.assumptions),
                measure=hide(each.measure),
            )
            for each in incident.recommendations
        ),
    )


def _hider(users: set[str]) -> Callable[[str], str]:
    if not users:
        return lambda text: text
    longest_first = sorted(users, key=len, reverse=True)
    pattern = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, longest_first)) + r")(?!\w)")
    return lambda text: pattern.sub(ANONYMOUS, text)
