"""Trials side by side as one recording, with the truth; and the same recording seen worse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from unidle_agent.fields import BY_NAME
from unidle_collector.model import GpuRef
from unidle_collector.recording import Recording
from unidle_collector.simulator.mechanisms.variant import HEALTHY
from unidle_collector.simulator.trial import LEAD_S, Trial

START_NS = 1_700_000_040 * 10**9
"""A full minute, so that minutes of the truth are minutes of the clock."""
SECOND_NS = 10**9
UNSCORED = -1
LATE_S = (0.005, 0.3)
"""Least and most mean lateness of a node's samples."""
VERY_LATE_S, VERY_LATE_SHARE = 6.0, 0.002
"""A scrape behind others is late by up to this; and how often. All assumptions."""
EXPORTER = (
    "gpu_util_ratio", "memory_util_ratio", "memory_used_bytes", "power_w", "energy_j", "sm_clock_hz",
    "temperature_c",
)  # fmt: skip
"""What a dcgm-exporter without profiling counters sends by default; NVLink comes as one sum."""


@dataclass(frozen=True, slots=True)
class Truth:
    """What is true of every GPU second of a recording."""

    labels: tuple[str, ...]
    """Position 0 is HEALTHY."""
    label: NDArray[np.int16]
    """[T, G] index into `labels`; UNSCORED where there is none."""
    run: NDArray[np.intp]
    """[G]: which trial the GPU belongs to."""
    onset_s: tuple[int, ...]
    """[trials]"""
    names: tuple[str, ...]
    """[trials] of the variants."""


def together(trials: Sequence[Trial], first: int = 0) -> tuple[Recording, Truth]:
    """The nodes of each trial, sampled each second; node names count trials from `first`."""
    labels = (HEALTHY, *sorted({t.variant.truth for t in trials} - {HEALTHY}))
    label = np.concatenate([_label(t, labels) for t in trials], axis=1)
    gpus = [t.on.shape[1] for t in trials]
    refs = tuple(
        GpuRef(
            node_of(first + number, gpu * t.variant.nodes // gpus[number]),
            f"GPU-{first + number:04d}-{gpu}",
            gpu % (gpus[number] // t.variant.nodes),
            t.model,
        )
        for number, t in enumerate(trials)
        for gpu in range(gpus[number])
    )
    run = np.repeat(np.arange(len(trials)), gpus)
    jobs = (
        "",
        *(
            f"{'jupyter' if one.variant.interactive else 'job'}-{first + number}"
            for number, one in enumerate(trials)
        ),
    )
    code = np.array([number + 1 if t.said else -1 for number, t in enumerate(trials)], dtype=np.int32)
    recording = Recording(
        start_ns=START_NS + SECOND_NS,
        period_s=1.0,
        gpus=refs,
        columns={
            name: np.concatenate([t.columns[name] for t in trials], axis=1) for name in trials[0].columns
        },
        sampled=np.ones(label.shape, dtype=np.bool_),
        jobs=jobs,
        job=np.where((np.arange(label.shape[0]) < LEAD_S)[:, None] & (code > 0)[run], 0, code[run]),
        notes=(),
        simulated=True,
    )
    truth = Truth(labels, label, run, tuple(t.onset_s for t in trials), tuple(t.variant.name for t in trials))
    return recording, truth


def node_of(number: int, place: int = 0) -> str:
    """Name of a trial's nodes: the first, the second ..."""
    return f"trial-{number:04d}" if place == 0 else f"trial-{number:04d}-{place + 1}"


def _label(trial: Trial, labels: tuple[str, ...]) -> NDArray[np.int16]:
    out = np.where(trial.on, labels.index(trial.variant.truth), 0)
    return np.where(trial.scored, out, UNSCORED).astype(np.int16)


def every(recording: Recording, steps: int, late_s: NDArray[np.float64] | None = None) -> Recording:
    """Only each `steps`-th sample: gauges as they are then, counters with all their increase.

    `late_s` [samples, GPUs] is how late each is taken (`lateness`). What is late by half a period and more
    falls into the next one: a sample is missing, and the next is the second one there.
    """
    due = np.arange(steps - 1, recording.instants, steps)
    shape = (due.size, len(recording.gpus))
    taken = due[:, None] + (np.zeros(shape) if late_s is None else late_s)
    second = np.minimum(np.floor(taken), recording.instants - 1).astype(np.intp)
    kept = np.floor((taken - due[:, None]) / steps + 0.5) < 1
    kept[-1] = True
    kept &= np.take_along_axis(recording.sampled, second, axis=0)
    columns = {}
    for name, values in recording.columns.items():
        if BY_NAME[name].kind == "counter":
            total = np.cumsum(np.nan_to_num(values), axis=0)
            begun = np.concatenate((np.zeros((1, shape[1])), total))
            part = np.minimum(taken, recording.instants - 1) - second
            so_far = np.take_along_axis(total, second, axis=0)
            ahead = np.take_along_axis(begun, np.minimum(second + 2, recording.instants), axis=0) - so_far
            increase = _since(so_far + part * ahead, kept)
            picked = np.where(np.isnan(np.take_along_axis(values, second, axis=0)), np.nan, increase)
        else:
            picked = np.take_along_axis(values, second, axis=0)
        columns[name] = np.where(kept, picked, np.nan)
    return replace(
        recording,
        start_ns=recording.start_ns + (steps - 1) * round(recording.period_s * SECOND_NS),
        period_s=recording.period_s * steps,
        columns=columns,
        sampled=kept,
        job=recording.job[due],
    )


def lateness(recording: Recording, steps: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """[samples, GPUs] seconds by which each sample of `every` is late; the GPUs of a node are read together.

    An exponential, its mean drawn for each node; and now and then a scrape that waits behind others.
    """
    nodes = list(dict.fromkeys(ref.node for ref in recording.gpus))
    shape = (recording.instants // steps, len(nodes))
    late_s = rng.exponential(rng.uniform(*LATE_S, len(nodes)), shape)
    late_s += (rng.random(shape) < VERY_LATE_SHARE) * rng.uniform(0.0, VERY_LATE_S, shape)
    return late_s[:, [nodes.index(ref.node) for ref in recording.gpus]]


def _since(total: NDArray[np.float64], kept: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[T, G] how much `total` grew since the sample before that was kept; at the first one, since nothing."""
    at = np.maximum.accumulate(np.where(kept, np.arange(len(total))[:, None], -1), axis=0)
    before = np.concatenate((np.full((1, total.shape[1]), -1), at[:-1]))
    prior = np.where(before >= 0, np.take_along_axis(total, np.maximum(before, 0), axis=0), 0.0)
    return total - prior


def standing(recording: Recording, each_s: int, read_each_s: int, rng: np.random.Generator) -> Recording:
    """A recording of each second as it is read each `read_each_s` of exporters that sample each `each_s`.

    Between two samples, which those of each node take in a phase of their own, all stands still: counters,
    too, which then leap by all that has come together. Before the first sample there is nothing, and by
    what a counter grew before it nobody knows. What is of the host comes from elsewhere, anew each time.
    """
    nodes = [ref.node for ref in recording.gpus]
    phase = {node: int(rng.integers(each_s)) for node in dict.fromkeys(nodes)}
    begins = np.array([phase[node] for node in nodes])
    second = np.arange(recording.instants)[:, None]
    taken = (second - begins) // each_s * each_s + begins
    shows, at = taken >= 0, np.maximum(taken, 0)
    columns = {}
    for name, values in recording.columns.items():
        if BY_NAME[name].scope == "host":
            picked = values
        elif BY_NAME[name].kind == "counter":
            total = np.take_along_axis(np.cumsum(np.nan_to_num(values), axis=0), at, axis=0)
            grown = np.diff(total, axis=0, prepend=total[:1])
            unknown = np.isnan(np.take_along_axis(values, at, axis=0)) | (second == begins)
            picked = np.where(unknown, np.nan, grown)
        else:
            picked = np.take_along_axis(values, at, axis=0)
        columns[name] = np.where(shows, picked, np.nan)
    sampled = np.take_along_axis(recording.sampled, at, axis=0) & shows
    stood = replace(recording, columns=columns, sampled=sampled)
    # A page is read as it is at that moment: nothing of it lies between two seconds.
    return every(stood, read_each_s, np.floor(lateness(stood, read_each_s, rng)))


def with_missing(recording: Recording, share: float, rng: np.random.Generator) -> Recording:
    """Without `share` of the samples, each GPU apart: half of them one by one, half in gaps of 2 to 8.

    A counter's increase comes with the sample that follows.
    """
    shape = recording.sampled.shape
    lost = rng.random(shape) < share / 2
    begins = rng.random(shape) < share / 2 / 5
    length = rng.integers(2, 9, shape)
    for back in range(8):
        lost[back:] |= (begins & (length > back))[: shape[0] - back]
    kept = ~lost & recording.sampled
    columns = {}
    for name, values in recording.columns.items():
        if BY_NAME[name].kind == "counter":
            increase = _since(np.cumsum(np.nan_to_num(values), axis=0), kept)
            values = np.where(np.isnan(values), np.nan, increase)
        columns[name] = np.where(kept, values, np.nan)
    return replace(recording, columns=columns, sampled=kept)


def as_exporter(recording: Recording) -> Recording:
    """Only the fields of EXPORTER, and NVLink's sum; a GPU that answers nothing has no sample."""
    columns = {name: recording.columns[name] for name in EXPORTER}
    columns["nvlink_bytes_per_s"] = (
        recording.columns["nvlink_tx_bytes_per_s"] + recording.columns["nvlink_rx_bytes_per_s"]
    )
    answers = ~np.isnan(np.stack(list(columns.values()))).all(axis=0)
    return replace(recording, columns=columns, sampled=recording.sampled & answers)
