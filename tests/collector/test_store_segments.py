from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.collector.store_fleet import NOON, SECOND, batch, log_of

from unidle_agent.fields import BY_NAME, FIELDS, UNKNOWN_U8, Field
from unidle_agent.wire import Batch, Owner, encode
from unidle_collector.store import columns
from unidle_collector.store.compaction import HOUR_NS, compact
from unidle_collector.store.conversion import convert
from unidle_collector.store.errors import StoreError
from unidle_collector.store.log import Log
from unidle_collector.store.reader import MOST_POINTS, Reader
from unidle_collector.store.segments import Segment, Segments, problem


def nothing_known(_: object) -> None:
    return None


@pytest.fixture
def segments(tmp_path: Path) -> Segments:
    (tmp_path / "segments").mkdir()
    (tmp_path / "log").mkdir()
    return Segments(tmp_path / "segments")


def store(segments: Segments, *batches: Batch, received_ns: int = NOON) -> None:
    """Put batches through a log file into segments."""
    log = log_of(segments.directory.parent / "log", *batches, received_ns=received_ns)
    segments.publish(convert(log, segments.directory, nothing_known).files, [log])


def of_rows(segments: Segments) -> list[Segment]:
    """The segments of rows, without roll-ups."""
    return [segment for segment in segments.counting() if segment.level == "raw"]


def rows(segments: Segments, kind: str = "gpu") -> list[dict[str, object]]:
    files = [segment for segment in of_rows(segments) if segment.kind == kind]
    return [row for segment in files for row in pq.read_table(segment.path).to_pylist()]


def test_a_row_per_gpu_and_instant_sorted_by_node_gpu_and_time(segments: Segments) -> None:
    times = [NOON, NOON + SECOND]
    owners = {"GPU-b": Owner(True, "job-7"), "GPU-a": Owner(False)}
    store(
        segments,
        batch(
            "n2",
            seq=1,
            times=times,
            gpus=("GPU-b", "GPU-a"),
            columns={"power_w": [1, 2, 3, None]},
            jobs=owners,
        ),
        batch("n1", seq=0, times=times[:1], gpus=("GPU-z",), columns={"gpu_util_ratio": [0]}, simulated=True),
    )
    found = [
        (r["node"], r["gpu"], r["time_ns"], r["job"], r["simulated"], r["power_w"], r["gpu_util_ratio"])
        for r in rows(segments)
    ]
    assert found == [
        ("n1", "GPU-z", NOON, None, True, None, 0),
        ("n2", "GPU-a", NOON, "", False, 2, None),
        ("n2", "GPU-a", NOON + SECOND, "", False, None, None),
        ("n2", "GPU-b", NOON, "job-7", False, 1, None),
        ("n2", "GPU-b", NOON + SECOND, "job-7", False, 3, None),
    ]


def test_host_fields_get_a_segment_of_their_own(segments: Segments) -> None:
    store(segments, batch("n1", times=[NOON, NOON + 1], host={"load_1m": [1.25, None]}), batch("n2", seq=1))
    assert rows(segments, "host") == [
        {"time_ns": NOON, "node": "n1", "simulated": False, "load_1m": pytest.approx(1.25)},
        {"time_ns": NOON + 1, "node": "n1", "simulated": False, "load_1m": None},
    ]
    assert [row["node"] for row in rows(segments)] == ["n1", "n1", "n2"]


def test_any_tool_reads_base_units(segments: Segments) -> None:
    store(
        segments,
        batch(columns={"energy_j": [1_234_567], "sm_clock_hz": [1.98e9], "sm_active_ratio": [0.1234]}),
    )
    (path,) = [str(segment.path) for segment in of_rows(segments)]
    sql = f"SELECT energy_j::VARCHAR, sm_clock_hz, sm_active_ratio::VARCHAR FROM '{path}'"
    assert duckdb.sql(sql).fetchall() == [("1234.567", 1.98e9, "0.1234")]
    assert pq.read_schema(path).field("energy_j").metadata == {b"unit": b"J", b"kind": b"counter"}


def steps_of(spec: Field) -> st.SearchStrategy[list[int | None]]:
    """A column in steps of the field's resolution, as far as its dtype can tell them apart."""
    if spec.dtype == "u8":
        one = st.integers(0, 10**18 - 1 if spec.resolution < 1 else UNKNOWN_U8 - 1)
    else:
        most = 2**22 if spec.dtype == "f4" else 2**52
        one = st.integers(-most, most)
    return st.lists(st.none() | one, min_size=1, max_size=40)


@settings(max_examples=200)
@given(data=st.data(), spec=st.sampled_from(FIELDS))
def test_every_field_comes_back_exact_at_its_resolution_and_unknown_as_null(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, spec: Field
) -> None:
    steps = data.draw(steps_of(spec))
    if spec.dtype == "u8":
        sent = [UNKNOWN_U8 if step is None else step for step in steps]
    else:
        sent = [math.nan if step is None else step * spec.resolution for step in steps]
    column = columns.to_arrow(spec, np.array(sent, columns.DTYPES[spec.dtype]))
    schema = columns.schema((), (spec,))
    path = tmp_path_factory.mktemp("column") / "one.parquet"
    pq.write_table(pa.Table.from_arrays([column], schema=schema), path, **columns.write_options(schema))
    ((read,),) = duckdb.sql(f"SELECT list({spec.name}) FROM '{path}'").fetchall()
    resolution = Decimal(repr(spec.resolution))
    for step, got in zip(steps, read, strict=True):
        assert got is None if step is None else round(Decimal(got) / resolution) == step
        if step is not None and spec.resolution < 1:
            assert got == step * resolution  # not a digit more, not a digit less


@pytest.mark.parametrize(
    "spec", [BY_NAME["gpu_util_ratio"], BY_NAME["temperature_c"], BY_NAME["memory_used_bytes"]]
)
def test_infinity_and_absurd_numbers_are_unknown_not_a_crash(spec: Field) -> None:
    values = np.array([math.inf, -math.inf, math.nan, 1.0], columns.DTYPES[spec.dtype])
    assert columns.to_arrow(spec, values).to_pylist() == [None, None, None, 1]
    assert columns.to_arrow(BY_NAME["energy_j"], np.array([2**63], "<u8")).to_pylist() == [None]
    assert columns.to_arrow(BY_NAME["power_w"], np.array([1e30], "<f4")).to_pylist() == [None]


def test_a_batch_that_is_in_the_log_twice_is_stored_once(segments: Segments) -> None:
    store(segments, batch(seq=3), batch(seq=3), batch(seq=3, boot="boot-2", times=[NOON + 1]))
    assert len(rows(segments)) == 2


def test_bytes_that_are_no_batch_are_counted_and_lose_nothing_else(segments: Segments) -> None:
    log = Log(segments.directory.parent / "log")
    for data in (encode(batch()), b"no batch", encode(batch(seq=1, times=[NOON + 1]))):
        log.append(data, NOON)
    log.close()
    draft = convert(log.closed()[0], segments.directory, nothing_known)
    assert (draft.rows, draft.damaged, len(draft.sequences)) == (2, 1, 2)


def test_the_job_comes_from_the_facts_that_the_batch_refers_to(segments: Segments) -> None:
    log = log_of(
        segments.directory.parent / "log",
        batch(seq=0, times=[NOON], facts_id=1),
        batch(seq=1, times=[NOON + 1], facts_id=2, jobs={"GPU-a": Owner(True, "new")}),
        batch(seq=2, times=[NOON + 2], facts_id=2),
        batch(seq=3, times=[NOON + 3], facts_id=9),
    )
    earlier = {("node-1", "boot-1", 1): batch(jobs={"GPU-a": Owner(True, "old")}).facts}
    draft = convert(log, segments.directory, earlier.get)
    segments.publish(draft.files)
    assert [row["job"] for row in rows(segments)] == ["old", "new", "new", None]
    assert list(draft.facts) == [("node-1", "boot-1", 2)]


def hour_of(segments: Segments, files: int, nodes: Iterable[str] = ("n1", "n2", "n3")) -> None:
    for number in range(files):
        store(
            segments,
            *(
                batch(node, seq=number, times=[NOON + number * SECOND], host={"load_1m": [number]})
                for node in nodes
            ),
            received_ns=NOON + number * SECOND,
        )


def test_compaction_merges_an_hour_without_losing_or_doubling_a_row(
    segments: Segments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "unidle_collector.store.compaction.SLICE_ROWS", 4
    )  # several slices, several row groups
    hour_of(segments, 5)
    store(
        segments,
        batch("n2", seq=99, times=[NOON + 99], columns={"last_xid": [79]}),
        received_ns=NOON + 60 * SECOND,
    )
    key = lambda row: (row["node"], row["time_ns"])  # noqa: E731
    before, hosts = sorted(rows(segments), key=key), sorted(rows(segments, "host"), key=key)
    assert compact(segments, NOON) == 0  # this hour is not over
    between: list[int] = []
    assert compact(segments, NOON + HOUR_NS, lambda: between.append(1)) == 11 + 11 + 11 + 6
    (gpu,) = [segment for segment in of_rows(segments) if segment.kind == "gpu"]
    assert pq.read_metadata(gpu.path).num_row_groups > 1
    assert between
    filled = [{"last_xid": None, "power_w": None} | row for row in before]
    assert rows(segments) == filled  # in order without sorting
    assert rows(segments, "host") == hosts
    assert len(list(segments.directory.glob("*.parquet"))) == 2 + 2 + 2 + 1 + 3  # and three of 1 h
    assert compact(segments, NOON + HOUR_NS) == 0


def test_nodes_without_gpus_have_host_rows_and_nothing_else(segments: Segments) -> None:
    for number in range(2):
        bare = batch(seq=number, times=[NOON + number], gpus=(), columns={}, host={"load_1m": [number]})
        store(segments, bare, received_ns=NOON + number)
    assert compact(segments, NOON + HOUR_NS) == 14
    assert rows(segments) == []
    assert [row["load_1m"] for row in rows(segments, "host")] == [0, 1]


def test_a_crash_between_merging_and_removing_doubles_nothing(segments: Segments) -> None:
    hour_of(segments, 3)
    originals = {path.name: path.read_bytes() for path in segments.directory.iterdir()}
    expected = len(rows(segments))
    compact(segments, NOON + HOUR_NS)
    for name, content in originals.items():
        (segments.directory / name).write_bytes(content)
    (segments.directory / "gpu-half.parquet.tmp").write_bytes(b"PAR1")
    assert len(rows(segments)) == expected
    segments.clean()
    assert len(list(segments.directory.glob("*.parquet"))) == 10
    assert len(rows(segments)) == expected


@pytest.mark.parametrize("where", ["the footer", "a page"])
def test_a_damaged_segment_does_not_keep_the_others_from_being_merged(segments: Segments, where: str) -> None:
    hour_of(segments, 3)
    bad = next(segment for segment in of_rows(segments) if segment.kind == "gpu")
    content = bad.path.read_bytes()
    place = len(content) - 8 if where == "the footer" else 4
    bad.path.write_bytes(content[:place] + b"\xff" * 8 + content[place + 8 :])
    for _ in range(2):
        compact(segments, NOON + HOUR_NS)
    assert segments.damaged == 1
    assert [segment.kind for segment in of_rows(segments)] == ["gpu", "host"]
    assert len(rows(segments)) == 6


def test_segments_of_another_version_are_merged_with_ours(
    segments: Segments, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(segments, batch(columns={"power_w": [1.234]}))
    (old,) = of_rows(segments)
    table = pq.read_table(old.path)
    power = table.column("power_w").cast(pa.decimal64(18, 1), safe=False)
    table = table.set_column(table.schema.get_field_index("power_w"), "power_w", power)
    pq.write_table(table.append_column("of_the_future", pa.array(["x"])), old.path)
    store(segments, batch(seq=1, times=[NOON + 1], columns={"power_w": [5.678]}), received_ns=NOON + 1)
    compact(segments, NOON + HOUR_NS)
    assert [(str(r["power_w"]), r["of_the_future"]) for r in rows(segments)] == [
        ("1.2", "x"),
        ("5.7", None),
    ]


def test_retention_removes_the_oldest_first_and_counts(segments: Segments) -> None:
    for hour in range(4):
        store(segments, batch(seq=hour), received_ns=NOON + hour * HOUR_NS)
    sizes = [segment.size_bytes for segment in of_rows(segments)]
    removed = segments.retain(NOON + 1, 10**9)
    assert (removed.files, removed.size_bytes) == (1, sizes[0])
    removed = segments.retain(0, sizes[3] + sizes[2] - 1)
    assert (removed.files, removed.size_bytes) == (2, sizes[1] + sizes[2])
    assert [segment.first for segment in of_rows(segments)] == [NOON + 3 * HOUR_NS]


def series(segments: Segments, *args: object) -> list[float | None]:
    reader = Reader(segments)
    times, values = reader.series(*args)  # type: ignore[arg-type]
    reader.close()
    assert list(np.diff(times)) == [args[5] * SECOND] * (len(times) - 1)  # type: ignore[operator]
    return [None if math.isnan(value) else round(float(value), 9) for value in values]


def minute(values: Sequence[float | int | None], field: str, gpu: str = "GPU-a", seq: int = 0) -> Batch:
    """One value a second from NOON on."""
    return batch(
        seq=seq, times=[NOON + i * SECOND for i in range(len(values))], gpus=(gpu,), columns={field: values}
    )


def test_a_gauge_is_its_mean_with_zeros_and_without_unknowns(segments: Segments) -> None:
    store(
        segments,
        minute([0.5, 0, 1, None, None, None], "gpu_util_ratio"),
        minute([0.9] * 6, "gpu_util_ratio", gpu="GPU-other", seq=1),
    )
    end_ns = NOON + 8 * SECOND
    assert series(segments, "node-1", "GPU-a", "gpu_util_ratio", NOON, end_ns, 2) == [0.25, 1.0, None, None]
    assert series(segments, "node-1", "GPU-a", "power_w", NOON, end_ns, 2) == [None] * 4
    assert series(segments, "node-9", "GPU-a", "gpu_util_ratio", NOON, end_ns, 2) == [None] * 4
    assert series(
        segments, "node-1", "GPU-a", "gpu_util_ratio", NOON - 99 * HOUR_NS, NOON - 98 * HOUR_NS, 3600
    ) == [None]


def test_a_counter_is_its_rate_over_the_time_that_is_known(segments: Segments) -> None:
    # 100 J/s, a gap of two samples, then a reset: what was counted across the reset is unknown.
    store(segments, minute([0, 100_000, 200_000, None, None, 500_000, 7_000, 57_000], "energy_j"))
    args = ("node-1", "GPU-a", "energy_j")
    assert series(segments, *args, NOON, NOON + 8 * SECOND, 2) == [100.0, 100.0, 100.0, 50.0]
    # The sample before the window is looked for.
    assert series(segments, *args, NOON + 2 * SECOND, NOON + 3 * SECOND, 1) == [100.0]
    assert series(segments, *args, NOON + 6 * SECOND, NOON + 7 * SECOND, 1) == [None]


def test_a_counter_keeps_its_last_digit_however_large_it_is(segments: Segments) -> None:
    base = 2**60
    store(segments, minute([base, base + 3], "pcie_replays"))
    assert series(segments, "node-1", "GPU-a", "pcie_replays", NOON, NOON + 2 * SECOND, 2) == [3.0]


def test_a_state_is_its_last_value_and_a_host_field_needs_no_gpu(segments: Segments) -> None:
    store(
        segments,
        minute([4, 8, 0, 32], "clock_event_reasons"),
        batch(seq=1, times=[NOON], gpus=(), host={"load_1m": [3]}),
    )
    args = ("clock_event_reasons", NOON, NOON + 4 * SECOND, 2)
    assert series(segments, "node-1", "GPU-a", *args) == [8.0, 32.0]
    assert series(segments, "node-1", "", "load_1m", NOON, NOON + SECOND, 1) == [3.0]


def test_a_series_has_at_most_1500_points(segments: Segments) -> None:
    reader = Reader(segments)
    times, values = reader.series("n", "g", "power_w", NOON, NOON + 24 * HOUR_NS, 0.001)
    assert len(times) == len(values) == 24 * 60 <= MOST_POINTS  # whole minutes rather than 57.6 s
    with pytest.raises(StoreError, match="a field of"):
        reader.series("n", "g", "power_w; DROP TABLE x", NOON, NOON + 1, 1)
    with pytest.raises(StoreError, match="longer than 0 s"):
        reader.series("n", "g", "power_w", NOON, NOON, 1)


def test_only_files_whose_name_overlaps_the_window_are_opened(segments: Segments) -> None:
    store(segments, minute([1.0], "power_w"))
    store(segments, batch(seq=1, times=[NOON + HOUR_NS]), received_ns=NOON + 1)
    late = of_rows(segments)[-1]
    late.path.write_bytes(b"not Parquet")
    assert series(segments, "node-1", "GPU-a", "power_w", NOON, NOON + SECOND, 1) == [1.0]
    assert segments.damaged == 0


def test_a_damaged_segment_is_set_aside_and_the_rest_is_read(segments: Segments) -> None:
    store(segments, minute([1.0], "power_w"))
    store(segments, batch(seq=1, times=[NOON + SECOND]), received_ns=NOON + 1)
    late = of_rows(segments)[-1]
    late.path.write_bytes(b"not Parquet")
    assert "expected a Parquet file" in problem(late)
    assert series(segments, "node-1", "GPU-a", "power_w", NOON, NOON + 2 * SECOND, 1) == [1.0, 101.0]
    assert segments.damaged == 1  # its rows' roll-up of 10 s is what is left of it
    assert len(list(segments.directory.glob("*.damaged"))) == 1


def test_files_that_were_merged_during_a_query_are_found_again(
    segments: Segments, monkeypatch: pytest.MonkeyPatch
) -> None:
    hour_of(segments, 3)
    stale = segments.overlapping(NOON, NOON + HOUR_NS)
    compact(segments, NOON + HOUR_NS)
    reader = Reader(segments)
    answers = [stale, segments.overlapping(NOON, NOON + HOUR_NS)]
    monkeypatch.setattr(segments, "overlapping", lambda *_: answers.pop(0))
    _, values = reader.series("n1", "GPU-a", "power_w", NOON, NOON + 3 * SECOND, 1)
    assert list(values) == [100, 101, 102]


def test_a_damaged_host_segment_costs_an_export_only_its_columns(segments: Segments, tmp_path: Path) -> None:
    store(segments, batch(host={"load_1m": [2]}))
    (host,) = [segment for segment in of_rows(segments) if segment.kind == "host"]
    host.path.write_bytes(b"not Parquet")
    assert Reader(segments).export(tmp_path / "out.csv", NOON, NOON + 1) == 1
    assert segments.damaged == 1


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_an_export_is_one_plain_table_with_the_host_beside(
    segments: Segments, tmp_path: Path, suffix: str
) -> None:
    store(
        segments,
        batch(
            "n1",
            times=[NOON],
            columns={"energy_j": [1_500]},
            host={"load_1m": [2]},
            jobs={"GPU-a": Owner(True, "j")},
        ),
        batch("n2", times=[NOON], columns={"energy_j": [None]}),
        batch("n3", times=[NOON + HOUR_NS]),
    )
    path = tmp_path / f"out.{suffix}"
    assert Reader(segments).export(path, NOON, NOON + SECOND) == 2
    found = duckdb.sql(f"SELECT time_ns, node, gpu, job, simulated, energy_j, load_1m FROM '{path}'")
    assert found.fetchall() == [
        (NOON, "n1", "GPU-a", "j", False, 1.5, 2),
        (NOON, "n2", "GPU-a", None, False, None, None),
    ]
    if suffix == "parquet":
        assert [str(kind) for kind in found.types[5:]] == ["DOUBLE", "DOUBLE"]
    assert not list(tmp_path.glob("*.tmp"))


def test_an_export_says_what_it_cannot_do(segments: Segments, tmp_path: Path) -> None:
    reader = Reader(segments)
    with pytest.raises(StoreError, match="the store has none"):
        reader.export(tmp_path / "out.parquet", NOON, NOON + 1)
    with pytest.raises(StoreError, match=r"\.parquet or \.csv"):
        reader.export(tmp_path / "out.xlsx", NOON, NOON + 1)
    store(segments, batch())
    with pytest.raises(StoreError, match="nowhere"):
        reader.export(tmp_path / "nowhere" / "out.parquet", NOON, NOON + 1)
