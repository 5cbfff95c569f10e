"""OOM risk: a job's memory keeps rising and little is left.

What it means
    The job may die of out-of-memory. This is a class of risk with its reasons, never a time: the
    driver sees what the allocator reserved, not what it needs, so a job can sit at 99 % and be safe.

Evidence
    memory_used_bytes and memory_total_bytes: the high-water mark per minute, and what is left.

How it decides
    Judged once a minute; what the job takes in its first 10 minutes is no rise. Elevated: the
    high-water mark rose in at least 5 of the last 20 minutes, in both halves of them, by at least 3 %
    of the memory in all, the last time no longer than 5 min ago, and less than 10 % is left. High: the
    same with less than 4 % left. A slow leak: the mark rose in at least 8 of the last 12 spans of 10
    minutes, in both halves of them, by 3 % or more in all. A job that takes all memory at once and stays
    there (frameworks that preallocate, caching allocators) does not rise and is never flagged. Needs 20
    minutes at one sample a minute or more.

How sure
    60 % that it goes on: what rises may stop by itself, and the driver does not see what the allocator needs.

What to do
    PyTorch: PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True; a smaller batch; activation
    checkpointing; look for tensors kept over steps (losses summed without .item()).

How to silence it
    `silence = ["oom_risk:JOB"]` in `[collector]`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unidle_collector.detectors import About, Detector, Verdict, mean_of, percent, plural
from unidle_collector.model import Evidence
from unidle_collector.pergpu import NEVER, SECOND_NS, Bools, Floats, PerGpu, Positions
from unidle_collector.signals import View

MINUTE_NS = 60 * SECOND_NS
ELEVATED, HIGH = 1, 2


@dataclass(frozen=True, slots=True)
class Settings:
    """Ratios are of the GPU's whole memory; spans in minutes."""

    window_min: int = 20
    warm_up_min: int = 10
    rises: int = 5
    rise_ratio: float = 0.001
    growth_ratio: float = 0.03
    fresh_min: int = 5
    elevated_left_ratio: float = 0.10
    high_left_ratio: float = 0.04
    span_min: int = 10
    spans: int = 12
    span_rises: int = 8


class OomRisk(Detector):
    """The condition, vectorised; judged at each full minute of event time."""

    kind = "oom_risk"
    state = None
    causes = ("rising_memory",)
    groups_by = "job"
    finding_delay_s = 0.0
    """The evidence took 20 minutes."""
    accounting_delay_s = 0.0
    grace = "the first 10 min of a job"

    def __init__(self, size: int, settings: Settings) -> None:
        self._settings = settings
        self._a = PerGpu(size)
        self._a.at["minute"] = NEVER
        self._a.make("peak", np.float64, 0.0)  # of this minute
        self._a.make("total", np.float64, np.nan)
        self._a.make("high", np.float64, 0.0)  # of the job
        self._a.make("minutes", np.int32, 0)
        self._a.make("rise", np.float64, 0.0, settings.window_min)  # per minute, newest last
        self._a.make("span", np.float64, 0.0)  # rise in the span so far
        self._a.make("span_rise", np.float64, 0.0, settings.spans)  # per span, newest last
        self._a.make("level", np.int8, 0)
        self._a.make("since", np.int64, NEVER)
        self._a.make("zero", np.int16, 0)

    def look(self, view: View) -> Verdict:
        """See the module's docstring."""
        a, step = self._a, view.step
        held = view.alive & view.allocated
        np.fmax(a["peak"], np.where(held, step.get("memory_used_bytes"), np.nan), out=a["peak"])
        np.copyto(a["total"], step.get("memory_total_bytes"), where=~np.isnan(step.get("memory_total_bytes")))
        freed = view.alive & ~view.allocated & (a["minutes"] > 0)
        if freed.any():
            self.reset(freed)
        minute = step.end_ns // MINUTE_NS
        if minute != self._a.at["minute"]:
            self._a.at["minute"] = minute
            self._judge(step.end_ns)
        return Verdict(a["level"] > 0, a["since"], a["zero"], np.zeros(a["level"].shape))

    def _judge(self, end_ns: int) -> None:
        """Close the minute."""
        a, s = self._a, self._settings
        seen = a["peak"] > 0
        with np.errstate(invalid="ignore", divide="ignore"):
            warm = seen & (a["minutes"] >= s.warm_up_min)  # what a job takes while it starts is no rise
            rise = np.where(warm, np.maximum(0.0, a["peak"] - a["high"]) / a["total"], 0.0)
            left = 1.0 - a["high"] / a["total"]
        a["high"][seen] = np.maximum(a["high"], a["peak"])[seen]
        a["rise"][:, seen] = np.roll(a["rise"], -1, axis=0)[:, seen]
        a["rise"][-1, seen] = rise[seen]
        a["minutes"][seen] += 1
        a["peak"][:] = 0.0
        rises = a["rise"] >= s.rise_ratio
        half = s.window_min // 2
        rising = (
            (rises.sum(axis=0) >= s.rises)
            & rises[:half].any(axis=0)
            & rises[half:].any(axis=0)
            & (np.where(rises, a["rise"], 0.0).sum(axis=0) >= s.growth_ratio)
        )
        rising &= rises[-s.fresh_min :].any(axis=0)
        leaking, lately = self._slowly(rise, seen)
        starts = (rising | leaking) & (left < s.elevated_left_ratio)
        stays = (a["level"] > 0) & (rises.any(axis=0) | lately) & (left < s.elevated_left_ratio)
        on = starts | stays
        over = (a["level"] > 0) & ~on & seen
        a["since"][starts & (a["level"] == 0)] = end_ns
        keep = ~seen & (a["level"] > 0)
        level = np.where(on, np.where(left < s.high_left_ratio, HIGH, ELEVATED), 0)
        a["level"][:] = np.where(keep, a["level"], level)
        a["since"][over] = NEVER

    def _slowly(self, rise: Floats, seen: Bools) -> tuple[Bools, Bools]:
        """([GPUs] does it leak slowly, [GPUs] did it rise in one of the last two spans)."""
        a, s = self._a, self._settings
        a["span"][seen] += rise[seen]
        ends = seen & (a["minutes"] % s.span_min == 0)
        spans = a["span_rise"]
        spans[:, ends] = np.roll(spans[:, ends], -1, axis=0)
        spans[-1, ends] = a["span"][ends]
        a["span"][ends] = 0.0
        rises = spans >= s.rise_ratio
        half = s.spans // 2
        leaks: Bools = (
            (rises.sum(axis=0) >= s.span_rises)
            & rises[:half].any(axis=0)
            & rises[half:].any(axis=0)
            & (np.where(rises, spans, 0.0).sum(axis=0) >= s.growth_ratio)
        )
        return leaks & rises[-1], rises[-1] | rises[-2]

    def about(self, view: View, gpus: Positions, cause: str, lasted_s: float) -> About:
        """What a colleague would say."""
        a, s = self._a, self._settings
        total, high = mean_of(a["total"], gpus) or 0.0, float(a["high"][gpus].max())
        left = float(np.min(1.0 - a["high"][gpus] / a["total"][gpus]))
        growth = float(a["rise"][:, gpus].sum(axis=0).max())
        class_ = "high" if bool((a["level"][gpus] == HIGH).any()) else "elevated"
        window_s = s.window_min * 60.0
        return About(
            title=f"out-of-memory risk {class_}: {percent(left)} of memory left and still rising",
            severity="critical" if class_ == "high" else "warning",
            confidence=0.6,
            evidence=(
                Evidence(
                    "memory_used_bytes", high, "By", (1 - s.elevated_left_ratio) * total, window_s,
                    f"high-water mark {high / 2**30:.1f} of {total / 2**30:.1f} GiB (risk: "
                    f"{(1 - s.elevated_left_ratio) * total / 2**30:.1f} or more)",
                ),
                Evidence(
                    "memory_used_bytes", growth * total, "By", s.growth_ratio * total, window_s,
                    f"rose by {growth * total / 2**30:.1f} GiB within {s.window_min} min (risk: "
                    f"{s.growth_ratio * total / 2**30:.1f} or more)",
                ),
            ),
            advice=(
                "PyTorch: set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True; save a checkpoint now; "
                f"then use a smaller batch or find what is kept over steps on {plural(gpus.size, 'GPU')}."
            ),
            confirm="torch.cuda.memory_stats(): allocated_bytes.all.current rising from step to step",
            asks_flight=True,
        )  # fmt: skip

    def reset(self, gpus: Bools) -> None:
        """Another job: anew."""
        a = self._a
        for name in ("peak", "high", "minutes", "level", "span"):
            a[name][gpus] = 0
        a["rise"][:, gpus] = 0.0
        a["span_rise"][:, gpus] = 0.0
        a["since"][gpus] = NEVER


def make(size: int, period_s: float) -> OomRisk:
    """The detector with the product's defaults."""
    return OomRisk(size, Settings())
