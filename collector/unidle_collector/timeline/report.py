"""A timeline's verdict, for people and for machines."""

from __future__ import annotations

import dataclasses
from typing import Any

from unidle_collector.timeline.verdict import SAME_CONTENT, WORTH_TELLING, Class, Report

_WHAT: dict[Class, str] = {
    "worker": "one worker computes more slowly than its peers",
    "stage": "one pipeline stage has more to compute than the others",
    "sequence_lengths": "micro-batches hold unequal amounts of work",
    "uneven_compute": "compute times change from one micro-batch to the next",
    "communication": "transfers between ranks take longer than usual",
}


def document(report: Report) -> dict[str, Any]:
    """The JSON document: seconds, ratios, places by dp_rank and stage."""
    return {
        "slowdown": report.slowdown,
        "class": report.name,
        "cause": report.cause,
        "worker": dataclasses.asdict(report.worker) if report.worker else None,
        "stage": dataclasses.asdict(report.stage) if report.stage else None,
        "explanations": [
            {"class": each.name, "slowdown": each.slowdown, "share": each.share}
            for each in report.explanations
        ],
        "forward_backward_correlation": report.correlation,
        "steps": report.steps,
        "ranks": report.ranks,
        "dp_ranks": report.dp_ranks,
        "stages": report.stages,
        "step_s": report.step_s,
        "even_step_s": report.even_step_s,
        "measured_step_s": report.measured_step_s,
        "lost_rank_hours": report.lost_rank_hours,
        "evidence": list(evidence(report)),
        "advice": advice(report),
        "confirm": confirm(report),
        "notes": list(report.notes),
    }


def render(report: Report) -> str:
    """The verdict in words."""
    lines = [
        f"{report.steps} steps of {report.dp_ranks} data-parallel x {report.stages} pipeline ranks.",
        f"The job takes {report.slowdown:.3f} times as long as an even one: {report.step_s:.3g} s per step;",
        f"{report.even_step_s:.3g} s are enough if every operation takes what its kind takes on average.",
        f"That cost {report.lost_rank_hours:.2g} rank-hours over the steps recorded.",
        "",
        headline(report),
        *(f"  - {text}" for text in evidence(report)),
    ]
    lines += [f"  What to do: {advice(report)}"] if advice(report) else []
    lines += [f"  To confirm: {confirm(report)}"] if confirm(report) else []
    lines += ["", "What each explanation does alone to an even job:"]
    lines += [
        f"  {each.slowdown:6.3f}  {max(0.0, each.share):4.0%} of the lost time  {_WHAT[each.name]}"
        for each in report.explanations
    ]
    lines += ["", "About the input", *(f"  - {note}" for note in report.notes)] if report.notes else []
    return "\n".join(lines)


def headline(report: Report) -> str:
    """One sentence."""
    if report.name == "none":
        return f"Nothing to mend: below {WORTH_TELLING:g} is the ordinary unevenness of a healthy job."
    if report.name == "undetermined":
        first, second = (_WHAT[each.name] for each in report.explanations[:2])
        return f"Cannot tell one cause from another: {first}, and {second}."
    where = ""
    if report.worker:
        where = f": dp_rank {report.worker.dp_rank}, stage {report.worker.stage}"
    elif report.stage and report.name == "stage":
        where = f": stage {report.stage.stage}"
    return f"{_WHAT[report.name].capitalize()}{where}."


def evidence(report: Report) -> tuple[str, ...]:
    """The numbers that the verdict rests on."""
    texts = []
    if report.name not in ("none", "undetermined"):
        best = report.explanations[0]
        texts.append(
            f"an even job with only this takes {best.slowdown:.3f} times as long, which is "
            f"{min(best.share, 1):.0%} of the loss"
        )
    if report.worker:
        texts.append(
            f"its passes take {report.worker.factor:.2f} times as long as those of the other workers of "
            f"stage {report.worker.stage}; with it alone an even job takes {report.worker.slowdown:.3f} "
            "times as long"
        )
    if report.stage and report.name == "stage":
        texts.append(
            f"stage {report.stage.stage} computes {report.stage.factor:.2f} times as long as the mean stage, "
            f"on all of its {report.dp_ranks} workers alike"
        )
    if report.stage and report.name in ("sequence_lengths", "uneven_compute"):
        texts.append(
            f"it costs most in stage {report.stage.stage}: with that stage alone as it was, an even job "
            f"takes {report.stage.slowdown:.3f} times as long"
        )
    if report.correlation is not None and report.name in ("sequence_lengths", "uneven_compute"):
        side = "depends on" if report.correlation >= SAME_CONTENT else "does not depend on"
        texts.append(
            f"forward and backward times of a micro-batch correlate by {report.correlation:.2f} (from "
            f"{SAME_CONTENT:g} on they depend on the same content), so the time {side} what is in it"
        )
    return tuple(texts)


def advice(report: Report) -> str:
    """The change to make; empty when there is none."""
    if report.name == "worker" and report.worker:
        place = f"dp_rank {report.worker.dp_rank}, stage {report.worker.stage}"
        return (
            f"find the node of {place} and compare its clocks, temperatures and other processes with a "
            "peer's; if they differ: scontrol update NodeName=NODE State=DRAIN Reason=straggler"
        )
    if report.name == "stage" and report.stage and report.stage.factor > 1:
        more = 1 - 1 / report.stage.factor
        return (
            f"move about {more:.0%} of its work off stage {report.stage.stage}: fewer layers (the loss "
            "and the output layer count as layers too), or split the output layer over stages"
        )
    return {
        "sequence_lengths": (
            "balance micro-batches by the sum of squared sequence lengths rather than by tokens, or pack "
            "sequences to equal length, across data-parallel ranks and within a step"
        ),
        "uneven_compute": (
            "look for what interrupts the hosts: garbage collection (gc.disable(), then gc.collect() every "
            "N steps on all ranks at once), CPU contention, clock changes"
        ),
        "communication": (
            "compare link rates and errors of the ranks with the longest transfers; see whether the fabric "
            "fell back to TCP (NCCL_DEBUG=INFO names the transport)"
        ),
    }.get(report.name, "")


def confirm(report: Report) -> str:
    """What would settle it; empty when nothing is claimed."""
    return {
        "worker": "run the same job with that node left out: the step should come near the even step",
        "stage": "record a few steps after moving a layer: the stages' mean compute times come together",
        "sequence_lengths": "record the sequence lengths of a slow and a fast micro-batch of the same step",
        "uneven_compute": "record a timeline with garbage collection off",
        "communication": "run a collective benchmark on the same ranks beside an idle job",
    }.get(report.name, "")
