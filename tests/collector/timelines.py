"""Timelines of made-up training jobs whose slowest part is known."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

TRANSFER_S = 0.002
COLLECTIVE_S = 0.03
FORWARD_S, BACKWARD_S = 0.1, 0.2

Pass = Callable[[int, int, int, int], float]
"""(step, dp_rank, stage, micro-batch) -> how many times as long as usual its forward and backward take."""


@dataclass(frozen=True)
class Job:
    """A pipeline that does all forward passes of a step, then all backward passes."""

    dp_ranks: int = 3
    stages: int = 3
    microbatches: int = 4
    steps: int = 5
    factor: Pass = lambda *_: 1.0
    transfer_factor: Callable[[int, int], float] = lambda step, dp_rank: 1.0

    def table(self) -> pa.Table:
        """The operations, with all waiting in their recorded lengths, as a trace has it."""
        rows: list[dict[str, Any]] = []
        for step in range(self.steps):
            rows += self._step(step)
        return pa.Table.from_pylist(rows)

    def _step(self, step: int) -> list[dict[str, Any]]:
        ranks = [(dp_rank, stage) for dp_rank in range(self.dp_ranks) for stage in range(self.stages)]
        todo = {rank: self._program(step, *rank) for rank in ranks}
        sizes: dict[Hashable, int] = defaultdict(int)
        for program in todo.values():
            for _, meeting, _, _ in program:
                sizes[meeting] += meeting is not None
        clock = dict.fromkeys(ranks, 0.0)
        there: dict[Hashable, dict[tuple[int, int], float]] = defaultdict(dict)
        rows = []
        while any(todo.values()):
            for number, rank in enumerate(ranks):
                while todo[rank]:
                    kind, meeting, length_s, microbatch = todo[rank][0]
                    begin = clock[rank]
                    if meeting is not None:
                        there[meeting][rank] = clock[rank]
                        if len(there[meeting]) < sizes[meeting]:
                            break
                        begin = max(there[meeting].values())
                    todo[rank].pop(0)
                    end = begin + length_s
                    rows.append(
                        {
                            "dp_rank": rank[0], "stage": rank[1], "rank": number, "step": step,
                            "optype": kind, "start_ts": clock[rank], "duration": end - clock[rank],
                            "mc": 0, "mb_id": microbatch,
                        }
                    )  # fmt: skip
                    clock[rank] = end
        return rows

    def _program(self, step: int, dp_rank: int, stage: int) -> list[tuple[str, Hashable, float, int]]:
        sent_s = TRANSFER_S * self.transfer_factor(step, dp_rank)
        ops: list[tuple[str, Hashable, float, int]] = [("params-all-gather", ("a", stage), COLLECTIVE_S, -1)]
        for each in range(self.microbatches):
            if stage > 0:
                ops.append(("forward-recv", ("f", dp_rank, stage, each), sent_s, -1))
            ops.append(("forward-compute", None, FORWARD_S * self.factor(step, dp_rank, stage, each), each))
            if stage < self.stages - 1:
                ops.append(("forward-send", ("f", dp_rank, stage + 1, each), sent_s, -1))
        for each in range(self.microbatches):
            if stage < self.stages - 1:
                ops.append(("backward-recv", ("b", dp_rank, stage, each), sent_s, -1))
            ops.append(("backward-compute", None, BACKWARD_S * self.factor(step, dp_rank, stage, each), each))
            if stage > 0:
                ops.append(("backward-send", ("b", dp_rank, stage - 1, each), sent_s, -1))
        ops.append(("grads-reduce-scatter", ("g", stage), COLLECTIVE_S, -1))
        ops.append(("optimizer", None, 0.02, -1))
        return ops


def longer_sequences(seed: int) -> Pass:
    """Every micro-batch of a data-parallel rank holds its own amount of work, the same in all stages."""

    def factor(step: int, dp_rank: int, stage: int, microbatch: int) -> float:
        rng = np.random.default_rng((seed, step, dp_rank, microbatch))
        return float(rng.lognormal(0.0, 0.5))

    return factor
