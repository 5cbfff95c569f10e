"""Memory errors: a GPU's memory has errors that correction does not cover, or a repair waits or failed.

What it means
    A double-bit error kills the work that touched it; the row is then to be remapped, which takes a
    reset. When remapping fails, or memory cannot be retired, the GPU wants replacing.

Evidence
    row_remap_failed, row_remap_pending, bank_remap_pending; growth of ecc_uncorrected_volatile,
    ecc_uncorrected_aggregate and rows_remapped_uncorrectable; events of the driver for double-bit errors,
    poison and retired memory.

How it decides
    `remap_failed` and `remap_pending` for as long as the flag is set. `retirement_failed` and
    `uncorrectable` for 30 min after the last event or growth, `retired` likewise; what a counter showed
    before the collector first saw it does not count. The worst of them is the cause. Corrected errors
    never count, however many: correction is what ECC is for. On at once.

What to do
    remap_pending, retired: reset the GPU when it is next idle. uncorrectable: the same, and requeue what
    ran. remap_failed, retirement_failed: drain the node and have the GPU replaced.

How to silence it
    `silence = ["ecc:NODE"]` in `[collector]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from unidle_collector.detectors import About, Verdict, plural
from unidle_collector.lasting import Lasting, drain, reset_gpus, where
from unidle_collector.model import Evidence
from unidle_collector.pergpu import NEVER, SECOND_NS
from unidle_collector.signals import View

CAUSES = ("remap_failed", "retirement_failed", "uncorrectable", "remap_pending", "retired")
"""The worst first."""
FLAGS = {"row_remap_failed": 0, "row_remap_pending": 3, "bank_remap_pending": 3}
EVENTS = {
    "memory_retirement_failed": 1,
    "ecc_uncorrected": 2,
    "poison_fatal": 2,
    "memory_retired": 4,
}
"""Kind of wire.Event -> cause; contained poison comes as XID 94, too, and single-bit storms are corrected."""
COUNTERS = ("ecc_uncorrected_volatile", "ecc_uncorrected_aggregate", "rows_remapped_uncorrectable")
UNCORRECTABLE = 2
TITLES = (
    "remapping a memory row has failed on",
    "memory could not be retired on",
    "uncorrectable memory errors on",
    "memory waits for a reset to be remapped on",
    "memory was retired on",
)


@dataclass(frozen=True, slots=True)
class Settings:
    """Seconds."""

    lasts_s: float = 1800.0


class Ecc(Lasting):
    """The condition, vectorised."""

    kind: ClassVar[str] = "ecc"
    causes: ClassVar[tuple[str, ...]] = CAUSES

    def __init__(self, size: int, settings: Settings) -> None:
        super().__init__(size, off_after_s=0.0)
        self.settings = settings
        self.remember(*FLAGS)
        self._a.make("errors", np.float64, 0.0)
        self._a.make("last_ns", np.int64, NEVER, len(CAUSES))

    def look(self, view: View) -> Verdict:
        """See the module's docstring."""
        a, step = self._a, view.step
        last = a["last_ns"]
        for event in step.events:
            if (cause := EVENTS.get(event.kind)) is not None:
                last[cause, event.gpu] = max(event.time_ns, int(last[cause, event.gpu]))
                a["errors"][event.gpu] += cause == UNCORRECTABLE
        for field in COUNTERS:
            if field in step.columns:
                grown = step.get(field)
                grew = grown > 0
                last[UNCORRECTABLE, grew] = step.end_ns
                a["errors"][grew] += grown[grew]
        worst = np.full(last.shape[1], len(CAUSES), dtype=np.int16)
        for number in range(len(CAUSES) - 1, -1, -1):
            fresh = step.end_ns - last[number] < int(self.settings.lasts_s * SECOND_NS)
            worst[fresh] = number
        for field, number in FLAGS.items():
            here = (self.latest(view, field) > 0) & (worst > number)
            worst[here] = number
        yes = worst < len(CAUSES)
        a["errors"][~yes] = 0.0
        return self.decide(view, yes, step.sampled, worst, 0.0)

    def about(
        self, view: View, gpus: np.ndarray[tuple[int], np.dtype[np.intp]], cause: str, lasted_s: float
    ) -> About:
        """What a colleague would say."""
        number = CAUSES.index(cause)
        node, numbers = where(view, gpus)
        errors = float(self._a["errors"][gpus].sum())
        evidence = [
            Evidence(field, 1.0, "flag", 0.0, lasted_s, f"{field} is set")
            for field in FLAGS
            if (self._a[field][gpus] > 0).any()
        ]
        if errors:
            words = f"{errors:.0f} uncorrectable errors or rows"
            evidence.append(Evidence("ecc_uncorrected_volatile", errors, "errors", 0.0, lasted_s, words))
        replace = number <= 1
        advice = (
            f"{drain(node, f'{cause} on GPU {numbers}')}, and have the GPU replaced."
            if replace
            else f"When nothing runs on it: {reset_gpus(numbers)}."
            + (" Requeue the job that ran on it." if number == UNCORRECTABLE else "")
        )
        return About(
            title=f"{TITLES[number]} {plural(gpus.size, 'GPU')}",
            severity="critical" if replace else "warning" if number == UNCORRECTABLE else "info",
            confidence=0.95,
            evidence=tuple(evidence),
            advice=advice,
            confirm=f"nvidia-smi -q -d ECC,ROW_REMAPPER -i {numbers} on {node}",
        )


def make(size: int, period_s: float) -> Ecc:
    """The detector with the product's defaults."""
    return Ecc(size, Settings())
