"""How often the diagnosis is right, and how long it is silent on healthy work. SIMULATED runs.

    python -m benchmarks.diagnosis --json          # held-out runs, within 12 minutes
    python -m benchmarks.diagnosis --json --full   # seven times the runs; hours of healthy fleets
    python -m benchmarks.diagnosis --set tuning    # the runs that thresholds may be chosen by
    python -m benchmarks.diagnosis --only throttling_power    # delays of one kind, in a minute

Runs come from `unidle_collector.simulator`, and go through the engine of the live collector;
docs/diagnosis.md lists both sets. Scored per GPU-minute (`benchmarks/mechanism_runs.py`), over-provisioning
by job (`life_runs.py`), faults by finding (`fault_runs.py`), memory by job (`memory_runs.py`), silence by
hours of healthy fleets (`healthy_fleet.py`). Figures go to stdout, sizes and the table to stderr. A figure is
null where this program cannot measure it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks import fault_runs, healthy_fleet, life_runs, memory_runs, scoring
from benchmarks.diagnosis_targets import judged
from benchmarks.figures import rounded
from benchmarks.healthy_fleet import Watch
from benchmarks.mechanism_runs import GPUS_PER_RUN, RUN_S, SILENT, VIEWS, Alarms, Seen, score_runs
from benchmarks.scoring import Minutes
from unidle_collector import timeline
from unidle_collector.simulator.mechanisms import variants
from unidle_collector.simulator.mechanisms.variant import Set

STRAGGLERS = Path("../shared/data/stragglers")


def say(text: str) -> None:
    """To stderr, at once."""
    print(text, file=sys.stderr, flush=True)


def stragglers() -> dict[str, float] | None:
    """Slowdowns of the recorded timelines of three real jobs, where they are there."""
    files = {name: STRAGGLERS / f"trace-{name}.parquet" for name in ("AR", "SE", "ST")}
    if not all(path.exists() for path in files.values()):
        say(f"stragglers: null, no timelines in {STRAGGLERS}")
        return None
    return {name: timeline.analyse(timeline.read(path)).slowdown for name, path in files.items()}


def figures_of(seen: dict[str, Seen], among: Alarms) -> dict[str, Any]:
    """The keys of the JSON document that come from scored runs; `among` is what the healthy ones gave."""
    minutes = seen["full"].minutes
    truths = [name for n, name in enumerate(minutes.labels) if (minutes.truth == n).any()]
    sure = [said for one in seen.values() for said in one.sure]
    return {
        "macro_f1": scoring.macro_f1(minutes, SILENT),
        "per_kind": {name: _kind(minutes, name) for name in sorted(truths)},
        "confusion": scoring.confusion(minutes),
        "healthy_runs": {"gpu_hours": among.gpu_hours, "false_findings": sorted(among.told)},
        "delay_s_p95": {kind: scoring.p95(values) for kind, values in sorted(seen["full"].delays_s.items())},
        "delay_from_onset_s_p95": {
            kind: scoring.p95(values) for kind, values in sorted(seen["full"].onset_delays_s.items())
        },
        "degraded": {
            name: {
                "macro_f1": scoring.macro_f1(one.minutes, SILENT),
                "wrong_cause_ratio": scoring.wrong_cause_ratio(one.minutes, SILENT),
            }
            for name, one in seen.items()
            if name != "full"
        },
        "wrong_cause_ratio": scoring.wrong_cause_ratio(minutes, SILENT),
        "certainty": scoring.certainty([pair for said in sure for pair in said]),
        "certainty_loss": scoring.losses(sure),
    }


def delays(full: Seen) -> dict[str, Any]:
    """Kind and `kind.cause` -> seconds until it was found, from when it is in the data and from its onset."""
    return {
        name: {
            "p95": scoring.p95(values),
            "from_onset_p95": scoring.p95(full.onset_delays_s.get(name, values)),
            "n": len(values),
        }
        for name, values in full.delays_s.items()
    }


def _kind(minutes: Minutes, name: str) -> dict[str, Any]:
    p, r = scoring.precision(minutes, name), scoring.recall(minutes, name)
    return {
        "precision": p.value,
        "precision_95": [p.low, p.high],
        "recall": r.value,
        "recall_95": [r.low, r.high],
        "n": r.n,
        "runs": r.runs,
        "unit": "GPU-minutes",
    }


def table(figures: dict[str, Any], seen: dict[str, Seen]) -> None:
    """The figures for people, and where the account was wrong."""
    say(f"\n{'kind and cause':<38}{'precision':>22}{'recall':>22}{'n':>8} {'of':<12}{'runs':>5}")
    for name, kind in figures["per_kind"].items():
        if kind is None:
            say(f"{name:<38}{'not simulated':>22}")
            continue
        cells = "".join(_interval(kind[key], kind[f"{key}_95"]) for key in ("precision", "recall"))
        say(f"{name:<38}{cells}{kind['n']:>8} {kind['unit']:<12}{kind['runs']:>5}")
    for truth, row in figures["confusion"].items():
        wrong = {answer: n for answer, n in row.items() if answer != truth}
        if wrong:
            say(f"  {truth} taken for {wrong}")
    for name, counts in seen["full"].by_variant.items():
        right, scored = (sum(column) for column in zip(*counts, strict=True))
        if right < 0.95 * scored:
            say(f"  {name}: {right} of {scored} GPU-minutes right")
    for key in ("macro_f1", "wrong_cause_ratio", "healthy_gpu_hours", "false_findings"):
        say(f"{key:<36}{figures[key]}")
    say(f"{'false_per_1000_gpu_hours_upper95':<36}{figures['false_per_1000_gpu_hours_upper95']:.3g}")
    for one in figures["certainty"]:
        say(
            f"causes said to be {one['from']:.0%} likely or more: {one['n']}, "
            f"{one['said']:.2f} in the mean, {one['true']:.2f} of them true"
        )
    for key in (
        "certainty_loss",
        "healthy_runs",
        "healthy_by_period",
        "false_finding_titles",
        "delay_s_p95",
        "delay_from_onset_s_p95",
        "degraded",
        "whole_lives",
        "faults",
        "oom",
        "stragglers",
    ):
        say(f"{key:<36}{json.dumps(rounded(figures[key]))}")


def _interval(value: float | None, ends: list[float | None]) -> str:
    if value is None:
        return f"{'never answered':>22}"
    return f"{f'{value:.3f} ({ends[0]:.3f}-{ends[1]:.3f})':>22}"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is run."""

    repeats: int
    """Runs of each variant."""
    healthy: tuple[Watch, ...]
    oom_jobs: int
    oom_hours: int


SMALL = Sizes(1, healthy_fleet.SMALL, 70, 8)
USUAL = Sizes(6, healthy_fleet.USUAL, 840, 12)
FULL = Sizes(40, healthy_fleet.FULL, 3360, 24)


def main() -> int:
    """Play, score, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="the figures as JSON on stdout")
    parser.add_argument("--set", choices=["tuning", "held_out"], default="held_out")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--full", action="store_true", help="more of everything")
    size.add_argument("--small", action="store_true", help="one run of each variant, in a minute")
    parser.add_argument("--only", metavar="KIND", default="", help="the delays of one kind alone, at 1 s")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    sizes = FULL if args.full else SMALL if args.small else USUAL
    which: Set = args.set
    if args.only:
        full = score_runs(which, sizes.repeats, ("full",), args.seed, args.only)[0]["full"]
        print(json.dumps({"SIMULATED": args.set, "delay_s": rounded(delays(full))}, indent=2))
        return 0
    say(
        f"SIMULATED. {args.set}: {len(variants(which))} variants x {sizes.repeats} runs x {GPUS_PER_RUN} "
        f"GPUs x {RUN_S} s in {len(VIEWS)} views, {len(life_runs.chosen(which))} jobs of "
        f"{life_runs.RUN_S} s x {sizes.repeats}, {len(fault_runs.chosen(which))} faults and look-alikes of "
        f"{fault_runs.RUN_S} s x {sizes.repeats}; {dataclasses.asdict(sizes)}; {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}"
    )
    began = time.monotonic()
    with ProcessPoolExecutor(1, get_context("spawn")) as beside:
        watched = beside.submit(healthy_fleet.score, (which,), sizes.healthy, args.seed)
        seen, alarms = score_runs(which, sizes.repeats, tuple(VIEWS), args.seed)
        say(f"runs scored after {time.monotonic() - began:.0f} s")
        figures = figures_of(seen, alarms)
        life_runs.add(figures, life_runs.score(which, sizes.repeats, args.seed))
        say(f"whole lives of jobs scored after {time.monotonic() - began:.0f} s")
        faults = fault_runs.score_faults(which, sizes.repeats, args.seed)
        say(f"faults scored after {time.monotonic() - began:.0f} s")
        healthy_fleet.add(figures, watched.result())
        say(f"healthy fleets watched after {time.monotonic() - began:.0f} s")
        fault_runs.add(figures, faults)
    figures["oom"] = memory_runs.oom(which, sizes.oom_jobs, sizes.oom_hours, args.seed)
    figures["stragglers"] = stragglers()
    table(figures, seen)
    judged(figures, say)
    say(f"{time.monotonic() - began:.0f} s")
    if args.json:
        print(json.dumps(rounded(figures), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
