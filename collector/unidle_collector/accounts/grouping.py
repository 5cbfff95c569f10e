"""Which account each tenure counts in: asked of a tenure once, for there are more of them with every job."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from unidle_collector.inventory import Tenure

KeyOf = Callable[[Tenure], str | None]
"""The account that a tenure counts in; None leaves it out."""


class Grouping:
    """The groups of an inventory's tenures, which only become more; for the thread that owns it."""

    def __init__(self, key_of: KeyOf) -> None:
        """What `key_of` says of a tenure has to stay the same."""
        self._key_of = key_of
        self._number: dict[str, int] = {}
        self._group = np.zeros(64, dtype=np.int64)
        self._known = 0

    def of(self, tenures: Sequence[Tenure]) -> NDArray[np.int64]:
        """[tenures] Number of each one's key in `keys`, -1 where it has none."""
        if len(tenures) > self._group.size:
            self._group = np.resize(self._group, len(tenures) + len(tenures) // 8)
        for number in range(self._known, len(tenures)):
            key = self._key_of(tenures[number])
            self._group[number] = -1 if key is None else self._number.setdefault(key, len(self._number))
        self._known = len(tenures)
        return self._group[: self._known]

    @property
    def keys(self) -> list[str]:
        """By number."""
        return list(self._number)
