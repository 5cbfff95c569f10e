"""The child process in which NVML is read: `python -m unidle_agent.poller_child PID REPLAY FD FD [FD]`.

It answers what the agent asks (see `unidle_agent.poller` for the messages, and for why there is a child),
ringing the bell that is the first FD, and looks at the GPUs between two questions. Which GPU it is about to
touch stands in the memory behind the second. Every look goes into the flight recorder's memory, the third.
"""

from __future__ import annotations

import ctypes
import gc
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unidle_agent.errors import SourceError
from unidle_agent.flight.ring import Ring
from unidle_agent.pipes import CHUNK_BYTES, Outbox, unpacker
from unidle_agent.sample import GpuReading, Value
from unidle_agent.subsecond import Pace
from unidle_agent.whereabouts import Whereabouts
from unidle_agent.wire import GpuFacts, Owner

if TYPE_CHECKING:
    from unidle_agent.sources.nvml import NvmlSource

QUESTION_BYTES = 4096
"""Room for what the agent says: mostly it is `read`, 8 bytes."""
PASSES_TO_COLLECT = 600
"""After so many passes all garbage is collected, a millisecond's work: left to itself Python would wait for
a quarter of all objects, and grow by that."""
PR_SET_PDEATHSIG = 1
"""prctl option: the signal a process gets when the thread that started it ends (linux/prctl.h)."""


def main(arguments: Sequence[str]) -> int:
    """Serve NVML to the agent whose process id is the first argument, until it hangs up.

    The second argument is empty, or a recorded file that answers instead of the driver; the third is the
    inherited descriptor of the bell, the fourth that of a `Whereabouts`, the fifth, where there is one, that
    of a `Ring`.
    """
    parent, replay, bell_fd, where_fd, *ring_fds = arguments
    _die_with(int(parent))
    for number in (signal.SIGINT, signal.SIGTERM):  # they are the agent's to answer; it hangs up
        signal.signal(number, signal.SIG_IGN)
    # What a library prints must not get among the messages.
    outbox = Outbox(os.dup(1), int(bell_fd))
    os.dup2(2, 1)
    try:
        # Only here: the agent itself does without pynvml and its 3 MB.
        from unidle_agent.sources.nvml import NvmlSource

        if replay:
            from unidle_agent.answers.stand_in import install

            install(Path(replay))
        where = Whereabouts.attach(int(where_fd))
        _serve(partial(NvmlSource, on_look=_recorder(ring_fds)), outbox, where)
    except SourceError as error:
        outbox.say("absent", str(error))
        outbox.ring()
    except ModuleNotFoundError as error:
        outbox.say("absent", f"the Python package {error.name} is not installed: pip install 'unidle[agent]'")
        outbox.ring()
    except BrokenPipeError:  # the agent hung up in the middle
        pass
    return 0


def _recorder(ring_fds: Sequence[str]) -> Callable[[str, Mapping[str, Value], float], None]:
    """What keeps a look at a GPU, taken so many seconds ago, for the flight recorder."""
    ring = Ring.attach(int(ring_fds[0])) if ring_fds else None
    if ring is None:
        return lambda _gpu, _values, _ago_s: None

    def keep(gpu: str, values: Mapping[str, Value], ago_s: float) -> None:
        ring.write(gpu, time.time_ns() - int(ago_s * 1e9), values)

    return keep


def facts_of(document: dict[str, Any]) -> GpuFacts:
    """Facts as `asdict` took them apart for a message, put together again."""
    return GpuFacts(**{**document, "owner": Owner(**document["owner"])})


def _serve(open_source: Callable[..., NvmlSource], outbox: Outbox, where: Whereabouts) -> None:
    """Answer what the agent asks, and look at the GPUs meanwhile, until it hangs up."""
    source: NvmlSource | None = None
    pace = Pace(0)
    skip: Collection[str] = ()
    passes = 0
    opens = False
    say, tell_row = outbox.say, _Rows(outbox.say).tell

    def at(uuid: str | None) -> None:
        nonlocal opens
        if opens != (uuid is None):
            opens = uuid is None
            say("opens", opens)
        where.write(uuid or "")

    def tell_events() -> None:
        for event in source.take_events() if source else ():
            say("event", astuple(event))

    def pause_s() -> float | None:
        return pace.wait_s(time.monotonic())

    for message in _messages(pause_s):
        began_s = time.monotonic()
        match message:
            case ["settings", gpm, fast_hz, slow_s, known]:
                source = open_source(
                    gpm, slow_s=slow_s, fast_hz=fast_hz, known=[facts_of(facts) for facts in known]
                )
                pace = Pace(fast_hz)
                gc.freeze()  # what is there now stays: no collection needs to go through it again
                say("ready")
                outbox.ring()
            case ["read", skip, last] if source:
                for row in source.readings(skip, last, starting=at):
                    tell_row(row)
                at("")
                tell_events()
                say("end", source.take_problems())
                outbox.ring()
                pace.row(began_s, time.monotonic(), restless=source.restless)
                passes += 1
                if passes % PASSES_TO_COLLECT == 0:
                    gc.collect()
            case None if source:
                source.look(skip, starting=at, restless_only=not pace.whole)
                tell_events()
                pace.look(began_s, time.monotonic(), restless=source.restless)
    if source:
        source.close()


class _Rows:
    """Says the rows of GPUs; what is mostly the same from row to row only when it is new."""

    def __init__(self, say: Callable[..., None]) -> None:
        self._say = say
        self._facts: dict[str, GpuFacts] = {}
        self._names: dict[str, tuple[str, ...]] = {}

    def tell(self, row: GpuReading) -> None:
        uuid, names = row.facts.uuid, tuple(row.values)
        before = self._facts.get(uuid)
        if before is not row.facts and before != row.facts:
            self._facts[uuid] = row.facts
            self._say("facts", asdict(row.facts))
        if self._names.get(uuid) != names:
            self._names[uuid] = names
            self._say("names", uuid, names)
        self._say("gpu", uuid, tuple(row.values.values()), row.pids)


def _messages(pause_s: Callable[[], float | None]) -> Iterator[list[Any] | None]:
    """What the agent says, until it hangs up; None whenever it says nothing for `pause_s`."""
    questions = unpacker(QUESTION_BYTES)
    while True:
        if not select.select([0], [], [], pause_s())[0]:
            yield None
            continue
        data = os.read(0, CHUNK_BYTES)
        if not data:
            return
        questions.feed(data)
        yield from questions


def _die_with(parent: int) -> None:
    """Be killed when the agent dies, however it dies: a hung call never sees its pipe close."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
