"""GPUs that came by Arrow, back as records: the other end of `gpu_sheet`."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from unidle_agent.fields import BY_NAME
from unidle_collector.model import GpuNow


def gpus_of(table: Any) -> list[GpuNow]:
    """One record per row; a column that this version does not know is left out."""
    table = table.combine_chunks()
    columns = {name: _plain(table.column(name)) for name in table.column_names if name not in BY_NAME}
    fresh = columns.pop("fresh")
    names = [name for name in table.column_names if name in BY_NAME]
    values: list[dict[str, float | None]] = [{} for _ in fresh]
    if names:
        whole = np.stack([table.column(name).to_numpy() for name in names], axis=1)
        rows = whole.astype(object)
        rows[np.isnan(whole)] = None
        values = [
            dict(zip(names, row, strict=True)) if now else {}
            for row, now in zip(rows.tolist(), fresh, strict=True)
        ]
    parts = [spec.name for spec in dataclasses.fields(GpuNow) if spec.name in columns]
    of_each = zip(*(columns[name] for name in parts), strict=True)
    return [
        GpuNow(**dict(zip(parts, each, strict=True)), values=known)
        for each, known in zip(of_each, values, strict=True)
    ]


def _plain(column: Any) -> list[Any]:
    """A column's values; a text that is there many times is made once."""
    if not column.num_chunks or not hasattr(column.chunk(0), "dictionary"):
        return list(column.to_pylist())
    texts, codes = column.chunk(0).dictionary.to_pylist(), column.chunk(0).indices.to_numpy()
    return [texts[code] for code in codes.tolist()]
