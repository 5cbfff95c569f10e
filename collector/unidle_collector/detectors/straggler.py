"""Straggler: one GPU, or one node, of a job is slower than the others, which wait for it at each step.

What it means
    Ranks that reduce gradients together go at the pace of the slowest. The others are done early and spin
    until it comes: they look busy and lose the rest of each step. It is slow for a reason of its own: lower
    clocks, more work (longer sequences, more experts), or a process that the host holds up.

Evidence
    tensor_active_ratio of each GPU over that of the one that works most: the share of the step in which it
    works. gpu_util_ratio, sm_active_ratio and dram_active_ratio, to tell waiting from other work;
    nvlink_tx_bytes_per_s or the node's traffic, to see that they talk; sm_clock_hz, for the reason.

How it decides
    Jobs known by name, of four GPUs or more, by means over 60 s. The others work 80 % of the slow one's time
    or less, alike within a fifth; the slow ones are one GPU, up to a quarter of them, or all of one node.

    Those that wait show it, and do at that time:
    - utilization 90 % or more;
    - SM activity fallen less than tensor activity (all that wait taken together), DRAM activity fallen with
      it within 15 points;
    - 5 % less energy drawn (where that is not known nodes are not compared with each other at periods beyond
      5 s);
    - at least 0.2 GB/s of traffic each, between nodes both ways.

    Who works less than a fifth is not in step but does something else (a rank that evaluates alone). More
    slow GPUs than one have to have been even with the others before, or be slowed down: the driver says so
    (bits 0x8, 0x20, 0x40 or 0x80), or the clock is 20 % below that of the others; a smaller loss is what its
    power limit costs who works more. Else it is a heavier stage of a pipeline (pipeline_imbalance).

    Held for 35 s and 6 samples; over after 60 s. What the others lose is booked as `straggler` within 90 s:
    1 - their tensor activity over the slow one's. A person is told after 10 min.

    How sure: 90 % where the job was even before or the slow GPU's clocks are low; 65 % where one GPU is slow
    from the first step on and is the first or the last of its job, as a stage of its own that embeds or holds
    the loss would be; 80 % where it is another one.

    Where SM, tensor or DRAM activity of one of its GPUs is unknown nothing is said of a job. Where it has
    GPUs that this collector does not see, the title says how many were compared. A job whose slow rank waits
    for its own host shows equal tensor activity everywhere, and is not found.

What to do
    Drain the slow node or leave it out, where its clocks are low; else give its rank the same work as others.

How to silence it
    `silence = ["straggler:JOB"]` in `[collector]`.
"""

from __future__ import annotations

import numpy as np

from unidle_collector.detectors import About, mean_of, percent, plural
from unidle_collector.model import Evidence
from unidle_collector.pergpu import Bools, Positions
from unidle_collector.signals import View
from unidle_collector.signs.jobmates import LOW_CLOCK, UTIL, OutOfStep, Pace, by_rank, same_model, slowed_down
from unidle_collector.signs.lasting import where

SLOW = 0.9
"""Who works this share of the most sets the pace."""
WAITS = 0.8
ALIKE = 0.2
"""The others' shares lie within this of each other, over their median."""
STEP_TIMES = "the step's time by rank (Megatron-LM --timing-log-level 2; unidle diagnose --timeline FILE)"


class Straggler(OutOfStep):
    """The condition, job by job."""

    kind = "straggler"
    causes = ("straggler",)

    def judge(self, view: View, pace: Pace, *, was_even: bool) -> Bools | None:
        """See the module's docstring."""
        slow: Bools = pace.work >= SLOW
        others = pace.work[~slow]
        if others.max() > WAITS or np.ptp(others) > ALIKE * float(np.median(others)):
            return None
        count = int(slow.sum())
        nodes = np.unique(pace.node[slow])
        whole_node = nodes.size == 1 and bool((slow == (pace.node == nodes[0])).all())
        if count > pace.gpus.size // 4 and not whole_node:
            return None
        if count > 1 and not was_even and not slowed_down(view, pace.gpus[slow], pace.gpus[~slow]):
            return None
        return slow

    def about(self, view: View, gpus: Positions, cause: str, lasted_s: float) -> About:
        """What a colleague would say."""
        slow = self.slow_of(view, gpus)
        names = _names(view, slow)
        tensor, window_s = view.means.mean("tensor_active_ratio"), view.means.window_s
        theirs, its = mean_of(tensor, gpus), mean_of(tensor, slow)
        share = None if theirs is None or not its else theirs / its
        evidence = [
            Evidence(
                "tensor_active_ratio", theirs, "1", None if its is None else WAITS * its, window_s,
                f"tensor activity {percent(theirs)} on {plural(gpus.size, 'GPU')}, {percent(its)} on "
                f"{names}: the others work {percent(share)} of each step (waiting: {percent(WAITS)} or less)",
            )
        ]  # fmt: skip
        for field, words, limit, why in (
            ("gpu_util_ratio", "GPU utilization", UTIL, f"spinning: {percent(UTIL)} or more"),
            ("sm_active_ratio", "SM activity", None, "spinning costs less of it than of tensor activity"),
        ):
            value, there = (mean_of(view.means.mean(field), group) for group in (gpus, slow))
            text = f"{words} {percent(value)} on those that wait, {percent(there)} on {names} ({why})"
            evidence.append(Evidence(field, value, "1", limit, window_s, text))
        clock, usual = (mean_of(view.step.get("sm_clock_hz"), group) for group in (slow, gpus))
        low = slowed_down(view, slow, gpus)
        if clock is not None and usual is not None:
            text = (
                f"SM clock {clock / 1e9:.2f} GHz on {names}, {usual / 1e9:.2f} GHz on the others (slow: "
                f"below {percent(LOW_CLOCK)} of that)"
            )
            evidence.append(Evidence("sm_clock_hz", clock, "Hz", LOW_CLOCK * usual, 0.0, text))
        confidence, stage = self._how_sure(view, gpus, slow, low)
        lost = percent(None if share is None else 1 - share)
        nodes = sorted({view.inventory.refs[int(gpu)].node for gpu in slow}) or ["NODE"]
        return About(
            title=f"{plural(gpus.size, 'GPU')} wait {lost} of the time for {names}",
            severity="warning",
            confidence=confidence,
            evidence=tuple(evidence),
            advice=(
                _advice(names, nodes, low) if same_model(view, slow, gpus) else _one_model(view, slow, gpus)
            ),
            confirm="; ".join((*_clocks(view, slow), STEP_TIMES)),
            runners_up=(("pipeline_imbalance", stage),),
            held_back_by=self.slow_refs(view, gpus),
        )

    def _how_sure(self, view: View, gpus: Positions, slow: Positions, low: bool) -> tuple[float, float]:
        """(probability of a straggler, of a stage of one GPU that is heavier than the others)."""
        if low or bool(self._a["was_even"][gpus].all()):
            return 0.9, 0.05
        ranks = by_rank(view, np.concatenate((gpus, slow)))
        first_or_last = bool(np.isin(ranks[[0, -1]], slow).any())  # what embeds, or holds the loss
        return (0.65, 0.3) if first_or_last else (0.8, 0.15)


def _clocks(view: View, slow: Positions) -> list[str]:
    """The command that shows why the clocks of the slow ones are what they are, on each of their nodes."""
    number = view.inventory.a["node"][slow]
    places = [where(view, slow[number == one]) for one in np.unique(number)]
    return [f"nvidia-smi -q -d CLOCK,PERFORMANCE -i {gpus} on {node}" for node, gpus in places]


def _names(view: View, slow: Positions) -> str:
    """GPU 3 of node-1; node-1 where all of a node's GPUs in the job are slow."""
    if not slow.size:
        return "one of them"
    nodes = {view.inventory.refs[int(gpu)].node for gpu in slow}
    if len(nodes) == 1:
        node, numbers = where(view, slow)
        job = view.inventory.a["job"]
        of_job = (job == job[slow[0]]) & (view.inventory.a["node"] == view.inventory.a["node"][slow[0]])
        return node if slow.size > 1 and slow.size == int(of_job.sum()) else f"GPU {numbers} of {node}"
    return f"{plural(slow.size, 'GPU')} of {', '.join(sorted(nodes))}"


def _advice(names: str, nodes: list[str], low: bool) -> str:
    if low:
        return (
            f"Its clocks are low: leave {', '.join(nodes)} out when you submit again "
            f"(sbatch --exclude={','.join(nodes)}), drain it, and repair its cooling or its power."
        )
    if names in nodes:
        return (
            f"Its clocks are as those of the others: look at the InfiniBand ports (ibstat) and the CPU (top) "
            f"of {names}, and submit again without it (sbatch --exclude={names}). If the wait then moves to "
            f"another node, the ranks there have more work: sort the data into equal batches."
        )
    return (
        f"Its clocks are as those of the others, so it has more work or a slower process: give the rank "
        f"on {names} the same number of tokens as the others (sequences sorted into equal batches), then "
        f"look at the cores and the loader of its process; if neither is it, submit with "
        f"--exclude={','.join(nodes)}."
    )


def _one_model(view: View, slow: Positions, others: Positions) -> str:
    theirs, its = (sorted({view.inventory.refs[int(gpu)].model for gpu in group}) for group in (others, slow))
    return (
        f"It is another model, {', '.join(its)} among {', '.join(theirs)}: request one model for the whole "
        "job (sbatch --gpus-per-node=MODEL:N or --constraint)."
    )


def make(size: int, period_s: float) -> Straggler:
    """The detector with the product's defaults."""
    return Straggler(size, period_s)
