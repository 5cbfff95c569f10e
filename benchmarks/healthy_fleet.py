"""How long the diagnosis is silent on healthy fleets: part of `python -m benchmarks.diagnosis`. SIMULATED.

    python -m benchmarks.healthy_fleet --json               # this part alone, within 4 minutes
    python -m benchmarks.healthy_fleet --full               # 500,000 GPU-hours at 1 s and at 5 s, too
    python -m benchmarks.healthy_fleet --set tuning --hours 30=20000

Thousands of GPUs in one engine (`unidle_collector.simulator.healthy_fleet`): whatever it tells there is
wrong, but for XIDs of applications, which are put in to see that it listens. Bounds are Poisson's, 95 %. Each
period has its own: hours at 60 s prove nothing of 1 s. `live15` are the 15 s of a scraper, seen by a
collector that goes on each second. `30read5` are exporters that sample each 30 s and are read each 5 s.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from benchmarks import scoring
from benchmarks.figures import rounded
from unidle_agent.fields import BY_NAME
from unidle_collector.engine import Engine
from unidle_collector.model import Finding
from unidle_collector.pergpu import Floats
from unidle_collector.ring import ENERGY
from unidle_collector.signals import Happened, Step
from unidle_collector.simulator.fault_trial import SLOW
from unidle_collector.simulator.healthy_fleet import FAILS, HealthyFleet, Played
from unidle_collector.simulator.healthy_jobs import PER_NODE
from unidle_collector.simulator.mechanisms import variants
from unidle_collector.simulator.mechanisms.variant import HEALTHY, Set
from unidle_collector.simulator.recordings import SECOND_NS, START_NS

GPUS = 4096
WEEK_H = 168
RIGHT = "xid_application"
"""The one kind that this fleet has a reason for."""
LIVE, READ = "live", "read"


@dataclass(frozen=True, slots=True)
class Watch:
    """One fleet watched for so many GPU-hours."""

    period_s: float
    gpu_hours: float
    live: bool = False
    """Rows are seen each second, as in the live window, and not one by one, as in a recording."""
    read_s: float | None = None
    """Exporters sample each period, each node's in a phase of its own, and are read so often: between two
    samples all stands still."""

    @property
    def name(self) -> str:
        """The period, `live` before it where it is live, and how often it is read where that is not it."""
        read = "" if self.read_s is None else f"{READ}{self.read_s:g}"
        return f"{LIVE if self.live else ''}{self.period_s:g}{read}"

    @property
    def step_s(self) -> float:
        """How often the engine is given something."""
        return self.read_s or (1.0 if self.live else self.period_s)


USUAL = (
    Watch(1.0, 2_000), Watch(5.0, 12_000), Watch(15.0, 50_000), Watch(30.0, 180_000), Watch(60.0, 300_000),
    Watch(15.0, 2_000, live=True), Watch(30.0, 8_000, live=True),
    Watch(10.0, 2_000, read_s=1.0), Watch(30.0, 12_000, read_s=5.0),
)  # fmt: skip
SMALL = tuple(replace(watch, gpu_hours=watch.gpu_hours / 50) for watch in USUAL)
FULL = tuple(
    replace(watch, gpu_hours=20_000.0 if watch.step_s < watch.period_s else max(watch.gpu_hours, 500_000.0))
    for watch in USUAL
)


@dataclass(slots=True)
class Quiet:
    """What was told in some healthy hours."""

    gpu_hours: float = 0.0
    false: Counter[str] = field(default_factory=Counter)
    """`kind.cause` -> findings."""
    titles: list[str] = field(default_factory=list)
    """Of those."""
    failures: int = 0
    """XIDs of applications that were put in, ..."""
    heard: int = 0
    """... and of which a person was told at once."""
    cpu_s: float = 0.0


def watch(which: Iterable[Set], watched: Watch, seed: int, gpus: int = GPUS) -> Quiet:
    """Play a fleet of the healthy variants of these sets through one engine."""
    began_s, out = time.process_time(), Quiet()
    chosen = [v for one in which for v in variants(one) if v.truth == HEALTHY]
    fleet = HealthyFleet(chosen, gpus, watched.period_s, seed)
    seat = _Seat(fleet, watched)
    for played in fleet.play(watched.gpu_hours / fleet.gpus):
        seat.take(played, out)
    out.gpu_hours = seat.hours * fleet.gpus
    out.cpu_s = time.process_time() - began_s
    return out


class _Seat:
    """A fleet in front of an engine."""

    def __init__(self, fleet: HealthyFleet, watched: Watch) -> None:
        step_s = watched.step_s
        self._fleet, self._each = fleet, round(watched.period_s / step_s)
        rng = np.random.default_rng([fleet.gpus, self._each])
        self._exporters = None if watched.read_s is None else _Exporters(fleet.gpus, self._each, rng)
        self._engine = Engine(step_s, keep_accounts_ns=2 * 3600 * SECOND_NS)
        self._step_ns = round(step_s * SECOND_NS)
        for ref, share in zip(fleet.refs, fleet.share.tolist(), strict=True):
            self._engine.add(ref, share=share, simulated=True)
        self._size = self._engine.inventory.capacity
        self._engine.inventory.a["period_s"][: fleet.gpus] = watched.read_s or watched.period_s
        self._end_ns = START_NS

    @property
    def hours(self) -> float:
        """Played so far."""
        return (self._end_ns - START_NS) / SECOND_NS / 3600

    def take(self, played: Played, out: Quiet) -> None:
        """Play a block."""
        owns, events = list(played.owns), list(played.events)
        sparse: dict[int, list[tuple[str, int, float]]] = {}
        for tick, name, gpu, value in played.sparse:
            sparse.setdefault(tick, []).append((name, gpu, value))
        about = self._engine.inventory.a
        for tick, sampled in enumerate(played.sampled):
            while owns and owns[0].tick == tick:
                taken = owns.pop(0)
                self._engine.own_all(range(taken.gpus.start, taken.gpus.stop), taken.owner)
            about["heard_ns"][: self._fleet.gpus] = START_NS + (played.heard_s[tick] * SECOND_NS).astype(
                np.int64
            )
            about["clock_ahead_s"][: self._fleet.gpus] = self._fleet.clock_ahead_s
            columns = self._columns(played, tick, sparse.get(tick, []))
            now = []
            while events and events[0][0] == tick:
                now.append(events.pop(0)[1])
            self._step(columns, self._wide(sampled, False), tuple(now), out)

    def _columns(
        self, played: Played, tick: int, sparse: Sequence[tuple[str, int, float]]
    ) -> dict[str, Floats]:
        columns = {name: self._wide(values[tick], np.nan) for name, values in played.columns.items()}
        sampled, reads = played.sampled[tick], played.reads[tick]
        for name, values in played.constant.items():
            columns[name] = self._wide(np.where(reads if name in SLOW else sampled, values, np.nan), np.nan)
        columns["pcie_generation"][: self._fleet.gpus][~reads] = np.nan
        for name, gpu, value in sparse:
            columns[name][gpu] = value
        return columns

    def _wide(self, values: Any, fill: Any) -> Any:
        """[capacity] of the engine."""
        out = np.full(self._size, fill, dtype=np.float64 if values.dtype == np.float32 else values.dtype)
        out[: values.size] = values
        return out

    def _step(
        self, columns: Mapping[str, Floats], sampled: Any, events: tuple[Happened, ...], out: Quiet
    ) -> None:
        if self._each > 1 and self._exporters is None:
            columns = {
                name: values / self._each if BY_NAME[name].kind == "counter" else values
                for name, values in columns.items()
            }
        for number in range(self._each):
            self._end_ns += self._step_ns
            now = columns, sampled
            if self._exporters is not None:
                now = self._exporters.read(number, columns, sampled)
                self._engine.inventory.a["heard_ns"][: self._fleet.gpus] = self._end_ns
            step = Step(self._end_ns, self._step_ns, *now, () if number else events)
            for change in self._engine.step(step):
                if change.what == "told":
                    self._note(change.finding, out)
        for event in events:
            if event.code in FAILS:
                out.failures += 1
                out.heard += self._is_told(event.gpu)

    def _is_told(self, gpu: int) -> bool:
        ref = self._fleet.refs[gpu]
        told = (f for f in self._engine.findings() if f.kind == RIGHT and f.told_ns is not None)
        return any(ref in finding.gpus for finding in told)

    def _note(self, finding: Finding, out: Quiet) -> None:
        if finding.kind == RIGHT:
            return
        name = f"{finding.kind}.{finding.cause}"
        out.false[name] += 1
        out.titles.append(f"{name}: {finding.title} ({finding.subject})")


class _Exporters:
    """What is read of exporters `each` times in the period in which they sample once.

    A sample is seen up to a period after it was taken, each node's in a phase of its own; who owns a GPU is
    known at once, as from a scheduler. A counter leaps by all that has come together.
    """

    def __init__(self, gpus: int, each: int, rng: np.random.Generator) -> None:
        self._each = each
        self._phase = np.repeat(rng.integers(each, size=gpus // PER_NODE), PER_NODE)
        self._shown: dict[str, Any] = {}
        self._sampled: Any = None

    def read(self, number: int, columns: Mapping[str, Floats], sampled: Any) -> tuple[dict[str, Floats], Any]:
        """(columns, is there a row) of the reading `number` in this period; the samples are its last ones."""
        if self._sampled is None:
            self._sampled = np.zeros_like(sampled)
        anew = np.flatnonzero(self._phase == number)
        self._sampled[anew] = sampled[anew]
        out = {}
        for name, values in columns.items():
            field = BY_NAME[name]
            if field.scope == "host":  # not from an exporter
                out[name] = values / self._each if field.kind == "counter" else values
                continue
            shown = self._shown.setdefault(name, np.full_like(values, np.nan))
            shown[anew] = values[anew]
            out[name] = shown.copy()
            if field.kind == "counter":
                out[name][~np.isnan(shown)] = 0.0
                out[name][anew] = values[anew]
        if ENERGY in out:  # as the collector takes it: a rate to whoever reads it anew, else unknown
            rate = np.full_like(out[ENERGY], np.nan)
            rate[anew] = out[ENERGY][anew] / self._each
            out[ENERGY] = rate
        return out, self._sampled.copy()


def score(which: Sequence[Set], plan: Sequence[Watch], seed: int) -> dict[str, Quiet]:
    """Every fleet of `plan`, by its name."""
    out = {}
    for number, watched in enumerate(plan):
        out[watched.name] = quiet = watch(which, watched, seed + 1000 * number)
        print(
            f"{quiet.gpu_hours:,.0f} healthy GPU-hours, {watched.name}: "
            f"{quiet.false.total()} false findings, {quiet.cpu_s:.0f} CPU seconds",
            file=sys.stderr,
        )
    return out


def add(figures: dict[str, Any], quiet: Mapping[str, Quiet]) -> None:
    """The figures of this part, among those of `python -m benchmarks.diagnosis`."""
    hours = sum(one.gpu_hours for one in quiet.values())
    false = sum((one.false for one in quiet.values()), Counter[str]())
    figures["healthy_gpu_hours"] = hours
    figures["false_findings"] = false.total()
    figures["false_per_1000_gpu_hours_upper95"] = _upper(false.total(), hours)
    figures["false_per_1000_gpus_and_week_upper95"] = WEEK_H * _upper(false.total(), hours)
    figures["false_by_kind"] = dict(false.most_common())
    figures["healthy_by_period"] = {
        name: {
            "gpu_hours": one.gpu_hours,
            "false_findings": one.false.total(),
            "false_per_1000_gpu_hours_upper95": _upper(one.false.total(), one.gpu_hours),
            "application_failures": one.failures,
            "told_of_those": one.heard,
        }
        for name, one in quiet.items()
    }
    figures["false_finding_titles"] = sorted({text for one in quiet.values() for text in one.titles})


def _upper(count: int, hours: float) -> float:
    return 1000 * scoring.poisson_upper(count) / hours


def main() -> int:
    """Play, count, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="the figures as JSON on stdout")
    parser.add_argument("--set", choices=["tuning", "held_out"], default="held_out")
    parser.add_argument("--full", action="store_true", help="500,000 GPU-hours at every period")
    parser.add_argument(
        "--hours",
        action="append",
        metavar="PERIOD=GPU_HOURS",
        help="only these: 1=2000, 30=1e5, live30=500, 30read5=1e4",
    )
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    plan = [_watch(text) for text in args.hours] if args.hours else FULL if args.full else USUAL
    print(f"SIMULATED. {args.set}, {GPUS} GPUs at once; {os.cpu_count()} cores", file=sys.stderr)
    figures: dict[str, Any] = {}
    add(figures, score((args.set,), plan, args.seed))
    for text in figures["false_finding_titles"]:
        print(f"  {text}", file=sys.stderr)
    print(json.dumps(rounded(figures), indent=2), file=sys.stdout if args.json else sys.stderr)
    return 0


def _watch(text: str) -> Watch:
    name, _, hours = text.partition("=")
    period, _, read = name.removeprefix(LIVE).partition(READ)
    return Watch(float(period), float(hours), name.startswith(LIVE), float(read) if read else None)


if __name__ == "__main__":
    sys.exit(main())
