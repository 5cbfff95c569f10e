"""Put the batches of some nodes together as columns, sorted by node, GPU and time."""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unidle_agent.fields import COLUMNS, Field
from unidle_agent.wire import Batch, Columns
from unidle_collector.joined import Joined
from unidle_collector.store.columns import DTYPES
from unidle_collector.store.rollup import Names, Rolled
from unidle_collector.store.sheets import unknown_of

Scope = Literal["gpu", "host"]
FactsKey = tuple[str, str, int]
"""Node, boot and facts_id of a batch."""

Jobs = Mapping[FactsKey, Mapping[str, str | None]]
"""For every facts_id in use: GPU -> job; empty where it is known to be free, None where nobody says."""


def facts_key(batch: Batch) -> FactsKey:
    """Under which key the facts of `batch` are."""
    return (batch.node, batch.boot, batch.facts_id)


def rows_in(scope: Scope, batch: Batch) -> int:
    """How many rows of `scope` a batch has."""
    if scope == "gpu":
        return len(batch.times_ns) * len(batch.gpus)
    return len(batch.times_ns) if batch.host else 0


def columns_in(scope: Scope, batches: Iterable[Batch]) -> list[Mapping[str, Any]]:
    """The columns of one batch of every kind that there is: most have the same names."""
    kinds: dict[Hashable, Mapping[str, Any]] = {}
    for batch in batches:
        of = batch.columns if scope == "gpu" else batch.host
        kinds.setdefault(of.layout if isinstance(of, Columns) else tuple(of), of)
    return list(kinds.values())


def gather(scope: Scope, specs: Iterable[Field], batches: Sequence[Batch], jobs: Jobs) -> Rolled:
    """The rows of `batches`, each as a part of its own; statistics (`.min` ...) come along."""
    places = _Places(scope, batches)
    time_ns, names = places.times(), places.names(jobs)
    series = names["node"].places()
    if scope == "gpu":
        series = series * len(names["gpu"].texts) + names["gpu"].places()
    order = _order(series, time_ns)
    values = {
        spec.name: np.frombuffer(joined, DTYPES[spec.dtype])[order] for spec, joined in places.columns(specs)
    }
    time_ns = time_ns[order]
    return Rolled(
        time_ns=time_ns,
        first_ns=time_ns,
        last_ns=time_ns,
        rows=np.ones(len(order), np.int64),
        span_ns=np.zeros(len(order), np.int64),
        series=series[order],
        names={name: of.take(order) for name, of in names.items()},
        simulated=np.array([b.simulated for b in batches])[places.batch][order],
        values=values,
    )


class _Places:
    """Where each row of some batches comes from: its batch, and its instant and GPU in there."""

    def __init__(self, scope: Scope, batches: Sequence[Batch]) -> None:
        self._scope, self._batches = scope, batches
        self._of = [b.columns if scope == "gpu" else b.host for b in batches]
        self._lengths = np.array([len(b.times_ns) for b in batches])
        self._widths = (
            np.array([len(b.gpus) for b in batches]) if scope == "gpu" else np.ones_like(self._lengths)
        )
        self._counts = self._lengths * self._widths
        self.batch = np.repeat(np.arange(len(batches)), self._counts)
        begins = np.cumsum(self._counts) - self._counts
        self._instant, self._gpu = np.divmod(
            np.arange(len(self.batch)) - begins[self.batch], self._widths[self.batch]
        )

    def times(self) -> NDArray[np.int64]:
        """The instant of each row."""
        begins = np.cumsum(self._lengths) - self._lengths
        times: NDArray[np.int64] = instants(self._batches)[begins[self.batch] + self._instant]
        return times

    def names(self, jobs: Jobs) -> dict[str, Names]:
        """Node, and GPU and job where a row is of a GPU. What says the same of its GPUs is looked at once."""
        numbers: dict[tuple[FactsKey, tuple[str, ...]], int] = {}
        keys = [(facts_key(batch), batch.gpus) for batch in self._batches]
        source = np.array([numbers.setdefault(key, len(numbers)) for key in keys])[self.batch]
        found = {"node": _coded([key[0] for key, _ in numbers], source)}
        if self._scope == "gpu":
            widths = np.array([len(gpus) for _, gpus in numbers])
            row = (np.cumsum(widths) - widths)[source] + self._gpu
            found["gpu"] = _coded([gpu for _, gpus in numbers for gpu in gpus], row)
            found["job"] = _coded([jobs[key].get(gpu) for key, gpus in numbers for gpu in gpus], row)
        return found

    def columns(self, specs: Iterable[Field]) -> Iterator[tuple[Field, bytes]]:
        """The bytes of each column that any batch has, statistics too, batch after batch."""
        kinds = [set(of) for of in columns_in(self._scope, self._batches)]
        every, some = set.intersection(*kinds), set.union(*kinds)
        joined = Joined(self._of)
        for one in specs:
            for spec in _with_statistics(one):
                if spec.name in every:
                    yield spec, joined.bytes_of(spec.name)
                elif spec.name in some:
                    parts = (
                        of[spec.name] if spec.name in of else unknown_of(spec, count).tobytes()
                        for of, count in zip(self._of, self._counts.tolist(), strict=True)
                    )
                    yield spec, b"".join(parts)


def instants(batches: Iterable[Batch]) -> NDArray[np.int64]:
    """The instants of all batches, one after the other."""
    flat = array("q")
    for batch in batches:
        flat.extend(batch.times_ns)
    return np.frombuffer(flat, np.int64)


def _coded(texts: Sequence[str | None], rows: NDArray[Any]) -> Names:
    """`texts[row]` of each row."""
    known: dict[str | None, int] = {None: -1}
    codes = np.array([known.setdefault(text, len(known) - 1) for text in texts], np.int32)
    del known[None]
    return Names(codes[rows], [text for text in known if text is not None])


def _with_statistics(spec: Field) -> tuple[Field, ...]:
    if not spec.stats:
        return (spec,)
    return (spec, *(COLUMNS[f"{spec.name}.{end}"] for end in ("min", "max", "zero")))


def _order(series: NDArray[np.int64], time_ns: NDArray[np.int64]) -> NDArray[np.intp]:
    """Sorted by series and time. Batches mostly come in time: then a radix sort by series is all."""
    ranks = np.unique(series, return_inverse=True)[1] if series.max() >= 2**15 else series
    kind = np.int16 if ranks.max() < 2**15 else np.int64
    order = np.argsort(ranks.astype(kind), kind="stable")
    in_time = np.diff(time_ns[order]) >= 0
    if (in_time | (np.diff(series[order]) != 0)).all():
        return order
    return np.lexsort((time_ns, series))
