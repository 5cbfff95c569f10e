"""Heat: the driver or the hardware lowers the clocks."""

from unidle_agent.sample import HW_SLOWDOWN, HW_THERMAL, SW_THERMAL
from unidle_collector.simulator.mechanisms.variant import Cycle, Levels, Slow, Variant

SW, HW = "throttling_thermal.software_thermal", "throttling_thermal.hardware_thermal"

VARIANTS = (
    Variant(
        "intake air too warm for one GPU", "tuning", SW,
        slow=Slow(SW_THERMAL, (0.6, 0.85), "thermal_throttle_s", temperature=(86, 89)), affected=(0.1, 0.13),
    ),
    Variant(
        "coolant lost on a whole node", "tuning", HW,
        slow=Slow(HW_THERMAL | HW_SLOWDOWN, (0.4, 0.55), "hw_thermal_throttle_s", temperature=(90, 93)),
    ),
    Variant(
        "a clogged cold plate, throttled in waves", "held_out", SW, Levels(power=(0.7, 0.84)),
        slow=Slow(SW_THERMAL, (0.86, 0.95), "thermal_throttle_s", Cycle((20, 60), (2, 8)), (85, 88), (5, 20)),
        affected=(0.25, 0.5), models=("NVIDIA B200", "NVIDIA A100-SXM4-80GB"),
    ),
    Variant(
        "hot memory, bit only", "held_out", SW, Levels(dram=(0.46, 0.58)),
        slow=Slow(SW_THERMAL, (0.5, 0.59), "", temperature=(73, 79)), affected=(0.14, 0.24),
    ),
    Variant(
        "a stopped pump, one GPU", "held_out", HW,
        slow=Slow(HW_THERMAL, (0.2, 0.39), "hw_thermal_throttle_s", temperature=(93.5, 96)), affected=(0.1, 0.2),
        models=("NVIDIA B200",),
    ),
)  # fmt: skip
