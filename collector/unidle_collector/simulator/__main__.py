"""Play a SIMULATED fleet into a collector: `python -m unidle_collector.simulator --help`.

Plays history_s seconds of the past as fast as the collector takes them, then goes on live, until it is
stopped. The push token comes from UNIDLE_SIMULATOR_PUSH_TOKEN or --push-token-file. Use a collector with
a data folder of its own: simulated and real rows do not belong into one store.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading

from unidle_agent.errors import UnidleError
from unidle_agent.settings import add_flags, load
from unidle_collector.simulator.driver import SECTION, SimulatorSettings, play


def main() -> int:
    """Run until SIGTERM or Ctrl-C; 1 where the collector takes no more."""
    parser = argparse.ArgumentParser(
        prog="python -m unidle_collector.simulator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_flags(parser, SimulatorSettings)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        play(load(SimulatorSettings, SECTION, parser.parse_args()), stop)
    except UnidleError as error:
        if not stop.is_set():
            sys.stderr.write(f"SIMULATED fleet: {error}\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
