"""Measure Prometheus and VictoriaMetrics beside unidle: the same rows, the same rules, one after another.

    python -m benchmarks.peers --json          # within 12 minutes
    python -m benchmarks.peers --json --full   # ten minutes of rows per run, three rounds
    python -m benchmarks.peers --gpus 200 --rounds 1   # five minutes

Each round runs every engine alone, with an empty folder and the same rows of `benchmarks.generator`, in an
order that turns with the round. Prometheus scrapes a page of 8 GPUs per node and second, VictoriaMetrics
takes line protocol and unidle its push, both in batches of 5 s per node; nobody speaks TLS. All three go
through the rules of `benchmarks.peers_rules` every 15 s, over the same windows; unidle's own detectors and
accounts run besides and count as its ingest. Unidle's rules run inside of it, the others' as queries.

Processor time is user and system time of an engine's whole process after WARM_S, in which series are made
and pages come into caches. A pass is measured on the engine that rests after its load, or by the clock of
unidle's thread; ingest is what is left of the load without its passes, per value of that time, and turning
what came into its final form, per value of the run (Prometheus: its head into a block, by a snapshot;
VictoriaMetrics: a forced merge; unidle: its merge of a past hour). unidle's log becomes segments a minute at
a time: the load is charged for as many seconds of that as it has. Bytes are of the final form, indexes and
roll-ups included. Figures are the median of the rounds and go to stdout, all else to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import rounded
from benchmarks.generator import FIELDS, GPUS_PER_NODE
from benchmarks.peers_collector import seconds_turned
from benchmarks.peers_engines import (
    Gpus,
    Peer,
    Prometheus,
    VictoriaMetrics,
    ask,
    pass_over,
    started,
    wait_for,
)
from benchmarks.peers_rules import PROMQL, WINDOW_S
from benchmarks.processes import cpu_s, free_port, peak_rss_mib
from unidle_collector.store.segments import Segments

FOLDER = Path(".unidle") / "benchmarks"
"""On a real disk, because the log's syncs count."""
BATCH_S = 5
WARM_S = 30
PASS_EACH_S = 15
FIRST_S = 10
"""Where the first window begins: the collector has not waited for every node's very first rows."""
MOST_LAG_S = 12
"""From a row to its pass: a batch, its node's turn, and some for engines that are slow to show what came."""
SHOWN_AFTER_S = 2.0
"""VictoriaMetrics shows what came a second later."""
PREPARE_S = 8
REST_S = 3.0
QUIET_REPEATS = 2
ORDER = ("unidle", "prometheus", "victoriametrics")

TARGETS = {
    "cpu_prometheus_over_unidle": (10.0, "at least 10"),
    "cpu_victoriametrics_over_unidle": (5.0, "at least 5"),
    "bytes_victoriametrics_over_unidle": (1.0, "more than 1"),
}

Found = dict[int, dict[str, Gpus]]
"""Number of the pass -> rule -> (node, index) of the GPUs that it is true of."""


def say(text: str) -> None:
    """A line for people."""
    print(text, file=sys.stderr, flush=True)


def until(instant_s: float) -> None:
    """Sleep."""
    time.sleep(max(0.0, instant_s - time.time()))


@dataclass(frozen=True, slots=True)
class Sizes:
    """What every engine gets."""

    gpus: int
    seconds: int
    """Under measured load, after WARM_S."""

    @property
    def nodes(self) -> int:
        """Of GPUS_PER_NODE each."""
        return self.gpus // GPUS_PER_NODE

    @property
    def values_per_s(self) -> int:
        """All fields of all GPUs."""
        return self.gpus * len(FIELDS)

    @property
    def until_s(self) -> int:
        """From the first row to the end of the load."""
        return WARM_S + self.seconds

    def passes(self) -> list[int]:
        """Seconds after the first row that the passes are of."""
        return list(range(FIRST_S + WINDOW_S - 1, self.until_s - MOST_LAG_S, PASS_EACH_S))


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of one engine."""

    version: str
    load_cpu_s: float
    load_values: int
    final_cpu_s: float
    """Of turning what came into its final form."""
    rules_cpu_s_per_pass: float
    passes: int
    """Within the load."""
    rss_mib: float
    """Most until the end of the load."""
    size_bytes: int
    values: int
    """Of the whole run."""
    found: Found = field(repr=False)
    parts: Mapping[str, float] = field(default_factory=dict)
    """What an engine that knows says of its load: part -> share."""

    @property
    def ingest_cpu_s_per_million_values(self) -> float:
        """See the module."""
        load_s = self.load_cpu_s - self.passes * self.rules_cpu_s_per_pass
        return (load_s / self.load_values + self.final_cpu_s / self.values) * 1e6

    @property
    def bytes_per_value(self) -> float:
        """On disk at the end."""
        return self.size_bytes / self.values

    def cpu_s_per_million_values(self, values_per_s: int) -> float:
        """Ingest and rules, with a pass each PASS_EACH_S."""
        rules = self.rules_cpu_s_per_pass / (PASS_EACH_S * values_per_s) * 1e6
        return self.ingest_cpu_s_per_million_values + rules


# -- engines that speak PromQL --------------------------------------------------------------------------


def run_peer(kind: type[Peer], folder: Path, sizes: Sizes) -> Measured:
    """Load, quiet passes, final form."""
    port, feed_port, epoch = free_port(), free_port(), int(time.time()) + PREPARE_S
    peer = kind(folder, sizes.nodes, port, feed_port)
    np.zeros(sizes.nodes, dtype=np.int64).tofile(folder / "reached")
    reached = np.memmap(folder / "reached", dtype=np.int64, mode="r")
    flags = {
        "port": feed_port if peer.way == "pages" else port,
        "epoch": epoch,
        "seconds": sizes.until_s + BATCH_S,
        "reached": folder / "reached",
    }
    feed = [sys.executable, "-m", "benchmarks.peers_feed", peer.way]
    feed += [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    with started(peer.command(), folder / "engine.log") as pid:
        wait_for("engine", peer.is_ready)
        with started(feed, folder / "feed.log"):
            until(epoch + WARM_S)
            before_cpu_s, before_rows = cpu_s(pid), int(reached.sum())
            found: Found = {}
            for number, second in enumerate(sizes.passes()):
                wait_for("rows of a pass", partial(_all_beyond, reached, second))
                time.sleep(SHOWN_AFTER_S)
                found[number] = pass_over(port, epoch + second)
            until(epoch + sizes.until_s)
            load_cpu_s, load_rows = cpu_s(pid) - before_cpu_s, int(reached.sum()) - before_rows
            rss_mib = peak_rss_mib(pid)
            peer.rest()
        time.sleep(REST_S)
        quiet_cpu_s = _quiet_passes(pid, port, epoch, sizes, found)
        rows = GPUS_PER_NODE * int(reached.sum())
        _check_rows(port, rows)
        before_cpu_s = cpu_s(pid)
        size_bytes = peer.finish()
        final_cpu_s = cpu_s(pid) - before_cpu_s
        return Measured(
            version=peer.version(),
            load_cpu_s=load_cpu_s,
            load_values=load_rows * GPUS_PER_NODE * len(FIELDS),
            final_cpu_s=final_cpu_s,
            rules_cpu_s_per_pass=quiet_cpu_s,
            passes=len(found),
            rss_mib=rss_mib,
            size_bytes=size_bytes,
            values=rows * len(FIELDS),
            found=found,
        )


def _all_beyond(reached: NDArray[np.int64], second: int) -> bool:
    return int(reached.min()) > second


def _quiet_passes(pid: int, port: int, epoch: int, sizes: Sizes, found: Found) -> float:
    """CPU seconds per pass without load; they must find what was found under load."""
    before_cpu_s, done = cpu_s(pid), 0
    for _ in range(QUIET_REPEATS):
        for number, second in enumerate(sizes.passes()):
            if pass_over(port, epoch + second) != found[number]:
                say(f"pass {number} finds something else once the load is over: its rows came too late")
            done += 1
    return (cpu_s(pid) - before_cpu_s) / done


def _check_rows(port: int, rows: int) -> None:
    query = "sum(count_over_time(gpu_power_w[1h]))"
    answer = json.loads(ask(port, "/api/v1/query", query=query, time=f"{time.time():.0f}"))
    held = int(float(answer["data"]["result"][0]["value"][1]))
    if held != rows:
        say(f"of {rows} rows that were taken over, {held} can be read back")


# -- unidle ---------------------------------------------------------------------------------------------


def run_unidle(folder: Path, sizes: Sizes) -> Measured:
    """Load with passes inside, final form."""
    port, epoch = free_port(), int(time.time()) + PREPARE_S
    kept = {name: text for name, text in os.environ.items() if not name.startswith("UNIDLE_")}
    environ = kept | {
        "UNIDLE_COLLECTOR_PORT": str(port),
        "UNIDLE_COLLECTOR_DATA_DIR": str(folder / "data"),
    }
    passes, acked = folder / "passes", folder / "acked"
    collector = [sys.executable, "-m", "benchmarks.peers_collector", "--passes", str(passes)]
    collector += [text for second in sizes.passes() for text in ("--at", str(epoch + second))]
    flags = {
        "port": port,
        "tokens": folder / "data" / "push.token",
        "acked": acked,
        "epoch": epoch,
        "gpus": sizes.gpus,
        "batch-s": BATCH_S,
    }
    generator = [sys.executable, "-m", "benchmarks.generator"]
    generator += [text for name, value in flags.items() for text in (f"--{name}", str(value))]

    with started(collector, folder / "engine.log", environ) as pid:
        wait_for("collector", lambda: bool(ask(port, "/api/v1/health")))
        with started(generator, folder / "feed.log"):
            until(epoch + WARM_S)
            segments = Segments(folder / "data" / "segments", read_only=True)
            before_cpu_s, before_batches, before_s = cpu_s(pid), _lines(acked), seconds_turned(segments)
            until(epoch + sizes.until_s)
            load_cpu_s, load_batches = cpu_s(pid) - before_cpu_s, _lines(acked) - before_batches
            turned_s = seconds_turned(segments)
            rss_mib = peak_rss_mib(pid)
    *done, final = [json.loads(line) for line in passes.read_text().splitlines()]
    if not done:
        raise SystemExit("the collector got to no pass before its load was over: give it more --seconds")
    found = {
        number: {
            rule: frozenset((node, index) for node, index in gpus) for rule, gpus in one["found"].items()
        }
        for number, one in enumerate(done)
    }
    per_s = final["convert_cpu_s"] / max(1.0, final["turned_s"] - turned_s)
    values_per_batch = BATCH_S * GPUS_PER_NODE * len(FIELDS)
    return Measured(
        version=version("unidle"),
        load_cpu_s=load_cpu_s + per_s * (sizes.seconds - (turned_s - before_s)),
        load_values=load_batches * values_per_batch,
        final_cpu_s=final["merge_cpu_s"],
        rules_cpu_s_per_pass=statistics.fmean(one["cpu_s"] for one in done),
        passes=len(done),
        rss_mib=rss_mib,
        size_bytes=final["size_bytes"],
        values=_lines(acked) * values_per_batch,
        found=found,
        parts=_shares(done[0]["parts_s"], final["parts_s"]),
    )


def _shares(first: dict[str, float], last: dict[str, float]) -> dict[str, float]:
    """Of what was taken between the first pass and the end of the load."""
    took_s = sum(last.values()) - sum(first.values())
    return {part: (last[part] - first[part]) / took_s for part in last} if took_s else {}


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


# -- all of them ----------------------------------------------------------------------------------------

RUNS: dict[str, Callable[[Path, Sizes], Measured]] = {
    "unidle": run_unidle,
    "prometheus": lambda folder, sizes: run_peer(Prometheus, folder, sizes),
    "victoriametrics": lambda folder, sizes: run_peer(VictoriaMetrics, folder, sizes),
}


def agreement(runs: Mapping[str, list[Measured]], passes: int) -> dict[str, bool]:
    """Rule -> did every engine name the same GPUs in every pass of every round; thermal is throttled, too."""
    same = {}
    for rule in PROMQL:
        same[rule] = True
        for number in range(passes):
            answers = {name: [one.found.get(number, {}).get(rule) for one in runs[name]] for name in runs}
            different = {answer for of_engine in answers.values() for answer in of_engine}
            counts = ", ".join(
                f"{name} {'/'.join('-' if a is None else str(len(a)) for a in of_engine)}"
                for name, of_engine in answers.items()
            )
            same[rule] &= len(different) == 1 and None not in different
            say(f"rule {rule:<10} pass {number}: {counts} {'' if len(different) == 1 else 'DIFFERENT'}")
    return {
        "starved": same["starved"],
        "throttled": same["throttled"] and same["thermal"],
        "oom_risk": same["oom_risk"],
    }


def figures_of(runs: Mapping[str, list[Measured]], sizes: Sizes) -> dict[str, Any]:
    """The medians of the rounds."""

    def median(name: str, of: Callable[[Measured], float]) -> float:
        return statistics.median(of(one) for one in runs[name])

    figures: dict[str, Any] = {
        name: {
            "version": runs[name][0].version,
            "ingest_cpu_s_per_million_values": median(name, lambda m: m.ingest_cpu_s_per_million_values),
            "rules_cpu_s_per_pass": median(name, lambda m: m.rules_cpu_s_per_pass),
            "rss_mib": median(name, lambda m: m.rss_mib),
            "bytes_per_value": median(name, lambda m: m.bytes_per_value),
        }
        for name in ORDER
    }
    cpu = {name: median(name, lambda m: m.cpu_s_per_million_values(sizes.values_per_s)) for name in ORDER}
    figures["ratios"] = {
        "cpu_prometheus_over_unidle": cpu["prometheus"] / cpu["unidle"],
        "cpu_victoriametrics_over_unidle": cpu["victoriametrics"] / cpu["unidle"],
        "bytes_victoriametrics_over_unidle": figures["victoriametrics"]["bytes_per_value"]
        / figures["unidle"]["bytes_per_value"],
    }
    figures["agreement"] = agreement(runs, len(sizes.passes()))
    return figures


def judge(figures: dict[str, Any], parts: Mapping[str, float]) -> None:
    """Each figure; each ratio beside its target, and what is to be won where it is missed."""
    for name in ORDER:
        say(f"{name:<16} " + ", ".join(f"{key} {rounded(value)}" for key, value in figures[name].items()))
    for name, (bound, words) in TARGETS.items():
        came = figures["ratios"][name]
        say(f"{name:<34} {came:8.3g}   {words:<12} {'ok' if came >= bound else 'MISSED'}")
        if came < bound and name.startswith("cpu"):
            say(f"  unidle would have to take {came / bound:.2f} times what it took; its load went into:")
            say("  " + ", ".join(f"{part} {share:.0%}" for part, share in parts.items()))
        elif came < bound:
            say(f"  unidle would have to write {came / bound:.2f} times what it wrote, roll-ups included")
    say(f"agreement {figures['agreement']}")


def main() -> int:
    """Measure, judge, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="the figures as JSON on stdout")
    parser.add_argument("--full", action="store_true", help="ten minutes of rows per run, three rounds")
    parser.add_argument("--gpus", type=int, default=2000, help="a multiple of 8")
    parser.add_argument("--seconds", type=int, help="of load that are measured, a multiple of 5")
    parser.add_argument("--rounds", type=int)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that engines end with us
    if args.gpus % GPUS_PER_NODE:
        parser.error(f"--gpus: expected a multiple of {GPUS_PER_NODE}, came {args.gpus}")
    sizes = Sizes(args.gpus, args.seconds or (600 if args.full else 60))
    if sizes.seconds % BATCH_S or not sizes.passes():
        parser.error(f"--seconds: expected a multiple of {BATCH_S}, 40 or more, came {sizes.seconds}")
    rounds = args.rounds or (3 if args.full else 2)
    say(
        f"{sizes.gpus} GPUs x {len(FIELDS)} fields at 1 Hz for {WARM_S} + {sizes.seconds} s, "
        f"{rounds} rounds, {len(sizes.passes())} passes of {len(PROMQL)} rules over {WINDOW_S} s in each; "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {time.strftime('%Y-%m-%d')}"
    )
    runs: dict[str, list[Measured]] = {name: [] for name in ORDER}
    FOLDER.mkdir(parents=True, exist_ok=True)
    for number in range(rounds):
        for name in ORDER[number % len(ORDER) :] + ORDER[: number % len(ORDER)]:
            with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
                one = RUNS[name](Path(folder).absolute(), sizes)
            runs[name].append(one)
            say(
                f"round {number} {name}: load {one.load_cpu_s:.2f} CPU s for {one.load_values / 1e6:.2f} "
                f"million values, final form {one.final_cpu_s:.2f} CPU s for {one.values / 1e6:.2f}, "
                f"{one.rules_cpu_s_per_pass:.4f} CPU s per pass, {one.rss_mib:.0f} MiB, "
                f"{one.bytes_per_value:.3f} bytes per value"
            )
    figures = figures_of(runs, sizes)
    judge(figures, runs["unidle"][-1].parts)
    if args.json:
        print(json.dumps(rounded(figures), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
