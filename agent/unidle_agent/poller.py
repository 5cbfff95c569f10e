"""Reads NVML in a child process, because a call into a sick driver may never return.

`PolledNvml` is the source that the agent sees; `unidle_agent.poller_child` is the child. They speak over
pipes (`unidle_agent.pipes`), each message an array whose first item says what it is:

    agent -> child   settings: GPM mode, looks per second, seconds between slow reads, known GPUs |
                     read: GPUs to skip, GPUs to read last
    child -> agent   ready | opens: whether it opens the driver now | facts: of a row, new or changed |
                     names: UUID of a row, its fields where they changed | gpu: UUID of a row, values, pids |
                     event: it | end: problems | absent: why

Between two reads the child looks at the GPUs by itself, several times a second. It says which GPU it is
about to touch in memory that both see (`Whereabouts`): so a call that hangs, or kills the child, has a
culprit. That GPU gets `gpu_state` 2 (the driver does not answer), is left alone for a while, and then read
after all others; the others flow on from the next child. Where no GPU can be blamed, all get it. A killed
child may sit in the kernel for ever: nobody waits for it, and a few of those are the limit.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import msgpack

from unidle_agent.errors import NotStartedError, SourceError, reason
from unidle_agent.flight.ring import Ring
from unidle_agent.pipes import Inbox
from unidle_agent.poller_child import facts_of
from unidle_agent.sample import DRIVER_HUNG, GpuReading, Reading, Value
from unidle_agent.subsecond import INTEGRALS
from unidle_agent.whereabouts import Whereabouts
from unidle_agent.wire import Event, GpuFacts

MAX_RETRY_S = 60.0
MAX_BLAME_S = 600.0
UNRUNG_SHARE = 0.45
"""Of the deadline: how long to wait for a child that rings no bell before hearing what it said. Less than
half, so that one that hangs from then on was silent for half of it in the end, on a busy machine too."""
STILL_OPENING = "the NVIDIA driver is still opening"
MAX_STUCK = 4
"""Most killed children that may still sit in the driver before no other is started."""


@dataclass(frozen=True, slots=True)
class _Blame:
    """A GPU that a child hung or died on: not touched before `until_s`."""

    until_s: float
    wait_s: float


@dataclass(slots=True)
class _Child:
    """One child process, and what it has said so far."""

    process: subprocess.Popen[bytes]
    bell_fd: int
    heard_s: float
    """When it was last heard, asked or started."""
    patient: bool
    """Whether a read waits for it to start."""
    ready: bool = False
    busy: bool = False
    opens: bool = True
    """It opens the driver."""
    skipped: Collection[str] = ()
    counted_before: dict[tuple[str, str], Value] = field(default_factory=dict)
    """(UUID, counter) -> what the children before it had counted."""
    facts: dict[str, GpuFacts] = field(default_factory=dict)
    """The last of every row."""
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """UUID -> the fields of which its row has values, in their order."""
    seen: dict[str, GpuFacts] = field(default_factory=dict)
    """The rows of the pass under way."""
    inbox: Inbox = field(init=False)

    def __post_init__(self) -> None:
        assert self.process.stdout is not None
        self.inbox = Inbox(self.process.stdout.fileno(), self.bell_fd)

    def tell(self, *message: Any) -> None:
        """Send a message. It is small and goes to a child that listens, so this never blocks."""
        assert self.process.stdin is not None
        self.process.stdin.write(msgpack.packb(message))
        self.process.stdin.flush()


class PolledNvml:
    """The GPUs of this machine by NVML, read in a child process under a watchdog: a `Source`.

    To be made and read in one thread: the kernel ends the child with the thread that started it.
    """

    name = "nvml"
    precedence = 10

    def __init__(
        self,
        gpm: str = "auto",
        *,
        fast_hz: float = 5.0,
        slow_s: float = 15.0,
        deadline_s: float = 2.0,
        start_s: float = 30.0,
        retry_s: float = 1.0,
        blame_s: float = 10.0,
        monotonic: Callable[[], float] = time.monotonic,
        replay: str = "",
        ring: Ring | None = None,
    ) -> None:
        """Start the child; raises SourceError when it says that there is no driver, and what to do.

        `gpm` is `auto`, `on` or `off`; `fast_hz` and `slow_s` are those of `AgentSettings`; `replay` is a
        recorded file that answers instead of the driver; `ring` is where the child keeps every look for the
        flight recorder. Nothing here blocks for longer than `deadline_s`; a
        child that is silent for the second half of it hangs. Opening the driver may take `start_s`, because
        without persistence mode that is seconds per GPU. A child that failed is replaced at once, one that
        fails again after `retry_s`, doubling to 60 s. A GPU that hung is tried again after `blame_s`,
        doubling to 600 s.
        """
        self.restarts = 0
        """How often a child failed and was given up."""
        self._settings = (gpm, fast_hz, slow_s)
        self._monotonic, self._replay, self._ring = monotonic, replay, ring
        self._where = Whereabouts.create()
        self._deadline_s, self._start_s = deadline_s, start_s
        self._retry_s, self._blame_s = retry_s, blame_s
        self._child: _Child | None = None
        self._stuck: list[subprocess.Popen[bytes]] = []
        self._known: dict[str, GpuFacts] = {}
        self._blamed: dict[str, _Blame] = {}
        self._all_hung = False
        self._absent = ""
        self._failures = 0
        self._next_start_s = float("-inf")
        self._problems: list[str] = []
        self._events: list[Event] = []
        self._integrals: dict[tuple[str, str], Value] = {}
        """(UUID, counter) -> its last value; a new child counts from 0, and on from here."""
        self._start(patient=True)
        self._converse({}, ask=False)
        if self._absent:
            raise SourceError(self._absent)

    @property
    def counts(self) -> dict[str, int]:
        """Event -> how often since the start."""
        return {"poller_restarts": self.restarts}

    @property
    def held(self) -> int:
        """How many child processes still sit in the driver after `close`, as nothing can end them."""
        self._stuck = [process for process in self._stuck if process.poll() is None]
        return len(self._stuck)

    @property
    def child_pid(self) -> int | None:
        """The child's process id, None while there is none."""
        return self._child.process.pid if self._child else None

    def read(self) -> Reading:
        """One pass over all GPUs within the deadline, as far as they answer.

        A GPU that was not reached in time has a row without values. Raises SourceError while there is no
        driver and no GPU was ever seen.
        """
        rows: dict[str, GpuReading] = {}
        self._stuck = [process for process in self._stuck if process.poll() is None]
        if self._child is None:
            self._start()
        self._converse(rows, ask=True)
        if self._absent and not self._known:
            raise SourceError(self._absent)
        silent = [self._silent_row(facts) for uuid, facts in self._known.items() if uuid not in rows]
        problems, self._problems = tuple(dict.fromkeys(self._problems)), []
        events, self._events = tuple(self._events), []
        return Reading(gpus=(*rows.values(), *silent), problems=problems, events=events)

    def close(self) -> None:
        """End the child, by force if need be; waits a second at most. A later read starts another."""
        child, self._child = self._child, None
        if child is not None:
            self._end(child, grace_s=0.5)

    # The child's life

    def _start(self, *, patient: bool = False) -> None:
        """Start a child, unless it is too early for that or too many are stuck."""
        if self._absent:
            self._problems.append(self._absent)
        if self._monotonic() < self._next_start_s:
            return
        if len(self._stuck) >= MAX_STUCK:
            self._problems.append(
                f"{len(self._stuck)} processes hang in the NVIDIA driver and cannot be killed: no other is "
                "started before one ends; this node wants a reboot"
            )
            return
        self._where.write("")
        bell_fd, ring_bell_fd = os.pipe()
        try:
            process = self._spawn(ring_bell_fd)
        except BaseException:
            os.close(bell_fd)
            raise
        finally:
            os.close(ring_bell_fd)
        self._child = _Child(
            process, bell_fd, self._monotonic(), patient, counted_before=dict(self._integrals)
        )
        with contextlib.suppress(BrokenPipeError):  # then it is dead, and hear() says so
            self._child.tell("settings", *self._settings, [asdict(facts) for facts in self._known.values()])

    def _spawn(self, ring_bell_fd: int) -> subprocess.Popen[bytes]:
        fds = (ring_bell_fd, self._where.fd, *((self._ring.fd,) if self._ring else ()))
        try:
            return subprocess.Popen(
                # -P: a file msgpack.py in the folder where the agent was started must not become part of it.
                [
                    *(sys.executable, "-P", "-m", "unidle_agent.poller_child"),
                    *(str(os.getpid()), self._replay, *map(str, fds)),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=fds,
            )
        except OSError as error:
            raise NotStartedError(
                f"the process that asks the driver cannot be started: {sys.executable}: {reason(error)}"
            ) from error

    def _give_up(self, child: _Child, why: str, *, died: bool = False) -> None:
        """Replace `child`, and hold the GPU that it was at responsible."""
        self._child = None
        self._end(child)
        self.restarts += 1
        self._failures += 1
        now_s = self._monotonic()
        if culprit := self._where.read():
            before = self._blamed.get(culprit)
            wait_s = min(2 * before.wait_s, MAX_BLAME_S) if before else self._blame_s
            self._blamed[culprit] = _Blame(now_s + wait_s, wait_s)
            self._problems.append(f"{culprit}: {why}; this GPU is tried again in {wait_s:g} s")
        else:
            # One death without a culprit may be anybody's doing, the kernel's for want of memory too.
            self._all_hung = self._all_hung or not died or self._failures > 1
            self._problems.append(f"{why}, at no GPU in particular")
        # At once the first time: the hang of one GPU must not cost the others a second tick.
        again_s = self._retry_s * 2.0 ** (self._failures - 2) if self._failures > 1 else 0.0
        self._next_start_s = now_s + min(again_s, MAX_RETRY_S)
        self._start()

    def _end(self, child: _Child, grace_s: float = 0.0) -> None:
        """Hang up on a child and kill it if it does not leave; it may stay in the kernel all the same."""
        process = child.process
        os.close(child.bell_fd)
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        if not _ends_within(process, grace_s):
            process.kill()
            if not _ends_within(process, grace_s):
                self._stuck.append(process)

    # The conversation

    def _converse(self, rows: dict[str, GpuReading], *, ask: bool) -> None:
        """Ask for a pass and gather its rows, until it ends, time is up or the child fails."""
        child = self._child
        until_s = self._monotonic() + self._deadline_s
        while child is not None and child is self._child:
            try:
                if child.ready and not child.busy:
                    if not ask:
                        return
                    ask = False
                    self._ask(child)
                waits = child.ready or child.patient
                left_s = until_s - self._monotonic() if waits else 0.0
                message = child.inbox.hear(min(left_s, UNRUNG_SHARE * self._deadline_s))
            except (EOFError, BrokenPipeError):
                self._give_up(child, f"the poller died ({_ending(child.process)})", died=True)
                return
            if message is None:
                if waits and self._monotonic() < until_s:
                    continue
                self._judge_silence(child)
                return
            child.heard_s = self._monotonic()
            self._take(child, message, rows)

    def _ask(self, child: _Child) -> None:
        now_s = self._monotonic()
        # While a killed child is still in the driver, so is what it hung on.
        child.skipped = {uuid for uuid, blame in self._blamed.items() if now_s < blame.until_s or self._stuck}
        child.busy, child.opens, child.heard_s, child.patient = True, False, now_s, False
        child.seen.clear()
        child.tell("read", list(child.skipped), list(self._blamed.keys() - child.skipped))

    def _take(self, child: _Child, message: list[Any], rows: dict[str, GpuReading]) -> None:
        match message:
            case ["ready"]:
                child.ready, child.opens, self._absent = True, False, ""
            case ["opens", opens]:
                child.opens = opens
            case ["facts", facts]:
                child.facts[facts["uuid"]] = facts_of(facts)
            case ["names", uuid, names]:
                child.names[uuid] = tuple(map(sys.intern, names))
            case ["gpu", uuid, values, pids]:
                named = dict(zip(child.names[uuid], values, strict=True))
                counted = self._counted_on(child, uuid, named)
                rows[uuid] = GpuReading(child.facts[uuid], counted, None if pids is None else tuple(pids))
                child.seen[uuid] = child.facts[uuid]
            case ["event", event]:
                self._events.append(Event(*event))
            case ["end", problems]:
                self._finish(child, problems)
            case ["absent", why]:
                self._absent, self._child = why, None
                self._next_start_s = self._monotonic() + MAX_RETRY_S
                self._end(child, grace_s=0.5)

    def _counted_on(self, child: _Child, uuid: str, values: dict[str, Value]) -> dict[str, Value]:
        """`values` with the counters that this child began going on from where those before it came."""
        for name in INTEGRALS.keys() & values.keys():
            values[name] += child.counted_before.get((uuid, name), 0)
            self._integrals[uuid, name] = values[name]
        return values

    def _finish(self, child: _Child, problems: Sequence[str]) -> None:
        """A whole pass: what it did not show is gone, what it went through is well again."""
        child.busy = False
        skipped = {uuid: facts for uuid, facts in self._known.items() if _whole(uuid) in child.skipped}
        self._known = {**skipped, **child.seen}
        self._blamed = {uuid: blame for uuid, blame in self._blamed.items() if uuid in child.skipped}
        self._all_hung = False
        self._failures = 0
        self._problems += problems

    def _judge_silence(self, child: _Child) -> None:
        """Time is up: is the child slow, or does it hang?"""
        silent_s = self._monotonic() - child.heard_s
        if silent_s >= (self._start_s if child.opens else self._deadline_s / 2):
            did_not = "opened in" if child.opens else "answered for"
            self._give_up(child, f"the NVIDIA driver has not {did_not} {silent_s:.1f} s")
        elif child.opens:
            self._problems.append(STILL_OPENING)
            child.patient = False
        else:
            self._problems.append(f"the NVIDIA driver is slow: one pass takes over {self._deadline_s:g} s")

    def _silent_row(self, facts: GpuFacts) -> GpuReading:
        hung = self._all_hung or _whole(facts.uuid) in self._blamed
        return GpuReading(facts, {"gpu_state": DRIVER_HUNG} if hung else {})


def _whole(uuid: str) -> str:
    """The physical GPU of a MIG instance."""
    return uuid.partition("/GI")[0]


def _ends_within(process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return False
    return True


def _ending(process: subprocess.Popen[bytes]) -> str:
    if not _ends_within(process, 0.2):
        return "it closed its pipe"
    code = process.returncode
    return signal.Signals(-code).name if code < 0 else f"exit code {code}, see its traceback above"
