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
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.agent_bench import GPUS, Bench, FirstSample, say
from benchmarks.agent_bursty import bursty
from benchmarks.figures import rounded
from benchmarks.processes import anonymous_mib, cpu_s, private_mib, pss_mib, tree
from unidle_agent.dcgm import parse_page
from unidle_agent.fields import GPU_FIELDS

FOLDER = Path(".unidle") / "benchmarks"
"""On a real disk, because the spool's syncs count."""
SCRAPE_S = 15.0
SETTLE_S = 10.0
"""After the first sample, before measuring: imports and first batches are the start, not the run."""
PEER = "nvitop-exporter"
PEER_FOLDER = FOLDER / PEER

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
    with bench.agent("ticks", bench.answers, lambda _: None, command) as process:
        assert process.stdout is not None
        points = [(int(line), anonymous_mib(process.pid)) for line in process.stdout]
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
