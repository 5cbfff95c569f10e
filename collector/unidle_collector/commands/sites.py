"""The sites of a federation: what each has now, what it lost, what it withholds, and how old that is.

Asks a federation (unidle federation). With --crossings it asks a site's own collector instead: what
has left that site, to whom and when.

Examples:
  unidle sites --collector-url http://127.0.0.1:9474
  unidle sites --collector-url http://127.0.0.1:9474 --json
  unidle sites --crossings --collector-url http://127.0.0.1:9470
"""

from __future__ import annotations

import argparse
from datetime import UTC, datetime

from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unidle_agent.settings import load
from unidle_collector.client import ApiError, Client
from unidle_collector.detectors import duration
from unidle_collector.federation.report import WINDOWS_S, Crossing, SiteNow
from unidle_collector.reader_settings import ReaderSettings, add_reader_flags
from unidle_collector.screen import screen

UNKNOWN = "unknown"
WITHHELD = "withheld"
NOT_FOUND = 404


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--json", action="store_true", help="one JSON list, for machines")
    parser.add_argument("--crossings", action="store_true", help="what has left a site, asked of that site")
    add_reader_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Ask and print."""
    settings = load(ReaderSettings, "reader", args)
    client = Client(settings.collector_url, settings.collector_token.reveal())
    console = screen()
    if args.crossings:
        crossings = client.crossings()
        if args.json:
            print(TypeAdapter(list[Crossing]).dump_json(crossings, indent=2).decode())
        else:
            console.print(crossings_table(crossings))
        return 0
    try:
        sites = client.sites()
    except ApiError as error:
        if error.status != NOT_FOUND:
            raise
        raise ApiError(
            f"{settings.collector_url} is a collector, not a federation: give the address of one "
            "(unidle federation), or ask for --crossings",
            NOT_FOUND,
        ) from error
    if args.json:
        print(TypeAdapter(list[SiteNow]).dump_json(sites, indent=2).decode())
        return 0
    console.print(sites_table(sites))
    for site in sites:
        _note(console, site)
    return 0


def sites_table(sites: list[SiteNow]) -> Table:
    """One row per site, over the last day."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("site", "jurisdiction", "GPUs", "lost, 24 h", "effective", "findings", "last report"):
        table.add_column(column, no_wrap=column != "site")
    for site in sites:
        report = site.report
        name = Text(site.key)
        if report is not None and report.simulated:
            name.append(" ").append(" SIMULATED ", "reverse")
        if report is None:
            table.add_row(name, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, Text("never", "red"))
            continue
        day = report.accounts(WINDOWS_S[1], "fleet")
        lost = effective = WITHHELD if day is None else UNKNOWN
        for account in day or ():
            money = "EUR unknown" if account.lost.eur is None else f"{account.lost.eur:.0f} EUR"
            lost = f"{account.lost.gpu_h:.1f} GPU-h, {money}"
            effective = UNKNOWN if account.effective_ratio is None else f"{account.effective_ratio:.0%}"
        counts = report.findings
        table.add_row(
            name,
            Text(report.jurisdiction or "not said"),
            WITHHELD if report.now is None else str(report.now.gpus),
            lost,
            effective,
            WITHHELD if counts is None else str(sum(count.findings for count in counts)),
            Text(f"{duration(site.age_s or 0.0)} ago", "" if site.state == "current" else "red"),
        )
    return table


def crossings_table(crossings: list[Crossing]) -> Table:
    """One row per answer that left the site, newest first."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("when (UTC)", "to", "jurisdiction", "bytes", "SHA-256", "what"):
        table.add_column(name, no_wrap=name != "what")
    for one in crossings:
        table.add_row(
            f"{datetime.fromtimestamp(one.time_ns / 1e9, UTC):%Y-%m-%d %H:%M:%S}",
            Text(one.receiver),
            Text(one.receiver_jurisdiction or "not said"),
            str(one.bytes),
            one.sha256[:12],
            Text(", ".join(one.shared) or "nothing"),
        )
    return table


def _note(console: Console, site: SiteNow) -> None:
    if site.state != "current":
        since = "" if site.answered_ns is None else f" since {_utc(site.answered_ns)}"
        console.print(Text(f"{site.key}: unknown{since}: {site.error or 'not asked yet'}", "red"))
    if site.report is not None and site.report.policy.withheld:
        withheld = ", ".join(site.report.policy.withheld)
        console.print(Text(f"{site.key}: withheld by policy: {withheld}", "dim"))


def _utc(time_ns: int) -> str:
    return f"{datetime.fromtimestamp(time_ns / 1e9, UTC):%Y-%m-%d %H:%M:%S} UTC"
