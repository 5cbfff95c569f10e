"""Small kernels: the GPU is busy with launches, most of it stays empty."""

from unidle_collector.simulator.mechanisms.variant import NONE, Host, Levels, Variant

TRUTH = "starvation.small_kernels"

VARIANTS = (
    Variant(
        "inference with speculative decoding", "tuning", TRUTH,
        Levels((0.64, 0.74), (0.21, 0.27), (0.03, 0.045), (0.13, 0.165), (0.27, 0.32), (0.2, 0.35), (0.1, 0.2), NONE),
        host=Host(cpu=(0.03, 0.1)), before=NONE, memory=(0.18, 0.28),
    ),
    Variant(
        "training of a tiny model", "tuning", TRUTH,
        Levels((0.85, 0.95), (0.28, 0.4), (0.02, 0.06), (0.08, 0.15), (0.28, 0.38), nvlink=(0, 1)),
        before=NONE, memory=(0.05, 0.15),
    ),
    Variant(
        "eager mode, thousands of launches a step", "held_out", TRUTH,
        Levels((0.96, 1.0), (0.12, 0.2), (0.005, 0.02), (0.02, 0.07), (0.2, 0.265), (0.0, 0.02), (0.0, 0.02), NONE),
        before=NONE, memory=(0.02, 0.049), models=("NVIDIA A100-SXM4-80GB", "NVIDIA B200"),
    ),
    Variant(
        "reinforcement learning, small batches", "held_out", TRUTH,
        Levels((0.5, 0.63), (0.1, 0.2), (0.02, 0.029), (0.05, 0.12), (0.2, 0.26), (0.36, 0.7), (0.05, 0.3), NONE),
        host=Host(cpu=(0.3, 0.6)), before=NONE, memory=(0.29, 0.4),
    ),
)  # fmt: skip
