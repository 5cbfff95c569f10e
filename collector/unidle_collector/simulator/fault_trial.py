"""Nodes with faults, played second by second, and what an agent would send of them.

Healthy work comes from `trial.py`, the effects of a fault on top; everything is a pure function of the
variants and the seed. `seen` is a view of it: how often the agent looks, what gets lost, which fields it has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from unidle_agent.faults import Faults
from unidle_agent.fields import BY_NAME
from unidle_agent.sample import GpuReading, Tick
from unidle_agent.wire import NODE, GpuFacts
from unidle_collector.model import GpuRef
from unidle_collector.recording import Recording
from unidle_collector.simulator.asked import READ_EACH_S, told, usual
from unidle_collector.simulator.mechanisms.faults import (
    Clock,
    Effect,
    FaultVariant,
    Grows,
    Logged,
    Reads,
    Rests,
    Silent,
    Told,
    Xid,
    Zeros,
)
from unidle_collector.simulator.mechanisms.variant import HEALTHY, NONE, Cycle, Levels, Range, Variant, draw
from unidle_collector.simulator.recordings import EXPORTER, SECOND_NS, START_NS
from unidle_collector.simulator.trial import CARDS, EMPTY_POWER, trial

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

WORK = {
    "all the time": Variant("works", "tuning", HEALTHY, models=tuple(CARDS), before=NONE),
    "in bursts": Variant(
        "works in bursts", "tuning", HEALTHY, models=tuple(CARDS), before=NONE,
        cycle=Cycle((120.0, 400.0), (20.0, 60.0)),
    ),
    "in short turns": Variant(
        "works in short turns", "tuning", HEALTHY, models=tuple(CARDS), before=NONE,
        cycle=Cycle((40.0, 110.0), (16.0, 19.0)),
    ),
    "never": Variant(
        "empty", "tuning", HEALTHY, models=tuple(CARDS), before=NONE, process=False, memory=NONE,
        work=Levels(NONE, NONE, NONE, NONE, (EMPTY_POWER, EMPTY_POWER), NONE, NONE, NONE),
    ),
}  # fmt: skip
PUSH_EACH_S = 5
SLOW = {
    "pcie_width": 16.0, "pcie_width_max": 16.0, "pcie_generation": 5.0, "pcie_generation_max": 5.0,
    "nvlink_links": 18.0, "nvlink_links_up": 18.0, "nvlink_errors": 0.0, "nvlink_recoveries": 0.0,
    "nvlink_recoveries_failed": 0.0, "fabric_health": float(0xAA), "recovery_action": 0.0,
    "ecc_corrected_volatile": 0.0, "ecc_uncorrected_volatile": 0.0, "ecc_uncorrected_aggregate": 0.0,
    "rows_remapped_correctable": 0.0, "rows_remapped_uncorrectable": 0.0, "row_remap_failed": 0.0,
    "row_remap_pending": 0.0, "bank_remap_pending": 0.0, "sram_threshold_exceeded": 0.0,
    "bank_remaps_active": 0.0, "bank_groups_no_spares": 0.0, "ib_ports_active": 8.0, "ib_ports_inactive": 0.0,
    "ib_ports_slow": 0.0,
    "ib_link_errors": 0.0,
}  # fmt: skip
"""Field that moves slowly -> what it reads on a healthy GPU or node."""
PROFILED = ("sm_active_ratio", "tensor_active_ratio", "dram_active_ratio", "graphics_active_ratio")
EXPORTER_HEALTH = ("last_xid", "rows_remapped_correctable", "rows_remapped_uncorrectable", "row_remap_failed")
"""What a dcgm-exporter sends of faults by default."""
NEVER_ENDS_S = 10**9
FIRST_BUS = 0x1B
"""Of the PCI addresses of a node's GPUs."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that the driver tells at a second of the run."""

    second: int
    gpu: int
    kind: str
    code: int = 0
    text: str = ""
    part: int = -1


@dataclass(slots=True)
class Said:
    """A log of the kernel in which stands what was put there."""

    lines: Sequence[str] = ()
    lost: int = 0
    full: int = 0

    def messages(self, mark: re.Pattern[bytes]) -> Iterator[str]:
        """Those lines with `mark` in them."""
        return (line for line in self.lines if mark.search(line.encode()))

    def close(self) -> None:
        """Nothing is held."""


@dataclass(slots=True)
class FaultTrial:
    """One node over T seconds."""

    variant: FaultVariant
    model: str
    columns: dict[str, Floats]
    """Field -> [T, G]; counters as the driver has them: their level, not their increase."""
    affected: NDArray[np.intp]
    """GPUs that the fault is on."""
    onset_s: int
    end_s: int
    events: list[Event] = field(default_factory=list)
    pushes: Bools = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    """[T] does the node push."""
    ahead_s: Floats = field(default_factory=lambda: np.zeros(0))
    """[T] its clock before the collector's."""


@dataclass(frozen=True, slots=True)
class Look:
    """How a fleet is looked at."""

    period_s: int = 1
    missing: float = 0.0
    """Share of the samples that never come, each GPU apart."""
    exporter: bool = False
    """Only what a dcgm-exporter sends by default: no events, no profiling counters, no gpu_state."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What comes in from several nodes; arrays are [T, G] of all their GPUs."""

    recording: Recording
    events: tuple[Event, ...]
    """By GPU of the recording and second of the run, in order of time; the last second of a row is the
    row's own."""
    heard_s: NDArray[np.int64]
    """Second of the node's last push at each instant."""
    ahead_s: Floats
    """The node's clock before the collector's, at that push."""
    agents: bool
    """Does an agent of the node tell it, which looks again at a link that turned bad."""
    run: NDArray[np.intp]
    """[G]: which trial the GPU belongs to."""
    shown_s: tuple[int, ...]
    """[trials]: from which second on the data say it."""


def fault_trial(variant: FaultVariant, seconds: int, gpus: int, rng: np.random.Generator) -> FaultTrial:
    """Draw from the ranges of `variant` and play it."""
    base = trial(WORK[variant.works], seconds, gpus, rng)
    columns = {
        name: np.cumsum(values, axis=0) if BY_NAME[name].kind == "counter" else values
        for name, values in base.columns.items()
    }
    columns |= {name: np.full((seconds, gpus), value) for name, value in SLOW.items()}
    columns["last_xid"] = np.zeros((seconds, gpus))
    onset_s = round(draw(variant.onset_s, rng))
    lasts_s = NEVER_ENDS_S if variant.lasts_s == NONE else round(draw(variant.lasts_s, rng))
    count = max(1, round(draw(variant.affected, rng) * gpus))
    out = FaultTrial(
        variant=variant,
        model=base.model,
        columns=columns,
        affected=np.sort(rng.permutation(gpus)[:count]),
        onset_s=onset_s,
        end_s=min(onset_s + lasts_s, seconds),
        pushes=np.ones(seconds, dtype=np.bool_),
        ahead_s=np.zeros(seconds),
    )
    for effect in variant.effects:
        _apply(effect, out, rng)
    out.events.sort(key=lambda event: event.second)
    return out


def _apply(effect: Effect, out: FaultTrial, rng: np.random.Generator) -> None:
    """Put `effect` upon the run."""
    rows, columns = slice(out.onset_s, out.end_s), out.columns
    place = (rows, out.affected)
    match effect:
        case Xid():
            _log(effect, out, rng)
        case Told(kinds, each_s):
            for second in _times(out, each_s, rng):
                out.events += [Event(second, int(gpu), kind) for gpu in out.affected for kind in kinds]
        case Logged():
            _write(effect, out, rng)
        case Reads("gpu_state", values):
            for name, levels in columns.items():
                levels[place] = values[0] if name == "gpu_state" else np.nan
        case Reads(name, values):
            columns[name][place] = values[int(rng.integers(len(values)))]
        case Grows(name, by, each_s):
            for second in _times(out, each_s, rng):
                columns[name][second:, out.affected] += round(draw(by, rng))
        case Rests():
            rests = columns["gpu_util_ratio"][place] < 0.05
            columns["pcie_generation"][place] = np.where(rests, 1.0, columns["pcie_generation"][place])
        case Clock(ahead_s):
            out.ahead_s[rows] = draw(ahead_s, rng)
        case Silent():
            out.pushes[rows] = False
        case Zeros():
            for name in PROFILED:
                columns[name][place] = 0.0


def _log(effect: Xid, out: FaultTrial, rng: np.random.Generator) -> None:
    code = effect.codes[int(rng.integers(len(effect.codes)))]
    lines = round(draw(effect.lines, rng))
    for second in _times(out, effect.again_s, rng):
        out.columns["last_xid"][second:, out.affected] = code
        if not effect.sticky:
            out.events += [Event(second, int(gpu), "xid", code) for gpu in out.affected for _ in range(lines)]


def _write(effect: Logged, out: FaultTrial, rng: np.random.Generator) -> None:
    """Put the lines into a kernel log, and take what the agent makes of them."""
    gpus = range(out.columns["power_w"].shape[1])
    addresses = [f"0000:{FIRST_BUS + gpu:02x}:00" for gpu in gpus]
    rows = tuple(GpuReading(GpuFacts(str(gpu), gpu, pci_bus_id=f"{addresses[gpu]}.0"), {}) for gpu in gpus)
    log = Said()
    faults = Faults("simulated", names=False, open_log=lambda _: log)
    for second in _times(out, effect.each_s, rng):
        log.lines = [
            line.format(pci=addresses[gpu])
            for line in effect.lines
            for gpu in (out.affected if "{pci}" in line else out.affected[:1])
        ]
        for event in faults.complete(Tick(second * SECOND_NS, rows, {}, ())).events:
            of = gpus if event.gpu == NODE else (int(event.gpu),)
            out.events += [Event(second, gpu, event.kind, event.code, event.text, event.part) for gpu in of]


def _times(out: FaultTrial, each_s: Range, rng: np.random.Generator) -> list[int]:
    """Seconds at which it comes, the onset first."""
    times = [out.onset_s]
    while each_s != NONE and (then := times[-1] + max(1, round(draw(each_s, rng)))) < out.end_s:
        times.append(then)
    return times


def seen(trials: Sequence[FaultTrial], look: Look, rng: np.random.Generator, first: int = 0) -> Scene:
    """One node per trial, as its agent sends it in this look; node names count from `first`."""
    seconds = len(trials[0].pushes)
    rows = np.arange(look.period_s - 1, seconds, look.period_s)
    run = np.repeat(np.arange(len(trials)), [t.columns["power_w"].shape[1] for t in trials])
    pushes = np.stack([t.pushes for t in trials], axis=1)
    sampled = pushes[rows][:, run] & (rng.random((len(rows), len(run))) >= look.missing)
    phase = rng.integers(READ_EACH_S, size=len(trials))
    names = [*trials[0].columns]
    if look.exporter:
        names = [name for name in names if name in EXPORTER + EXPORTER_HEALTH]
    slow = frozenset(names) & SLOW.keys()
    says = [
        {name: values[rows] for name, values in t.columns.items()}
        | told(t.columns, slow, rows, int(phase[n]))
        for n, t in enumerate(trials)
    ]
    columns = {}
    for name in names:
        level = np.concatenate([one[name] for one in says], axis=1)
        level[~sampled] = np.nan
        columns[name] = _increase(level) if BY_NAME[name].kind == "counter" else level
    if look.exporter:  # of a GPU that does not answer it has no line at all
        sampled = sampled & ~np.isnan(np.stack([columns[name] for name in EXPORTER])).all(axis=0)
    recording = Recording(
        start_ns=START_NS + look.period_s * SECOND_NS,
        period_s=float(look.period_s),
        gpus=tuple(
            GpuRef(f"fault-{first + n:04d}", f"GPU-{first + n:04d}-{gpu}", gpu, t.model)
            for n, t in enumerate(trials)
            for gpu in range(t.columns["power_w"].shape[1])
        ),
        columns=columns,
        sampled=sampled,
        jobs=("", *(f"job-{first + n}" for n in range(len(trials)))),
        job=np.broadcast_to(_job_codes(trials)[run], sampled.shape).astype(np.int32),
        notes=(),
        simulated=True,
    )
    begins = np.searchsorted(run, np.arange(len(trials)))
    events = () if look.exporter else tuple(
        replace(event, gpu=int(begins[n]) + event.gpu)
        for n, t in enumerate(trials)
        for event in t.events
        if t.pushes[event.second]
    )  # fmt: skip
    pushed = pushes & (np.arange(seconds) % PUSH_EACH_S == PUSH_EACH_S - 1)[:, None]
    heard_s = np.maximum.accumulate(np.where(pushed, np.arange(seconds)[:, None], 0), axis=0)
    ahead_s = np.take_along_axis(np.stack([t.ahead_s for t in trials], axis=1), heard_s, axis=0)
    return Scene(
        recording=recording,
        events=tuple(sorted(events, key=lambda event: event.second)),
        heard_s=heard_s[rows][:, run],
        ahead_s=ahead_s[rows][:, run],
        agents=not look.exporter,
        run=run,
        shown_s=tuple(_shown_s(t, rows, int(phase[n]), slow) for n, t in enumerate(trials)),
    )


def _job_codes(trials: Sequence[FaultTrial]) -> NDArray[np.int32]:
    return np.array([0 if t.variant.works == "never" else n + 1 for n, t in enumerate(trials)], np.int32)


def _increase(level: Floats) -> Floats:
    """[T, G] increase of a counter since its last known level; NaN where it is not known."""
    known = ~np.isnan(level)
    at = np.maximum.accumulate(np.where(known, np.arange(len(level))[:, None], -1), axis=0)
    before = np.concatenate((np.full((1, level.shape[1]), -1), at[:-1]))
    prior = np.take_along_axis(level, np.maximum(before, 0), axis=0)
    return np.where(known & (before >= 0), level - prior, np.nan)


def _shown_s(one: FaultTrial, rows: NDArray[np.int64], phase: int, slow: frozenset[str]) -> int:
    """End of the first row whose data say it: an event's own, else the first reading of a field, or push."""
    shows = np.zeros(rows.shape, dtype=np.bool_)
    for effect in one.variant.effects:
        match effect:
            case Rests():
                pass
            case Reads(name, _) | Grows(name, _, _) if name in slow:
                shows |= usual(rows, phase, name)
            case Clock():
                shows |= (rows + 1) % PUSH_EACH_S == 0
            case _:
                shows[:] = True
    here = np.flatnonzero((rows >= one.onset_s) & shows)
    return int(rows[here[0]]) + 1 if here.size else len(one.pushes)
