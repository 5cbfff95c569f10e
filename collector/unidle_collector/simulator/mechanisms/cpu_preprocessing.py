"""CPU preprocessing: decoding pins the cores that the job has."""

from unidle_collector.simulator.mechanisms.variant import NONE, Cycle, Host, Levels, Variant

TRUTH = "starvation.cpu_preprocessing"

VARIANTS = (
    Variant(
        "all cores of the node pinned", "tuning", TRUTH, Levels(sm=(0.7, 0.85), power=(0.75, 0.95)),
        host=Host((0.92, 0.99), (0.0, 0.004), psi_cpu=(0.6, 0.95)), cycle=Cycle((0.6, 1.2), (4, 6)), before=NONE,
    ),
    Variant(
        "a quota of few cores", "tuning", TRUTH, Levels(sm=(0.65, 0.8), power=(0.7, 0.9)),
        host=Host((0.1, 0.3), (0.0, 0.005), psi_cpu=(0.4, 0.8), job_throttled=(2.0, 8.0)),
        cycle=Cycle((0.4, 0.9), (1.0, 2.2)), before=(300, 600),
    ),
    Variant(
        "nearly all cores, others on the node", "held_out", TRUTH, Levels(sm=(0.55, 0.69), power=(0.6, 0.74)),
        host=Host((0.86, 0.915), (0.005, 0.02), psi_cpu=(0.3, 0.59)),
        cycle=Cycle((0.2, 0.39), (0.4, 0.9), together=False), before=(610, 800),
        models=("NVIDIA A100-SXM4-80GB",),
    ),
    Variant(
        "two cores per GPU by cgroup", "held_out", TRUTH, Levels(sm=(0.81, 0.93), power=(0.9, 1.05)),
        host=Host((0.05, 0.09), (0.0, 0.003), psi_cpu=(0.15, 0.39), job_throttled=(0.6, 1.9)),
        cycle=Cycle((1.3, 3.0), (6.1, 14)), before=NONE, models=("NVIDIA B200", "NVIDIA H100 80GB HBM3"),
    ),
)  # fmt: skip
