"""Healthy: compute bound at the power limit, memory-bandwidth bound, checkpoints, evaluation, inference."""

from unidle_collector.simulator.mechanisms.variant import HEALTHY, NONE, Cycle, Host, Levels, Variant

A100, B200 = "NVIDIA A100-SXM4-80GB", "NVIDIA B200"
H100 = "NVIDIA H100 80GB HBM3"

VARIANTS = (
    Variant(
        "compute bound at the power limit", "tuning", HEALTHY,
        Levels(sm=(0.85, 0.9), tensor=(0.55, 0.61), dram=(0.34, 0.4), power=(1.02, 1.2), nvlink=(1.2, 1.8)),
        before=NONE, memory=(0.8, 0.9),
    ),
    Variant(
        "memory-bandwidth bound", "tuning", HEALTHY,
        Levels(sm=(0.5, 0.9), tensor=(0.03, 0.1), dram=(0.68, 0.8), power=(0.6, 0.8)), before=NONE,
    ),
    Variant(
        "checkpoints of all ranks", "tuning", HEALTHY, wait=Levels(
            NONE, NONE, NONE, NONE, (0.18, 0.22), (0.0, 0.01), (2.0, 6.0), NONE
        ), host=Host(disk_written=(200, 600)), cycle=Cycle((500, 900), (8, 25)), before=NONE,
    ),
    Variant(
        "tensor parallel, overlapped", "tuning", HEALTHY,
        Levels(sm=(0.7, 0.8), tensor=(0.3, 0.42), dram=(0.35, 0.45), power=(0.75, 0.9), nvlink=(80, 200)),
        host=Host(infiniband=(500, 3000)), before=NONE,
    ),
    Variant(
        "a decoding server, requests in bursts", "tuning", HEALTHY,
        Levels(sm=(0.75, 0.9), tensor=(0.2, 0.35), dram=(0.5, 0.75), power=(0.6, 0.8)),
        cycle=Cycle((20, 90), (3, 20), together=False), before=NONE, memory=(0.8, 0.95),
    ),
    Variant(
        "compute bound below its limit", "held_out", HEALTHY,
        Levels(sm=(0.78, 0.84), tensor=(0.4, 0.5), dram=(0.25, 0.33), power=(0.82, 0.97), nvlink=(10, 40)),
        before=NONE, models=(A100, B200),
    ),
    Variant(
        "compute bound, capped hard", "held_out", HEALTHY,
        Levels(sm=(0.91, 0.97), tensor=(0.63, 0.75), dram=(0.42, 0.5), power=(1.25, 1.5), nvlink=(2, 12)),
        before=NONE, models=(H100, B200),
    ),
    Variant(
        "memory-bandwidth bound decoding", "held_out", HEALTHY,
        Levels(sm=(0.35, 0.48), tensor=(0.11, 0.18), dram=(0.81, 0.92), power=(0.5, 0.59), nvlink=(20, 60)),
        before=NONE, models=(H100, A100),
    ),
    Variant(
        "checkpoints and an evaluation each epoch", "held_out", HEALTHY, wait=Levels(
            NONE, NONE, NONE, NONE, (0.17, 0.2), (0.0, 0.01), (0.5, 1.5), NONE
        ), host=Host(disk_written=(700, 1500), iowait=(0.02, 0.05)), cycle=Cycle((240, 420), (2, 7)),
        before=NONE, models=(H100,),
    ),
    Variant(
        "a slow model load, then training", "held_out", HEALTHY,
        Levels(sm=(0.81, 0.9), power=(0.9, 1.1)), before=NONE, load_s=(300, 560), models=(H100, B200),
    ),
    Variant(
        "a steady inference server", "held_out", HEALTHY,
        Levels((0.96, 1.0), (0.66, 0.78), (0.2, 0.29), (0.46, 0.58), (0.55, 0.74), nvlink=(5, 18)),
        before=NONE, memory=(0.92, 0.97),
    ),
    Variant(
        "a server of several small models, with pauses", "held_out", HEALTHY,
        Levels(sm=(0.91, 0.97), tensor=(0.36, 0.5), dram=(0.3, 0.49), power=(0.81, 0.95)),
        cycle=Cycle((91, 300), (2, 40), together=False), before=NONE, memory=(0.6, 0.79), models=(A100, H100),
    ),
)  # fmt: skip
