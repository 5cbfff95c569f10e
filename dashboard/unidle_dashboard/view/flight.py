"""The two minutes of a flight recorder, as one figure of panels over the same time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from unidle_agent.fields import BY_NAME
from unidle_agent.sample import SLOWED_DOWN
from unidle_collector.model import FlightRecording, GpuRef, Incident
from unidle_dashboard.view import words
from unidle_dashboard.view.palette import LOOKS

PANELS = (
    ("Activity", ("gpu_util_ratio", "sm_active_ratio", "tensor_active_ratio", "memory_util_ratio")),
    ("Power", ("power_instant_w", "power_w")),
    ("Clock", ("sm_clock_hz", "memory_clock_hz")),
    ("Heat", ("temperature_c", "memory_temperature_c")),
    ("Memory", ("memory_used_bytes",)),
)
"""Panel -> the fields of one unit that it shows, as far as they are known."""
COLOURS = ("#2A9D8F", "#E9724C", "#4F7CAC", "#8E6C8A")
PANEL_PX, TOP_PX, GAP_PX, FOOT_PX = 84, 30, 42, 40
HOLE_NS = 3_000_000_000
"""Looks farther apart than this have a hole between them, and the line breaks."""


def panels(flight: FlightRecording) -> list[tuple[str, list[str]]]:
    """The panels that have anything to show, with the fields that are known."""
    shown = []
    for name, fields in PANELS:
        known = [field for field in fields if any(map(words.known, flight.columns.get(field, ())))]
        if known:
            shown.append((name, known))
    return shown


def height_px(flight: FlightRecording) -> int:
    """How high the figure is."""
    count = len(panels(flight))
    return TOP_PX + count * PANEL_PX + (count - 1) * GAP_PX + FOOT_PX


def figure(flight: FlightRecording) -> dict[str, Any]:
    """Options of the figure; where the driver held the clocks back, every panel is shaded."""
    shown = panels(flight)
    held = _held_back(flight)
    grids, x_axes, y_axes, series = [], [], [], []
    for number, (name, fields) in enumerate(shown):
        unit, _ = words.shown_unit(BY_NAME[fields[0]].unit)
        top = TOP_PX + number * (PANEL_PX + GAP_PX)
        grids.append({"left": 64, "right": 190, "top": top, "height": PANEL_PX, "outerBoundsMode": "none"})
        x_axes.append(_time_axis(flight, number, last=number == len(shown) - 1))
        y_axes.append(
            {
                "type": "value",
                "gridIndex": number,
                "name": f"{name}, {unit}",
                "nameTextStyle": {"align": "left"},
                "splitNumber": 2,
                "scale": unit != "%",
                "min": 0 if unit == "%" else None,
            }
        )
        for colour, field in zip(COLOURS, fields, strict=False):
            series.append(_line(flight, field, number, colour))
        if held:
            series[-1]["markArea"] = {
                "silent": True,
                "itemStyle": {"color": LOOKS["throttled"].colour, "opacity": 0.16},
                "data": [[{"xAxis": first}, {"xAxis": last}] for first, last in held],
            }
    return {
        "useUTC": True,
        "grid": grids,
        "xAxis": x_axes,
        "yAxis": y_axes,
        "tooltip": {"trigger": "axis"},
        "axisPointer": {"link": [{"xAxisIndex": "all"}]},
        "series": series,
        "animation": False,
    }


def name_of(flight: FlightRecording, gpus: Sequence[GpuRef]) -> str:
    """ "b200-07 GPU 3, XID 79, 14:02:10 UTC"."""
    index = next((ref.index for ref in gpus if ref.gpu == flight.gpu), None)
    place = f"GPU {index}" if index is not None else flight.gpu
    return f"{flight.node} {place}, {why(flight)}, {words.clock(flight.taken_ns)}"


def why(flight: FlightRecording) -> str:
    """What sent it, in words."""
    kind, _, code = flight.reason.partition(" ")
    known = {
        "asked": "asked for when the finding was told",
        "xid": f"XID {code}",
        "gpu_lost": "the GPU was lost",
        "driver_hung": "the driver hung",
    }
    return known.get(kind, flight.reason.replace("_", " "))


def caption(flight: FlightRecording) -> str:
    """What the figure rests on: looks, rate, window and source."""
    first_ns, last_ns = min(flight.times_ns), max(flight.times_ns)
    span_s = (last_ns - first_ns) / 1e9
    rate = f", {(len(flight.times_ns) - 1) / span_s:.1f} a second" if span_s else ""
    source = "SIMULATED" if flight.simulated else "NVML"
    shaded = (
        " Shaded: clocks held back by heat, hardware slowdown or power brake." if _held_back(flight) else ""
    )
    return (
        f"{words.many(len(flight.times_ns), 'look')}{rate}, {words.clock(first_ns)} to "
        f"{words.clock(last_ns)}; source: {source}, the node's flight recorder.{shaded}"
    )


def order(flights: list[FlightRecording], incident: Incident) -> list[FlightRecording]:
    """Those with looks; first what an event of the driver sent, then what was taken nearest to the begin."""
    begun_ns = incident.finding.since_ns
    with_looks = [flight for flight in flights if flight.times_ns]
    return sorted(with_looks, key=lambda one: (one.reason == "asked", abs(one.taken_ns - begun_ns)))


def _time_axis(flight: FlightRecording, number: int, *, last: bool) -> dict[str, Any]:
    axis = {
        "type": "time",
        "gridIndex": number,
        "min": min(flight.times_ns) // 1_000_000,
        "max": max(flight.times_ns) // 1_000_000,
        "axisLabel": {"show": last, "formatter": "{HH}:{mm}:{ss}", "hideOverlap": True},
        "axisTick": {"show": last},
    }
    return {**axis, "name": "UTC", "nameLocation": "middle", "nameGap": 26} if last else axis


def _line(flight: FlightRecording, field: str, number: int, colour: str) -> dict[str, Any]:
    unit, factor = words.shown_unit(BY_NAME[field].unit)
    return {
        "type": "line",
        "name": f"{words.label(field)}, {unit}",
        "xAxisIndex": number,
        "yAxisIndex": number,
        "showSymbol": False,
        "color": colour,
        "lineStyle": {"width": 1.4},
        "endLabel": {"show": True, "formatter": words.label(field), "color": colour, "distance": 6},
        "labelLayout": {"moveOverlap": "shiftY"},
        "data": _points(flight, field, factor),
    }


def _points(flight: FlightRecording, field: str, factor: float) -> list[list[float | None]]:
    """[ms, value] of the looks that know the field; a null where the recorder has a hole."""
    points: list[list[float | None]] = []
    before_ns: int | None = None
    for time_ns, value in zip(flight.times_ns, flight.columns[field], strict=True):
        if value is None:
            continue
        if before_ns is not None and time_ns - before_ns > HOLE_NS:
            points.append([before_ns // 1_000_000 + 1, None])
        points.append([time_ns // 1_000_000, round(value * factor, 4)])
        before_ns = time_ns
    return points


def _held_back(flight: FlightRecording) -> list[tuple[int, int]]:
    """(first, last) ms of each stretch in which the clock-event reasons say so."""
    stretches: list[tuple[int, int]] = []
    going = False
    reasons = flight.columns.get("clock_event_reasons", ())
    for time_ns, bits in zip(flight.times_ns, reasons, strict=False):
        if bits is None:
            continue
        at_ms = time_ns // 1_000_000
        if going:
            stretches[-1] = (stretches[-1][0], at_ms)
        if int(bits) & SLOWED_DOWN and not going:
            stretches.append((at_ms, at_ms))
        going = bool(int(bits) & SLOWED_DOWN)
    return stretches
