"""What is smaller than a whole GPU and still enough: MIG instances from data/mig.toml, cheaper models from
data/gpus.toml.

Room is left as the peers leave it: memory for 1.2 times the most that was used (Job Defense Shield), and
compute for 1.25 times what 95 % of the time needed, so that it would run at 80 %.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from unidle_collector.catalogue import catalogue

GB = 1e9
MEMORY_ROOM, COMPUTE_ROOM = 1.2, 1.25
USABLE = 0.95
"""Of a profile's nominal memory: 1g.10gb shows 9.5 to 9.8 GB."""
SAME_MEMORY = 0.15
"""Drivers give the memory of an 80 GB card as 79.6 to 85.9 GB, and of a 180 GB one as 192 GB or less."""


@dataclass(frozen=True, slots=True)
class Slice:
    """A MIG instance that could be asked for instead of a whole GPU."""

    profile: str
    share: float
    """Of the GPU's compute, 0-1."""
    memory_bytes: float


@cache
def slices() -> tuple[tuple[str, float, tuple[Slice, ...]], ...]:
    """(part of the model's name, its memory in bytes, profiles from the smallest)."""
    text = files("unidle_collector").joinpath("data/mig.toml").read_text(encoding="utf-8")
    return tuple(
        (row["match"], row["memory_gb"] * GB, tuple(_slice(name, row["parts"]) for name in row["profiles"]))
        for row in tomllib.loads(text)["gpu"]
    )


def _slice(profile: str, parts: int) -> Slice:
    compute, memory = profile.split(".")
    return Slice(profile, int(compute.rstrip("g")) / parts, int(memory.removesuffix("gb")) * GB * USABLE)


def slice_for(model: str, total_bytes: float, peak_bytes: float, busy_ratio: float) -> Slice | None:
    """The smallest MIG instance of `model` that holds what was used; None where there is none, or a number
    is not known (NaN)."""
    for match, memory_bytes, profiles in slices():
        if match in model and abs(total_bytes / memory_bytes - 1) <= SAME_MEMORY:
            enough = (
                one
                for one in profiles
                if one.memory_bytes >= MEMORY_ROOM * peak_bytes and one.share >= COMPUTE_ROOM * busy_ratio
            )
            return next(enough, None)
    return None


def cheaper_model(model: str, peak_bytes: float, busy_ratio: float) -> str | None:
    """The cheapest model of the catalogue that costs less than `model` and does the same work.

    Judged by dense BF16 throughput and memory alone; None where either is not known of `model`.
    """
    mine = catalogue().model(model)
    if mine is None or mine.bf16_tflops is None or mine.eur_per_h is None:
        return None
    needed_tflops = COMPUTE_ROOM * busy_ratio * mine.bf16_tflops
    fitting = [
        (other.eur_per_h, other.match)
        for other in catalogue().models
        if other.eur_per_h is not None
        and other.eur_per_h < mine.eur_per_h
        and (other.bf16_tflops or 0.0) >= needed_tflops
        and (other.memory_gb or 0.0) * GB >= MEMORY_ROOM * peak_bytes
    ]
    return min(fitting)[1] if fitting else None
