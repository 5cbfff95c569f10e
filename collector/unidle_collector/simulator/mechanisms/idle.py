"""Idle: somebody has the GPU, nothing runs."""

from unidle_collector.simulator.mechanisms.variant import NONE, Cycle, Levels, Variant

HELD, NO_PROCESS = "idle.held", "idle.no_process"
PROBE = Levels((0.0, 0.004), (0.0, 0.002), NONE, (0.0, 0.002), (0.165, 0.18), NONE, NONE, NONE)

VARIANTS = (
    Variant("a loaded model without requests", "tuning", HELD, PROBE, memory=(0.15, 0.3), before=NONE),
    Variant("training that stopped", "tuning", HELD, PROBE, before=(400, 700)),
    Variant(
        "allocated, no process", "tuning", NO_PROCESS, PROBE, process=False, said=True, before=NONE,
        memory=(0.001, 0.004),
    ),
    Variant(
        "a preallocating server that nobody asks", "held_out", HELD, PROBE, memory=(0.9, 0.97), before=NONE,
        models=("NVIDIA B200", "NVIDIA H100 80GB HBM3"),
    ),
    Variant(
        "half a node held, half at work", "held_out", HELD, PROBE, memory=(0.31, 0.6), affected=(0.5, 0.5),
        before=(200, 390),
    ),
    Variant(
        "a notebook with a cell now and then", "held_out", HELD,
        Levels((0.5, 0.95), (0.3, 0.7), (0.1, 0.3), (0.1, 0.3), (0.4, 0.7)), memory=(0.05, 0.14),
        cycle=Cycle((5, 40), (200, 900)), before=NONE, load_s=(10, 19),
    ),
    Variant(
        "a job that uses half of what it asked for", "held_out", NO_PROCESS, PROBE, process=False, said=True,
        affected=(0.25, 0.5), before=NONE, memory=(0.0, 0.0009), models=("NVIDIA A100-SXM4-80GB",),
    ),
)  # fmt: skip
