"""PCIe: a GPU is attached by fewer lanes or a lower generation than it and its slot can use.

What it means
    A card that sits badly, a riser or a retimer costs half or more of the bandwidth between host and
    GPU. Loading data, offloading and checkpoints take as much longer; nothing else shows it.

Evidence
    pcie_width and pcie_generation against pcie_width_max and pcie_generation_max; activity.

How it decides
    `width`: fewer lanes than the most, at any time: width is not managed. `generation`: lower than the
    most while the GPU works (activity at least 30 %, then and in the mean of the minute before): idle GPUs
    lower it to save power. Each has to be seen for 15 s and in two samples, or in answers of 5 s where the
    agent looks again at once, without another between; over after 60 s without.

What to do
    Reseat the card or its riser, look for AER errors in the kernel log, and check the slot's setting in
    the firmware. Until then keep data-heavy jobs away.

How to silence it
    `silence = ["pcie:NODE"]` in `[collector]`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unidle_collector.detectors import About, Verdict, percent, plural
from unidle_collector.model import Evidence
from unidle_collector.pergpu import Positions
from unidle_collector.signals import View
from unidle_collector.signs.lasting import Lasting, drain, settles_s, where

CAUSES = ("width", "generation")
FIELDS = ("pcie_width", "pcie_width_max", "pcie_generation", "pcie_generation_max")


@dataclass(frozen=True, slots=True)
class Settings:
    """Seconds and ratios 0-1."""

    on_after_s: float = 15.0
    off_after_s: float = 60.0
    load_ratio: float = 0.30


class Pcie(Lasting):
    """The condition, vectorised; only answers of this step count, so that two have to agree."""

    kind = "pcie"
    causes = CAUSES
    grace = "generation: while the GPU is idle"

    def __init__(self, size: int, period_s: float, settings: Settings) -> None:
        super().__init__(size, max(settings.off_after_s, 1.5 * period_s), break_s=0.0)
        self.settings = settings
        self._on_after_s = max(settings.on_after_s, 1.5 * period_s)
        self.remember(*FIELDS)

    def look(self, view: View) -> Verdict:
        """See the module's docstring."""
        step = view.step
        width, most = step.get("pcie_width"), self.latest(view, "pcie_width_max")
        generation, newest = step.get("pcie_generation"), self.latest(view, "pcie_generation_max")
        for field in ("pcie_width", "pcie_generation"):
            self.latest(view, field)
        narrow = (width > 0) & (width < most)
        load_ratio = self.settings.load_ratio
        loaded = (view.means.mean("activity") >= load_ratio) & (view.activity >= load_ratio)
        slow = (generation > 0) & (generation < newest) & loaded
        # An idle GPU's generation says nothing: neither that it is slow nor that it is not.
        known = ~np.isnan(width) | (~np.isnan(generation) & loaded)
        was_slow = self._hold.on & (self._a["cause"] == 1) & ~narrow & ~loaded
        known &= view.alive & ~was_slow
        on_after_s = settles_s(view, self._on_after_s)
        return self.decide(view, narrow | slow, known, np.where(narrow, 0, 1), on_after_s)

    def about(self, view: View, gpus: Positions, cause: str, lasted_s: float) -> About:
        """What a colleague would say."""
        a = self._a
        field, unit = f"pcie_{cause}", "lanes" if cause == "width" else "generation"
        worst = int(gpus[np.nanargmin(a[field][gpus] / a[f"{field}_max"][gpus])])
        now, most = float(a[field][worst]), float(a[f"{field}_max"][worst])
        left = now / most if cause == "width" else 2.0 ** (now - most)  # each generation doubles the rate
        node, numbers = where(view, gpus)
        what = (
            f"x{now:.0f} instead of x{most:.0f}"
            if cause == "width"
            else f"PCIe {now:.0f} instead of {most:.0f}"
        )
        words = what if cause == "width" else f"{what} under load"
        return About(
            title=f"{plural(gpus.size, 'GPU')} attached by {what}: {percent(left)} of its bandwidth left",
            severity="warning",
            confidence=0.95,
            evidence=(Evidence(field, now, unit, most, lasted_s, words),),
            advice=(
                f"{drain(node, f'PCIe of GPU {numbers}')}; reseat the card or its riser, and check the "
                "slot in the firmware."
            ),
            confirm=f"nvidia-smi -q -i {numbers} (GPU Link Info), lspci -vv (LnkSta), dmesg | grep -i aer",
        )


def make(size: int, period_s: float) -> Pcie:
    """The detector with the product's defaults."""
    return Pcie(size, period_s, Settings())
