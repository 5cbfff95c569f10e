"""The simulated fleet: `step(seconds)` gives the next samples of every GPU and host.

One seed gives one fleet, however the seconds are cut into steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from unidle_agent.errors import UnidleError
from unidle_agent.fields import BY_NAME, UNKNOWN_U8
from unidle_collector.simulator.columns import Scene, gpu_columns
from unidle_collector.simulator.faults import (
    CLOCK_AHEAD_S,
    EVIDENT_AFTER_S,
    LINK_ERRORS_PER_S,
    NODES_WITH_FAULTS,
    OF_HARDWARE,
    ONE_GPU,
    READS,
    SPARE,
    XIDS,
    Fault,
    Planned,
    jobs_of,
    planned_history,
    planned_live,
    script,
)
from unidle_collector.simulator.hardware import hardware, levels
from unidle_collector.simulator.hosts import Fabric, Hosts
from unidle_collector.simulator.jobs import Ints, Job, Timeline, queue, sawtooth
from unidle_collector.simulator.noise import Noise
from unidle_collector.simulator.physics import Physics

SECOND_NS = 1_000_000_000
FEWEST_NODES, FEWEST_GPUS_PER_NODE = NODES_WITH_FAULTS + 2, 4
GPM_FIELDS = tuple(name for name, spec in BY_NAME.items() if spec.nvml.startswith("GPM"))
NO_GPM_SHARE, NO_SAMPLE_SHARE = 3e-4, 1e-4
"""Share of samples in which the profiling fields, or all of them, are missing."""


@dataclass(frozen=True, slots=True)
class Happening:
    """An event of the driver about the GPU at a position in the fleet."""

    time_ns: int
    gpu: int
    kind: str
    code: int


@dataclass(frozen=True, slots=True)
class Block:
    """Some seconds of the whole fleet: n instants, G GPUs, N nodes; node k has the GPUs from k * G/N on.

    Columns have the dtypes of the field table; counters are whole numbers of their resolution.
    """

    times_ns: Ints
    """[n]"""
    gpu: dict[str, NDArray[np.generic]]
    """Field -> [n, G]; unknown is NaN or UNKNOWN_U8."""
    host: dict[str, NDArray[np.generic]]
    """Field -> [n, N]"""
    job: NDArray[np.int32]
    """[n, G] position in `jobs`, -1 where nobody has the GPU."""
    jobs: tuple[Job, ...]
    ahead_ns: Ints
    """[n, N] how far each node's clock is ahead."""
    pushes: NDArray[np.bool_]
    """[n, N] does the node's agent live."""
    events: tuple[Happening, ...] = ()
    """By time."""


class Fleet:
    """`nodes` x `gpus_per_node` GPUs whose first sample is at `start_ns`.

    The history of `history_s` seconds is what the planned faults are laid out over; `go_live` says that
    it is over. With `history_s` 0 there are no faults. Raises UnidleError for a fleet too small.
    """

    def __init__(
        self, seed: int, nodes: int = 64, gpus_per_node: int = 8, start_ns: int = 0, history_s: int = 5400
    ) -> None:
        if nodes < FEWEST_NODES or gpus_per_node < FEWEST_GPUS_PER_NODE:
            raise UnidleError(
                f"expected a fleet of at least {FEWEST_NODES} nodes x {FEWEST_GPUS_PER_NODE} GPUs "
                f"(each fault has its nodes to itself), came {nodes} x {gpus_per_node}"
            )
        self.nodes, self.gpus_per_node, self.start_ns = nodes, gpus_per_node, start_ns
        self.faults: list[Fault] = []
        """What was injected, in the order in which it was decided."""
        self.live_s: int | None = None
        """When the fleet went live, in seconds since its first sample."""
        self.now_s = 0
        """Seconds that were stepped over."""
        self._planned = planned_history(history_s) if history_s else ()
        rng = np.random.default_rng([seed, 0])
        self._timelines = self._populate(rng, history_s)
        gpus = self.gpus
        hw = hardware()
        slot = np.arange(gpus) % gpus_per_node
        inlet_c = hw.inlet_c + rng.normal(0.0, 0.7, gpus) + hw.odd_slot_warmer_c * (slot % 2)
        self._physics = Physics(hw, inlet_c)
        self._idle_w = rng.uniform(hw.idle_low_w, hw.idle_high_w, gpus)
        self._lot = rng.normal(1.0, 0.012, gpus).clip(0.97, 1.03)
        """Power for the same work, by GPU: silicon differs."""
        self._noise = Noise(seed)
        self._hosts = Hosts(nodes, gpus_per_node, rng)
        self._counters = {name: rng.integers(0, high, gpus) for name, high in COUNTERS_START_BELOW.items()}
        self._sawtooth: dict[int, NDArray[np.float32]] = {}

    @property
    def gpus(self) -> int:
        """G."""
        return self.nodes * self.gpus_per_node

    @property
    def now_ns(self) -> int:
        """Time of the next sample."""
        return self.start_ns + self.now_s * SECOND_NS

    def go_live(self) -> None:
        """The history ends now: what is planned for the live part is laid out from here."""
        self.live_s = self.now_s
        ends = {fault.node: fault.ends_live_s for fault in self._planned if fault.ends_live_s is not None}
        self.faults = [
            replace(fault, end_s=self.live_s + ends[fault.node]) if fault.node in ends else fault
            for fault in self.faults
        ]
        if self._planned:
            self.faults += [self._broken(fault, self.live_s) for fault in planned_live()]

    def step(self, seconds: int) -> Block:
        """The next `seconds` samples of everything."""
        times_s = np.arange(self.now_s, self.now_s + seconds, dtype=np.int64)
        scene, used, job, jobs = self._scene(times_s)
        noise = self._noise.draw(seconds, self.gpus)
        motion = self._physics.run(scene.demand_w, scene.floor_w, scene.cooling_lost, scene.brake)
        gpu = gpu_columns(scene, motion, noise, self._counters)
        fabric = Fabric(
            used,
            self._node_at_fault("infiniband", times_s, "port_down"),
            LINK_ERRORS_PER_S * self._node_at_fault("infiniband", times_s, "errors"),
        )
        host = self._hosts.run(scene.workload, fabric, self._noise.hosts(seconds, self.nodes))
        events = self._break(gpu, times_s)
        _lose(gpu, noise.lost)
        self.now_s += seconds
        ahead_ns = self._node_at_fault("clock_skew", times_s) * np.int64(CLOCK_AHEAD_S * SECOND_NS)
        pushes = ~self._node_at_fault("stale_agent", times_s)
        return Block(self.start_ns + times_s * SECOND_NS, gpu, host, job, jobs, ahead_ns, pushes, events)

    def _populate(self, rng: np.random.Generator, history_s: int) -> list[Timeline]:
        """Give every GPU a queue of jobs: nodes of its own per fault, the rest in sets of several sizes."""
        timelines = []
        planned = {fault.node: fault for fault in self._planned}
        node = 0
        while node < NODES_WITH_FAULTS:
            fault = planned.get(node)
            gpus = self._of_nodes(node, 1 if fault is None else fault.nodes)
            if fault is not None and fault.one_gpu and fault.kind not in OF_HARDWARE:
                others = np.delete(np.arange(len(gpus)), ONE_GPU)
                timelines += [_queued(f"sim-{node:03d}g{n}", gpus[n : n + 1], rng) for n in others]
                gpus = gpus[ONE_GPU : ONE_GPU + 1]
            made = script(fault, node, gpus, history_s, rng)
            timelines.append(Timeline(jobs_of(made, rng)))
            if made.fault is not None:
                self.faults.append(made.fault)
            node += 1 if fault is None else fault.nodes
        self.faults += [self._broken(f, history_s) for f in self._planned if f.kind in OF_HARDWARE]
        return timelines + [_queued(name, gpus, rng) for name, gpus in self._sets()]

    def _sets(self) -> list[tuple[str, Ints]]:
        """(name, GPUs) of each set that jobs queue for: 8 nodes, 2 nodes, 1 node, 1 GPU."""
        free = self.nodes - NODES_WITH_FAULTS
        widths = [8] * int(0.46 * free / 8) + [2] * int(0.24 * free / 2)
        widths += [1] * (free - sum(widths))
        singles = len(widths) - int(0.08 * free)
        sets, node = [], NODES_WITH_FAULTS
        for position, width in enumerate(widths):
            gpus = self._of_nodes(node, width)
            if position < singles:
                sets.append((f"sim-{node:03d}", gpus))
            else:
                sets += [(f"sim-{node:03d}g{index}", gpus[index : index + 1]) for index in range(len(gpus))]
            node += width
        return sets

    def _of_nodes(self, first: int, count: int) -> Ints:
        return np.arange(first * self.gpus_per_node, (first + count) * self.gpus_per_node, dtype=np.int64)

    def _broken(self, planned: Planned, live_s: int) -> Fault:
        gpus = self._of_nodes(planned.node, 1)
        start_s = live_s + planned.start_s
        return Fault(
            kind=planned.kind,
            cause=planned.cause,
            node=planned.node,
            gpus=gpus[ONE_GPU : ONE_GPU + 1] if planned.one_gpu else gpus,
            job="" if planned.node in SPARE else f"sim-{planned.node:03d}-00",
            start_s=start_s,
            end_s=None if planned.lasts_s is None else start_s + planned.lasts_s,
            evident_s=start_s + EVIDENT_AFTER_S.get(planned.kind, 0),
        )

    def _scene(self, times_s: Ints) -> tuple[Scene, NDArray[np.bool_], NDArray[np.int32], tuple[Job, ...]]:
        """What every GPU does at each of `times_s`, does its job lie on several nodes, and which is it."""
        start_s, end_s = int(times_s[0]), int(times_s[-1]) + 1
        shape = (len(times_s), self.gpus)
        workload = np.full(shape, levels().index["empty"], dtype=np.int16)
        running = np.ones(shape, dtype=np.float32)
        memory = np.zeros(shape)
        dtype_code = np.full(shape, UNKNOWN_U8, dtype=np.uint64)
        used = np.zeros(shape, dtype=np.bool_)
        job = np.full(shape, -1, dtype=np.int32)
        jobs = [each for timeline in self._timelines for each in timeline.within(start_s, end_s)]
        for position, each in enumerate(jobs):
            rows = slice(max(each.start_s - start_s, 0), min(each.end_s, end_s) - start_s)
            seconds = times_s[rows]
            columns = slice(int(each.gpus[0]), int(each.gpus[-1]) + 1)
            job[rows, columns] = position
            memory[rows, columns] = each.memory.at(seconds)[:, None]
            code, runs = self._doing(each, seconds)
            workload[rows, columns] = code
            running[rows, columns] = runs[:, None]
            used[rows, columns] = len(each.gpus) > self.gpus_per_node
            if each.dtype_code is not None:
                dtype_code[rows, columns] = each.dtype_code
        memory[levels().empty[workload]] = 0.0
        scene = Scene.of(
            workload,
            running,
            memory,
            silent=self._at_fault("silent_zeros", times_s),
            dtype_code=dtype_code,
            cooling_lost=self._at_fault("throttling_thermal", times_s),
            brake=self._at_fault("throttling_power", times_s),
            idle_w=self._idle_w,
            lot=self._lot,
        )
        return scene, used, job, tuple(jobs)

    def _doing(self, job: Job, times_s: Ints) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
        """[len(times_s), GPUs of `job`] its workload, and [len(times_s)] the share of each second in which it
        runs."""
        table = levels()
        code = np.empty((len(times_s), len(job.gpus)), dtype=np.int16)
        running = np.ones(len(times_s), dtype=np.float32)
        for segment in job.segments:
            here = (times_s >= segment.start_s) & (times_s < segment.end_s)
            if not here.any():
                continue
            index = table.index[segment.workload]
            code[here] = index
            if index in table.sawtooth_s:
                pattern = self._sawtooth.setdefault(job.seed, sawtooth(*table.sawtooth_s[index], job.seed))
                running[here] = pattern[times_s[here] % len(pattern)]
            elif not table.idle[index] and segment.workload != "start_up":
                code[here & job.checkpointing(times_s)] = table.index["checkpoint"]
            if segment.odd is not None:
                workload, first, last = segment.odd
                code[here, first:last] = table.index[workload]
        return code, running

    def _break(self, gpu: dict[str, NDArray[np.generic]], times_s: Ints) -> tuple[Happening, ...]:
        """What the driver says of broken GPUs, put into the columns; and its events."""
        events = []
        for kind, reads in READS.items():
            broken = self._at_fault(kind, times_s)
            if not broken.any():
                continue
            if kind == "gpu_lost":
                _forget(gpu, broken, broken)
            for name, value in reads.items():
                gpu[name][broken] = value
            for fault in self.faults:
                if kind in XIDS and fault.kind == kind and times_s[0] <= fault.start_s <= times_s[-1]:
                    at_ns = self.start_ns + fault.start_s * SECOND_NS
                    events += [Happening(at_ns, int(one), "xid", XIDS[kind]) for one in fault.gpus]
        return tuple(sorted(events, key=lambda event: event.time_ns))

    def _at_fault(self, kind: str, times_s: Ints) -> NDArray[np.bool_]:
        """[len(times_s), G] does the hardware have a fault of this kind."""
        out = np.zeros((len(times_s), self.gpus), dtype=np.bool_)
        for fault in self.faults:
            if fault.kind == kind and fault.start_s <= times_s[-1]:
                until_s = np.inf if fault.end_s is None else fault.end_s
                out[np.ix_((times_s >= fault.start_s) & (times_s < until_s), fault.gpus)] = True
        return out

    def _node_at_fault(self, kind: str, times_s: Ints, cause: str = "") -> NDArray[np.bool_]:
        """[len(times_s), N] does the node have a fault of this kind, and of this cause if one is named."""
        out = np.zeros((len(times_s), self.nodes), dtype=np.bool_)
        for fault in self.faults:
            if fault.kind == kind and cause in ("", fault.cause):
                until_s = np.inf if fault.end_s is None else fault.end_s
                out[:, fault.node] |= (times_s >= fault.start_s) & (times_s < until_s)
        return out


def _queued(name: str, gpus: Ints, rng: np.random.Generator) -> Timeline:
    """Healthy jobs for ever."""
    return Timeline(queue(name, gpus, np.random.default_rng(rng.integers(2**63))))


COUNTERS_START_BELOW = {
    "energy_j": 10**13,
    "power_cap_s": 10**15,
    "thermal_throttle_s": 10**12,
    "hw_thermal_throttle_s": 10**10,
    "power_brake_s": 10**10,
    "pcie_replays": 20,
}
"""Counters began long before the first sample; upper bounds in whole numbers of their resolution."""


def _lose(gpu: dict[str, NDArray[np.generic]], lost: NDArray[np.float32]) -> None:
    """Make some samples unknown, as happens; `lost` is [n, G] uniform in 0-1."""
    _forget(gpu, lost < NO_SAMPLE_SHARE, lost < NO_SAMPLE_SHARE + NO_GPM_SHARE)


def _forget(
    gpu: dict[str, NDArray[np.generic]], row: NDArray[np.bool_], profiling: NDArray[np.bool_]
) -> None:
    """Make all fields unknown where `row`, the profiling fields where `profiling`; both [n, G]."""
    for name, values in gpu.items():
        gone = profiling if name in GPM_FIELDS else row
        values[gone] = UNKNOWN_U8 if BY_NAME[name].dtype == "u8" else np.nan
