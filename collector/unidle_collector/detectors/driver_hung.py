"""Driver hung: calls of the driver about a GPU do not return.

What it means
    The GPU may be well; its driver (or the GSP processor on it) is not. Programs that ask for the GPU
    hang, new jobs cannot start on it, and what runs may or may not go on.

Evidence
    gpu_state is 2: the agent's call was not answered within its deadline.

How it decides
    On when samples 10 s apart or more, and all between, had no answer, told then; the time since the
    first one has failed. Off when the driver answers.

What to do
    Read the kernel log for XID 119 or 120, drain the node, reset the GPU when nothing runs on it; where
    the reset hangs, too, reboot. A lost GPU is another finding, gpu_lost.

How to silence it
    `silence = ["driver_hung:NODE"]` in `[collector]`.
"""

from __future__ import annotations

from unidle_agent.sample import DRIVER_HUNG
from unidle_collector.detectors import About, Verdict, duration, plural
from unidle_collector.model import Evidence
from unidle_collector.pergpu import Positions
from unidle_collector.signals import View
from unidle_collector.signs.lasting import Unanswered, drain, reset_gpus, where

HUNG_AFTER_S = 10.0


class DriverHung(Unanswered):
    """The condition, vectorised."""

    kind = "driver_hung"
    causes = ("hung",)
    accounting_delay_s = HUNG_AFTER_S
    grace = "10 s for a call that does not return"

    def __init__(self, size: int, period_s: float) -> None:
        super().__init__(size)
        self._on_after_s = HUNG_AFTER_S + period_s  # of the step of the first sample only its end is known

    def look(self, view: View) -> Verdict:
        """See the module's docstring."""
        return self.hold_state(view, DRIVER_HUNG, self._on_after_s)

    def about(self, view: View, gpus: Positions, cause: str, lasted_s: float) -> About:
        """What a colleague would say."""
        node, numbers = where(view, gpus)
        words = "a driver call on it does not return"
        return About(
            title=f"{plural(gpus.size, 'GPU')} behind a hung driver for {duration(lasted_s)}",
            severity="critical",
            confidence=0.9,
            evidence=(Evidence("gpu_state", float(DRIVER_HUNG), "state", 0.0, lasted_s, words),),
            advice=(
                f"{drain(node, f'driver hangs on GPU {numbers}')}; when nothing runs on it: "
                f"{reset_gpus(numbers)}; where that hangs, too: reboot."
            ),
            confirm=f"dmesg | grep -i xid on {node} (119 and 120 are the GSP's); nvidia-smi hangs there",
            asks_flight=True,
        )


def make(size: int, period_s: float) -> DriverHung:
    """The detector with the product's defaults."""
    return DriverHung(size, period_s)
