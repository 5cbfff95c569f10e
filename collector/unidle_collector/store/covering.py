"""Which segments answer a question: each log file's rows once, at the level that fits best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from unidle_collector.store.rollup import WIDTHS_NS
from unidle_collector.store.segments import Segment

Scope = Literal["gpu", "host", "fleet"]
LEVELS = ("raw", *WIDTHS_NS)
"""From fine to coarse."""


def kind_of(scope: Scope, level: str) -> str:
    """The kind of segment that holds `scope` at `level`."""
    return scope if level == "raw" else f"{scope}_{level}"


def best_level(step_ns: int) -> str:
    """The coarsest level whose buckets are no longer than a step."""
    return max(
        (name for name in WIDTHS_NS if WIDTHS_NS[name] <= step_ns), key=WIDTHS_NS.__getitem__, default="raw"
    )


def whole_buckets(step_ns: int) -> int:
    """`step_ns`, or somewhat more: whole buckets of the coarsest roll-up that it nearly reaches.

    A day in 1,500 steps is 57.6 s each: with 60 s it is read from a sixth of the rows.
    """
    for width_ns in sorted(WIDTHS_NS.values(), reverse=True):
        if step_ns >= 0.9 * width_ns:
            return -(-step_ns // width_ns) * width_ns
    return step_ns


def cover(present: Sequence[Segment], scope: Scope, step_ns: int) -> list[Segment]:
    """The segments to read for steps of `step_ns`, so that no row counts twice.

    The level wanted first; what is not at that level yet (the newest hour, say) comes from finer ones, what
    is no longer kept from coarser ones. A coarser segment takes the place of the finer ones within it.
    """
    place = LEVELS.index(best_level(step_ns))
    chosen: list[Segment] = []
    for level in (*reversed(LEVELS[: place + 1]), *LEVELS[place + 1 :]):
        kind = kind_of(scope, level)
        for segment in present:
            if segment.kind == kind and not any(taken.covers(segment) for taken in chosen):
                chosen = [taken for taken in chosen if not segment.covers(taken)]
                chosen.append(segment)
    return chosen
