"""Rows as line protocol: what InfluxDB, VictoriaMetrics and GreptimeDB take in.

    unidle,gpu=GPU-5c1f,job=4711,node=n1,simulated=false power_w=311.5,ecc_errors=0i 1700000000000000000
    unidle_host,node=n1,simulated=false cpu_busy_ratio=0.2512 1700000000000000000

One line per GPU (or host) and instant. Values are in base units: what has a resolution of 1 or more and
counts is an integer (`i`), the rest a float with the digits of its resolution. Unknown is left out, and so
is a line without a value. Tags are what the agent sent: pseudonyms where it makes them. A line that is
written twice has the same tags, fields and time, so it replaces itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unidle_agent.fields import BY_NAME, UNKNOWN_U8, Field
from unidle_agent.wire import Batch
from unidle_collector.store.columns import decimal_step

MEASUREMENT = {"gpu": "unidle", "host": "unidle_host"}
"""Scope of a field -> measurement (InfluxDB 3: table; PromQL: what a metric's name begins with)."""
MOST_INTEGER = 2**63
"""Integers of line protocol are signed; a value from here on is no measurement."""

Groups = Sequence[NDArray[np.intp]]
"""Instants of a batch that become one line each."""


def lines_of(batch: Batch, jobs: Sequence[str], step_ns: int = 0) -> list[str]:
    """The lines of a batch; `jobs` names the job of each of its GPUs, empty where there is none.

    With `step_ns`, the instants of the batch that lie in one step become one line with the time of the
    last of them: the mean of a gauge, the last known value of a state or counter. Only what is in the
    batch counts, so the same batch always makes the same lines.
    """
    times = np.asarray(batch.times_ns, np.int64)
    groups = _groups(times, step_ns)
    at = [int(times[group].max()) for group in groups]
    simulated = "true" if batch.simulated else "false"
    gpus = [
        _head("gpu", {"gpu": gpu, "job": job, "node": batch.node, "simulated": simulated})
        for gpu, job in zip(batch.gpus, jobs, strict=True)
    ]
    host = [_head("host", {"node": batch.node, "simulated": simulated})]
    return [*_block(gpus, batch.columns, at, groups), *_block(host, batch.host, at, groups)]


def tag_text(text: str) -> str:
    """`text` as the value of a tag: also what a query has to ask for.

    Engines differ in how they read a backslash, and none takes a line break: both become an underscore.
    """
    return "".join("_" if letter == "\\" or not letter.isprintable() else letter for letter in text)


def _head(scope: str, tags: dict[str, str]) -> str:
    return MEASUREMENT[scope] + "".join(f",{name}={_escaped(text)}" for name, text in tags.items() if text)


@cache
def _escaped(text: str) -> str:
    return tag_text(text).replace(",", "\\,").replace("=", "\\=").replace(" ", "\\ ")


def _groups(times: NDArray[np.int64], step_ns: int) -> Groups:
    if step_ns <= 0:
        return [np.array([place]) for place in range(len(times))]
    step = times // step_ns
    return [np.flatnonzero(step == one) for one in np.unique(step)]


def _block(heads: list[str], columns: Any, at: list[int], groups: Groups) -> Iterable[str]:
    """The lines of one scope: `heads` has the series, each column is [instants, series]."""
    # The extremes beside a field are no fields: they stay in our own store.
    specs = [BY_NAME[name] for name in columns if name in BY_NAME]
    floats = [spec for spec in specs if spec.dtype != "u8"]
    wholes = [spec for spec in specs if spec.dtype == "u8"]
    texts: list[list[str]] = []
    for chosen, dtype, reduce, show in (
        (floats, np.float64, _means, _float_texts),
        (wholes, np.uint64, _lasts, _whole_texts),
    ):
        if chosen:
            shape = (len(chosen), -1, len(heads))
            values = np.array([np.asarray(columns[spec.name]) for spec in chosen], dtype).reshape(shape)
            reduced = [
                reduce(values[:, group]) if len(group) > 1 else values[:, group[0]] for group in groups
            ]
            every = np.stack(reduced, axis=1).reshape(len(chosen), -1).tolist()
            texts += [show(spec, row) for spec, row in zip(chosen, every, strict=True)]
    for place, cells in enumerate(zip(*texts, strict=True)):
        known = ",".join(filter(None, cells))
        if known:
            yield f"{heads[place % len(heads)]} {known} {at[place // len(heads)]}"


def _means(values: NDArray[Any]) -> NDArray[Any]:
    """[fields, instants, series] as one instant: the mean of what is known."""
    known = np.isfinite(values)
    count = known.sum(axis=1)
    total = np.where(known, values, 0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _lasts(values: NDArray[Any]) -> NDArray[Any]:
    """[fields, instants, series] as one instant: the last value that is known."""
    known = values != np.uint64(UNKNOWN_U8)
    last = values.shape[1] - 1 - known[:, ::-1].argmax(axis=1)  # nothing known: the last, which is unknown
    return np.take_along_axis(values, last[:, None], axis=1)[:, 0]


def _float_texts(spec: Field, values: list[float]) -> list[str]:
    # One digit more than the resolution, for a mean lies between its steps.
    form = f"{spec.name}=%.{decimal_step(spec)[0] + 1}f" if spec.resolution < 1 else f"{spec.name}=%r"
    return [form % value if isfinite(value) else "" for value in values]


def _whole_texts(spec: Field, values: list[int]) -> list[str]:
    name = spec.name
    if spec.resolution >= 1:
        size = int(spec.resolution)
        return [f"{name}={value * size}i" if value * size < MOST_INTEGER else "" for value in values]
    digits, step = decimal_step(spec)
    one, form = 10**digits, f"{name}=%d.%0{digits}d"
    return ["" if value == UNKNOWN_U8 else form % divmod(value * step, one) for value in values]
