"""Idle: a GPU has an owner and nothing runs on it.

What it means
    Somebody holds the GPU - a job, a pod, a process, or memory on it - and no kernel has run for
    longer than the grace. The whole GPU is lost while it lasts. Sub-kinds: `no_process` (held by the
    scheduler, no process on the GPU: a job that hangs before it starts, or that asked for more GPUs
    than it uses), `held` (a process or memory is there: a loaded model without requests, a notebook
    left open, a dead rank), `interactive` (the owner is an interactive session: its scheduler says so, or
    the name of the job or pod does, as salloc, Open OnDemand and JupyterHub give it).

Evidence
    gpu_util_ratio, sm_active_ratio, graphics_active_ratio all below 1 %; memory and processes held; the
    energy drawn since the sample before, against the power at the sample. Of a session also the share of
    its time in which something ran, and its CPU time (job_cpu_s).

How it decides
    Activity is the largest of the three that is known.
    - Below 1 % it is nothing: profilers have a noise floor, so exactly 0 would miss idle GPUs.
    - Up to 5 % for at most 10 s it is a probe of some tool and changes nothing.
    - Anything else means that something ran and the clock starts anew, and so does PCIe traffic of 0.1 GB/s
      or more: offloaded work moves data while no kernel runs.

    Samples far apart can all fall between two pieces of work. Something ran where the energy since the sample
    before, however long ago that was, is 5 % and 10 W more than the power at the sample would have drawn in
    that time and 2 s more (samples come late); in a session, whose cells take seconds, 5 % and 5 W more than
    in its quietest sample (of a MIG instance: its part of those W).

    - Accounted after 2 min and 8 samples without activity (interactive: 15 min, and 60 samples where the
      energy is not known), back to the first idle second. Of a recording with fewer samples all of them
      count, 3 at least, where power has kept within 2 % meanwhile (a loaded H100 that nobody asks spreads
      0.3 W around 120 W): one that works between samples does not draw the same at each.
    - A job on which nothing has run yet gets 10 min to start.
    - A person is told after 30 min (no process: 15 min, interactive: 60 min and 480 samples).
    - GPUs that nobody owns are not idle but unallocated.

How sure
    Which sub-kind it is: 95 % where the number of processes is known, memory is held, or the owner is known
    to be interactive; 80 % for `no_process` where only the empty memory says so: `held` gets the rest.

What to do
    Ask the owner; end the job or the session, or shrink it to the GPUs that it uses. Sessions: a time
    limit, a culler of idle kernels and servers, and a MIG instance in the place of a whole GPU. Where other
    GPUs of the same job work and these never did, `over_provisioned` says so in the place of this.

How to silence it
    `silence = ["idle:JOB"]` in `[collector]`, or tell unidle that the session is interactive.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from unidle_collector.detectors import (
    About,
    Detector,
    Verdict,
    duration,
    mean_of,
    percent,
    plural,
)
from unidle_collector.model import Evidence
from unidle_collector.pergpu import NEVER, SECOND_NS, Bools, Causes, Floats, Hold, PerGpu, Positions
from unidle_collector.signals import BLIP, HELD_BYTES, NOTHING_RAN, START_GRACE_S, View
from unidle_collector.signs.lasting import where
from unidle_collector.signs.smaller import slice_for

NO_PROCESS, HELD, INTERACTIVE = range(3)
TOLD_AFTER_S = {"no_process": 900.0, "interactive": 3600.0}

SESSION = (
    "End it when nobody uses it: start sessions with a time limit (sbatch --time=04:00:00), let Jupyter "
    "end idle kernels (--MappingKernelManager.cull_idle_timeout=3600) or JupyterHub idle servers "
    "(jupyterhub-idle-culler --timeout=3600)."
)


TITLES = {
    "no_process": "no process is on",
    "held": "a process holds",
    "interactive": "an interactive session holds",
}
ADVICE = {
    "no_process": (
        "Ask the owner: a job that uses some of its GPUs should ask for those only (sbatch --gpus=N, "
        "nvidia.com/gpu: N); one whose launcher hangs should be ended."
    ),
    "held": (
        "Ask the owner whether it is still needed, then end it. A server that waits for requests: let it "
        "scale to zero (KServe minReplicas: 0) or share its GPU; a job that is done: let its script exit."
    ),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """Seconds."""

    grace_s: float = 120.0
    interactive_grace_s: float = 900.0
    blip_s: float = 10.0
    forget_s: float = 1800.0
    least_samples: int = 8
    between_ratio: float = 1.05
    between_w: float = 10.0
    late_s: float = 2.0
    few_samples: int = 3
    steady_ratio: float = 0.02
    session_ratio: float = 1.05
    session_w: float = 5.0
    """A loaded GPU at rest holds its power within 0.3 of 120 W (8xH100)."""
    session_samples: int = 60
    session_told_samples: int = 480


class Idle(Detector):
    """The condition, vectorised."""

    kind = "idle"
    state = "idle"
    causes = ("no_process", "held", "interactive")
    groups_by = "job"
    finding_delay_s = 1800.0
    accounting_delay_s = 120.0
    grace = "10 min to start; 15 min without activity in an interactive session"

    def __init__(self, size: int, period_s: float, settings: Settings) -> None:
        self._settings = settings
        self._hold = Hold(size, 0.0, settings.forget_s)
        self._a = PerGpu(size)
        self._a.make("blip_since", np.int64, NEVER)
        self._a.make("cause", np.int16, HELD)
        self._a.make("held_s", np.float64, 0.0)
        self._a.make("ran_s", np.float64, 0.0)
        self._a.make("energy_ns", np.int64, NEVER)  # up to when the energy is known
        self._a.make("least_w", np.float64, np.nan)
        self._a.make("most_w", np.float64, np.nan)
        self._period_s = period_s
        self._steady_grace_s = np.inf
        self._a.make("rest_ratio", np.float64, np.nan)
        self._blip_ns = int(max(settings.blip_s, 0.0) * SECOND_NS)
        self._coarse = period_s > settings.blip_s
        self._least_grace_s = grace_s(period_s, settings)

    def in_all(self, steps: int) -> None:
        """There will be this many steps and no more: where they are fewer than the grace takes, it is judged
        by all of them."""
        s = self._settings
        if s.few_samples <= steps and s.grace_s <= steps * self._period_s < self._least_grace_s:
            self._steady_grace_s = steps * self._period_s

    def look(self, view: View) -> Verdict:
        """See the module's docstring."""
        step = view.step
        known = view.alive & ~np.isnan(view.activity)
        quiet = view.allocated & (view.activity < NOTHING_RAN) & ~view.moving & ~self._ran_between(view)
        blip = view.allocated & (view.activity >= NOTHING_RAN) & (view.activity < BLIP)
        known &= ~self._is_probe(blip & known, step.start_ns, step.end_ns)
        ran_s = np.where(view.never_ran, START_GRACE_S, self._grace_s(view, quiet))
        after = np.where(view.inventory.a["interactive"], self._session_grace_s(view), ran_s)
        self._hold.update(quiet, known, step.start_ns, step.end_ns, (after * SECOND_NS).astype(np.int64))
        self._a["cause"][:] = self._cause(view)
        seconds = step.period_ns / SECOND_NS
        self._a["held_s"][:] += np.where(known & view.allocated, seconds, 0.0)
        self._a["ran_s"][:] += np.where(known & view.allocated & (view.activity >= NOTHING_RAN), seconds, 0.0)
        return Verdict(self._hold.on, self._hold.since, self._a["cause"], np.ones(len(after)))

    def _grace_s(self, view: View, quiet: Bools) -> Floats:
        """[GPUs] seconds that one may do nothing which has worked."""
        s = self._settings
        grace_s = np.maximum(s.grace_s, s.least_samples * view.sampled_each_s)
        if self._steady_grace_s >= self._least_grace_s:
            return grace_s
        return np.where(self._steady(view, quiet), self._steady_grace_s, grace_s)

    def _steady(self, view: View, quiet: Bools) -> Bools:
        """Where power is known and has kept to itself since the GPU does nothing."""
        power, least, most = view.step.get("power_w"), self._a["least_w"], self._a["most_w"]
        least[:] = np.where(quiet, np.fmin(least, power), np.nan)
        most[:] = np.where(quiet, np.fmax(most, power), np.nan)
        out: Bools = most - least <= self._settings.steady_ratio * most
        return out

    def _ran_between(self, view: View) -> Bools:
        """Where more energy was drawn since the sample before than at the sample's power: it worked then.

        The sample may have been late: that is no work.
        """
        at_sample_w, energy_j, s = view.step.get("power_w"), view.step.get("energy_j"), self._settings
        rest, end_ns, period_s = self._a["rest_ratio"], view.step.end_ns, view.step.period_ns / SECOND_NS
        upto_ns = self._a["energy_ns"]
        energy_s = (end_ns - np.where(upto_ns == NEVER, view.step.start_ns, upto_ns)) / SECOND_NS
        between_s = np.fmax(energy_s, view.inventory.a["period_s"])
        mean_w = energy_j / period_s * between_s / (between_s + s.late_s)  # its rate since it was read before
        upto_ns[~np.isnan(energy_j)] = end_ns
        ratio = mean_w / np.maximum(at_sample_w, 1.0)
        quiet = view.activity < NOTHING_RAN
        rest[quiet] = np.fmin(rest, np.maximum(ratio, 1.0))[quiet]  # the two meters need not agree
        session = view.inventory.a["interactive"]
        least_ratio = np.where(session, s.session_ratio * rest, s.between_ratio)
        more_w = np.where(session, s.session_w, s.between_w) * view.inventory.a["share"]
        out: Bools = (ratio >= least_ratio) & (mean_w >= at_sample_w + more_w)
        return out

    def _session_grace_s(self, view: View) -> Floats:
        """[GPUs] cells that take seconds fall between samples far apart; only the energy would tell."""
        s = self._settings
        unseen = np.isnan(view.step.get("energy_j") + view.step.get("power_w"))
        longer_s = np.maximum(s.interactive_grace_s, s.session_samples * view.sampled_each_s)
        return np.where(unseen, longer_s, s.interactive_grace_s)

    def _is_probe(self, blip: Bools, start_ns: int, end_ns: int) -> Bools:
        """Where activity is slight and has been for a moment only: it says nothing."""
        since = self._a["blip_since"]
        since[~blip] = NEVER
        since[blip & (since == NEVER)] = start_ns
        if self._coarse:
            return np.zeros_like(blip)
        probe: Bools = blip & (end_ns - since <= self._blip_ns)
        return probe

    def _cause(self, view: View) -> Causes:
        processes, used = view.step.get("process_count"), view.step.get("memory_used_bytes")
        empty = np.where(np.isnan(processes), used < HELD_BYTES, processes == 0)
        cause = np.where(view.inventory.a["interactive"], INTERACTIVE, np.where(empty, NO_PROCESS, HELD))
        return np.where(view.step.sampled, cause, self._a["cause"]).astype(np.int16)

    def delay_s(self, cause: str) -> float:
        """A session rests more often, and what has no process will hardly begin."""
        return TOLD_AFTER_S.get(cause, self.finding_delay_s)

    def about(self, view: View, gpus: Positions, cause: str, lasted_s: float) -> About:
        """What a colleague would say."""
        activity, power = mean_of(view.activity, gpus), mean_of(view.step.get("power_w"), gpus)
        memory = mean_of(view.step.get("memory_used_bytes"), gpus)
        processes = mean_of(view.step.get("process_count"), gpus)
        them, each = ("it", "it") if gpus.size == 1 else ("them", "each")
        evidence = [
            Evidence(
                "gpu_util_ratio", activity, "1", NOTHING_RAN, lasted_s,
                f"activity {percent(activity)} for {duration(lasted_s)}, below {percent(NOTHING_RAN)}",
            )
        ]  # fmt: skip
        if processes is not None:
            count = "1 process" if processes == 1 else f"{processes:.2g} processes"
            words = f"{count} on {each}" if processes else f"no process on {them}"
            evidence.append(Evidence("process_count", processes, "{process}", None, 0.0, words))
        if memory is not None:
            words = f"{memory / 2**30:.1f} GiB of memory held per GPU"
            evidence.append(Evidence("memory_used_bytes", memory, "By", None, 0.0, words))
        if power is not None:
            evidence.append(Evidence("power_w", power, "W", None, 0.0, f"{power:.0f} W drawn per GPU"))
        if cause == "interactive":
            evidence += self._of_session(view, gpus)
        guessed = cause == "no_process" and processes is None
        node, numbers = where(view, gpus)
        return About(
            title=f"{plural(gpus.size, 'GPU')} idle for {duration(lasted_s)}: {TITLES[cause]} {them}",
            severity="warning",
            confidence=0.8 if guessed else 0.95,
            evidence=tuple(evidence),
            advice=SESSION + _slice(view, gpus) if cause == "interactive" else ADVICE[cause],
            confirm=(
                "nvidia-smi --query-compute-apps=gpu_uuid,pid,used_memory --format=csv "
                f"-i {numbers} on {node}"
            ),
            runners_up=(("held", 0.2),) if guessed else (),
            told_after_s=self._told_after_s(view, gpus) if cause == "interactive" else None,
        )

    def _told_after_s(self, view: View, gpus: Positions) -> float:
        """Cells of a few seconds mostly fall between samples that are far apart, and draw little."""
        samples_s = self._settings.session_told_samples * float(view.sampled_each_s[gpus].max())
        return max(self.delay_s("interactive"), samples_s)

    def _of_session(self, view: View, gpus: Positions) -> Iterator[Evidence]:
        """How much the session has been used at all."""
        held_s = float(self._a["held_s"][gpus].max())
        if held_s > 0:
            used = float(self._a["ran_s"][gpus].max()) / held_s
            text = f"something ran in {percent(used)} of the {duration(held_s)} seen of the session"
            yield Evidence("zero_activity_ratio", 1 - used, "1", None, held_s, text)
        cpu_s = mean_of(view.step.get("job_cpu_s"), gpus)
        if cpu_s is not None:
            cores = cpu_s * SECOND_NS / view.step.period_ns
            yield Evidence("job_cpu_s", cores, "1", None, held_s, f"{cores:.1f} cores busy in the session")

    def reset(self, gpus: Bools) -> None:
        """Another job: anew."""
        self._hold.reset(gpus)
        self._a["held_s"][gpus] = self._a["ran_s"][gpus] = 0.0
        self._a["rest_ratio"][gpus] = np.nan


def _slice(view: View, gpus: Positions) -> str:
    """What would hold a session that needs no whole GPU."""
    total, used = (float(view.step.get(f"memory_{name}_bytes")[gpus].max()) for name in ("total", "used"))
    small = slice_for(view.inventory.refs[int(gpus[0])].model, total, used, 0.0)
    return "" if small is None else f" A MIG instance {small.profile} would hold what is loaded."


def grace_s(period_s: float, settings: Settings | None = None) -> float:
    """How long a GPU that was seen to work, or whose job began before, may do nothing."""
    settings = settings or Settings()
    return max(settings.grace_s, settings.least_samples * period_s)


def make(size: int, period_s: float) -> Idle:
    """The detector with the product's defaults."""
    return Idle(size, period_s, Settings())
