"""The GPUs of one job side by side: who works and who waits for whom.

Ranks of one job that reduce, or hand on, at each step go at the pace of the slowest. The others wait
in a kernel that spins: GPU_UTIL stays near 100 and SM activity falls little, while tensor and DRAM
activity fall together to the share of the step in which they work. Independent work with uneven load
does not look like that: there everything falls together, or DRAM activity stays.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from unidle_agent.sample import SLOWED_DOWN
from unidle_collector.detectors import Detector, Verdict, enough_ns, mean_of
from unidle_collector.model import GpuRef
from unidle_collector.pergpu import NEVER, SECOND_NS, Bools, Floats, Hold, PerGpu, Positions
from unidle_collector.signals import NOTHING_RAN, View

EACH_S = 5
"""Jobs are compared this often: what is looked for lasts minutes."""
LEAST_GPUS = 4
"""Of three GPUs it cannot be said who is the odd one."""
EVEN = 0.87
"""A job whose least working GPU works this share of the most is even; no pipeline is quite even."""
UTIL = 0.9
"""Who waits in a collective looks busy."""
LEAST_WORK = 0.2
"""A GPU that works less than this share of the slowest is not in step with it: it does something else."""
SPIN_SM = 0.15
"""Of the time in which GPUs wait, SM activity shows at least this much of what it shows in work."""
SAME_WORK = 0.15
"""DRAM activity, over that of the slowest, is within this of tensor activity over that of the slowest."""
LINK_BYTES_PER_S = 2e8
"""By NVLink, or both ways by InfiniBand or Ethernet between nodes: who waits for each other talks."""
SAME_LINK = 2.0
"""Ranks of one collective send alike: neither more than this many times what the other does."""
LESS_POWER = 0.95
"""Energy does not depend on when a sample falls: who waits draws less than this share of who works."""
OFTEN_S = 5.0
"""Nodes that are sampled more rarely are caught in other parts of the steps: only energy compares them."""
LOW_CLOCK = 0.8
"""Over the others' clock: a power limit alone costs who works more up to about an eighth (simulated)."""


@dataclass(frozen=True, slots=True)
class Pace:
    """The GPUs of an uneven job in the order of ranks (node name, number); every array is [GPUs]."""

    gpus: Positions
    node: NDArray[np.int32]
    work: Floats
    """Tensor activity over that of the GPU that works most: the share of each step in which it works."""


@dataclass(frozen=True, slots=True)
class Compared:
    """What comparing the GPUs of each job says; every array is [GPUs]."""

    known: Bools
    """Is all of its job known: what one silent GPU does could be what the others wait for."""
    even: Bools
    beside: Floats
    """Tensor activity, or energy where that is less, over the most of its job; NaN where nothing compares."""
    most: Floats
    """Tensor activity of the GPU of its job that works most; NaN where nothing compares."""
    uneven: list[Pace]
    """The jobs whose GPUs wait for each other."""
    near: Floats
    """Where nobody names the job: tensor activity over the most on its node among those of the same rate on
    NVLink, which may be of one job; NaN where there is no such GPU."""
    near_most: Floats
    """Tensor activity of that one."""


def compare(view: View) -> Compared:
    """All jobs that are known by name, by the means over the window."""
    m, job = view.means, view.inventory.a["job"]
    held = view.allocated & (job > 0)
    blank = np.isnan(m.mean("sm_active_ratio")) | np.isnan(m.mean("tensor_active_ratio"))
    known = held & ~np.isin(job, np.unique(job[held & blank]))
    beside, most = np.full((2, *known.shape), np.nan)
    out = Compared(known, np.zeros(known.shape, dtype=np.bool_), beside, most, [], *_near(view))
    gpus = np.flatnonzero(known & _works(view))
    if not gpus.size:
        return out
    gpus = gpus[np.argsort(job[gpus], kind="stable")]
    starts = np.flatnonzero(np.diff(job[gpus], prepend=0))
    sizes = np.diff(starts, append=gpus.size)
    tensor = m.mean("tensor_active_ratio")[gpus]
    most[gpus] = np.repeat(np.maximum.reduceat(tensor, starts), sizes)
    work = tensor / most[gpus]
    # Rare samples may all fall into work; what was drawn since says who waited meanwhile.
    drawn = _over_most(m.mean("drawn_w")[gpus], starts, sizes)
    beside[gpus] = np.fmin(work, drawn)
    works, draws = (np.fmin.reduceat(share, starts) < EVEN for share in (work, drawn))
    out.even[gpus] = np.repeat(~works & ~draws & (sizes > 1), sizes)
    waits = works & (sizes >= LEAST_GPUS) & _in_step(view, gpus, starts, sizes)
    for number in np.flatnonzero(waits).tolist():
        pace = _pace(view, gpus[starts[number] : starts[number] + sizes[number]])
        light = pace.work < EVEN
        if _draws_less(view, pace.gpus[light], pace.gpus[~light]) and linked(view, pace.gpus):
            out.uneven.append(pace)
    return out


def _near(view: View) -> tuple[Floats, Floats]:
    """`near` and `near_most` of Compared."""
    m, node, job = view.means, view.inventory.a["node"], view.inventory.a["job"]
    near, most = np.full((2, *job.shape), np.nan)
    link = np.fmax(m.mean("nvlink_tx_bytes_per_s"), m.mean("nvlink_bytes_per_s"))
    gpus = np.flatnonzero(view.allocated & (job <= 0) & _works(view) & (link >= LINK_BYTES_PER_S))
    if not gpus.size:
        return near, most
    tensor = m.mean("tensor_active_ratio")
    gpus = gpus[np.lexsort((tensor[gpus], node[gpus]))]
    lasts = np.flatnonzero(np.diff(node[gpus], append=-1))
    first = np.repeat(gpus[lasts], np.diff(lasts, prepend=-1))  # of its node the one that works most
    alike = np.maximum(link[gpus], link[first]) <= SAME_LINK * np.minimum(link[gpus], link[first])
    most[gpus] = np.where(alike, tensor[first], np.nan)
    near[gpus] = tensor[gpus] / most[gpus]
    return near, most


def _works(view: View) -> Bools:
    """[GPUs] has it started, and does it work."""
    m = view.means
    started = ~view.in_grace & (m.mean("activity") >= NOTHING_RAN)
    out: Bools = started & (m.mean("sm_active_ratio") > 0) & (m.mean("tensor_active_ratio") > 0)
    return out


def _over_most(values: Floats, starts: Positions, sizes: Positions) -> Floats:
    """Values of jobs, which begin at `starts`, over the most of their job; unknown where one of them is."""
    out: Floats = values / np.repeat(np.maximum.reduceat(values, starts), sizes)
    return out


def _in_step(view: View, gpus: Positions, starts: Positions, sizes: Positions) -> Bools:
    """[jobs] do the GPUs that work less look as if they waited for those that work more, and do they now: a
    pause that is over (one rank has logged, or evaluated) is in the means for a minute more.

    `gpus` are sorted by job, and those of each begin at `starts`. Those that work less and those that work
    more are taken together for SM activity: of few samples that of one GPU says little.
    """
    util, sm, tensor, dram = (
        view.means.mean(name)[gpus]
        for name in ("gpu_util_ratio", "sm_active_ratio", "tensor_active_ratio", "dram_active_ratio")
    )
    heavy = _over_most(tensor, starts, sizes) >= EVEN

    def mean(values: Floats, of: Bools) -> Floats:
        """[jobs] of those that are `of` and known; NaN where there is none."""
        of = of & ~np.isnan(values)
        count = np.add.reduceat(of.astype(np.int64), starts)
        out: Floats = np.add.reduceat(np.where(of, values, 0.0), starts) / np.where(count, count, np.nan)
        return out

    most = mean(tensor, heavy)
    work, busy = mean(tensor, ~heavy) / most, mean(sm, ~heavy) / mean(sm, heavy)
    spins = busy >= work + SPIN_SM * (1 - work)
    latest = view.step.get("tensor_active_ratio")[gpus]
    still = mean(latest, ~heavy) < EVEN * mean(latest, heavy)
    of_most = tensor / np.repeat(most, sizes)
    same = np.abs(dram / np.repeat(mean(dram, heavy), sizes) - of_most) <= SAME_WORK
    waits = same & ~(util < UTIL) & (of_most >= LEAST_WORK)
    out: Bools = spins & still & np.logical_and.reduceat(waits, starts)
    return out


def _draws_less(view: View, light: Positions, heavy: Positions) -> bool:
    """Do those that seem to wait draw less power, by the energy counters; or are the others slowed down."""
    if slowed_down(view, heavy, light):
        return True
    waits, works = (mean_of(view.means.mean("drawn_w"), gpus) for gpus in (light, heavy))
    if waits is not None and works is not None:
        return waits <= LESS_POWER * works
    gpus = np.concatenate((light, heavy))
    one_node = np.unique(view.inventory.a["node"][gpus]).size == 1
    return one_node or bool((view.sampled_each_s[gpus] <= OFTEN_S).all())


def linked(view: View, gpus: Positions) -> bool:
    """Do these GPUs send to each other; unknown is no."""
    m = view.means
    link = np.fmax(m.mean("nvlink_tx_bytes_per_s"), m.mean("nvlink_bytes_per_s"))[gpus]
    if bool((link >= LINK_BYTES_PER_S).all()):
        return True
    if np.unique(view.inventory.a["node"][gpus]).size < 2:
        return False
    between = np.fmax(both_ways(view, "ib"), both_ways(view, "net"))[gpus]
    return bool((between >= LINK_BYTES_PER_S).all())


def both_ways(view: View, network: Literal["ib", "net"]) -> Floats:
    """[GPUs] bytes per second that its node both sends and receives: collectives do, loading does not."""
    m = view.means
    return np.minimum(m.mean(f"{network}_received_bytes_per_s"), m.mean(f"{network}_sent_bytes_per_s"))


def _pace(view: View, gpus: Positions) -> Pace:
    gpus = by_rank(view, gpus)
    tensor = view.means.mean("tensor_active_ratio")[gpus]
    return Pace(gpus, view.inventory.a["node"][gpus], tensor / tensor.max())


def by_rank(view: View, gpus: Positions) -> Positions:
    """In the order in which launchers number them: by node name, then by number."""
    refs = [view.inventory.refs[int(gpu)] for gpu in gpus]
    return gpus[sorted(range(gpus.size), key=lambda n: (natural(refs[n].node), refs[n].index or 0))]


def slowed_down(view: View, slow: Positions, others: Positions) -> bool:
    """Are the clocks of the slow ones low for another reason than their work; two models do not compare."""
    bits = view.step.get("clock_event_reasons")[slow]
    if bool((np.nan_to_num(bits).astype(np.int64) & SLOWED_DOWN).any()):
        return True
    if not same_model(view, slow, others):
        return False
    clock, usual = (mean_of(view.step.get("sm_clock_hz"), gpus) for gpus in (slow, others))
    return clock is not None and usual is not None and clock < LOW_CLOCK * usual


def same_model(view: View, slow: Positions, others: Positions) -> bool:
    """Are they all of one model."""
    return np.unique(view.inventory.a["model"][np.concatenate((slow, others))]).size == 1


def natural(name: str) -> list[tuple[int, str]]:
    """node2 before node10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


@dataclass(frozen=True, slots=True)
class Settings:
    """Seconds and samples."""

    on_after_s: float = 35.0
    off_after_s: float = 60.0
    least_samples: int = 6
    even_s: float = 60.0


class OutOfStep(Detector):
    """What the detectors share that find a job whose GPUs do not work alike: the loss of those that wait."""

    state = "starved"
    explains = ("starvation",)
    groups_by = "job"
    compares_gpus = True
    finding_delay_s = 600.0
    """Longer than an evaluation or a profile."""
    accounting_delay_s = 90.0
    grace = "until a job has started (activity 10 % over 30 s, and 60 s more), at most 10 min"

    def __init__(self, size: int, period_s: float, settings: Settings | None = None) -> None:
        settings = settings or Settings()
        self._settings = settings
        self._even_ns = int(settings.even_s * SECOND_NS)
        self._hold = Hold(size, max(settings.off_after_s, 2 * period_s), forget_s=1800.0)
        self._a = PerGpu(size)
        self._a.at["tick"] = -1
        self._a.make("loss", np.float64, 0.0)
        self._a.make("cause", np.int16, 0)
        self._a.make("slow", np.bool_, False)  # sets the pace of its job
        self._a.make("even_since", np.int64, NEVER)
        self._a.make("was_even", np.bool_, False)

    def look(self, view: View) -> Verdict:
        """Compare the GPUs of each job, every EACH_S."""
        a, step = self._a, view.step
        tick = step.end_ns // (EACH_S * SECOND_NS)
        if tick != a.at["tick"]:
            a.at["tick"] = tick
            compared = view.once(compare)
            waits = self._waiting(view, compared.uneven)
            known = compared.known | (view.alive & ~view.allocated)
            enough = enough_ns(view, self._settings.on_after_s, self._settings.least_samples)
            self._hold.update(waits, known, step.start_ns, step.end_ns, enough)
            self._remember_even(compared, step.end_ns)
        on = self._hold.on
        lag = np.int64(view.means.window_s / 2 * SECOND_NS)  # of the mean behind the signal
        since = np.where(on, np.maximum(self._hold.since - lag, view.held_since), NEVER)
        return Verdict(on, since, a["cause"], np.where(on, a["loss"], 0.0), explains=on | a["slow"])

    def _waiting(self, view: View, uneven: list[Pace]) -> Bools:
        a = self._a
        waits = np.zeros(view.alive.shape, dtype=np.bool_)
        job = view.inventory.a["job"]
        held = np.unique(job[self._hold.on])
        slow = a["slow"]
        slow &= np.isin(job, held[held > 0])
        for pace in uneven:
            found = self.judge(view, pace, was_even=bool(a["was_even"][pace.gpus].all()))
            if found is None:
                continue
            waiting = pace.gpus[~found & (pace.work < EVEN)]
            waits[waiting] = True
            slow[pace.gpus] = found
            a["loss"][pace.gpus] = 1.0 - pace.work
        return waits

    def _remember_even(self, compared: Compared, end_ns: int) -> None:
        a, even = self._a, compared.even
        a["even_since"][compared.known & ~even] = NEVER
        fresh = even & (a["even_since"] == NEVER)
        a["even_since"][fresh] = end_ns
        was_even = a["was_even"]
        was_even |= even & (end_ns - a["even_since"] >= self._even_ns)

    @abstractmethod
    def judge(self, view: View, pace: Pace, *, was_even: bool) -> Bools | None:
        """[GPUs of `pace`] those that set the pace, None where this is not what the detector looks for.

        `was_even`: was this job seen even before.
        """

    def slow_of(self, view: View, gpus: Positions) -> Positions:
        """Those that set the pace of the job of `gpus`."""
        job = view.inventory.a["job"]
        return np.flatnonzero(self._a["slow"] & (job == job[gpus[0]]))

    def slow_refs(self, view: View, gpus: Positions) -> tuple[GpuRef, ...]:
        """The same by name."""
        return tuple(view.inventory.refs[int(gpu)] for gpu in self.slow_of(view, gpus))

    def reset(self, gpus: Bools) -> None:
        """Another job: anew."""
        self._hold.reset(gpus)
        self._a["slow"][gpus] = False
        self._a["was_even"][gpus] = False
        self._a["even_since"][gpus] = NEVER
