"""A condition per GPU: from when it holds, and when it is over."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from unidle_collector.pergpu import NEVER, SECOND_NS, Hold

GPUS = 3
OFF_S, BREAK_S, FORGET_S = 4, 2, 6
ON_S = (0, 3, 5)


class OneGpu:
    """The description of Hold, word by word, for one GPU; seconds."""

    def __init__(self, on_after_s: int) -> None:
        self.on_after_s, self.on = on_after_s, False
        self.since: int | None = None
        self.last_yes = self.last_known = 0

    def update(self, seen: bool | None, start_s: int, end_s: int) -> None:
        if seen is not None:
            self.last_known = end_s
        if seen:
            self.since = start_s if self.since is None else self.since
            self.last_yes = end_s
            self.on = self.on or end_s - self.since >= self.on_after_s
        elif self.since is not None:
            silent_s = end_s - (self.last_known if seen is None else self.last_yes)
            if silent_s >= (FORGET_S if seen is None else OFF_S if self.on else BREAK_S):
                self.on, self.since = False, None


looks = st.lists(st.sampled_from((True, False, None)), min_size=GPUS, max_size=GPUS)


@given(st.lists(st.tuples(looks, st.integers(1, 3)), max_size=60))
def test_each_gpu_holds_as_if_it_were_alone(steps: list[tuple[list[bool | None], int]]) -> None:
    hold = Hold(GPUS, OFF_S, FORGET_S, BREAK_S)
    alone = [OneGpu(on_after_s) for on_after_s in ON_S]
    start_s = 1000
    for seen, lasts_s in steps:
        end_s = start_s + lasts_s
        yes, known = np.array([one is True for one in seen]), np.array([one is not None for one in seen])
        hold.update(yes, known, start_s * SECOND_NS, end_s * SECOND_NS, np.array(ON_S) * SECOND_NS)
        for gpu, one in zip(alone, seen, strict=True):
            gpu.update(one, start_s, end_s)
        assert hold.on.tolist() == [gpu.on for gpu in alone]
        since = [NEVER if gpu.since is None else gpu.since * SECOND_NS for gpu in alone]
        assert hold.since.tolist() == since
        start_s = end_s
