"""Why a GPU starves: how far the signs of each cause are beyond their thresholds, and what that makes likely.

A sign's margin is how often its value doubles the threshold (log2): 0 at the threshold, 1 at twice it. A
cause that any of its signs shows has the largest margin of those that are known; a cause that needs all of
them has the smallest, which is unknown where one is unknown and none speaks against it. The first cause in
ORDER with a margin of at least 0 is the cause; without one it cannot be told.

Probabilities follow the same order. A cause with margin m fits with the odds 2 ** (STEEP * m): evens at the
threshold, 28 to 1 a quarter beyond it, UNKNOWN_FITS where its signs are unknown. Each takes its share of what
those before it leave. What is left, and what causes with unknown signs took, is shared out evenly among those
and `undetermined`; and NONE_OF_THESE is kept for `undetermined` all the time. STEEP was chosen by tuning
runs; benchmarks/diagnosis.py prints how often causes of each probability are true.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unidle_collector.pergpu import Floats, Positions, known_or
from unidle_collector.signals import View
from unidle_collector.signs.jobmates import Compared

UNDETERMINED = "undetermined"
ORDER = ("communication", "storage", "host_to_device", "cpu_preprocessing", "small_kernels")
"""Spinning in collectives looks busy, the others do not; the CPU may be busy with the reads or copies."""
STEEP = 15.0
UNKNOWN_FITS = 1 / len(ORDER)
NONE_OF_THESE = 0.05
"""One in twenty is kept for what nobody simulated: no cause is told as surer than the rest."""
WIDEST = 4.0
"""Margins are cut here: sixteen times the threshold is as good as a thousand times."""
LEAST = 1e-6


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Ratios 0-1, bytes per second."""

    iowait: float = 0.10
    stalled: float = 0.20
    """Share of the time in which some task waits for I/O or a CPU; seconds per second held by a quota."""
    cpu_busy: float = 0.85
    pcie_bytes_per_s: float = 3e8
    pcie_per_activity: float = 6e9
    """Bytes per second of PCIe over useful activity. Feeding samples moves with the work: about 2 GB/s for
    a full GPU that trains an image model on float32 inputs. Offloading moves 16 to 25 (8xH100, FSDP)."""
    resident: float = 0.90
    """Kernels are resident for this share of the time at least where collectives spin, and for less where
    copies are waited for."""
    still: float = 1 / 3
    """Share of the samples without activity, where it is not known how long kernels are resident."""
    nvlink_bytes_per_s: float = 2e10
    ib_bytes_per_s: float = 5e9
    spinning_sm_least: float = 0.30
    spinning_sm_most: float = 0.65
    spinning_tensor: float = 0.20
    spinning_power: float = 0.75
    small_resident: float = 0.50
    small_sm: float = 0.50
    """SM activity over the share of the time with kernels resident: 0.35 where kernels are small, and 0.66
    where copies are waited for, whose kernels fill the GPU when they run (8xH100)."""
    small_dram: float = 0.20
    small_tensor: float = 0.10
    small_power: float = 0.45
    """Power over its limit, where tensor or DRAM activity is unknown: small kernels draw 25 to 35 %."""
    dram_bound: float = 0.60
    alike: float = 0.87
    """Over the most that a GPU of its job does."""
    touched: float = 0.005
    """DRAM activity; a kernel that spins on a flag, as in a collective that hangs, touches less."""


@dataclass(frozen=True, slots=True)
class Signs:
    """What speaks for or against each cause; every array is [n], a mean over the window, NaN unknown."""

    iowait: Floats
    io_stalled: Floats
    cpu_busy: Floats
    cpu_stalled: Floats
    quota_held: Floats
    pcie_bytes_per_s: Floats
    pcie_per_activity: Floats
    resident: Floats
    """Share of the time with a kernel on the GPU."""
    still: Floats
    """Share of the samples without activity."""
    sm: Floats
    tensor: Floats
    dram: Floats
    power: Floats
    """Over its limit."""
    nvlink_bytes_per_s: Floats
    ib_bytes_per_s: Floats
    beside: Floats
    """What it does over the most that a GPU of its job does."""
    most: Floats
    """Tensor activity of that one."""
    near: Floats
    """The same as `beside` where nobody names its job, by those that may be of one with it."""
    near_most: Floats


def signs(view: View, gpus: Positions, mates: Compared | None = None) -> Signs:
    """The signs of the GPUs at these positions; `mates`, where jobs have been compared."""

    def mean(name: str) -> Floats:
        out: Floats = view.means.mean(name)[gpus]
        return out

    rx, tx = mean("pcie_rx_bytes_per_s"), mean("pcie_tx_bytes_per_s")
    pcie = np.where(np.isnan(rx), tx, rx + known_or(tx))
    useful = np.maximum(view.useful[gpus], 0.01)
    nothing = np.full(gpus.shape, np.nan)
    return Signs(
        iowait=mean("cpu_iowait_ratio"),
        io_stalled=mean("psi_io_some_ratio"),
        cpu_busy=mean("cpu_busy_ratio"),
        cpu_stalled=mean("psi_cpu_some_ratio"),
        quota_held=mean("job_throttled_ratio"),
        pcie_bytes_per_s=pcie,
        pcie_per_activity=pcie / useful,
        resident=mean("resident"),
        still=mean("zero"),
        sm=mean("sm_active_ratio"),
        tensor=mean("tensor_active_ratio"),
        dram=mean("dram_active_ratio"),
        power=mean("power_w") / view.step.get("power_limit_w")[gpus],
        nvlink_bytes_per_s=np.fmax(mean("nvlink_tx_bytes_per_s"), mean("nvlink_bytes_per_s")),
        ib_bytes_per_s=mean("ib_bytes_per_s"),
        beside=nothing if mates is None else mates.beside[gpus],
        most=nothing if mates is None else mates.most[gpus],
        near=nothing if mates is None else mates.near[gpus],
        near_most=nothing if mates is None else mates.near_most[gpus],
    )


def communication(found: Signs, at: Thresholds) -> Floats:
    """[n] margin of a wait in collectives: kernels always resident, little tensor activity, busy links."""
    needed = _all(
        _fuller(found.resident, at.resident),
        _under(found.tensor, at.spinning_tensor),
        _over(found.sm, at.spinning_sm_least),
        _under(found.sm, at.spinning_sm_most),
        _any(
            _over(found.nvlink_bytes_per_s, at.nvlink_bytes_per_s),
            _over(found.ib_bytes_per_s, at.ib_bytes_per_s),
        ),
    )
    return _unless(needed, _under(found.power, at.spinning_power), _under(found.dram, at.dram_bound))


def behind(found: Signs, at: Thresholds) -> Floats:
    """[n] margin, below 0 where it has kernels all the time and does less than another of its job that works:
    it may wait for that one, and has no cause of its own; NaN where that cannot be said."""
    return _behind(found, at, found.beside, found.most)


def may_be_behind(found: Signs, at: Thresholds) -> Floats:
    """[n] the same, of those that may be of one job where nobody names it."""
    return _behind(found, at, found.near, found.near_most)


def _behind(found: Signs, at: Thresholds, beside: Floats, most: Floats) -> Floats:
    waits = (_fuller(found.resident, at.resident) >= 0) & (most > at.spinning_tensor)
    return np.where(waits, _over(beside, at.alike), np.nan)


def touches(found: Signs, at: Thresholds) -> Floats:
    """[n] margin, below 0 where kernels are there all the time and touch nothing: they wait."""
    busy = _fuller(found.resident, at.resident) >= 0
    out: Floats = np.where(busy, _over(found.dram, at.touched), np.nan)
    return out


def margins(found: Signs, at: Thresholds) -> Floats:
    """[causes of ORDER, n] margins."""
    alike = behind(found, at)
    waits = -_fuller(found.resident, at.resident)
    copies = _all(
        _over(found.pcie_per_activity, at.pcie_per_activity),
        _over(found.pcie_bytes_per_s, at.pcie_bytes_per_s),
        np.where(np.isnan(waits), _over(found.still, at.still), waits),
    )
    unseen = np.isnan(found.tensor) | np.isnan(found.dram)
    small = _all(
        _fuller(found.resident, at.small_resident),
        _under(found.sm, at.small_sm * found.resident),
        np.where(unseen, _under(found.power, at.small_power), _under(found.dram, at.small_dram)),
    )
    return np.stack(
        (
            _unless(communication(found, at), alike),
            _else(_any(_over(found.iowait, at.iowait), _over(found.io_stalled, at.stalled)), waits),
            _unless(copies, -_under(found.sm, at.small_sm * found.resident)),
            _else(
                _any(
                    _fuller(found.cpu_busy, at.cpu_busy),
                    _over(found.cpu_stalled, at.stalled),
                    _over(found.quota_held, at.stalled),
                ),
                waits,
            ),
            _unless(
                small,
                _under(found.tensor, at.small_tensor),
                _under(found.dram, at.small_dram),
                alike,
                may_be_behind(found, at),
                touches(found, at),
            ),
        )
    )


def decided(of: Floats) -> NDArray[np.intp]:
    """[n] position in ORDER of the first cause of `margins` that fits, len(ORDER) where none does."""
    fits = of >= 0
    out: NDArray[np.intp] = np.where(fits.any(axis=0), fits.argmax(axis=0), len(ORDER))
    return out


def likely(of: Floats) -> dict[str, float]:
    """Cause -> its mean probability over the n GPUs of `margins`, `undetermined` among them; adds up to 1."""
    unknown = np.isnan(of)
    fits = np.where(unknown, UNKNOWN_FITS, 1.0 / (1.0 + np.exp2(-STEEP * known_or(of))))
    left = np.cumprod(1.0 - fits, axis=0)
    taken = np.where(unknown, 0.0, fits * np.concatenate((np.ones_like(left[:1]), left[:-1])))
    open_to_all = (1.0 - taken.sum(axis=0)) / (unknown.sum(axis=0) + 1)
    told = (1.0 - NONE_OF_THESE) * np.where(unknown, open_to_all, taken)
    shares = dict(zip(ORDER, told.mean(axis=1).tolist(), strict=True))
    return {**shares, UNDETERMINED: 1.0 - sum(shares.values())}


def _over(value: Floats, threshold: Floats | float) -> Floats:
    """[n] margin of a value that speaks for a cause when it is large."""
    out: Floats = np.log2(np.maximum(value, LEAST) / threshold)
    return np.maximum(np.minimum(out, WIDEST), -WIDEST)


def _under(value: Floats, threshold: Floats | float) -> Floats:
    """[n] margin of a value that speaks for a cause when it is small."""
    return -_over(value, np.maximum(threshold, LEAST))


def _fuller(ratio: Floats, threshold: float) -> Floats:
    """[n] margin of a ratio near 1: by what is left of it."""
    return _under(np.maximum(1.0 - ratio, LEAST), 1.0 - threshold)


def _any(*signs: Floats) -> Floats:
    out: Floats = np.fmax.reduce(signs)
    return out


def _all(*signs: Floats) -> Floats:
    """The smallest margin; unknown where one is unknown and none speaks against it."""
    least = np.fmin.reduce(signs)
    unknown = np.isnan(signs).any(axis=0)
    out: Floats = np.where(unknown & ~(least < 0), np.nan, least)
    return out


def _else(margin: Floats, against: Floats) -> Floats:
    """`margin`, and where it is unknown a sign that speaks against it: who waits for data rests meanwhile."""
    return np.where(np.isnan(margin) & (against < 0), against, margin)


def _unless(margin: Floats, *against: Floats) -> Floats:
    """`margin`, cut by signs that only count where they are known and speak against it."""
    out = margin
    for sign in against:
        out = np.where(sign < 0, np.fmin(out, sign), out)
    return out
