"""A collector as an operator starts it, which also goes through the comparison's rules.

    python -m benchmarks.peers_collector --passes FILE --at 1750000044 --at 1750000059

For each second given, once its rows have been handed out, a line of JSON goes to FILE: `at`, `cpu_s` of the
thread that owns the window, the rules' GPUs, and what the parts of the collector have taken until then. At
the end all rows become what they are an hour later. A last line says what the parts took until then, and
what that took: `convert_cpu_s` for the rows that were still in the log, up to `turned_s` seconds since the
start, and `merge_cpu_s`; and `size_bytes` of it all. The collector takes its settings from the environment.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute  # noqa: F401  # a merge needs it: loading it belongs to the start, as making series does
from numpy.typing import NDArray

from benchmarks.peers_rules import WINDOW_S, numpy_pass
from unidle_collector.commands import collector
from unidle_collector.live import Live
from unidle_collector.store.compaction import HOUR_NS
from unidle_collector.store.segments import Segments

LOOK_EACH_S = 1.0


def seconds_turned(segments: Segments) -> float:
    """How many seconds of rows have left the log, one minute or so at a time."""
    ours = (segment for segment in segments.counting() if segment.kind == "gpu")
    return sum((segment.end_ns - segment.start_ns) / 1e9 + 1 for segment in ours)


def one_pass(live: Live, at_s: int) -> dict[str, Any]:
    """Go through the rules over the window up to `at_s`; in the thread that owns it."""
    began_s = time.thread_time()
    refs = live.engine.inventory.refs
    ring = (
        live.window._gpus
    )  # nothing of the product reads a whole block of it: its detectors are incremental
    last = live.window.step_at(at_s * 10**9)

    def read(name: str) -> NDArray[Any]:
        rows = [ring.row(name, step)[: len(refs)] for step in range(last - WINDOW_S + 1, last + 1)]
        return np.stack(rows)

    found = {
        name: [(refs[gpu].node, refs[gpu].index) for gpu in np.flatnonzero(is_true)]
        for name, is_true in numpy_pass(read).items()
    }
    return {"at": at_s, "cpu_s": time.thread_time() - began_s, "found": found}


class Watched(Live):
    """With a thread that asks for each pass when it is due."""

    passes: Path
    at_s: tuple[int, ...]
    steps_s = 0.0
    """CPU seconds of all steps until now."""

    def start(self) -> None:
        """Begin both."""
        super().start()
        threading.Thread(target=self._ask_in_turn, name="passes", daemon=True).start()

    def stop(self) -> None:
        """Make the final form before letting go: nobody pushes any more."""
        parts_s, began_s, now_ns = self._parts_s(), time.process_time(), time.time_ns()
        self.store.convert_all(now_ns)
        converted_s, turned_s = time.process_time(), seconds_turned(self.store.segments)
        self.store.upkeep(now_ns + HOUR_NS)
        merged_s, sizes = time.process_time(), self.store.sizes()
        self._write_line({
            "convert_cpu_s": converted_s - began_s,
            "turned_s": turned_s,
            "merge_cpu_s": merged_s - converted_s,
            "size_bytes": sizes["segments"] + sizes["rollups"],
            "parts_s": parts_s,
        })  # fmt: skip
        super().stop()

    def _advance(self, now_ns: int) -> None:
        """In the thread that owns everything."""
        began_s = time.thread_time()
        super()._advance(now_ns)
        self.steps_s += time.thread_time() - began_s

    def _ask_in_turn(self) -> None:
        for at_s in self.at_s:
            time.sleep(max(0.0, at_s + LOOK_EACH_S - time.time()))
            while (self.window.time_ns or 0) < at_s * 10**9:
                time.sleep(LOOK_EACH_S)
            done = self.ask(lambda at_s=at_s: one_pass(self, at_s)).result()  # type: ignore[misc]
            self._write_line(done | {"parts_s": self._parts_s()})

    def _write_line(self, line: dict[str, Any]) -> None:
        with self.passes.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _parts_s(self) -> dict[str, float]:
        """CPU seconds since the start."""
        parts = {
            "detectors, accounts and findings": self.steps_s,
            "rows into log and window": _cpu_s(self._thread) - self.steps_s,
            "log into segments and roll-ups": _cpu_s(self._upkeep),
            "connections": _cpu_s(threading.main_thread()),
        }
        return parts | {"the rest": time.process_time() - sum(parts.values())}


def _cpu_s(thread: threading.Thread) -> float:
    assert thread.ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


def main() -> int:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--passes", type=Path, required=True)
    parser.add_argument("--at", type=int, action="append", default=[])
    own, rest = parser.parse_known_args()
    Watched.passes, Watched.at_s = own.passes, tuple(own.at)
    vars(collector)["Live"] = Watched
    of_collector = argparse.ArgumentParser()
    collector.arguments(of_collector)
    return collector.run(of_collector.parse_args(rest))


if __name__ == "__main__":
    raise SystemExit(main())
