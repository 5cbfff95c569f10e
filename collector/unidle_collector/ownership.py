"""Who holds each GPU: the agents' word and the scheduler's, joined to one owner with source and confidence.

The agent sees what is used, and with a prolog or a kubelet what is allocated; the scheduler knows what is
allocated. Per GPU:

    scheduler     agent                       owner, note                              confidence
    job J         J                           J                                        high
    job J         nobody says                 J                                        high
    job J         processes of K              J, used by K, `conflict`                 low
    job J         nothing allocated           J                                        medium
    several jobs  any                         all of them, `shared`                    medium
    nobody        processes of K, K runs      nobody, used by K, `not allocated`       medium
    nobody        processes of K, K is over   nobody, used by K, `orphan`              high
    nobody        K, but no process           nobody, `stale` (the prolog's file)      medium
    nobody        nobody says                 nobody                                   high
    cannot tell   any                         the agent's                              the agent's

An agent's word that changed after the snapshot was taken counts alone until the next one: jobs begin and end
between two polls. A stale snapshot contradicts nobody: it fills in a job where the agent says nothing, marked
`stale` and low. MIG instances have no number that both sides share: there the scheduler is believed about
nodes that one job has as a whole, or nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from unidle_agent.owners.resolve import CONFLICT, NOT_ALLOCATED, ORPHAN, OUTSIDE, SHARED, STALE
from unidle_agent.wire import Owner
from unidle_collector.accounts.dimensions import Dimensions, JobDimensions
from unidle_collector.scheduler import Grant, Job, Node, Snapshot
from unidle_collector.scheduler.names import epoch


@dataclass(frozen=True, slots=True)
class Place:
    """Where a GPU is, as a scheduler would say it."""

    node: str
    number: int | None
    """The device's minor number, else its index."""
    whole: bool = True
    """False for a MIG instance."""


@dataclass(frozen=True, slots=True)
class Word:
    """What the scheduler says of one GPU."""

    source: str
    jobs: tuple[Job, ...] | None
    """Empty where nobody holds it, None where that cannot be told."""
    stale: bool = False


def join(agent: Owner, word: Word, running: Mapping[str, Job], *, newer: bool = False) -> Owner:
    """One owner from both words; `running` are the scheduler's jobs by every name that they have.

    `newer`: the agent's word changed after the scheduler's was taken.
    """
    if word.jobs is None or _unlike(agent.job or agent.used_by, running):
        return _confirmed(agent, word, running)
    if agent.allocated is not None and (word.stale or newer):
        return _confirmed(agent, word, running)
    if word.jobs:
        return _held(agent, word, word.jobs)
    return agent if word.stale else _free(agent, word, running)


def _held(agent: Owner, word: Word, by: tuple[Job, ...]) -> Owner:
    jobs = [job.id for job in by]
    names = {name for job in by for name in (job.id, *job.aliases)}
    seen = [job for job in (agent.used_by or agent.job).split(",") if job]
    foreign = [job for job in seen if job not in names]
    owner = Owner(
        allocated=True,
        job=",".join(jobs),
        user=",".join(dict.fromkeys(job.user for job in by if job.user)) or agent.user,
        interactive=agent.interactive or any(job.interactive for job in by),
        source=word.source,
        confidence="high",
        note="" if agent.note in (STALE, ORPHAN, NOT_ALLOCATED, OUTSIDE, CONFLICT) else agent.note,
    )
    if word.stale:
        return replace(owner, confidence="low", note=STALE)
    if foreign:
        return replace(owner, confidence="low", note=CONFLICT, used_by=",".join(foreign))
    if len(jobs) > 1:
        return replace(owner, confidence="medium", note=SHARED)
    if agent.allocated and agent.job:
        return replace(owner, source=_both(agent.source, word.source), note=agent.note)
    if agent.allocated is False or agent.note == OUTSIDE:  # one of the two is wrong, or a process is foreign
        return replace(owner, confidence="medium", note=OUTSIDE if agent.note == OUTSIDE else "")
    return owner


def _free(agent: Owner, word: Word, running: Mapping[str, Job]) -> Owner:
    """The scheduler gave the GPU to nobody."""
    if agent.allocated is False:
        return replace(agent, source=_both(agent.source, word.source))
    nobody = Owner(False, user=agent.user, source=word.source, confidence="high")
    if agent.allocated is None:
        if agent.note == OUTSIDE or agent.used_by:
            note = agent.note or NOT_ALLOCATED
            return replace(nobody, confidence="medium", note=note, used_by=agent.used_by)
        return nobody
    if agent.confidence == "inferred" or agent.used_by:
        used = agent.used_by or agent.job
        over = not any(job in running for job in used.split(","))
        note, confidence = (ORPHAN, "high") if over else (NOT_ALLOCATED, "medium")
        return replace(nobody, confidence=confidence, note=note, used_by=used)
    if agent.confidence == "high" and not agent.note:  # its processes run there: it is no old file
        return replace(nobody, confidence="low", note=CONFLICT, used_by=agent.job)
    return replace(nobody, user="", confidence="medium", note=STALE)


def _confirmed(agent: Owner, word: Word, running: Mapping[str, Job]) -> Owner:
    """The agent's owner with what the scheduler knows of its job, where it does not say which GPUs."""
    known = [running[job] for job in agent.job.split(",") if job in running]
    if not agent.allocated or not known:
        return agent
    return replace(
        agent,
        job=",".join(running[job].id if job in running else job for job in agent.job.split(",")),
        user=agent.user or ",".join(dict.fromkeys(job.user for job in known if job.user)),
        interactive=agent.interactive or any(job.interactive for job in known),
        source=_both(agent.source, word.source),
    )


def _unlike(job: str, running: Mapping[str, Job]) -> bool:
    """Names of pods that are hidden by two keys, or by one side only, say nothing about each other."""
    other = next(iter(running), "")
    return "/" in job and "/" in other and epoch(job) != epoch(other)


def _both(first: str, second: str) -> str:
    return first if not second or second in first.split("+") else f"{first}+{second}" if first else second


@dataclass(slots=True)
class _OnNode:
    """What jobs hold of one node."""

    node: Node
    by_number: dict[int, list[Job]] = field(default_factory=dict)
    unnumbered: list[tuple[Job, Grant]] = field(default_factory=list)
    whole: Job | None = None
    """The one job that holds all its GPUs."""
    empty: bool = True

    def jobs(self, place: Place) -> tuple[Job, ...] | None:
        """The jobs on one GPU of this node; None where that cannot be told.

        A GPU in use without a job that holds it belongs to a job that is hidden from us.
        """
        if self.empty:
            return None if self.node.gpus_used else ()
        if self.whole is not None:
            return (self.whole,)
        used, number = self.node.indices_used, place.number
        if used is None or self.unnumbered or not place.whole or number is None or number >= self.node.gpus:
            return None
        found = tuple(self.by_number.get(number, ()))
        return None if not found and number in used else found


class Ownership:
    """Both words on every GPU; without a scheduler it gives the agents' back as they are."""

    def __init__(self, stale_after_ns: int = 0, known: JobDimensions | None = None) -> None:
        """`known` remembers team and partition of jobs, over restarts where it is the engine's."""
        self._stale_after_ns = stale_after_ns
        self._snapshot: Snapshot | None = None
        self._nodes: dict[str, _OnNode] = {}
        self._running: dict[str, Job] = {}
        self._said: dict[int, tuple[Place, Owner, int]] = {}
        self._known = known or JobDimensions()
        self.unlike: set[int] = set()
        """GPUs whose agent hides names by another key than this collector."""

    @property
    def snapshot(self) -> Snapshot | None:
        """What the joins rest on."""
        return self._snapshot

    def hear(self, gpu: int, place: Place, owner: Owner, now_ns: int) -> Owner:
        """The agent's word on the GPU at position `gpu`; returns the joined one."""
        self._said[gpu] = (place, owner, now_ns)
        return self.joined(gpu, now_ns)

    def take(self, snapshot: Snapshot) -> None:
        """A new word of the scheduler."""
        self._snapshot = snapshot
        self._running = {
            name: job for job in snapshot.jobs if job.state != "pending" for name in (job.id, *job.aliases)
        }
        self._nodes = _by_node(snapshot)
        for job in (*snapshot.ended.values(), *snapshot.jobs):
            self._known.learn(job.id, Dimensions(job.team, job.partition))

    def heard(self) -> list[int]:
        """Positions of the GPUs that agents have said anything of."""
        return list(self._said)

    def joined(self, gpu: int, now_ns: int) -> Owner:
        """The owner of a GPU that was heard of, as both words stand at `now_ns`."""
        place, owner, since_ns = self._said[gpu]
        snapshot, here = self._snapshot, self._nodes.get(place.node)
        if snapshot is None:
            return owner
        (self.unlike.add if _unlike(owner.job or owner.used_by, self._running) else self.unlike.discard)(gpu)
        jobs = here.jobs(place) if here and here.node.gpus else None
        word = Word(snapshot.scheduler, jobs, stale=now_ns - snapshot.taken_ns > self._stale_after_ns)
        return join(owner, word, self._running, newer=since_ns > snapshot.taken_ns)

    def job(self, job: str) -> Job | None:
        """A job that runs or waits, by its id."""
        return self._running.get(job)

    def dimensions(self, job: str) -> Dimensions:
        """Team and partition of a job, running or remembered."""
        return self._known.of(job)


def _by_node(snapshot: Snapshot) -> dict[str, _OnNode]:
    nodes = {node.name: _OnNode(node) for node in snapshot.nodes}
    for job in snapshot.jobs:
        for grant in job.grants:
            here = nodes.get(grant.node)
            if here is None or grant.gpus == 0:
                continue
            here.whole = job if here.empty and grant.gpus == here.node.gpus else None
            here.empty = False
            if grant.indices is None:
                here.unnumbered.append((job, grant))
            for number in grant.indices or ():
                here.by_number.setdefault(number, []).append(job)
    return nodes
