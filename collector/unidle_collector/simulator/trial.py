"""One job of one variant, played second by second: what its GPUs and its node show, and what is true.

Everything is a pure function of the variant and the seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unidle_agent.sample import SW_POWER_CAP
from unidle_collector.simulator.mechanisms.variant import (
    EVEN_SHARE,
    HEALTHY,
    NONE,
    WAVERS,
    WEIGHT_OF_IDLE_S,
    WEIGHT_OF_SESSION_S,
    Cycle,
    Host,
    Levels,
    Slow,
    Variant,
    draw,
)

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

POWER_EXPONENT = 2.5
"""Dynamic power over SM clock: assumption, between linear and voltage-cubed."""
HOLD_RATIO = 0.985
"""Of its limit at which a GPU is held: 689 of 700 W (8xH100, compute bound)."""
EMPTY_POWER = 0.10
"""Of the limit, with no process: 70 of 700 W."""
INLET_C, RESISTANCE_C = 24.0, 42.0
"""Temperature is this and this times power over its limit: about 66 °C at the limit (assumption)."""
TIME_CONSTANT_S = 10.0
LEAD_S = 60
"""Before its job starts a GPU is empty for this long."""
KNOT_S = 30
"""Slow drift of activity is drawn at knots this far apart."""
START_UP = Levels(
    (0.0, 0.06), (0.0, 0.02), (0.0, 0.0), (0.0, 0.01), (0.18, 0.22), (1.0, 6.0), (0.0, 0.02), (0.0, 0.0)
)
START_UP_HOST = Host((0.05, 0.15), (0.01, 0.05), (0.03, 0.1), nfs_read=(200, 900), disk_read=(50, 400))
BLIPS = ("util", "sm")
"""Of a start-up these come and go; all else is steady."""


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU model: W, bytes, Hz, °C."""

    limit_w: float
    memory_bytes: float
    clock_hz: float
    hottest_c: float


CARDS = {
    "NVIDIA H100 80GB HBM3": Card(700.0, 85_520_809_984.0, 1.98e9, 87.0),
    "NVIDIA A100-SXM4-80GB": Card(400.0, 85_899_345_920.0, 1.41e9, 85.0),
    "NVIDIA B200": Card(1000.0, 192_265_846_784.0, 1.965e9, 88.0),
}
"""By the name that the driver gives; from published nvidia-smi -q."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What one job shows in T seconds on G GPUs, which lie on `variant.nodes` nodes one after the other."""

    variant: Variant
    model: str
    said: bool
    """Does the recording name the job."""
    columns: dict[str, Floats]
    """Field -> [T, G] in base units; a counter is its increase in the second."""
    on: Bools
    """[T, G]: the variant's truth holds; else the GPU is healthy."""
    scored: Bools
    """[T, G]: is there a truth at all."""
    onset_s: int
    """When the mechanism begins; what is before LEAD_S has neither job nor truth."""


def trial(variant: Variant, seconds: int, gpus: int, rng: np.random.Generator) -> Trial:
    """Draw from the ranges of `variant` and play it."""
    model = variant.models[int(rng.integers(len(variant.models)))]
    loaded_s = LEAD_S + (round(draw(variant.load_s, rng)) if variant.process else 0)
    onset_s = loaded_s + round(draw(variant.before, rng))
    affected = np.zeros(gpus, dtype=np.bool_)
    affected[rng.permutation(gpus)[: max(1, round(draw(variant.affected, rng) * gpus))]] = True
    second = np.arange(seconds)[:, None]
    on = (second >= onset_s) & affected[None, :]
    loads = (second >= LEAD_S) & (second < loaded_s) & np.ones_like(on)
    busy, gaps = _busy(variant, seconds, gpus, onset_s, rng)
    in_wait = np.where(second[:, 0] >= onset_s, 1.0 - busy[:, 0], 0.0)
    if variant.step_share:
        share = _step_share(variant, gpus, rng)
        busy, gaps = busy * _in_steps(variant, seconds, share, rng), gaps & (share < EVEN_SHARE)
    shown = _activity(variant, on, loads, np.where(on, busy, 1.0), rng)
    slowed = _slowed(variant.slow, on, rng)
    card = CARDS[model]
    columns = _gpu_columns(variant, card, shown, slowed, on, loads, rng)
    hosts = [_host_columns(variant, in_wait, loaded_s, onset_s, rng) for _ in range(variant.nodes)]
    columns |= {
        name: np.repeat(np.stack([host[name] for host in hosts], axis=1), gpus // variant.nodes, axis=1)
        for name in hosts[0]
    }
    columns |= _pipe_columns(variant, shown, rng.spawn(1)[0])
    if variant.gpu_state:
        for name, values in columns.items():
            values[on] = variant.gpu_state if name == "gpu_state" else np.nan
    idle = variant.truth.startswith("idle.")
    named = variant.interactive or variant.said
    if variant.truth == "starvation.checkpoint":  # the first one
        onset_s = max(onset_s, int(np.argmax((on & gaps).any(axis=1))))
    return Trial(
        variant=variant,
        model=model,
        said=bool(rng.random() < 0.5) if named is None else named,
        columns=columns,
        on=on & gaps if variant.truth != HEALTHY else np.zeros_like(on),
        scored=(second >= LEAD_S) & ~(loads & idle),
        onset_s=onset_s,
    )


def _busy(
    variant: Variant, seconds: int, gpus: int, onset_s: int, rng: np.random.Generator
) -> tuple[Floats, Bools]:
    """[T, G] share of each second in which it works, and where an idle truth may hold."""
    everywhere = np.ones((seconds, gpus), dtype=np.bool_)
    if variant.cycle is None:
        return np.ones((seconds, gpus)), everywhere
    cycle = _cycle(variant.cycle, seconds, gpus, onset_s, rng)
    if variant.truth == "starvation.checkpoint":
        return cycle, cycle < 0.5
    if not variant.truth.startswith("idle."):
        return cycle, everywhere
    return cycle, _long_gaps(cycle <= 0, WEIGHT_OF_SESSION_S if variant.interactive else WEIGHT_OF_IDLE_S)


def _step_share(variant: Variant, gpus: int, rng: np.random.Generator) -> Floats:
    """[G] share of each step in which a GPU works."""
    drawn = {ends: draw(ends, rng) for ends in dict.fromkeys(variant.step_share)}
    blocks = np.array([drawn[ends] for ends in variant.step_share])
    if variant.shuffled:
        blocks = rng.permutation(blocks)
    return np.repeat(blocks, gpus // blocks.size)


def _in_steps(variant: Variant, seconds: int, share: Floats, rng: np.random.Generator) -> Floats:
    """[T, G] or [G] share of each second in which a GPU works that works `share` [G] of each step."""
    if variant.step_s == NONE:
        return share
    usual_s = draw(variant.step_s, rng)
    lengths_s = usual_s * (1.0 + WAVERS * rng.standard_normal(int(seconds / usual_s) + 4))
    begins = np.cumsum(lengths_s) - lengths_s - rng.uniform() * usual_s
    out = np.empty((seconds, share.size))
    for gpu, part in enumerate(share):
        edges = np.stack((begins, begins + part * lengths_s), axis=1).ravel()
        worked = np.cumsum(np.stack((np.zeros_like(lengths_s), part * lengths_s), axis=1).ravel())
        out[:, gpu] = np.diff(np.interp(np.arange(seconds + 1), edges, worked))
    return out


def cycle_pieces(cycle: Cycle, count: int, rng: np.random.Generator) -> Floats:
    """[count, 2] seconds of work and of waiting in turn."""
    if not cycle.steady:
        return np.stack((rng.uniform(*cycle.busy_s, count), rng.uniform(*cycle.wait_s, count)), axis=1)
    usual = np.array([draw(cycle.busy_s, rng), draw(cycle.wait_s, rng)])
    out: Floats = usual * (1.0 + WAVERS * rng.standard_normal((count, 2)))
    return out


def _cycle(cycle: Cycle, seconds: int, gpus: int, onset_s: int, rng: np.random.Generator) -> Floats:
    """[T, G] share of each second that is in the busy part; a cycle begins at the onset."""
    out = np.ones((seconds, gpus))
    for gpu in range(1 if cycle.together else gpus):
        count = int((seconds - onset_s) / (cycle.busy_s[0] + cycle.wait_s[0]) + 2)
        pieces = cycle_pieces(cycle, count, rng)
        edges = np.concatenate(([0.0], np.cumsum(pieces))) + onset_s
        worked = np.concatenate(([0.0], np.cumsum(pieces * (1.0, 0.0)))) + onset_s
        share = np.diff(np.interp(np.arange(seconds + 1), edges, worked))
        out[onset_s:, gpu] = share[onset_s:]
    return np.repeat(out[:, :1], gpus, axis=1) if cycle.together else out


def _long_gaps(quiet: Bools, longer_s: float) -> Bools:
    """[T, G] where `quiet` lasts longer than what counts as idle."""
    out = np.zeros_like(quiet)
    for gpu in range(quiet.shape[1]):
        edges = np.flatnonzero(np.diff(quiet[:, gpu].astype(np.int8), prepend=0, append=0))
        for begin, end in zip(edges[::2], edges[1::2], strict=True):
            out[begin:end, gpu] = end - begin > longer_s
    return out


def _drift(seconds: int, gpus: int, rng: np.random.Generator) -> Floats:
    """[T, G] slow normal noise: lines between knots."""
    knots = rng.standard_normal((seconds // KNOT_S + 2, gpus))
    at = np.arange(seconds) / KNOT_S
    left, part = at.astype(np.intp), (at % 1.0)[:, None]
    out: Floats = knots[left] * (1 - part) + knots[left + 1] * part
    return out


def _activity(
    variant: Variant, on: Bools, loads: Bools, busy: Floats, rng: np.random.Generator
) -> dict[str, Floats]:
    """Level name -> [T, G] of what the GPU shows, noise included; power is what it would draw."""
    seconds, gpus = on.shape
    healthy = Levels()
    together = 1.0 + 0.012 * _drift(seconds, gpus, rng) + 0.008 * rng.standard_normal((seconds, gpus))
    lot = 1.0 + 0.015 * rng.standard_normal((1, gpus))
    blips = rng.random((seconds, gpus)) < 0.2
    # the work goes on as before
    steady = variant.slow is not None or variant.gpu_state > 0 or bool(variant.step_share)
    out = {}
    for name in Levels.__dataclass_fields__:
        work = draw(getattr(variant.work, name), rng)
        wait = draw(getattr(variant.wait, name), rng)
        before = work if steady or variant.truth == HEALTHY else draw(getattr(healthy, name), rng)
        load = draw(getattr(START_UP, name), rng)
        level = np.where(on, wait + (work - wait) * busy, before)
        level = np.where(loads, load * blips if name in BLIPS else load, level)
        level[:LEAD_S] = EMPTY_POWER if name == "power" else 0.0
        noise = lot if name == "power" else lot * together * (1.0 + 0.02 * rng.standard_normal(level.shape))
        out[name] = level * (np.minimum(noise, 1.004) if name == "util" else noise)
    out["busy"] = np.where(loads, 0.0, busy)
    out["busy"][:LEAD_S] = 0.0
    return out


def _slowed(slow: Slow | None, on: Bools, rng: np.random.Generator) -> Floats:
    """[T, G] clock over that of an unthrottled GPU."""
    if slow is None:
        return np.ones(on.shape)
    seconds, gpus = on.shape
    first = int(np.argmax(on.any(axis=1)))
    seized = on & (_cycle(slow.cycle, seconds, gpus, first, rng) > 0.5) if slow.cycle else on
    clock = rng.uniform(slow.clock[0], slow.clock[1], (1, gpus))
    ramp = np.clip((np.arange(seconds)[:, None] - first + 1) / draw(slow.ramp_s, rng), 0.0, 1.0)
    return np.where(seized, 1.0 - (1.0 - clock) * ramp, 1.0)


def _gpu_columns(
    variant: Variant, card: Card, shown: dict[str, Floats], slowed: Floats, on: Bools, loads: Bools,
    rng: np.random.Generator,
) -> dict[str, Floats]:  # fmt: skip
    shape = on.shape

    def ratio(values: Floats, step: float = 0.0001) -> Floats:
        return np.rint(np.clip(values, 0.0, 1.0) / step) * step

    works = shown["busy"] > 0.5
    held = HOLD_RATIO / np.maximum(shown["power"], HOLD_RATIO)
    capped = works & (held < 1.0)
    clock = np.where(capped, held ** (1 / POWER_EXPONENT), 1.0)
    clock = clock * slowed * (1.0 + 0.004 * rng.standard_normal((1, shape[1])))
    power = np.minimum(shown["power"], HOLD_RATIO)
    power = np.where(slowed < 1.0, EMPTY_POWER + (power - EMPTY_POWER) * slowed**POWER_EXPONENT, power)
    power = power * (1.0 + 0.004 * rng.standard_normal(shape))
    gone = on & (not variant.process) | (np.arange(shape[0])[:, None] < LEAD_S)
    power = np.where(gone, EMPTY_POWER, power)
    limit = np.full(shape, card.limit_w)
    bits = np.where(capped, SW_POWER_CAP, 0)
    throttled = slowed < 1.0
    if variant.slow is not None:
        bits = np.where(throttled, bits | variant.slow.bits, bits)
        if variant.slow.bits == SW_POWER_CAP:
            limit = np.where(throttled, card.limit_w * (power / HOLD_RATIO), limit)
    temperature = _temperature(power, throttled, variant.slow, rng)
    memory = draw(variant.memory, rng) * (1.0 + 0.002 * rng.standard_normal((1, shape[1])))
    rises = np.cumsum(loads, axis=0) / np.maximum(loads.sum(axis=0), 1)
    memory = np.where(loads, memory * rises, memory) * np.ones(shape)
    memory[:LEAD_S] = 0.0
    gb = 1e9 * (1.0 + 0.1 * rng.standard_normal(shape))
    columns = {
        "gpu_util_ratio": ratio(shown["util"], 0.01),
        "memory_util_ratio": ratio(shown["dram"] * 0.9, 0.01),
        "graphics_active_ratio": ratio(shown["util"] * 0.998),
        "sm_active_ratio": ratio(shown["sm"]),
        "tensor_active_ratio": ratio(shown["tensor"]),
        "dram_active_ratio": ratio(shown["dram"]),
        "memory_total_bytes": np.full(shape, card.memory_bytes),
        "memory_used_bytes": np.clip(memory, 0.0, 0.985) * card.memory_bytes,
        "process_count": np.where(gone, 0.0, 1.0),
        "power_w": power * card.limit_w,
        "power_limit_w": limit,
        "energy_j": power * card.limit_w,
        "sm_clock_hz": np.rint(clock * card.clock_hz / 15e6) * 15e6,
        "temperature_c": np.rint(temperature),
        "thermal_margin_c": card.hottest_c - np.rint(temperature),
        "clock_event_reasons": bits.astype(np.float64),
        "power_cap_s": ((bits & SW_POWER_CAP) != 0).astype(np.float64),
        "pcie_rx_bytes_per_s": np.maximum(shown["pcie_rx"] * gb, 0.0),
        "pcie_tx_bytes_per_s": np.maximum(shown["pcie_tx"] * gb, 0.0),
        "nvlink_tx_bytes_per_s": np.maximum(shown["nvlink"] * gb, 0.0),
        "nvlink_rx_bytes_per_s": np.maximum(shown["nvlink"] * gb, 0.0),
        "gpu_state": np.zeros(shape),
    }
    for counter in ("thermal_throttle_s", "hw_thermal_throttle_s", "power_brake_s"):
        grows = throttled if variant.slow is not None and variant.slow.counter == counter else False
        columns[counter] = np.where(grows, 1.0, np.zeros(shape))
    return columns


def _pipe_columns(variant: Variant, shown: dict[str, Floats], rng: np.random.Generator) -> dict[str, Floats]:
    """FP32 and FP64 pipes follow the SMs; the reporter says its number format all the time."""
    shape = shown["sm"].shape
    full = max(variant.work.sm[1], 0.01)
    out = {}
    for name in ("fp32", "fp64"):
        level = draw(getattr(variant.pipes, name), rng)
        noise = 1.0 + 0.03 * rng.standard_normal(shape)
        out[f"{name}_active_ratio"] = np.clip(level * shown["sm"] / full * noise, 0.0, 1.0)
    out["dtype_code"] = np.full(shape, variant.pipes.dtype_code)
    return out


def _temperature(power: Floats, throttled: Bools, slow: Slow | None, rng: np.random.Generator) -> Floats:
    """[T, G] °C: follows the power; heat that throttles is where the variant says."""
    target = INLET_C + RESISTANCE_C * power + 2.0 * rng.standard_normal((1, power.shape[1]))
    if slow is not None and slow.temperature[0] > 72.0:
        low, high = slow.temperature
        target = np.where(throttled, rng.uniform(low, high, (1, power.shape[1])), target)
    now: Floats = target[0]
    out: Floats = np.empty_like(target)
    for second in range(len(target)):
        now = now + (target[second] - now) / TIME_CONSTANT_S
        out[second] = now
    return out


def _host_columns(
    variant: Variant, in_wait: Floats, loaded_s: int, onset_s: int, rng: np.random.Generator
) -> dict[str, Floats]:
    """Column -> [T] of one node; `in_wait` [T] is the share of each second in which the job waits."""
    seconds = len(in_wait)
    second = np.arange(seconds)
    values = {}
    for name in Host.__dataclass_fields__:
        level = draw(getattr(variant.host, name), rng)
        before = level if variant.truth == HEALTHY else draw(getattr(Host(), name), rng)
        load = draw(getattr(START_UP_HOST, name), rng)
        waiting = level if variant.wait_host is None else draw(getattr(variant.wait_host, name), rng)
        during = level + (waiting - level) * in_wait
        path = np.where(second < loaded_s, load, np.where(second < onset_s, before, during))
        wave = 1.0 + 0.08 * _drift(seconds, 1, rng)[:, 0] + 0.1 * rng.standard_normal(seconds)
        values[name] = np.maximum(path * wave, 0.0)
    cpu = np.minimum(values["cpu"], 0.995)
    ports = draw(variant.host.ib_ports, rng)
    received, sent = values["ethernet"] + values["nfs_read"], values["ethernet_sent"]
    fabric = (values["infiniband"],) * 2
    if variant.ipoib != NONE:
        share = draw(variant.ipoib, rng)
        fabric = received * share, sent * share
    ib_received, ib_sent = (np.where(ports < 0, np.nan, megabytes * 1e6) for megabytes in fabric)
    return {
        "cpu_busy_ratio": cpu,
        "cpu_iowait_ratio": np.minimum(values["iowait"], 1.0 - cpu),
        "psi_io_some_s": np.minimum(values["psi_io"], 1.0),
        "psi_cpu_some_s": np.minimum(values["psi_cpu"], 1.0),
        "job_cpu_throttled_s": values["job_throttled"],
        "nfs_read_bytes": values["nfs_read"] * 1e6,
        "disk_read_bytes": values["disk_read"] * 1e6,
        "disk_written_bytes": values["disk_written"] * 1e6,
        "net_received_bytes": received * 1e6,
        "net_sent_bytes": sent * 1e6,
        "ib_received_bytes": ib_received,
        "ib_sent_bytes": ib_sent,
        "ib_ports_active": np.full(seconds, np.nan if ports < 0 else float(round(ports))),
    }
