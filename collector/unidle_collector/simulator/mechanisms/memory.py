"""Memory over hours: what ends in out-of-memory, and what only looks like it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from unidle_collector.simulator.mechanisms.variant import Range, Set

Shape = Literal["flat", "warm_up", "dynamic", "cached_evaluation", "leak", "fragmenting"]
FULL = 0.985
"""Share of the memory at which an allocation fails."""


@dataclass(frozen=True, slots=True)
class MemoryVariant:
    """How the memory of one job moves; ratios are of the GPU's memory."""

    name: str
    set: Set
    shape: Shape
    base: Range
    """What it holds once it has started."""
    spread: Range = (0.0, 0.0)
    """Of the logarithm of the activations' size, where they vary."""
    hours_to_full: Range = (1.0, 8.0)
    step: Range = (0.001, 0.004)
    """Of the staircase that a growing allocator shows."""

    @property
    def grows(self) -> bool:
        """Does it end in out-of-memory."""
        return self.shape in ("leak", "fragmenting")


MEMORY_VARIANTS = (
    MemoryVariant("preallocated", "tuning", "flat", (0.75, 0.92)),
    MemoryVariant("caching allocator, full from the first step", "tuning", "warm_up", (0.9, 0.98)),
    MemoryVariant("batches of varying length", "tuning", "dynamic", (0.5, 0.7), (0.1, 0.25)),
    MemoryVariant("a slow leak", "tuning", "leak", (0.4, 0.7), hours_to_full=(2, 8)),
    MemoryVariant("preallocated to the brim", "held_out", "flat", (0.93, 0.975)),
    MemoryVariant("caching allocator, grows over the first minutes", "held_out", "warm_up", (0.6, 0.89)),
    MemoryVariant("sequences with a long tail", "held_out", "dynamic", (0.35, 0.49), (0.26, 0.45)),
    MemoryVariant("an evaluation each hour takes more", "held_out", "cached_evaluation", (0.71, 0.85)),
    MemoryVariant("a fast leak", "held_out", "leak", (0.3, 0.39), hours_to_full=(0.7, 1.9)),
    MemoryVariant("a leak from nearly full", "held_out", "leak", (0.71, 0.84), hours_to_full=(0.8, 3)),
    MemoryVariant(
        "fragmentation", "held_out", "fragmenting", (0.45, 0.65), (0.05, 0.12), (1, 6), (0.005, 0.015)
    ),
)


def memory(
    variant: MemoryVariant, minutes: int, each_s: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], int | None]:
    """([T] used ratio sampled each `each_s` seconds, sample at which an allocation fails or None)."""
    count = minutes * 60 // each_s
    at_s = np.arange(count) * float(each_s)
    base = float(rng.uniform(*variant.base))
    load = np.minimum(1.0, at_s / float(rng.uniform(60, 240)))
    if variant.shape == "flat":
        return base * np.ones(count), None
    if variant.shape == "warm_up":
        steps = np.floor(np.minimum(at_s / float(rng.uniform(240, 540)), 1.0) * 6) / 6
        return base * (0.7 + 0.3 * steps) * load, None
    if variant.shape == "cached_evaluation":
        evaluated = np.where(at_s > 3600, float(rng.uniform(0.03, 0.1)), 0.0)
        return np.minimum(base + evaluated, FULL - 0.003) * load, None
    if variant.shape == "dynamic":
        size = 0.15 * np.exp(rng.normal(0.0, float(rng.uniform(*variant.spread)), count))
        reached = np.maximum.accumulate(base + size)  # a caching allocator keeps what it once took
        return np.minimum(reached, FULL - 0.003) * load, None
    grows = (1.0 - base) / (3600.0 * float(rng.uniform(*variant.hours_to_full))) * np.maximum(at_s - 900, 0)
    if variant.shape == "fragmenting":  # uneven: more where a large block found no hole
        uneven = rng.exponential(1.0, count) * (rng.random(count) < 0.05)
        grows = np.cumsum(uneven) / max(uneven.sum(), 1e-9) * grows[-1]
    step = float(rng.uniform(*variant.step))
    used = base * load + np.floor(grows / step) * step
    full = np.flatnonzero(used >= FULL)
    return np.minimum(used, FULL), int(full[0]) if full.size else None
