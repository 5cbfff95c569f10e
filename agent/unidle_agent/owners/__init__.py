"""Who holds a GPU, as far as the node itself knows: no scheduler is asked.

Two truths are joined. What is allocated: files that a prolog writes, the kubelet, SLURM_JOB_GPUS of running
jobs. What is used: the processes that hold the GPU, and the job of each by its cgroup or environment. One
file per source, found by walking this package: a module with a function `source(settings)`; how answers
become one owner is in `resolve`, when they are asked in `watch`.

Names here are still personal data: they leave this package through `unidle_agent.privacy` only.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Protocol

from unidle_agent.config import AgentSettings
from unidle_agent.sample import GpuReading
from unidle_agent.wire import Owner


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds a GPU, as one source sees it; empty is what the source cannot say."""

    job: str = ""
    """Job id, `pod/UID` or `container/ID`."""
    user: str = ""
    source: str = ""
    running: bool | None = None
    """Whether the job is known to run, or not to run, on this node."""
    cgroup: Mapping[str, str] = field(default_factory=dict)
    """The job's own cgroup: controller -> path, "" for version 2."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What one source says now."""

    gpus: dict[str, Owner] = field(default_factory=dict)
    """UUID of the row -> to whom the GPU is allocated. A GPU that is not in it: nothing is known."""
    holders: dict[int, Holder] = field(default_factory=dict)
    """Process id -> whose it is. A process that is not in it cannot be seen."""
    problems: tuple[str, ...] = ()


class OwnerSource(Protocol):
    """One place where a node can learn who holds its GPUs."""

    name: str
    precedence: int
    """Lower wins where two sources disagree."""

    def read(self, gpus: Sequence[GpuReading]) -> Claims:
        """What it says about these GPUs and their processes; raises SourceError with what to do."""

    def close(self) -> None:
        """Let go of what is held."""


def sources(settings: AgentSettings) -> list[OwnerSource]:
    """Every source that this node's settings ask for, the one that wins first."""
    found = []
    for module in pkgutil.iter_modules(__path__):
        build = getattr(import_module(f"{__name__}.{module.name}"), "source", None)
        source = build(settings) if build is not None else None
        if source is not None:
            found.append(source)
    return sorted(found, key=lambda source: source.precedence)
