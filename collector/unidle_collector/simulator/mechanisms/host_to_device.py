"""Transfers between host and device: offload of parameters or optimizer, blocking copies."""

from unidle_collector.simulator.mechanisms.variant import NONE, Cycle, Levels, Variant

TRUTH = "starvation.host_to_device"

VARIANTS = (
    Variant(
        "CPU offload under FSDP", "tuning", TRUTH,
        Levels((0.7, 0.85), (0.48, 0.58), (0.3, 0.38), (0.2, 0.26), (0.45, 0.82), (1.2, 1.8), (0.6, 1.2), (22, 32)),
        Levels(NONE, NONE, NONE, NONE, (0.165, 0.2), (1.1, 1.7), (0.5, 1.1), (0.0, 1.0)),
        cycle=Cycle((1.2, 3.0), (7, 14)), before=NONE, memory=(0.35, 0.45),
    ),
    Variant(
        "optimizer states come over PCIe each step", "held_out", TRUTH,
        Levels((0.86, 1.0), (0.6, 0.8), (0.39, 0.5), (0.27, 0.4), (0.7, 0.9), (0.05, 0.3), (0.05, 0.3), (1, 8)),
        Levels(NONE, NONE, NONE, NONE, (0.2, 0.26), (6, 18), (6, 18), NONE),
        cycle=Cycle((0.5, 1.1), (2.0, 5.0)), before=NONE, memory=(0.5, 0.8), models=("NVIDIA A100-SXM4-80GB",),
    ),
    Variant(
        "blocking copies of pageable memory", "held_out", TRUTH,
        Levels((0.86, 1.0), (0.65, 0.85), (0.39, 0.55), (0.3, 0.42), (0.66, 0.9), (0.1, 0.4), (0.0, 0.05), (1, 8)),
        Levels(NONE, NONE, NONE, NONE, (0.18, 0.22), (2.2, 5.0), (0.0, 0.1), NONE),
        cycle=Cycle((0.1, 0.35), (0.25, 0.9), together=False), before=(300, 700), memory=(0.15, 0.34),
        models=("NVIDIA H100 80GB HBM3", "NVIDIA B200"),
    ),
)  # fmt: skip
