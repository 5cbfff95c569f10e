"""Start agent, collector, alerts and dashboard on this machine; Ctrl-C stops all of them.

Everything runs on embedded defaults under .unidle in the current folder, on 127.0.0.1: collector on port
9470, agent's /metrics on 9471, dashboard on 9472, alerts on 9473, or the next free ports. Tokens are made
at the first start. Your unidle.toml and UNIDLE_... variables count, but for addresses, folders and tokens.

Without a GPU here, or with --demo, a SIMULATED fleet of 64 nodes x 8 B200 runs through the same wire as
real agents: an hour and a half of history at high speed, then live, with known faults. It has a store of
its own, made anew each time (.unidle/demo), runs on the product's defaults, and its Slack messages go to
a stand-in on this machine, never to a real Slack unless you say --demo-slack. docs/demo.md has the rest.

examples:
  unidle up                                             this machine's GPUs, or the simulated fleet
  unidle up --demo                                      the simulated fleet, whatever is here
  unidle up --demo --for 60s --summary summary.json     headless: a minute live, then judge what was found
  unidle up --port-base 19470 --data-dir /tmp/unidle

With --for, the time counts from when everything is up and the history is in. Exit code: 0 it ran (and in
a demo found every fault that was due and nothing else), 1 it could not run, 3 something was missed or false.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from unidle_agent.config import AgentSettings
from unidle_agent.errors import UnidleError, UsageError
from unidle_agent.settings import load
from unidle_collector.client import Client
from unidle_collector.up.gpus import count_gpus, dcgm_exporter_here
from unidle_collector.up.plan import LOCK, Plan, make_plan, services
from unidle_collector.up.stand_in import StandIn
from unidle_collector.up.summary import passed, read_truth, summarize, verdict
from unidle_collector.up.supervise import Service, Supervisor, http_status

LOOK_EVERY_S = 0.25
UNITS_S = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `unidle up`."""
    parser.add_argument("--demo", action="store_true", help="run the SIMULATED fleet even where GPUs are")
    parser.add_argument(
        "--for",
        dest="duration_s",
        type=_duration_s,
        metavar="TIME",
        help="end by itself after this long, e.g. 60s, 5m, 1h (default: run until Ctrl-C)",
    )
    parser.add_argument(
        "--summary", type=Path, metavar="FILE", help="write what happened, as JSON; needs --for"
    )
    parser.add_argument(
        "--port-base",
        type=int,
        metavar="N",
        help="ports N to N+3, and no others (default: from 9470, free ones)",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path(".unidle"),
        metavar="DIR",
        help="where all data lives (default: .unidle)",
    )
    parser.add_argument(
        "--demo-slack",
        action="store_true",
        help="send the demo's SIMULATED messages to the Slack webhook that you configured",
    )


def run(args: argparse.Namespace) -> int:
    """Run until told to stop, or for --for."""
    if args.summary is not None and args.duration_s is None:
        raise UsageError("--summary needs --for: expected a run that ends by itself, came one that does not")
    stop = threading.Event()
    dcgm_url, demo = "", args.demo
    if not demo:
        dcgm_url = dcgm_exporter_here(load(AgentSettings, "agent"))
        gpus, why = count_gpus(os.environ, dcgm_url)
        demo = not gpus
        _say(f"no GPU here ({why}): starting a SIMULATED fleet" if demo else f"{gpus} GPUs here")
    data_dir = args.data_dir / "demo" if demo else args.data_dir
    with ExitStack() as stack:
        stack.enter_context(_lock(data_dir))
        plan = make_plan(data_dir, args.port_base, demo)
        stand_in = None
        if demo and not args.demo_slack:
            stand_in = stack.enter_context(StandIn(plan.data_dir / "slack-messages.jsonl", _say_slack))
        children = stack.enter_context(Supervisor(plan.log_dir, stop))
        stack.enter_context(_signals(stop, children.hurry))
        webhook = stand_in.url if stand_in else ""
        started = services(plan, os.environ, webhook, args.demo_slack, dcgm_url)
        code = _session(plan, started, children, stand_in, stop, args)
        _say("stopping")
    _say("stopped")
    return code


def _session(
    plan: Plan,
    started: list[Service],
    children: Supervisor,
    stand_in: StandIn | None,
    stop: threading.Event,
    args: argparse.Namespace,
) -> int:
    """Start everything, run, and judge; the exit code."""
    for service in started:
        took_s = children.start(service)
        if stop.is_set():
            break
        _say(f"{service.name:<10} ready in {took_s:4.1f} s  {service.address}".rstrip())
    if plan.demo and not stop.is_set():
        _wait_for_history(plan, children, stop)
    if not stop.is_set():
        _say_addresses(plan, stand_in)
    ends = None if args.duration_s is None else time.monotonic() + args.duration_s
    while not stop.is_set() and (ends is None or time.monotonic() < ends):
        children.check()
        stop.wait(LOOK_EVERY_S if ends is None else max(0.0, min(LOOK_EVERY_S, ends - time.monotonic())))
    if ends is None:
        return 0
    if stop.is_set():
        _say("stopped before --for was over: nothing is judged")
        return 130
    return _judge(plan, stand_in, args.summary)


def _wait_for_history(plan: Plan, children: Supervisor, stop: threading.Event) -> None:
    """Until the simulated history is in, with progress."""
    shown = -1
    while not stop.is_set():
        children.check()
        truth = read_truth(plan.truth_file)
        tenth = int(truth.get("progress", 0.0) * 10)
        if tenth != shown and truth:
            shown = tenth
            speed, hours = truth["sim_speed"], truth["history_s"] / 3600
            _say(f"SIMULATED history: {tenth * 10:3d} %  {hours:.1f} h, {speed:.0f} times the speed of life")
        if truth.get("phase") == "live":
            return
        stop.wait(LOOK_EVERY_S)


def _judge(plan: Plan, stand_in: StandIn | None, summary_file: Path | None) -> int:
    client = Client(plan.url("collector"), plan.read_token)
    summary = summarize(
        client,
        read_truth(plan.truth_file) if plan.demo else {},
        stand_in.delivered if stand_in else None,
        http_status(plan.url("dashboard")),
    )
    if summary_file is not None:
        summary_file.parent.mkdir(parents=True, exist_ok=True)
        summary_file.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    if not plan.demo:
        return 0
    for line in verdict(summary):
        _say(line)
    return 0 if passed(summary) else 3


def _say_addresses(plan: Plan, stand_in: StandIn | None) -> None:
    if plan.demo:
        truth = read_truth(plan.truth_file)
        _say(f"everything here is SIMULATED: {truth['nodes']} nodes, {truth['gpus']} GPUs, with known faults")
    _say(f"dashboard  {plan.url('dashboard')}")
    _say(f"collector  {plan.url('collector')}  read token in {plan.tokens.read}")
    _say(f"agent      {plan.url('agent')}/metrics" + ("  this machine, not pushed" if plan.demo else ""))
    if stand_in is not None:
        _say(f"messages   {plan.data_dir / 'slack-messages.jsonl'}  the demo's stand-in for Slack")
    _say(f"logs       {plan.log_dir}")
    _say("Ctrl-C stops everything")


@contextmanager
def _lock(data_dir: Path) -> Iterator[None]:
    """One `unidle up` per folder."""
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (data_dir / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UnidleError(
                f"another unidle up runs on {data_dir}; stop it or give a --data-dir"
            ) from error
        yield


@contextmanager
def _signals(stop: threading.Event, hurry: threading.Event) -> Iterator[None]:
    """Ctrl-C and SIGTERM set `stop`; once more sets `hurry`."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        (hurry if stop.is_set() else stop).set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _duration_s(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"expected a time such as 60s, 5m or 1h, came {text!r}")
    return float(match[1]) * UNITS_S[match[2]]


def _say(text: str) -> None:
    print(f"unidle up: {text}", flush=True)


def _say_slack(text: str) -> None:
    _say(f"message to Slack (stand-in): {text}")
