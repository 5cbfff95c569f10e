"""Explain a finding: what its kind means, how it is decided, what to do, how to silence it.

ID is an incident's id (asked of the collector) or the name of a kind of finding. Without one, all
kinds are listed.

Examples:
  unidle explain
  unidle explain starvation
  unidle explain idle-mgvfzt2p
  unidle explain idle-mgvfzt2p --json | jq .incident.finding.evidence
"""

from __future__ import annotations

import argparse
import json
import shutil
import textwrap

from pydantic import TypeAdapter

from unidle_agent.errors import UnidleError, nearest
from unidle_agent.settings import load
from unidle_collector.client import Client
from unidle_collector.detectors import pages
from unidle_collector.model import Incident
from unidle_collector.reader_settings import ReaderSettings, add_reader_flags
from unidle_collector.story import story


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("id", nargs="?", metavar="ID", help="an incident's id, or a kind of finding")
    parser.add_argument("--json", action="store_true", help="for machines: {kind, page, incident}")
    add_reader_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Print the page."""
    known = pages()
    if args.id is None and args.json:
        print(
            json.dumps([{"kind": kind, "summary": _summary(page)} for kind, page in known.items()], indent=2)
        )
        return 0
    if args.id is None:
        for kind, page in known.items():
            print(f"{kind:<20} {_summary(page)}")
        return 0
    if args.id in known:
        page = known[args.id].strip()
        print(json.dumps({"kind": args.id, "page": page}, indent=2) if args.json else page)
        return 0
    settings = load(ReaderSettings, "reader", args)
    client = Client(settings.collector_url, settings.collector_token.reveal())
    try:
        incident = client.incident(args.id)
    except UnidleError as error:
        near = nearest(args.id, known) or " (unidle explain lists them)."
        raise UnidleError(f"{args.id!r} is no kind of finding{near} As an incident: {error}") from error
    page = known.get(incident.finding.kind, "").strip()
    if args.json:
        told = TypeAdapter(Incident).dump_python(incident, mode="json")
        print(json.dumps({"kind": incident.finding.kind, "page": page, "incident": told}, indent=2))
        return 0
    print(f"{_story(incident)}\n\n{page}")
    return 0


def _summary(page: str) -> str:
    return page.partition("\n")[0].partition(": ")[2]


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
