"""Totals of bytes where a rate is expected: NVLink and PCIe, as some recorders count them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MOST_BYTES_PER_S = {"pcie": 2.6e11, "nvlink": 1.8e12}
"""First word of the field's name -> what no link moves (PCIe 7 x16; NVLink 5, both ways)."""
LEAST_SAMPLES = 10
FALLS = 0.01
"""Of the samples of a total that begins anew now and then."""


def rates_of_totals(
    values: dict[str, NDArray[np.float64]],
    gpu: NDArray[np.int32],
    time_ns: NDArray[np.int64],
    named: set[str],
    notes: list[str],
) -> None:
    """Put the rate in the place of each total among `values`, field -> [rows] in bytes per second.

    A total is what never falls, but for FALLS of the samples, and either has a name that says so (`named`) or
    goes beyond what a link can move. The rate of a row is that since the row before of the same GPU.
    """
    for name, column in values.items():
        most = MOST_BYTES_PER_S.get(name.split("_")[0], np.inf)
        known = ~np.isnan(column)
        if not known.any() or (name not in named and float(column[known].max()) <= most):
            continue
        order = np.lexsort((time_ns, gpu))
        order = order[known[order]]
        rise, lasts_s = np.diff(column[order]), np.diff(time_ns[order]) / 1e9
        inside = (np.diff(gpu[order]) == 0) & (lasts_s > 0)
        falls = np.count_nonzero(inside & (rise < 0))
        if np.count_nonzero(inside) < LEAST_SAMPLES or falls > FALLS * np.count_nonzero(inside):
            continue
        rate = np.full(column.shape, np.nan)
        whole = inside & (rise >= 0)
        rate[order[1:][whole]] = rise[whole] / lasts_s[whole]
        values[name] = rate
        notes.append(f"{name}: the column counts bytes, their rise by the time is the rate")
