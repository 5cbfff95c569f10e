"""Memory errors: a GPU's memory has errors that correction does not cover, or a repair waits or failed.

What it means
    A double-bit error kills the work that touched it; the row is then to be remapped, which takes a
    reset. When remapping fails, memory cannot be retired, or the on-chip memory (SRAM) has failed more often
    than the driver's threshold allows, the GPU wants replacing.

Evidence
    row_remap_failed, row_remap_pending, bank_remap_pending, sram_threshold_exceeded, bank_groups_no_spares;
    growth of ecc_uncorrected_volatile, ecc_uncorrected_aggregate and rows_remapped_uncorrectable; events of
    the driver for double-bit errors, poison and retired memory.

How it decides
    On at once; the worst of them is the cause.
    - `remap_failed`, `sram_threshold`, `remap_pending`: for as long as the flag is set.
    - `retirement_failed`, `uncorrectable`, `retired`: for 30 min after the last event or growth; what a
      counter showed before the collector first saw it does not count.
    - `spares_used_up`: while a group of banks has no spare left; banks that were remapped with spares to go
      are no finding.

    Corrected errors never count, however many: correction is what ECC is for.

What to do
    remap_pending, retired: reset the GPU when it is next idle. uncorrectable: the same, and requeue what
    ran. remap_failed, retirement_failed, sram_threshold: drain the node and have the GPU replaced.
    spares_used_up: nothing now; the next failure there is a remap_failed.

How to silence it
    `silence = ["ecc:NODE"]` in `[collector]`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unidle_agent.fields import BY_NAME
from unidle_collector.detectors import About, Verdict, plural
from unidle_collector.model import Evidence
from unidle_collector.pergpu import NEVER, SECOND_NS, Positions
from unidle_collector.signals import View
from unidle_collector.signs.lasting import Lasting, drain, reset_gpus, where

CAUSES = (
    *("remap_failed", "retirement_failed", "sram_threshold"),
    *("uncorrectable", "remap_pending", "retired", "spares_used_up"),
)
"""The worst first."""
REPLACE = CAUSES[:3]
UNCORRECTABLE = CAUSES.index("uncorrectable")
FLAGS = {
    "row_remap_failed": CAUSES.index("remap_failed"),
    "sram_threshold_exceeded": CAUSES.index("sram_threshold"),
    "row_remap_pending": CAUSES.index("remap_pending"),
    "bank_remap_pending": CAUSES.index("remap_pending"),
    "bank_groups_no_spares": CAUSES.index("spares_used_up"),
}
EVENTS = {
    "memory_retirement_failed": CAUSES.index("retirement_failed"),
    "ecc_uncorrected": UNCORRECTABLE,
    "poison_fatal": UNCORRECTABLE,
    "memory_retired": CAUSES.index("retired"),
}
"""Kind of wire.Event -> cause; contained poison comes as XID 94, too, and single-bit storms are corrected."""
COUNTERS = ("ecc_uncorrected_volatile", "ecc_uncorrected_aggregate", "rows_remapped_uncorrectable")
TITLES = (
    "remapping a memory row has failed on",
    "memory could not be retired on",
    "errors of on-chip memory have passed the driver's threshold on",
    "uncorrectable memory errors on",
    "memory waits for a reset to be remapped on",
    "memory was retired on",
    "no spare memory bank is left on",
)


@dataclass(frozen=True, slots=True)
class Settings:
    """Seconds."""

    lasts_s: float = 1800.0


class Ecc(Lasting):
    """The condition, vectorised."""

    kind = "ecc"
    causes = CAUSES

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

    def about(self, view: View, gpus: Positions, cause: str, lasted_s: float) -> About:
        """What a colleague would say."""
        number = CAUSES.index(cause)
        node, numbers = where(view, gpus)
        errors = float(self._a["errors"][gpus].sum())
        evidence = [
            Evidence(field, most, BY_NAME[field].unit.strip("{}"), 0.0, lasted_s, words)
            for field in FLAGS
            if (most := float(np.nan_to_num(self._a[field][gpus]).max())) > 0
            and (words := f"{field} is set" if BY_NAME[field].unit == "{flag}" else f"{field} is {most:.0f}")
        ]
        if errors:
            words = f"{errors:.0f} uncorrectable errors or rows"
            evidence.append(Evidence("ecc_uncorrected_volatile", errors, "errors", 0.0, lasted_s, words))
        replace = cause in REPLACE
        if replace:
            advice = f"{drain(node, f'{cause} on GPU {numbers}')}, and have the GPU replaced."
        elif cause == "spares_used_up":
            advice = (
                f"Nothing now; the next bank that fails on GPU {numbers} cannot be remapped: replace it then."
            )
        else:
            advice = f"When nothing runs on it: {reset_gpus(numbers)}."
            advice += " Requeue the job that ran on it." if number == UNCORRECTABLE else ""
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
