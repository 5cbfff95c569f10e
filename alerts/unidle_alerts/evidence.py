"""What a message says about an open incident: why, and the one thing to do."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

from unidle_alerts import words
from unidle_collector.model import Evidence, Finding, GpuRef, Incident, Recommendation
from unidle_collector.spoken import cause_words

MAX_COMMAND_CHARS = 1000
"""Once escaped; a section takes 3,000, a whole message 12,000."""
UNSHOWN = "The command is too long for a message or holds odd characters: it is on the dashboard."


@dataclass(frozen=True, slots=True)
class Action:
    """One thing to do: in words, and as a command for a person to read and run."""

    text: str
    command: str
    """Its lines, shown exactly or not at all: half a command does something else. Empty: none to give."""
    note: str = ""
    """What it would win."""


def cause_line(finding: Finding) -> str:
    """`storage too slow (82 % sure); else: CPU preprocessing too slow 12 %`"""
    cause = _name(finding.cause or finding.kind)
    others = ", ".join(
        f"{_name(each.cause)} {words.percent(each.probability)}" for each in finding.runners_up
    )
    if finding.cause == "undetermined":
        return "cannot tell" + (f"; likeliest: {others}" if others else "")
    return f"{cause} ({words.percent(finding.confidence)} sure)" + (f"; else: {others}" if others else "")


def _name(cause: str) -> str:
    return "cannot tell" if cause == "undetermined" else cause_words(cause)


def evidence_lines(finding: Finding) -> list[str]:
    """One line per measured fact: counter, value, threshold, window."""
    return [_line(each) for each in finding.evidence]


def action(incident: Incident) -> Action:
    """The most valuable recommendation with its command; without one, the finding's advice.

    At content level ids_only neither is there: then the command that shows them on site.
    """
    finding = incident.finding
    for recommendation in incident.recommendations:
        if recommendation.command:
            text = recommendation.title or finding.advice
            return _checked(Action(text, recommendation.command, _gain(recommendation)))
    if finding.advice:
        return Action(finding.advice, "")
    if incident.recommendations:
        first = incident.recommendations[0]
        text = f"Recommendation {first.id} ({first.lever}), with its exact command, on site:"
        return Action(text, "unidle recommend", _gain(first))
    if re.fullmatch(r"[a-z0-9_]{1,64}", finding.kind):
        return Action("What it means and what to do about it:", f"unidle explain {finding.kind}")
    return Action("", "")


def affected(gpus: tuple[GpuRef, ...]) -> list[str]:
    """One line per node, most GPUs first: `node001: GPU 0, 1, 2 (B200)`."""
    by_node: dict[str, list[str]] = {}
    models: dict[str, set[str]] = {}
    for gpu in gpus:
        by_node.setdefault(gpu.node, []).append(gpu.gpu if gpu.index is None else str(gpu.index))
        models.setdefault(gpu.node, set()).add(gpu.model)
    lines = []
    for node, names in sorted(by_node.items(), key=lambda item: -len(item[1])):
        model = ", ".join(sorted(models[node] - {""}))
        lines.append(f"{node}: GPU {', '.join(names)}" + (f" ({model})" if model else ""))
    return lines


def _checked(do: Action) -> Action:
    lines_are_plain = all(map(words.is_plain, do.command.split("\n")))
    if lines_are_plain and len(html.escape(do.command, quote=False)) <= MAX_COMMAND_CHARS:
        return do
    return Action(do.text, "", UNSHOWN)


def _gain(recommendation: Recommendation) -> str:
    gain = recommendation.gain
    return f"Wins about {words.total(gain.expected)} within {words.duration(gain.horizon_h * 3600)}"


def _line(evidence: Evidence) -> str:
    line = f"{evidence.field} {words.amount(evidence.value, evidence.unit)}"
    if evidence.threshold is not None:
        line += f", threshold {words.amount(evidence.threshold, evidence.unit)}"
    if evidence.window_s > 0:
        line += f", over {words.duration(evidence.window_s)}"
    return line
