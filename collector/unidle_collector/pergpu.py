"""Small vectorised building blocks: arrays with one entry per GPU, running means, hold timers.

Everything here works on a whole fleet at once: the last axis of every array is the GPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Times = NDArray[np.int64]
Array = NDArray[Any]

SECOND_NS = 1_000_000_000
NEVER = -(2**62)
"""A time that has not been; far enough from the ends of int64 that differences stay in range."""


class PerGpu:
    """Named arrays that grow together along their last axis when GPUs appear."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._arrays: dict[str, Array] = {}
        self._fills: dict[str, Any] = {}

    def make(self, name: str, dtype: Any, fill: Any, *lead: int) -> None:
        """Add the array `name` of shape [*lead, GPUs], filled with `fill`."""
        self._arrays[name] = np.full((*lead, self._size), fill, dtype=dtype)
        self._fills[name] = fill

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

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
        self._next = 0
        self._means: Floats | None = None
        """All means, worked out at most once per step."""
        self._a = PerGpu(size)
        self._a.make("ring", np.float32, np.nan, len(names), self._slots)
        self._a.make("sum", np.float64, 0.0, len(names))
        self._a.make("count", np.int32, 0, len(names))

    def push(self, values: dict[str, Floats]) -> None:
        """Take one step; a quantity that is missing from `values` is unknown."""
        ring, total, count = self._a["ring"], self._a["sum"], self._a["count"]
        slot, self._next, self._means = self._next, (self._next + 1) % self._slots, None
        for name, row in self._row.items():
            leaving = ring[row, slot]
            known = ~np.isnan(leaving)
            if known.any():
                total[row] -= np.where(known, leaving, 0.0)
                count[row] -= known
            fresh = values.get(name)
            if fresh is None:
                ring[row, slot] = np.nan
                continue
            ring[row, slot] = fresh
            leaving = ring[row, slot]
            known = ~np.isnan(leaving)
            total[row] += np.where(known, leaving, 0.0)
            count[row] += known

    def mean(self, name: str) -> Floats:
        """[GPUs] mean over the window, NaN where too little is known."""
        if self._means is None:
            count = self._a["count"]
            with np.errstate(invalid="ignore", divide="ignore"):
                self._means = np.where(count >= self._need, self._a["sum"] / count, np.nan)
        out: Floats = self._means[self._row[name]]
        return out

    def forget(self, gpus: Bools) -> None:
        """Start the windows of `gpus` anew: another job is a different signal."""
        self._a["ring"][..., gpus] = np.nan
        self._a["sum"][..., gpus] = 0.0
        self._a["count"][..., gpus] = 0
        self._means = None

    def resize(self, size: int) -> None:
        """Grow to `size` GPUs."""
        self._a.resize(size)
        self._means = None


class Hold:
    """Turns what is seen at each step into a condition with a minimum duration and hysteresis.

    A GPU's condition is on once it was seen without a break for `on_after_s`, and off once its
    contrary was seen for `off_after_s`. Steps at which nothing can be told change neither, until
    they have lasted `forget_s`.
    """

    def __init__(self, size: int, off_after_s: float, forget_s: float) -> None:
        self._off_after_ns = int(off_after_s * SECOND_NS)
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
        since, last_yes, last_known, on = a["since"], a["last_yes"], a["last_known"], a["on"]
        yes = yes & known
        fresh = yes & (since == NEVER)
        since[fresh] = start_ns
        last_yes[yes] = end_ns
        last_known[known] = end_ns
        started = since != NEVER
        contrary = known & ~yes & (end_ns - last_yes >= self._off_after_ns)
        forgotten = ~known & (end_ns - last_known >= self._forget_ns)
        over = started & (contrary | forgotten)
        on[yes & (end_ns - since >= on_after_ns)] = True
        on[over] = False
        since[over] = NEVER

    def reset(self, gpus: Bools) -> None:
        """Forget `gpus`: their job changed."""
        self._a["on"][gpus] = False
        self._a["since"][gpus] = NEVER

    def resize(self, size: int) -> None:
        """Grow to `size` GPUs."""
        self._a.resize(size)
