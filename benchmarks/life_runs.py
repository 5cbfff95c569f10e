"""What can only be told of a job's whole life, scored by job: part of `python -m benchmarks.diagnosis`.

    python -m benchmarks.life_runs --json          # this part alone; SIMULATED, held-out jobs
    python -m benchmarks.life_runs --set tuning

Over-provisioning is told after an hour and is no state of an account. So here n is the number of jobs: of 100
min, on 8 GPUs, sampled each 15 s. Recall is the share of the over-provisioned ones of which that was told
with its cause; precision the share of what was told that was true. What else is wrong with a job is left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from benchmarks import scoring
from benchmarks.figures import rounded
from unidle_collector.engine import Engine
from unidle_collector.model import Finding
from unidle_collector.recording import Recording
from unidle_collector.replay import enter, play
from unidle_collector.simulator.mechanisms.idle import PROBE
from unidle_collector.simulator.mechanisms.over_provisioned import LIFE_VARIANTS, LifeVariant
from unidle_collector.simulator.mechanisms.variant import Set
from unidle_collector.simulator.recordings import SECOND_NS, START_NS, as_exporter, every, together
from unidle_collector.simulator.trial import Trial, trial

KIND = "over_provisioned"
RUN_S, EACH_S, GPUS_PER_RUN = 6000, 15, 8
VIEWS = ("full", "gpu_util_only")


@dataclass(slots=True)
class Lives:
    """What one view of all jobs gave."""

    truth: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    """`kind.cause` that was told of the job, empty where nothing was."""
    delays_s: list[float] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    """Jobs of which something else was told of the same GPUs."""


def chosen(which: Set) -> list[LifeVariant]:
    """The variants of one set."""
    return [one for one in LIFE_VARIANTS if one.variant.set == which]


def life(one: LifeVariant, rng: np.random.Generator) -> Trial:
    """One job; where a part of its GPUs starts late, they are put together from two trials."""
    whole = trial(one.variant, RUN_S, GPUS_PER_RUN, rng)
    if one.starts_late_s is None:
        return whole
    empty = replace(one.variant, truth=f"{KIND}.fewer_gpus", work=PROBE, process=False, memory=(0.0, 0.004))
    waits = trial(empty, RUN_S, GPUS_PER_RUN, rng)
    late = waits.on & (np.arange(RUN_S)[:, None] < rng.uniform(*one.starts_late_s))
    columns = {name: np.where(late, waits.columns[name], values) for name, values in whole.columns.items()}
    return replace(whole, columns=columns)


def score(which: Set, repeats: int, seed: int) -> dict[str, Lives]:
    """Every variant `repeats` times, in each view."""
    out = {name: Lives() for name in VIEWS}
    for number in range(repeats):
        lives = chosen(which)
        recording, _ = together(
            [life(one, np.random.default_rng([seed, 5, number, place])) for place, one in enumerate(lives)]
        )
        coarse = every(recording, EACH_S)
        for name in VIEWS:
            told = _told(coarse if name == "full" else as_exporter(coarse))
            for place, one in enumerate(lives):
                _note(out[name], one, [f for f in told if f"trial-{place:04d}" in f.nodes])
    return out


def _told(recording: Recording) -> list[Finding]:
    engine = Engine(recording.period_s, keep_accounts_ns=None)
    positions = enter(recording, engine)
    return [
        change.finding
        for changes in play(recording, engine, positions)
        for change in changes
        if change.what == "told"
    ]


def _note(out: Lives, one: LifeVariant, told: list[Finding]) -> None:
    mine = [finding for finding in told if finding.kind == KIND]
    out.truth.append(one.variant.truth)
    out.told.append(f"{mine[0].kind}.{mine[0].cause}" if mine else "")
    if out.told[-1] == one.variant.truth:
        out.delays_s.append(((mine[0].told_ns or 0) - START_NS) / SECOND_NS)
    gpus = {ref for finding in mine for ref in finding.gpus}
    out.doubled += [
        f"{finding.kind}.{finding.cause}: {finding.title} ({one.variant.name})"
        for finding in told
        if finding.kind != KIND and gpus.intersection(finding.gpus)
    ]


def add(figures: dict[str, Any], lives: dict[str, Lives]) -> None:
    """The figures of this part, among those of `python -m benchmarks.diagnosis`."""
    full = lives["full"]
    for name in sorted({truth for truth in full.truth if truth.startswith(KIND)}):
        figures["per_kind"][name] = _figures(full, name)
    figures["delay_s_p95"][KIND] = scoring.p95(full.delays_s)
    figures["whole_lives"] = {
        "jobs": len(full.truth),
        "told_twice": len(full.doubled),
        "gpu_util_only": {
            "told_of_gpus_too_large": lives["gpu_util_only"].told.count(f"{KIND}.large_gpu"),
            "wrong": sum(
                bool(told) and told != truth
                for told, truth in zip(lives["gpu_util_only"].told, lives["gpu_util_only"].truth, strict=True)
            ),
        },
    }


def _figures(lives: Lives, name: str) -> dict[str, Any]:
    hits = sum(told == truth == name for told, truth in zip(lives.told, lives.truth, strict=True))
    out: dict[str, Any] = {}
    for key, of in (("precision", lives.told.count(name)), ("recall", lives.truth.count(name))):
        out[key] = hits / of if of else None
        out[f"{key}_95"] = list(scoring.wilson(hits / of, of)) if of else [None, None]
    jobs = lives.truth.count(name)
    return out | {"n": jobs, "runs": jobs, "unit": "jobs"}


def main() -> int:
    """Play, score, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="the figures as JSON on stdout")
    parser.add_argument("--set", choices=["tuning", "held_out"], default="held_out")
    parser.add_argument("--repeats", type=int, default=10, help="jobs of each variant")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    lives = score(args.set, args.repeats, args.seed)
    figures: dict[str, Any] = {"per_kind": {}, "delay_s_p95": {}}
    add(figures, lives)
    for name, one in lives.items():
        for truth, told in sorted({*zip(one.truth, one.told, strict=True)}):
            count = sum(pair == (truth, told) for pair in zip(one.truth, one.told, strict=True))
            print(f"{name:<14}{truth:<34}{told or '-':<34}{count:>4}", file=sys.stderr)
        for text in sorted(set(one.doubled)):
            print(f"{name:<14}told too: {text}", file=sys.stderr)
    if args.json:
        print(json.dumps(rounded(figures), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
