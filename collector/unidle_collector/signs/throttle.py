"""What both throttling detectors share: a signal at each step, a clock loss, a hold timer, the words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unidle_agent.sample import HW_SLOWDOWN, HW_THERMAL, POWER_BRAKE, SW_POWER_CAP, SW_THERMAL
from unidle_collector.detectors import Detector, Verdict, enough_ns, mean_of, percent
from unidle_collector.model import Evidence
from unidle_collector.pergpu import SECOND_NS, Bools, Floats, Hold, PerGpu, Positions, Times
from unidle_collector.signals import NOTHING_RAN, View
from unidle_collector.signs.clocks import ReferenceClock

THERMAL = SW_THERMAL | HW_THERMAL
REASONS = {
    0x1: "idle",
    0x2: "clocks set by an application",
    SW_POWER_CAP: "software power cap",
    HW_SLOWDOWN: "hardware slowdown",
    0x10: "sync boost",
    SW_THERMAL: "software thermal slowdown",
    HW_THERMAL: "hardware thermal slowdown",
    POWER_BRAKE: "hardware power brake",
    0x100: "display clocks",
}
"""Bits of clock_event_reasons in words (nvml.h)."""
LEAST_SAMPLES = 2
SHOWN = (
    *("sm_clock_hz", "clock_event_reasons", "temperature_c", "memory_temperature_c", "thermal_margin_c"),
    *("power_w", "power_limit_w"),
)
"""The fields of the evidence."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Seconds and ratios 0-1."""

    on_after_s: float = 4.0
    off_after_s: float = 15.0
    forget_s: float = 600.0
    counter_share: float = 0.10
    """Share of the step that a throttle-time counter must have grown by."""
    least_loss: float = 0.03
    """Smaller losses of clock are not worth a state of their own."""


def bits(view: View, mask: int) -> tuple[Bools, Bools]:
    """([GPUs] is a bit of `mask` set, [GPUs] is it known)."""
    reasons, known = view.once(_reasons)
    return (reasons & mask) != 0, known


def _reasons(view: View) -> tuple[Times, Bools]:
    """([GPUs] the driver's reasons for lower clocks, none where unknown, [GPUs] are they known)."""
    reasons = view.step.get("clock_event_reasons")
    known = ~np.isnan(reasons)
    return np.where(known, reasons, 0).astype(np.int64), known


def grew(view: View, field: str, settings: Settings) -> tuple[Bools, Bools]:
    """([GPUs] did the throttle-time counter grow for a good part of the step, [GPUs] is it known)."""
    share = view.step.get(field) / (view.step.period_ns / SECOND_NS)
    return share >= settings.counter_share, ~np.isnan(share)


class Throttling(Detector):
    """Condition, clock loss and timers, vectorised."""

    state = "throttled"
    groups_by = "node"
    finding_delay_s = 4.0
    accounting_delay_s = 4.0

    def __init__(self, size: int, period_s: float, settings: Settings) -> None:
        self.settings = settings
        self._clock = ReferenceClock(size)
        # Off means seen otherwise for a while; at a coarse period one sample alone proves nothing.
        # Blinks are not added up: it begins only with some seconds in a row.
        self._hold = Hold(size, max(settings.off_after_s, 1.5 * period_s), settings.forget_s, break_s=0.0)
        self._a = PerGpu(size)
        self._a.make("loss", np.float64, 0.0)
        self._a.make("cause", np.int16, 0)
        for field in SHOWN:  # when it last held: a finding lasts a little longer than what it is about
            self._a.make(field, np.float64, np.nan)

    def references(self, view: View, slowed: Bools, asked: Bools) -> tuple[Floats, Floats]:
        """The clocks of ReferenceClock.of."""
        return self._clock.of(view, slowed, asked)

    def held(self, cause: int) -> Bools:
        """[GPUs] is it on because of `cause`: the own clock fades as a reference, what it once said holds."""
        out: Bools = self._hold.on & (self._a["cause"] == cause)
        return out

    def decide(
        self, view: View, signal: Bools, known: Bools, reference: Floats, cause: np.ndarray
    ) -> Verdict:
        """Hold the signal, where it costs clocks or the cost is not known; `reference` in Hz."""
        step, s = view.step, self.settings
        with np.errstate(invalid="ignore", divide="ignore"):
            loss = 1 - step.get("sm_clock_hz") / reference
        runs = view.activity >= NOTHING_RAN
        costs = np.isnan(loss) | (loss >= s.least_loss)
        yes = signal & runs & costs & view.alive
        enough = enough_ns(view, s.on_after_s, LEAST_SAMPLES)
        self._hold.update(yes, known & view.alive, step.start_ns, step.end_ns, enough)
        np.copyto(self._a["loss"], np.clip(loss, 0.0, 1.0), where=yes & ~np.isnan(loss))
        np.copyto(self._a["cause"], cause, where=yes)
        if yes.any():
            for field in SHOWN:
                np.copyto(self._a[field], step.get(field), where=yes)
        return Verdict(self._hold.on, self._hold.since, self._a["cause"], self._a["loss"])

    def evidence(self, view: View, gpus: Positions, seconds: float) -> list[Evidence]:
        """Clock loss, clocks, power and heat of the GPUs, when they were last slowed down."""
        loss, clock = mean_of(self._a["loss"], gpus), mean_of(self._a["sm_clock_hz"], gpus)
        out = []
        if clock is not None and loss:
            usual = clock / (1 - min(loss, 0.99))
            text = (
                f"SM clock {clock / 1e6:.0f} MHz instead of {usual / 1e6:.0f}: {percent(loss)} less than "
                "siblings on the same work, or than itself before"
            )
            out.append(Evidence("sm_clock_hz", clock, "Hz", usual, seconds, text))
        reasons = self._a["clock_event_reasons"][gpus]
        reasons = reasons[~np.isnan(reasons)].astype(np.int64)
        if reasons.size:
            union = int(np.bitwise_or.reduce(reasons))
            said = ", ".join(words for bit, words in REASONS.items() if union & bit) or "none"
            text = f"the driver's reasons for lower clocks: {said} ({union:#x})"
            out.append(Evidence("clock_event_reasons", float(union), "bits", None, seconds, text))
        limits = view.inventory.a
        for field, unit, limit, words, beyond in (
            ("temperature_c", "Cel", limits["limit_c"], "{:.0f} °C core", ", limit {:.0f} °C"),
            ("memory_temperature_c", "Cel", None, "{:.0f} °C memory", ""),
            (
                "thermal_margin_c", "Cel", limits["slowdown_margin_c"],
                "{:.0f} °C to the thermal limit", ", slowed below {:.0f} °C",
            ),
            ("power_w", "W", self._a["power_limit_w"], "{:.0f} W drawn", ", limit {:.0f} W"),
        ):  # fmt: skip
            value = mean_of(self._a[field], gpus)
            if value is not None:
                threshold = None if limit is None else mean_of(limit, gpus)
                text = words.format(value) + ("" if threshold is None else beyond.format(threshold))
                out.append(Evidence(field, value, unit, threshold, seconds, text))
        return out

    def loss_text(self, gpus: Positions) -> str:
        """How much clock is lost, for a title."""
        loss = mean_of(self._a["loss"], gpus)
        return f"{percent(loss)} of the clock lost" if loss else "clock loss unknown"

    def reset(self, gpus: Bools) -> None:
        """Another job runs at other clocks; the heat stays, so the timers do too."""
        self._clock.reset(gpus)
