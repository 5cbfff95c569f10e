"""Pushes of many nodes are taken together: a group costs little more than one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.collector.pushing import START_S

from unidle_collector.live import DECIDE_EACH_S, GROUP, LINGER_S, Live
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

    def clear(self) -> None:
        """As of an event."""


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    store = Store(tmp_path)
    yield Live(CollectorSettings(data_dir=tmp_path), store, lambda: START_S * 10**9)
    store.close()


def queue(live: Live, count: int, *, hurried: bool = False) -> None:
    for _ in range(count):
        live.submit(Push(b"", 0, None, tell=lambda _: None, hurried=hurried))


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
    monkeypatch.setattr(live, "_hurry", waited)
    assert len(live._collect()) == taken
    assert waited.seconds == waited_s


def test_nobody_waits_while_a_node_catches_up(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    live._crowd.is_there = True
    waits: list[bool] = []
    real = live._hurry.wait
    monkeypatch.setattr(live._hurry, "wait", lambda _: waits.append(real(0)))
    queue(live, 1, hurried=True)
    assert len(live._collect()) == 1
    queue(live, 1)
    assert len(live._collect()) == 1
    assert waits == [True, False], "the one that hurries is taken at once, the one after it is not"


def test_nodes_that_catch_up_are_no_crowd(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = time.monotonic()
    queue(live, 200, hurried=True)
    monkeypatch.setattr(time, "monotonic", lambda: now_s + 2 * DECIDE_EACH_S)
    assert len(live._collect()) == 200
    assert not live._crowd.is_there
    queue(live, 200)
    monkeypatch.setattr(time, "monotonic", lambda: now_s + 4 * DECIDE_EACH_S)
    assert len(live._collect()) == 200
    assert live._crowd.is_there
