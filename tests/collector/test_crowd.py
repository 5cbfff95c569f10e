"""Pushes of many nodes are taken together: a group costs little more than one."""

from __future__ import annotations

import time

import pytest

from unidle_collector.inbox import DECIDE_EACH_S, GROUP, LINGER_S, Inbox
from unidle_collector.taking import Push


class Waited:
    """Stands for the inbox's waiting: more pushes come meanwhile."""

    def __init__(self, inbox: Inbox, come: int) -> None:
        self.inbox, self.come, self.seconds = inbox, come, 0.0

    def wait(self, seconds: float) -> None:
        self.seconds += seconds
        queue(self.inbox, self.come)

    def clear(self) -> None:
        """As of an event."""


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


def queue(inbox: Inbox, count: int, *, hurried: bool = False) -> None:
    for _ in range(count):
        inbox.put(Push(b"", 0, None, tell=lambda _: None, hurried=hurried))


@pytest.mark.parametrize(
    ("crowd", "waiting", "taken", "waited_s"),
    [
        pytest.param(True, 1, 81, LINGER_S, id="the first of many waits once for others"),
        pytest.param(False, 1, 1, 0.0, id="a node among few is not kept waiting"),
        pytest.param(True, GROUP + 9, GROUP, 0.0, id="a group that is full waits for nobody"),
    ],
)
def test_a_push_waits_for_others_where_that_saves_work(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch, crowd: bool, waiting: int, taken: int, waited_s: float
) -> None:
    inbox._crowd.is_there = crowd
    queue(inbox, waiting)
    waited = Waited(inbox, come=80)
    monkeypatch.setattr(inbox, "_hurry", waited)
    assert len(inbox.collect()) == taken
    assert waited.seconds == waited_s


def test_nobody_waits_while_a_node_catches_up(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    inbox._crowd.is_there = True
    waits: list[bool] = []
    real = inbox._hurry.wait
    monkeypatch.setattr(inbox._hurry, "wait", lambda _: waits.append(real(0)))
    queue(inbox, 1, hurried=True)
    assert len(inbox.collect()) == 1
    queue(inbox, 1)
    assert len(inbox.collect()) == 1
    assert waits == [True, False], "the one that hurries is taken at once, the one after it is not"


def test_nodes_that_catch_up_are_no_crowd(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = time.monotonic()
    queue(inbox, 200, hurried=True)
    monkeypatch.setattr(time, "monotonic", lambda: now_s + 2 * DECIDE_EACH_S)
    assert len(inbox.collect()) == 200
    assert not inbox._crowd.is_there
    queue(inbox, 200)
    monkeypatch.setattr(time, "monotonic", lambda: now_s + 4 * DECIDE_EACH_S)
    assert len(inbox.collect()) == 200
    assert inbox._crowd.is_there
