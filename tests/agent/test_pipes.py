"""Messages between the agent and its NVML child: heard at the bell, or at a look without it."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass

import msgpack
import pytest

from unidle_agent.pipes import CHUNK_BYTES, Inbox, Outbox, unpacker


@dataclass
class Pipes:
    """Both ends, and the descriptors below."""

    inbox: Inbox
    outbox: Outbox
    fds: list[int]

    def rings(self) -> int:
        """How often the bell was rung since the last call."""
        os.set_blocking(self.fds[2], False)
        try:
            return len(os.read(self.fds[2], CHUNK_BYTES))
        except BlockingIOError:
            return 0

    def hang_up(self) -> None:
        """As a child that dies does."""
        for fd in (self.fds.pop(3), self.fds.pop(1)):
            os.close(fd)


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    fds = [*os.pipe(), *os.pipe()]
    yield Pipes(Inbox(fds[0], fds[2]), Outbox(fds[1], fds[3]), fds)
    for fd in fds:
        os.close(fd)


def test_what_is_said_is_heard_in_order_when_the_bell_rings(pipes: Pipes) -> None:
    for number in range(20):
        pipes.outbox.say("gpu", number, {"power_w": 1.5 * number})
    pipes.outbox.ring()
    assert [pipes.inbox.hear(60) for _ in range(20)] == [
        ["gpu", number, {"power_w": 1.5 * number}] for number in range(20)
    ]
    assert pipes.inbox.hear(0) is None


def test_the_bell_rings_once_for_the_rows_of_a_node(pipes: Pipes) -> None:
    for _ in range(8):
        pipes.outbox.say("gpu", "x" * 1700)
    assert pipes.rings() == 0
    pipes.outbox.ring()
    assert pipes.rings() == 1


def test_what_was_said_before_a_hang_is_heard_without_the_bell(pipes: Pipes) -> None:
    pipes.outbox.say("gpu", 0)
    assert pipes.inbox.hear(0) == ["gpu", 0]
    assert pipes.inbox.hear(0) is None


def test_a_bell_for_what_was_heard_already_is_not_taken_for_silence(pipes: Pipes) -> None:
    pipes.outbox.say("gpu", 0)
    assert pipes.inbox.hear(0) == ["gpu", 0]
    pipes.outbox.ring()
    pipes.outbox.say("end")
    assert pipes.inbox.hear(60) == ["end"]


def test_all_that_a_child_said_before_it_died_is_heard_then_its_end(pipes: Pipes) -> None:
    pipes.outbox.say("gpu", 0)
    pipes.outbox.say("gpu", 1)
    pipes.hang_up()
    assert [pipes.inbox.hear(60), pipes.inbox.hear(60)] == [["gpu", 0], ["gpu", 1]]
    with pytest.raises(EOFError):
        pipes.inbox.hear(60)


@pytest.mark.parametrize("message_bytes", [40, 1700, 2100, 4090])
def test_the_bell_rings_before_the_pipe_is_full(pipes: Pipes, message_bytes: int) -> None:
    os.set_blocking(pipes.fds[1], False)  # a full pipe raises instead of waiting
    said = 0
    while said < 200:
        pipes.outbox.say("x" * message_bytes)
        said += 1
        if pipes.rings():
            while pipes.inbox.hear(0) is not None:
                pass
    assert said == 200


def test_questions_take_no_more_memory_from_one_to_the_next() -> None:
    question = msgpack.packb(["read", [], []])
    tracemalloc.start()
    try:
        listener = unpacker(4096)
        for _ in range(1000):
            listener.feed(question)
            assert list(listener) == [["read", [], []]]
        assert tracemalloc.get_traced_memory()[1] < 131072
    finally:
        tracemalloc.stop()
