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
import shutil
import textwrap

from unidle_agent.errors import UnidleError
from unidle_agent.settings import load
from unidle_collector.client import Client
from unidle_collector.detectors import pages
from unidle_collector.model import Incident
from unidle_collector.reader_settings import ReaderSettings, add_reader_flags
from unidle_collector.story import story


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
    lines = [
        f"{mark}{incident.id}  {incident.state}  {finding.severity}",
        finding.title,
        *(_wrapped(label, text) for label, text in story(finding)),
        _wrapped("at 5 Hz", f"unidle flight {incident.id} (the last two minutes of its GPUs, if recorded)"),
    ]
    for item in incident.recommendations:
        lines += [f"  recommended {item.title}", *(f"    $ {line}" for line in item.command.splitlines())]
    return "\n".join(lines)


def _wrapped(label: str, text: str) -> str:
    """As wide as the terminal; what is piped has lines of 110."""
    width = max(60, shutil.get_terminal_size((110, 24)).columns)
    first, others = f"  {label:<12}", " " * 14
    return textwrap.fill(
        text, width, initial_indent=first, subsequent_indent=others, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
