"""Everything that the engine remembers of each GPU, found by walking it: for checkpoints and for late rows.

What grows with the fleet has a `resize`; all of it ends in a `PerGpu`. A detector that keeps what it
remembers in one is kept over restarts without knowing of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from unidle_collector.pergpu import Array, PerGpu

Layout = tuple[tuple[str, str, tuple[int, ...]], ...]
"""(name, dtype, leading axes) of every array: two engines with the same one can exchange their memory."""


def growing(root: object) -> Iterator[tuple[str, Any]]:
    """(attribute, value) of what `root` consists of that grows with the fleet, in order of name."""
    for attribute, value in sorted(vars(root).items()):
        if hasattr(value, "resize") and not isinstance(value, np.ndarray | np.generic):
            yield attribute, value


def parts(root: object, name: str) -> Iterator[tuple[str, PerGpu]]:
    """Every PerGpu of `root` and what it consists of, each with a stable name."""
    if isinstance(root, PerGpu):
        yield name, root
        return
    for attribute, value in growing(root):
        yield from parts(value, f"{name}.{attribute.lstrip('_')}")


def layout(named: list[tuple[str, PerGpu]]) -> Layout:
    """The shape of what `parts` found."""
    return tuple(
        (f"{name}/{array}", values.dtype.str, values.shape[:-1])
        for name, part in named
        for array, values in part.arrays.items()
    )


def copied(named: list[tuple[str, PerGpu]], gpus: slice | Array) -> dict[str, Array]:
    """Copies of the arrays at some GPUs, by the names of `layout`."""
    return {
        f"{name}/{array}": values[..., gpus].copy()
        for name, part in named
        for array, values in part.arrays.items()
    }


def put(named: list[tuple[str, PerGpu]], gpus: slice | Array, memory: dict[str, Array]) -> None:
    """Put back at some GPUs what `copied` gave."""
    for name, part in named:
        for array, values in part.arrays.items():
            values[..., gpus] = memory[f"{name}/{array}"]


def clocks(named: list[tuple[str, PerGpu]]) -> dict[str, dict[str, int]]:
    """Where each part is in time and in its rings."""
    return {name: dict(part.at) for name, part in named}


def set_clocks(named: list[tuple[str, PerGpu]], kept: dict[str, dict[str, int]]) -> None:
    """Put back what `clocks` gave."""
    for name, part in named:
        part.at.update(kept[name])
