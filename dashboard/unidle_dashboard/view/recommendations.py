"""Recommendations by lever, and what each one would win."""

from __future__ import annotations

from dataclasses import dataclass

from unidle_collector.model import Gain, Recommendation
from unidle_dashboard.view import words

LEVERS: dict[str, tuple[str, str]] = {
    "reclaim": ("Reclaim", "take back GPUs that are held and not used"),
    "fix": ("Fix", "remove what slows a job or a GPU"),
    "pack": ("Pack", "put jobs that fit together on fewer GPUs"),
    "place": ("Place", "start what waits on what is free"),
}


@dataclass(frozen=True, slots=True)
class GainLine:
    """One unit of a gain: expected, and the interval."""

    unit: str
    expected: str
    interval: str


def by_lever(recommendations: list[Recommendation]) -> list[tuple[str, list[Recommendation]]]:
    """(lever, its recommendations in the API's order), levers in the order of LEVERS, empty ones left out."""
    groups = ((lever, [one for one in recommendations if one.lever == lever]) for lever in LEVERS)
    return [(lever, ones) for lever, ones in groups if ones]


def gain_lines(gain: Gain) -> list[GainLine]:
    """GPU-hours, EUR and kWh: expected value and "low to high"; unknown stays unknown."""
    return [
        _line("GPU-h", gain.low.gpu_h, gain.expected.gpu_h, gain.high.gpu_h),
        _line("EUR", gain.low.eur, gain.expected.eur, gain.high.eur),
        _line("kWh", gain.low.kwh, gain.expected.kwh, gain.high.kwh),
    ]


def horizon(gain: Gain) -> str:
    """ "within 24 h"."""
    return f"within {gain.horizon_h:g} h"


def _line(unit: str, low: float | None, expected: float | None, high: float | None) -> GainLine:
    interval = (
        f"{words.number(low)} to {words.number(high)}"
        if words.known(low) and words.known(high)
        else f"interval {words.UNKNOWN}"
    )
    return GainLine(unit, words.number(expected), interval)
