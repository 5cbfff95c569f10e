"""Incidents: what is wrong, since when, how sure that is, what it costs, what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unidle_agent.fields import BY_NAME
from unidle_collector.model import Cost, Evidence, Finding, GpuRef, Incident
from unidle_dashboard.view import words
from unidle_dashboard.view.figures import Threshold
from unidle_dashboard.view.palette import cause_name

WEEK_S = 604_800.0


@dataclass(frozen=True, slots=True)
class EvidenceSeries:
    """A question for Client.series that shows a piece of evidence over time."""

    node: str
    gpu: str
    """Empty for a field of the host."""
    field: str
    threshold: Threshold | None
    name: str


def table(incidents: list[Incident]) -> list[dict[str, Any]]:
    """One row per incident; times are datetimes, numbers stay numbers, unknown is None."""
    return [
        {
            "Opened": words.moment(incident.opened_ns),
            "Severity": incident.finding.severity,
            "State": incident.state,
            "What": incident.finding.title,
            "GPUs": len(incident.finding.gpus),
            "GPU-h": incident.finding.cost_so_far.gpu_h,
            "EUR": incident.finding.cost_so_far.eur,
            "EUR/h": incident.finding.cost_per_h.eur,
            "Cause": cause_name(incident.finding.cause),
            "Sure": 100 * incident.finding.confidence,
            "Job": incident.finding.job,
            "Nodes": _few(incident.finding.nodes),
        }
        for incident in incidents
    ]


def _few(nodes: tuple[str, ...]) -> str:
    """Up to two nodes by name, more by their number."""
    return ", ".join(nodes) if len(nodes) <= 2 else f"{len(nodes)} nodes"


def position(incidents: list[Incident], incident_id: str) -> int | None:
    """The row of an incident, by its id."""
    return next((row for row, one in enumerate(incidents) if one.id == incident_id), None)


def chosen(incidents: list[Incident], rows: list[int]) -> str | None:
    """The id of the incident in the row that was clicked; None where there is no such row any more."""
    return incidents[rows[0]].id if rows and rows[0] < len(incidents) else None


def likelihoods(finding: Finding) -> list[tuple[str, float]]:
    """The cause with its probability, then the runners-up, most likely first."""
    others = sorted(finding.runners_up, key=lambda share: -share.probability)
    return [
        (cause_name(finding.cause), finding.confidence),
        *((cause_name(share.cause), share.probability) for share in others),
    ]


def evidence_rows(finding: Finding) -> list[dict[str, str]]:
    """The evidence as people read it: each value with its unit, beside the threshold and the window."""
    return [
        {
            "Field": piece.field,
            "Measured": _in_words(piece, piece.value),
            "Threshold": _in_words(piece, piece.threshold) if piece.threshold is not None else "none",
            "Window": words.duration(piece.window_s) if piece.window_s else "now",
            "In words": piece.text,
        }
        for piece in finding.evidence
    ]


def costs(cost: Cost) -> str:
    """ "31 GPU-h, 186 EUR, 22 kWh"."""
    return ", ".join(
        (words.amount(cost.gpu_h, "GPU-h"), words.amount(cost.eur, "EUR"), words.amount(cost.kwh, "kWh"))
    )


def commands(incident: Incident) -> list[tuple[str, str]]:
    """(what it does, the exact command) of each recommendation that has one."""
    return [(one.title, one.command) for one in incident.recommendations if one.command]


def evidence_series(finding: Finding, most_gpus: int = 4) -> list[EvidenceSeries]:
    """What can be drawn: every field of the evidence that is in the table, for the first GPUs.

    Where they wait for others the first of those comes first: beside it their wait is seen.
    """
    found = []
    shown = (*finding.held_back_by[:1], *finding.gpus)[:most_gpus]
    for piece in finding.evidence:
        field = BY_NAME.get(piece.field)
        if field is None or field.kind == "state":
            continue
        if field.scope == "host":
            found += [_host_series(piece, node) for node in finding.nodes[:most_gpus]]
        else:
            found += [_gpu_series(piece, gpu) for gpu in shown]
    return list({(one.node, one.gpu, one.field): one for one in found}.values())


def series_window_s(incident: Incident, now_ns: int | None) -> float:
    """A window that holds the time before the incident began: at least an hour, at most a week."""
    end_ns = now_ns if now_ns is not None else incident.finding.updated_ns
    return min(WEEK_S, max(3600.0, 1.5 * (end_ns - incident.finding.since_ns) / 1e9))


def affected(gpus: tuple[GpuRef, ...]) -> list[tuple[str, str]]:
    """(node, its GPUs in words): "GPU 0-3, 6"."""
    nodes: dict[str, list[GpuRef]] = {}
    for gpu in gpus:
        nodes.setdefault(gpu.node, []).append(gpu)
    return [(node, _gpu_list(ones)) for node, ones in nodes.items()]


def _gpu_list(gpus: list[GpuRef]) -> str:
    indexes = sorted(gpu.index for gpu in gpus if gpu.index is not None)
    if len(indexes) < len(gpus):
        return ", ".join(gpu.gpu for gpu in gpus)
    runs: list[list[int]] = []
    for index in indexes:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return "GPU " + ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _in_words(piece: Evidence, value: float | None) -> str:
    return words.measured(piece.field, value, piece.unit)


def _host_series(piece: Evidence, node: str) -> EvidenceSeries:
    name = f"{words.label(piece.field)}, host {node}"
    return EvidenceSeries(node, "", piece.field, _threshold(piece), name)


def _gpu_series(piece: Evidence, gpu: GpuRef) -> EvidenceSeries:
    place = f"GPU {gpu.index}" if gpu.index is not None else gpu.gpu
    name = f"{words.label(piece.field)}, {gpu.node} {place}"
    return EvidenceSeries(gpu.node, gpu.gpu, piece.field, _threshold(piece), name)


def _threshold(piece: Evidence) -> Threshold | None:
    return None if piece.threshold is None else Threshold(piece.threshold, piece.unit)
