"""What a run of `unidle up` came to: the summary file, and the verdict that a person reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unidle_collector.client import CollectorApi
from unidle_collector.up.score import Injected, score


def read_truth(path: Path) -> dict[str, Any]:
    """The simulator's truth file; empty while there is none."""
    try:
        truth: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return truth


def summarize(
    api: CollectorApi,
    truth: dict[str, Any],
    messages_delivered: int | None,
    dashboard_http_status: int | None,
) -> dict[str, Any]:
    """The summary, from the collector's answers and (in a demo) the truth file.

    Without simulated faults there is nothing to judge by: missed and false are null then.
    """
    health = api.health()
    incidents = api.incidents("all")
    findings = [incident.finding for incident in incidents]
    faults = [Injected.of(row) for row in truth.get("faults", [])]
    judged = score(faults, findings, health.event_time_ns or 0)
    out = {
        "simulated": bool(truth),
        "rows_ingested": int(health.counters["rows_ingested"]),
        "gpus": api.fleet().gpus,
        **judged.as_summary(),
        "recommendations": len(api.recommendations()),
        "messages_delivered": messages_delivered,
        "dashboard_http_status": dashboard_http_status,
        "history_s": truth.get("history_s"),
        "sim_speed": truth.get("sim_speed"),
    }
    if not truth:
        out |= {"faults_injected": {}, "faults_missed": None, "false_findings": None, "details": []}
    return out


def verdict(judged: dict[str, Any]) -> list[str]:
    """The summary as lines for a person."""
    lines = [
        "{verdict:<8} {kind:<19} {cause:<18} {where}: {text}".format(**detail) for detail in judged["details"]
    ]
    owed = sum(judged["faults_injected"].values())
    lines.append(
        f"SIMULATED: {owed} faults were due, {judged['faults_missed']} missed, "
        f"{judged['false_findings']} false findings, {judged['recommendations']} recommendations, "
        f"{judged['messages_delivered']} messages, {judged['rows_ingested']:,} rows of {judged['gpus']} GPUs"
    )
    return lines


def passed(summary: dict[str, Any]) -> bool:
    """Nothing missed, nothing false."""
    return not summary["faults_missed"] and not summary["false_findings"]
