"""Which GPUs there are, and who holds each of them since when.

A tenure is one GPU held by one owner: the unit that time is accounted to, so that sums per GPU,
job, user, node and model are all sums over tenures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unidle_agent.wire import Owner
from unidle_collector.catalogue import catalogue
from unidle_collector.interactive import named_so
from unidle_collector.model import GpuRef
from unidle_collector.pergpu import NEVER, PerGpu

UNSAID, NO, YES = -1, 0, 1
"""What is known of a GPU's allocation."""


@dataclass(frozen=True, slots=True)
class Tenure:
    """One GPU held by one owner (or by nobody)."""

    gpu: int
    """Position of the GPU in the inventory."""
    owner: Owner


class Inventory:
    """The GPUs that were ever seen, in the order in which they appeared."""

    def __init__(self) -> None:
        self.refs: list[GpuRef] = []
        self.tenures: list[Tenure] = []
        self._gpu_of = np.zeros(64, dtype=np.intp)
        self.simulated: list[bool] = []
        self._by_key: dict[tuple[str, str], int] = {}
        self._by_owner: dict[tuple[int, Owner], int] = {}
        self._capacity = 64
        self.a = PerGpu(self._capacity)
        self.a.make("tenure", np.int32, -1)
        self.a.make("said", np.int8, UNSAID)
        self.a.make("interactive", np.bool_, False)
        self.a.make("share", np.float64, 1.0)
        self.a.make("node", np.int32, -1)
        self.a.make("model", np.int32, -1)
        self.a.make("job", np.int32, 0)
        self.a.make("eur_per_h", np.float64, np.nan)
        self.a.make("slowdown_margin_c", np.float64, np.nan)
        self.a.make("limit_c", np.float64, np.nan)
        self.a.make("heard_ns", np.int64, NEVER)  # when its node pushed last, receiver's clock
        self.a.make("period_s", np.float64, np.nan)  # of the rows that it pushes
        self.a.make("clock_ahead_s", np.float64, np.nan)  # its node's clock before the receiver's
        self.a.make("asks_again", np.bool_, False)  # its agent looks again at once at a link that turned bad
        self.a.make("out_of_service", np.bool_, False)  # its node is down or drained, says the scheduler
        self.a.make("node_down", np.bool_, False)  # its node is down unplanned, says the scheduler
        self._nodes: dict[str, int] = {}
        self._models: dict[str, int] = {}
        self._jobs: dict[str, int] = {"": 0}
        self.granted: dict[str, int] = {}
        """Job -> GPUs that its scheduler gave it."""
        self.at_site: dict[str, int] = {}
        """Job -> GPUs of it that any part of the site sees, this one included."""
        self.renamed = 0
        """How often more became known of what a GPU is called, or its model."""

    def __len__(self) -> int:
        return len(self.refs)

    @property
    def capacity(self) -> int:
        """Length of every per-GPU array; positions from len(self) on are empty."""
        return self._capacity

    @property
    def node_names(self) -> list[str]:
        """Names by the numbers in `a["node"]`."""
        return list(self._nodes)

    @property
    def jobs(self) -> int:
        """How many jobs hold a GPU now."""
        held = self.a["job"][: len(self)]
        return int(np.unique(held[held > 0]).size)

    def held(self) -> dict[str, int]:
        """Job -> GPUs here that it holds now."""
        numbers, counts = np.unique(self.a["job"][: len(self)], return_counts=True)
        names = list(self._jobs)
        return {names[n]: c for n, c in zip(numbers.tolist(), counts.tolist(), strict=True) if n > 0}

    def beyond(self, job: str) -> tuple[int, int] | None:
        """(GPUs of a job here, all that it has), None where these are all, or nobody knows of more."""
        here = int((self.a["job"][: len(self)] == self._jobs.get(job, -1)).sum())
        whole = max(self.granted.get(job, 0), self.at_site.get(job, 0))
        return (here, whole) if whole > here else None

    def find(self, node: str, gpu: str) -> int | None:
        """Position of a GPU, or None."""
        return self._by_key.get((node, gpu))

    def add(self, ref: GpuRef, share: float = 1.0, simulated: bool = False) -> int:
        """Position of the GPU `ref`, which is added or updated."""
        key = (ref.node, ref.gpu)
        position = self._by_key.get(key)
        if position is None:
            position = len(self.refs)
            self._by_key[key] = position
            if position == self._capacity:
                self._capacity += max(64, self._capacity // 8 // 64 * 64)  # arrays of a fleet are large
                self.a.resize(self._capacity)
            self.refs.append(ref)
            self.simulated.append(simulated)
            self.a["tenure"][position] = self.tenure(position, Owner())
        self.renamed += self.refs[position] != ref
        self.refs[position] = ref
        self.a["share"][position] = share
        self.a["node"][position] = self._nodes.setdefault(ref.node, len(self._nodes))
        self.a["model"][position] = self._models.setdefault(ref.model, len(self._models))
        entry = catalogue().model(ref.model)
        for name in ("eur_per_h", "slowdown_margin_c", "limit_c"):
            known = None if entry is None else getattr(entry, name)
            self.a[name][position] = np.nan if known is None else known
        return position

    def own(self, position: int, owner: Owner) -> bool:
        """Say who holds a GPU from now on; True when that is another job than before."""
        before = self.owner(position)
        if owner == before:
            return False
        self.a["tenure"][position] = self.tenure(position, owner)
        self.a["said"][position] = UNSAID if owner.allocated is None else YES if owner.allocated else NO
        self.a["interactive"][position] = owner.interactive or named_so(owner.job)
        self.a["job"][position] = self._jobs.setdefault(owner.job, len(self._jobs))
        return (owner.job, owner.allocated) != (before.job, before.allocated)

    def owner(self, position: int) -> Owner:
        """Who holds a GPU now."""
        return self.tenures[int(self.a["tenure"][position])].owner

    def tenure(self, position: int, owner: Owner) -> int:
        """Number of the tenure of a GPU by an owner, made when it is new; it need not be the present one."""
        number = self._by_owner.setdefault((position, owner), len(self.tenures))
        if number == len(self.tenures):
            if number == self._gpu_of.size:
                self._gpu_of = np.resize(self._gpu_of, 2 * number)
            self._gpu_of[number] = position
            self.tenures.append(Tenure(position, owner))
        return number

    @property
    def tenure_gpus(self) -> NDArray[np.intp]:
        """[tenures] Position of the GPU of each."""
        return self._gpu_of[: len(self.tenures)]
