"""Say where the GPU hours of recorded telemetry went, why, and what to do

Runs the detectors and accounts of the live collector over what you already have: a Prometheus that
scrapes dcgm-exporter (nothing is installed anywhere, nothing is written), or files: Parquet, CSV,
JSON, logs of nvidia-smi and dcgmi, saved dcgm-exporter pages, packed or not; several files or a folder
form one recording. A time, the GPU, and any subset of the fields; what is missing is unknown, never
zero. docs/recordings.md lists the forms and the JSON, docs/telemetry.md every name that is understood.

examples:
  unidle diagnose --prometheus http://127.0.0.1:9090 --since 7d
  unidle diagnose --prometheus https://thanos.example.org --match 'cluster="a"' --bearer-token-file TOKEN
  unidle diagnose telemetry.parquet
  unidle diagnose node1.csv node2.csv.gz --json | jq .findings
  nvidia-smi --query-gpu=timestamp,uuid,utilization.gpu,power.draw,memory.used,memory.total \\
      --format=csv -l 1 > log.csv ;  unidle diagnose log.csv --node $(hostname)
  dcgmi dmon -e 203,1002,1004,155,252 > log.txt ;  unidle diagnose log.txt
  unidle diagnose pages/ --period 15        saved pages without times, 15 s apart
  unidle diagnose --timeline ops.parquet    which worker or stage holds a distributed job back

The exit code is 0 when it could tell, with findings or without, and 2 when the input cannot be read.
What a Prometheus without agents cannot tell is said in the report; see docs/prometheus.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table

from unidle_agent.errors import UnidleError
from unidle_collector import timeline
from unidle_collector.detectors import duration
from unidle_collector.model import STATES, Account, Finding
from unidle_collector.prometheus import history
from unidle_collector.prometheus.api import Api, token_of
from unidle_collector.recorded import RecordingError, load
from unidle_collector.recorded.rows import A_YEAR_NS
from unidle_collector.recorded.times import to_ns, written_time
from unidle_collector.recording import Recording
from unidle_collector.replay import Result, replay
from unidle_collector.story import cost, story

SCHEMA = 1
"""Of the JSON document: keys are added to it, never renamed."""

LONG_FILE_BYTES = 20_000_000
MANY_INSTANTS = 20_000
"""From these on, what is being done is said on stderr."""

SPAN_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}

MAX_ROWS = 40
"""Most GPUs or jobs in a table; the rest is counted."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="files or folders")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    parser.add_argument(
        "--node", default="", metavar="NAME", help="the node, where the files do not name one (default: node)"
    )
    parser.add_argument(
        "--period",
        type=float,
        metavar="SECONDS",
        help="sampling period (default: found from the data); spaces saved pages that carry no time",
    )
    server = parser.add_argument_group("from a Prometheus instead of files")
    server.add_argument("--prometheus", metavar="URL", help="base address of its API")
    server.add_argument(
        "--since", default="7d", metavar="SPAN", help="how far back: 90m, 24h, 7d (default: 7d)"
    )
    server.add_argument("--until", default="", metavar="TIME", help="end: ISO 8601 or epoch (default: now)")
    server.add_argument(
        "--match",
        default="",
        metavar="LABELS",
        help='only series with these, e.g. \'cluster="a",job=~"dcgm.*"\'',
    )
    server.add_argument("--bearer-token-file", type=Path, metavar="FILE", help="file that holds its token")
    server.add_argument("--ca-file", default="", metavar="FILE", help="https: who signed its certificate")
    job = parser.add_argument_group("from the operations of one distributed training job")
    job.add_argument(
        "--timeline",
        type=Path,
        metavar="FILE",
        help="Parquet or CSV, one row per operation; docs/timeline.md names the columns",
    )


def run(args: argparse.Namespace) -> int:
    """Diagnose the files, the server or the timeline; 2 when they cannot be read."""
    try:
        if args.timeline:
            return _timeline(args)
        recording = _recording(args)
    except UnidleError as error:
        print(f"unidle diagnose: {error}", file=sys.stderr)
        return 2
    result = replay(recording, _progress if recording.instants > MANY_INSTANTS else None)
    if args.json:
        print(json.dumps(document(recording, result), allow_nan=False, ensure_ascii=False, indent=1))
    else:
        Console(highlight=False).print(report(recording, result))
    return 0


def _timeline(args: argparse.Namespace) -> int:
    if args.files or args.prometheus:
        raise RecordingError("expected --timeline FILE alone: a timeline has operations, not GPUs")
    found = timeline.analyse(timeline.read(args.timeline))
    if args.json:
        print(json.dumps(_without_nan(timeline.document(found)), allow_nan=False, indent=1))
    else:
        print(timeline.render(found))
    return 0


def _recording(args: argparse.Namespace) -> Recording:
    if bool(args.prometheus) == bool(args.files):
        raise RecordingError("expected either FILE, --prometheus URL or --timeline FILE")
    if not args.prometheus:
        return load(args.files, node=args.node, period_s=args.period, progress=_say_long)
    end_s = _instant(args.until) if args.until else time.time()
    api = Api(args.prometheus, token=token_of(args.bearer_token_file), ca_file=args.ca_file)
    try:
        return history.read(
            api, end_s - _span(args.since), end_s, match=args.match, step_s=args.period, progress=_fetched
        )
    finally:
        api.close()


def _span(text: str) -> float:
    """Seconds in `90m`, `7d`, `1h30m`."""
    if not re.fullmatch(r"(\d+(\.\d+)?[smhdw])+", text):
        raise RecordingError(f"--since: expected a span of time such as 90m, 24h or 7d, came {text!r}")
    return sum(float(part[:-1]) * SPAN_S[part[-1]] for part in re.findall(r"[\d.]+[smhdw]", text))


def _instant(text: str) -> float:
    if re.fullmatch(r"\d{9,10}(\.\d+)?", text):
        return float(text)
    if (moment := written_time(text)) is None:
        raise RecordingError(f"--until: expected a time such as 2026-10-16T12:00:00Z, came {text!r}")
    return to_ns(moment) / 1e9


def _fetched(share: float) -> None:
    if sys.stderr.isatty():
        end = "\n" if share >= 1 else ""
        print(f"\runidle diagnose: {share:4.0%} fetched", end=end, file=sys.stderr, flush=True)


def _say_long(path: Path) -> None:
    if path.stat().st_size > LONG_FILE_BYTES:
        print(f"unidle diagnose: reading {path} ({path.stat().st_size / 1e6:.0f} MB)", file=sys.stderr)


def _progress(share: float) -> None:
    end = "\n" if share >= 0.99 else ""
    if sys.stderr.isatty():
        print(
            f"\runidle diagnose: {share:4.0%} of the recording looked at",
            end=end,
            file=sys.stderr,
            flush=True,
        )


# For machines


def document(recording: Recording, result: Result) -> dict[str, Any]:
    """The JSON document; unknown numbers are null. Durations are in seconds, times in nanoseconds."""
    by_id = {finding.id: finding for finding in result.findings}
    gpus = [
        {
            "node": gpu.node,
            "gpu": gpu.gpu,
            "index": gpu.index,
            "states": gpu.states,
            "causes": gpu.causes,
            "inactive_s": gpu.inactive_s,
            "inactive_held_s": gpu.inactive_held_s,
            "timeline": [dataclasses.asdict(span) for span in gpu.spans],
            "findings": [_short(by_id[each]) for each in gpu.findings if each in by_id],
        }
        for gpu in result.gpus
    ]
    out: dict[str, Any] = {
        "schema": SCHEMA,
        "simulated": recording.simulated,
        "sampling": sampling(recording),
        "account": _account(result.account) if result.account else None,
        "gpus": gpus,
        "jobs": [{"job": job.key, **_account(job)} for job in result.jobs],
        "findings": [dataclasses.asdict(finding) for finding in result.findings],
        "recommendations": [dataclasses.asdict(each) for each in result.recommendations],
        "cannot_tell": list(result.cannot_tell),
        "notes": list(result.notes),
    }
    return {key: _without_nan(value) for key, value in out.items()}


def sampling(recording: Recording) -> dict[str, Any]:
    """How the recording was sampled: the period found, and the share of instants that have a sample."""
    return {
        "period_s": recording.period_s,
        "coverage_ratio": float(recording.sampled.sum()) / ((recording.steps[-1] + 1) * len(recording.gpus)),
        "instants": int(recording.steps[-1]) + 1,
        "start": _iso(recording.start_ns),
        "end": _iso(int(recording.ends_ns[-1])),
        "fields": _fields(recording),
    }


def _fields(recording: Recording) -> dict[str, float]:
    """Field that was understood -> share of the samples in which it is known."""
    samples = max(1, int(recording.sampled.sum()))
    known = {name: np.count_nonzero(~np.isnan(column)) for name, column in recording.columns.items()}
    return {name: round(count / samples, 4) for name, count in sorted(known.items()) if count}


def _short(finding: Finding) -> dict[str, Any]:
    """What a GPU's entry says of a finding; all of it is under `findings`."""
    keys = ("id", "kind", "cause", "severity", "confidence", "title", "since_ns", "told_ns", "ended_ns")
    return {key: getattr(finding, key) for key in keys}


def _account(account: Account) -> dict[str, Any]:
    fields = dataclasses.asdict(account)
    del fields["key"]
    return {"states": fields.pop("seconds"), **fields}


def _without_nan(value: Any) -> Any:
    """JSON has no NaN and no infinity: both are unknown."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return value


def _iso(time_ns: int) -> str:
    moment = datetime.fromtimestamp(time_ns // 1_000_000_000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{time_ns // 1_000_000 % 1000:03d}Z"


# For people


def report(recording: Recording, result: Result) -> Group:
    """The verdict in words, where the time went, what was found, what to do, and what to know about it."""
    parts: list[Any] = []
    if recording.simulated:
        parts.append("[bold magenta]SIMULATED: this recording says of itself that it is not real[/]")
    parts.append(verdict(recording, result))
    if result.account is not None and recording.instants > 1:
        unit_s, unit = _unit(recording)
        parts += ["", f"[italic]Where the time went, in {unit}[/]", _where(result, unit_s)]
    if result.jobs and recording.instants > 1:
        parts += ["", "[italic]Jobs, by what they lost[/]", _jobs(result.jobs)]
    for finding in result.findings[:MAX_ROWS]:
        parts += ["", _finding(finding)]
    if len(result.findings) > MAX_ROWS:
        parts += ["", f"and {len(result.findings) - MAX_ROWS} more findings: --json has all of them"]
    for each in result.recommendations:
        gain = cost(each.gain.expected)
        parts += ["", f"[bold green]Do:[/] {escape(each.title)} (wins {gain} in {each.gain.horizon_h:g} h)"]
        parts += [f"  [cyan]{escape(each.command)}[/]"] if each.command else []
    if result.cannot_tell:
        told = [f"  - {escape(each)}" for each in result.cannot_tell]
        parts += ["", "[bold]What this source cannot tell[/]", *told]
    if used := sampling(recording)["fields"]:
        parts += ["", f"[bold]Fields that were read[/] ({len(used)})", "  " + ", ".join(used)]
    if result.notes:
        parts += ["", "[bold]About the input[/]", *(f"  - {escape(note)}" for note in result.notes)]
    return Group(*parts)


def verdict(recording: Recording, result: Result) -> str:
    """Two or three sentences: how much time, how much of it was lost, to what."""
    facts = sampling(recording)
    nodes = len({gpu.node for gpu in recording.gpus})
    when = f"from {facts['start'][:19]} to {facts['end'][:19]} UTC"
    if recording.start_ns < A_YEAR_NS:  # it counts from its own begin
        when = f"over {duration(recording.lasts_s)}"
    head = (
        f"{_count(len(recording.gpus), 'GPU')} on {_count(nodes, 'node')} {when}, "
        f"sampled every {recording.period_s:g} s ({facts['coverage_ratio']:.1%} of instants have a sample)."
    )
    account = result.account
    if account is None or recording.instants < 2:
        return head + "\n[bold]Cannot tell where time went: there is only one instant.[/]"
    known_s = sum(account.seconds.values()) - account.seconds.get("unknown", 0.0)
    if not known_s:
        return head + "\n[bold]Cannot tell anything: no instant has a sample to judge by.[/]"
    lost = f"{cost(account.lost)} of {known_s / 3600:.2f} known GPU-hours"
    share = account.lost.gpu_h * 3600 / known_s
    told = sum(finding.told_ns is not None for finding in result.findings)
    lines = [head, f"[bold]{share:.1%} was lost to jobs: {lost}.[/]"]
    if account.unallocated.gpu_h:
        lines.append(f"Besides, {cost(account.unallocated)} belonged to nobody.")
    if worst := _worst(account):
        unit_s, unit = _unit(recording)
        share, time = account.causes[worst] / known_s, account.causes[worst] / unit_s
        lines.append(f"The largest loss is {worst}: {share:.0%} of the time, {time:.2f} GPU-{unit}.")
    developing = len(result.findings) - told
    of_them = "" if told + developing == 1 else f"{developing} of them "
    more = f", {of_them}still developing at the end" if developing else ""
    lines.append(f"{_count(told + developing, 'finding')}{more}.")
    return "\n".join(lines)


def _unit(recording: Recording) -> tuple[float, str]:
    """Seconds and name of the unit in which the time of a GPU is told: a recording of minutes in minutes."""
    return (3600.0, "hours") if recording.lasts_s >= 7200 else (60.0, "minutes")


def _where(result: Result, unit_s: float) -> Table:
    """Time per state, all GPUs together and each GPU, and what most of the lost time was lost to."""
    table = Table(box=None, pad_edge=False)
    states = [state for state in STATES if any(gpu.states.get(state) for gpu in result.gpus)]
    table.add_column("node", overflow="fold")
    table.add_column("GPU", overflow="fold")
    for state in states:
        table.add_column(state, justify="right")
    table.add_column("mostly")
    for gpu in result.gpus[:MAX_ROWS]:
        times = [f"{gpu.states.get(state, 0.0) / unit_s:.2f}" for state in states]
        mostly = max(gpu.causes, key=gpu.causes.__getitem__, default="")
        table.add_row(escape(gpu.node), escape(_short_gpu(gpu.gpu, gpu.index)), *times, mostly)
    if len(result.gpus) > MAX_ROWS:
        table.add_row(f"and {len(result.gpus) - MAX_ROWS} more", "", *("" for _ in states))
    total = [sum(gpu.states.get(state, 0.0) for gpu in result.gpus) / unit_s for state in states]
    table.add_row("[bold]all[/]", "", *(f"[bold]{time:.2f}[/]" for time in total))
    return table


def _jobs(jobs: list[Account]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("job", "GPUs", "GPU-hours", "lost", "largest cause"):
        table.add_column(name, justify="left" if name in ("job", "largest cause") else "right")
    ordered = sorted(jobs, key=lambda job: -job.lost.gpu_h)
    for job in ordered[:MAX_ROWS]:
        hours = sum(job.seconds.values()) / 3600
        table.add_row(escape(job.key), str(job.gpus), f"{hours:.2f}", cost(job.lost), _worst(job))
    if len(jobs) > MAX_ROWS:
        table.add_row(f"and {len(jobs) - MAX_ROWS} more", "", "", "", "")
    return table


def _finding(finding: Finding) -> Group:
    colour = {"critical": "red", "warning": "yellow", "info": "blue"}[finding.severity]
    state = "" if finding.told_ns is not None else ", still developing"
    head = f"[bold {colour}]{finding.severity}[/] [bold]{escape(finding.title)}[/]"
    rows = [("finding", f"{finding.id}{state} (unidle explain {finding.kind})"), *story(finding)]
    table = Table.grid(padding=(0, 2, 0, 0))
    for label, text in rows:
        table.add_row("", label, escape(text))
    return Group(head, table)


def _worst(account: Account) -> str:
    """The cause that lost its jobs most; empty when none did."""
    causes = {cause: lost for cause, lost in account.causes.items() if lost and cause != "unallocated"}
    return max(causes, key=causes.__getitem__) if causes else ""


def _short_gpu(gpu: str, index: int | None) -> str:
    """Index and the beginning of the UUID: enough for a person, all of it is in the JSON."""
    uuid, slash, instance = gpu.partition("/")
    short = f"{uuid[:12]}…{slash}{instance}" if len(uuid) > 16 else gpu
    return short if index is None or gpu == str(index) else f"{index} {short}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
