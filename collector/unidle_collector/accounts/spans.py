"""What was booked for each GPU of a recording, from when to when: the account as a time line."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unidle_collector.accounts.ledger import NOT_BOOKED, WHOLE, Ledger


@dataclass(frozen=True, slots=True)
class Span:
    """Time of one GPU in one state for one cause, as long as neither changes."""

    begin_ns: int
    end_ns: int
    state: str
    cause: str
    """Empty where the state has none."""
    loss_ratio: float
    """Mean share of the GPU that was lost in it, 0-1; 0 in unknown and productive time."""


class Booked:
    """Copies what a ledger has booked before it forgets it; what it corrects until then is corrected here."""

    def __init__(
        self, ledger: Ledger, gpus: NDArray[np.intp], ends_ns: NDArray[np.int64], period_ns: int
    ) -> None:
        """`ends_ns` are the ends of the steps, each as long as it is since the one before, the first as long
        as a period; `gpus` are their positions."""
        self._ledger, self._gpus, self._ends = ledger, gpus, ends_ns
        self._begins = np.append(ends_ns[:1] - period_ns, ends_ns[:-1])
        self._period_ns = period_ns
        self._code = np.full((ends_ns.size, gpus.size), NOT_BOOKED, dtype=np.int8)
        self._loss = np.zeros((ends_ns.size, gpus.size), dtype=np.uint16)
        self._each = max(1, ledger.remembered // 2)

    def follow(self, step: int) -> None:
        """The ledger has booked the step of this number."""
        ahead_ns = self._ends[step + 1 : step + 2] - self._ends[step]
        if (step + 1) % self._each and ahead_ns.size and ahead_ns[0] <= self._period_ns:
            return
        past_ns = self._ends[step] - self._ledger.remembered * self._period_ns
        first = int(np.searchsorted(self._ends, past_ns, side="right"))
        code, loss = self._ledger.booked_steps(self._ends[first : step + 1])
        self._code[first : step + 1], self._loss[first : step + 1] = code[:, self._gpus], loss[:, self._gpus]

    def spans(self, gpu: int) -> tuple[Span, ...]:
        """Of the GPU at this place among `gpus`, in order of time."""
        code = self._code[:, gpu]
        if not code.size:
            return ()
        begins = np.concatenate(([0], np.flatnonzero(np.diff(code)) + 1))
        ends = np.append(begins[1:], code.size)
        lengths = self._ends - self._begins
        lost = np.add.reduceat(self._loss[:, gpu] * lengths.astype(np.float64), begins) / WHOLE
        lost /= np.add.reduceat(lengths, begins)
        return tuple(
            Span(
                int(self._begins[begin]),
                int(self._ends[end - 1]),
                self._ledger.codes[code[begin]].state,
                self._ledger.codes[code[begin]].cause,
                round(float(share), 4),
            )
            for begin, end, share in zip(begins, ends, lost, strict=True)
            if code[begin] != NOT_BOOKED
        )
