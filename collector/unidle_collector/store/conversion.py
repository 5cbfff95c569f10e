"""Turn a closed log file into segments: sort its batches by node, GPU and time, write rows and roll-ups.

The batches come from memory, where the process that accepted them still runs, or are decoded from the log.
The result is a draft: files under temporary names, synced. The caller makes the batches' sequence numbers
and facts durable, publishes the draft, and only then deletes the log file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from unidle_agent.errors import WireError
from unidle_agent.fields import GPU_FIELDS, HOST_FIELDS, Field
from unidle_agent.wire import Batch, GpuFacts, Owner, decode
from unidle_collector.store.columns import schema
from unidle_collector.store.gather import (
    FactsKey,
    Jobs,
    Scope,
    columns_in,
    facts_key,
    gather,
    instants,
    rows_in,
)
from unidle_collector.store.histograms import Histograms
from unidle_collector.store.log import LogFile, log_id
from unidle_collector.store.rollup import WIDTHS_NS, Rolled, across, as_parts, combine
from unidle_collector.store.segments import TEMPORARY, SegmentKind, segment_name
from unidle_collector.store.sheets import FLEET_KEYS, HOST_KEYS, RAW_KEYS, Sheet, rolled_schema, to_table

SLICE_ROWS = 65_536
"""Rows that are a table at once, and in a row group: keeps memory flat and lets readers skip."""

FactsOf = Callable[[FactsKey], Sequence[GpuFacts] | None]
"""The facts that an earlier log file brought under a key; None when they are not known."""

_SPECS: dict[Scope, tuple[Field, ...]] = {"gpu": GPU_FIELDS, "host": HOST_FIELDS}
_KEYS: dict[Scope, tuple[str, ...]] = {"gpu": RAW_KEYS, "host": HOST_KEYS}


@dataclass(frozen=True, slots=True)
class Draft:
    """One log file as segments that have no name yet."""

    files: tuple[tuple[Path, str], ...]
    """(temporary file, name it is to get), in the order in which they are to be published."""
    sequences: tuple[tuple[str, str, int], ...]
    """(node, boot, seq) of every batch."""
    facts: dict[FactsKey, tuple[GpuFacts, ...]]
    """Those that the batches brought."""
    rows: int
    """Rows of GPUs."""
    torn_bytes: int
    damaged: int
    """Records that could not be read: a wrong checksum, or bytes that are no batch."""


def convert(
    log: Path,
    directory: Path,
    facts_of: FactsOf,
    *,
    held: Sequence[Batch] | None = None,
    histograms: Histograms | None = None,
    give_way: Callable[[], None] = lambda: None,
) -> Draft:
    """Write the segments of `log` into `directory` under temporary names; raises OSError when it cannot.

    `held` are all batches of the log, in order, where they are still in memory. The rows are counted into
    `histograms`, if given, which belong to the draft: they are of use once it is published. `give_way` is
    called every few ms and may block, for what must not wait.
    """
    file = LogFile(log)
    undecodable = 0
    batches: dict[tuple[str, str, int], Batch] = {}
    if held is None:
        for record in file:
            try:
                batch = decode(record.data)
            except WireError:
                undecodable += 1
            else:
                batches.setdefault((batch.node, batch.boot, batch.seq), batch)
    else:
        for batch in held:
            batches.setdefault((batch.node, batch.boot, batch.seq), batch)
    facts = {facts_key(b): b.facts for b in batches.values() if b.facts is not None}
    filled = [b for b in batches.values() if len(b.times_ns)]
    filled.sort(key=lambda b: (b.node, b.times_ns[0]))
    files: list[tuple[Path, str]] = []
    if filled:
        jobs = _jobs(filled, facts, facts_of)
        for scope in ("host", "gpu"):  # the gpu segment, though it be empty, completes the conversion
            if scope == "gpu" or any(b.host for b in filled):
                files += _Scope(scope, filled, jobs, directory, log_id(log), give_way).write(histograms)
    return Draft(
        files=tuple(files),
        sequences=tuple(batches),
        facts=facts,
        rows=sum(len(b.times_ns) * len(b.gpus) for b in filled),
        torn_bytes=file.torn_bytes,
        damaged=file.damaged + undecodable,
    )


class _Unhurried(tuple[Field, ...]):
    """Fields with a pause before each one that is gone through: what takes long is a loop over the fields."""

    pause: Callable[[], None]

    def __iter__(self) -> Iterator[Field]:
        for spec in super().__iter__():
            self.pause()
            yield spec


def _unhurried(specs: Iterable[Field], pause: Callable[[], None]) -> _Unhurried:
    out = _Unhurried(specs)
    out.pause = pause
    return out


class _Scope:
    """The segments of one log file for GPUs or for hosts: rows, and parts of buckets of 10 s and 1 min."""

    def __init__(
        self,
        scope: Scope,
        batches: Sequence[Batch],
        jobs: Jobs,
        directory: Path,
        number: int,
        give_way: Callable[[], None],
    ) -> None:
        self._scope, self._batches, self._jobs = scope, batches, jobs
        self._directory, self._number = directory, number
        times_ns = instants(batches)
        self._window = int(times_ns.min()), int(times_ns.max())
        brought = {name for of in columns_in(scope, batches) for name in of}
        self._specs = _unhurried([spec for spec in _SPECS[scope] if spec.name in brought], give_way)

    def write(self, histograms: Histograms | None) -> list[tuple[Path, str]]:
        """(temporary file, name), the one that completes the conversion last."""
        keys, specs = _KEYS[self._scope], self._specs
        of_tens: SegmentKind = "gpu_10s" if self._scope == "gpu" else "host_10s"
        of_minutes: SegmentKind = "gpu_1m" if self._scope == "gpu" else "host_1m"
        rolled = rolled_schema(keys, specs)
        raw = schema(keys, specs)
        per_minute: list[Rolled] = []
        with ExitStack() as opened:
            tens = opened.enter_context(Sheet(self._path(of_tens), rolled))
            minutes = opened.enter_context(Sheet(self._path(of_minutes), rolled))
            rows = opened.enter_context(Sheet(self._path(self._scope), raw, group_rows=1))
            for part in _slices(self._scope, self._batches):
                gathered = gather(self._scope, specs, part, self._jobs)
                rows.write(to_table(gathered, raw, specs))
                if histograms is not None and self._scope == "gpu":
                    histograms.count(gathered, specs)
                ten = combine(as_parts(gathered, specs), specs, WIDTHS_NS["10s"])
                tens.write(to_table(ten, rolled, specs))
                minute = combine(ten, specs, WIDTHS_NS["1m"])
                minutes.write(to_table(minute, rolled, specs))
                per_minute.append(across(minute, specs, WIDTHS_NS["1m"]))
        kinds: list[SegmentKind] = [of_tens, of_minutes, self._scope]
        if self._scope == "gpu":
            with Sheet(self._path("fleet_1m"), rolled_schema(FLEET_KEYS, specs)) as fleet:
                for one in per_minute:
                    fleet.write(to_table(one, rolled_schema(FLEET_KEYS, specs), specs))
            kinds.insert(0, "fleet_1m")
        return [(self._path(kind), self._name(kind)) for kind in kinds]

    def _name(self, kind: SegmentKind) -> str:
        return segment_name(kind, *self._window, self._number, self._number)

    def _path(self, kind: SegmentKind) -> Path:
        return self._directory / (self._name(kind) + TEMPORARY)


def _jobs(
    batches: Iterable[Batch], facts: dict[FactsKey, tuple[GpuFacts, ...]], facts_of: FactsOf
) -> dict[FactsKey, dict[str, str | None]]:
    """For every facts_id in use: GPU -> job."""
    found: dict[FactsKey, dict[str, str | None]] = {}
    for key in {facts_key(batch) for batch in batches}:
        known = facts.get(key) or facts_of(key) or ()
        found[key] = {gpu.uuid: _job(gpu.owner) for gpu in known}
    return found


def _job(owner: Owner) -> str | None:
    """The job; empty where the GPU is known to be free, None where nobody says."""
    return owner.job or ("" if owner.allocated is False else None)


def _slices(scope: Scope, batches: Sequence[Batch]) -> Iterator[list[Batch]]:
    """Batches of whole nodes, about SLICE_ROWS rows at a time; those without rows are left out."""
    part: list[Batch] = []
    rows = 0
    node = ""
    for batch in batches:
        count = rows_in(scope, batch)
        if not count:
            continue
        if rows >= SLICE_ROWS and batch.node != node:
            yield part
            part, rows = [], 0
        part.append(batch)
        rows, node = rows + count, batch.node
    if part:
        yield part
