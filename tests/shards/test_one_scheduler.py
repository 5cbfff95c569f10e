from __future__ import annotations

from types import SimpleNamespace

import pytest

from unidle_collector.scheduler import SchedulerError
from unidle_collector.shards.one_scheduler import OneScheduler


class Asked:
    name = "slurm"

    def __init__(self) -> None:
        self.times = 0
        self.broken = False

    def read(self) -> SimpleNamespace:
        self.times += 1
        if self.broken:
            raise SchedulerError("away")
        return SimpleNamespace(number=self.times)


def test_many_shards_ask_the_scheduler_once_in_a_while() -> None:
    asked, now = Asked(), [100.0]
    one = OneScheduler(asked, 15, lambda: now[0])  # type: ignore[arg-type]
    assert [one.read().number for _ in range(16)] == [1] * 16  # type: ignore[attr-defined]
    now[0] = 115
    assert one.read().number == 2  # type: ignore[attr-defined]


def test_an_old_answer_is_not_given_for_one_that_failed() -> None:
    asked, now = Asked(), [100.0]
    one = OneScheduler(asked, 15, lambda: now[0])  # type: ignore[arg-type]
    one.read()
    now[0], asked.broken = 115, True
    for _ in range(2):
        with pytest.raises(SchedulerError, match="away"):
            one.read()
    asked.broken = False
    assert one.read().number == 4  # type: ignore[attr-defined]
