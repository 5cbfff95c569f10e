"""When a node samples, closes its batches and sends them: by the wall clock that all nodes share.

Every node samples on whole multiples of its period, so that rows of one instant speak for the same second
everywhere, and closes its batches on whole multiples of theirs, so that the collector has the rows of a
second of the whole fleet about when it has those of any node. Each sends after a delay of its own, so that
they do not all come at once. A node whose clock is off, or an agent of before, is only waited for longer.
"""

from __future__ import annotations

import hashlib

SPREAD_S = 0.8
"""Nodes send within this after a batch is closed; a finding waits as long for the last of them."""


def number_of(time_ns: int, period_ns: int) -> int:
    """The multiple of the period that an instant counts to: the nearest."""
    return (time_ns + period_ns // 2) // period_ns


def next_ns(last_ns: int, now_ns: int, period_ns: int) -> int:
    """When to sample again: the next multiple of the period that the last row does not count to already.

    A clock that was set back by more than a period has no such row: it goes on at its next multiple.
    """
    following, taken = now_ns // period_ns + 1, number_of(last_ns, period_ns)
    return period_ns * (taken + 1 if taken == following else following)


def missed(before_ns: int, time_ns: int, period_ns: int) -> int:
    """Multiples of the period between two rows that have none; 0 where the clock was set back."""
    return max(0, number_of(time_ns, period_ns) - number_of(before_ns, period_ns) - 1)


def sending_delay_s(node: str) -> float:
    """How long after a batch is closed a node sends it: always the same, 0 to SPREAD_S by its name."""
    share = int.from_bytes(hashlib.sha256(node.encode()).digest()[:4], "big") / 2**32
    return SPREAD_S * share
