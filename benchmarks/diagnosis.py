"""How often the diagnosis is right, and how long it is silent on healthy work. SIMULATED runs.

    python -m benchmarks.diagnosis --json          # held-out runs, within 12 minutes
    python -m benchmarks.diagnosis --json --full   # seven times the runs, twenty times the healthy hours
    python -m benchmarks.diagnosis --set tuning    # the runs that thresholds may be chosen by
    python -m benchmarks.diagnosis --only throttling_power    # delays of one kind, in a minute

Runs come from `unidle_collector.simulator.mechanisms`, and go through the engine of the live collector;
docs/diagnosis.md lists both sets. Scored per GPU-minute (`benchmarks/scoring.py` says how), over-provisioning
by job (`benchmarks/life_runs.py`), faults by finding (`benchmarks/fault_runs.py`). Figures go to stdout,
sizes and the table to stderr. A figure is null where this program cannot measure it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import fault_runs, life_runs, scoring
from benchmarks.figures import rounded
from benchmarks.scoring import CANNOT_TELL, Minutes
from unidle_collector import detectors, timeline
from unidle_collector.engine import Engine
from unidle_collector.model import Finding, GpuRef
from unidle_collector.recording import Recording
from unidle_collector.replay import enter, play
from unidle_collector.simulator.mechanisms import variants
from unidle_collector.simulator.mechanisms.memory import MEMORY_VARIANTS, memory
from unidle_collector.simulator.mechanisms.variant import HEALTHY, Set, Variant
from unidle_collector.simulator.recordings import (
    SECOND_NS,
    START_NS,
    Truth,
    as_exporter,
    every,
    node_of,
    together,
    with_missing,
)
from unidle_collector.simulator.trial import trial

RUN_S = 2400
GPUS_PER_RUN = 8
RUNS_AT_ONCE = 30
"""Nodes of one recording: what memory allows, and enough that a step's fixed cost is shared."""
CHANGES_S, REREAD_S = 1200, 300
"""The account of the last 20 minutes still changes, and all of it is read again this often: what is known
after 15 minutes only (a session left open) has to be read before its begin is older than those 20."""
UNALLOCATED = "unallocated"
SILENT = (HEALTHY, UNALLOCATED, CANNOT_TELL)
"""Answers that name no cause."""
ACCOUNTED = ("idle", "starvation")
"""Kinds whose delay is that of the account: a person is told after a grace by design."""
OOM_EACH_S = 30
STRAGGLERS = Path("../shared/data/stragglers")

View = Callable[[Recording, np.random.Generator], Recording]
VIEWS: dict[str, View] = {
    "full": lambda recording, _: recording,
    "sampling_5s": lambda recording, _: every(recording, 5),
    "sampling_15s": lambda recording, _: every(recording, 15),
    "sampling_30s": lambda recording, _: every(recording, 30),
    "missing_30pct": lambda recording, rng: with_missing(recording, 0.3, rng),
    "gpu_util_only": lambda recording, _: as_exporter(recording),
}


def say(text: str) -> None:
    """To stderr, at once."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Watched:
    """What the engine made of a recording."""

    answer: NDArray[np.int16]
    """[T, G] index into `labels`, as the account stands in the end."""
    live: NDArray[np.int16]
    """[T, G] the same as it stood at each step."""
    labels: tuple[str, ...]
    told: tuple[Finding, ...]


@dataclass(slots=True)
class Seen:
    """What one view of all runs gave."""

    parts: list[Minutes] = field(default_factory=list)
    delays_s: dict[str, list[float]] = field(default_factory=dict)
    """By kind, and by `kind.cause`."""
    sure: list[scoring.Said] = field(default_factory=list)
    """Of each finding when it was told, the causes that it named."""
    by_variant: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    """Of each variant, (right, scored) GPU-minutes per run."""

    @property
    def minutes(self) -> Minutes:
        """Of all runs."""
        return scoring.joined(self.parts)


@dataclass(slots=True)
class Alarms:
    """Healthy GPU-hours, and what was told in them."""

    gpu_hours: float = 0.0
    told: list[str] = field(default_factory=list)


def watch(recording: Recording) -> Watched:
    """Put a recording through the engine and keep each step's account."""
    engine = Engine(recording.period_s, keep_accounts_ns=None)
    positions = enter(recording, engine)
    period_ns = round(recording.period_s * SECOND_NS)
    ends = recording.start_ns + period_ns * np.arange(recording.instants)
    codes, labels = _labels(engine)
    live = np.zeros((recording.instants, len(positions)), dtype=np.int16)
    answer = np.zeros_like(live)
    told: list[Finding] = []
    reread, changes_in = (max(1, round(span / recording.period_s)) for span in (REREAD_S, CHANGES_S))
    for instant, changes in enumerate(play(recording, engine, positions)):
        told += [change.finding for change in changes if change.what == "told"]
        live[instant] = codes[engine.ledger.booked(ends[instant : instant + 1])[0][positions]]
        if instant % reread == reread - 1 or instant == recording.instants - 1:
            begin = max(0, instant + 1 - changes_in)
            answer[begin : instant + 1] = codes[engine.ledger.booked(ends[begin : instant + 1])[:, positions]]
    return Watched(answer, live, labels, tuple(told))


@cache
def _every_detector() -> tuple[detectors.Detector, ...]:
    return tuple(make(1, 1.0) for make in detectors.makers())


@cache
def _label(kind: str, cause: str) -> str:
    """A truth, by the account: who starves does so whatever finding says it."""
    starved = any(one.kind == kind and one.state == "starved" for one in _every_detector())
    return f"{'starvation' if starved else kind}.{cause}"


def _labels(engine: Engine) -> tuple[NDArray[np.int16], tuple[str, ...]]:
    """(code of the ledger -> label number, labels); the code -1 is the last entry."""
    kinds = {
        (detector.state, cause): _label(detector.kind, cause)
        for detector in _every_detector()
        for cause in detector.causes
    }
    fixed = {"productive": HEALTHY, "unallocated": UNALLOCATED}
    names = [
        CANNOT_TELL
        if code.cause == "undetermined"
        else kinds.get((code.state, code.cause)) or fixed.get(code.state, CANNOT_TELL)
        for code in engine.ledger.codes
    ]
    labels = tuple(dict.fromkeys((*SILENT, *names)))
    return np.array([*(labels.index(name) for name in names), labels.index(CANNOT_TELL)], np.int16), labels


def runs(
    which: Set, repeats: int, healthy: bool | None = None, only: str = ""
) -> Iterator[list[tuple[int, Variant]]]:
    """(number, variant) of every run, some at a time; `healthy` takes only those, or none of them, `only`
    those of one kind."""
    chosen = [v for v in variants(which) if healthy is None or (v.truth == HEALTHY) == healthy]
    chosen = [v for v in chosen if v.truth.startswith(only)]
    numbered = list(enumerate(variant for _ in range(repeats) for variant in chosen))
    for first in range(0, len(numbered), RUNS_AT_ONCE):
        yield numbered[first : first + RUNS_AT_ONCE]


def score_runs(
    which: Set, repeats: int, views: Sequence[str], seed: int, only: str = ""
) -> tuple[dict[str, Seen], Alarms]:
    """Every run in every view; and what was told on the healthy ones among them, in full view."""
    seen, alarms = {name: Seen() for name in views}, Alarms()
    for chunk in runs(which, repeats, only=only):
        trials = [
            trial(variant, RUN_S, GPUS_PER_RUN, np.random.default_rng([seed, number]))
            for number, variant in chunk
        ]
        recording, truth = together(trials, first=chunk[0][0])
        for name in views:
            worse = VIEWS[name](recording, np.random.default_rng([seed, chunk[0][0], 7]))
            watched = watch(worse)
            _note(seen[name], worse, truth, watched, chunk)
            if name == "full":
                healthy = [(n, v) for n, v in chunk if v.truth == HEALTHY]
                nodes = {node_of(n, place) for n, v in healthy for place in range(v.nodes)}
                _alarms(alarms, worse, watched, nodes)
    return seen, alarms


def _note(
    seen: Seen, recording: Recording, truth: Truth, watched: Watched, chunk: list[tuple[int, Variant]]
) -> None:
    first = chunk[0][0]
    labels = tuple(dict.fromkeys((*watched.labels, *truth.labels)))
    number = np.array([labels.index(label) for label in truth.labels], dtype=np.int16)
    label = np.where(truth.label >= 0, number[truth.label], -1).astype(np.int16)
    minutes = Minutes(
        labels,
        *scoring.whole_minutes(label, watched.answer, round(60 / recording.period_s), truth.run + first),
    )
    seen.parts.append(minutes)
    seen.sure += _sure(recording, truth, watched.told)
    for run, variant in chunk:
        mine = minutes.run == run
        right = int((minutes.truth == minutes.answer)[mine].sum())
        seen.by_variant.setdefault(variant.name, []).append((right, int(mine.sum())))
        if variant.truth != HEALTHY and variant.before[1] > 0:
            delay_s = _delay_s(recording, truth, watched, run - first, variant, labels)
            if delay_s is not None:
                for name in (variant.truth.split(".")[0], variant.truth):
                    seen.delays_s.setdefault(name, []).append(delay_s)


def _sure(recording: Recording, truth: Truth, told: Sequence[Finding]) -> list[scoring.Said]:
    """The causes that each finding names; true is what was wrong in its time."""
    place = {(ref.node, ref.gpu): at for at, ref in enumerate(recording.gpus)}
    out = []
    for finding in told:
        gpus = [place[ref.node, ref.gpu] for ref in finding.gpus]
        times = (finding.since_ns, finding.told_ns or finding.updated_ns)
        first, last = ((at - START_NS) // SECOND_NS for at in times)
        labels = truth.label[max(first, 0) : max(last, first + 1), gpus]
        wrong = labels[labels > 0]  # what is healthy comes first, and has the period before the onset, too
        true = truth.labels[int(np.bincount(wrong).argmax())] if wrong.size else HEALTHY
        causes = [(finding.cause, finding.confidence)]
        causes += [(other.cause, other.probability) for other in finding.runners_up]
        named = [(share, cause) for cause, share in causes if cause != "undetermined"]
        out.append(tuple((share, true == _label(finding.kind, cause)) for share, cause in named))
    return out


def _delay_s(
    recording: Recording, truth: Truth, watched: Watched, place: int, variant: Variant,
    labels: tuple[str, ...],
) -> float | None:  # fmt: skip
    """From the onset, in running work, to the first right account or to the finding; None: it never came."""
    kind = variant.truth.split(".")[0]
    onset_ns = START_NS + truth.onset_s[place] * SECOND_NS
    gpus = truth.run == place
    if kind not in ACCOUNTED:
        node = recording.gpus[int(np.argmax(gpus))].node
        times = [
            f.told_ns for f in watched.told if f.kind == kind and node in f.nodes and f.told_ns is not None
        ]
        return (min(times) - onset_ns) / SECOND_NS if times else None
    right = (watched.live[:, gpus] == labels.index(variant.truth)).any(axis=1)
    if not right.any():
        return None
    end_ns = recording.start_ns + int(np.argmax(right)) * round(recording.period_s * SECOND_NS)
    return (end_ns - onset_ns) / SECOND_NS


def _alarms(alarms: Alarms, recording: Recording, watched: Watched, nodes: set[str]) -> None:
    gpus = sum(ref.node in nodes for ref in recording.gpus)
    alarms.gpu_hours += gpus * recording.instants * recording.period_s / 3600
    alarms.told += [
        f"{finding.kind}.{finding.cause}: {finding.title}"
        for finding in watched.told
        if nodes.intersection(finding.nodes)
    ]


def healthy_hours(which: Set, chunks: int, seed: int) -> Alarms:
    """Healthy runs alone, sampled each 1, 5, 15 and 30 s in turn."""
    alarms = Alarms()
    repeats = -(-RUNS_AT_ONCE // sum(v.truth == HEALTHY for v in variants(which)))
    for number in range(chunks):
        chunk = next(runs(which, repeats, healthy=True))
        trials = [
            trial(variant, RUN_S, GPUS_PER_RUN, np.random.default_rng([seed, 1, number, run]))
            for run, variant in chunk
        ]
        recording, _ = together(trials)
        worse = every(recording, (5, 15, 30, 1)[number % 4])
        _alarms(alarms, worse, watch(worse), {ref.node for ref in recording.gpus})
    return alarms


def oom(which: Set, jobs: int, hours: int, seed: int) -> dict[str, Any]:
    """Jobs of one GPU each: alarms where memory does not run out, and the lead where it does."""
    chosen = [v for v in MEMORY_VARIANTS if v.set == which]
    instants = hours * 3600 // OOM_EACH_S
    used, full = np.zeros((instants, jobs)), []
    for job in range(jobs):
        rng = np.random.default_rng([seed, 2, job])
        used[:, job], at = memory(chosen[job % len(chosen)], hours * 60, OOM_EACH_S, rng)
        full.append(at)
        if at is not None:
            used[at:, job] = 0.0
    recording = _memory_recording(used)
    told = {f.gpus[0].index: f.told_ns or 0 for f in watch(recording).told if f.kind == "oom_risk"}
    leads_s, false, caught, fails = [], 0, 0, 0
    for job, at in enumerate(full):
        if at is None:
            false += job in told
            continue
        fails += 1
        if job in told:
            caught += 1
            end_ns = recording.start_ns + at * OOM_EACH_S * SECOND_NS
            leads_s.append((end_ns - told[job]) / SECOND_NS)
    gpu_days = sum(at is None for at in full) * hours / 24
    return {
        "gpu_days": gpu_days,
        "false_alarms": false,
        "false_per_100_gpu_days": 100 * false / gpu_days,
        "out_of_memory_jobs": fails,
        "told_before": caught,
        "lead_s_median": float(np.median(leads_s)) if leads_s else None,
        "lead_10min_ratio": float((np.array(leads_s) >= 600).mean()) if leads_s else None,
    }


def _memory_recording(used: NDArray[np.float64]) -> Recording:
    """`used` [T, jobs] ratio of an H100's memory, the GPU busy while it holds any."""
    total = 85_520_809_984.0
    busy = np.where(used > 0, 1.0, 0.0)
    return Recording(
        start_ns=START_NS + OOM_EACH_S * SECOND_NS,
        period_s=float(OOM_EACH_S),
        gpus=tuple(
            GpuRef(f"job-{n:04d}", f"GPU-{n:04d}", n, "NVIDIA H100 80GB HBM3") for n in range(used.shape[1])
        ),
        columns={
            "gpu_util_ratio": busy,
            "sm_active_ratio": 0.86 * busy,
            "memory_used_bytes": used * total,
            "memory_total_bytes": np.full(used.shape, total),
        },
        sampled=np.ones(used.shape, dtype=np.bool_),
        jobs=("",),
        job=np.full(used.shape, -1, dtype=np.int32),
        notes=(),
        simulated=True,
    )


def stragglers() -> dict[str, float] | None:
    """Slowdowns of the recorded timelines of three real jobs, where they are there."""
    files = {name: STRAGGLERS / f"trace-{name}.parquet" for name in ("AR", "SE", "ST")}
    if not all(path.exists() for path in files.values()):
        say(f"stragglers: null, no timelines in {STRAGGLERS}")
        return None
    return {name: timeline.analyse(timeline.read(path)).slowdown for name, path in files.items()}


def figures_of(seen: dict[str, Seen], told: Sequence[Alarms]) -> dict[str, Any]:
    """The keys of the JSON document that come from scored runs."""
    minutes = seen["full"].minutes
    truths = [name for n, name in enumerate(minutes.labels) if (minutes.truth == n).any()]
    per_kind: dict[str, Any] = {}
    for name in sorted(truths):
        per_kind[name] = _kind(minutes, name)
    hours = sum(alarms.gpu_hours for alarms in told)
    false = [text for alarms in told for text in alarms.told]
    sure = [said for one in seen.values() for said in one.sure]
    return {
        "macro_f1": scoring.macro_f1(minutes, SILENT),
        "per_kind": per_kind,
        "confusion": scoring.confusion(minutes),
        "healthy_gpu_hours": hours,
        "false_findings": len(false),
        "false_per_1000_gpu_hours_upper95": 1000 * scoring.poisson_upper(len(false)) / hours,
        "delay_s_p95": {kind: scoring.p95(values) for kind, values in sorted(seen["full"].delays_s.items())},
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
        "false_finding_titles": sorted(set(false)),
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
        "false_finding_titles",
        "delay_s_p95",
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
    healthy_chunks: int
    """Times 30 or so healthy runs of 8 GPUs."""
    oom_jobs: int
    oom_hours: int


SMALL, USUAL, FULL = Sizes(1, 1, 70, 8), Sizes(6, 40, 840, 12), Sizes(40, 800, 3360, 24)


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
        delays_s = score_runs(which, sizes.repeats, ("full",), args.seed, args.only)[0]["full"].delays_s
        p95 = {name: {"p95": scoring.p95(values), "n": len(values)} for name, values in delays_s.items()}
        print(json.dumps({"SIMULATED": args.set, "delay_s": rounded(p95)}, indent=2))
        return 0
    say(
        f"SIMULATED. {args.set}: {len(variants(which))} variants x {sizes.repeats} runs x {GPUS_PER_RUN} "
        f"GPUs x {RUN_S} s in {len(VIEWS)} views, {len(life_runs.chosen(which))} jobs of "
        f"{life_runs.RUN_S} s x {sizes.repeats}, {len(fault_runs.chosen(which))} faults and look-alikes of "
        f"{fault_runs.RUN_S} s x {sizes.repeats}; {dataclasses.asdict(sizes)}; {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}"
    )
    began = time.monotonic()
    seen, alarms = score_runs(which, sizes.repeats, tuple(VIEWS), args.seed)
    say(f"runs scored after {time.monotonic() - began:.0f} s")
    figures = figures_of(seen, [alarms, healthy_hours(which, sizes.healthy_chunks, args.seed)])
    say(f"healthy runs watched after {time.monotonic() - began:.0f} s")
    life_runs.add(figures, life_runs.score(which, sizes.repeats, args.seed))
    say(f"whole lives of jobs scored after {time.monotonic() - began:.0f} s")
    faults = fault_runs.score_faults(which, sizes.repeats, args.seed)
    fault_runs.add(figures, faults)
    say(f"faults scored after {time.monotonic() - began:.0f} s")
    figures["oom"] = oom(which, sizes.oom_jobs, sizes.oom_hours, args.seed)
    figures["stragglers"] = stragglers()
    table(figures, seen)
    say(f"{time.monotonic() - began:.0f} s")
    if args.json:
        print(json.dumps(rounded(figures), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
