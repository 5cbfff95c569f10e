"""Faults and what only looks like them, scored by finding: part of `python -m benchmarks.diagnosis`.

    python -m benchmarks.fault_runs --json          # this part alone; SIMULATED, held-out faults
    python -m benchmarks.fault_runs --set tuning

A fault is not time lost for one reason, but something that a person has to be told, once. So here n is
the number of injected faults: recall is the share of them that were told with their kind and cause, on all
of their GPUs; precision the share of what was told that was true, GPU by GPU. Delays are from the first
sample, reading or event that shows the fault until it was told.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import scoring
from benchmarks.figures import rounded
from unidle_collector.engine import Engine
from unidle_collector.model import Finding
from unidle_collector.replay import enter, play
from unidle_collector.signals import Happened
from unidle_collector.simulator.fault_trial import FaultTrial, Look, Scene, fault_trial, seen
from unidle_collector.simulator.mechanisms.faults import FAULT_VARIANTS, FaultVariant, Grows
from unidle_collector.simulator.mechanisms.variant import Set
from unidle_collector.simulator.recordings import SECOND_NS, START_NS
from unidle_collector.taking import LOOKS_AGAIN_WITHIN_S

RUN_S = 1200
GPUS_PER_RUN = 8
RUNS_AT_ONCE = 40
LOOKS = {
    "full": Look(),
    "sampling_5s": Look(period_s=5),
    "sampling_15s": Look(period_s=15),
    "sampling_30s": Look(period_s=30),
    "missing_30pct": Look(missing=0.3),
    "gpu_util_only": Look(exporter=True),
}


@dataclass(slots=True)
class Faults:
    """What one view of all runs gave."""

    injected: Counter[str] = field(default_factory=Counter)
    """`kind.cause` -> faults."""
    found: Counter[str] = field(default_factory=Counter)
    """Of these."""
    right: Counter[str] = field(default_factory=Counter)
    """`kind.cause` -> findings told that are true."""
    wrong: Counter[str] = field(default_factory=Counter)
    delays_s: dict[str, list[float]] = field(default_factory=dict)
    """By kind, and by `kind.cause`: from the first data that show it."""
    onset_delays_s: dict[str, list[float]] = field(default_factory=dict)
    """The same from the fault itself."""
    last_delays_s: dict[str, list[float]] = field(default_factory=dict)
    """Of what is known by errors, from the last of those that were in the data when it was told."""
    said: dict[float, Counter[bool]] = field(default_factory=dict)
    """Confidence of findings that were told -> how many are true, and how many not."""
    false: list[str] = field(default_factory=list)
    """What was told where nothing was wrong: look-alikes."""
    silent_gpu_hours: float = 0.0
    """Of look-alikes."""
    mistakes: Counter[str] = field(default_factory=Counter)
    """`variant: what was told`, or missed."""


KINDS = frozenset(truth.split(".")[0] for variant in FAULT_VARIANTS for truth in variant.truths)
"""Findings that are scored here; how well the work uses its GPUs is scored by the minute."""


def chosen(which: Set) -> list[FaultVariant]:
    """The fault variants of one set."""
    return [variant for variant in FAULT_VARIANTS if variant.set == which]


def score_faults(
    which: Set, repeats: int, seed: int, looks: Sequence[str] = tuple(LOOKS)
) -> dict[str, Faults]:
    """Every fault variant `repeats` times, seen in each of `looks`."""
    out = {name: Faults() for name in looks}
    for first, variants in _chunks(which, repeats):
        trials = [
            fault_trial(variant, RUN_S, GPUS_PER_RUN, np.random.default_rng([seed, 3, first + number]))
            for number, variant in enumerate(variants)
        ]
        for name in looks:
            look = LOOKS[name]
            scene = seen(trials, look, np.random.default_rng([seed, 3, first, 7]), first)
            _note(out[name], scene, trials, _told(scene))
    return out


def _chunks(which: Set, repeats: int) -> Iterator[tuple[int, list[FaultVariant]]]:
    every = chosen(which) * repeats
    for first in range(0, len(every), RUNS_AT_ONCE):
        yield first, every[first : first + RUNS_AT_ONCE]


def _told(scene: Scene) -> list[Finding]:
    """Each finding that was told, as it was when it was last heard of."""
    recording, period_s = scene.recording, round(scene.recording.period_s)
    engine = Engine(recording.period_s, keep_accounts_ns=None)
    positions = enter(recording, engine)
    about = engine.inventory.a
    about["asks_again"][positions] = scene.agents and period_s <= LOOKS_AGAIN_WITHIN_S
    waiting = list(reversed(scene.events))

    def meanwhile(instant: int) -> tuple[Happened, ...]:
        about["heard_ns"][positions] = START_NS + scene.heard_s[instant] * SECOND_NS
        about["clock_ahead_s"][positions] = scene.ahead_s[instant]
        now = []
        while waiting and waiting[-1].second < (instant + 1) * period_s:
            event = waiting.pop()
            time_ns = START_NS + event.second * SECOND_NS + SECOND_NS // 2
            at = int(positions[event.gpu])
            now.append(Happened(at, time_ns, event.kind, event.code, event.text, event.part))
        return tuple(now)

    told: dict[str, Finding] = {}
    for changes in play(recording, engine, positions, meanwhile):
        told |= {change.finding.id: change.finding for change in changes}
    told |= {finding.id: finding for finding in engine.findings() if finding.told_ns is not None}
    return list(told.values())


def _note(out: Faults, scene: Scene, trials: Sequence[FaultTrial], told: Sequence[Finding]) -> None:
    by_node: dict[str, list[Finding]] = {}
    for finding in told:
        if finding.kind in KINDS:
            by_node.setdefault(finding.nodes[0], []).append(finding)
    begins = np.searchsorted(scene.run, np.arange(len(trials)))
    for number, one in enumerate(trials):
        refs = scene.recording.gpus[begins[number] :]
        affected = {refs[gpu].gpu for gpu in one.affected}
        mine = by_node.get(refs[0].node, [])
        name, truths = one.variant.name, one.variant.truths
        if not truths:
            out.silent_gpu_hours += GPUS_PER_RUN * RUN_S / 3600
            out.false += [f"{_label(finding)}: {finding.title} ({name})" for finding in mine]
        for finding in mine:
            true = _label(finding) in truths and {ref.gpu for ref in finding.gpus} <= affected
            (out.right if true else out.wrong)[_label(finding)] += 1
            out.said.setdefault(finding.confidence, Counter())[true] += 1
            if not true:
                out.mistakes[f"{name}: told {_label(finding)}"] += 1
        for truth in truths:
            out.injected[truth] += 1
            found = [finding for finding in mine if _label(finding) == truth]
            if {ref.gpu for finding in found for ref in finding.gpus} != affected:
                out.mistakes[f"{name}: missed {truth}"] += 1
                continue
            out.found[truth] += 1
            told_s = (min(finding.told_ns or 0 for finding in found) - START_NS) / SECOND_NS
            last_s = _last_error_s(scene, one, int(begins[number]) + one.affected, told_s)
            for key in (truth.split(".")[0], truth):
                out.delays_s.setdefault(key, []).append(told_s - scene.shown_s[number])
                out.onset_delays_s.setdefault(key, []).append(told_s - one.onset_s)
                if last_s is not None:
                    out.last_delays_s.setdefault(key, []).append(told_s - last_s)


def _last_error_s(scene: Scene, one: FaultTrial, gpus: NDArray[np.intp], told_s: float) -> float | None:
    """Second of the row with the last error, counted or logged, that came before it was told; None: it is not
    known by errors."""
    columns, period_s = scene.recording.columns, round(scene.recording.period_s)
    counted = [effect.field for effect in one.variant.effects if isinstance(effect, Grows)]
    grew = [(columns[name][:, gpus] > 0).any(axis=1) for name in counted if name in columns]
    rows_s = [(row + 1) * period_s for column in grew for row in np.flatnonzero(column).tolist()]
    rows_s += [event.second // period_s * period_s + period_s for event in scene.events if event.gpu in gpus]
    return max((second for second in rows_s if second <= told_s), default=None)


def _label(finding: Finding) -> str:
    return f"{finding.kind}.{finding.cause}"


def per_kind(faults: Faults) -> dict[str, Any]:
    """`kind.cause` -> precision, recall and n, as in the benchmark's other rows."""
    out = {}
    for name in sorted(faults.injected):
        told = faults.right[name] + faults.wrong[name]
        injected = faults.injected[name]
        precision = faults.right[name] / told if told else None
        recall = faults.found[name] / injected
        out[name] = {
            "precision": precision,
            "precision_95": [None, None] if precision is None else list(scoring.wilson(precision, told)),
            "recall": recall,
            "recall_95": list(scoring.wilson(recall, injected)),
            "n": injected,
            "runs": injected,
            "unit": "faults",
        }
    return out


def by_confidence(faults: Faults) -> list[dict[str, Any]]:
    """How many findings were told with each confidence, how many of them are true, and the bounds of that."""
    out = []
    for confidence, counts in sorted(faults.said.items(), reverse=True):
        n = counts.total()
        true = counts[True] / n
        bounds = list(scoring.wilson(true, n))
        out.append({"confidence": confidence, "told": n, "true_ratio": true, "true_95": bounds})
    return out


def macro_f1(faults: Faults) -> float:
    """Mean F1 over all faults that were injected."""
    out = []
    for name, injected in faults.injected.items():
        told = faults.right[name] + faults.wrong[name]
        precision = faults.right[name] / told if told else 0.0
        recall = faults.found[name] / injected
        out.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return sum(out) / len(out)


def wrong_ratio(faults: Faults) -> float | None:
    """Share of what was told that is not true."""
    right, wrong = faults.right.total(), faults.wrong.total()
    return wrong / (right + wrong) if right + wrong else None


def add(figures: dict[str, Any], looks: dict[str, Faults]) -> None:
    """Put all of it into the benchmark's document; where both score a kind, GPU-minutes stand."""
    full = looks["full"]
    for name, row in per_kind(full).items():
        figures["per_kind"].setdefault(name, row)
    for name, values in sorted(full.delays_s.items()):
        figures["delay_s_p95"].setdefault(name, scoring.p95(values))
    figures["faults"] = {
        "injected": full.injected.total(),
        "macro_f1": macro_f1(full),
        "wrong_ratio": wrong_ratio(full),
        "look_alike_gpu_hours": full.silent_gpu_hours,
        "false_on_look_alikes": len(full.false),
        "degraded": {
            name: {
                "macro_f1": macro_f1(one),
                "wrong_ratio": wrong_ratio(one),
                "false_on_look_alikes": len(one.false),
            }
            for name, one in looks.items()
            if name != "full"
        },
        "by_confidence": by_confidence(full),
        "delay_from_onset_s_p95": {
            name: scoring.p95(values) for name, values in sorted(full.onset_delays_s.items())
        },
        "delay_from_last_error_s_p95": {
            name: scoring.p95(values) for name, values in sorted(full.last_delays_s.items())
        },
        "mistakes": dict(full.mistakes.most_common()),
    }


def main() -> int:
    """Play, score, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="the figures as JSON on stdout")
    parser.add_argument("--set", choices=["tuning", "held_out"], default="held_out")
    parser.add_argument("--repeats", type=int, default=10, help="runs of each variant")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    figures: dict[str, Any] = {"per_kind": {}, "delay_s_p95": {}}
    add(figures, score_faults(args.set, args.repeats, args.seed))
    from_onset_s = figures["faults"]["delay_from_onset_s_p95"]
    for name, row in figures["per_kind"].items():
        shares = f"precision {rounded(row['precision'])}, recall {rounded(row['recall'])} of {row['n']}"
        since = (
            f"{figures['delay_s_p95'].get(name)} s after the data, {from_onset_s.get(name)} s after the fault"
        )
        print(f"{name:<32}{shares}, told {since} (p95)", file=sys.stderr)
    print(json.dumps(rounded(figures["faults"]), indent=2), file=sys.stderr)
    if args.json:
        print(json.dumps(rounded(figures), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
