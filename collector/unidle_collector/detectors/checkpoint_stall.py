"""Checkpoint stall: a job stops on all its GPUs again and again to write a checkpoint.

What it means
    While the checkpoint is written nothing computes. How much that loses is the time of one over the time
    between two; it is small where only a copy to main memory stops the job and the writing goes on beside it.

Evidence
    sm_active_ratio (else gpu_util_ratio) of all the job's GPUs at each step; disk_written_bytes and
    nfs_written_bytes of their nodes.

How it decides
    A pause: for at least 30 s and 2 samples, and 15 min at most, 95 % of the job's GPUs show SM activity
    below 10 % (utilization below 5 %, where SM activity is not known), and one of its nodes writes 0.1 GB/s
    or more and 5 times what it does between. It is booked as `checkpoint`, all of it lost, from its begin;
    idle and starvation give way. Shorter pauses are the work's own. Of an interactive session nothing is
    said: a person sets its pace, and what its node writes meanwhile is others'.
    A person is told when there were 3 pauses at intervals that differ by less than half (standard deviation
    over mean) and they take 5 % of the time or more; over when none came for 2.5 intervals. Where what the
    nodes write is not known nothing is said.

What to do
    Write asynchronously, or at longer intervals; to local disk first, from all ranks at once.

How to silence it
    `silence = ["checkpoint_stall:JOB"]` in `[collector]`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unidle_collector.detectors import About, Detector, Verdict, duration, enough_ns, mean_of, percent, plural
from unidle_collector.model import Evidence
from unidle_collector.pergpu import NEVER, SECOND_NS, Bools, Floats, PerGpu, Positions, known_or
from unidle_collector.signals import View

KEPT = 6
"""Pauses that are remembered."""
USUAL_S = 300.0
"""Time constant of the mean of what a node writes between pauses."""
FLUSH_NS = 60 * SECOND_NS
"""The kernel writes what it holds of a checkpoint within about this time."""
STARVED_ON_S = 30.0
"""How long `starvation` goes on once its mean is over a pause."""
AIM = 0.01
"""Share of the time that a checkpoint may well take."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Seconds, ratios 0-1, bytes per second."""

    least_s: float = 30.0
    least_samples: int = 2
    most_s: float = 900.0
    sm_still: float = 0.10
    util_still: float = 0.05
    all_of_them: float = 0.95
    written_bytes_per_s: float = 1e8
    above_usual: float = 5.0
    pauses: int = 3
    irregular: float = 0.5
    worth: float = 0.05
    over_after_intervals: float = 2.5


class CheckpointStall(Detector):
    """The condition: pauses of whole jobs, and how regular they are."""

    kind = "checkpoint_stall"
    state = "starved"
    causes = ("checkpoint",)
    explains = ("idle", "starvation")
    groups_by = "job"
    finding_delay_s = 600.0
    accounting_delay_s = 90.0
    grace = "pauses below 30 s, the first two pauses, and a job's start (at most 10 min)"

    def __init__(self, size: int, settings: Settings) -> None:
        self._settings = settings
        self._most_ns = np.int64(settings.most_s * SECOND_NS)
        self._a = a = PerGpu(size)
        a.make("begun_ns", np.int64, NEVER)  # of the pause that its job is in
        a.make("wrote_bytes", np.float64, 0.0)  # its node in that pause
        a.make("usual_bytes_per_s", np.float64, 0.0)  # its node between pauses
        a.make("known", np.bool_, False)  # is that pause known for a checkpoint
        a.make("ended_ns", np.int64, NEVER)  # of the last one that was
        a.make("pause_ns", np.int64, NEVER, KEPT)  # begins of those that were, the newest first
        a.make("length_s", np.float64, 0.0, KEPT)
        a.make("rate", np.float64, np.nan)  # bytes per second that its node wrote in the last one
        a.make("on", np.bool_, False)
        a.make("first_ns", np.int64, NEVER)
        a.make("share", np.float64, 0.0)
        a.make("cause", np.int16, 0)

    def look(self, view: View) -> Verdict:
        """See the module's docstring."""
        a, step = self._a, view.step
        started = view.alive & view.allocated & ~view.in_grace & (view.inventory.a["job"] > 0)
        started &= ~view.never_ran & ~view.inventory.a["interactive"]
        paused = self._paused(view, started)
        self._follow(view, paused)
        self._learn(view, started & ~paused)
        self._judge(step.end_ns)
        after_ns = np.int64((view.means.window_s + STARVED_ON_S) * SECOND_NS)
        account = Verdict(a["known"].copy(), a["begun_ns"], a["cause"], np.ones(paused.shape))
        explains = a["known"] | (step.end_ns - a["ended_ns"] < after_ns)
        return Verdict(a["on"], a["first_ns"], a["cause"], a["share"], account, explains)

    def _paused(self, view: View, started: Bools) -> Bools:
        """[GPUs] of jobs that do nothing on nearly all their GPUs at this step."""
        s = self._settings
        sm = view.step.get("sm_active_ratio")
        still = started & np.where(np.isnan(sm), view.activity < s.util_still, sm < s.sm_still)
        if not still.any():
            return still
        job = view.inventory.a["job"]
        size = int(job.max()) + 1
        stops = np.bincount(job[still], minlength=size) >= s.all_of_them * np.bincount(
            job[started], minlength=size
        )
        out: Bools = started & stops[job]
        return out

    def _follow(self, view: View, paused: Bools) -> None:
        """Pauses begin, become known for checkpoints by what is written, and end."""
        a, step, s = self._a, view.step, self._settings
        ends = (a["begun_ns"] != NEVER) & ~paused & view.alive
        if ends.any():
            self._end(ends, step.start_ns)
        if not paused.any():
            return
        fresh = paused & (a["begun_ns"] == NEVER)
        a["begun_ns"][fresh], a["wrote_bytes"][fresh] = step.start_ns, 0.0
        a["wrote_bytes"][paused] += known_or(_written(view))[paused]
        lasts_ns = step.end_ns - a["begun_ns"]
        enough = np.maximum(s.written_bytes_per_s, s.above_usual * a["usual_bytes_per_s"])
        writes = paused & (a["wrote_bytes"] >= enough * (lasts_ns / SECOND_NS))
        job = view.inventory.a["job"]
        of_writers = np.isin(job, np.unique(job[writes])) & paused
        known = a["known"]
        known |= of_writers & (lasts_ns >= enough_ns(view, s.least_s, s.least_samples))
        known &= lasts_ns <= self._most_ns

    def _end(self, ends: Bools, now_ns: int) -> None:
        """Remember those pauses among `ends` that were checkpoints."""
        a = self._a
        was = ends & a["known"]
        length_s = (now_ns - a["begun_ns"][was]) / SECOND_NS
        for name, newest in (("pause_ns", a["begun_ns"][was]), ("length_s", length_s)):
            a[name][1:, was] = a[name][:-1, was]
            a[name][0, was] = newest
        a["rate"][was] = a["wrote_bytes"][was] / np.maximum(length_s, 1e-9)
        a["ended_ns"][was] = now_ns
        a["begun_ns"][ends], a["known"][ends] = NEVER, False

    def _learn(self, view: View, works: Bools) -> None:
        """What a node writes while its job works, but for what is flushed just after a checkpoint."""
        a, step = self._a, view.step
        seconds = step.period_ns / SECOND_NS
        written = _written(view)
        works = works & ~np.isnan(written) & (step.end_ns - a["ended_ns"] >= FLUSH_NS)
        # An old sample says nothing of now, and a new one stands for all that is repeated of it.
        works &= view.anew
        stands_s = np.where(view.sampled_each_s > view.row_s, view.sampled_each_s, seconds)[works]
        usual = a["usual_bytes_per_s"]
        usual[works] += (written[works] / seconds - usual[works]) * np.minimum(1.0, stands_s / USUAL_S)

    def _judge(self, now_ns: int) -> None:
        """Are the pauses regular, and do they take enough of the time."""
        a, s = self._a, self._settings
        a["on"][:] = False
        several = np.flatnonzero(a["pause_ns"][s.pauses - 1] != NEVER)
        if not several.size:
            return
        begins, lengths = a["pause_ns"][:, several], a["length_s"][:, several]
        there = begins != NEVER
        count = there.sum(axis=0)
        first_ns = begins[count - 1, np.arange(several.size)]
        span_s = (begins[0] - first_ns) / SECOND_NS
        every_s = span_s / (count - 1)
        intervals_s = np.where(there[1:], (begins[:-1] - begins[1:]) / SECOND_NS, np.nan)
        share = np.where(there[1:], lengths[1:], 0.0).sum(axis=0) / span_s
        regular = np.nanstd(intervals_s, axis=0) <= s.irregular * every_s
        recent = (now_ns - begins[0]) / SECOND_NS < s.over_after_intervals * every_s
        a["on"][several] = regular & recent & (share >= s.worth)
        a["first_ns"][several], a["share"][several] = first_ns, share

    def about(self, view: View, gpus: Positions, cause: str, lasted_s: float) -> About:
        """What a colleague would say."""
        a, s, one = self._a, self._settings, int(gpus[0])
        count = int((a["pause_ns"][:, one] != NEVER).sum())
        every_s = float(a["pause_ns"][0, one] - a["pause_ns"][count - 1, one]) / SECOND_NS / max(1, count - 1)
        length_s = float(a["length_s"][:count, one].mean())
        share = float(a["share"][one])
        rates = a["rate"][gpus]
        rate = float(np.nanmax(rates)) if not np.isnan(rates).all() else None
        usual = mean_of(a["usual_bytes_per_s"], gpus)
        evidence = (
            Evidence(
                "sm_active_ratio", share, "1", s.worth, count * every_s,
                f"all {plural(gpus.size, 'GPU')} of the job still for {duration(length_s)} each "
                f"{duration(every_s)}: {percent(share)} of the time ({count} times)",
            ),
            Evidence(
                "disk_written_bytes", rate, "By/s", s.written_bytes_per_s, length_s,
                f"{(rate or 0.0) / 1e9:.2f} GB/s written by a node then, else {(usual or 0.0) / 1e9:.2f}",
            ),
        )  # fmt: skip
        return About(
            title=(
                f"{plural(gpus.size, 'GPU')} stop for {duration(length_s)} each {duration(every_s)} to "
                f"write a checkpoint: {percent(share)} of the time"
            ),
            severity="warning",
            confidence=0.9,
            evidence=evidence,
            advice=(
                "Write it asynchronously: torch.distributed.checkpoint.async_save(state, checkpoint_id=PATH),"
                f" or --async-save in Megatron-LM. Until then one each {duration(length_s / AIM)} instead of "
                f"each {duration(every_s)} would take {percent(AIM)} of the time."
            ),
            confirm="the job's log: the time of each save; iostat -x 5 on the node meanwhile",
            runners_up=(("storage", 0.05),),
        )

    def reset(self, gpus: Bools) -> None:
        """Another job: anew."""
        for name in ("begun_ns", "ended_ns", "pause_ns"):
            self._a[name][..., gpus] = NEVER
        for name in ("known", "on"):
            self._a[name][gpus] = False
        self._a["usual_bytes_per_s"][gpus] = 0.0


def _written(view: View) -> Floats:
    """[GPUs] bytes that its node wrote to disk and NFS in this step, NaN where neither is known."""
    disk, nfs = view.step.get("disk_written_bytes"), view.step.get("nfs_written_bytes")
    return np.where(np.isnan(disk) & np.isnan(nfs), np.nan, known_or(disk) + known_or(nfs))


def make(size: int, period_s: float) -> CheckpointStall:
    """The detector with the product's defaults."""
    return CheckpointStall(size, Settings())
