"""The same column of many batches as one run of bytes, without looking at each batch where they are alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unidle_agent.wire import Columns


class Joined:
    """The columns of some batches, in their order."""

    def __init__(self, batches: Sequence[Mapping[str, Any]]) -> None:
        self._parts: list[tuple[NDArray[np.uint8], Columns] | Mapping[str, Any]] = []
        """Runs of batches with one layout as [batches, bytes] beside the first of them; others one by one."""
        for layout, run in groupby(batches, key=lambda one: getattr(one, "layout", None)):
            if layout is None:
                self._parts += run
                continue
            several = [one for one in run if isinstance(one, Columns)]
            data = np.frombuffer(b"".join([one.data for one in several]), np.uint8)
            self._parts.append((data.reshape(len(several), -1), several[0]))

    def bytes_of(self, name: str) -> bytes:
        """The column of all batches, one after the other; every batch must have it."""
        return b"".join([_bytes(part, name) for part in self._parts])


def _bytes(part: tuple[NDArray[np.uint8], Columns] | Mapping[str, Any], name: str) -> Any:
    if isinstance(part, Mapping):
        return part[name]
    first, end, _ = part[1].layout.places[name]
    return part[0][:, first:end].tobytes()
