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

SIGTERM and SIGINT stop it: the last samples are spooled and, if the collector answers, sent.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import threading
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version

from unidle_agent.config import AgentSettings
from unidle_agent.exporter import in_base_units
from unidle_agent.fields import COLUMNS
from unidle_agent.owners.watch import watch
from unidle_agent.privacy import pseudonymiser
from unidle_agent.runtime import Agent, sources
from unidle_agent.sample import Tick, Value, is_simulated
from unidle_agent.sampler import Sampler
from unidle_agent.settings import add_flags, load

ONCE_DEADLINE_S = 10.0
"""Patience of `--once`: a driver that nobody keeps loaded takes seconds to wake."""

log = logging.getLogger("unidle.agent")


def arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `unidle agent`."""
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
    agent.run(stop)
    log.info("stopped")
    return 0


def _once(settings: AgentSettings) -> int:
    # A scrape at each tick: the second tick is the one that is shown.
    sampler = Sampler(sources(settings, dcgm_scrape_s=settings.period_s), settings.period_s, [])
    owners = watch(settings, pseudonymiser(settings, keep=False))
    try:
        sampler.tick(ONCE_DEADLINE_S)
        threading.Event().wait(settings.period_s)
        tick = sampler.tick(ONCE_DEADLINE_S)
        owners.refresh(tick.gpus)
        tick = owners.complete(tick)
    finally:
        sampler.close()
        owners.close()
    print(json.dumps(_document(settings.node_name, tick), indent=2))
    return 0 if tick.gpus or tick.host else 1


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
