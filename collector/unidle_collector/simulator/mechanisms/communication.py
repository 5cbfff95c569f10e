"""Waiting in collectives: kernels spin, so that the GPU looks fully busy."""

from unidle_collector.simulator.mechanisms.variant import NONE, Host, Levels, Variant

TRUTH = "starvation.communication"

VARIANTS = (
    Variant(
        "tensor and pipeline parallel on two nodes", "tuning", TRUTH,
        Levels((0.97, 0.99), (0.45, 0.52), (0.11, 0.16), (0.32, 0.36), (0.59, 0.69), (1.4, 2.3), (1.4, 2.3), (45, 56)),
        host=Host(infiniband=(2000, 9000)), before=NONE, memory=(0.38, 0.51),
    ),
    Variant(
        "all-reduce over InfiniBand, no overlap", "tuning", TRUTH,
        Levels((0.96, 1.0), (0.38, 0.48), (0.1, 0.17), (0.18, 0.28), (0.5, 0.62), (3, 8), (3, 8), (3, 15)),
        host=Host(infiniband=(30_000, 70_000)), before=NONE,
    ),
    Variant(
        "all-to-all of experts over NVLink", "held_out", TRUTH,
        Levels((0.94, 0.969), (0.53, 0.62), (0.05, 0.1), (0.2, 0.31), (0.45, 0.58), (0.1, 0.9), (0.1, 0.9), (100, 260)),
        before=NONE, memory=(0.55, 0.8), models=("NVIDIA B200", "NVIDIA H100 80GB HBM3"),
    ),
    Variant(
        "gradients of a wide layer over a slow fabric", "held_out", TRUTH,
        Levels((0.99, 1.0), (0.32, 0.375), (0.06, 0.095), (0.1, 0.17), (0.4, 0.49), (1.0, 2.9), (1.0, 2.9), (16, 30)),
        host=Host(infiniband=(10_000, 25_000)), before=NONE, memory=(0.52, 0.7),
        models=("NVIDIA A100-SXM4-80GB",),
    ),
)  # fmt: skip
