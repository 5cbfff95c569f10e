"""All GPUs as they are now, as columns: copied from the live arrays in one go, encoded anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic_core import to_json

from unidle_agent.fields import BY_NAME, GPU_FIELDS
from unidle_agent.wire import Owner
from unidle_collector.live import Live
from unidle_collector.model import GpuRef, State
from unidle_collector.pergpu import SECOND_NS, Floats, Positions

STALE_S = 60.0
"""Values older than this are not shown as those of now."""
AT_ONCE = 500
"""GPUs that are encoded in one go: other threads run in between."""


@dataclass(frozen=True, slots=True)
class GpuSheet:
    """Some GPUs; every list and array is [GPUs]."""

    refs: list[GpuRef]
    owners: list[Owner]
    states: list[State]
    causes: list[str]
    simulated: list[bool]
    sampled_ns: list[int | None]
    fresh: NDArray[np.bool_]
    """Are the values those of now; others are not shown."""
    values: dict[str, Floats]
    """Field -> base units, NaN unknown; fields that somebody has sent."""

    def __len__(self) -> int:
        return len(self.refs)

    def rows(self, first: int, last: int) -> Iterator[dict[str, Any]]:
        """The GPUs from `first` to before `last` as `GpuNow` has them."""
        names = tuple(self.values)
        whole = np.stack([column[first:last] for column in self.values.values()], axis=1) if names else None
        now = whole.tolist() if whole is not None else [[]] * (last - first)
        for number, row in zip(range(first, last), now, strict=True):
            ref, owner = self.refs[number], self.owners[number]
            yield {
                "node": ref.node,
                "gpu": ref.gpu,
                "index": ref.index,
                "model": ref.model,
                "state": self.states[number],
                "cause": self.causes[number],
                "inferred": _inferred(owner),
                "sampled_ns": self.sampled_ns[number],
                "job": owner.job,
                "user": owner.user,
                "values": dict(zip(names, row, strict=True)) if self.fresh[number] else {},
                "simulated": self.simulated[number],
                "owner_source": owner.source,
                "owner_confidence": owner.confidence,
                "owner_note": owner.note,
                "used_by": owner.used_by,
            }

    def json(self) -> bytes:
        """A JSON array of `GpuNow`; unknown is null."""
        parts = []
        for first in range(0, len(self), AT_ONCE):
            rows = list(self.rows(first, min(first + AT_ONCE, len(self))))
            parts.append(to_json(rows, inf_nan_mode="null")[1:-1])
        return b"[" + b",".join(parts) + b"]"

    def table(self) -> pa.Table:
        """One row per GPU: the columns of `GpuNow`, and instead of `values` one per field, with its unit."""
        stale = ~self.fresh
        columns: dict[str, Any] = {
            "node": _repeated([ref.node for ref in self.refs]),
            "gpu": pa.array([ref.gpu for ref in self.refs], pa.string()),
            "index": pa.array([ref.index for ref in self.refs], pa.int64()),
            "model": _repeated([ref.model for ref in self.refs]),
            "state": _repeated(self.states),
            "cause": _repeated(self.causes),
            "inferred": pa.array([_inferred(owner) for owner in self.owners], pa.bool_()),
            "sampled_ns": pa.array(self.sampled_ns, pa.int64()),
            "simulated": pa.array(self.simulated, pa.bool_()),
            "fresh": pa.array(self.fresh),
        }
        for name, part in OWNER.items():
            columns[name] = _repeated([getattr(owner, part) for owner in self.owners])
        schema = [pa.field(name, column.type) for name, column in columns.items()]
        for name, column in self.values.items():
            columns[name] = pa.array(column, pa.float64(), mask=stale | np.isnan(column))
            schema.append(pa.field(name, pa.float64(), metadata={"unit": _unit(name)}))
        return pa.table(list(columns.values()), schema=pa.schema(schema))


OWNER = {
    "job": "job",
    "user": "user",
    "owner_source": "source",
    "owner_confidence": "confidence",
    "owner_note": "note",
    "used_by": "used_by",
}
"""Column -> part of the owner."""


def take(live: Live, positions: Positions, fields: Sequence[str] | None = None) -> GpuSheet:
    """Some GPUs as they are now, with `fields` only where given; for the thread that owns the state."""
    inventory, last, ledger = live.engine.inventory, live.engine.last, live.engine.ledger
    numbers = positions.tolist()
    tenures = inventory.tenures
    codes = [ledger.codes[code] if code >= 0 else None for code in ledger.codes_now(positions).tolist()]
    sampled_ns = live.window.last_samples_ns(positions)
    fresh = np.zeros(positions.shape, dtype=np.bool_)
    values: dict[str, Floats] = {}
    if last is not None:
        fresh = (sampled_ns >= 0) & (last.end_ns - sampled_ns <= STALE_S * SECOND_NS)
        wanted = [spec.name for spec in GPU_FIELDS if fields is None or spec.name in fields]
        for name in (name for name in wanted if name in last.columns):
            column = last.columns[name]  # as long as the fleet was at that step
            known = positions < column.size
            values[name] = np.where(known, column[np.where(known, positions, 0)], np.nan)
    return GpuSheet(
        refs=[inventory.refs[number] for number in numbers],
        owners=[tenures[tenure].owner for tenure in inventory.a["tenure"][positions].tolist()],
        states=["unknown" if code is None else code.state for code in codes],
        causes=["" if code is None else code.cause for code in codes],
        simulated=[inventory.simulated[number] for number in numbers],
        sampled_ns=[None if ns < 0 else ns for ns in sampled_ns.tolist()],
        fresh=fresh,
        values=values,
    )


def _inferred(owner: Owner) -> bool:
    return owner.allocated is None or owner.confidence == "inferred"


def _repeated(texts: Sequence[str]) -> pa.Array:
    return pa.array(texts, pa.string()).dictionary_encode()


def _unit(name: str) -> str:
    """A counter is its increase within the last step, which is a second."""
    spec = BY_NAME[name]
    return f"{spec.unit}/s" if spec.kind == "counter" else spec.unit
