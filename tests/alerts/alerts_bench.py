"""The alerts on fakes: a collector, a clock, a notifier, and the real outbox on disk."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tests.fakes import FakeClock, FakeCollector, FakeNotifier

from unidle_alerts.intake import Intake
from unidle_alerts.outbox import NO_DESTINATION, Outbox, Policy
from unidle_alerts.plan import Rules
from unidle_alerts.schema import open_database
from unidle_alerts.worker import Worker

RULES = Rules(settle_s=3.0, group_window_s=60.0, group_limit=5)


class Bench:
    """One `unidle alerts`, driven by hand. `restart` is a new process on the same folder."""

    def __init__(
        self,
        folder: Path,
        collector: FakeCollector | None = None,
        notifiers: tuple[Any, ...] | None = None,
        clock: FakeClock | None = None,
        policy: Policy | None = None,
        rules: Rules = RULES,
    ) -> None:
        self.folder = folder
        self.collector = collector or FakeCollector()
        self.notifiers = (FakeNotifier(),) if notifiers is None else notifiers
        self.clock = clock or FakeClock()
        self.policy = policy or Policy()
        self.rules = rules
        self.start()

    @property
    def notifier(self) -> FakeNotifier:
        return self.notifiers[0]

    def start(self) -> None:
        destinations = tuple(each.name for each in self.notifiers) or (NO_DESTINATION,)
        self.outbox = Outbox(open_database(self.folder), self.policy)
        self.outbox.register(destinations, self.clock())
        self.intake = Intake(self.collector, self.outbox, destinations, self.clock)
        uniform = random.Random(0).uniform
        self.worker = Worker(
            self.outbox, self.notifiers, self.rules, "eu-fra-1", self.clock, self.intake.lock, uniform
        )

    def restart(self, **changes: Any) -> None:
        self.outbox.close()
        for name, value in changes.items():
            setattr(self, name, value)
        self.start()

    def run(self, seconds: float, step_s: float = 1.0) -> None:
        """Poll and deliver every `step_s` for `seconds` of the fake clock."""
        for _ in range(round(seconds / step_s)):
            self.intake.poll()
            self.worker.step()
            self.clock.forward(step_s)

    def told(self) -> list[tuple[str, str]]:
        """(kind, incident id) of every message delivered."""
        return [
            (notice.kind, notice.incidents[0].id if notice.incidents else "")
            for notice in self.notifier.notices
        ]
