"""Tables with a row per instant and a column per GPU and quantity, turned into a row per GPU and instant.

A column says its GPU before or after the quantity (`gpu0_util`, `power_w.gpu3`, `system.gpu.0.powerWatts`,
`sm_active[5]`), or by labels as Prometheus writes them (`DCGM_FI_DEV_GPU_UTIL{gpu="0"}`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from unidle_collector.recorded.columns import meaning, role_columns

UNNAMED = ("", "Unnamed: 0", "__index_level_0__", "index")
"""What the index of a frame is called in a file."""
_LABELLED = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)?\{(.*)\}")
_LABEL = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*=~?\s*"?((?:[^"\\,}]|\\.)*)"?\s*(?:,|$)')
_WORD = r"(?:gpu|cuda|device|card|rank)"
_BEFORE = re.compile(rf"(.*[^a-z0-9])?{_WORD}[ _.:/#\[(-]*(\d{{1,3}})[\])]?[ _.:/-]+(\S.*)", re.IGNORECASE)
_AFTER = re.compile(
    rf"(\S.*?)[ _.:/\[(@-]+{_WORD}[ _.:/#-]*(\d{{1,3}})[\])]?(\s*[\[(][^\])]*[\])])?", re.IGNORECASE
)
_NUMBER_AFTER = re.compile(r"(\S.*?[^\d])(?:[ _.:/-]+(\d{1,3})|\[(\d{1,3})\])")
_NUMBER_BEFORE = re.compile(r"(\d{1,3})[ _.:/-]+([a-zA-Z].*)")
_FRAME_COLUMN = re.compile(r"""\(\s*['"]?([^'",]+)['"]?\s*,\s*['"]?([^'",]+)['"]?\s*\)""")
_STATISTIC = re.compile(r"(\S.*)/(mean|min|max|last)")
"""What nvitop's collector writes behind each quantity."""
_TRACKERS = {"gpu": "gpu_util_pct", "memory": "memory_util_pct", "memoryAllocated": "memory_used_pct"}
"""What experiment trackers (Weights & Biases) call what names elsewhere say in full."""
_EXPORTED = re.compile(r"-data(?:-as-.*)?-\d{4}-.*")
"""What Grafana writes behind the title of a panel."""
_PREFERRED = ("gpu", "uuid", "hostname", "node", "instance", "modelname", "gpu_i_id")


@dataclass(frozen=True, slots=True)
class _Cell:
    """What the name of a column says: of which GPU, and which quantity."""

    column: str
    quantity: str
    labels: tuple[tuple[str, str], ...]
    """Role columns to be, with their values: `gpu`, and where it is labelled, UUID, node ..."""


def by_gpu(table: pa.Table, where: str, notes: list[str]) -> pa.Table:
    """`table` itself where no column names a GPU, else a row per GPU and instant with the columns that
    are no GPU's repeated; `where` is the file that it is from."""
    cells = _cells(table.column_names)
    if not cells and (cells := _named_by_file(table, where)):
        notes.append(
            f"{where}: each column is taken as {cells[0].quantity!r} of a GPU, as the file is called"
        )
    if not cells:
        return _long_by_gpu(table)
    mine = {cell.column for cell in cells}
    roles = role_columns([name for name in table.column_names if name not in mine])
    least_and_most = {
        f"{cell.column.removesuffix('/mean')}/{way}" for cell in cells for way in ("min", "max")
    }
    of_gpu = {*mine, *roles["gpu"], *roles["uuid"], *least_and_most}
    shared = [name for name in table.column_names if name not in of_gpu]
    gpus: dict[tuple[tuple[str, str], ...], list[_Cell]] = {}
    for cell in cells:
        gpus.setdefault(cell.labels, []).append(cell)
    parts = []
    for labels, columns in gpus.items():
        part = {name: table[name] for name in shared}
        for key, text in labels:
            part[key] = pa.chunked_array([pa.array([text]).dictionary_encode().take(_zeros(table.num_rows))])
        for cell in columns:
            part.setdefault(cell.quantity, table[cell.column])
        parts.append(pa.table(part))
    return pa.concat_tables(parts, promote_options="permissive").unify_dictionaries()


def _long_by_gpu(table: pa.Table) -> pa.Table:
    """A row per value whose metric says the GPU (`system/gpu_0_power_usage_watts`, as MLflow names it), with
    a column for that GPU; `table` itself where it is no such table."""
    roles = role_columns(table.column_names)
    if not (roles["metric"] and roles["value"]) or roles["gpu"] or roles["uuid"]:
        return table
    at = table.column_names.index(roles["metric"][0])
    coded = table.column(at).cast(pa.string()).combine_chunks().dictionary_encode()
    coded = coded if isinstance(coded, pa.DictionaryArray) else coded.unify_dictionaries().chunk(0)
    names = coded.dictionary.to_pylist()
    cells = [_worded(name) for name in names]
    if not any(cells):
        return table
    quantities = [cell.quantity if cell else name for cell, name in zip(cells, names, strict=True)]
    gpus = [cell.labels[0][1] if cell else None for cell in cells]
    metric, gpu = (pa.array(words, pa.string()).take(coded.indices) for words in (quantities, gpus))
    table = table.set_column(at, roles["metric"][0], pa.chunked_array([metric]))
    return table.append_column("gpu", pa.chunked_array([gpu]))


def _zeros(count: int) -> pa.Array:
    return pa.repeat(pa.scalar(0, pa.int32()), count)


def _cells(names: list[str]) -> list[_Cell]:
    """The columns that say a GPU and a known quantity; none where the table has one row per GPU anyway."""
    labelled = [cell for name in names if (cell := _labelled(name)) is not None]
    if labelled:
        return labelled
    if any(role_columns(names)[role] for role in ("gpu", "uuid")):
        return []
    worded = [cell for name in names if (cell := _worded(name)) is not None]
    if worded:
        return worded
    numbered = [cell for name in names if (cell := _numbered(name)) is not None]
    several = {cell.quantity for cell in numbered if cell.labels != numbered[0].labels}
    return [cell for cell in numbered if cell.quantity in several]


def _named_by_file(table: pa.Table, where: str) -> list[_Cell]:
    """A column per GPU or pod, whatever it is called, of the quantity that the file is named after, as panels
    of Grafana and frames that were pivoted are written; none where the columns say anything themselves."""
    quantity = _EXPORTED.sub("", Path(where).name.split(".")[0])
    roles = role_columns(table.column_names)
    said = any(roles[role] for role in ("gpu", "uuid", "job", "metric", "value"))
    if meaning(quantity) is None or said or any(map(meaning, table.column_names)):
        return []
    times = {*roles["time"], *UNNAMED}
    gpus = [name for name in table.column_names if name not in times]
    return [_Cell(name, quantity, (("gpu", name),)) for name in gpus]


def _labelled(name: str) -> _Cell | None:
    found = _LABELLED.fullmatch(name.strip())
    if found is None:
        return None
    labels = dict(_LABEL.findall(found.group(2)))
    quantity = found.group(1) or labels.get("__name__", "")
    kept = tuple((key, text) for key, text in sorted(labels.items()) if key.lower() in _PREFERRED and text)
    return _Cell(name, quantity, kept) if meaning(quantity) and kept else None


def _worded(name: str) -> _Cell | None:
    text = _plain(name)
    if found := _BEFORE.fullmatch(text):
        quantity, gpu = found.group(3), found.group(2)
        if (found.group(1) or "").lower().startswith("system"):
            quantity = _TRACKERS.get(quantity, quantity)
        if statistic := _STATISTIC.fullmatch(quantity):
            quantity = statistic[1] if statistic[2] == "mean" else ""
    elif found := _AFTER.fullmatch(text):
        quantity, gpu = found.group(1) + (found.group(3) or ""), found.group(2)
    else:
        return None
    return _Cell(name, quantity, (("gpu", gpu),)) if meaning(quantity) and meaning(text) is None else None


def _numbered(name: str) -> _Cell | None:
    text = _plain(name)
    if meaning(text) is not None and not re.search(r"\[\d+\]$", text):
        return None
    if found := _NUMBER_AFTER.fullmatch(text):
        quantity, gpu = found.group(1), found.group(2) or found.group(3)
    elif found := _NUMBER_BEFORE.fullmatch(text):
        gpu, quantity = found.groups()
    else:
        return None
    return _Cell(name, quantity, (("gpu", gpu),)) if meaning(quantity) else None


def _plain(name: str) -> str:
    """`('power_w', 'gpu0')`, as frames with two rows of names are written, -> `power_w_gpu0`."""
    found = _FRAME_COLUMN.fullmatch(name.strip())
    return "_".join(found.groups()) if found else name.strip()
