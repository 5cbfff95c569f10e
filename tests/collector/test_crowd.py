"""Pushes of many nodes are taken together: a group costs little more than one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.collector.pushing import START_S

from unidle_collector.live import GROUP, LINGER_S, Live
from unidle_collector.settings import CollectorSettings
from unidle_collector.store import Store
from unidle_collector.taking import Push


class Waited:
    """Stands for the live collector's waiting: more pushes come meanwhile."""

    def __init__(self, live: Live, come: int) -> None:
        self.live, self.come, self.seconds = live, come, 0.0

    def wait(self, seconds: float) -> None:
        self.seconds += seconds
        queue(self.live, self.come)


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    store = Store(tmp_path)
    yield Live(CollectorSettings(data_dir=tmp_path), store, lambda: START_S * 10**9)
    store.close()


def queue(live: Live, count: int) -> None:
    for _ in range(count):
        live.submit(Push(b"", 0, None, tell=lambda _: None))


@pytest.mark.parametrize(
    ("crowd", "waiting", "taken", "waited_s"),
    [
        pytest.param(True, 1, 81, LINGER_S, id="the first of many waits once for others"),
        pytest.param(False, 1, 1, 0.0, id="a node among few is not kept waiting"),
        pytest.param(True, GROUP + 9, GROUP, 0.0, id="a group that is full waits for nobody"),
    ],
)
def test_a_push_waits_for_others_where_that_saves_work(
    live: Live, monkeypatch: pytest.MonkeyPatch, crowd: bool, waiting: int, taken: int, waited_s: float
) -> None:
    live._crowd.is_there = crowd
    queue(live, waiting)
    waited = Waited(live, come=80)
    monkeypatch.setattr(live, "_stop", waited)
    assert len(live._collect()) == taken
    assert waited.seconds == waited_s
