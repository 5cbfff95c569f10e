"""Supply of power: brakes, hardware slowdown, and a cap below the siblings'."""

from unidle_agent.sample import HW_SLOWDOWN, POWER_BRAKE, SW_POWER_CAP
from unidle_collector.simulator.mechanisms.variant import Cycle, Levels, Slow, Variant

BRAKE, SLOWDOWN = "throttling_power.power_brake", "throttling_power.hw_slowdown"
CAP = "throttling_power.power_cap"

VARIANTS = (
    Variant(
        "power brake of a whole node", "tuning", BRAKE,
        slow=Slow(POWER_BRAKE | HW_SLOWDOWN, (0.4, 0.55), "power_brake_s"),
    ),
    Variant(
        "one GPU capped below its siblings", "tuning", CAP, Levels(power=(1.05, 1.2)),
        slow=Slow(SW_POWER_CAP, (0.65, 0.8), "power_cap_s"), affected=(0.1, 0.13),
    ),
    Variant(
        "hardware slowdown without a reason", "tuning", SLOWDOWN, slow=Slow(HW_SLOWDOWN, (0.4, 0.5)),
        affected=(0.1, 0.13),
    ),
    Variant(
        "a rack that brakes again and again", "held_out", BRAKE, Levels(power=(0.9, 1.1)),
        slow=Slow(POWER_BRAKE | HW_SLOWDOWN, (0.25, 0.39), "power_brake_s", Cycle((8, 30), (3, 10))),
        models=("NVIDIA B200", "NVIDIA A100-SXM4-80GB"),
    ),
    Variant(
        "one power supply fails, a quarter of the GPUs", "held_out", BRAKE,
        slow=Slow(POWER_BRAKE, (0.56, 0.7), "power_brake_s"), affected=(0.25, 0.25),
    ),
    Variant(
        "two GPUs with an old limit", "held_out", CAP, Levels(power=(1.21, 1.35)),
        slow=Slow(SW_POWER_CAP, (0.5, 0.64), "power_cap_s"), affected=(0.25, 0.25), models=("NVIDIA B200",),
    ),
    Variant(
        "hardware slowdown, mild", "held_out", SLOWDOWN, slow=Slow(HW_SLOWDOWN, (0.55, 0.75)), affected=(0.2, 0.4),
    ),
)  # fmt: skip
