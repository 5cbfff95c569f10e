"""A healthy fleet of thousands of GPUs in columns: what all of them show at one sample after the other.

Jobs of the healthy variants come and go on shared and whole nodes; agents and exporters look at them as in
life: late, now and then not at all, some with few fields. What one GPU shows is drawn as in `trial.py`; here
nothing is computed GPU by GPU, so that weeks of a fleet take minutes. Pure functions of the seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unidle_agent.sample import SW_POWER_CAP
from unidle_agent.wire import Owner
from unidle_collector.model import GpuRef
from unidle_collector.signals import Happened
from unidle_collector.simulator.asked import READ_EACH_S
from unidle_collector.simulator.fault_trial import SLOW
from unidle_collector.simulator.healthy_jobs import AT, HOST, LEVELS, PER_NODE, Job, drawn, fitting
from unidle_collector.simulator.healthy_looks import Looked, Looks, Slips, blank, cover
from unidle_collector.simulator.mechanisms.variant import Range, Variant
from unidle_collector.simulator.recordings import SECOND_NS, START_NS
from unidle_collector.simulator.trial import (
    CARDS,
    EMPTY_POWER,
    HOLD_RATIO,
    INLET_C,
    POWER_EXPONENT,
    RESISTANCE_C,
    TIME_CONSTANT_S,
)

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Doubles = NDArray[np.float64]
Places = NDArray[np.intp]

BLOCK = 64
"""Samples that are played at once."""


@dataclass(frozen=True, slots=True)
class Habits:
    """How the fleet is run and looked at; per hour: of one GPU or node. All assumptions."""

    runs_s: Range = (900.0, 43_200.0)
    """Shortest and longest run of a job, between them evenly by its logarithm."""
    gap_s: Range = (30.0, 1800.0)
    """Between two jobs on the same GPUs."""
    requeued: float = 0.2
    """Share of the jobs that come again under their name, at once."""
    opens_s: Range = (0.0, 400.0)
    """From the allocation until a process opens the GPU: a pull of an image, imports."""
    unsaid: float = 0.3
    """Share of the nodes on which nobody says whose a GPU is."""
    exporters: float = 0.15
    """Share of the nodes with a GPU_UTIL-era exporter and nothing else."""
    mig: float = 0.1
    """Share of the nodes whose GPUs are MIG instances."""
    clock_ahead_s: Range = (-2.0, 2.0)
    ambient_c: float = 4.0
    """By which the intake air is warmer in the afternoon than in the mean."""
    stray_per_h: float = 0.002
    """Corrected memory errors, stray NVLink errors, XIDs that only inform: each."""
    failures_per_h: float = 0.001
    """XIDs of the application: the only thing in this fleet that a person has to be told."""


REQUEUE_S = 5.0
HOTTEST_C = 83.0
"""Below what any of the cards throttles at."""
INFORM = (45, 63, 92, 154)
FAILS = (13, 31, 43, 94)
"""XIDs; codes and classes are in data/xids.toml."""


@dataclass(frozen=True, slots=True)
class Owns:
    """From a sample on some GPUs have another owner."""

    tick: int
    gpus: slice
    owner: Owner


@dataclass(frozen=True, slots=True)
class Played:
    """The next samples of the whole fleet; arrays are [T, G] where nothing else is said."""

    columns: dict[str, Floats]
    """In base units, NaN unknown; a counter is its increase in the period."""
    constant: dict[str, Floats]
    """[G] what reads the same whenever it is read."""
    reads: Bools
    """Is what moves slowly read with this sample."""
    sparse: tuple[tuple[int, str, int, float], ...]
    """(sample, field, GPU, value) on top."""
    sampled: Bools
    """Is there a sample, or one soon after that speaks for this period, too."""
    heard_s: Doubles
    """When each GPU's node was heard of last."""
    owns: tuple[Owns, ...]
    events: tuple[tuple[int, Happened], ...]
    """(sample, event); `gpu` is the number in the fleet."""


class HealthyFleet:
    """`gpus` GPUs on nodes of 8, whose jobs are of `variants`, sampled each `period_s`."""

    def __init__(
        self, variants: Sequence[Variant], gpus: int, period_s: float, seed: int, habits: Habits | None = None
    ) -> None:
        self._rng = np.random.default_rng([seed, 11])
        self._normal = np.random.Generator(np.random.SFC64([seed, 12]))
        self._variants, self._period_s, self._habits = variants, period_s, habits or Habits()
        self.gpus = gpus
        self._now = 0
        """Samples that were played."""
        self._jobs = 0
        self._make_nodes()
        self._make_places()
        rng, h, nodes = self._rng, self._habits, self._nodes
        self._lot = rng.standard_normal(gpus).astype(np.float32)
        self._inlet_c = (INLET_C + rng.uniform(-4.0, 6.0, nodes)).astype(np.float32)
        self._heat_c = np.full(gpus, INLET_C, dtype=np.float32)
        self._looks = Looks(self._exporter[::PER_NODE], period_s, Slips(), rng)
        self.clock_ahead_s = np.repeat(rng.uniform(*h.clock_ahead_s, nodes), PER_NODE)
        self._phase = rng.integers(READ_EACH_S, size=nodes)
        self._drift = rng.standard_normal(len(self._first))

    # -- what there is ---------------------------------------------------------------------------

    def _make_nodes(self) -> None:
        rng, h = self._rng, self._habits
        self._nodes = self.gpus // PER_NODE
        kinds = rng.permutation(self._nodes) / self._nodes
        self._mig = np.repeat(kinds < h.mig, PER_NODE)
        self._exporter = np.repeat((kinds >= h.mig) & (kinds < h.mig + h.exporters), PER_NODE)
        self.said = np.repeat(rng.random(self._nodes) >= h.unsaid, PER_NODE)
        """[G] does somebody say whose it is."""
        models = [*CARDS]
        chosen = rng.integers(len(models), size=self._nodes)
        self.share = np.where(self._mig, 1.0 / 7.0, 1.0)
        """[G] of a whole GPU."""
        cards = [CARDS[models[int(number)]] for number in chosen]
        self._model = np.repeat(chosen, PER_NODE)
        self._limit_w, self._memory, self._clock_hz, self._hottest_c = (
            np.repeat([getattr(card, name) for card in cards], PER_NODE).astype(np.float32)
            for name in ("limit_w", "memory_bytes", "clock_hz", "hottest_c")
        )
        self._memory = (self._memory * np.where(self._mig, 1.0 / 8.0, 1.0)).astype(np.float32)
        self.refs = tuple(
            GpuRef(f"node-{gpu // PER_NODE:05d}", f"GPU-{gpu:06d}", gpu % PER_NODE, models[self._model[gpu]])
            for gpu in range(self.gpus)
        )

    def _make_places(self) -> None:
        """GPUs that go to a job together: parts of a node, whole ones, neighbours of one kind."""
        rng = self._rng
        first: list[int] = []
        sizes: list[int] = []
        gpu = 0
        kind = np.stack((self._mig, self._exporter, self.said, self._model))
        while gpu < self.gpus:
            if gpu % PER_NODE:
                size = sizes[-1]
            elif self._mig[gpu]:
                size = 1
            else:
                size = int(rng.choice((1, 2, 4, 8, 16, 32), p=(0.08, 0.1, 0.12, 0.4, 0.2, 0.1)))
                while size > PER_NODE and not _same(kind[:, gpu : gpu + size], size):
                    size //= 2
            first.append(gpu)
            sizes.append(size)
            gpu += size
        self._first, self._size = np.array(first), np.array(sizes)
        self._place = np.repeat(np.arange(len(first)), sizes)
        self._running: list[Job] = []
        for place in range(len(first)):
            job = self._job(place, self._rng.uniform(-7200.0, 900.0))
            while job.end_s <= 0.0:
                job = self._job(place, job.end_s + rng.uniform(*self._habits.gap_s))
            self._running.append(job)

    def _job(self, place: int, held_s: float, before: Job | None = None) -> Job:
        """The next job of a place; `before` is the one that comes again."""
        rng, h, first, size = self._rng, self._habits, int(self._first[place]), int(self._size[place])
        fits = fitting(self._variants, size, bool(self._mig[first]), bool(self.said[first]))
        variant = before.variant if before else fits[int(rng.integers(len(fits)))]
        self._jobs += 1
        name = before.name if before else f"{'jupyter' if variant.interactive else 'job'}-{self._jobs}"
        runs_s = float(np.exp(rng.uniform(*np.log(h.runs_s))))
        return drawn(name, variant, place, size, (held_s, float(rng.uniform(*h.opens_s)), runs_s), rng)

    # -- what is seen ----------------------------------------------------------------------------

    def play(self, hours: float) -> Iterator[Played]:
        """So many hours, a block of samples at a time."""
        blocks = max(1, round(hours * 3600 / self._period_s / BLOCK))
        for _ in range(blocks):
            yield self._block()
            self._now += BLOCK

    def _block(self) -> Played:
        ends_s = np.arange(self._now + 1, self._now + BLOCK + 1, dtype=np.float64) * self._period_s
        looked = self._looks.at(ends_s)
        row, jobs, owns = self._held(looked)
        shown = self._activity(looked, row, jobs)
        columns = self._gpu_columns(shown, looked)
        columns |= self._host_columns(shown, looked)
        sampled = cover(columns, looked.sampled)
        blank(columns, self._exporter, self._mig)
        events, sparse = self._events(ends_s, sampled)
        slow_s = np.rint(ends_s)[:, None] + self._phase
        reads = sampled & np.repeat(slow_s % READ_EACH_S < self._period_s, PER_NODE, axis=1)
        return Played(
            columns=columns,
            constant=self._constant(),
            reads=reads & ~self._exporter,
            sparse=sparse,
            sampled=sampled,
            heard_s=np.repeat(looked.heard_s, PER_NODE, axis=1),
            owns=owns,
            events=events,
        )

    def _held(self, looked: Looked) -> tuple[Places, list[Job], tuple[Owns, ...]]:
        """([T, places] which of the jobs, the jobs, who owns what from when on)."""
        times_s = looked.times_s
        row = np.empty((BLOCK, self._first.size), dtype=np.intp)
        jobs: list[Job] = []
        owns: list[Owns] = []
        for place, (first, size) in enumerate(zip(self._first.tolist(), self._size.tolist(), strict=True)):
            now_s, before_s = times_s[:, first // PER_NODE], looked.before_s[0, first // PER_NODE]
            job, hands = self._running[place], [(-np.inf, "")]
            row[:, place] = len(jobs)
            jobs.append(job)
            hands.append((job.held_s, job.name))
            while job.end_s <= now_s[-1]:
                again = self._rng.random() < self._habits.requeued
                gap_s = REQUEUE_S if again else float(self._rng.uniform(*self._habits.gap_s))
                hands.append((job.end_s, ""))
                job = self._running[place] = self._job(place, job.end_s + gap_s, job if again else None)
                row[now_s >= job.held_s, place] = len(jobs)
                jobs.append(job)
                hands.append((job.held_s, job.name))
            if self.said[first]:
                gpus, begun_s = slice(first, first + size), -np.inf if self._now == 0 else before_s
                owns += _hand_over(hands, gpus, begun_s, now_s)
        return row, jobs, tuple(sorted(owns, key=lambda one: one.tick))

    def _activity(self, looked: Looked, row: Places, jobs: list[Job]) -> _Shown:
        """What every GPU does at each sample, and did on average since the one before."""
        times_s, before_s = looked.times_s, looked.before_s
        at_sample = np.ones((BLOCK, self.gpus), dtype=np.float32)
        since = at_sample.copy()
        for number, job in enumerate(jobs):
            first, size = int(self._first[job.place]), int(self._size[job.place])
            if job.variant.cycle is None and not job.variant.step_share:
                continue
            ticks = np.flatnonzero(row[:, job.place] == number)[:, None]
            gpus = np.arange(first, first + size)
            if job.variant.cycle is not None and ticks.size:
                nodes = gpus // PER_NODE
                then_s, prior_s = (times[ticks, nodes] - job.apart_s for times in (times_s, before_s))
                done, second, prior = (
                    np.interp(when_s.ravel(), job.edges, job.worked).reshape(when_s.shape)
                    for when_s in (then_s, then_s - 1.0, prior_s)
                )
                at_sample[ticks, gpus] = np.where(job.waits, done - second, 1.0)
                since[ticks, gpus] = np.where(job.waits, (done - prior) / (then_s - prior_s), 1.0)
            at_sample[ticks, gpus] *= job.share
            since[ticks, gpus] *= job.share
        numbers = np.stack([job.numbers for job in jobs]).astype(np.float32)
        lives = np.array([(job.held_s, job.opened_s, job.loaded_s, job.end_s) for job in jobs])
        here = row[:, self._place]
        now_s = np.repeat(times_s, PER_NODE, axis=1)
        ended = now_s >= lives[:, 3][here]
        opened = (now_s >= lives[:, 1][here]) & ~ended
        running = (now_s >= lives[:, 2][here]) & ~ended
        loads_s = np.maximum(lives[:, 2] - lives[:, 1], 1.0)
        loaded = np.clip((now_s - lives[:, 1][here]) / loads_s[here], 0.0, 1.0).astype(np.float32)
        return _Shown(numbers, here, opened & ~running, running, at_sample, since, loaded)

    def _noise(self, scale: float, rows: int = BLOCK) -> Floats:
        out: Floats = 1.0 + scale * self._normal.standard_normal((rows, self.gpus), dtype=np.float32)
        return out

    def _gpu_columns(self, shown: _Shown, looked: Looked) -> dict[str, Floats]:
        drift = self._drift + 0.5 * self._rng.standard_normal(self._drift.size)
        part = np.linspace(0.0, 1.0, BLOCK, dtype=np.float32)[:, None]
        together = 1.0 + 0.012 * (self._drift * (1 - part) + drift * part)[:, self._place].astype(np.float32)
        self._drift = np.clip(drift, -3.0, 3.0)
        together *= self._noise(0.008)
        blips = self._normal.random(together.shape, dtype=np.float32) < 0.2
        lot = 1.0 + 0.015 * self._lot
        level = {}
        for name in LEVELS[:4] + LEVELS[5:]:
            noise = together * lot * self._noise(0.02)
            if name == "util":
                noise = np.minimum(noise, 1.004)
            load = shown.of(f"load.{name}") * (blips if name in ("util", "sm") else 1.0)
            level[name] = shown.level(name, shown.at_sample, load) * noise
        power, meanwhile = (
            self._power(shown, busy, lot * self._noise(0.004)) for busy in (shown.at_sample, shown.since)
        )
        held = np.where(shown.running & (shown.at_sample > 0.5), power.held, 1.0)
        clock = held ** (1 / POWER_EXPONENT) * (1.0 + 0.004 * self._lot[::-1])
        seconds = np.repeat(looked.times_s - looked.before_s, PER_NODE, axis=1).astype(np.float32)
        gb = 1e9 * self._noise(0.1)
        temperature = np.rint(self._warm(power.drawn, looked.times_s, seconds))
        full = np.maximum(shown.of("work.sm"), 0.01)
        memory = shown.of("memory") * np.where(shown.running, 1.0, shown.loaded)
        used = np.where(shown.running | shown.loading, np.clip(memory, 0.0, 0.985), 0.001 + 0.001 * lot)
        slice_w = self._limit_w * self.share.astype(np.float32)
        columns = {
            "gpu_util_ratio": np.rint(np.clip(level["util"], 0, 1) * 100) / 100,
            "memory_util_ratio": np.rint(np.clip(level["dram"] * 0.9, 0, 1) * 100) / 100,
            "graphics_active_ratio": _ratio(level["util"] * 0.998),
            "sm_active_ratio": _ratio(level["sm"]),
            "tensor_active_ratio": _ratio(level["tensor"]),
            "dram_active_ratio": _ratio(level["dram"]),
            "fp32_active_ratio": _ratio(shown.of("fp32") * level["sm"] / full),
            "fp64_active_ratio": _ratio(shown.of("fp64") * level["sm"] / full),
            "dtype_code": np.where(shown.running, shown.of("dtype"), np.nan),
            "memory_used_bytes": used * self._memory,
            "process_count": np.where(shown.running | shown.loading, 1.0, 0.0),
            "power_w": power.drawn * slice_w,
            "energy_j": meanwhile.drawn * slice_w * seconds,
            "sm_clock_hz": np.rint(clock * self._clock_hz / 15e6) * 15e6,
            "temperature_c": temperature,
            "thermal_margin_c": self._hottest_c - temperature,
            "clock_event_reasons": np.where(held < 1.0, float(SW_POWER_CAP), 0.0),
            "power_cap_s": np.where(shown.running & (power.held < 1.0), shown.since, 0.0) * seconds,
            "pcie_rx_bytes_per_s": np.maximum(level["pcie_rx"] * gb, 0.0),
            "pcie_tx_bytes_per_s": np.maximum(level["pcie_tx"] * gb, 0.0),
            "nvlink_tx_bytes_per_s": np.maximum(level["nvlink"] * gb, 0.0),
            "nvlink_rx_bytes_per_s": np.maximum(level["nvlink"] * gb, 0.0),
            "pcie_generation": np.where(level["util"] < 0.05, 1.0, 5.0),
        }
        columns["nvlink_bytes_per_s"] = np.where(
            self._exporter, columns["nvlink_tx_bytes_per_s"] + columns["nvlink_rx_bytes_per_s"], np.nan
        )
        return {name: values.astype(np.float32) for name, values in columns.items()}

    def _power(self, shown: _Shown, busy: Floats, noise: Floats) -> _Power:
        """Power over the limit, and by how much the demand is above it."""
        demand = shown.level("power", busy, shown.of("load.power"), empty=EMPTY_POWER) * noise
        return _Power(np.minimum(demand, HOLD_RATIO), HOLD_RATIO / np.maximum(demand, HOLD_RATIO))

    def _warm(self, power: Floats, times_s: Doubles, seconds: Floats) -> Floats:
        """[T, G] °C; the day is at its warmest in its third quarter."""
        day = np.sin(2 * np.pi * (times_s / 86_400.0 - 0.4)).astype(np.float32)
        inlet_c = self._inlet_c + self._habits.ambient_c * day
        target = np.repeat(inlet_c, PER_NODE, axis=1) + RESISTANCE_C * power + 2.0 * self._lot
        keep = np.exp(-np.maximum(seconds, 0.0) / TIME_CONSTANT_S)
        out: Floats = np.empty_like(target)
        for tick in range(BLOCK):
            self._heat_c = target[tick] + (self._heat_c - target[tick]) * keep[tick]
            out[tick] = self._heat_c
        np.minimum(out, HOTTEST_C, out=out)
        return out

    def _host_columns(self, shown: _Shown, looked: Looked) -> dict[str, Floats]:
        """Of each node the mean of what its GPUs' jobs ask of it."""
        shape = (BLOCK, self._nodes, PER_NODE)
        waits = 1.0 - shown.since
        values = {}
        for name in HOST:
            steady, wait = shown.of(f"host.{name}"), shown.of(f"host_wait.{name}")
            level = np.where(shown.running, steady + (wait - steady) * waits, 0.0)
            level = np.where(shown.loading, shown.of(f"host_load.{name}"), level)
            mean = level.reshape(shape).mean(axis=2)
            noise = 1.0 + 0.1 * self._normal.standard_normal(mean.shape, dtype=np.float32)
            values[name] = np.maximum(mean * noise, 0.0)
        cpu = np.clip(values["cpu"], 0.002, 0.995)
        seconds = (looked.times_s - looked.before_s).astype(np.float32)
        columns = {
            "cpu_busy_ratio": cpu,
            "cpu_iowait_ratio": np.minimum(values["iowait"], 1.0 - cpu),
            "psi_io_some_s": np.minimum(values["psi_io"], 1.0) * seconds,
            "psi_cpu_some_s": np.minimum(values["psi_cpu"], 1.0) * seconds,
            "job_cpu_throttled_s": values["job_throttled"] * seconds,
            "nfs_read_bytes": values["nfs_read"] * 1e6 * seconds,
            "disk_read_bytes": values["disk_read"] * 1e6 * seconds,
            "disk_written_bytes": values["disk_written"] * 1e6 * seconds,
            "net_received_bytes": (values["ethernet"] + values["nfs_read"]) * 1e6 * seconds,
            "net_sent_bytes": values["ethernet_sent"] * 1e6 * seconds,
            "ib_received_bytes": values["infiniband"] * 1e6 * seconds,
            "ib_sent_bytes": values["infiniband"] * 1e6 * seconds,
        }
        return {name: np.repeat(one, PER_NODE, axis=1).astype(np.float32) for name, one in columns.items()}

    def _constant(self) -> dict[str, Floats]:
        """What stays as it is; the agent's slow readings among it."""
        agent = ~self._exporter
        out = {"memory_total_bytes": np.where(agent, self._memory, np.nan)}
        out["power_limit_w"] = np.where(agent, self._limit_w * self.share, np.nan)
        out["gpu_state"] = np.where(agent, 0.0, np.nan)
        for name in ("thermal_throttle_s", "hw_thermal_throttle_s", "power_brake_s"):
            out[name] = np.where(agent, 0.0, np.nan)
        out |= {name: np.full(self.gpus, value) for name, value in SLOW.items() if name != "pcie_generation"}
        return {name: values.astype(np.float32) for name, values in out.items()}

    def _events(
        self, ends_s: Doubles, sampled: Bools
    ) -> tuple[tuple[tuple[int, Happened], ...], tuple[tuple[int, str, int, float], ...]]:
        """What happens now and then, on nodes with an agent and a sample."""
        rng, h = self._rng, self._habits
        hours = BLOCK * self._period_s / 3600.0 * self.gpus

        def some(per_h: float) -> Iterator[tuple[int, int]]:
            for _ in range(int(rng.poisson(per_h * hours))):
                tick, gpu = int(rng.integers(BLOCK)), int(rng.integers(self.gpus))
                if sampled[tick, gpu] and not self._exporter[gpu]:
                    yield tick, gpu

        events = []
        for codes, per_h in ((INFORM, h.stray_per_h), (FAILS, h.failures_per_h)):
            for tick, gpu in some(per_h):
                time_ns = START_NS + round((ends_s[tick] - 0.5) * SECOND_NS)
                events.append((tick, Happened(gpu, time_ns, "xid", int(rng.choice(codes)))))
        sparse = [
            (tick, name, gpu, float(rng.integers(1, most + 1)))
            for name, most in (("ecc_corrected_volatile", 3), ("nvlink_errors", 4))
            for tick, gpu in some(h.stray_per_h)
        ]
        return tuple(sorted(events, key=lambda one: one[0])), tuple(sparse)


@dataclass(frozen=True, slots=True)
class _Power:
    drawn: Floats
    held: Floats
    """Below 1: at its limit."""


@dataclass(frozen=True, slots=True)
class _Shown:
    """What the jobs do; arrays are [T, G] but for `numbers` [jobs, NUMBERS]."""

    numbers: Floats
    here: Places
    """Which job."""
    loading: Bools
    running: Bools
    at_sample: Floats
    """Share of the last second in which it works, ..."""
    since: Floats
    """... and of the time since the sample before."""
    loaded: Floats
    """How much of its model is there."""

    def of(self, name: str) -> Floats:
        """[T, G] what was drawn for the job."""
        out: Floats = self.numbers[:, AT[name]][self.here]
        return out

    def level(self, name: str, busy: Floats, load: Floats, empty: float = 0.0) -> Floats:
        """[T, G] between work and waiting, or that of a load, or of an empty GPU."""
        work, wait = self.of(f"work.{name}"), self.of(f"wait.{name}")
        out: Floats = np.where(self.running, wait + (work - wait) * busy, np.where(self.loading, load, empty))
        return out


def _hand_over(hands: list[tuple[float, str]], gpus: slice, begun_s: float, now_s: Doubles) -> Iterator[Owns]:
    """Who owns `gpus` from which sample on, where that changes from `begun_s` on; `hands`: (when, who)."""
    last = max(number for number, (at_s, _) in enumerate(hands) if at_s <= now_s[0] or number == 0)
    for number, (at_s, name) in enumerate(hands):
        tick = int(np.searchsorted(now_s, at_s))
        if number >= last and tick < now_s.size and at_s >= begun_s:
            yield Owns(tick, gpus, _owner(name))


def _same(kind: NDArray[Any], size: int) -> bool:
    return kind.shape[1] == size and bool((kind == kind[:, :1]).all())


def _owner(job: str) -> Owner:
    return Owner(allocated=bool(job), job=job, source="simulation", confidence="high")


def _ratio(values: NDArray[Any]) -> NDArray[Any]:
    out: NDArray[Any] = np.rint(np.clip(values, 0.0, 1.0) * 1e4) / 1e4
    return out
