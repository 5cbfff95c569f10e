"""Small vectorised building blocks: arrays with one entry per GPU, running means, hold timers.

Everything here works on a whole fleet at once: the last axis of every array is the GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Times = NDArray[np.int64]
Positions = NDArray[np.intp]
"""Which GPUs, by where they are in the arrays."""
Causes = NDArray[np.int16]
"""[GPUs] position in a detector's `causes`."""
Array = NDArray[Any]

SECOND_NS = 1_000_000_000
NEVER = -(2**62)
"""A time that has not been; far enough from the ends of int64 that differences stay in range."""


def known_or(values: Floats, other: float = 0.0) -> Floats:
    """`values`, and `other` where unknown."""
    return np.where(np.isnan(values), other, values)


class PerGpu:
    """Named arrays that grow together along their last axis when GPUs appear.

    Whatever a restart has to keep lies in one of these (`unidle_collector.layout` finds them all).
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._arrays: dict[str, Array] = {}
        self._fills: dict[str, Any] = {}
        self.at: dict[str, int] = {}
        """Where in the arrays, or in time, the owner of this is: whole numbers that a restart keeps too."""

    def make(self, name: str, dtype: Any, fill: Any, *lead: int) -> None:
        """Add the array `name` of shape [*lead, GPUs], filled with `fill`."""
        self._arrays[name] = np.full((*lead, self._size), fill, dtype=dtype)
        self._fills[name] = fill

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    @property
    def arrays(self) -> Mapping[str, Array]:
        """Every array by name."""
        return self._arrays

    @property
    def size(self) -> int:
        """Length of the last axis."""
        return self._size

    def resize(self, size: int) -> None:
        """Grow to `size` GPUs; what is new holds the fill value."""
        if size == self._size:
            return
        for name, old in self._arrays.items():
            new = np.full((*old.shape[:-1], size), self._fills[name], dtype=old.dtype)
            new[..., : self._size] = old
            self._arrays[name] = new
        self._size = size


class RunningMean:
    """Mean over the last `window_s` of several quantities at once, one step in, one step out.

    Unknown values are skipped, zeros are kept; where less than `coverage` of the window is known
    the mean is NaN.
    """

    def __init__(
        self, names: tuple[str, ...], window_s: float, period_s: float, size: int, coverage: float
    ) -> None:
        self.window_s = max(window_s, 3 * period_s)
        self._slots = max(1, round(self.window_s / period_s))
        self._need = max(1.0, coverage * self._slots)
        self._row = {name: row for row, name in enumerate(names)}
        self._means: dict[str, Floats] = {}
        """Means that were asked for at this step."""
        self._a = PerGpu(size)
        self._a.at["next"] = 0
        self._a.make("ring", np.float32, np.nan, len(names), self._slots)
        self._a.make("sum", np.float64, 0.0, len(names))
        self._a.make("count", np.int32, 0, len(names))

    def push(self, values: Mapping[str, Floats]) -> None:
        """Take one step; a quantity that is missing from `values` is unknown."""
        ring, total, count = self._a["ring"], self._a["sum"], self._a["count"]
        slot, self._means = self._a.at["next"], {}
        self._a.at["next"] = (slot + 1) % self._slots
        for name, row in self._row.items():
            fresh = values.get(name)
            if fresh is None and not np.count_nonzero(count[row]):
                continue
            place = ring[row, slot]
            known = ~np.isnan(place)
            np.subtract(total[row], place, out=total[row], where=known)
            count[row] -= known
            place[:] = np.nan if fresh is None else fresh
            known = ~np.isnan(place)
            np.add(total[row], place, out=total[row], where=known)
            count[row] += known

    def mean(self, name: str) -> Floats:
        """[GPUs] mean over the window, NaN where too little is known."""
        found = self._means.get(name)
        if found is None:
            row = self._row[name]
            count = self._a["count"][row]
            found = np.full(count.shape, np.nan)
            np.divide(self._a["sum"][row], count, out=found, where=count >= self._need)
            self._means[name] = found
        return found

    def forget(self, gpus: Bools) -> None:
        """Start the windows of `gpus` anew: another job is a different signal."""
        self._a["ring"][..., gpus] = np.nan
        self._a["sum"][..., gpus] = 0.0
        self._a["count"][..., gpus] = 0
        self._means = {}

    def resize(self, size: int) -> None:
        """Grow to `size` GPUs."""
        self._a.resize(size)
        self._means = {}


class Hold:
    """Turns what is seen at each step into a condition with a minimum duration and hysteresis.

    A GPU's condition is on once it was seen for `on_after_s` without a break of `break_s` (as long as
    `off_after_s` where that is not given), and off once its contrary was seen for `off_after_s`. Steps
    at which nothing can be told change neither, until they have lasted `forget_s`.
    """

    def __init__(self, size: int, off_after_s: float, forget_s: float, break_s: float | None = None) -> None:
        self._off_after_ns = int(off_after_s * SECOND_NS)
        self._break_ns = self._off_after_ns if break_s is None else int(break_s * SECOND_NS)
        self._forget_ns = int(forget_s * SECOND_NS)
        self._a = PerGpu(size)
        self._a.make("on", np.bool_, False)
        self._a.make("since", np.int64, NEVER)
        self._a.make("last_yes", np.int64, NEVER)
        self._a.make("last_known", np.int64, NEVER)

    @property
    def on(self) -> Bools:
        """[GPUs] is the condition on."""
        return self._a["on"]

    @property
    def since(self) -> Times:
        """[GPUs] since when it has been seen; NEVER where it is not."""
        return self._a["since"]

    def update(self, yes: Bools, known: Bools, start_ns: int, end_ns: int, on_after_ns: Any) -> None:
        """Take the step [start_ns, end_ns]; `on_after_ns` may be one per GPU."""
        a = self._a
        since, last_yes, last_known = a["since"], a["last_yes"], a["last_known"]
        # Of most of a fleet nothing is seen, and nothing was.
        at = np.flatnonzero((yes & known) | (since != NEVER))
        if not at.size:
            return
        known, on = known[at], a["on"][at]
        yes = yes[at] & known
        since[at[yes & (since[at] == NEVER)]] = start_ns
        last_yes[at[yes]] = end_ns
        last_known[at[known]] = end_ns
        patience_ns = np.where(on, self._off_after_ns, self._break_ns)
        contrary = known & ~yes & (end_ns - last_yes[at] >= patience_ns)
        over = contrary | (~known & (end_ns - last_known[at] >= self._forget_ns))
        enough_ns = on_after_ns[at] if np.ndim(on_after_ns) else on_after_ns
        a["on"][at] = (on | (yes & (end_ns - since[at] >= enough_ns))) & ~over
        since[at[over]] = NEVER

    def reset(self, gpus: Bools) -> None:
        """Forget `gpus`: their job changed."""
        self._a["on"][gpus] = False
        self._a["since"][gpus] = NEVER

    def resize(self, size: int) -> None:
        """Grow to `size` GPUs."""
        self._a.resize(size)
