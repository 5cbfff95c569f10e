"""Interactive sessions: left open, and in use with pauses for thought."""

from unidle_collector.simulator.mechanisms.variant import HEALTHY, NONE, Cycle, Host, Levels, Variant

TRUTH = "idle.interactive"
CELL = Levels((0.4, 0.98), (0.3, 0.8), (0.1, 0.4), (0.1, 0.4), (0.35, 0.8))
QUIET = Host((0.001, 0.02))

VARIANTS = (
    Variant(
        "a notebook left open after some cells", "tuning", TRUTH, CELL, host=QUIET, interactive=True,
        cycle=Cycle((20, 90), (1000, 1900)), memory=(0.05, 0.15), before=NONE,
    ),
    Variant(
        "a notebook at work, a cell each few minutes", "tuning", HEALTHY, CELL, host=QUIET, interactive=True,
        cycle=Cycle((10, 60), (60, 240)), memory=(0.05, 0.3), before=NONE,
    ),
    Variant(
        "a notebook of short cells", "tuning", HEALTHY, CELL, host=QUIET, interactive=True,
        cycle=Cycle((2, 4.5), (200, 800)), memory=(0.05, 0.3), before=NONE,
    ),
    Variant(
        "a debugger that waits at a breakpoint", "held_out", TRUTH, CELL, host=QUIET, interactive=True,
        before=(200, 290), memory=(0.4, 0.8), models=("NVIDIA A100-SXM4-80GB",), cycle=Cycle((0.5, 1.5), (2400, 3000)),
    ),
    Variant(
        "a kernel whose owner went home, a cell each half an hour", "held_out", TRUTH, CELL, host=QUIET,
        interactive=True, cycle=Cycle((2, 15), (1000, 1800)), memory=(0.16, 0.39), before=NONE,
    ),
    Variant(
        "a session with pauses for thought", "held_out", HEALTHY, CELL, host=QUIET, interactive=True,
        cycle=Cycle((5, 9), (250, 700)), memory=(0.31, 0.6), before=NONE, models=("NVIDIA A100-SXM4-80GB",),
    ),
)  # fmt: skip
