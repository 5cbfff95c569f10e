"""A server's past as batches, for the store: every sample that it has, at its own interval.

Batches are numbered by the time that they are of, so back-filling a time twice changes nothing: the
store has seen their (node, boot, sequence) before. Time is cut into pieces that fit into memory.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unidle_agent.batcher import facts_id
from unidle_agent.fields import BY_NAME, UNKNOWN_U8, Field
from unidle_agent.privacy import Pseudonymiser
from unidle_agent.sample import REPLAY
from unidle_agent.wire import Batch, GpuFacts, Owner
from unidle_collector.prometheus.api import Api
from unidle_collector.prometheus.history import Plan, fetch, make_plan
from unidle_collector.prometheus.table import Table
from unidle_collector.recorded.rows import NOBODY, NOT_SAID, Rows

BATCH_S = 600
"""Time that one batch covers: begins at a multiple of it."""
PARTS = 1024
"""Numbers set aside for one such time, more than it has instants: a batch ends where an owner changes."""
DAY_S = 86_400
MOST_VALUES = 2_000_000
"""Most values that are held at a time."""


def batches(
    api: Api,
    start_s: float,
    end_s: float,
    names: Pseudonymiser,
    *,
    match: str = "",
    most_values: int = MOST_VALUES,
    progress: Callable[[float], None] = lambda _share: None,
) -> Iterator[Batch]:
    """Batches of every node from `start_s` to `end_s` (epoch), by time; raises PrometheusError.

    The first and the last batch are of whole BATCH_S, so that the same time is always the same batch.
    Names on the exporter's labels become pseudonyms of `names`; `progress` is told the share done, 0-1.
    """
    first_s = math.floor(start_s / BATCH_S) * BATCH_S
    last_s = math.ceil(end_s / BATCH_S) * BATCH_S
    whole = make_plan(api, first_s, last_s, match, None, 1 << 62)

    def hide(job: str) -> str:
        return names.owner(Owner(job=job)).job

    origin = hashlib.sha256(f"{api.url}\n{match}".encode()).hexdigest()[:12]
    per_batch = BATCH_S / whole.step_s * max(1, sum(whole.counts.values()))
    piece_s = BATCH_S * max(1, int(most_values / per_batch))
    for piece_start_s in range(first_s, last_s, piece_s):
        piece_end_s = min(piece_start_s + piece_s, last_s)
        table = fetch(api, _piece(whole, piece_start_s, piece_end_s), match, lambda _share: None, hide)
        yield from _batches(table, origin, whole.interval_s, piece_start_s, piece_end_s)
        progress((piece_end_s - first_s) / (last_s - first_s))


def _piece(plan: Plan, start_s: float, end_s: float) -> Plan:
    """The instants of a plan whose rows lie from `start_s` to before `end_s`."""
    # Rows lie half an interval before the instants that are asked for.
    skipped = math.ceil((start_s + plan.interval_s / 2 - plan.start_s) / plan.step_s - 1e-9)
    begin_s = plan.start_s + skipped * plan.step_s
    instants = math.ceil((end_s + plan.interval_s / 2 - begin_s) / plan.step_s - 1e-9)
    return replace(plan, start_s=begin_s, instants=max(1, instants))


def _batches(table: Table, origin: str, period_s: float, start_s: float, end_s: float) -> Iterator[Batch]:
    rows = table.rows()
    nodes = np.array([ref.node for ref in rows.gpus], dtype=object)
    number = rows.time_ns // (BATCH_S * 1_000_000_000)
    for batch_number in np.unique(number).tolist():
        if not start_s <= batch_number * BATCH_S < end_s:
            continue
        for node in dict.fromkeys(nodes.tolist()):
            gpus = np.flatnonzero(nodes == node)
            chosen = (number == batch_number) & np.isin(rows.gpu, gpus)
            if chosen.any():
                facts = [table.facts[at] for at in gpus]
                boot = f"backfill-{origin}-{batch_number * BATCH_S // DAY_S}"
                for part, batch in enumerate(_of_node(rows, gpus, facts, chosen)):
                    yield replace(
                        batch,
                        node=node,
                        boot=boot,
                        seq=batch_number * PARTS + part,
                        period_s=max(1.0, period_s),
                        simulated=rows.simulated,
                    )


def _of_node(
    rows: Rows, gpus: NDArray[np.intp], facts: list[GpuFacts], chosen: NDArray[np.bool_]
) -> Iterator[Batch]:
    """The chosen rows of one node, in pieces within which no GPU changes its owner."""
    times, at = np.unique(rows.time_ns[chosen], return_inverse=True)
    place = np.searchsorted(gpus, rows.gpu[chosen])
    shape = (len(times), len(gpus))
    job = np.full(shape, NOT_SAID, dtype=np.int32)
    job[at, place] = rows.job[chosen]
    sampled = np.zeros(shape, dtype=np.bool_)
    sampled[at, place] = True
    for later in range(1, len(times)):  # a GPU without a sample keeps its owner
        job[later] = np.where(sampled[later], job[later], job[later - 1])
    changes = np.flatnonzero((job[1:] != job[:-1]).any(axis=1)) + 1
    dense = {name: _dense(values[chosen], shape, at, place) for name, values in rows.values.items()}
    for begin, end in zip([0, *changes.tolist()], [*changes.tolist(), len(times)], strict=True):
        columns, host = {}, {}
        for name, values in dense.items():
            spec, mine = BY_NAME[name], values[begin:end]
            if np.isnan(mine).all():
                continue
            if spec.scope == "host":
                host[name] = _column(spec, _first_known(mine))
            else:
                columns[name] = _column(spec, mine.ravel())
        owned = tuple(
            replace(each, owner=_owner(int(number), rows.jobs), sources=_sources(columns, rows.simulated))
            for each, number in zip(facts, job[begin], strict=True)
        )
        yield Batch(
            node="",
            boot="",
            seq=0,
            sent_ns=int(times[end - 1]),
            period_s=1.0,
            times_ns=times[begin:end].tolist(),
            gpus=tuple(each.uuid for each in owned),
            columns=columns,
            host=host,
            facts_id=facts_id(list(owned)),
            facts=owned,
        )


def _dense(
    values: NDArray[np.float64], shape: tuple[int, int], at: NDArray[np.intp], place: NDArray[np.intp]
) -> NDArray[np.float64]:
    out = np.full(shape, np.nan)
    out[at, place] = values
    return out


def _first_known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[T] of [T, G]: a host's value stands at each of its GPUs."""
    known = ~np.isnan(values)
    return np.where(known.any(axis=1), values[np.arange(len(values)), known.argmax(axis=1)], np.nan)


def _column(spec: Field, values: NDArray[np.float64]) -> NDArray[Any]:
    if spec.dtype != "u8":
        return values.astype("<" + spec.dtype)
    known = np.isfinite(values) & (values >= 0)
    scaled = np.where(known, values, 0.0)
    if spec.kind == "counter":
        scaled = np.rint(scaled * round(1 / spec.resolution))
    room = known & (scaled < 2.0**63)
    return np.where(room, np.where(room, scaled, 0.0).astype(np.uint64), np.uint64(UNKNOWN_U8)).astype("<u8")


def _owner(number: int, jobs: tuple[str, ...]) -> Owner:
    if number == NOT_SAID:
        return Owner()
    return Owner(number != NOBODY, jobs[number], source="prometheus", confidence="high")


def _sources(columns: dict[str, Any], simulated: bool) -> dict[str, str]:
    return dict.fromkeys(sorted(columns), REPLAY if simulated else "prometheus")
