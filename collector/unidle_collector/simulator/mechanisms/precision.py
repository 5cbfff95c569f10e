"""Float work on the ordinary pipes: trainings that forgot the tensor cores, and work that has no use for them."""

from unidle_collector.simulator.mechanisms.variant import HEALTHY, NONE, Levels, Pipes, Variant

A100, B200 = "NVIDIA A100-SXM4-80GB", "NVIDIA B200"
TRUTH = "starvation.precision"
FLOAT32, TF32, FLOAT64 = 1.0, 2.0, 5.0
"""`dtype_code`s."""

VARIANTS = (
    Variant(
        "float32 training of a transformer", "tuning", TRUTH,
        Levels(sm=(0.85, 0.95), tensor=(0.0, 0.004), dram=(0.15, 0.3), power=(0.6, 0.8)),
        pipes=Pipes(fp32=(0.55, 0.8), dtype_code=FLOAT32), before=NONE,
    ),
    Variant(
        "float32 convolutions with gaps between the kernels", "tuning", TRUTH,
        Levels(sm=(0.66, 0.78), tensor=(0.0, 0.008), dram=(0.3, 0.45), power=(0.5, 0.65)),
        pipes=Pipes(fp32=(0.42, 0.54), dtype_code=FLOAT32), before=NONE,
    ),
    Variant(
        "float32 training whose head computes in half precision", "tuning", TRUTH,
        Levels(sm=(0.52, 0.65), tensor=(0.002, 0.016), dram=(0.2, 0.34), power=(0.45, 0.6)),
        pipes=Pipes(fp32=(0.31, 0.41), dtype_code=FLOAT32), before=NONE,
    ),
    Variant(
        "a simulation in float32", "tuning", HEALTHY,
        Levels(sm=(0.8, 0.95), tensor=NONE, dram=(0.1, 0.4), power=(0.5, 0.9), nvlink=(0, 5)),
        pipes=Pipes(fp32=(0.35, 0.6)), before=NONE, memory=(0.05, 0.3),
    ),
    Variant(
        "a solver in float64", "tuning", HEALTHY,
        Levels(sm=(0.75, 0.95), tensor=NONE, dram=(0.2, 0.5), power=(0.6, 1.0)),
        pipes=Pipes(fp32=(0.0, 0.05), fp64=(0.4, 0.8)), before=NONE,
    ),
    Variant(
        "float32 training bound by memory bandwidth", "tuning", HEALTHY,
        Levels(sm=(0.75, 0.9), tensor=(0.0, 0.004), dram=(0.66, 0.78), power=(0.6, 0.8)),
        pipes=Pipes(fp32=(0.36, 0.5), dtype_code=FLOAT32), before=NONE,
    ),
    Variant(
        "float32 training with TF32 products", "tuning", HEALTHY,
        Levels(sm=(0.82, 0.92), tensor=(0.25, 0.4), dram=(0.3, 0.45), power=(0.8, 1.0)),
        pipes=Pipes(fp32=(0.1, 0.2), dtype_code=TF32), before=NONE,
    ),
    Variant(
        "float32 training of a large model, all products on CUDA cores", "held_out", TRUTH,
        Levels(sm=(0.93, 0.99), tensor=(0.0, 0.001), dram=(0.05, 0.14), power=(0.81, 1.0), nvlink=(10, 30)),
        pipes=Pipes(fp32=(0.81, 0.95), dtype_code=FLOAT32), before=NONE, models=(A100,),
    ),
    Variant(
        "float32 training with a few half-precision kernels", "held_out", TRUTH,
        Levels(sm=(0.57, 0.65), tensor=(0.009, 0.015), dram=(0.35, 0.5), power=(0.45, 0.6)),
        pipes=Pipes(fp32=(0.38, 0.48), dtype_code=FLOAT32), before=NONE, models=(B200,),
    ),
    Variant(
        "molecular dynamics in float32, several replicas", "held_out", HEALTHY,
        Levels(sm=(0.6, 0.79), tensor=NONE, dram=(0.05, 0.2), power=(0.55, 0.75), nvlink=NONE),
        pipes=Pipes(fp32=(0.61, 0.85)), before=NONE, memory=(0.02, 0.049), models=(A100,),
    ),
    Variant(
        "rendering", "held_out", HEALTHY,
        Levels((0.93, 1.0), (0.6, 0.75), NONE, (0.2, 0.4), (0.55, 0.85), nvlink=NONE),
        pipes=Pipes(fp32=(0.3, 0.6)), before=NONE, memory=(0.31, 0.6),
    ),
    Variant(
        "a solver in float64 that a reporter sees", "held_out", HEALTHY,
        Levels(sm=(0.6, 0.74), tensor=(0.0, 0.01), dram=(0.3, 0.55), power=(0.7, 1.0)),
        pipes=Pipes(fp32=(0.3, 0.5), fp64=(0.3, 0.39), dtype_code=FLOAT64), before=NONE, models=(A100,),
    ),
    Variant(
        "float32 work on vectors that a reporter sees", "held_out", HEALTHY,
        Levels(sm=(0.66, 0.74), tensor=(0.0, 0.002), dram=(0.8, 0.92), power=(0.5, 0.59)),
        pipes=Pipes(fp32=(0.51, 0.65), dtype_code=FLOAT32), before=NONE,
    ),
    Variant(
        "bfloat16 training with a heavy float32 optimizer", "held_out", HEALTHY,
        Levels(sm=(0.8, 0.9), tensor=(0.1, 0.24), dram=(0.4, 0.55), power=(0.75, 0.95)),
        pipes=Pipes(fp32=(0.36, 0.5), dtype_code=4.0), before=NONE, models=(B200,),
    ),
)  # fmt: skip
