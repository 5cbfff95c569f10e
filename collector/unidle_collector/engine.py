"""The whole way from one step of samples to findings, on one screen.

Pure: time comes with the samples, so that replaying a day in a minute gives the same as living it.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from unidle_agent.wire import Owner
from unidle_collector import detectors
from unidle_collector.accounts.dimensions import JobDimensions
from unidle_collector.accounts.ledger import KEEP_NS, Ledger
from unidle_collector.detectors import Detector
from unidle_collector.findings import Book, Change
from unidle_collector.inventory import Inventory
from unidle_collector.layout import parts
from unidle_collector.model import Finding, GpuRef
from unidle_collector.pergpu import PerGpu
from unidle_collector.signals import Signals, Step


class Engine:
    """Windows, detectors, ledger and findings of one fleet sampled each `period_s`."""

    def __init__(
        self,
        period_s: float,
        site: str = "",
        silence: tuple[str, ...] = (),
        keep_accounts_ns: int | None = KEEP_NS,
        steps: int | None = None,
    ) -> None:
        """`steps`: how many there will be in all, where that is known."""
        self.period_s = period_s
        self.inventory = Inventory()
        self.dimensions = JobDimensions()
        self._size = self.inventory.capacity
        self._signals = Signals(self.inventory, period_s)
        self._detectors: list[Detector] = [make(self._size, period_s) for make in detectors.makers()]
        if steps is not None:
            for detector in self._detectors:
                detector.in_all(steps)
        self.ledger = Ledger(self.inventory, self._detectors, period_s, keep_accounts_ns)
        self.book = Book(self.inventory, self._detectors, site, silence)
        self._last: Step | None = None

    def add(self, ref: GpuRef, share: float = 1.0, simulated: bool = False) -> int:
        """Position of a GPU in every column, which is added or updated."""
        position = self.inventory.add(ref, share, simulated)
        if self.inventory.capacity != self._size:
            self._size = self.inventory.capacity
            self._signals.resize(self._size)
            self.ledger.resize(self._size)
            self.book.resize(self._size)
            for detector in self._detectors:
                detector.resize(self._size)
        return position

    def own(self, position: int, owner: Owner) -> None:
        """Say who holds a GPU from the next step on."""
        self.own_all((position,), owner)

    def own_all(self, positions: Iterable[int], owner: Owner) -> None:
        """The same of several GPUs, in one go."""
        others = [position for position in positions if self.inventory.own(position, owner)]
        if others:
            changed = np.zeros(self._size, dtype=np.bool_)
            changed[others] = True
            self._signals.changed_owner(changed)
            for detector in self._detectors:
                detector.reset(changed)

    def step(self, step: Step) -> list[Change]:
        """Take one step; every array of it has `inventory.capacity` entries."""
        view = self._signals.view(step)
        verdicts = [(detector, detector.look(view)) for detector in self._detectors]
        self.ledger.book(view, verdicts)
        self._last = step
        return self.book.update(view, verdicts)

    def findings(self) -> list[Finding]:
        """Everything open now: told, and still developing (`told_ns` is None)."""
        return self.book.findings()

    def finding_delay_s(self, kind: str, cause: str) -> float:
        """How long something must last before a person is told."""
        return next(one for one in self._detectors if one.kind == kind).delay_s(cause)

    def remember(self, finding: Finding) -> None:
        """A finding told before a restart."""
        self.book.remember(finding)

    def memory(self) -> list[tuple[str, PerGpu]]:
        """All that is remembered of each GPU, by name."""
        roots: list[tuple[str, object]] = [
            ("signals", self._signals),
            ("ledger", self.ledger),
            ("book", self.book),
        ]
        roots += [(detector.kind, detector) for detector in self._detectors]
        return [part for name, root in roots for part in parts(root, name)]

    @property
    def last(self) -> Step | None:
        """The last step taken."""
        return self._last
