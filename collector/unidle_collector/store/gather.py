"""Put the batches of some nodes together as columns, sorted by node, GPU and time."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from unidle_agent.fields import COLUMNS, Field
from unidle_agent.wire import Batch
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


def gather(scope: Scope, specs: Iterable[Field], batches: Sequence[Batch], jobs: Jobs) -> Rolled:
    """The rows of `batches`, each as a part of its own; statistics (`.min` ...) come along."""
    places = _Places(scope, batches)
    time_ns = places.times(batches)
    names = {"node": places.names(lambda batch: (batch.node,), lambda batch: batch.node, per_gpu=False)}
    series = names["node"].places()
    if scope == "gpu":
        names["gpu"] = places.names(lambda batch: batch.gpus, lambda batch: batch.gpus)
        names["job"] = places.names(
            lambda batch: [jobs[facts_key(batch)].get(gpu) for gpu in batch.gpus],
            lambda batch: (facts_key(batch), batch.gpus),
        )
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
        self._batches = batches
        self._of = [b.columns if scope == "gpu" else b.host for b in batches]
        self._widths = np.array([len(b.gpus) if scope == "gpu" else 1 for b in batches])
        self._counts = [rows_in(scope, b) for b in batches]
        self.batch = np.repeat(np.arange(len(batches)), self._counts)
        begins = np.cumsum(self._counts) - self._counts
        self._instant, self._gpu = np.divmod(
            np.arange(len(self.batch)) - begins[self.batch], self._widths[self.batch]
        )

    def times(self, batches: Sequence[Batch]) -> NDArray[np.int64]:
        """The instant of each row."""
        lengths = [len(b.times_ns) for b in batches]
        begins = np.cumsum(lengths) - lengths
        flat = np.concatenate([np.asarray(b.times_ns, np.int64) for b in batches])
        times: NDArray[np.int64] = flat[begins[self.batch] + self._instant]
        return times

    def names(
        self,
        texts_of: Callable[[Batch], Sequence[str | None]],
        key_of: Callable[[Batch], Hashable],
        *,
        per_gpu: bool = True,
    ) -> Names:
        """A text per row; `texts_of` is asked once for all batches of one key."""
        known: dict[str | None, int] = {None: -1}
        by_key: dict[Hashable, list[int]] = {}
        flat: list[int] = []
        for batch in self._batches:
            key = key_of(batch)
            codes = by_key.get(key)
            if codes is None:
                codes = [known.setdefault(text, len(known) - 1) for text in texts_of(batch)]
                by_key[key] = codes
            flat += codes
        begins = np.cumsum(self._widths) - self._widths if per_gpu else np.arange(len(self._widths))
        rows = begins[self.batch] + self._gpu if per_gpu else self.batch
        del known[None]
        return Names(np.array(flat, np.int32)[rows], [text for text in known if text is not None])

    def columns(self, specs: Iterable[Field]) -> Iterator[tuple[Field, bytes]]:
        """The bytes of each column that any batch has, statistics too, batch after batch."""
        every = (
            set(self._of[0]).intersection(*map(set, self._of[1:])) if len(self._of) > 1 else set(self._of[0])
        )
        joined = Joined(self._of)
        for one in specs:
            for spec in _with_statistics(one):
                if spec.name in every:
                    yield spec, joined.bytes_of(spec.name)
                elif any(spec.name in of for of in self._of):
                    parts = (
                        of[spec.name] if spec.name in of else unknown_of(spec, count).tobytes()
                        for of, count in zip(self._of, self._counts, strict=True)
                    )
                    yield spec, b"".join(parts)


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
