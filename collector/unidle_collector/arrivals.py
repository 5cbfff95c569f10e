"""Batches for the window, and which of them can be taken together."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unidle_agent.wire import Batch, Columns


@dataclass(frozen=True, slots=True)
class Arrival:
    """A batch for the window."""

    batch: Batch
    positions: NDArray[np.intp]
    """Of its GPUs in every per-GPU array."""
    received_ns: int
    shift_ns: int = 0
    """Corrects its clock."""


@dataclass(slots=True)
class Taken:
    """What became of one batch's rows (one row is one GPU at one instant)."""

    rows: int = 0
    late: int = 0
    future: int = 0


@dataclass(frozen=True, slots=True)
class Flaws:
    """What was not right with the rows of one node."""

    node: str
    values_refused: int = 0
    """Infinite, negative or impossible values: they become unknown."""
    counter_resets: int = 0


def alike(arrivals: Sequence[Arrival]) -> Iterator[list[int]]:
    """Groups of batches (by number) with the same columns, each node once in a group, in order of arrival."""
    turns: dict[str, int] = {}
    groups: dict[tuple[int, Hashable], list[int]] = {}
    for number, arrival in enumerate(arrivals):
        batch = arrival.batch
        if not len(batch.times_ns):
            continue
        turn = turns[batch.node] = turns.get(batch.node, -1) + 1
        key = (turn, (len(arrival.positions) > 0, _names(batch.columns), _names(batch.host)))
        groups.setdefault(key, []).append(number)
    yield from (groups[key] for key in sorted(groups, key=lambda key: key[0]))


def _names(columns: Mapping[str, Any]) -> Hashable:
    """The same for columns of the same names, however a batch keeps them."""
    return columns.layout.names if isinstance(columns, Columns) else tuple(columns)
