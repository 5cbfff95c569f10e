"""Options of the ECharts figures. Text in them is plain text: ECharts escapes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unidle_collector.model import STATES, Account, Series
from unidle_dashboard.view import words
from unidle_dashboard.view.palette import LOOKS
from unidle_dashboard.view.today import Step

TOTAL_COLOUR = "#6B7C93"
STEP_COLOURS = {"Total": TOTAL_COLOUR, "Allocated": "#4F7CAC", "Active": "#3D8FA0", "Effective": "#2A9D8F"}
DROP_COLOURS = {
    "Allocated": LOOKS["unallocated"].colour,
    "Active": LOOKS["idle"].colour,
    "Effective": LOOKS["starved"].colour,
}
DROP_NAMES = {"Allocated": "free or failed", "Active": "idle", "Effective": "slowed"}


@dataclass(frozen=True, slots=True)
class Threshold:
    """Where a detector draws its line, in base units; drawn only over a series of the same unit."""

    value: float
    unit: str


def funnel(steps: list[Step]) -> dict[str, Any]:
    """Bars that shrink from Total to Effective; what a step loses hangs pale on its end."""
    axis = {"type": "category", "inverse": True, "axisTick": {"show": False}, "axisLine": {"show": False}}
    value_axis = {
        **axis,
        "data": [_step_text(step) for step in steps],
        "axisLabel": {
            "fontSize": 13,
            "align": "left",
            "rich": {"v": {"fontSize": 18, "fontWeight": 600, "width": 50}, "d": {"fontSize": 12}},
        },
    }
    return {
        "grid": {"left": 78, "right": 200, "top": 2, "bottom": 2, "outerBoundsMode": "none"},
        "xAxis": {"type": "value", "min": 0, "max": 100, "show": False},
        "yAxis": [
            {**axis, "data": [step.name for step in steps], "axisLabel": {"fontSize": 14}},
            {**value_axis, "position": "right"},
        ],
        "series": [
            _bars([step.ratio for step in steps], [STEP_COLOURS[step.name] for step in steps], 1.0),
            _bars(
                [step.drop for step in steps],
                [DROP_COLOURS.get(step.name, "") for step in steps],
                opacity=0.4,
            ),
        ],
        "animation": False,
    }


def _step_text(step: Step) -> str:
    """The value, and what was lost on the way, as ECharts rich text."""
    drop = ""
    if step.drop is not None and step.drop >= 0.005:
        drop = f"{{d|−{100 * step.drop:.0f} % {DROP_NAMES[step.name]}}}"
    return f"{{v|{words.percent(step.ratio)}}} {drop}"


def _bars(ratios: list[float | None], colours: list[str], opacity: float) -> dict[str, Any]:
    data = [
        {"value": round(100 * max(ratio or 0.0, 0.0), 1), "itemStyle": {"color": colour, "opacity": opacity}}
        for ratio, colour in zip(ratios, colours, strict=True)
    ]
    return {"type": "bar", "stack": "all", "barWidth": "64%", "data": data, "silent": True}


def funnel_in_words(steps: list[Step]) -> str:
    """The same for who does not see it."""
    return ", ".join(f"{step.name} {words.percent(step.ratio)}" for step in steps)


def line(series: Series, threshold: Threshold | None = None) -> dict[str, Any]:
    """One field over time in the unit that people read; where nothing is known the line breaks."""
    unit, factor = words.shown_unit(series.unit)
    points = [
        [time_ns // 1_000_000, None if value is None else value * factor]
        for time_ns, value in zip(series.times_ns, series.values, strict=True)
    ]
    figure: dict[str, Any] = {
        "useUTC": True,
        "grid": {"left": 64, "right": 24, "top": 34, "bottom": 44, "outerBoundsMode": "none"},
        "tooltip": {"trigger": "axis", "valueFormatter": f"%.2f {unit.replace('%', '%%')}"},
        "xAxis": {"type": "time", "name": "UTC", "nameLocation": "middle", "nameGap": 28},
        "yAxis": {
            "type": "value",
            "name": f"{words.label(series.field)}, {unit}" if unit else words.label(series.field),
            "nameTextStyle": {"align": "left"},
            "scale": unit != "%",
            "min": 0 if unit == "%" else None,
        },
        "series": [
            {
                "type": "line",
                "name": words.label(series.field),
                "showSymbol": False,
                "connectNulls": False,
                "lineStyle": {"width": 1.6},
                "sampling": "lttb",
                "data": points,
            }
        ],
        "animation": False,
    }
    if threshold is not None and threshold.unit == series.unit:
        at = threshold.value * factor
        figure["series"][0]["markLine"] = {
            "silent": True,
            "symbol": "none",
            "lineStyle": {"type": "dashed", "color": LOOKS["throttled"].colour},
            "label": {
                "formatter": f"threshold {words.number(at)} {unit}",
                "position": "insideEndTop",
            },
            "data": [{"yAxis": at}],
        }
    return figure


def states_bar(account: Account) -> list[tuple[str, str, float]]:
    """(state, colour, share 0-1) of the window's GPU time, in the order of the states, zeros left out."""
    total = sum(account.seconds.values())
    if not total:
        return []
    shares = ((state, LOOKS[state].colour, account.seconds.get(state, 0.0) / total) for state in STATES)
    return [one for one in shares if one[2] > 0]
