"""Columns of many batches at once are what each batch says, one after the other."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from unidle_agent.wire import Batch, Columns, decode, encode
from unidle_collector.joined import Joined

NAMES = ("power_w", "energy_j", "memory_used_bytes", "sm_active_ratio")
KINDS = {"power_w": "f4", "energy_j": "u8", "memory_used_bytes": "f8", "sm_active_ratio": "f4"}


def batch(instants: int, gpus: int, names: list[str], seed: int) -> Batch:
    chance = np.random.default_rng(seed)
    columns = {name: chance.integers(0, 99, instants * gpus).astype(KINDS[name]) for name in names}
    times = list(range(10**9, 10**9 + instants))
    return Batch("n", "b", 0, 0, 1.0, times, tuple(f"G{n}" for n in range(gpus)), columns, {})


@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.integers(1, 3), st.permutations(NAMES), st.booleans()),
        min_size=1,
        max_size=12,
    )
)
def test_whatever_batches_stand_beside_each_other_their_columns_follow_in_order(
    shapes: list[tuple[int, int, list[str], bool]],
) -> None:
    sent = [batch(high, wide, names, seed) for seed, (high, wide, names, _) in enumerate(shapes)]
    read = [
        decode(encode(one)).columns if through else one.columns
        for one, (_, _, _, through) in zip(sent, shapes, strict=True)
    ]
    joined = Joined(read)
    for name in NAMES:
        expected = np.concatenate([one.columns[name] for one in sent])
        assert np.array_equal(np.frombuffer(joined.bytes_of(name), KINDS[name]), expected)


def test_batches_with_the_same_columns_share_where_they_lie() -> None:
    one, other = (decode(encode(batch(5, 8, list(NAMES), seed))).columns for seed in (1, 2))
    assert isinstance(one, Columns)
    assert isinstance(other, Columns)
    assert one.layout is other.layout
    assert "energy_j" in one
    assert "gpu_busy_s" not in one
    assert dict(one) == {name: one[name] for name in NAMES}
