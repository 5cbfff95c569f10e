"""Measure the agent: memory, processor time, start, page, truth of a bursty signal, beside a peer.

    python -m benchmarks.agent --json          # within 12 minutes
    python -m benchmarks.agent --json --full   # 10 minutes of the agent, all 100,000 ticks

Eight GPUs of the C library of tests/nvml, which answers at once: the driver's own time is not in here.
Defaults, every field; pushes over TLS to a stand-in on 127.0.0.1, the spool's syncs and a scrape each
15 s are included. Memory is the proportional set size (PSS) of all processes of the agent. The figures
go to stdout, sizes, targets and reasons to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from tests import nvml_library

from benchmarks.ack_server import AckServer, certificate
from benchmarks.figures import rounded
from benchmarks.processes import cpu_s, private_mib, pss_mib, tree
from unidle_agent.dcgm import parse_page
from unidle_agent.fields import GPU_FIELDS
from unidle_agent.wire import Batch

GPUS = 8
FOLDER = Path(".unidle") / "benchmarks"
"""On a real disk, because the spool's syncs count."""
SCRAPE_S = 15.0
SETTLE_S = 10.0
"""After the first sample, before measuring: imports and first batches are the start, not the run."""
START_S = 30.0
PEER = "nvitop-exporter"
PEER_FOLDER = FOLDER / PEER

WINDOW_S = 10.0
DRIVER_WINDOW_S = 1 / 6
"""The shortest window that nvml.h gives for utilization."""
SIGNAL_S = 30.0
SETTLE_ROWS = 3
"""A GPU is found to be restless, or its buffer to be dense, in the first of its rows."""
BURST_PERIODS_S = (0.3, 0.5, 0.6, 0.75, 1.0, 1.5, 2.0, 3.0)
"""One per GPU; each fits into SIGNAL_S a whole number of times."""

TARGETS: dict[str, tuple[float, str, Callable[[float, float], bool]]] = {
    "pss_mib": (45, "at most 45 MiB", lambda came, most: came <= most),
    "pss_growth_mib_100k_ticks": (1, "below 1 MiB", lambda came, most: came < most),
    "core_fraction": (0.005, "at most 0.5 % of a core", lambda came, most: came <= most),
    "start_to_first_sample_s": (1, "below 1 s", lambda came, most: came < most),
    "metrics_ms": (10, "below 10 ms", lambda came, most: came < most),
    "metrics_bytes": (80_000, "below 80 kB", lambda came, most: came < most),
    "bursty_rms_points": (2, "at most 2 points", lambda came, most: came <= most),
    "dcgm_parse_speedup": (5, "at least 5 times", lambda came, least: came >= least),
}


WHEN_MISSED = {
    "pss_mib": "two Python processes make it; above is how much of it is nobody else's. What would help: "
    "fewer modules that the parent imports.",
    "pss_growth_mib_100k_ticks": "the slope of a short run counts what settles once like a leak. What would "
    "help: --full; a leak of the child is red in tests/nvml (hours_of_passes) too.",
    "core_fraction": "the line above says which process takes it; most is waking up with cold caches, dearer "
    "on a busy machine. What would help: a lower fast_hz, a longer period, a driver with sample buffers.",
    "start_to_first_sample_s": "two interpreters that start, and the first push; the spread is above. What "
    "would help: an idle machine, fewer imports.",
    "metrics_ms": "the page is ready when it is asked for, so this is the connection. What would help: an "
    "idle machine.",
    "metrics_bytes": "a field is a series per GPU. What would help: shorter names and help lines.",
    "bursty_rms_points": "the worst kind of driver is above. By instant: looks came late, or GPUs were not "
    "found restless. By window and by buffer: the driver's window ends after the row; no looking mends that.",
    "dcgm_parse_speedup": "both parsers take turns on one core. What would help: an idle machine.",
}


def say(text: str) -> None:
    """A line for people."""
    print(text, file=sys.stderr, flush=True)


class Bench:
    """What all measurements share: the library, the certificate, a folder each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "library").mkdir()
        self.nvml_folder = nvml_library.build(folder / "library")
        self.pem, self.key = certificate(folder)
        self.answers = folder / "answers.txt"
        nvml_library.write(self.answers, [nvml_library.gpu(number) for number in range(GPUS)])

    def environment(self, answers: Path, **settings: object) -> dict[str, str]:
        """Of a process that finds the library and, as settings of an agent, these."""
        kept = {key: text for key, text in os.environ.items() if not key.startswith("UNIDLE_")}
        named = {f"UNIDLE_AGENT_{name.upper()}": str(value) for name, value in settings.items()}
        return kept | nvml_library.environment(self.nvml_folder, answers) | named

    @contextlib.contextmanager
    def agent(
        self, name: str, answers: Path, take: Callable[[Batch], None], command: tuple[str, ...] = ()
    ) -> Iterator[subprocess.Popen[str]]:
        """`unidle agent`, or another command with its settings, pushing to a stand-in."""
        state = self.folder / name
        state.mkdir()
        server = AckServer(self.pem, self.key, take)
        settings = {"push_url": server.url, "push_ca_file": self.pem, "state_dir": state, "port": 0}
        process = subprocess.Popen(
            [sys.executable, "-m", *(command or ("unidle_agent.cli", "agent"))],
            env=self.environment(answers, **settings),
            stdout=subprocess.PIPE,
            stderr=(state / "log").open("w"),
            text=True,
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(START_S)
            process.kill()
            process.wait()
            server.close()

    def page_url(self, name: str) -> str:
        """Where the agent says that its page is."""
        match = re.search(r"(http://\S+/metrics)", (self.folder / name / "log").read_text())
        assert match, "the agent has not said where its page is"
        return match[1]


class FirstSample:
    """Takes batches and notes when the first came in which every GPU answers."""

    def __init__(self) -> None:
        self.began_s = time.monotonic()
        self.took_s = math.inf
        self._there = threading.Event()

    def __call__(self, batch: Batch) -> None:
        states = batch.columns.get("gpu_state", ())
        if not self._there.is_set() and len(batch.gpus) == GPUS and 0 in states:
            self.took_s = time.monotonic() - self.began_s
            self._there.set()

    def wait(self) -> None:
        if not self._there.wait(START_S):
            raise SystemExit(f"no batch with {GPUS} GPUs within {START_S:g} s: is the agent running?")


def start_s(bench: Bench) -> float:
    """Median of five starts, from the start of the process to the first whole batch at the collector."""
    took = []
    for number in range(5):
        first = FirstSample()
        with bench.agent(f"start-{number}", bench.answers, first):
            first.wait()
        took.append(first.took_s)
    say(f"start: {', '.join(f'{one:.2f}' for one in took)} s")
    return statistics.median(took)


def running(pid: int, url: str, seconds: float) -> tuple[float, float]:
    """PSS in MiB (the most seen) and share of a core of the tree of `pid`, scraped each 15 s."""
    began_s, began_cpu_s, most = time.monotonic(), cpu_s(pid), 0.0
    while (left_s := began_s + seconds - time.monotonic()) > 0:
        time.sleep(min(SCRAPE_S, left_s))
        scrape(url)
        most = max(most, pss_mib(pid))
    return most, (cpu_s(pid) - began_cpu_s) / (time.monotonic() - began_s)


def scrape(url: str) -> tuple[float, str]:
    """Milliseconds of a scrape over a connection of its own, and the page."""
    began_s = time.perf_counter()
    with urllib.request.urlopen(url, timeout=10) as answer:
        page = answer.read().decode()
    return (time.perf_counter() - began_s) * 1e3, page


def whole_agent(bench: Bench, seconds: float) -> dict[str, float]:
    """The agent as it is delivered."""
    first = FirstSample()
    with bench.agent("whole", bench.answers, first) as process:
        first.wait()
        url = bench.page_url("whole")
        time.sleep(SETTLE_S)
        pids = tree(process.pid)
        before_s = [cpu_s(pid) for pid in pids]
        most, share = running(process.pid, url, seconds)
        spent_s = [cpu_s(pid) - before for pid, before in zip(pids, before_s, strict=True)]
        scrapes = [scrape(url) for _ in range(20)]
        processes, private = len(tree(process.pid)), private_mib(process.pid)
    say(f"agent: {processes} processes over {seconds:g} s, {private:.1f} MiB of it shared with nobody")
    child, parent = sum(spent_s[1:]) / seconds, (spent_s[0] - sum(spent_s[1:])) / seconds
    say(f"agent: the NVML child takes {child:.5f} of a core, its parent {parent:.5f}")
    return {
        "pss_mib": most,
        "core_fraction": share,
        "metrics_ms": statistics.median(took for took, _ in scrapes),
        "metrics_bytes": len(scrapes[-1][1].encode()),
    }


def growth(bench: Bench, ticks: int, seconds: float) -> float:
    """MiB per 100,000 ticks, in accelerated time; least squares over the second half.

    Of the anonymous memory: the rest of PSS is files, whose share changes with who else has them mapped.
    """
    command = ("benchmarks.agent_ticks", str(ticks), str(seconds))
    points: list[tuple[int, float]] = []
    with bench.agent("ticks", bench.answers, lambda _: None, command) as process:
        assert process.stdout is not None
        for line in process.stdout:
            document = json.loads(line)
            points.append((document["ticks"], document["anonymous_mib"]))
    if len(points) < 10:
        raise SystemExit(f"only {len(points)} measures in accelerated time: too few to see growth")
    settled = points[len(points) // 2 :]
    slope = statistics.linear_regression(*zip(*settled, strict=True)).slope
    say(
        f"growth: {points[-1][0]} ticks in accelerated time (the sampler does not wait; child process, spool "
        f"and pushes are real); over the second half anonymous memory goes from {settled[0][1]:.2f} to "
        f"{settled[-1][1]:.2f} MiB; the figure is the slope times 100,000"
    )
    return slope * 100_000


def busy_share(period_s: float, from_s: float, to_s: float) -> float:
    """Share of the time in which a signal is on that is on for the first half of each period."""

    def busy_s(until_s: float) -> float:
        whole, rest_s = divmod(until_s, period_s)
        return whole * period_s / 2 + min(rest_s, period_s / 2)

    return (busy_s(to_s) - busy_s(from_s)) / (to_s - from_s)


def by_instant() -> str:
    """A driver whose utilization is that of the instant."""
    changes: dict[float, list[str]] = {}
    for number, period_s in enumerate(BURST_PERIODS_S):
        for half in range(round(2 * SIGNAL_S / period_s)):
            line = f"gpu.{number}.utilization.gpu={100 * (half % 2 == 0):d}"
            changes.setdefault(round(half * period_s / 2, 6), []).append(line)
    return "\n".join(line for at_s in sorted(changes) for line in (f"[t={at_s}]", *changes[at_s]))


def by_window() -> str:
    """As a driver shows such signals: each sixth of a second, the share of the sixth before it."""
    lines = []
    for step in range(round(SIGNAL_S / DRIVER_WINDOW_S)):
        lines.append(f"[t={step * DRIVER_WINDOW_S:.6f}]")
        lines += [
            f"gpu.{number}.utilization.gpu={percent_before(step, period_s)}"
            for number, period_s in enumerate(BURST_PERIODS_S)
        ]
    return "\n".join(lines)


def by_buffer() -> str:
    """The same, with a driver that keeps the sixths of a second in its ring buffer."""
    rings = [
        ";".join(
            f"{step * DRIVER_WINDOW_S:.6f}:{percent_before(step, period_s)}"
            for step in range(round(SIGNAL_S / DRIVER_WINDOW_S))
        )
        for period_s in BURST_PERIODS_S
    ]
    buffers = [f"gpu.{number}.samples.1=u;{ring}" for number, ring in enumerate(rings)]
    return "\n".join([*buffers, by_window()])


SHOWN: dict[str, Callable[[], str]] = {"instant": by_instant, "window": by_window, "buffer": by_buffer}
"""What drivers are like: the figure is that of the worst."""


def percent_before(step: int, period_s: float) -> int:
    """What the driver's window that ends with this step shows of the signal."""
    at_s = step * DRIVER_WINDOW_S
    return round(100 * busy_share(period_s, at_s - DRIVER_WINDOW_S, at_s))


def bursty(bench: Bench, seconds: float) -> float:
    """RMS error in points of the 10 s means that a reader of the rows would take, of the worst driver."""
    return max(bursty_one(bench, seconds, shown) for shown in SHOWN)


def window_means(rows: list[tuple[float, float]]) -> Iterator[tuple[float, float, float]]:
    """Mean of each ten rows (time, value), and from when to when: a row speaks for the second before it."""
    width = round(WINDOW_S)
    for end in range(width, len(rows), width):
        values = [value for _, value in rows[end - width + 1 : end + 1]]
        yield statistics.fmean(values), rows[end - width][0], rows[end][0]


def bursty_one(bench: Bench, seconds: float, shown: str) -> float:
    """RMS error in points where the driver is `shown`."""
    answers, begins_s = bench.folder / f"bursty-{shown}.txt", time.monotonic()
    gpus = [{**nvml_library.gpu(number), "samples.1": None} for number in range(GPUS)]
    nvml_library.write(answers, [{key: one for key, one in gpu.items() if one is not None} for gpu in gpus])
    with answers.open("a") as file:
        file.write(f"begins_s={begins_s}\nlength_s={SIGNAL_S}\n{SHOWN[shown]()}\n")
    first, rows = FirstSample(), [list[tuple[float, float]]() for _ in range(GPUS)]
    to_signal_s = time.monotonic() - time.time() - begins_s

    def take(batch: Batch) -> None:
        first(batch)
        for place, value in enumerate(batch.columns.get("gpu_util_ratio", ())):
            instant, gpu = divmod(place, len(batch.gpus))
            if not math.isnan(value):
                rows[gpu].append((batch.times_ns[instant] / 1e9 + to_signal_s, value))

    with bench.agent(f"bursty-{shown}", answers, take):
        first.wait()
        time.sleep(seconds)
    errors = [
        100 * (mean - busy_share(period_s, from_s, to_s))
        for of_gpu, period_s in zip(rows, BURST_PERIODS_S, strict=True)
        for mean, from_s, to_s in window_means(of_gpu[SETTLE_ROWS:])
    ]
    rms = math.sqrt(statistics.fmean(error**2 for error in errors))
    say(
        f"bursty, by {shown}: {len(errors)} means of {WINDOW_S:g} s, off by {rms:.2f} points (RMS), "
        f"the worst by {max(map(abs, errors)):.1f}"
    )
    return rms


def dcgm_page(seed: int) -> str:
    """A dcgm-exporter page of 8 GPUs with every field that has a name there, pods as labels."""
    lines = []
    for number, spec in enumerate(field for field in GPU_FIELDS if field.dcgm):
        name = f"DCGM_FI_{spec.dcgm[0][0]}"
        kind = "counter" if spec.kind == "counter" else "gauge"
        lines += [f"# HELP {name} {spec.doc}", f"# TYPE {name} {kind}"]
        lines += [
            f'{name}{{gpu="{gpu}",UUID="GPU-00000000-0000-4000-8000-{gpu:012d}",'
            f'pci_bus_id="00000000:{0x1B + gpu:02X}:00.0",device="nvidia{gpu}",'
            f'modelName="NVIDIA H100 80GB HBM3",Hostname="node-0001",DCGM_FI_DRIVER_VERSION="575.57.08",'
            f'container="main",namespace="team",pod="train-{gpu}"}} {seed + number + gpu}'
            for gpu in range(GPUS)
        ]
    return "\n".join(lines) + "\n"


def dcgm_parse_speedup() -> float:
    """How many times faster than prometheus_client's parser, median of 20 different pages each."""
    pages = [dcgm_page(seed) for seed in range(20)]
    own = statistics.median(timed(parse_page, page) for page in pages)
    theirs = statistics.median(
        timed(lambda text: list(text_string_to_metric_families(text)), page) for page in pages
    )
    size_kb = len(pages[0].encode()) / 1000
    say(f"dcgm page of {size_kb:.0f} kB: {own * 1e3:.2f} ms, prometheus_client {theirs * 1e3:.2f} ms")
    return theirs / own


def timed(work: Callable[[str], object], page: str) -> float:
    """Processor seconds of one call."""
    began_s = time.process_time()
    work(page)
    return time.process_time() - began_s


def install_peer() -> str:
    """nvitop-exporter in an environment of its own; why not, empty where it is there."""
    if (PEER_FOLDER / "bin" / PEER).exists():
        return ""
    for command in (
        [sys.executable, "-m", "venv", str(PEER_FOLDER)],
        [str(PEER_FOLDER / "bin" / "python"), "-m", "pip", "install", "--quiet", PEER],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=180)
        if done.returncode:
            return f"{' '.join(command)}: {(done.stderr or done.stdout).strip().splitlines()[-1:]}"
    return ""


def peer(bench: Bench, seconds: float) -> dict[str, Any]:
    """nvitop-exporter on the same library at the same time; a reason where it cannot be measured."""
    if reason := install_peer():
        return {"reason": reason}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = bench.folder / "peer.log"
    process = subprocess.Popen(
        [
            str(PEER_FOLDER / "bin" / PEER),
            "--bind-address",
            "127.0.0.1",
            "--port",
            str(port),
            "--interval",
            "1",
        ],
        env={key: text for key, text in bench.environment(bench.answers).items() if key != "PYTHONPATH"},
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
    )
    url = f"http://127.0.0.1:{port}/metrics"
    try:
        page = ""
        for _ in range(60):
            time.sleep(0.5)
            with contextlib.suppress(OSError):
                page = scrape(url)[1]
            seen = set(re.findall(r"GPU-[0-9a-f-]{36}", page))
            if len(seen) == GPUS or process.poll() is not None:
                break
        if len(seen) != GPUS:
            return {"reason": f"it shows {len(seen)} of {GPUS} GPUs: {log.read_text()[-300:]!r}"}
        time.sleep(SETTLE_S)
        most, share = running(process.pid, url, seconds)
        say(f"{PEER}: page of {len(page.encode()) / 1000:.0f} kB")
        return {"pss_mib": round(most, 2), "core_fraction": round(share, 5)}
    finally:
        process.kill()
        process.wait()


def measure(full: bool) -> dict[str, Any]:
    """Every figure."""
    seconds = 600.0 if full else 190.0
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as name, ThreadPoolExecutor() as pool:
        bench = Bench(Path(name).absolute())
        installing = pool.submit(install_peer)
        figures: dict[str, Any] = {
            "start_to_first_sample_s": start_s(bench),
            "dcgm_parse_speedup": dcgm_parse_speedup(),
        }
        installing.result()
        # Together: each takes less than a hundredth of a core, so they do not disturb one another.
        others = pool.submit(peer, bench, seconds), pool.submit(bursty, bench, 180.0 if full else 55.0)
        figures |= whole_agent(bench, seconds)
        figures["peer_nvitop_exporter"], figures["bursty_rms_points"] = (one.result() for one in others)
        figures["pss_growth_mib_100k_ticks"] = growth(bench, 100_000, 3600 if full else 300)
    return figures


def judge(figures: dict[str, Any]) -> None:
    """Each figure beside its target; of one that is missed, what it is made of and what would help."""
    for name, (bound, words, holds) in TARGETS.items():
        held = holds(figures[name], bound)
        say(f"{name:<28} {figures[name]:12.4g}   {words:<24} {'ok' if held else 'MISSED'}")
        if not held:
            say(f"    {WHEN_MISSED[name]}")
    say(f"{PEER:<28} {json.dumps(figures['peer_nvitop_exporter'])}")


def main() -> int:
    """Measure, judge, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="the figures as JSON on stdout")
    parser.add_argument("--full", action="store_true", help="longer runs: 10 minutes, all 100,000 ticks")
    args = parser.parse_args()
    say(
        f"{GPUS} GPUs, {len(GPU_FIELDS)} fields, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
        f"Python {sys.version.split()[0]}"
    )
    figures = measure(args.full)
    judge(figures)
    if args.json:
        ordered = [*TARGETS, "peer_nvitop_exporter"]
        print(json.dumps({name: rounded(figures[name]) for name in ordered}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
