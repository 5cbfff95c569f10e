"""A straggler: one GPU or one node takes longer for its part of each step, and the others spin until it comes."""

from dataclasses import replace

from unidle_collector.simulator.mechanisms.variant import (
    HEALTHY,
    NONE,
    SPINNING,
    Cycle,
    Host,
    Levels,
    Variant,
)

TRUTH = "starvation.straggler"
SLOW = (1.0, 1.0)
FABRIC = Host(infiniband=(4000, 15_000))

VARIANTS = (
    Variant(
        "one rank gets the long sequences", "tuning", TRUTH, wait=SPINNING, said=True,
        step_share=((0.5, 0.72), (0.5, 0.72), (0.5, 0.72), (0.5, 0.72), (0.5, 0.72), (0.5, 0.72), (0.5, 0.72), SLOW),
        shuffled=True, before=(300, 600),
    ),
    Variant(
        "one node of two slows down", "tuning", TRUTH, wait=SPINNING, said=True, nodes=2, host=FABRIC,
        step_share=((0.5, 0.72), SLOW), shuffled=True, before=(300, 600),
    ),
    Variant(
        "one node of four slows down, the others poll", "tuning", TRUTH,
        wait=replace(SPINNING, sm=(0.14, 0.2), power=(0.34, 0.4), nvlink=(3, 6)), said=True, nodes=4,
        host=Host(infiniband=(6000, 15_500)), step_share=((0.25, 0.38), (0.25, 0.38), (0.25, 0.38), SLOW),
        shuffled=True, before=(300, 600),
    ),
    Variant(
        "one rank is slow from the first step on", "held_out", TRUTH, Levels(sm=(0.7, 0.81), tensor=(0.3, 0.44)),
        replace(SPINNING, sm=(0.46, 0.55), power=(0.45, 0.55), nvlink=(7, 20)), said=True,
        step_share=((0.4, 0.49), (0.4, 0.49), (0.4, 0.49), (0.4, 0.49), (0.4, 0.49), (0.4, 0.49), (0.4, 0.49), SLOW),
        shuffled=True, before=NONE, models=("NVIDIA B200", "NVIDIA A100-SXM4-80GB"),
    ),
    Variant(
        "a node of four turns slow after a while", "held_out", TRUTH,
        Levels(sm=(0.75, 0.9), tensor=(0.35, 0.6), nvlink=(7, 30)),
        replace(SPINNING, sm=(0.15, 0.24), power=(0.28, 0.33), nvlink=(7, 30)), said=True, nodes=4,
        host=Host(infiniband=(16_000, 40_000)),
        step_share=((0.3, 0.49), (0.3, 0.49), (0.3, 0.49), SLOW), shuffled=True, before=(610, 900),
        models=("NVIDIA H100 80GB HBM3", "NVIDIA B200"),
    ),
    Variant(
        "one rank logs while the others wait", "tuning", HEALTHY,
        wait=Levels((0.99, 1.0), (0.02, 0.06), (0.0, 0.005), (0.0, 0.01), (0.22, 0.3), nvlink=(0.0, 0.05)), said=True,
        cycle=Cycle((240, 400), (5, 12)), affected=(0.87, 0.88), before=NONE,
    ),
    Variant(
        "one rank evaluates while the others wait", "held_out", HEALTHY,
        wait=Levels((0.97, 1.0), (0.07, 0.12), (0.0, 0.005), (0.0, 0.01), (0.31, 0.4), nvlink=(0.06, 0.15)), said=True,
        nodes=2, host=FABRIC, cycle=Cycle((500, 800), (13, 25)), affected=(0.87, 0.88), before=NONE,
    ),
)  # fmt: skip
