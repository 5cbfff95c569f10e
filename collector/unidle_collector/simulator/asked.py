"""What an agent's rows say of fields that move slowly: when it asks, when it asks again, what it repeats.

Whether to ask again is decided by the agent's own `unidle_agent.recheck`. Fields of a GPU are repeated until
the next answer, as `unidle_agent.sources.nvml` does; those of the node's ports are in the row that asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from unidle_agent.recheck import (
    LOADED_RATIO,
    PcieRechecks,
    Rechecks,
    Signs,
    infiniband_signs,
    nvlink_signs,
)
from unidle_agent.sources.infiniband import PERIOD_S

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

READ_EACH_S = 15
"""The agent reads what moves slowly this often, each node at its own second; its ports each PERIOD_S."""
PCIE = ("pcie_width", "pcie_width_max", "pcie_generation", "pcie_generation_max")
NVLINK = ("nvlink_links", "nvlink_links_up", "nvlink_errors", "nvlink_recoveries", "nvlink_recoveries_failed")
PORTS = ("ib_ports_active", "ib_ports_inactive", "ib_ports_slow", "ib_link_errors")


def usual(rows: NDArray[np.int64], phase: int, name: str) -> Bools:
    """[rows] is the field asked because it is time; `rows` are the seconds of the run that have one."""
    each_s = int(PERIOD_S) if name in PORTS else READ_EACH_S
    period_s = int(rows[1] - rows[0])
    out: Bools = (rows + phase) % each_s < period_s
    return out


def told(
    columns: Mapping[str, Floats], slow: frozenset[str], rows: NDArray[np.int64], phase: int
) -> dict[str, Floats]:
    """Slow field -> [rows, G] what the node's rows say of it; `columns` are [T, G] as the hardware has it.

    Where a field of links is not among them, an exporter tells the others, which asks nothing again.
    """
    levels = {name: values[rows] for name, values in columns.items() if name in slow}
    works = columns["gpu_util_ratio"][rows] >= LOADED_RATIO
    shape = works.shape
    asked = {name: np.broadcast_to(usual(rows, phase, name)[:, None], shape).copy() for name in levels}
    misleads = np.zeros(shape, dtype=np.bool_)
    if slow.issuperset(PCIE + NVLINK + PORTS):
        for gpu in range(shape[1]):
            _ask_pcie_again(levels, works[:, gpu], rows, gpu, asked, misleads)
            _ask_again(NVLINK, nvlink_signs, levels, rows, gpu, asked)
        _ask_again(PORTS, infiniband_signs, levels, rows, 0, asked)
    out = {}
    for name, level in levels.items():
        if name in PORTS:
            out[name] = np.where(asked[name][:, :1], level, np.nan)
        else:
            at = np.maximum.accumulate(np.where(asked[name], np.arange(len(rows))[:, None], -1), axis=0)
            out[name] = np.where(at >= 0, np.take_along_axis(level, np.maximum(at, 0), axis=0), np.nan)
    if misleads.any():
        out["pcie_generation"][misleads] = np.nan
    return out


def _ask_again(
    names: tuple[str, ...],
    signs: Callable[[Mapping[str, float]], Signs],
    levels: Mapping[str, Floats],
    rows: NDArray[np.int64],
    gpu: int,
    asked: dict[str, Bools],
) -> None:
    """Add what the agent asks again of one GPU's links, or of the node's ports, to `asked` [rows, G]."""
    mine = np.stack([levels[name][:, gpu] for name in names], axis=1)
    if _is_still(mine):
        return
    again, when = Rechecks(), asked[names[0]][:, gpu]
    for number, second in enumerate(rows.tolist()):
        if not when[number]:
            if not again.due(second):
                continue
            again.spend(second)
        when[number] = True
        if not np.isnan(mine[number]).any():
            again.note(signs(dict(zip(names, mine[number].tolist(), strict=True))))
    for name in names:
        asked[name][:, gpu] = when


def _ask_pcie_again(
    levels: Mapping[str, Floats],
    works: Bools,
    rows: NDArray[np.int64],
    gpu: int,
    asked: dict[str, Bools],
    misleads: Bools,
) -> None:
    """The same of one GPU's PCIe link; `misleads` [rows, G]: where the agent leaves its generation out."""
    mine = np.stack([levels[name][:, gpu] for name in PCIE], axis=1)
    if _is_still(mine) and (mine[0, 0::2] == mine[0, 1::2]).all():
        return
    again, when = PcieRechecks(), asked[PCIE[0]][:, gpu]
    for number, second in enumerate(rows.tolist()):
        loaded = bool(works[number])
        when[number] |= again.asks(second, loaded=loaded) if not when[number] else True
        if when[number] and not np.isnan(mine[number]).any():
            again.note(dict(zip(PCIE, mine[number].tolist(), strict=True)), loaded=loaded)
        misleads[number, gpu] = again.misleads(loaded=loaded)
    for name in PCIE:
        asked[name][:, gpu] = when


def _is_still(levels: Floats) -> bool:
    """[rows, fields] does nothing ever change, so that no answer is worse than another."""
    return bool((levels == levels[0]).all())
