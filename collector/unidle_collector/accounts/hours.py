"""The account of a finished hour, as a table: seconds and losses by GPU, owner, state and cause.

It is taken in the thread that owns the engine, and becomes a table wherever there is time for it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from unidle_agent.wire import Owner
from unidle_collector.accounts.buckets import HOUR_NS, Packed
from unidle_collector.accounts.dimensions import Dimensions, first_of
from unidle_collector.engine import Engine
from unidle_collector.inventory import Inventory, Tenure
from unidle_collector.model import GpuRef
from unidle_collector.pergpu import SECOND_NS, Array

MEASURED = ("power_w", "gpu_util_ratio", "sm_active_ratio")
"""Rows of an hour that are not of a state: seconds for which the field is known, and its integral."""


GIVEN = b"unidle.given"
"""In the metadata of an hour that was filled in."""


@dataclass(frozen=True, slots=True)
class Gpus:
    """Every GPU of an inventory as it was at a moment, by position."""

    refs: list[GpuRef]
    share: list[float]
    simulated: list[bool]

    @classmethod
    def of(cls, inventory: Inventory) -> Gpus:
        """As they are now."""
        return cls(
            list(inventory.refs), inventory.a["share"][: len(inventory)].tolist(), list(inventory.simulated)
        )


@dataclass(frozen=True, slots=True)
class Hour:
    """The sums of a finished hour, and what its tenures and codes are."""

    sums: Packed
    """Its tenures are positions in `tenures`."""
    tenures: list[Tenure]
    dimensions: list[Dimensions]
    """Of the job of each tenure."""
    gpus: Gpus
    codes: list[str]
    """`state.cause` by number."""
    given: bool = False
    """Filled in from elsewhere, not lived through by the collector."""

    @classmethod
    def of(cls, engine: Engine, gpus: Gpus, sums: Packed, *, given: bool = False) -> Hour:
        """Sums of this engine, whose GPUs are `gpus`."""
        every = np.union1d(sums.tenures, sums.tenure)
        place = np.zeros(int(every.max(initial=0)) + 1, dtype=np.int32)
        place[every] = np.arange(every.size)
        tenures = [engine.inventory.tenures[number] for number in every.tolist()]
        dimensions = [engine.dimensions.of(one.owner.job) for one in tenures]
        return cls(sums.moved(place), tenures, dimensions, gpus, names(engine), given)

    def table(self) -> pa.Table:
        """One row per GPU, owner and state with its cause (or field, for what was measured)."""
        sums, gpus = self.sums, self.gpus
        first, count = len(self.codes), sums.tenures.size
        nothing = np.full(sums.tenure.size, np.nan, dtype=np.float32)
        blank = np.zeros(count * len(MEASURED), dtype=np.float32)
        what = np.concatenate([sums.code, np.repeat(np.arange(first, first + len(MEASURED)), count)])
        place = pa.array(np.concatenate([sums.tenure, *[sums.tenures] * len(MEASURED)]))
        refs = [gpus.refs[one.gpu] for one in self.tenures]
        owners = {owner: json.dumps(asdict(owner)) for owner in {one.owner for one in self.tenures}}

        def column(values: list[Any], kind: Any) -> pa.DictionaryArray:
            return pa.array(values, kind).dictionary_encode().take(place)

        return pa.table(
            {
                "node": column([ref.node for ref in refs], pa.string()),
                "gpu": column([ref.gpu for ref in refs], pa.string()),
                "index": column([ref.index for ref in refs], pa.int32()),
                "model": column([ref.model for ref in refs], pa.string()),
                "share": column([gpus.share[one.gpu] for one in self.tenures], pa.float64()),
                "simulated": pa.array([gpus.simulated[one.gpu] for one in self.tenures]).take(place),
                "owner": column([owners[one.owner] for one in self.tenures], pa.string()),
                "team": column([one.team for one in self.dimensions], pa.string()),
                "partition": column([one.partition for one in self.dimensions], pa.string()),
                "what": pa.DictionaryArray.from_arrays(
                    pa.array(what.astype(np.int32)), pa.array([*self.codes, *MEASURED])
                ),
                "seconds": np.concatenate(
                    [sums.seconds, sums.power_s, sums.activity[0, 1], sums.activity[1, 1]]
                ),
                "lost_s": np.concatenate([sums.lost_s, blank]),
                "lost_j": np.concatenate([sums.lost_j, blank]),
                "integral": np.concatenate(
                    [nothing, np.full(count, np.nan, np.float32), sums.activity[0, 0], sums.activity[1, 0]]
                ),
            },
            metadata={GIVEN: b"1"} if self.given else None,
        )


def names(engine: Engine) -> list[str]:
    """`state.cause` of every code of an engine, by number."""
    return [f"{code.state}.{code.cause}" for code in engine.ledger.codes]


def codes_of(engine: Engine, wanted: list[str]) -> tuple[Array, list[str]]:
    """Number of each of these codes in this engine; and those that it does not have (they are unknown)."""
    own = {name: number for number, name in enumerate(names(engine))}
    gone = [name for name in wanted if name not in own]
    return np.array([own.get(name, own["unknown."]) for name in wanted], dtype=np.int8), gone


def with_dimensions(table: pa.Table) -> pa.Table:
    """The table of an hour, be it of before teams and partitions were kept with it: they are unknown then."""
    for name in ("team", "partition"):
        if name not in table.schema.names:
            table = table.append_column(name, pa.array([""] * len(table)).dictionary_encode())
    return table


def packed(engine: Engine, table: pa.Table) -> Packed:
    """The sums of a table of an hour, whose GPUs, owners and jobs become known to the engine."""
    table = with_dimensions(table)
    keys = ["node", "gpu", "index", "model", "share", "simulated", "owner", "team", "partition"]
    distinct = table.select(keys).group_by(keys, use_threads=False).aggregate([]).to_pylist()
    numbers = {}
    for row in distinct:
        ref = GpuRef(row["node"], row["gpu"], row["index"], row["model"])
        position = engine.inventory.find(ref.node, ref.gpu)
        if position is None:
            position = engine.add(ref, row["share"], row["simulated"])
        owner = Owner(**json.loads(row["owner"]))
        engine.dimensions.learn(first_of(owner.job), Dimensions(row["team"], row["partition"]))
        number = engine.inventory.tenure(position, owner)
        numbers[row["node"], row["gpu"], row["owner"]] = number
    columns = [table[name].to_pylist() for name in ("node", "gpu", "owner")]
    tenure = np.array([numbers[key] for key in zip(*columns, strict=True)], dtype=np.int32)
    what = np.array(table["what"].to_pylist())
    values = {
        name: table[name].to_numpy().astype(np.float32)
        for name in ("seconds", "lost_s", "lost_j", "integral")
    }
    measured = {name: np.flatnonzero(what == name) for name in MEASURED}
    tenures = tenure[measured["power_w"]]
    activity = np.array(
        [[values["integral"][measured[name]], values["seconds"][measured[name]]] for name in MEASURED[1:]]
    )
    wanted = sorted(set(what.tolist()) - set(MEASURED))
    codes, _ = codes_of(engine, wanted)
    entry = np.flatnonzero(~np.isin(what, MEASURED))
    return Packed(
        tenures, values["seconds"][measured["power_w"]], activity,
        codes[np.searchsorted(np.array(wanted), what[entry])], tenure[entry],
        values["seconds"][entry], values["lost_s"][entry], values["lost_j"][entry],
    )  # fmt: skip


def hour_file(directory: Path, begin_ns: int) -> Path:
    """Where the hour that begins then is kept."""
    return directory / "hours" / f"{datetime.fromtimestamp(begin_ns // SECOND_NS, UTC):%Y-%m-%dT%H}.parquet"


def hour_of(path: Path) -> int:
    """Begin of the hour that a file is of."""
    at = datetime.strptime(path.stem, "%Y-%m-%dT%H").replace(tzinfo=UTC)
    return int(at.timestamp()) * SECOND_NS // HOUR_NS * HOUR_NS
