"""One job of a healthy variant on some GPUs of a fleet: when it lives, and what was drawn for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from unidle_collector.simulator.mechanisms.variant import EVEN_SHARE, Host, Levels, Variant
from unidle_collector.simulator.trial import START_UP, START_UP_HOST, cycle_pieces

Bools = NDArray[np.bool_]
Doubles = NDArray[np.float64]

PER_NODE = 8
LEVELS = tuple(Levels.__dataclass_fields__)
HOST = tuple(Host.__dataclass_fields__)
SESSION_UTIL = 0.55
"""A session that never fills half of its GPU is told, rightly, to be on too large a one: not drawn here."""
APART_S = 600.0
"""GPUs that pause on their own are up to this far apart."""
LONGEST_START_S = 590.0
"""Allocation to first step, else the image was there before: it is the start that is held against nobody."""

NUMBERS = (
    *(f"work.{name}" for name in LEVELS),
    *(f"wait.{name}" for name in LEVELS),
    *(f"load.{name}" for name in LEVELS),
    *(f"host.{name}" for name in HOST),
    *(f"host_wait.{name}" for name in HOST),
    *(f"host_load.{name}" for name in HOST),
    "fp32", "fp64", "dtype", "memory",
)  # fmt: skip
AT = {name: number for number, name in enumerate(NUMBERS)}
"""Name of a number that is drawn for a job -> its place."""


@dataclass(slots=True)
class Job:
    """One job on one place."""

    name: str
    variant: Variant
    place: int
    held_s: float
    opened_s: float
    loaded_s: float
    end_s: float
    numbers: Doubles
    """[NUMBERS] what was drawn for it."""
    share: Doubles
    """[GPUs] of each step in which it works."""
    waits: Bools
    """[GPUs] does it take part in the job's pauses."""
    apart_s: Doubles
    """[GPUs] behind the first one in its cycle."""
    edges: Doubles = field(default_factory=lambda: np.zeros(1))
    worked: Doubles = field(default_factory=lambda: np.zeros(1))
    """Seconds of work by each of `edges`."""


def fitting(variants: Sequence[Variant], size: int, mig: bool, said: bool) -> list[Variant]:
    """Those that make sense on `size` GPUs; of a session on which nobody says so it cannot be known."""
    return [one for one in variants if _fits(one, size, mig) and (said or not one.interactive)]


def drawn(
    name: str, variant: Variant, place: int, size: int, times_s: tuple[float, float, float],
    rng: np.random.Generator,
) -> Job:  # fmt: skip
    """A job on `size` GPUs; `times_s`: when it is held, how long until it opens them, how long it runs."""
    held_s, opens_s, runs_s = times_s
    load_s = float(rng.uniform(*variant.load_s))
    opened_s = held_s + min(opens_s, max(0.0, LONGEST_START_S - load_s))
    job = Job(
        name=name,
        variant=variant,
        place=place,
        held_s=held_s,
        opened_s=opened_s,
        loaded_s=opened_s + load_s,
        end_s=opened_s + load_s + runs_s,
        numbers=_numbers(variant, rng),
        share=_shares(variant, size, rng),
        waits=rng.random(size) <= variant.affected[1],
        apart_s=np.zeros(size),
    )
    if variant.cycle is not None:
        if not variant.cycle.together:
            job.apart_s = rng.uniform(0.0, APART_S, size)
        _cycle(job, rng)
    return job


def _cycle(job: Job, rng: np.random.Generator) -> None:
    cycle = job.variant.cycle
    assert cycle is not None
    begin_s = job.loaded_s - APART_S - 1.0
    shortest_s = cycle.busy_s[0] + cycle.wait_s[0]
    pieces = cycle_pieces(cycle, int((job.end_s - begin_s) / shortest_s) + 2, rng)
    lengths_s, work_s = pieces.ravel(), (pieces * (1.0, 0.0)).ravel()
    job.edges = begin_s + np.concatenate(([0.0], np.cumsum(lengths_s)))
    job.worked = np.concatenate(([0.0], np.cumsum(work_s)))


def _numbers(variant: Variant, rng: np.random.Generator) -> Doubles:
    """[NUMBERS] draw from the ranges of `variant`."""
    groups = (
        *((part, LEVELS) for part in (variant.work, variant.wait, START_UP)),
        *((part, HOST) for part in (variant.host, variant.wait_host or variant.host, START_UP_HOST)),
    )
    ends = [getattr(part, name) for part, names in groups for name in names]
    ends += [variant.pipes.fp32, variant.pipes.fp64, (variant.pipes.dtype_code,) * 2, variant.memory]
    low, high = np.array(ends).T
    out: Doubles = low + (high - low) * rng.random(low.size)
    if variant.interactive:
        out[AT["work.util"]] = max(out[AT["work.util"]], SESSION_UTIL)
    if variant.wait_host is None:  # the same draw: the host does not change while the job waits
        host, wait = AT["host.cpu"], AT["host_wait.cpu"]
        out[wait : wait + len(HOST)] = out[host : host + len(HOST)]
    return out


def _shares(variant: Variant, size: int, rng: np.random.Generator) -> Doubles:
    """[GPUs] of each step in which they work; nearly even ones only are healthy."""
    if not variant.step_share:
        return np.ones(size)
    low, high = np.array(variant.step_share).T
    assert min(low) >= EVEN_SHARE, variant.name
    return np.repeat(low + (high - low) * rng.random(low.size), size // low.size)


def _fits(variant: Variant, size: int, mig: bool) -> bool:
    nodes = max(1, size // PER_NODE)
    if variant.interactive:
        return size <= 2
    blocks = len(variant.step_share)
    alone = variant.affected[1] < 1 or blocks
    if mig or size == 1:
        return not alone and variant.nodes == 1 and variant.process
    return variant.nodes in (1, nodes) and (not blocks or size % blocks == 0)
