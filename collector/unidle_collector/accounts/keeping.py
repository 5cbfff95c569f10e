"""Accounts and the engine's memory over restarts.

    accounts/checkpoint          all that is not over yet, with the event time that it reaches
    accounts/hours/HOUR.parquet  a finished hour; see `hours`

The checkpoint is replaced each two minutes or so, atomically; an hour is written once, and again only where
late rows changed it. The accounts in a checkpoint outlive a change of the detectors; their memory does not,
because half of an older detector's timers is worse than none.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import asdict, astuple, dataclass, fields
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unidle_agent.wire import Batch, Owner
from unidle_collector.accounts.buckets import HOUR_NS, Packed
from unidle_collector.accounts.dimensions import Dimensions, first_of
from unidle_collector.accounts.hours import GIVEN, Gpus, Hour, codes_of, hour_file, hour_of, packed
from unidle_collector.accounts.ledger import KEEP_NS
from unidle_collector.engine import Engine
from unidle_collector.inventory import Tenure
from unidle_collector.layout import clocks, copied, layout, put, set_clocks
from unidle_collector.model import GpuRef
from unidle_collector.pergpu import SECOND_NS, Array
from unidle_collector.store import Store, StoreFull

VERSION = 2
CHECKPOINT = "checkpoint"
"""A line of JSON, which names the arrays whose bytes follow it."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Copies of what has to be kept: taken between two steps, written at leisure."""

    header: dict[str, Any]
    arrays: dict[str, Array]
    gpus: Gpus
    tenures: list[Tenure]
    hours: list[tuple[int, Hour]]
    """Finished ones that no file holds as they are."""
    mark: Any = None
    """What a keeper keeps together with it."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What a start found."""

    reached_ns: int | None
    """Event time that the accounts reach; None when there are none."""
    note: str = ""
    """What could not be taken up, for people."""


class Keeper(Protocol):
    """Where a collector's accounts are between two runs."""

    def restore(self, engine: Engine) -> Restored:
        """Put back what the last run wrote, into an engine that is still empty."""

    def snapshot(self, engine: Engine, reached_ns: int) -> Snapshot:
        """All that `restore` needs; for the thread that owns the engine, which it holds up."""

    def write(self, kept: Snapshot) -> None:
        """Keep a snapshot for good; raises UnidleError when that fails, and the last one stays."""

    def hours(self, start_ns: int, end_ns: int) -> dict[int, Callable[[], pa.Table]]:
        """Finished hours that begin within [start_ns, end_ns) and how to read them, the oldest first; for any
        thread."""

    def past(self, store: Store) -> Iterator[tuple[int, int | None, Batch]]:
        """(time of receipt, sender's clock then, batch) of what came after the snapshot."""


class InFiles:
    """Accounts in a directory; what came after them is in the store's log."""

    def __init__(self, directory: Path, keep_ns: int) -> None:
        """Hours are kept for `keep_ns`."""
        self._directory, self._keep_ns = directory, keep_ns

    def restore(self, engine: Engine) -> Restored:
        """See Keeper."""
        return restore(engine, self._directory)

    def snapshot(self, engine: Engine, reached_ns: int) -> Snapshot:
        """See Keeper."""
        return snapshot(engine, reached_ns)

    def write(self, kept: Snapshot) -> None:
        """See Keeper."""
        write(kept, self._directory, self._keep_ns)

    def hours(self, start_ns: int, end_ns: int) -> dict[int, Callable[[], pa.Table]]:
        """See Keeper."""
        return hours_of(self._directory, start_ns, end_ns)

    def past(self, store: Store) -> Iterator[tuple[int, int | None, Batch]]:
        """See Keeper."""
        return store.replay()


def snapshot(engine: Engine, reached_ns: int) -> Snapshot:
    """All that `restore` needs, as of `reached_ns`; for the thread that owns the engine."""
    inventory, count = engine.inventory, len(engine.inventory)
    memory, buckets = engine.memory(), engine.ledger.buckets
    gpus = Gpus.of(inventory)
    hours = [(hour, Hour.of(engine, gpus, buckets.hour(hour))) for hour in buckets.finished()]
    for hour, _ in hours:
        buckets.wrote(hour)
    spans = buckets.unwritten()
    arrays = {f"memory/{name}": array for name, array in copied(memory, slice(0, count)).items()}
    held = inventory.a["tenure"][:count]
    needed = np.unique(np.concatenate([held, *(span.tenures for _, span in spans)])).astype(np.int64)
    for number, (_, span) in enumerate(spans):
        for part in fields(Packed):
            arrays[f"span{number}/{part.name}"] = getattr(span, part.name)
    arrays["needed"], arrays["held"] = needed, held.copy()
    header = {
        "version": VERSION,
        "reached_ns": reached_ns,
        "layout": [list(item) for item in layout(memory)],
        "clocks": clocks(memory),
        "codes": [f"{code.state}.{code.cause}" for code in engine.ledger.codes],
        "spans": [begin for begin, _ in spans],
        "findings": engine.book.kept(),
    }
    tenures = [inventory.tenures[number] for number in needed.tolist()]
    jobs = {first_of(tenure.owner.job) for tenure in tenures}
    header["dimensions"] = {job: astuple(engine.dimensions.of(job)) for job in sorted(jobs)}
    return Snapshot(header, arrays, gpus, tenures, hours)


def write(kept: Snapshot, directory: Path, keep_ns: int = KEEP_NS) -> None:
    """Put a snapshot on disk, hours first, and remove hours older than `keep_ns`.

    Raises StoreFull when that fails, and the last snapshot stays.
    """
    header = whole_header(kept)
    try:
        for begin, hour in kept.hours:
            _write_hour(directory, begin, hour)
        directory.mkdir(parents=True, exist_ok=True)
        _replace(directory / CHECKPOINT, lambda file: write_arrays(file, header, kept.arrays))
        for path in (directory / "hours").glob("*.parquet"):
            if hour_of(path) < kept.header["reached_ns"] - max(keep_ns, KEEP_NS):
                path.unlink()
    except OSError as error:
        raise _full(directory, error) from error


def fill_in(directory: Path, begin_ns: int, hour: Hour) -> None:
    """Write an hour that none of `booked_hours` is; raises StoreFull. For a collector that does not run."""
    try:
        _write_hour(directory, begin_ns, hour)
    except OSError as error:
        raise _full(directory, error) from error


def booked_hours(directory: Path) -> set[int]:
    """Begin of every hour that has any time in it, over or not, by the last checkpoint and the files."""
    found = {*hours_of(directory, 0, 2**63 - 1)}
    with (
        contextlib.suppress(OSError, ValueError, KeyError, TypeError, EOFError),
        (directory / CHECKPOINT).open("rb") as file,
    ):
        header = read_header(file)
        found |= {begin // HOUR_NS * HOUR_NS for begin in header["spans"]}
    return found


def problems(directory: Path) -> list[str]:
    """What is wrong with the files of accounts, in words; reads all of them."""
    found = []
    path = directory / CHECKPOINT
    try:
        with path.open("rb") as file:
            read_arrays(file)
    except FileNotFoundError:  # none was written yet
        pass
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        found.append(f"{path}: expected a checkpoint, came {error}")
    for begin, read in hours_of(directory, 0, 2**63 - 1).items():
        try:
            read().validate(full=True)
        except (OSError, pa.ArrowException) as error:
            found.append(f"{hour_file(directory, begin)}: expected the accounts of an hour, came {error}")
    return found


def _write_hour(directory: Path, begin_ns: int, hour: Hour) -> None:
    path = hour_file(directory, begin_ns)
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, partial(pq.write_table, hour.table()))


def _full(directory: Path, error: OSError) -> StoreFull:
    return StoreFull(
        f"{directory}: expected to write the accounts, came {error}: free space there or check the disk"
    )


def whole_header(kept: Snapshot) -> dict[str, Any]:
    """The header of a snapshot with its GPUs and owners in it."""
    gpus = kept.gpus
    owners = {owner: asdict(owner) for owner in {tenure.owner for tenure in kept.tenures}}
    return kept.header | {
        "refs": [
            [ref.node, ref.gpu, ref.index, ref.model, share, simulated]
            for ref, share, simulated in zip(gpus.refs, gpus.share, gpus.simulated, strict=True)
        ],
        "tenures": [[tenure.gpu, owners[tenure.owner]] for tenure in kept.tenures],
    }


def restore(engine: Engine, directory: Path) -> Restored:
    """Put back what `write` kept into an engine that is still empty; of the hours, those of KEEP_NS."""
    path = directory / CHECKPOINT
    try:
        with path.open("rb") as file:
            header, arrays = read_arrays(file)
    except FileNotFoundError:
        return Restored(None)
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        return Restored(None, f"{path}: expected a checkpoint, came {error}: accounts and timers start anew")
    hours = hours_of(directory, header["reached_ns"] - KEEP_NS, 2**63 - 1)
    return restore_from(engine, header, arrays, hours, path)


def hours_of(directory: Path, start_ns: int, end_ns: int) -> dict[int, Callable[[], pa.Table]]:
    """Begin of every hour kept in `directory` within [start_ns, end_ns), ascending, and how to read it."""
    files = {hour_of(path): path for path in sorted((directory / "hours").glob("*.parquet"))}
    return {
        begin: partial(pq.read_table, path) for begin, path in files.items() if start_ns <= begin < end_ns
    }


def restore_from(
    engine: Engine,
    header: Mapping[str, Any],
    arrays: Mapping[str, Array],
    hours: Mapping[int, Callable[[], pa.Table]],
    where: object,
) -> Restored:
    """Put back a checkpoint and finished hours, by their begin, into an engine that is still empty."""
    if header.get("version") != VERSION:
        what = f"expected a checkpoint of version {VERSION}, came {header.get('version')}"
        return Restored(None, f"{where}: {what}: accounts and timers start anew")
    for node, gpu, index, model, share, simulated in header["refs"]:
        engine.add(GpuRef(node, gpu, index, model), share, simulated)
    note = _restore_accounts(engine, header, arrays, hours)
    note += _restore_memory(engine, header, arrays)
    for begin, read in hours.items():
        try:
            table = read()
            given = GIVEN in (table.schema.metadata or {})
            engine.ledger.buckets.restore_hour(begin, packed(engine, table), given=given)
        except (OSError, pa.ArrowException, KeyError) as error:
            hour = datetime.fromtimestamp(begin // SECOND_NS, UTC)
            note += f"{hour}: expected the accounts of an hour, came {error}: that hour is left out. "
    for job, said in header.get("dimensions", {}).items():  # after those of the hours, which are older
        engine.dimensions.learn(job, Dimensions(*said))
    return Restored(int(header["reached_ns"]), note.strip())


def _restore_accounts(
    engine: Engine, header: Mapping[str, Any], arrays: Mapping[str, Array], hours: Container[int]
) -> str:
    """Spans whose hour has a file are in there: the crash came between the file and the checkpoint."""
    inventory = engine.inventory
    owners = [(gpu, Owner(**owner)) for gpu, owner in header["tenures"]]
    tenures = np.array([inventory.tenure(gpu, owner) for gpu, owner in owners], dtype=np.int32)
    needed = arrays["needed"]
    for (gpu, owner), number in zip(owners, needed.tolist(), strict=True):
        if arrays["held"][gpu] == number:
            inventory.own(gpu, owner)
    codes, gone = codes_of(engine, header["codes"])
    for number, begin in enumerate(header["spans"]):
        if begin // HOUR_NS * HOUR_NS in hours:
            continue
        span = Packed(**{part.name: arrays[f"span{number}/{part.name}"] for part in fields(Packed)})
        engine.ledger.buckets.amend(begin, _moved(span, needed, tenures, codes))
    return (
        f"time was booked under {', '.join(gone)}, which are not there any more: unknown now. "
        if gone
        else ""
    )


def _restore_memory(engine: Engine, header: Mapping[str, Any], arrays: Mapping[str, Array]) -> str:
    memory = engine.memory()
    same = [list(item) for item in layout(memory)] == [[n, d, tuple(lead)] for n, d, lead in header["layout"]]
    codes = [f"{code.state}.{code.cause}" for code in engine.ledger.codes]
    if not same or codes != header["codes"]:
        return "the detectors are not those of the last run: their timers start anew. "
    count = len(engine.inventory)
    put(memory, slice(0, count), {name: arrays[f"memory/{name}"] for name, _, _ in layout(memory)})
    set_clocks(memory, header["clocks"])
    engine.ledger.took_back(engine.inventory.a["tenure"])
    engine.book.take_back(header["findings"])
    return ""


def _moved(span: Packed, numbers: Array, tenures: Array, codes: Array) -> Packed:
    """A span of one engine in the tenures and codes of another: `tenures` are those of `numbers`."""
    return Packed(
        tenures[np.searchsorted(numbers, span.tenures)], span.power_s, span.activity,
        codes[span.code], tenures[np.searchsorted(numbers, span.tenure)],
        span.seconds, span.lost_s, span.lost_j,
    )  # fmt: skip


def write_arrays(file: BinaryIO, header: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """A line of JSON, and the bytes of named arrays; without a checksum, which would cost more than the
    writing."""
    about = [(name, array.dtype.str, array.shape) for name, array in arrays.items()]
    file.write(json.dumps({**header, "arrays": about}).encode() + b"\n")
    for array in arrays.values():
        file.write(np.ascontiguousarray(array).data)


def read_header(file: BinaryIO) -> dict[str, Any]:
    """The JSON that `write_arrays` wrote first; raises ValueError where it is not that."""
    found = json.loads(file.readline())
    if not isinstance(found, dict):
        raise ValueError(f"expected an object, came {type(found).__name__}")
    return found


def read_arrays(file: BinaryIO) -> tuple[dict[str, Any], dict[str, Array]]:
    """What `write_arrays` wrote; raises ValueError, KeyError, TypeError or EOFError where it is not whole."""
    header, arrays = read_header(file), {}
    for name, dtype, shape in header["arrays"]:
        kind, size = np.dtype(dtype), math.prod(shape)
        data = bytearray(file.read(kind.itemsize * size))
        if len(data) != kind.itemsize * size:
            raise EOFError(f"{name}: expected {kind.itemsize * size} bytes, came {len(data)}")
        arrays[name] = np.frombuffer(data, kind).reshape(shape)
    return header, arrays


def _replace(path: Path, fill: Callable[[BinaryIO], None]) -> None:
    """Write a file whole or not at all."""
    draft = path.with_suffix(".draft")
    with draft.open("wb") as file:
        fill(file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
