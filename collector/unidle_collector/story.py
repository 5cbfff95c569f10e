"""A finding as lines of text: the same in a terminal whether it was live or recorded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from unidle_collector.detectors import duration, plural
from unidle_collector.model import Cost, Finding, GpuRef
from unidle_collector.spoken import cause_words

UNDETERMINED = "undetermined"
NAMES = {
    UNDETERMINED: "cannot tell",
    "reset": "unusable until the GPU is reset",
    "reboot": "unusable until the machine is booted",
}
FEW = 4
"""Most nodes that are named with their GPUs."""


def story(finding: Finding) -> list[tuple[str, str]]:
    """(label, text): what it is about, since when, why and how sure, cost, evidence, what to do.

    Further lines of evidence have no label.
    """
    end_ns = finding.ended_ns or finding.updated_ns
    over = f", over since {utc(finding.ended_ns)}" if finding.ended_ns is not None else ""
    rows = [("subject", subject(finding))]
    rows += [("waits for", places(finding.held_back_by))] if finding.held_back_by else []
    rows += [
        ("since", f"{utc(finding.since_ns)}, for {duration((end_ns - finding.since_ns) / 1e9)}{over}"),
        ("cause", cause(finding)),
        ("cost so far", cost(finding.cost_so_far)),
    ]
    rows += [("each hour", cost(finding.cost_per_h))] if finding.ended_ns is None else []
    for number, fact in enumerate(finding.evidence):
        window = f", {duration(fact.window_s)}" if fact.window_s else ""
        rows.append(("" if number else "evidence", f"{fact.text} [{fact.field}{window}]"))
    rows += [("do", finding.advice)] if finding.advice else []
    rows += [("confirm by", finding.confirm)] if finding.confirm else []
    return rows


def cause(finding: Finding) -> str:
    """`storage too slow (82 % sure); else: CPU preprocessing too slow 12 %, cannot tell 6 %`"""
    others = ", ".join(f"{_name(each.cause)} {each.probability:.0%}" for each in finding.runners_up)
    if finding.cause == UNDETERMINED:
        return "cannot tell" + (f"; likeliest: {others}" if others else "")
    sure = f"{_name(finding.cause)} ({finding.confidence:.0%} sure)"
    return sure + (f"; else: {others}" if others else "")


def subject(finding: Finding) -> str:
    """`job 4711: GPU 0-7 of n1`."""
    head, shown = f"{finding.subject_kind} {finding.subject}", places(finding.gpus)
    return f"{head}: {shown}" if shown else head


def places(gpus: Sequence[GpuRef]) -> str:
    """`GPU 0-7 of n1; GPU 0 of n2`, whole nodes beyond a few counted."""
    nodes: dict[str, list[GpuRef]] = {}
    for ref in gpus:
        nodes.setdefault(ref.node, []).append(ref)
    where = [f"{_numbers(refs)} of {node}" for node, refs in nodes.items()]
    shown = "; ".join(where[:FEW])
    if len(where) > FEW:
        shown += f"; {plural(len(where) - FEW, 'more node')}, {plural(len(gpus), 'GPU')} in all"
    return shown


def cost(of: Cost) -> str:
    """`12.40 GPU-h, EUR 31.00, 8.1 kWh`; what is not known is said."""
    if not of.gpu_h and not of.eur:
        return "no GPU time lost"
    eur = "EUR unknown (no price)" if of.eur is None else f"EUR {of.eur:.2f}"
    kwh = "kWh unknown" if of.kwh is None else f"{of.kwh:.2f} kWh"
    return f"{of.gpu_h:.2f} GPU-h, {eur}, {kwh}"


def utc(time_ns: int) -> str:
    """`2026-11-21 14:02:10 UTC`"""
    return f"{datetime.fromtimestamp(time_ns // 1_000_000_000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _name(key: str) -> str:
    return NAMES.get(key) or cause_words(key)


def _numbers(refs: Iterable[GpuRef]) -> str:
    """`GPU 0-3, 6`; UUIDs where a recording has no indices."""
    every = list(refs)
    indices = sorted(ref.index for ref in every if ref.index is not None)
    if len(indices) < len(every):
        return ", ".join(ref.gpu for ref in every)
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return "GPU " + ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
