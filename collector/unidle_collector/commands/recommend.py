"""What to do now: recommendations with what each would win, what it risks and the exact command.

Nothing is executed: every command is for you to read and run. The most worth comes first.

Examples:
  unidle recommend
  unidle recommend --json
"""

from __future__ import annotations

import argparse

from pydantic import TypeAdapter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from unidle_agent.settings import load
from unidle_collector.client import Client
from unidle_collector.model import Cost, Recommendation
from unidle_collector.reader_settings import ReaderSettings, add_reader_flags
from unidle_collector.screen import screen

LABEL = 14
"""Characters before the text of a line."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--json", action="store_true", help="one JSON list, for machines")
    add_reader_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Ask the collector and print."""
    settings = load(ReaderSettings, "reader", args)
    items = Client(settings.collector_url, settings.collector_token.reveal()).recommendations()
    if args.json:
        print(TypeAdapter(list[Recommendation]).dump_json(items, indent=2).decode())
        return 0
    console = screen()
    if not items:
        console.print("Nothing to do: no open finding calls for an action.")
    for number, item in enumerate(items, 1):
        _show(console, number, item)
    return 0


def _show(console: Console, number: int, item: Recommendation) -> None:
    gain = item.gain
    mark = "[reverse] SIMULATED [/reverse] " if item.simulated else ""
    console.print(f"{number}. {mark}[bold]{escape(item.title)}[/bold]  ({item.lever}, {item.id})")
    won = (
        f"{_cost(gain.expected)} within {gain.horizon_h:.0f} h "
        f"(between {_cost(gain.low)} and {_cost(gain.high)})"
    )
    console.print(
        _labelled(
            ("would win", won),
            ("bound by", item.binding_constraint),
            ("risk", item.risk),
            ("assumes", "; ".join(item.assumptions)),
            ("owner", item.notice),
        )
    )
    for line in item.command.splitlines():  # in one piece, however long: it is there to be copied
        console.print(f"   [cyan]$ {escape(line)}[/cyan]", soft_wrap=True)
    console.print(_labelled(("undo", item.undo), ("measured", item.measure)))
    console.print()


def _labelled(*rows: tuple[str, str]) -> Table:
    """Labels at the left, texts that fold behind them."""
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(width=LABEL)
    table.add_column(overflow="fold")
    for label, text in rows:
        table.add_row(f"   {label}", escape(text))
    return table


def _cost(cost: Cost) -> str:
    eur = "EUR unknown" if cost.eur is None else f"{cost.eur:.2f} EUR"
    kwh = "kWh unknown" if cost.kwh is None else f"{cost.kwh:.1f} kWh"
    return f"{cost.gpu_h:.1f} GPU-h, {eur}, {kwh}"
