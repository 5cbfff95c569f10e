"""Show the last two minutes of an incident's GPUs at full rate: what their flight recorders held.

Every agent keeps five looks a second at each GPU in memory. An XID, a lost GPU or a hung driver sends
them; for throttling, a lost GPU and OOM risk the collector asks. docs/flight-recorder.md has the rest.

Examples:
  unidle flight thermal-mgvfzt2p                  each recording: its fields over time, as a picture
  unidle flight thermal-mgvfzt2p --csv look.csv   every look, one row each, in base units
  unidle flight thermal-mgvfzt2p --json
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter
from rich.markup import escape
from rich.table import Table

from unidle_agent.errors import UnidleError
from unidle_agent.fields import BY_NAME
from unidle_agent.settings import load
from unidle_collector.client import Client
from unidle_collector.detectors import plural
from unidle_collector.model import FlightRecording
from unidle_collector.reader_settings import ReaderSettings, add_reader_flags
from unidle_collector.screen import screen

SHOWN = {"1": ("%", 100.0), "Hz": ("MHz", 1e-6), "By": ("GiB", 2.0**-30), "Cel": ("°C", 1.0), "W": ("W", 1.0)}
"""Unit of the field table -> what a person reads, and the factor to it."""
BARS = "▁▂▃▄▅▆▇█"
FLAT = 0.1
"""Less than this share of the highest value is drawn as that little, not as the whole height."""
PICTURE = 60
"""Most characters of a picture: two seconds each over two minutes."""
LEAST_PICTURE = 8
BESIDE_PICTURE = 58
"""Characters of the other columns."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("incident", metavar="INCIDENT", help="an incident's id")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="one JSON list, for machines")
    how.add_argument("--csv", type=Path, metavar="FILE", help="write every look to FILE")
    add_reader_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Ask the collector and print; 1 where there is no recording."""
    settings = load(ReaderSettings, "reader", args)
    flights = Client(settings.collector_url, settings.collector_token.reveal()).flights(args.incident)
    if args.json:
        print(TypeAdapter(list[FlightRecording]).dump_json(flights, indent=2).decode())
    elif args.csv:
        rows = _write_csv(args.csv, flights)
        print(f"{args.csv}: {plural(rows, 'look')} of {plural(len(flights), 'recording')}")
    else:
        _show(args.incident, flights)
    return 0 if flights else 1


def _show(incident: str, flights: Sequence[FlightRecording]) -> None:
    console = screen()
    if not flights:
        console.print(
            f"No flight recording of incident {escape(incident)}: none was sent around that time "
            "(agents without NVML or without push_url have none)."
        )
    for flight in flights:
        mark = "[reverse] SIMULATED [/reverse] " if flight.simulated else ""
        why = "asked by the collector" if flight.reason == "asked" else flight.reason
        console.print(f"{mark}[bold]{escape(flight.node)} {escape(flight.gpu)}[/bold]  {escape(why)}")
        if not flight.times_ns:
            console.print("  the recorder held nothing of this GPU\n")
            continue
        console.print(f"  {span(flight)}")
        console.print(_table(flight, max(LEAST_PICTURE, min(PICTURE, console.width - BESIDE_PICTURE))))


def span(flight: FlightRecording) -> str:
    """ "598 looks in 119.8 s, 14:00:10.2 to 14:02:10.0 UTC"."""
    first_ns, last_ns = min(flight.times_ns), max(flight.times_ns)
    return (
        f"{len(flight.times_ns)} looks in {(last_ns - first_ns) / 1e9:.1f} s, "
        f"{_clock(first_ns)} to {_clock(last_ns)} UTC"
    )


def _table(flight: FlightRecording, width: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("field", "unit", "first to last", "least", "most", "last"):
        table.add_column(
            name, justify="right" if name in ("least", "most", "last") else "left", no_wrap=name != "unit"
        )
    for name, values in flight.columns.items():
        known = [value for value in values if value is not None]
        if not known or name not in BY_NAME:
            continue
        if BY_NAME[name].unit == "{bits}":
            bits = 0
            for value in known:
                bits |= int(value)
            ends = ("", f"{bits:#x}", f"{int(known[-1]):#x}")  # "most" is all that were ever set
            table.add_row(name, "bits", _picture(flight.times_ns, values, width), *ends)
            continue
        unit, factor = SHOWN.get(BY_NAME[name].unit, (BY_NAME[name].unit, 1.0))
        numbers = (f"{value * factor:.1f}" for value in (min(known), max(known), known[-1]))
        table.add_row(name, unit, _picture(flight.times_ns, values, width), *numbers)
    return table


def _picture(times_ns: Sequence[int], values: Sequence[float | None], width: int) -> str:
    """The mean of each of `width` slices of time as a bar between least and most; blank where unknown."""
    first_ns, last_ns = min(times_ns), max(times_ns)
    slice_ns = max(1, (last_ns - first_ns) // width + 1)
    slices: list[list[float]] = [[] for _ in range(width)]
    for time_ns, value in zip(times_ns, values, strict=True):
        if value is not None:
            slices[(time_ns - first_ns) // slice_ns].append(value)
    means = [sum(slice_) / len(slice_) if slice_ else None for slice_ in slices]
    low = min(mean for mean in means if mean is not None)
    high = max(mean for mean in means if mean is not None)
    height = max(high - low, FLAT * abs(high)) or 1.0
    return "".join(
        " " if mean is None else BARS[int((mean - low) / height * (len(BARS) - 1))] for mean in means
    )


def _write_csv(path: Path, flights: Sequence[FlightRecording]) -> int:
    names = sorted({name for flight in flights for name in flight.columns})
    rows = 0
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            out = csv.writer(file)
            out.writerow(["time_utc", "time_ns", "node", "gpu", "reason", "simulated", *names])
            for flight in flights:
                for number, time_ns in enumerate(flight.times_ns):
                    stamp = datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat(timespec="milliseconds")
                    columns = (flight.columns.get(name) for name in names)
                    values = (None if column is None else column[number] for column in columns)
                    mark = "SIMULATED" if flight.simulated else ""
                    out.writerow([stamp, time_ns, flight.node, flight.gpu, flight.reason, mark, *values])
                    rows += 1
    except OSError as error:
        raise UnidleError(f"{path}: expected a file that can be written: {error.strerror}") from error
    return rows


def _clock(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / 1e9, UTC).strftime("%H:%M:%S.%f")[:-5]
