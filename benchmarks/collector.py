"""Measure the whole collector under the fleet that it is made for, and kill it forty times.

    python -m benchmarks.collector --json          # within 12 minutes
    python -m benchmarks.collector --json --full   # an hour of load, 200 kills
    python -m benchmarks.collector --gpus 2000 --seconds 60 --kills 0

The collector runs as an operator starts it, with TLS and a token per node; detectors, store and
accounts on. One generator process outside of it (`benchmarks.generator`) pushes noisy rows at 1 Hz in
batches of 5 s over one connection per node. Processor time is user and system time of the collector's
processes, all threads. Figures go to stdout, sizes, targets and reasons to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from benchmarks.ack_server import certificate
from benchmarks.figures import rounded
from benchmarks.generator import FIELDS, GPUS_PER_NODE
from benchmarks.processes import cpu_s, free_port, peak_rss_mib
from benchmarks.store import make_fixture, queries
from unidle_collector.commands import tokens
from unidle_collector.store import Store

FOLDER = Path(".unidle") / "benchmarks"
"""On a real disk, because the log's syncs count."""
BATCH_S = 5
READY_S = 60.0
SETTLE_S = 45.0
"""After the first push, before measuring: handshakes, facts and first windows are the start, not the run."""
RAW_GPUS = 200
"""GPUs of which the queries' fixture has rows at 1 s."""
KILL_GPUS = 128
KILL_BATCH_S = 1
LOAD_S = (0.2, 1.5)
"""How long a victim runs under load before it is killed: anything between these."""
CLOSED_NS = 3600 * 10**9
"""Far enough ahead that the store closes and converts everything that it has."""

QUERY_MS = {"gpu_24h": 300, "fleet_mean_24h": 300, "job_p95": 300, "gpu_raw_1h": 100}
TARGETS: dict[str, tuple[float, str]] = {
    "core_fraction": (0.15, "at most 0.15 of a core"),
    "rss_mib": (1536, "at most 1.5 GiB"),
    "rows_lost": (0, "none"),
    "detector_tick_ms_p99": (100, "below 100 ms"),
    "arrival_to_finding_s_p99": (2, "below 2 s"),
    "bytes_per_value": (1.3, "at most 1.3"),
}
REASONS = {
    "core_fraction": "much of what a batch costs does not depend on how much it holds: longer batches of the "
    "agents (`batch_s`), or a second collector",
    "rss_mib": "the live window (`window_mb`) and the batches of one or two minutes, which wait decoded for "
    "their segments: a smaller window",
    "rows_lost": "nothing may be: an acknowledged row is in the log, so this is a bug",
    "detector_tick_ms_p99": "a tick shares the interpreter with connections and segments, and the machine "
    "with all else that runs: fewer other processes, or fewer GPUs per collector",
    "arrival_to_finding_s_p99": "a finding waits until every node's rows of its second are there: nodes "
    "that send closer together, or fewer per collector",
    "bytes_per_value": "each minute leaves parts of roll-ups, which an hour that is over puts together, and "
    "a short run has few rows beside them: a longer run, or fewer noisy fields",
    "query_ms": "a query opens every file of the time that it asks for: fewer and larger ones",
}
"""Why a target can be missed, and what would be needed."""


def say(text: str) -> None:
    """A line for people."""
    print(text, file=sys.stderr, flush=True)


class Site:
    """A collector and a generator, started and killed as processes; the data stays."""

    def __init__(self, folder: Path, gpus: int, batch_s: int) -> None:
        self.folder, self.gpus, self.batch_s = folder, gpus, batch_s
        self.data_dir = folder / "data"
        self.acked = folder / "acked"
        self.pem, self.key = certificate(folder)
        self.port = free_port()
        self.nodes = -(-gpus // GPUS_PER_NODE)
        self.epoch = 0
        self.tokens = folder / "tokens"
        _make_tokens(self.data_dir, [f"node-{number:05d}" for number in range(self.nodes)], self.tokens)

    def collector(self) -> subprocess.Popen[bytes]:
        """Start the collector and wait until it answers."""
        settings = {
            "port": self.port,
            "data_dir": self.data_dir,
            "tls_cert_file": self.pem,
            "tls_key_file": self.key,
        }
        kept = {key: text for key, text in os.environ.items() if not key.startswith("UNIDLE_")}
        named = {f"UNIDLE_COLLECTOR_{name.upper()}": str(value) for name, value in settings.items()}
        process = self._start("collector", ["unidle_agent.cli", "collector"], kept | named)
        end_s = time.monotonic() + READY_S
        while time.monotonic() < end_s and process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return process
            time.sleep(0.05)
        _end(process)
        raise SystemExit(f"the collector does not listen: {self.log_tail('collector')}")

    def generator(self) -> subprocess.Popen[bytes]:
        """Start the fleet; it goes on where its acknowledgements end."""
        self.epoch = self.epoch or (int(time.time()) // self.batch_s + 1) * self.batch_s + 1
        flags: dict[str, object] = {
            "port": self.port,
            "ca": self.pem,
            "tokens": self.tokens,
            "acked": self.acked,
            "epoch": self.epoch,
            "gpus": self.gpus,
            "batch-s": self.batch_s,
        }
        command = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
        return self._start("generator", ["benchmarks.generator", *command], dict(os.environ))

    def _start(self, name: str, command: list[str], environ: dict[str, str]) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log, (self.folder / f"{name}.out").open("wb") as out:
            return subprocess.Popen([sys.executable, "-m", *command], env=environ, stdout=out, stderr=log)

    def log_tail(self, name: str) -> str:
        """The last words of a process."""
        return (self.folder / f"{name}.log").read_text(errors="replace")[-500:]

    def metrics(self) -> dict[str, float]:
        """The collector's /metrics, by name with labels."""
        context = ssl.create_default_context(cafile=str(self.pem))
        with urllib.request.urlopen(
            f"https://127.0.0.1:{self.port}/metrics", timeout=60, context=context
        ) as page:
            lines = page.read().decode().splitlines()
        return {
            name: float(value)
            for name, _, value in (line.rpartition(" ") for line in lines)
            if name[:1] != "#"
        }

    def batches_acked(self) -> list[tuple[int, int]]:
        """(Node, seq) of everything acknowledged; a line that the end cut short is no acknowledgement."""
        lines = self.acked.read_text().splitlines(keepends=True)
        return [(int(n), int(k)) for n, k in (line.split() for line in lines if line.endswith("\n"))]


@dataclass(frozen=True, slots=True)
class Stored:
    """What the store has after a run."""

    rows: int
    lost: int
    """Acknowledged rows that it has not."""
    doubled: int
    bytes_per_value: float


def stored(site: Site) -> Stored:
    """Turn all that is left in the log into segments and count; the collector has ended."""
    store = Store(site.data_dir)
    try:
        for _ in store.replay():
            pass
        store.upkeep(time.time_ns() + CLOSED_NS)
        sizes = store.sizes()
    finally:
        store.close()
    acked = [
        (f"node-{number:05d}", (site.epoch + seq * site.batch_s + second) * 10**9)
        for number, seq in site.batches_acked()
        for second in range(site.batch_s)
    ]
    with duckdb.connect() as db:
        pattern = str(site.data_dir / "segments" / "gpu-*.parquet")  # rows; roll-ups have other names
        db.execute(f"CREATE VIEW rows AS SELECT * FROM read_parquet('{pattern}', union_by_name = true)")
        rows, different = db.execute(
            "SELECT count(*), count(DISTINCT (node, gpu, CAST(time_ns AS BIGINT))) FROM rows"
        ).fetchone() or (0, 0)
        kept = set(db.execute("SELECT DISTINCT node, CAST(time_ns AS BIGINT) FROM rows").fetchall())
    missing = sum(1 for instant in acked if instant not in kept)
    values = rows * len(FIELDS)
    size_bytes = sizes["segments"] + sizes["rollups"]
    per_value = size_bytes / values if values else math.nan
    say(f"stored: {sizes['segments']:,} bytes of rows, {sizes['rollups']:,} of roll-ups and histograms")
    return Stored(rows, missing * GPUS_PER_NODE, rows - different, per_value)


def under_load(folder: Path, gpus: int, seconds: float) -> dict[str, Any]:
    """The collector at its work."""
    site = Site(folder, gpus, BATCH_S)
    collector = site.collector()
    generator = site.generator()
    try:
        say(f"load: {site.nodes} nodes connect; measuring {seconds:g} s after {SETTLE_S:g} s of settling")
        _watch(collector, generator, SETTLE_S)
        before, began_s, began_cpu_s = site.metrics(), time.monotonic(), cpu_s(collector.pid)
        _watch(collector, generator, seconds)
        took_s, took_cpu_s, after = (
            time.monotonic() - began_s,
            cpu_s(collector.pid) - began_cpu_s,
            site.metrics(),
        )
        rss_mib = peak_rss_mib(collector.pid)
        generator.terminate()
        generator.wait(60)
        collector.terminate()
        collector.wait(120)
    finally:
        _end(generator)
        _end(collector)
    sent = json.loads((folder / "generator.out").read_text())
    rows = after[ROWS] - before[ROWS]
    say(f"load: the generator says {sent}; {rows:.0f} rows in {took_s:.1f} s, {took_cpu_s:.2f} CPU s")
    found = stored(site)
    say(f"load: {found.rows} rows stored, {found.lost} lost, {found.doubled} doubled")
    return {
        "gpus": gpus,
        "fields": len(FIELDS),
        "hz": 1,
        "seconds": round(took_s, 1),
        "core_fraction": took_cpu_s / took_s,
        "cpu_s_per_million_values": took_cpu_s / (rows * len(FIELDS)) * 1e6 if rows else None,
        "rss_mib": rss_mib,
        "rows_lost": found.lost,
        "detector_tick_ms_p99": _times(after.get(f'{TICK}{{quantile="0.99"}}'), 1e3),
        "arrival_to_finding_s_p99": _times(after.get(f'{DELAY}{{quantile="0.99"}}'), 1.0),
        "bytes_per_value": found.bytes_per_value,
    }


ROWS = "unidle_collector_rows_ingested_total"
TICK = "unidle_collector_tick_seconds"
DELAY = "unidle_collector_finding_delay_seconds"


def asked(folder: Path, gpus: int) -> dict[str, float]:
    """Milliseconds of what a dashboard asks, over a day that the product's own writer has written."""
    began_s = time.monotonic()
    make_fixture(folder, gpus, min(RAW_GPUS, gpus))
    took_s = time.monotonic() - began_s
    say(f"queries: {gpus} GPUs x 24 h by roll-ups, {RAW_GPUS} x 1 h at 1 s, written in {took_s:.0f} s")
    return queries(folder)


def killed(folder: Path, runs: int) -> dict[str, int]:
    """Kill the collector or the generator `runs` times at random under load; what the store then has."""
    site, chance = Site(folder, KILL_GPUS, KILL_BATCH_S), random.Random(4)
    collector, generator = site.collector(), site.generator()
    try:
        for run in range(runs):
            time.sleep(chance.uniform(*LOAD_S))
            if chance.random() < 0.75:
                _kill(collector)
                collector = site.collector()
            else:
                _kill(generator)
                generator = site.generator()
            if run % 10 == 9:
                say(f"kill -9: {run + 1} of {runs}, {len(site.batches_acked())} batches acknowledged")
        time.sleep(LOAD_S[1] + KILL_BATCH_S)
        generator.terminate()
        generator.wait(60)
        collector.terminate()
        collector.wait(120)
    finally:
        _end(generator)
        _end(collector)
    found = stored(site)
    acked = len(site.batches_acked())
    say(f"kill -9: {found.rows} rows of {site.nodes} nodes stored, {acked} batches acknowledged")
    return {"runs": runs, "rows_lost": found.lost, "rows_doubled": found.doubled}


def _make_tokens(data_dir: Path, nodes: list[str], folder: Path) -> None:
    """What `unidle tokens create --node ... --write-to` does."""
    parser = argparse.ArgumentParser()
    tokens.arguments(parser)
    flags = [text for node in nodes for text in ("--node", node)]
    command = ["--data-dir", str(data_dir), "create", "--write-to", str(folder), *flags]
    with contextlib.redirect_stdout(sys.stderr):
        tokens.run(parser.parse_args(command))


def _watch(collector: subprocess.Popen[bytes], generator: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait, but not for the dead."""
    end_s = time.monotonic() + seconds
    while (left_s := end_s - time.monotonic()) > 0:
        time.sleep(min(1.0, left_s))
        if collector.poll() is not None or generator.poll() is not None:
            raise SystemExit("the collector or the generator has ended: see the logs")


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        _kill(process)


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as name:
        yield Path(name).absolute()


def judge(figures: dict[str, Any]) -> None:
    """Each figure beside its target."""
    for name, (bound, words) in TARGETS.items():
        came = figures[name]
        verdict = "not measured" if came is None else "ok" if came <= bound else "MISSED"
        say(f"{name:<26} {'' if came is None else format(came, '12.4g'):>12}   {words:<24} {verdict}")
        if verdict == "MISSED":
            _explain(name, bound, came)
    for name, bound in QUERY_MS.items():
        came = figures["query_ms"][name]
        say(f"{name:<26} {came:12.4g}   under {bound} ms{'':<13} {'ok' if came < bound else 'MISSED'}")
        if came >= bound:
            _explain("query_ms", bound, came)
    say(f"{'cpu_s_per_million_values':<26} {figures['cpu_s_per_million_values'] or math.nan:12.4g}")
    say(f"{'kill9':<26} {json.dumps(figures['kill9'])}")


def _explain(name: str, bound: float, came: float) -> None:
    """What is missing, why, and what would be needed."""
    share = f"it has to be {bound / came:.2f} times what it is; " if bound else ""
    say(f"  {share}{REASONS[name]}")


def main() -> int:
    """Measure, judge, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="the figures as JSON on stdout")
    parser.add_argument("--full", action="store_true", help="an hour of load, 200 kills")
    parser.add_argument("--gpus", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, help="of load that are measured")
    parser.add_argument("--kills", type=int)
    args = parser.parse_args()
    seconds = args.seconds or (3600.0 if args.full else 180.0)
    kills = args.kills if args.kills is not None else (200 if args.full else 40)
    say(
        f"{args.gpus} GPUs x {len(FIELDS)} fields at 1 Hz for {seconds:g} s, batches of {BATCH_S} s, "
        f"TLS, tokens; {kills} kills at {KILL_GPUS} GPUs; {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}"
    )
    with _folder() as folder:
        figures = under_load(folder, args.gpus, seconds)
    with _folder() as folder:
        figures["query_ms"] = asked(folder, args.gpus)
    with _folder() as folder:
        figures["kill9"] = killed(folder, kills)
    judge(figures)
    if args.json:
        print(json.dumps({name: rounded(value) for name, value in figures.items()}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
