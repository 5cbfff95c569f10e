"""NVLink: links of a GPU are down, do not recover, collect errors, or the fabric is not healthy.

What it means
    Collectives between the GPUs of a node run over NVLink; a GPU with fewer links, or one whose links
    retry, holds back all the others in its job. Without the fabric they fall back to PCIe.

Evidence
    nvlink_links_up against the most of the GPUs of the same model on the node, and against its own;
    growth of nvlink_errors and nvlink_recoveries_failed; fabric_health.

How it decides
    The worst in this order is the cause; over after 60 s without (flags), 10 min without growth (counters).
    - `links_down`: fewer links up than its best sibling has, or than it had since its driver was loaded, for
      15 s (two answers), or 5 s where the agent looks again at once and the GPU was not reset in the last
      minute, after which its links train one by one. Links that nobody on the node uses are no fault.
    - `recovery_failed`: a link did not recover.
    - `fabric`: degraded bandwidth, an unhealthy route or an access timeout.
    - `errors`: at least 10 in at least 3 answers 8 s or more apart, no more than 5 min, as many as 1 a
      minute; or, where the agent looks again at once, at least 100 in 3 answers that span 5 s.

What to do
    Drain the node; reset all its GPUs together; where it comes again, bridge, baseboard or switch.

How to silence it
    `silence = ["nvlink:NODE"]` in `[collector]`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unidle_collector.detectors import About, Verdict, percent, plural
from unidle_collector.model import Evidence
from unidle_collector.pergpu import NEVER, SECOND_NS, Bools, Floats, Positions
from unidle_collector.signals import REBOOTED, RESET, View
from unidle_collector.signs.lasting import ErrorLimits, Growth, Lasting, drain, settles_s, where

FIELDS = ("nvlink_links_up", "nvlink_errors", "nvlink_recoveries_failed", "fabric_health")
CAUSES = ("links_down", "recovery_failed", "fabric", "errors")
UNHEALTHY = ((0, "degraded bandwidth"), (4, "route unhealthy"), (6, "access timeout"))
"""Shift of the two bits in fabric_health (nvml.h; 1 is yes); a route that recovers is no fault."""
YES = 1
TRAINS_S = 60.0
"""Links may take this long to come up after a reset."""

ERRORS = ErrorLimits(errors=10.0, errors_per_min=1.0, readings=3, storm=100.0, gap_s=300.0, lasts_s=600.0)


@dataclass(frozen=True, slots=True)
class Settings:
    """Seconds."""

    on_after_s: float = 15.0
    off_after_s: float = 60.0


class NvLink(Lasting):
    """The condition, vectorised."""

    kind = "nvlink"
    causes = CAUSES

    def __init__(self, size: int, period_s: float, settings: Settings) -> None:
        super().__init__(size, max(settings.off_after_s, 1.5 * period_s))
        self.settings = settings
        self._on_after_s = max(settings.on_after_s, 1.5 * period_s)
        self.remember("nvlink_links_up", "fabric_health")
        self._a.make("expected", np.float64, np.nan)
        self._a.make("down_since", np.int64, 0)
        self._a.make("reset_ns", np.int64, NEVER)
        self._errors = Growth(size, ERRORS.gap_s)
        self._failed = Growth(size, ERRORS.gap_s)

    def look(self, view: View) -> Verdict:
        """See the module's docstring."""
        step = view.step
        if step.columns.keys().isdisjoint(FIELDS) and not self._hold.on.any():
            return Verdict(self._hold.on, self._hold.since, self._a["cause"], self._a["loss"])
        down = self._down(view)
        if "nvlink_errors" in step.columns:
            self._errors.update(step.get("nvlink_errors"), step.end_ns)
        if "nvlink_recoveries_failed" in step.columns:
            self._failed.update(step.get("nvlink_recoveries_failed"), step.end_ns)
        failed = self._failed.within(step.end_ns, ERRORS.lasts_s)
        errors = self._errors.faulty(view, ERRORS)
        unhealthy = _unhealthy(self.latest(view, "fabric_health"))
        cause = np.select((down, failed, unhealthy), (0, 1, 2), 3)
        return self.decide(view, down | failed | errors | unhealthy, step.sampled, cause, 0.0)

    def _down(self, view: View) -> Bools:
        """[GPUs] fewer links up than siblings have, or than it had itself, for long enough."""
        a, end_ns = self._a, view.step.end_ns
        up = self.latest(view, "nvlink_links_up")
        for event in view.step.events:
            if event.kind in (REBOOTED, RESET):  # it may have come back with other links on purpose
                a["expected"][event.gpu], a["reset_ns"][event.gpu] = np.nan, end_ns
        if "nvlink_links_up" in view.step.columns:
            best = _most_of_siblings(view, up)
            np.fmax(a["expected"], np.fmax(best, up), out=a["expected"])
        fewer: Bools = up < a["expected"]
        a["down_since"][~fewer] = end_ns
        trains = end_ns - a["reset_ns"] < int(TRAINS_S * SECOND_NS)
        settled_s = np.where(trains, self._on_after_s, settles_s(view, self._on_after_s))
        out: Bools = fewer & ((end_ns - a["down_since"]) / SECOND_NS >= settled_s)
        return out

    def about(self, view: View, gpus: Positions, cause: str, lasted_s: float) -> About:
        """What a colleague would say."""
        node, numbers = where(view, gpus)
        title, evidence = {
            "links_down": self._say_down,
            "fabric": self._say_fabric,
            "recovery_failed": self._say_failed,
            "errors": self._say_errors,
        }[cause](gpus, lasted_s)
        return About(
            title=f"{plural(gpus.size, 'GPU')}: {title}",
            severity="warning" if cause == "errors" else "critical",
            confidence=0.9,
            evidence=(evidence,),
            advice=(
                f"{drain(node, f'NVLink of GPU {numbers}')}; when nothing runs there: nvidia-smi --gpu-reset "
                "(all GPUs of the node together); where it comes again, check bridge, baseboard and switch."
            ),
            confirm=f"nvidia-smi nvlink -s, nvidia-smi nvlink -e, and dmesg | grep -i nvlink on {node}",
        )

    def _say_down(self, gpus: Positions, lasted_s: float) -> tuple[str, Evidence]:
        up, expected = self._a["nvlink_links_up"][gpus], self._a["expected"][gpus]
        worst = int(np.nanargmin(up / expected))
        now, most = float(up[worst]), float(expected[worst])
        words = f"{now:.0f} of {most:.0f} NVLinks up, {percent(1 - now / most)} of the bandwidth gone"
        return words, Evidence("nvlink_links_up", now, "links", most, lasted_s, words)

    def _say_failed(self, gpus: Positions, lasted_s: float) -> tuple[str, Evidence]:
        count = float(self._failed.total[gpus].sum())
        words = f"{plural(int(count), 'NVLink recovery')} failed"
        return words, Evidence("nvlink_recoveries_failed", count, "events", 0.0, lasted_s, words)

    def _say_errors(self, gpus: Positions, lasted_s: float) -> tuple[str, Evidence]:
        rate = float(self._errors.per_min[gpus].max())
        words, limit = f"{rate:.0f} NVLink errors a minute", ERRORS.errors_per_min
        return words, Evidence("nvlink_errors", rate, "1/min", limit, lasted_s, words)

    def _say_fabric(self, gpus: Positions, lasted_s: float) -> tuple[str, Evidence]:
        health = self._a["fabric_health"][gpus]
        value = int(health[_unhealthy(health)][0])
        words = "NVLink fabric: " + ", ".join(text for shift, text in UNHEALTHY if value >> shift & 3 == YES)
        return words, Evidence("fabric_health", float(value), "bits", None, lasted_s, words)


def _unhealthy(health: Floats) -> Bools:
    known = np.where(np.isnan(health), 0, health).astype(np.int64)
    out = np.zeros(health.shape, dtype=np.bool_)
    for shift, _ in UNHEALTHY:
        out |= (known >> shift & 3) == YES
    return out


def _most_of_siblings(view: View, links: Floats) -> Floats:
    """[GPUs] most links of a GPU of the same model on the same node."""
    a = view.inventory.a
    models = int(a["model"].max()) + 2
    place = (a["node"].astype(np.int64) + 1) * models + a["model"] + 1
    most = np.full(int(place.max()) + 1, -np.inf)
    np.maximum.at(most, place, np.where(np.isnan(links), -np.inf, links))
    out: Floats = np.where(np.isinf(most[place]), np.nan, most[place])
    return out


def make(size: int, period_s: float) -> NvLink:
    """The detector with the product's defaults."""
    return NvLink(size, period_s, Settings())
