"""The fleet in the terminal, live: what is lost now, since when, whose it is and why.

One line per node with a letter per GPU (its state); below, GPUs whose owner and use do not agree, and the
open incidents, worst first. Press Ctrl-C to leave. With --once it prints one picture and ends, which also
serves in scripts.

Examples:
  unidle top
  unidle top --once --nodes 20
  unidle top --json | jq '.gpus[] | select(.state == "idle") | .node'
  unidle top --collector-url http://10.0.0.5:9470 --collector-token-file read.token
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from datetime import UTC, datetime
from typing import Any

from pydantic import TypeAdapter
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from unidle_agent.settings import load
from unidle_collector.client import ApiError, Client, CollectorApi
from unidle_collector.detectors import duration
from unidle_collector.model import Fleet, GpuNow, Incident
from unidle_collector.owner_words import owner_words
from unidle_collector.reader_settings import ReaderSettings, add_reader_flags
from unidle_collector.screen import screen

LETTERS = {
    "failed": ("F", "white on red"),
    "unknown": ("?", "dim"),
    "unallocated": ("·", "dim"),
    "idle": ("I", "black on yellow"),
    "throttled": ("T", "white on magenta"),
    "starved": ("S", "black on cyan"),
    "productive": ("█", "green"),
}


NARROW = 110
"""Characters of a line below which an incident's subject is left to its title."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--once", action="store_true", help="print one picture and end")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print what the picture is made of, once: {fleet, gpus, incidents}",
    )
    parser.add_argument(
        "--refresh-s", type=float, default=2.0, metavar="NUMBER", help="time between pictures, s"
    )
    parser.add_argument(
        "--nodes", type=int, default=0, metavar="N", help="most nodes shown (default: what fits)"
    )
    parser.add_argument(
        "--window-s", type=float, default=3600.0, metavar="NUMBER", help="window of the sums, s"
    )
    add_reader_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Draw until Ctrl-C."""
    settings = load(ReaderSettings, "reader", args)
    client = Client(settings.collector_url, settings.collector_token.reveal())
    if args.json:
        print(json.dumps(document(client, args.window_s), indent=2))
        return 0
    console = screen()
    narrow = console.width < NARROW
    if args.once or not sys.stdout.isatty():
        console.print(picture(client, args.window_s, args.nodes or 1000, 1000, narrow=narrow))
        return 0
    with (
        contextlib.suppress(KeyboardInterrupt),
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        while True:
            rows = max(8, console.size.height - 12)
            try:
                shown = picture(client, args.window_s, args.nodes or rows // 2, rows // 2, narrow=narrow)
                live.update(shown, refresh=True)
            except ApiError as error:
                live.update(Text(f"{error}\ntrying again each {args.refresh_s:.0f} s", "red"), refresh=True)
            time.sleep(max(0.2, args.refresh_s))
    return 0


def document(api: CollectorApi, window_s: float) -> dict[str, Any]:
    """What a picture is made of, as the API has it; unknown is null."""
    kinds: tuple[tuple[str, Any, Any], ...] = (
        ("fleet", Fleet, api.fleet(window_s)),
        ("gpus", list[GpuNow], api.gpus()),
        ("incidents", list[Incident], api.incidents("open")),
    )
    return {name: TypeAdapter(kind).dump_python(value, mode="json") for name, kind, value in kinds}


def picture(
    api: CollectorApi, window_s: float, most_nodes: int, most_incidents: int, *, narrow: bool = False
) -> RenderableType:
    """One picture of the fleet."""
    fleet, gpus, incidents = api.fleet(window_s), api.gpus(), api.incidents("open")
    return Group(
        _headline(fleet, window_s),
        Text(),
        _nodes(gpus, most_nodes),
        _legend(),
        _doubts(gpus, most_incidents),
        Text(),
        _incidents(incidents, most_incidents, fleet.time_ns, narrow=narrow),
    )


def _headline(fleet: Fleet, window_s: float) -> Text:
    text = Text()
    if fleet.simulated:
        text.append(" SIMULATED ", "bold white on red").append(" ")
    clock = "no data yet"
    if fleet.time_ns is not None:
        clock = f"{datetime.fromtimestamp(fleet.time_ns / 1e9, UTC):%Y-%m-%d %H:%M:%S} UTC"
    text.append(f"unidle  site {fleet.site}  ", "bold")
    text.append(f"{fleet.nodes} nodes, {fleet.gpus} GPUs, {fleet.jobs} jobs  {clock}\n")
    account = fleet.account
    eur = "EUR unknown" if account.lost.eur is None else f"{account.lost.eur:.0f} EUR"
    kwh = "kWh unknown" if account.lost.kwh is None else f"{account.lost.kwh:.0f} kWh"
    text.append(f"last {duration(window_s)}: ", "dim")
    text.append(f"{account.lost.gpu_h:.1f} GPU-h lost to jobs ({eur}, {kwh}), ")
    text.append(f"{account.unallocated.gpu_h:.1f} GPU-h unallocated\n")
    text.append("allocated ").append(_percent(account.allocated_ratio), "bold")
    text.append("  active ").append(_percent(account.active_ratio), "bold")
    text.append("  effective ").append(_percent(account.effective_ratio), "bold green")
    util, sm = _percent(account.gpu_util_ratio), _percent(account.sm_active_ratio)
    text.append(f"   (mean GPU_UTIL {util}, SM activity {sm})", "dim")
    return text


def _nodes(gpus: list[GpuNow], most: int) -> RenderableType:
    """Nodes with the most lost GPUs first."""
    by_node: dict[str, list[GpuNow]] = {}
    for gpu in gpus:
        by_node.setdefault(gpu.node, []).append(gpu)
    order = sorted(by_node, key=lambda node: (-sum(_is_lost(gpu) for gpu in by_node[node]), node))
    table = Table(box=None, pad_edge=False, show_header=True, header_style="dim", expand=True)
    for name, side in (
        ("node", "left"),
        ("GPUs", "left"),
        ("SM", "right"),
        ("power", "right"),
        ("heat", "right"),
    ):
        table.add_column(name, justify=side, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("jobs", overflow="ellipsis", no_wrap=True, ratio=1)  # what the others leave
    for node in order[:most]:
        members = by_node[node]
        states = Text()
        for gpu in members:
            letter, style = LETTERS[gpu.state]
            states.append(letter, style)
        jobs = sorted({gpu.job for gpu in members if gpu.job})
        table.add_row(
            Text(node),
            states,
            _percent(_mean(members, "sm_active_ratio")),
            _unit(_total(members, "power_w"), "W"),
            _unit(_mean(members, "temperature_c"), "°C"),
            Text(", ".join(jobs)),
        )
    rest = len(order) - most
    return Group(table, Text(f"and {rest} more nodes", "dim")) if rest > 0 else table


def _doubts(gpus: list[GpuNow], most: int) -> RenderableType:
    """GPUs whose processes are not those of the job that holds them."""
    told = [(gpu, words) for gpu in gpus if (words := owner_words(gpu.job, gpu.owner_note, gpu.used_by))]
    lines = [Text()] if told else []
    for gpu, words in told[:most]:
        name = gpu.gpu if gpu.index is None else f"GPU {gpu.index}"
        lines.append(Text(f"{gpu.node} {name}: ", "yellow").append(words))
    if len(told) > most:
        lines.append(Text(f"and {len(told) - most} more GPUs of which such is known", "dim"))
    return Group(*lines)


def _incidents(incidents: list[Incident], most: int, now_ns: int | None, *, narrow: bool) -> RenderableType:
    if not incidents:
        return Text("no open incident", "green")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("incident", "since", "lost so far", *(() if narrow else ("subject",)), "what"):
        table.add_column(name, no_wrap=name != "what")
    worst = sorted(incidents, key=lambda item: -item.finding.cost_per_h.gpu_h)
    for item in worst[:most]:
        finding = item.finding
        lasted = ((now_ns or finding.updated_ns) - finding.since_ns) / 1e9
        eur = "" if finding.cost_so_far.eur is None else f", {finding.cost_so_far.eur:.0f} EUR"
        table.add_row(
            Text(item.id),
            duration(lasted),
            f"{finding.cost_so_far.gpu_h:.1f} GPU-h{eur}",
            *(() if narrow else (Text(f"{finding.subject_kind} {finding.subject}"),)),
            Text(finding.title, "red" if finding.severity == "critical" else ""),
        )
    rest = len(worst) - most
    return Group(table, Text(f"and {rest} more incidents", "dim")) if rest > 0 else table


def _legend() -> Text:
    text = Text()
    for state, (letter, style) in LETTERS.items():
        text.append(letter, style).append(f" {state}  ", "dim")
    return text


def _is_lost(gpu: GpuNow) -> bool:
    return gpu.state in ("failed", "idle", "throttled", "starved")


def _known(members: list[GpuNow], field: str) -> list[float]:
    return [value for gpu in members if (value := gpu.values.get(field)) is not None]


def _mean(members: list[GpuNow], field: str) -> float | None:
    values = _known(members, field)
    return sum(values) / len(values) if values else None


def _total(members: list[GpuNow], field: str) -> float | None:
    values = _known(members, field)
    return sum(values) if values else None


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0%}"


def _unit(value: float | None, unit: str) -> str:
    return "unknown" if value is None else f"{value:.0f} {unit}"
