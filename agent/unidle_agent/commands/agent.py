"""Sample this node and push to the collector.

Once per second the agent reads every GPU (through NVML, and from running dcgm-exporters) and the host's
CPU, memory, pressure, disk and network. It serves the latest values on http://127.0.0.1:9471/metrics,
says on /health how it is, and pushes batches to the collector where push_url is set. What the collector
has not acknowledged waits on disk and survives a restart. Without a GPU it samples the host alone.

examples:
  unidle agent --once                                   one sample as JSON, then exit
  unidle agent --once --nvml off --dcgm-urls http://127.0.0.1:9400/metrics
                                                        try one source alone
  unidle agent --push-url http://10.0.0.1:9470 --push-token-file /etc/unidle/token
  unidle doctor                                         what works on this node and what does not

  unidle agent release --for 10m    let go of the driver: a GPU can be reset, MIG changed, the driver
                                    updated; the agent takes hold again by itself, or with --now
  unidle agent record node.txt      write down what this machine's driver answers, for a minute
  unidle agent --replay node.txt    run from such a file, without a GPU; every row is marked SIMULATED

A release ends when its time is over; it returns as soon as no process of the agent holds the driver. It
reaches the agent over a socket in state_dir: give the same state_dir, as its user or as root. A recording
has stand-ins for UUIDs, serial numbers and process ids, and no names of hosts, users or processes.

SIGTERM and SIGINT stop it: the last samples are spooled and, if the collector answers, sent.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import signal
import sys
import threading
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from unidle_agent.config import AgentSettings
from unidle_agent.errors import SourceError, UnidleError, UsageError
from unidle_agent.exporter import in_base_units
from unidle_agent.fields import COLUMNS
from unidle_agent.owners.watch import watch
from unidle_agent.poller import STILL_OPENING
from unidle_agent.privacy import pseudonymiser
from unidle_agent.release import ask
from unidle_agent.runtime import Agent, sources
from unidle_agent.sample import Tick, Value, is_simulated
from unidle_agent.sampler import Sampler
from unidle_agent.settings import add_flags, load

ONCE_DEADLINE_S = 10.0
"""Patience of `--once`: a driver that nobody keeps loaded takes seconds to wake."""
RECORD_S, RELEASE_S = 60.0, 600.0
"""How long `record` and `release` last by default."""

log = logging.getLogger("unidle.agent")


def arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `unidle agent`."""
    parser.add_argument(
        "action", nargs="?", choices=("record", "release"), help="another thing than to sample; see above"
    )
    parser.add_argument("file", nargs="?", metavar="FILE", help="record: where to write")
    parser.add_argument(
        "--for",
        dest="for_s",
        metavar="TIME",
        type=_duration_s,
        help="record, release: for how long, such as 60s, 10m or 1h (default: record 60s, release 10m)",
    )
    parser.add_argument("--now", action="store_true", help="release: take hold of the driver again now")
    parser.add_argument(
        "--once",
        action="store_true",
        help="print one sample of every source as JSON and exit; takes one period, as rates need two reads",
    )
    add_flags(parser, AgentSettings)


def run(args: argparse.Namespace) -> int:
    """Run until told to stop; 0 when stopped, or when `--once` found anything at all."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="unidle agent: %(message)s")
    settings = load(AgentSettings, "agent", args)
    _check(args)
    if args.action == "record":
        return _record(Path(args.file), args.for_s or RECORD_S, settings.period_s)
    if args.action == "release":
        print(ask(settings.state_path, 0.0 if args.now else args.for_s or RELEASE_S))
        return 0
    if settings.replay:
        # What this machine's prolog and kubelet say is not about the recorded GPUs.
        settings = replace(settings, job_map_dir="", gpustat_dir="", podresources_socket="")
    if args.once:
        return _once(settings)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    agent = Agent(settings)
    log.info(
        "version %s on node %s: a sample each %g s, %s/metrics, %s",
        version("unidle"),
        settings.node_name,
        settings.period_s,
        agent.url,
        f"pushing to {settings.push_url}" if settings.push_url else "not pushing (push_url is not set)",
    )
    if settings.replay:
        log.warning("SIMULATED: every GPU is replayed from %s", settings.replay)
    agent.run(stop)
    log.info("stopped")
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raises UsageError where the words do not go together."""
    if args.action == "record" and not args.file:
        raise UsageError("record: expected the file to write to, as in: unidle agent record node.txt")
    if args.action != "record" and args.file:
        raise UsageError(f"{args.action} takes no file, came {args.file!r}")
    if args.action is None and (args.for_s or args.now):
        raise UsageError("--for and --now belong to `unidle agent record` and `unidle agent release`")


def _record(path: Path, for_s: float, every_s: float) -> int:
    """Write the answers of this machine's driver to `path`, and what each call cost to the terminal."""
    from unidle_agent.answers.recorder import Recorder

    is_new = not path.exists()
    try:
        out = path.open("a", encoding="utf-8")
    except OSError as error:
        raise UnidleError(f"{path}: expected a file that can be written: {error.strerror}") from error
    with out:
        try:
            recorder = Recorder(out)
        except SourceError:
            if is_new:
                path.unlink()
            raise
        if out.seekable():
            out.truncate(0)  # not before there is something to record: it may be last month's
        try:
            log.info("recording %d GPUs for %g s to %s", recorder.count, for_s, path)
            recorder.run(for_s, every_s, time.sleep)
        finally:
            recorder.close()
    print(f"{'calls':>6} {'median us':>10} {'longest us':>10}  function")
    for cost in recorder.costs():
        print(f"{cost.calls:6d} {cost.median_us:10.1f} {cost.longest_us:10.1f}  {cost.function}")
    return 0


def _duration_s(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if match is None or not float(match[1]):
        raise argparse.ArgumentTypeError(f"expected a time such as 60s, 10m or 1h, came {text!r}")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def _once(settings: AgentSettings) -> int:
    # A scrape at each tick: the second tick is the one that is shown.
    sampler = Sampler(sources(settings, dcgm_scrape_s=settings.period_s), settings.period_s, [])
    owners = watch(settings, pseudonymiser(settings, keep=False))
    try:
        tick = _second_look(sampler, settings.period_s)
        owners.refresh(tick.gpus)
        tick = owners.complete(tick)
    finally:
        sampler.close()
        owners.close()
    print(json.dumps(_document(settings.node_name, tick), indent=2))
    return 0 if tick.gpus or tick.host else 1


def _second_look(sampler: Sampler, period_s: float) -> Tick:
    """The tick after the first to which every source came: what is counted between two is in it.

    A driver that nobody keeps loaded opens for seconds; after `ONCE_DEADLINE_S` it is as it is.
    """
    until_s = time.monotonic() + ONCE_DEADLINE_S
    before = sampler.tick(ONCE_DEADLINE_S)
    while True:
        threading.Event().wait(period_s)
        tick = sampler.tick(ONCE_DEADLINE_S)
        opened = not any(STILL_OPENING in text for text in before.problems)
        if opened or time.monotonic() >= until_s:
            return tick
        before = tick


def _document(node: str, tick: Tick) -> dict[str, object]:
    """A tick in base units, for people and scripts; a field that is not known is not there."""
    return {
        "node": node,
        "time": datetime.fromtimestamp(tick.time_ns / 1e9, UTC).isoformat(timespec="milliseconds"),
        "simulated": any(is_simulated(gpu.facts) for gpu in tick.gpus),
        "gpus": [{**asdict(gpu.facts), "values": _in_base_units(gpu.values)} for gpu in tick.gpus],
        "host": _in_base_units(tick.host),
        "problems": list(tick.problems),
    }


def _in_base_units(values: dict[str, Value]) -> dict[str, float]:
    return {name: in_base_units(COLUMNS[name], value) for name, value in values.items() if name in COLUMNS}
