"""Ask the scheduler once and print what unidle takes over: for setting it up.

It reads the `[collector]` settings, asks the scheduler as the collector would, changes nothing and ends. The
exit code is 1 when the scheduler cannot be asked. Names of people and pods are shown as pseudonyms, unless
`privacy = internal`.

Examples:
  unidle scheduler --scheduler slurm
  unidle scheduler --scheduler slurm --json | jq '.jobs[] | select(.state == "pending")'
  unidle scheduler --scheduler slurm --slurm-bin-dir /opt/slurm/bin
  unidle scheduler --scheduler kubernetes --kubernetes-url https://10.0.0.1:6443 --kubernetes-token-file token
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterable

from pydantic import TypeAdapter

from unidle_agent.errors import UsageError
from unidle_agent.settings import add_flags, load
from unidle_collector import scheduler
from unidle_collector.scheduler import Snapshot
from unidle_collector.settings import CollectorSettings

MOST_SHOWN = 10


def arguments(parser: argparse.ArgumentParser) -> None:
    """Flags are those settings of the collector that it needs."""
    parser.add_argument("--json", action="store_true", help="everything that was taken over, for machines")
    add_flags(parser, CollectorSettings, ("scheduler", "slurm", "kubernetes", "privacy", "data_dir"))


def run(args: argparse.Namespace) -> int:
    """Ask and print."""
    settings = load(CollectorSettings, "collector", args)
    source = scheduler.source(settings)
    if source is None:
        raise UsageError(
            'no scheduler: give --scheduler slurm, or set scheduler = "slurm" or "kubernetes" in [collector]'
        )
    begin = time.monotonic()
    snapshot = source.read()
    read_s = time.monotonic() - begin
    if args.json:
        document = TypeAdapter(Snapshot).dump_python(snapshot, mode="json")
        print(json.dumps({**document, "read_s": read_s}, indent=2))
        return 0
    print(describe(snapshot, read_s))
    if not settings.privacy_key and settings.privacy != "internal":
        print("note: no privacy_key is set: give [agent] and [collector] the same one, or pods do not match")
    return 0


def describe(snapshot: Snapshot, read_s: float) -> str:
    """What one look brought, as a person reads it."""
    states = Counter(job.state for job in snapshot.jobs)
    with_gpus = [job for job in snapshot.jobs if any(grant.gpus for grant in job.grants)]
    waiting = [job for job in snapshot.jobs if job.state == "pending" and job.requested_gpus != 0]
    asked = [job.requested_gpus for job in waiting]
    total = (
        "an unknown number of" if None in asked else sum((j.requested_gpus or 0) * j.tasks for j in waiting)
    )
    gpus = sum(node.gpus for node in snapshot.nodes)
    unnumbered = sum(grant.indices is None and bool(grant.gpus) for job in with_gpus for grant in job.grants)
    closed = _count(not node.available for node in snapshot.nodes)
    down = _count(node.down for node in snapshot.nodes)
    held = sum(grant.gpus or 0 for job in with_gpus for grant in job.grants)
    of_jobs = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none"
    name = f"cluster {snapshot.cluster}" if snapshot.cluster else "no name"
    lines = [
        f"{snapshot.scheduler} {snapshot.version}, {name}, read in {read_s:.2f} s",
        f"nodes    {len(snapshot.nodes)} with {gpus} GPUs; {closed} closed, {down} down",
        f"jobs     {of_jobs}; {len(with_gpus)} hold {held} GPUs",
        f"queue    {sum(job.tasks for job in waiting)} wait for {total} GPUs",
        f"ended    {len(snapshot.ended)} jobs in the books",
    ]
    if unnumbered:
        lines.append(f"note: {unnumbered} grants without numbers of GPUs: the agents have to say which")
    for job in with_gpus[:MOST_SHOWN]:
        where = "; ".join(
            f"{grant.node}: {grant.gpus} {grant.kind}" + (f" {list(grant.indices)}" if grant.indices else "")
            for grant in job.grants
        )
        lines.append(
            f"  job {job.id} of {job.user or '?'} ({job.team or '?'}/{job.partition or '?'}): {where}"
        )
    if len(with_gpus) > MOST_SHOWN:
        lines.append(f"  and {len(with_gpus) - MOST_SHOWN} more")
    lines += [f"problem: {problem}" for problem in snapshot.problems]
    return "\n".join(lines)


def _count(found: Iterable[bool]) -> int:
    return sum(found)
