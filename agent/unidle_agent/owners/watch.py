"""When the sources of owners are asked, and how their answers get into the ticks.

A thread of its own asks, every `owner_s` seconds and at once when a process, a label or a GPU changes, so
that a slow directory server or kubelet delays no tick. In between it reads the CPU and memory figures of
the jobs' cgroups after each tick; each figure is in one tick, the one after. `complete` only looks up.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from unidle_agent.config import AgentSettings
from unidle_agent.errors import SourceError
from unidle_agent.owners import Claims, Holder, OwnerSource, sources
from unidle_agent.owners.resolve import join_holders, resolve
from unidle_agent.privacy import Pseudonymiser
from unidle_agent.sample import GpuReading, Tick, Value
from unidle_agent.sources import SLACK_S
from unidle_agent.sources.cgroups import CGROUP_ROOT, usage
from unidle_agent.wire import GpuFacts, Owner

log = logging.getLogger("unidle.agent")

LEAVE_S = 1.0
"""How long closing waits for a source that is in the middle of an answer."""

State = dict[str, tuple[Owner, tuple[int, ...] | None]]
"""What owners depend on, per row: what its samples say of it, and its processes."""


class OwnerWatch:
    """Keeps the owner of every GPU; names in it are pseudonyms already."""

    def __init__(
        self,
        asked: Sequence[OwnerSource],
        pseudonyms: Pseudonymiser,
        owner_s: float,
        *,
        cgroups: Path = CGROUP_ROOT,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sources = tuple(asked)
        self._pseudonyms = pseudonyms
        self._owner_s = owner_s
        self._cgroups = cgroups
        self._monotonic = monotonic
        self._news = threading.Condition()
        self._gpus: tuple[GpuReading, ...] | None = None
        """Rows that the thread has not looked at yet."""
        self._leaving = False
        self._state: State = {}
        self._due_s = float("-inf")
        self._owners: dict[str, Owner] = {}
        self._completed: dict[str, tuple[GpuFacts, Owner, GpuFacts]] = {}
        """UUID -> facts as they came, owner, the facts with that owner: seldom is any of them new."""
        self._holders: Mapping[int, Holder] = {}
        self._job_cgroups: dict[str, Mapping[str, str]] = {}
        self._figures: dict[str, dict[str, Value]] = {}
        self._problems: tuple[str, ...] = ()
        self._thread: threading.Thread | None = None

    def complete(self, tick: Tick) -> Tick:
        """`tick` with owners, and with the figures of their jobs; never waits for a source."""
        with self._news:
            figures, self._figures = self._figures, {}
            owners, problems = self._owners, self._problems
            if self._job_cgroups or self._monotonic() >= self._due_s or _state(tick.gpus) != self._state:
                self._gpus = tick.gpus
                self._news.notify_all()
        completed: dict[str, tuple[GpuFacts, Owner, GpuFacts]] = {}
        gpus = []
        for gpu in tick.gpus:
            uuid = gpu.facts.uuid
            owner = owners.get(uuid) or self._pseudonyms.owner(gpu.facts.owner)
            more = figures.get(uuid, {})
            completed[uuid] = self._complete(gpu.facts, owner, more)
            values = {**more, **gpu.values} if more else gpu.values
            gpus.append(GpuReading(completed[uuid][2], values, gpu.pids))
        self._completed = completed
        return replace(tick, gpus=tuple(gpus), problems=(*tick.problems, *problems))

    def _complete(
        self, facts: GpuFacts, owner: Owner, figures: Mapping[str, Value]
    ) -> tuple[GpuFacts, Owner, GpuFacts]:
        before = self._completed.get(facts.uuid)
        same = before is not None and before[0] is facts and before[1] is owner
        if before is not None and same and figures.keys() <= before[2].sources.keys():
            return before
        sources = {**dict.fromkeys(figures, "cgroup"), **facts.sources}
        return facts, owner, replace(facts, owner=owner, sources=sources)

    def job_of(self, pid: int) -> str:
        """The job, as a pseudonym, of a process that was on a GPU at the last look; empty where not known."""
        with self._news:
            holder = self._holders.get(pid)
        return self._pseudonyms.owner(Owner(job=holder.job)).job if holder else ""

    def start(self) -> None:
        """Begin to look by itself."""
        self._thread = threading.Thread(target=self._work, name="owners", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop looking and close the sources."""
        with self._news:
            self._leaving = True
            self._news.notify_all()
        if self._thread is not None:
            self._thread.join(LEAVE_S)
        for source in self._sources:
            source.close()

    def refresh(self, gpus: Sequence[GpuReading]) -> None:
        """Ask every source about `gpus` now, if it is time or something changed, and read the figures."""
        now_s = self._monotonic()
        state = _state(gpus)
        if now_s >= self._due_s or state != self._state:
            self._ask(gpus)
            self._state, self._due_s = state, now_s + self._owner_s - SLACK_S
        figures: dict[str, dict[str, Value]] = {}
        by_path: dict[tuple[tuple[str, str], ...], dict[str, Value]] = {}
        for uuid, cgroup in self._job_cgroups.items():
            key = tuple(sorted(cgroup.items()))
            if key not in by_path:
                by_path[key] = usage(cgroup, self._cgroups)
            figures[uuid] = by_path[key]
        with self._news:
            self._figures = figures

    def _ask(self, gpus: Sequence[GpuReading]) -> None:
        problems: list[str] = []
        answers = [self._answer(source, gpus, problems) for source in self._sources]
        holders = join_holders(answer.holders for answer in answers)
        owners = {}
        for gpu in gpus:
            uuid, said = gpu.facts.uuid, gpu.facts.owner
            claims = [answer.gpus[uuid] for answer in answers if uuid in answer.gpus]
            owners[uuid] = self._pseudonyms.owner(resolve(said, claims, gpu.pids, holders))
        self._job_cgroups = {
            gpu.facts.uuid: cgroup for gpu in gpus if (cgroup := _job_cgroup(gpu, holders)) is not None
        }
        with self._news:
            self._owners, self._holders, self._problems = owners, holders, tuple(problems)

    def _answer(self, source: OwnerSource, gpus: Sequence[GpuReading], problems: list[str]) -> Claims:
        try:
            claims = source.read(gpus)
        except SourceError as error:
            problems.append(f"{source.name}: {error}")
            return Claims()
        except Exception as error:  # a bug in one source must not silence the others
            # Not the error's own words: they may quote what was read, and that names people.
            at = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(at.filename).name}:{at.lineno}"
            problems.append(f"{source.name}: unexpected {type(error).__name__} at {where}")
            return Claims()
        problems += [f"{source.name}: {problem}" for problem in claims.problems]
        return claims

    def _work(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._leaving or self._gpus is not None)
                if self._leaving:
                    return
                gpus, self._gpus = self._gpus or (), None
            self.refresh(gpus)


def watch(settings: AgentSettings, pseudonyms: Pseudonymiser) -> OwnerWatch:
    """All sources that `settings` ask for."""
    return OwnerWatch(sources(settings), pseudonyms, settings.owner_s)


def _state(gpus: Sequence[GpuReading]) -> State:
    return {gpu.facts.uuid: (gpu.facts.owner, gpu.pids) for gpu in gpus}


def _job_cgroup(gpu: GpuReading, holders: Mapping[int, Holder]) -> Mapping[str, str] | None:
    """The cgroup of the one job on the GPU; None where there is none, or several."""
    found = {
        tuple(sorted(cgroup.items())): cgroup
        for pid in gpu.pids or ()
        if pid in holders and (cgroup := holders[pid].cgroup)
    }
    return next(iter(found.values())) if len(found) == 1 else None
