"""Reads JSON: answers of a Prometheus, exports of VictoriaMetrics, records, columns, one document per line.

A record may hold the list of its GPUs (`{"time": ..., "gpus": [{...}, ...]}`, as gpustat and many scripts
write it); objects within an object are joined with a dot (`utilization.gpu`).
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as arrow_json

from unidle_collector.recorded.columns import meaning
from unidle_collector.recorded.rows import RecordingError, Rows
from unidle_collector.recorded.tables import rows_of_table

LABELS = (
    *("UUID", "uuid", "gpu", "Hostname", "hostname", "node", "instance", "GPU_I_ID", "modelName"),
    *("hpc_job", "job_id", "slurm_job_id", "exported_pod", "exported_namespace", "pod", "namespace"),
)
"""Of a series, those that say which GPU it is of and whose that is."""
PROCESSES = ("processes", "compute_processes")
WRONG = (
    *(pa.ArrowException, TypeError, ValueError, AttributeError, LookupError, ArithmeticError),
    RecursionError,
)
"""What taking a document apart raises where it is another than it looks like."""
DEPTH = 4
"""Objects within objects that are looked into."""


def looks_like_json(head: bytes) -> bool:
    """Does a text that begins with `head` begin an object or an array."""
    return head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[") and b'"' in head


def read(data: bytes, where: str, node: str) -> Rows:
    """Rows of one file; raises RecordingError where it is another JSON than those above."""
    try:
        table = _table(data, where)
    except WRONG as error:
        raise RecordingError(
            f"{where}: expected records, columns or series in JSON, each key with values of one kind: {error}"
        ) from error
    return rows_of_table(table, where, node)


def _table(data: bytes, where: str) -> pa.Table:
    try:
        document = json.loads(data)
    except UnicodeDecodeError as error:
        raise RecordingError(f"{where}: expected JSON in UTF-8: {error}") from error
    except json.JSONDecodeError as error:
        if b"\n" not in data.strip():
            raise RecordingError(f"{where}: expected whole JSON: {error}") from error
        return _of_lines(data, where)
    series = _series(document)
    if series:
        return _of_series(series, where)
    if isinstance(document, dict) and document and all(isinstance(each, list) for each in document.values()):
        if len({len(each) for each in document.values()}) == 1 and len(document) > 1:
            return _flat(pa.table(document))  # a column per key
        document = next(iter(document.values())) if len(document) == 1 else [document]
    if isinstance(document, dict) and {"columns", "data"} <= document.keys():
        return _of_records(
            [dict(zip(document["columns"], row, strict=False)) for row in document["data"]], where
        )
    if isinstance(document, dict) and document and all(isinstance(each, dict) for each in document.values()):
        return _flat(pa.table({key: list(each.values()) for key, each in document.items()}))
    return _of_records(document if isinstance(document, list) else [document], where)


def _of_lines(data: bytes, where: str) -> pa.Table:
    """One document per line; a torn last line loses itself only."""
    lines = [line for line in data.split(b"\n") if line.strip()]
    first = _loaded(lines[0])
    if isinstance(first, dict) and not _series(first):
        try:
            return _exploded(_flat(arrow_json.read_json(io.BytesIO(data))))
        except pa.ArrowException:
            pass  # values of several kinds, or a torn line
    documents = [document for line in lines if (document := _loaded(line)) is not None]
    if not documents:
        raise RecordingError(f"{where}: expected JSON, one document or one per line, came {lines[0][:60]!r}")
    series = [each for document in documents for each in _series(document)]
    return _of_series(series, where) if series else _of_records(documents, where)


def _loaded(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


# Series


def _series(document: Any) -> list[dict[str, Any]]:
    """The series of an answer, an export or a list of either; empty for any other document."""
    if isinstance(document, dict):
        if isinstance(document.get("metric"), dict) and ("values" in document or "value" in document):
            return [document]
        inside = document.get("data", document.get("result"))
        return _series(inside) if isinstance(inside, dict | list) else []
    if isinstance(document, list):
        return [each for item in document if isinstance(item, dict) for each in _series(item)]
    return []


def _of_series(series: Sequence[dict[str, Any]], where: str) -> pa.Table:
    """A row per sample. A series without a name (of an expression) has the file's, where that is known."""
    named = Path(where).name.split(".")[0]
    times, values, sizes = [], [], []
    for one in series:
        points = one["values"] if "values" in one else [one["value"]]
        try:
            if "timestamps" in one:
                times.append(np.asarray(one["timestamps"], dtype=np.float64) / 1000)
                values.append(
                    np.asarray([np.nan if each is None else each for each in points], dtype=np.float64)
                )
            else:
                times.append(np.array([point[0] for point in points], dtype=np.float64))
                values.append(np.array([float(point[1]) for point in points], dtype=np.float64))
        except (TypeError, ValueError, IndexError) as error:
            raise RecordingError(f"{where}: expected [time, value] pairs in a series: {error}") from error
        sizes.append(len(times[-1]))
    of = np.repeat(np.arange(len(series), dtype=np.int32), sizes)
    metrics = [one["metric"].get("__name__", named if meaning(named) else "unnamed") for one in series]
    columns = {"time": pa.array(np.concatenate(times)), "value": pa.array(np.concatenate(values))}
    columns["__name__"] = pa.array(metrics).take(pa.array(of))
    for label in LABELS:
        texts = [one["metric"].get(label) for one in series]
        if any(texts):
            columns[label] = pa.array(texts, pa.string()).take(pa.array(of))
    return pa.table(columns)


# Records


def _of_records(records: list[Any], where: str) -> pa.Table:
    if not records or not all(isinstance(each, dict) for each in records):
        raise RecordingError(
            f'{where}: expected JSON with records ([{{"time": ..., "gpu": 0, ...}}, ...]), columns, or '
            f'series of a Prometheus ({{"data": {{"result": [...]}}}}), came {json.dumps(records)[:80]}'
        )
    try:
        return _exploded(_flat(pa.Table.from_pylist(records)))
    except pa.ArrowException:
        keys = dict.fromkeys(key for each in records for key in each)
        as_text = {key: [_text(each.get(key)) for each in records] for key in keys}
        return pa.table({key: pa.array(cells, pa.string()) for key, cells in as_text.items()})


def _text(value: Any) -> str | None:
    return None if value is None else value if isinstance(value, str) else json.dumps(value)


def _flat(table: pa.Table) -> pa.Table:
    """Objects within objects as columns, `outer.inner`."""
    for _ in range(DEPTH):
        if not any(pa.types.is_struct(kind) for kind in table.schema.types):
            break
        table = table.flatten()
    return table


def _exploded(table: pa.Table) -> pa.Table:
    """A row per GPU where each record holds the list of its GPUs."""
    table = _counted(table)
    lists = [
        name for name, kind in zip(table.column_names, table.schema.types, strict=True) if _is_list(kind)
    ]
    for name in lists:
        inner = table[name].combine_chunks()
        inside = _counted(_flat(pa.Table.from_struct_array(pc.list_flatten(inner))))
        if any(meaning(column) for column in inside.column_names):
            shared = table.drop_columns(lists).take(pc.list_parent_indices(inner))
            for column in inside.column_names:
                key = f"gpu_{column}" if column in shared.column_names else column
                shared = shared.append_column(key, inside[column])
            return shared
    return table


def _counted(table: pa.Table) -> pa.Table:
    """A list of the processes on a GPU as their number."""
    for name in table.column_names:
        if name in PROCESSES and pa.types.is_list(table.schema.field(name).type):
            count = pc.list_value_length(table[name])
            table = table.drop_columns([name]).append_column("process_count", count)
    return table


def _is_list(kind: pa.DataType) -> bool:
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(listed and pa.types.is_struct(kind.value_type))
