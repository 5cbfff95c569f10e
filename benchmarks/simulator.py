"""How far the simulated clusters and jobs are from real ones. SIMULATED beside measured.

    python -m benchmarks.simulator --json

Runs the calibrated clusters of `unidle_collector.simulator.sampled` (A100, 128 nodes x 8 GPUs, a month after
two months of filling up) and compares every sample of every GPU with the published distributions of Acme's
Seren and Kalos and of Philly, drawn jobs with Philly's, waits with the clusters' own, and the mechanisms of
the diagnosis with what was measured on 8xH100. Also the demo's fleet, which is no such cluster: it is nearly
full and its faults are planned. Reads ../shared/data; what is not there is skipped, with the reason.

ks: largest distance of the two distribution functions, 0-1. wasserstein: mean distance of their quantiles, in
the unit of the signal; of run times, powers of ten of seconds.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.figures import rounded
from unidle_collector.simulator.clusters import LONG_S, Cluster, clusters
from unidle_collector.simulator.fleet import Fleet
from unidle_collector.simulator.mechanisms import variants
from unidle_collector.simulator.queueing import draw_durations, draw_sizes, over_time
from unidle_collector.simulator.sampled import Sampled, sample
from unidle_collector.simulator.trial import trial

Floats = NDArray[np.float64]

DATA = Path("../shared/data")
ACME = DATA / "acme-philly-cdfs" / "cdfs.parquet"
SUMMARY = DATA / "acme-philly-cdfs" / "cluster_summary.csv"
LONG_JOBS = DATA / "philly-durations" / "philly_jobs_ge1h.parquet"
ALL_RUNS = DATA / "philly-durations" / "philly_runtime_all.csv"
SEEDS = 4
QUANTILES = (np.arange(1000) + 0.5) / 1000
DEMO_NODES, DEMO_S = 64, 3600
SHOWN = ("gpu_util_ratio", "sm_active_ratio", "tensor_active_ratio", "dram_active_ratio", "power_w")
MEASURED = {
    "CPU offload under FSDP": (13.7, 9.0, 5.7, 3.9, 186.0),
    "inference with speculative decoding": (68.8, 23.8, 3.7, 14.8, 207.0),
    "tensor and pipeline parallel on two nodes": (98.0, 48.5, 13.5, 34.0, 450.0),
    "compute bound at the power limit": (100.0, 87.7, 58.3, 36.9, 689.0),
    "a loaded model without requests": (0.0, 0.0, 0.0, 0.0, 120.0),
}
"""Variant -> steady means of 8xH100 runs at 10 Hz: GPU_UTIL, SM, tensor, DRAM in %, W (docs/diagnosis.md)."""


def distance(ours: Floats, real: Floats) -> dict[str, float]:
    """Of two sets of samples."""
    ours, real = np.sort(ours), np.sort(real)
    at = np.unique(np.concatenate((real, np.quantile(ours, QUANTILES))))
    gap = np.searchsorted(ours, at, "right") / ours.size - np.searchsorted(real, at, "right") / real.size
    apart = np.quantile(ours, QUANTILES) - np.quantile(real, QUANTILES)
    return {
        "ks": float(np.abs(gap).max()),
        "wasserstein": float(np.abs(apart).mean()),
        "mean": float(ours.mean()),
        "mean_real": float(real.mean()),
        "median": float(np.median(ours)),
        "median_real": float(np.median(real)),
    }


def acme() -> dict[str, Floats]:
    """`cluster.signal` -> its 1,000 quantiles."""
    table = pq.read_table(ACME).to_pydict()
    out: dict[str, list[float]] = {}
    for metric, value in zip(table["metric"], table["value"], strict=True):
        out.setdefault(metric, []).append(value)
    return {metric: np.array(values) for metric, values in out.items()}


def waits() -> dict[str, tuple[float, float]]:
    """Cluster -> (mean, median) seconds that its GPU jobs waited."""
    with SUMMARY.open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    return {
        row["id"].lower(): (float(row["avg_que_time_gpu"]), float(row["med_que_time_gpu"])) for row in rows
    }


def signals(cluster: Cluster, plays: list[Sampled], real: dict[str, Floats]) -> dict[str, Any]:
    """Signal -> distance, of those that the cluster's data have."""
    return {
        name: distance(np.concatenate([play.signals[name] for play in plays]), real[f"{cluster.name}.{name}"])
        for name in plays[0].signals
        if f"{cluster.name}.{name}" in real
    }


def queue(plays: list[Sampled], real: tuple[float, float]) -> dict[str, float]:
    """What queue and allocator did, beside the cluster's own waits."""
    waited = np.array(
        [
            one.waited_s
            for play in plays
            for run in play.runs
            for one in run.placed
            if one.start_s >= play.begin_s
        ]
    )

    def mean_gpus(what: str) -> float:
        return sum(
            over_time(run, getattr(run, what), play.begin_s, play.end_s)
            for play in plays
            for run in play.runs
        )

    free = mean_gpus("free")
    return {
        "jobs": waited.size,
        "wait_mean_s": float(waited.mean()),
        "wait_mean_real_s": real[0],
        "wait_median_s": float(np.median(waited)),
        "wait_median_real_s": real[1],
        "allocated_ratio": 1 - free / sum(play.gpus for play in plays),
        "stranded_of_free_ratio": mean_gpus("stranded") / free,
    }


def jobs(seed: int) -> dict[str, Any]:
    """Sizes and run times of drawn jobs beside Philly's."""
    profile = clusters()["philly"].jobs
    rng = np.random.default_rng(seed)
    sizes = draw_sizes(profile, 200_000, rng)
    runs_s = draw_durations(profile, sizes, rng)
    out: dict[str, Any] = {}
    if LONG_JOBS.exists():
        table = pq.read_table(LONG_JOBS).to_pydict()
        real_s, real_gpus = np.array(table["duration_s"]), np.array(table["num_gpus"])
        long = runs_s >= LONG_S
        out["num_gpus"] = distance(sizes[long].astype(float), real_gpus.astype(float))
        out["run_time_ge1h"] = distance(np.log10(runs_s[long]), np.log10(real_s))
        for size in profile.sizes:
            mine, theirs = runs_s[long & (sizes == size)], real_s[real_gpus == size]
            out[f"run_time_ge1h_{size}_gpus"] = distance(np.log10(mine), np.log10(theirs))
    if ALL_RUNS.exists():
        every = np.loadtxt(ALL_RUNS, skiprows=1)
        out["run_time_all"] = distance(np.log10(runs_s), np.log10(every[every > 0]))
    return out


def signatures() -> dict[str, dict[str, list[float]]]:
    """Variant -> its steady means over 12 draws beside the measured ones, in the units of MEASURED."""
    out = {}
    for name, real in MEASURED.items():
        variant = next(v for which in ("tuning", "held_out") for v in variants(which) if v.name == name)
        trials = [trial(variant, 1500, 8, np.random.default_rng(seed)) for seed in range(12)]
        means = [
            float(np.mean([t.columns[column][t.onset_s + 60 :].mean() for t in trials])) for column in SHOWN
        ]
        out[name] = {"simulated": [*(100 * value for value in means[:-1]), means[-1]], "measured": list(real)}
    return out


def demo(real: dict[str, Floats]) -> dict[str, Any]:
    """The demo's fleet beside Seren: no power or heat, its GPUs are others."""
    fleet = Fleet(1, nodes=DEMO_NODES, history_s=5400)
    names = ("gpu_util_ratio", "sm_active_ratio", "memory_used_bytes", "memory_total_bytes")
    blocks = []
    for _ in range(DEMO_S // 60):
        gpu = fleet.step(60).gpu
        blocks.append({name: gpu[name][::15].astype(np.float64) for name in names})

    def percent(name: str, over: str | None = None) -> Floats:
        values = np.concatenate([block[name] for block in blocks]).ravel()
        if over is not None:
            values = values / np.concatenate([block[over] for block in blocks]).ravel()
        return 100.0 * values[~np.isnan(values)]

    ours = {
        "gpu_util_pct": percent("gpu_util_ratio"),
        "sm_active_pct": percent("sm_active_ratio"),
        "gpu_mem_used_pct": percent("memory_used_bytes", "memory_total_bytes"),
    }
    return {name: distance(values, real[f"seren.{name}"]) for name, values in ours.items()}


def compare(seeds: int, nodes: int) -> dict[str, Any]:
    """All of it, but for what has nothing to be compared with."""
    out: dict[str, Any] = {"signatures": signatures()}
    if not ACME.exists():
        out["skipped"] = f"no distributions of real clusters in {DATA}"
        return out
    real, waited = acme(), waits()
    for cluster in clusters().values():
        plays = [sample(cluster, seed, nodes) for seed in range(1, seeds + 1)]
        out[cluster.name] = {
            "signals": signals(cluster, plays, real),
            "queue": queue(plays, waited[cluster.name]),
        }
    out["jobs"] = jobs(seed=1)
    out["demo"] = {"signals": demo(real)}
    return out


def table(figures: dict[str, Any]) -> None:
    """The figures for people, to stderr."""
    rows = [
        (f"{where} {name}", one)
        for where, part in figures.items()
        for name, one in (
            part.get("signals", part if where == "jobs" else {}) if where != "skipped" else {}
        ).items()
    ]
    print(
        f"{'SIMULATED beside measured':<34}{'KS':>7}{'Wasserstein':>13}{'mean':>18}{'median':>18}",
        file=sys.stderr,
    )
    for name, one in rows:
        means = f"{one['mean']:.1f} / {one['mean_real']:.1f}"
        medians = f"{one['median']:.1f} / {one['median_real']:.1f}"
        print(
            f"{name:<34}{one['ks']:>7.3f}{one['wasserstein']:>13.2f}{means:>18}{medians:>18}", file=sys.stderr
        )
    for where, part in figures.items():
        if "queue" in part:
            print(f"{where} queue: {json.dumps(rounded(part['queue']))}", file=sys.stderr)


def main() -> int:
    """Play, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="the figures as JSON on stdout")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="plays of each cluster")
    parser.add_argument("--nodes", type=int, default=128)
    args = parser.parse_args()
    began = time.process_time()
    figures = compare(args.seeds, args.nodes)
    table(figures)
    print(f"{figures.get('skipped', '')} {time.process_time() - began:.0f} CPU seconds", file=sys.stderr)
    if args.json:
        print(json.dumps(rounded(figures), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
