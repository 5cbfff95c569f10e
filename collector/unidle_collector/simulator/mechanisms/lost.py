"""GPUs that answer no more."""

from unidle_collector.simulator.mechanisms.variant import Variant

VARIANTS = (
    Variant("a GPU falls off the bus", "tuning", "gpu_lost.lost", gpu_state=1, affected=(0.1, 0.13)),
    Variant("a driver call hangs", "tuning", "driver_hung.hung", gpu_state=2, before=(400, 600)),
    Variant(
        "two GPUs fall off the bus", "held_out", "gpu_lost.lost", gpu_state=1, affected=(0.25, 0.25),
        models=("NVIDIA B200",),
    ),
    Variant(
        "the driver hangs on one GPU", "held_out", "driver_hung.hung", gpu_state=2, affected=(0.1, 0.13),
        before=(700, 900), models=("NVIDIA A100-SXM4-80GB",),
    ),
)  # fmt: skip
