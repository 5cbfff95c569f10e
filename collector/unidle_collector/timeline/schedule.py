"""What waits for what in a training step, and how long the step takes for given lengths of operations.

A rank does its operations one after another, in the order of their starts. Operations of a rank that
start at the same instant are one call (a batched send and receive), which ends when all of them have
ended. Operations that several ranks do together are a meeting: it starts when the last of them is there.
Steps of one structure share a plan, and are replayed together, as vectors.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from unidle_collector.timeline.operations import SENDS, TOGETHER, Operations, TimelineError

Meeting = tuple[str, int, int, int]
"""What its members have in common: kind, data-parallel rank, stage (-1: of all), number within the step."""

_SEND_OF = {receive: send for send, receive in SENDS.items()}


@dataclass(frozen=True, slots=True)
class Call:
    """Operations of one rank that start at once, as positions within the step."""

    rank: int
    own: tuple[int, ...]
    """Those that wait for nobody."""
    joint: tuple[tuple[int, int], ...]
    """(Operation, its meeting)."""


Event = tuple[Literal["begin", "end"], Call]


@dataclass(frozen=True, slots=True)
class Plan:
    """The structure of one or more steps."""

    rows: NDArray[np.int64]
    """[steps, positions]: which operation."""
    meeting: NDArray[np.int64]
    """[positions]: which meeting, -1 for none."""
    meetings: int
    ranks: int
    events: tuple[Event, ...]
    """Begin and end of every call, after all that it waits for."""

    def transfers_s(self, operations: Operations) -> NDArray[np.float64]:
        """[positions, steps]: how long an operation took; in a meeting, once the last rank was there."""
        start, end = operations.start_s[self.rows.T], operations.end_s[self.rows.T]
        joint = self.meeting >= 0
        last = np.full((self.meetings, start.shape[1]), -np.inf)
        np.maximum.at(last, self.meeting[joint], start[joint])
        begin = start.copy()
        begin[joint] = last[self.meeting[joint]]
        return np.maximum(end - begin, 0.0)

    def replay_s(self, lengths_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Length of the step when its operations take `lengths_s` [positions, cases]: [cases]."""
        free = np.zeros((self.ranks, lengths_s.shape[1]))
        gathered = np.zeros((self.meetings, lengths_s.shape[1]))
        for what, call in self.events:
            begin = free[call.rank]
            if what == "begin":
                for _, meeting in call.joint:
                    np.maximum(gathered[meeting], begin, out=gathered[meeting])
                continue
            ends = [begin + lengths_s[each] for each in call.own]
            ends += [gathered[meeting] + lengths_s[each] for each, meeting in call.joint]
            free[call.rank] = np.maximum.reduce(ends)
        return np.asarray(free.max(axis=0))


def plans(operations: Operations) -> tuple[list[Plan], int]:
    """The plans of all steps that fit together, and how many steps did not (their record has holes).

    Raises TimelineError when none does, with what is wrong with the first.
    """
    bounds = [0, *(np.flatnonzero(np.diff(operations.step)) + 1).tolist(), len(operations)]
    stages = int(operations.stage.max()) + 1
    alike: dict[Hashable, list[NDArray[np.int64]]] = {}
    for first, last in pairwise(bounds):
        rows = np.arange(first, last)
        alike.setdefault(_structure(operations, rows), []).append(rows)
    made: list[Plan] = []
    misfits, why = 0, None
    for steps in alike.values():
        try:
            made.append(replace(_plan(operations, steps[0], stages), rows=np.stack(steps)))
        except TimelineError as error:
            misfits, why = misfits + len(steps), why or error
    if not made:
        raise why or TimelineError("expected at least one step")
    return made, misfits


def _structure(operations: Operations, rows: NDArray[np.int64]) -> Hashable:
    """Equal for steps whose operations wait for each other in the same way."""
    rank, kind = operations.rank[rows], operations.kind[rows]
    return rank.tobytes(), kind.tobytes(), operations.chunk[rows].tobytes(), operations.begins[rows].tobytes()


def _plan(operations: Operations, rows: NDArray[np.int64], stages: int) -> Plan:
    meeting, count = _meetings(operations, rows, stages)
    rank = operations.rank[rows].tolist()
    first = np.flatnonzero(operations.begins[rows]).tolist()
    calls = [
        Call(
            rank[begin],
            own=tuple(each for each in range(begin, end) if meeting[each] < 0),
            joint=tuple((each, int(meeting[each])) for each in range(begin, end) if meeting[each] >= 0),
        )
        for begin, end in zip(first, [*first[1:], len(rows)], strict=True)
    ]
    ranks = int(operations.rank.max()) + 1
    return Plan(rows[np.newaxis], meeting, count, ranks, _in_order(calls, ranks))


def _meetings(operations: Operations, rows: NDArray[np.int64], stages: int) -> tuple[NDArray[np.int64], int]:
    """Position -> meeting, -1 for an operation that waits for nobody; and how many meetings there are.

    The n-th send of a rank meets the n-th receive of its neighbour, the n-th collective of a rank the
    n-th of the others.
    """
    names = [operations.kinds[kind] for kind in operations.kind[rows].tolist()]
    places = zip(
        operations.rank[rows].tolist(), operations.dp_rank[rows].tolist(), operations.stage[rows].tolist(),
        strict=True,
    )  # fmt: skip
    before: Counter[tuple[int, str]] = Counter()
    keys: dict[Meeting, int] = {}
    members: Counter[int] = Counter()
    meeting = np.full(len(rows), -1, dtype=np.int64)
    for position, (name, (rank, dp_rank, stage)) in enumerate(zip(names, places, strict=True)):
        key = _key(name, before[rank, name], dp_rank, stage, stages)
        before[rank, name] += 1
        if key is not None:
            meeting[position] = keys.setdefault(key, len(keys))
            members[keys[key]] += 1
    for key, number in keys.items():
        if key[0] in SENDS and members[number] != 2:
            raise TimelineError(
                f"expected a {SENDS[key[0]]} for every {key[0]}, number {key[3]} into stage {key[2]} of "
                f"dp_rank {key[1]} has none"
            )
    return meeting, len(keys)


def _key(name: str, number: int, dp_rank: int, stage: int, stages: int) -> Meeting | None:
    """The meeting of the operation, None when it waits for nobody."""
    if name in SENDS:
        to = stage + 1 if name.startswith("forward") else stage - 1
        return name, dp_rank, to % stages, number
    if name in _SEND_OF:
        return _SEND_OF[name], dp_rank, stage, number
    if name in TOGETHER:
        group = TOGETHER[name]
        return name, dp_rank if group == "dp_rank" else -1, stage if group == "stage" else -1, number
    return None


def _in_order(calls: Sequence[Call], ranks: int) -> tuple[Event, ...]:
    """Begin and end of every call such that no call ends before all whom it meets have begun.

    Raises TimelineError when calls wait for each other in a circle.
    """
    todo: list[deque[Call]] = [deque() for _ in range(ranks)]
    absent: Counter[int] = Counter()
    for call in calls:
        todo[call.rank].append(call)
        absent.update(meeting for _, meeting in call.joint)
    waiting: dict[int, list[int]] = {}
    events: list[Event] = []
    ready = deque(rank for rank in range(ranks) if todo[rank])
    for rank in list(ready):
        _begin(todo[rank][0], events, absent, waiting, ready)
    while ready:
        rank = ready.popleft()
        while todo[rank]:
            call = todo[rank][0]
            open_meeting = next((meeting for _, meeting in call.joint if absent[meeting]), None)
            if open_meeting is not None:
                waiting.setdefault(open_meeting, []).append(rank)
                break
            events.append(("end", call))
            todo[rank].popleft()
            if todo[rank]:
                _begin(todo[rank][0], events, absent, waiting, ready)
    if any(todo):
        raise TimelineError(
            "expected operations that can follow each other, some wait for each other in a circle"
        )
    return tuple(events)


def _begin(
    call: Call, events: list[Event], absent: Counter[int], waiting: dict[int, list[int]], ready: deque[int]
) -> None:
    """The rank of `call` is there; whoever waited for it may go on."""
    events.append(("begin", call))
    for _, meeting in call.joint:
        absent[meeting] -= 1
        if not absent[meeting]:
            ready.extend(waiting.pop(meeting, ()))
