"""Stages of a pipeline that do not take the same time: the light ones spin until the heavy one is done."""

from dataclasses import replace

from unidle_collector.simulator.mechanisms.variant import HEALTHY, NONE, SPINNING, Host, Levels, Variant

TRUTH = "starvation.pipeline_imbalance"
HEAVY = (1.0, 1.0)

VARIANTS = (
    Variant(
        "four stages, the loss makes the last one heavy", "tuning", TRUTH, wait=SPINNING, said=True,
        step_share=((0.55, 0.75), (0.55, 0.75), (0.55, 0.75), HEAVY), before=NONE,
    ),
    Variant(
        "two stages on two nodes, the first one heavy", "tuning", TRUTH, wait=SPINNING, said=True, nodes=2,
        host=Host(infiniband=(300, 2000)), step_share=(HEAVY, (0.55, 0.68)), before=NONE,
    ),
    Variant(
        "four stages, nearly even", "tuning", HEALTHY, wait=SPINNING, said=True,
        step_share=((0.93, 0.96), (0.97, 1.0), (0.97, 1.0), (0.95, 1.0)), before=NONE,
    ),
    Variant(
        "four stages of uneven layers", "held_out", TRUTH,
        Levels(sm=(0.7, 0.81), tensor=(0.3, 0.44), nvlink=(20, 60)),
        replace(SPINNING, sm=(0.46, 0.55), power=(0.45, 0.55), nvlink=(10, 30)), said=True,
        step_share=((0.45, 0.54), HEAVY, (0.76, 0.85), (0.6, 0.7)), before=NONE,
        models=("NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3"),
    ),
    Variant(
        "four stages over four nodes, a heavy vocabulary", "held_out", TRUTH,
        Levels(tensor=(0.35, 0.6), nvlink=(30, 90)),
        replace(SPINNING, sm=(0.15, 0.24), power=(0.28, 0.33), nvlink=(15, 40)), said=True, nodes=4,
        host=Host(infiniband=(2100, 6000)),
        step_share=((0.4, 0.54), (0.4, 0.54), (0.4, 0.54), HEAVY), before=NONE, models=("NVIDIA B200",),
    ),
    Variant(
        "two stages, one a layer more", "held_out", HEALTHY,
        wait=replace(SPINNING, sm=(0.46, 0.55), power=(0.45, 0.55), nvlink=(7, 20)), said=True, nodes=2,
        host=Host(infiniband=(2100, 6000)), step_share=((0.9, 0.929), HEAVY), before=NONE,
        models=("NVIDIA A100-SXM4-80GB", "NVIDIA B200"),
    ),
)  # fmt: skip
