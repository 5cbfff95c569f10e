"""What a cluster's scheduler says: who was given which GPUs, who waits, in what state the nodes are.

One file per scheduler, found by walking this package: a module with a function `source(settings)` that
answers a `Source` where the settings ask for it. When it is asked, and what holds while it does not answer,
is in `poller`; how its word and the agents' become one owner is in `unidle_collector.ownership`.

Names of users, pods and namespaces are pseudonyms in every record here: they are hidden where the answer is
read. Names, commands and folders of jobs are not taken over at all.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Literal, Protocol

from unidle_agent.errors import UnidleError
from unidle_collector.settings import CollectorSettings


class SchedulerError(UnidleError):
    """The scheduler cannot be asked, or answered something unexpected."""

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        """How long the scheduler itself asked to be left alone; 0 where it did not say."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What one job holds of one node."""

    node: str
    gpus: int | None
    """None where the scheduler does not say."""
    indices: tuple[int, ...] | None = None
    """The scheduler's numbers of these GPUs (Slurm: minor numbers of devices); None where it does not say."""
    kind: str = ""
    """The scheduler's name for the type of GPU, `b200` or `mig-1g.10gb`."""
    shared: bool = False
    """A share of GPUs (shards, MPS) that other jobs may have a share of, too."""


JobState = Literal["running", "pending", "suspended", "completing", "ended"]


@dataclass(frozen=True, slots=True)
class Job:
    """One job, or one task of an array, or one pod."""

    id: str
    """What agents call it: Slurm's job id, or `namespace/pod` as pseudonyms."""
    state: JobState
    aliases: tuple[str, ...] = ()
    """Other names that agents may have for it: a pod by its UID or by its containers."""
    user: str = ""
    """Pseudonym."""
    team: str = ""
    """Slurm's account; of a pod its team label, else its namespace."""
    partition: str = ""
    """Slurm's partition; of a pod its queue label."""
    array: str = ""
    """`13_1`; of tasks that wait together `13_[2-9]`."""
    tasks: int = 1
    """How many tasks of the array this record stands for."""
    het: str = ""
    """`13+1`: part 1 of a heterogeneous job."""
    grants: tuple[Grant, ...] = ()
    requested_gpus: int | None = None
    """Of one task; None where that cannot be told."""
    requested_cpus: int | None = None
    requested_memory_bytes: int | None = None
    time_limit_s: float | None = None
    """None where there is none."""
    submitted_ns: int | None = None
    eligible_ns: int | None = None
    started_ns: int | None = None
    reason: str = ""
    """Why it waits, in the scheduler's word."""
    features: str = ""
    """What it asks of nodes: Slurm's constraint, or the node selector."""
    interactive: bool | None = None
    """None where that cannot be told."""


@dataclass(frozen=True, slots=True)
class Node:
    """One node as the scheduler sees it."""

    name: str
    states: tuple[str, ...]
    """The scheduler's words in lower case: `mixed`, `drain`; `ready`, `unschedulable`."""
    available: bool
    """New work may start on it."""
    down: bool
    reason: str = ""
    gpus: int = 0
    gpus_used: int | None = None
    indices_used: tuple[int, ...] | None = None
    """None where the scheduler does not number GPUs."""
    kinds: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    partitions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A cluster at one instant."""

    scheduler: str
    cluster: str
    version: str
    taken_ns: int
    jobs: tuple[Job, ...]
    """Everything that holds or waits for something, CPU-only jobs included."""
    nodes: tuple[Node, ...]
    ended: Mapping[str, Job] = field(default_factory=dict)
    """Jobs that are over, by id, where the scheduler keeps books (sacct)."""
    problems: tuple[str, ...] = ()
    """What could not be read, without making the rest wrong."""


class Source(Protocol):
    """A scheduler that can be asked."""

    name: str

    def read(self) -> Snapshot:
        """The cluster now, within the source's own deadline; raises SchedulerError with what to do."""


def source(settings: CollectorSettings) -> Source | None:
    """The scheduler that the settings name, None where they name none."""
    for module in pkgutil.iter_modules(__path__):
        build = getattr(import_module(f"{__name__}.{module.name}"), "source", None)
        found: Source | None = build(settings) if build is not None else None
        if found is not None:
            return found
    return None
