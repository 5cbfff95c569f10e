"""Jobs that hold more GPU than they use, and jobs that only look like it, over their whole life."""

from __future__ import annotations

from dataclasses import dataclass

from unidle_collector.simulator.mechanisms.idle import PROBE
from unidle_collector.simulator.mechanisms.variant import (
    HEALTHY,
    NONE,
    Cycle,
    Host,
    Levels,
    Pipes,
    Range,
    Variant,
)

FEWER, LARGE = "over_provisioned.fewer_gpus", "over_provisioned.large_gpu"
A100, B200 = "NVIDIA A100-SXM4-80GB", "NVIDIA B200"


@dataclass(frozen=True, slots=True)
class LifeVariant:
    """One way in which a job's whole life goes."""

    variant: Variant
    """Its truth is the finding to be told, or whatever else is the matter with it."""
    starts_late_s: Range | None = None
    """The affected GPUs do nothing until then, and from then on what the others do."""


LIFE_VARIANTS = (
    LifeVariant(Variant(
        "two of eight GPUs never opened", "tuning", FEWER, PROBE, process=False, said=True, before=NONE,
        affected=(0.25, 0.25), memory=(0.0, 0.004),
    )),
    LifeVariant(Variant(
        "an interpreter on one GPU of eight", "tuning", FEWER, PROBE, process=False, said=True, before=NONE,
        affected=(0.87, 0.88), memory=(0.0, 0.004),
    )),
    LifeVariant(Variant(
        "a small model that answers now and then", "tuning", LARGE,
        Levels((0.1, 0.25), (0.05, 0.12), (0.0, 0.02), (0.03, 0.12), (0.2, 0.3), (0.02, 0.1), (0.01, 0.1), NONE),
        host=Host(cpu=(0.05, 0.2)), before=NONE, memory=(0.05, 0.2),
    )),
    LifeVariant(Variant(
        "light inference beside nothing else", "tuning", LARGE,
        Levels((0.07, 0.09), (0.03, 0.04), (0.0, 0.001), (0.01, 0.03), (0.185, 0.2), (0.01, 0.03), (0.0, 0.01), NONE),
        before=NONE, memory=(0.2, 0.35), affected=(0.5, 0.5), said=False,
    )),
    LifeVariant(Variant(
        "a second stage that starts after half an hour", "tuning", HEALTHY, affected=(0.5, 0.5), said=True,
        before=NONE,
    ), (1500.0, 2400.0)),
    LifeVariant(Variant(
        "a small model trained hard", "tuning", HEALTHY, Levels(sm=(0.85, 0.92)), before=NONE, memory=(0.05, 0.2),
    )),
    LifeVariant(Variant(
        "a small job that storage starves", "tuning", "starvation.storage", Levels(sm=(0.5, 0.8)),
        host=Host((0.03, 0.1), (0.15, 0.3), (0.4, 0.8), nfs_read=(200, 900)),
        cycle=Cycle((0.1, 0.2), (0.5, 0.9)), before=NONE, memory=(0.1, 0.3),
    )),
    LifeVariant(Variant(
        "a light server that preallocates", "tuning", "starvation.undetermined",
        Levels((0.1, 0.25), (0.05, 0.12), NONE, (0.03, 0.12), (0.2, 0.3), nvlink=NONE),
        before=NONE, memory=(0.8, 0.92),
    )),
    LifeVariant(Variant(
        "uneven ranks of one job", "tuning", "starvation.undetermined",
        Levels((0.2, 0.3), (0.1, 0.2), (0.05, 0.1), (0.05, 0.1), (0.3, 0.4)),
        affected=(0.5, 0.5), before=NONE, memory=(0.1, 0.3), said=True,
    )),
    LifeVariant(Variant(
        "half of a node asked for by habit", "held_out", FEWER, PROBE, process=False, said=True, before=NONE,
        affected=(0.5, 0.5), memory=(0.0, 0.002), models=(A100,),
    )),
    LifeVariant(Variant(
        "three quarters of the GPUs without a rank", "held_out", FEWER, PROBE, process=False, said=True,
        before=NONE, affected=(0.75, 0.75), memory=(0.0, 0.002), models=(B200,),
    )),
    LifeVariant(Variant(
        "embeddings for a small service", "held_out", LARGE,
        Levels((0.26, 0.34), (0.13, 0.2), (0.02, 0.05), (0.13, 0.2), (0.31, 0.38), (0.1, 0.3), (0.1, 0.3), NONE),
        host=Host(cpu=(0.2, 0.45)), before=NONE, memory=(0.02, 0.049), models=(A100,),
    )),
    LifeVariant(Variant(
        "a large card for a classifier, in short bursts", "held_out", LARGE,
        Levels((0.5, 0.8), (0.25, 0.4), (0.05, 0.1), (0.1, 0.2), (0.4, 0.5), nvlink=NONE),
        cycle=Cycle((0.05, 0.12), (0.3, 0.5), together=False), before=NONE, memory=(0.36, 0.45), models=(B200,),
    )),
    LifeVariant(Variant(
        "ranks that join late", "held_out", HEALTHY, affected=(0.25, 0.25), said=True, before=NONE, models=(A100,),
    ), (2500.0, 3000.0)),
    LifeVariant(Variant(
        "molecular dynamics in little memory", "held_out", HEALTHY,
        Levels(sm=(0.6, 0.79), tensor=NONE, dram=(0.05, 0.2), power=(0.5, 0.7), nvlink=NONE),
        pipes=Pipes(fp32=(0.5, 0.8)), before=NONE, memory=(0.01, 0.049), models=(A100,),
    )),
    LifeVariant(Variant(
        "a small job held back by its CPU quota", "held_out", "starvation.cpu_preprocessing",
        Levels(sm=(0.5, 0.8)), host=Host((0.05, 0.2), psi_cpu=(0.3, 0.6), job_throttled=(1.0, 4.0)),
        cycle=Cycle((0.1, 0.2), (0.5, 0.9)), before=NONE, memory=(0.1, 0.3), models=(A100,),
    )),
    LifeVariant(Variant(
        "a light server with its cache preallocated", "held_out", "starvation.undetermined",
        Levels((0.26, 0.34), (0.13, 0.2), (0.02, 0.05), (0.13, 0.2), (0.31, 0.38), nvlink=NONE),
        before=NONE, memory=(0.6, 0.79), models=(B200,),
    )),
    LifeVariant(Variant(
        "a notebook with pauses for thought, all afternoon", "held_out", HEALTHY,
        Levels((0.4, 0.98), (0.3, 0.8), (0.1, 0.4), (0.1, 0.4), (0.35, 0.8)), interactive=True,
        cycle=Cycle((5, 15), (250, 700)), before=NONE, memory=(0.55, 0.8),
    )),
)  # fmt: skip
