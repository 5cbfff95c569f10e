"""Trainings whose steps last seconds: work and waiting are seen apart, and coarse sampling catches either.

Healthy ones reduce their gradients, or save a little, at the end of each step; the others wait there for a slow
rank or a heavy stage.
"""

from dataclasses import replace

from unidle_collector.simulator.mechanisms.variant import (
    HEALTHY,
    SPINNING,
    Cycle,
    Host,
    Levels,
    Variant,
)

STRAGGLER, STAGE = "starvation.straggler", "starvation.pipeline_imbalance"
REDUCES = Levels(
    (0.99, 1.0),
    (0.35, 0.45),
    (0.0, 0.02),
    (0.15, 0.25),
    (0.45, 0.55),
    (0.02, 0.06),
    (0.02, 0.06),
    (60.0, 150.0),
)
UPDATES = Levels(
    (0.97, 1.0), (0.5, 0.65), (0.0, 0.02), (0.7, 0.85), (0.55, 0.7), (0.02, 0.06), (0.02, 0.06), (0.0, 1.0)
)
"""The optimizer goes through all its states: bound by memory bandwidth."""
SLOW = (1.0, 1.0)
A100, B200, H100 = "NVIDIA A100-SXM4-80GB", "NVIDIA B200", "NVIDIA H100 80GB HBM3"

VARIANTS = (
    Variant(
        "steps of seconds, gradients reduced at their end", "tuning", HEALTHY, wait=REDUCES, said=True,
        cycle=Cycle((2.0, 9.0), (0.2, 0.8), steady=True), before=(0.0, 0.0),
    ),
    Variant(
        "gradients of half a minute, reduced between nodes", "tuning", HEALTHY, wait=REDUCES, said=True, nodes=2,
        host=Host(infiniband=(3000, 9000)), cycle=Cycle((25.0, 45.0), (2.0, 4.0), steady=True),
        before=(0.0, 0.0), models=(H100, B200),
    ),
    Variant(
        "steps of ten seconds, an optimizer at their end", "held_out", HEALTHY, wait=UPDATES, said=True,
        cycle=Cycle((9.5, 16.0), (0.9, 1.9), steady=True), before=(0.0, 0.0), models=(A100, H100),
    ),
    Variant(
        "long contexts, a step each minute", "held_out", HEALTHY, Levels(sm=(0.75, 0.9), tensor=(0.5, 0.65)),
        replace(REDUCES, sm=(0.25, 0.34), nvlink=(20.0, 50.0)), said=True, nodes=4,
        host=Host(infiniband=(9500, 20_000)), cycle=Cycle((46.0, 56.0), (4.1, 6.0), steady=True),
        before=(0.0, 0.0), models=(B200,),
    ),
    Variant(
        "one slow rank, steps of seconds", "tuning", STRAGGLER, wait=SPINNING, said=True,
        step_share=(*7 * ((0.5, 0.72),), SLOW), shuffled=True, step_s=(3.0, 12.0), before=(300, 600),
    ),
    Variant(
        "a heavy last stage, steps of seconds", "tuning", STAGE, wait=SPINNING, said=True,
        step_share=(*3 * ((0.55, 0.75),), SLOW), step_s=(3.0, 12.0), before=(0.0, 0.0),
    ),
    Variant(
        "one slow rank, steps of half a minute", "held_out", STRAGGLER,
        Levels(sm=(0.7, 0.81), tensor=(0.3, 0.44)), replace(SPINNING, sm=(0.46, 0.55), nvlink=(7, 20)), said=True,
        step_share=(*7 * ((0.4, 0.49),), SLOW), shuffled=True, step_s=(13.0, 45.0), before=(610, 700),
        models=(A100, B200),
    ),
    Variant(
        "a heavy first stage on its node, steps of half a minute", "held_out", STAGE,
        Levels(sm=(0.7, 0.81), tensor=(0.3, 0.44)), replace(SPINNING, sm=(0.15, 0.24), power=(0.28, 0.33)),
        said=True, nodes=2, host=Host(infiniband=(2100, 6000)), step_share=(SLOW, (0.4, 0.54)),
        step_s=(13.0, 45.0), before=(0.0, 0.0), models=(B200,),
    ),
)  # fmt: skip
