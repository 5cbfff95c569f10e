"""Explain a finding: what its kind means, how it is decided, what to do, how to silence it.

ID is an incident's id (asked of the collector) or the name of a kind of finding. Without one, all
kinds are listed.

Examples:
  unidle explain
  unidle explain starvation
  unidle explain idle-mgvfzt2p
"""

from __future__ import annotations

import argparse

from unidle_agent.errors import UnidleError
from unidle_agent.settings import load
from unidle_collector.client import Client
from unidle_collector.detectors import duration, pages
from unidle_collector.model import Incident
from unidle_collector.reader_settings import ReaderSettings, add_reader_flags


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("id", nargs="?", metavar="ID", help="an incident's id, or a kind of finding")
    add_reader_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Print the page."""
    known = pages()
    if args.id is None:
        for kind, page in known.items():
            print(f"{kind:<20} {page.partition(chr(10))[0].partition(': ')[2]}")
        return 0
    if args.id in known:
        print(known[args.id].strip())
        return 0
    settings = load(ReaderSettings, "reader", args)
    client = Client(settings.collector_url, settings.collector_token.reveal())
    try:
        incident = client.incident(args.id)
    except UnidleError as error:
        kinds = ", ".join(known)
        raise UnidleError(f"{args.id!r} is no kind of finding ({kinds}); as an incident: {error}") from error
    print(_story(incident))
    print()
    print(known.get(incident.finding.kind, "").strip())
    return 0


def _story(incident: Incident) -> str:
    finding = incident.finding
    mark = "SIMULATED  " if finding.simulated else ""
    cost, rate = finding.cost_so_far, finding.cost_per_h
    lines = [
        f"{mark}{incident.id}  {incident.state}  {finding.severity}",
        finding.title,
        f"  subject     {finding.subject_kind} {finding.subject} on {', '.join(finding.nodes)}",
        f"  lasted      {duration(((finding.ended_ns or finding.updated_ns) - finding.since_ns) / 1e9)}",
        f"  cause       {finding.cause} (confidence {finding.confidence:.0%})",
        f"  cost so far {cost.gpu_h:.2f} GPU-h, {_eur(cost.eur)}",
        f"  cost per h  {rate.gpu_h:.2f} GPU-h, {_eur(rate.eur)}",
        "  evidence",
        *(f"    {item.field}: {item.text} (window {duration(item.window_s)})" for item in finding.evidence),
        f"  do          {finding.advice}",
        f"  confirm by  {finding.confirm}",
        f"  at 5 Hz     unidle flight {incident.id}  (the last two minutes of its GPUs, where recorded)",
    ]
    for item in incident.recommendations:
        lines += [f"  recommended {item.title}", *(f"    $ {line}" for line in item.command.splitlines())]
    return "\n".join(lines)


def _eur(value: float | None) -> str:
    return "EUR unknown" if value is None else f"{value:.2f} EUR"
