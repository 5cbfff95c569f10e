"""Roll-ups: however rows are spread over log files, they come to the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.collector.store_fleet import NOON, SECOND, Column, batch
from tests.collector.test_store import take

from unidle_agent.fields import BY_NAME, COLUMNS, UNKNOWN_U8
from unidle_agent.wire import Batch, Owner, encode
from unidle_collector.store import KeepRollups, Store
from unidle_collector.store.compaction import HOUR_NS
from unidle_collector.store.gather import gather
from unidle_collector.store.rollup import WIDTHS_NS, Names, Rolled, Runs, across, as_parts, combine
from unidle_collector.store.sheets import (
    FLEET_KEYS,
    RAW_KEYS,
    from_table,
    ordered_parts,
    rolled_schema,
    to_table,
)

SPECS = [BY_NAME[name] for name in ("power_w", "energy_j", "clock_event_reasons", "last_xid")]
DAY_NS = 24 * HOUR_NS


def joined(parts: Sequence[Rolled]) -> Rolled:
    """Parts with the same columns as one, sorted."""

    def of(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    values = {}
    for name in parts[0].values.keys() | {name for part in parts for name in part.values}:
        columns = [
            part.values.get(name, part.rows.astype(np.uint64) if name.endswith(".count") else None)
            for part in parts
        ]
        values[name] = np.concatenate(columns)
    names = {
        name: Names(np.concatenate([part.names[name].codes for part in parts]), parts[0].names[name].texts)
        for name in parts[0].names
    }
    whole = Rolled(
        *(of(name) for name in ("time_ns", "first_ns", "last_ns", "rows", "span_ns", "series")),
        names,
        of("simulated"),
        values,
    )
    return ordered_parts(whole)


samples = st.lists(
    st.tuples(
        st.none() | st.integers(0, 9_000),
        st.none() | st.integers(0, 10**12),
        st.none() | st.sampled_from([0, 4, 8, 0x24]),
        st.none() | st.integers(0, 120),
    ),
    min_size=1,
    max_size=80,
)


def rows_of(values: list[tuple[int | None, int | None, int | None, int | None]]) -> Rolled:
    columns: dict[str, Column] = {
        "power_w": [None if v[0] is None else v[0] / 10 for v in values],
        "energy_j": [v[1] for v in values],
        "clock_event_reasons": [v[2] for v in values],
        "last_xid": [v[3] for v in values],
    }
    sent = batch(times=[NOON + 3 * SECOND * i for i in range(len(values))], columns=columns)
    return as_parts(gather("gpu", SPECS, [sent], {("node-1", "boot-1", 1): {"GPU-a": "job"}}), SPECS)


@settings(max_examples=150)
@given(values=samples, cuts=st.lists(st.integers(0, 80), max_size=5), late=st.booleans())
def test_any_split_of_the_rows_rolls_up_to_the_same(
    values: list[tuple[int | None, int | None, int | None, int | None]], cuts: list[int], late: bool
) -> None:
    rows = rows_of(values)
    whole = combine(rows, SPECS, WIDTHS_NS["1m"])
    edges = sorted({0, len(values), *(min(cut, len(values)) for cut in cuts)})
    pieces = [np.arange(a, b) for a, b in pairwise(edges)]
    pieces = pieces[::-1] if late else pieces
    tens = [combine(rows.take(piece), SPECS, WIDTHS_NS["10s"]) for piece in pieces if len(piece)]
    minutes = combine(
        joined([combine(part, SPECS, WIDTHS_NS["1m"]) for part in tens]), SPECS, WIDTHS_NS["1m"]
    )
    assert minutes.time_ns.tolist() == whole.time_ns.tolist()
    assert minutes.rows.tolist() == whole.rows.tolist()
    for name, column in whole.values.items():
        got = minutes.values.get(name, minutes.rows)
        np.testing.assert_allclose(got.astype(float), column.astype(float), rtol=1e-9, err_msg=name)


@settings(max_examples=100)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=30),
    rows=st.one_of(st.just(1), st.integers(2, 9)),
    seed=st.integers(0, 99),
)
def test_runs_side_by_side_come_to_what_each_of_them_does(lengths: list[int], rows: int, seed: int) -> None:
    starts = np.cumsum([0, *lengths[:-1]])
    column = np.random.default_rng(seed).normal(size=sum(lengths)).astype(np.float32)
    runs = Runs(starts, np.full(column.size, rows))
    parts = np.split(column, starts[1:])
    least, most = runs.extremes(column, column + 1)
    assert least.tolist() == [part.min() for part in parts]
    assert most.tolist() == [(part + 1).max() for part in parts]
    total = [rows * part.astype(np.float64).sum() for part in parts]
    assert runs.total(runs.by_rows(column)) == pytest.approx(total, rel=1e-6, abs=1e-6)


@given(values=samples)
def test_a_roll_up_is_what_a_loop_over_its_rows_says(
    values: list[tuple[int | None, int | None, int | None, int | None]],
) -> None:
    rolled = combine(rows_of(values), SPECS, WIDTHS_NS["10s"])
    table = to_table(rolled, rolled_schema(RAW_KEYS, SPECS), SPECS)
    read = from_table(table, SPECS)
    for place, bucket in enumerate(read.time_ns.tolist()):
        of = [
            v
            for i, v in enumerate(values)
            if (NOON + 3 * SECOND * i) // WIDTHS_NS["10s"] * WIDTHS_NS["10s"] == bucket
        ]
        power = [v[0] / 10 for v in of if v[0] is not None]
        got = {name: column[place] for name, column in read.values.items()}
        if power:
            assert got["power_w"] == pytest.approx(sum(power) / len(power), abs=0.052)  # half a step of 1 mW
            assert (got["power_w.min"], got["power_w.max"]) == pytest.approx(
                (min(power), max(power)), rel=1e-6
            )
            assert got.get("power_w.count", len(of)) == len(power)
        else:
            assert math.isnan(got["power_w"])
        energy = [v[1] for v in of if v[1] is not None]
        grown = sum(b - a for a, b in pairwise(energy) if b >= a)
        wanted = (energy[0], energy[-1], grown) if energy else (UNKNOWN_U8,) * 3
        assert (got["energy_j.first"], got["energy_j"], got["energy_j.increase"]) == wanted
        bits = [v[2] for v in of if v[2] is not None]
        assert got["clock_event_reasons"] == (bits[-1] if bits else UNKNOWN_U8)
        assert got["clock_event_reasons.any"] == (int(np.bitwise_or.reduce(bits)) if bits else UNKNOWN_U8)
        codes = [v[3] for v in of if v[3] is not None]
        assert got["last_xid.max"] == max(codes, default=UNKNOWN_U8)


def test_an_idle_gpu_never_raises_the_fleets_mean() -> None:
    busy = rows_of([(7_000, None, None, None)] * 6)
    idle = rows_of([(0, None, None, None)] * 6)
    alone = across(combine(busy, SPECS, WIDTHS_NS["1m"]), SPECS, WIDTHS_NS["1m"])
    both = joined([combine(part, SPECS, WIDTHS_NS["1m"]) for part in (busy, idle)])
    together = across(both, SPECS, WIDTHS_NS["1m"])
    assert alone.values["power_w"].tolist() == [700.0]
    assert together.values["power_w"].tolist() == [350.0]
    table = to_table(together, rolled_schema(FLEET_KEYS, SPECS), SPECS)
    assert from_table(table, SPECS).values["power_w"].tolist() == [350.0]


def test_extremes_within_the_second_and_the_share_at_zero_survive() -> None:
    sent = batch(times=[NOON, NOON + SECOND], columns={"gpu_util_ratio": [0.5, 0.7]})
    statistics = {
        "gpu_util_ratio.min": [0.0, 0.6],
        "gpu_util_ratio.max": [1.0, 0.8],
        "gpu_util_ratio.zero": [0.2, 0.0],
    }
    columns = {**sent.columns, **{n: np.array(v, "<f4") for n, v in statistics.items()}}
    assert statistics.keys() <= COLUMNS.keys()
    specs = [BY_NAME["gpu_util_ratio"]]
    whole = Batch(sent.node, sent.boot, 0, NOON, 1.0, sent.times_ns, sent.gpus, columns, {}, 1)
    rows = gather("gpu", specs, [whole], {("node-1", "boot-1", 1): {}})
    rolled = combine(as_parts(rows, specs), specs, WIDTHS_NS["10s"])
    read = from_table(to_table(rolled, rolled_schema(RAW_KEYS, specs), specs), specs)
    got = {name: column.tolist() for name, column in read.values.items()}
    assert got["gpu_util_ratio"] == pytest.approx([0.6])
    assert (got["gpu_util_ratio.min"], got["gpu_util_ratio.max"]) == ([0.0], [1.0])
    assert got["gpu_util_ratio.zero"] == pytest.approx([0.1])


def fill(store: Store, minutes: int, skip: Sequence[int] = (), seq: int = 0) -> None:
    """Minutes of one GPU at 1 Hz in batches of 10 s: power is the number of the minute, energy 100 J/s."""
    for number in range(minutes * 6):
        if number in skip:
            continue
        begin = NOON + number * 10 * SECOND
        one = ten_seconds(number, seq)
        take(store, one, received_ns=begin + 10 * SECOND)
        store.upkeep(begin + 10 * SECOND)


def ten_seconds(number: int, seq: int = 0) -> Batch:
    times = [NOON + (number * 10 + i) * SECOND for i in range(10)]
    columns: dict[str, Column] = {
        "power_w": [number // 6] * 10,
        "energy_j": [(number * 10 + i) * 100_000 for i in range(10)],
    }
    return batch(seq=seq + number, times=times, columns=columns, jobs={"GPU-a": Owner(True, "job-1")})


def levels(store: Store) -> set[str]:
    return {segment.level for segment in store.segments.counting()}


def test_each_level_answers_and_a_late_row_corrects_it(tmp_path: Path) -> None:
    store = Store(tmp_path, roll_age_s=60)
    fill(store, 10, skip=(13, 14))
    store.upkeep(NOON + 700 * SECOND)
    window = ("node-1", "GPU-a", "power_w", NOON // (60 * SECOND) * 60 * SECOND)
    before = store.steps(*window, NOON + 600 * SECOND, 60)
    late = ten_seconds(13), ten_seconds(14)
    take(store, *late, received_ns=NOON + 710 * SECOND)
    store.upkeep(NOON + 800 * SECOND)
    for now_ns in (NOON + 800 * SECOND, NOON + 2 * HOUR_NS):  # before and after the hour is merged
        store.upkeep(now_ns)
        after = store.steps(*window, NOON + 600 * SECOND, 60)
        assert (after.rows - before.rows).sum() == 20
        assert after.rows.sum() == 600
        for step in (1, 10, 60):
            _, watts = store.series("node-1", "GPU-a", "energy_j", NOON, NOON + 600 * SECOND, step)
            assert set(watts[~np.isnan(watts)].round(6)) == {100.0}, step
    assert levels(store) == {"raw", "10s", "1m", "1h", "jobs"}
    _, hourly = store.series("node-1", "GPU-a", "power_w", NOON // HOUR_NS * HOUR_NS, NOON + HOUR_NS, 3600)
    assert hourly[0] == pytest.approx(4.5)
    assert store.fleet("power_w", NOON // HOUR_NS * HOUR_NS, NOON + HOUR_NS, 3600).values[0] == pytest.approx(
        4.5
    )
    assert store.fleet("energy_j", NOON, NOON + 600 * SECOND, 60).values[1:9] == pytest.approx([100.0] * 8)
    assert np.isnan(store.fleet("power_w", NOON, NOON + HOUR_NS, 3600, simulated=True).values).all()
    store.close()


def test_each_level_has_its_own_retention(tmp_path: Path) -> None:
    store = Store(
        tmp_path, roll_age_s=60, keep_days=1, keep_rollups=KeepRollups(days_10s=2, days_1m=3, days_1h=4)
    )
    fill(store, 3)
    for days, left in (
        (0.5, {"raw", "10s", "1m", "1h", "jobs"}),
        (1.5, {"10s", "1m", "1h", "jobs"}),
        (2.5, {"1m", "1h", "jobs"}),
        (3.5, {"1h", "jobs"}),
    ):
        store.upkeep(NOON + int(days * DAY_NS))
        assert levels(store) == left
        # What is gone at a finer level is answered by the coarser one that is left.
        assert store.steps("node-1", "GPU-a", "power_w", NOON, NOON + 180 * SECOND, 1).rows.sum() == 180
    store.upkeep(NOON + 5 * DAY_NS)
    assert levels(store) == set()
    store.close()


def test_roll_ups_over_their_bytes_lose_the_finest_first(tmp_path: Path) -> None:
    store = Store(tmp_path, roll_age_s=60, keep_rollups=KeepRollups(most_bytes=1))
    fill(store, 2)
    store.upkeep(NOON + 200 * SECOND)
    store.upkeep(NOON + 201 * SECOND)
    assert levels(store) == {"raw"}
    assert store.steps("node-1", "GPU-a", "power_w", NOON, NOON + 120 * SECOND, 60).rows.sum() == 120
    store.close()


def test_clocks_are_in_a_dictionary_of_their_few_steps_and_means_of_clocks_are_not(tmp_path: Path) -> None:
    store = Store(tmp_path, roll_age_s=60)
    clocks = [1.905e9, 1.92e9] * 300
    at = [NOON + second * SECOND for second in range(600)]
    one = batch(times=at, columns={"sm_clock_hz": clocks, "memory_total_bytes": [8e10] * 600})
    store.append(encode(one), at[-1], batch=one)
    store.sync()
    store.convert_all(at[-1])
    store.close()

    encodings = {}
    for kind in ("gpu", "gpu_10s"):
        (path,) = (tmp_path / "segments").glob(f"{kind}-*.parquet")
        with pq.ParquetFile(path) as file:
            group = file.metadata.row_group(0)
            columns = [group.column(number) for number in range(group.num_columns)]
            encodings |= {f"{kind}/{one.path_in_schema}": one.encodings for one in columns}
            if kind == "gpu":
                assert file.read().column("sm_clock_hz").to_pylist() == [float(np.float32(c)) for c in clocks]
    with_dictionary = {
        name for name, used in encodings.items() if "RLE_DICTIONARY" in used and "clock" in name
    }
    assert with_dictionary == {"gpu/sm_clock_hz", "gpu_10s/sm_clock_hz.min", "gpu_10s/sm_clock_hz.max"}
    assert "BYTE_STREAM_SPLIT" in encodings["gpu_10s/sm_clock_hz"]
    assert "RLE_DICTIONARY" not in encodings["gpu/memory_total_bytes"]
