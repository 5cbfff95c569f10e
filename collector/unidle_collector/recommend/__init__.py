"""Recommendations: one rule per file, found by walking this package; a recommendation is a value.

A rule looks at one open finding and answers what to do, or None. Nothing is ever executed.
"""

from __future__ import annotations

import pkgutil
import shlex
from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from typing import TypedDict

from unidle_collector.model import Cost, Finding, Gain, GpuRef, Recommendation
from unidle_collector.pergpu import SECOND_NS

HORIZON_H = 24.0
MIN_LASTED_H = 0.25
"""A loss younger than this says little about how long it lasts."""

Rule = Callable[[Finding, int], Recommendation | None]


@cache
def rules() -> tuple[Rule, ...]:
    """The function `advise` of every file of this package."""
    names = sorted(info.name for info in pkgutil.iter_modules(__path__))
    return tuple(import_module(f"{__name__}.{name}").advise for name in names)


def recommend(findings: Iterable[Finding], now_ns: int) -> list[Recommendation]:
    """What to do about open findings that were told, the greatest expected gain first."""
    advised = [
        rule(finding, now_ns) for finding in findings if finding.told_ns is not None for rule in rules()
    ]
    return sorted((item for item in advised if item is not None), key=_worth, reverse=True)


class Common(TypedDict):
    """What a recommendation has of the finding that it is about."""

    finding_ids: tuple[str, ...]
    gain: Gain
    created_ns: int
    job: str
    user: str
    nodes: tuple[str, ...]
    gpus: tuple[GpuRef, ...]
    simulated: bool


def common(finding: Finding, now_ns: int) -> Common:
    """Of this finding, for all that would be won by ending its loss."""
    return Common(
        finding_ids=(finding.id,),
        gain=gain_if_it_lasts(finding, now_ns),
        created_ns=now_ns,
        job=finding.job,
        user=finding.user,
        nodes=finding.nodes,
        gpus=finding.gpus,
        simulated=finding.simulated,
    )


def gain_if_it_lasts(finding: Finding, now_ns: int) -> Gain:
    """What ending a loss wins within a day.

    How long it would have lasted is not known; what has lasted for a time lasts on in proportion to it
    (Lindy's law, survival L / (L + x)): half of such losses outlast as long again, nine in ten a ninth
    of it, one in ten nine times it. Those are expected, low and high; none goes beyond the day.
    """
    lasted_h = max(MIN_LASTED_H, (now_ns - finding.since_ns) / SECOND_NS / 3600)
    low, expected, high = (
        _times(finding.cost_per_h, min(HORIZON_H, lasted_h * factor)) for factor in (1 / 9, 1, 9)
    )
    return Gain(HORIZON_H, low, expected, high)


def change_of_job(
    finding: Finding,
    now_ns: int,
    *,
    kind: str,
    title: str,
    constraint: str,
    risk: str,
    assumptions: tuple[str, ...],
    command: str,
    undo: str,
    measure: str,
) -> Recommendation:
    """A change that the owner of a job makes to it: lever fix, with the finding's subject and gain."""
    return Recommendation(
        id=f"{kind.partition('_')[0]}-{finding.id.partition('-')[2]}",
        kind=kind,
        lever="fix",
        title=title,
        subject=finding.subject,
        binding_constraint=constraint,
        risk=risk,
        assumptions=(
            "what has lasted this long lasts on in proportion: half of them as long again or longer",
            *assumptions,
        ),
        command=command,
        undo=undo,
        notice="send the owner the finding's page; nothing is done to the job",
        measure=measure,
        **common(finding, now_ns),
    )


def shell(text: str) -> str:
    """A name as one safe word of a shell command."""
    return shlex.quote(text)


def _times(rate: Cost, hours: float) -> Cost:
    return Cost(
        rate.gpu_h * hours,
        None if rate.eur is None else rate.eur * hours,
        None if rate.kwh is None else rate.kwh * hours,
    )


def _worth(item: Recommendation) -> tuple[float, float]:
    expected = item.gain.expected
    return (expected.eur or 0.0, expected.gpu_h)
