"""What a calibrated cluster shows: samples of all its GPUs at many instants, allocated or not.

Jobs come from the queue (`queueing`), levels from the classes of `clusters.toml`, power and heat from
`physics`, on A100s. A job is of one class, at one place in it; its GPUs and its instants differ a little.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from unidle_collector.simulator.clusters import Cluster, Three, Work
from unidle_collector.simulator.hardware import Hardware, hardware
from unidle_collector.simulator.physics import Physics
from unidle_collector.simulator.queueing import Placed, Run, arrivals, schedule

Floats = NDArray[np.float64]

GPUS_PER_NODE = 8
FILL = 2 / 3
"""Share of the time in which queue and GPUs fill up: some jobs run for weeks."""
SETTLE_S = 60
"""Seconds of physics before each sample."""
WITHIN_JOB = 0.08
"""Spread of a GPU's place in its class at an instant around that of its job: assumption."""
DEMAND_SPREAD = 0.02
"""Spread of the power that is asked for from second to second: assumption."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """A cluster, run and looked at."""

    gpus: int
    runs: tuple[Run, ...]
    """Of each partition."""
    begin_s: float
    """Before it the queue fills; nothing is counted."""
    end_s: float
    signals: dict[str, Floats]
    """`gpu_util_pct`, `sm_active_pct`, `gpu_mem_used_pct`, `gpu_power_w`, `gpu_core_temp_c` -> [samples]."""


def a100(cluster: Cluster) -> Hardware:
    """The GPU of the cluster: A100 SXM, 400 W, 80 GB (NVIDIA's data sheet), its thermals as fitted."""
    return replace(
        hardware(),
        model="NVIDIA A100-SXM4-80GB",
        power_limit_w=400.0,
        power_hold_ratio=1.0,
        temperature_limit_c=85.0,
        slowdown_margin_c=-4.0,
        inlet_c=cluster.inlet_c,
        thermal_resistance_c_per_w=cluster.thermal_resistance_c_per_w,
    )


def sample(cluster: Cluster, seed: int, nodes: int = 128, days: int = 90, instants: int = 240) -> Sampled:
    """Run `cluster` for `days`, the first two thirds to fill up; look at all GPUs `instants` times."""
    rng = np.random.default_rng([seed, 11])
    end_s = days * 86_400.0
    gpus = nodes * GPUS_PER_NODE
    runs = _partitions(cluster, nodes, end_s, rng)
    placed = sorted((one for run in runs for one in run.placed), key=lambda one: one.start_s)
    begin_s = FILL * end_s
    work = _classes(placed, cluster.work)
    place = rng.random(len(placed))
    hw = a100(cluster)
    inlet_c = hw.inlet_c + rng.normal(0.0, cluster.inlet_spread_c, gpus)
    parts = [
        _look(cluster, hw, inlet_c, *_at(placed, work, place, time_s, gpus), rng)
        for time_s in np.sort(rng.uniform(begin_s, end_s, instants))
    ]
    signals = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Sampled(gpus, runs, begin_s, end_s, signals)


def _partitions(cluster: Cluster, nodes: int, end_s: float, rng: np.random.Generator) -> tuple[Run, ...]:
    """Each partition run on its own nodes."""
    edges = np.rint(np.cumsum([0.0, *(share for share, _ in cluster.partitions)]) * nodes).astype(int)
    runs = []
    for (_, load), first, last in zip(cluster.partitions, edges, edges[1:], strict=False):
        wanted = arrivals(cluster.jobs, int(last - first) * GPUS_PER_NODE, load, end_s, rng)
        run = schedule(wanted, cluster.jobs, int(last - first), GPUS_PER_NODE, end_s)
        run.placed = [replace(one, gpus=one.gpus + first * GPUS_PER_NODE) for one in run.placed]
        runs.append(run)
    return tuple(runs)


def _classes(placed: list[Placed], work: tuple[Work, ...]) -> NDArray[np.intp]:
    """[jobs] the class of each, so that every class has its share of the GPU time all along."""
    shares = np.array([one.share for one in work])
    given = np.zeros(len(work))
    out = np.empty(len(placed), dtype=np.intp)
    for number, one in enumerate(placed):
        out[number] = int((given / shares).argmin())
        given[out[number]] += one.gpus.size * one.job.runs_s
    return out


def _at(
    placed: list[Placed], work: NDArray[np.intp], place: Floats, time_s: float, gpus: int
) -> tuple[NDArray[np.intp], Floats]:
    """([GPUs] class of the job on it, -1 for none; [GPUs] the job's place in its class)."""
    kind, where = np.full(gpus, -1, dtype=np.intp), np.zeros(gpus)
    for number, one in enumerate(placed):
        if one.start_s <= time_s < one.end_s:
            kind[one.gpus], where[one.gpus] = work[number], place[number]
    return kind, where


def _look(
    cluster: Cluster, hw: Hardware, inlet_c: Floats, kind: NDArray[np.intp], place: Floats,
    rng: np.random.Generator,
) -> dict[str, Floats]:  # fmt: skip
    """One instant of all GPUs."""
    near = np.abs(place + WITHIN_JOB * rng.standard_normal(place.size))
    near = np.where(near > 1.0, 2.0 - near, near)
    held = kind >= 0
    level = {
        name: np.where(held, _levels([getattr(one, name) for one in cluster.work], kind, near), 0.0)
        for name in ("util", "sm", "memory")
    }
    floor_w = np.interp(rng.random(place.size), (0.0, 0.5, 1.0), cluster.empty_w)
    demand_w = np.empty((SETTLE_S, place.size))
    demand_w[:-1] = np.where(held, _levels([one.warm for one in cluster.work], kind, near), floor_w)
    demand_w[-1] = np.where(held, _levels([one.power for one in cluster.work], kind, near), floor_w)
    demand_w *= 1.0 + np.where(held, DEMAND_SPREAD, 0.0) * rng.standard_normal(demand_w.shape)
    never = np.zeros(demand_w.shape, dtype=np.bool_)
    low_w = np.broadcast_to(floor_w, never.shape)
    motion = Physics(hw, inlet_c).run(np.maximum(demand_w, low_w), low_w, never, never)
    meter = 1.0 + np.where(held, cluster.meter_spread, 0.003) * rng.standard_normal(place.size)
    return {
        "gpu_util_pct": np.rint(level["util"]),
        "sm_active_pct": level["sm"],
        "gpu_mem_used_pct": level["memory"],
        "gpu_power_w": motion.power_w[-1] * meter,
        "gpu_core_temp_c": np.rint(motion.temperature_c[-1]),
    }


def _levels(knots: list[Three], kind: NDArray[np.intp], near: Floats) -> Floats:
    """[GPUs] each at its place between the lowest, the middle and the highest of its class."""
    low, middle, high = np.array(knots).T[:, np.maximum(kind, 0)]
    out: Floats = np.where(
        near < 0.5, low + (middle - low) * 2 * near, middle + (high - middle) * (2 * near - 1)
    )
    return out
