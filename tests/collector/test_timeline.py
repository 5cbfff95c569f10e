"""Which part of a training job holds back the others, from the timeline of its operations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.collector.timelines import Job, longer_sequences

from unidle_agent.cli import main
from unidle_collector.timeline import Report, TimelineError, analyse, document, read, render
from unidle_collector.timeline.operations import operations

TRACES = Path(__file__).parents[3] / "shared" / "data" / "stragglers"


def verdict(job: Job) -> Report:
    return analyse(operations(job.table()))


def test_an_even_job_has_nothing_to_mend() -> None:
    report = verdict(Job())
    assert report.name == "none"
    assert report.slowdown == pytest.approx(1.0, abs=1e-6)
    assert report.lost_rank_hours == pytest.approx(0.0, abs=1e-6)
    assert "Nothing to mend" in render(report)


@settings(max_examples=12)
@given(dp_rank=st.integers(0, 2), stage=st.integers(0, 2), factor=st.floats(1.5, 4))
def test_a_slow_worker_is_named_with_how_slow_it_is(dp_rank: int, stage: int, factor: float) -> None:
    report = verdict(Job(factor=lambda _, d, s, __: factor if (d, s) == (dp_rank, stage) else 1.0))
    assert (report.name, report.cause) == ("worker", "straggler")
    assert report.worker is not None
    assert (report.worker.dp_rank, report.worker.stage) == (dp_rank, stage)
    assert report.worker.factor == pytest.approx(factor, rel=1e-3)


def test_the_slow_one_of_two_workers_is_the_slow_one() -> None:
    report = verdict(Job(dp_ranks=2, factor=lambda _, d, s, __: 2.0 if (d, s) == (1, 1) else 1.0))
    assert report.worker is not None
    assert (report.worker.dp_rank, report.worker.stage) == (1, 1)


@settings(max_examples=8)
@given(stage=st.integers(0, 2), factor=st.floats(1.4, 3))
def test_a_heavy_stage_is_named(stage: int, factor: float) -> None:
    report = verdict(Job(factor=lambda _, __, s, ___: factor if s == stage else 1.0))
    assert (report.name, report.cause) == ("stage", "pipeline_imbalance")
    assert report.stage is not None
    assert report.stage.stage == stage
    assert report.stage.factor == pytest.approx(factor / ((factor + 2) / 3), rel=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_unequal_sequences_are_told_from_slow_hardware(seed: int) -> None:
    report = verdict(Job(dp_ranks=4, steps=12, factor=longer_sequences(seed)))
    assert report.name == "sequence_lengths"
    assert report.correlation == pytest.approx(1.0, abs=0.01)
    assert report.worker is None


def test_random_pauses_of_the_hosts_are_not_taken_for_sequence_lengths() -> None:
    rng = np.random.default_rng(5)
    table = Job(dp_ranks=4, steps=12).table()
    # Half of all passes take three times as long, forward and backward apart.
    job = Job(dp_ranks=4, steps=12, factor=lambda *_: 1.0 + 2.0 * (rng.random() < 0.4))
    report = verdict(job)
    assert table.num_rows == job.table().num_rows
    assert report.name == "uneven_compute"
    assert report.correlation is not None
    assert report.correlation < 0.5


def test_slow_transfers_are_blamed_on_the_network() -> None:
    report = verdict(Job(steps=9, transfer_factor=lambda step, _: 100.0 if step % 3 == 0 else 1.0))
    assert (report.name, report.cause) == ("communication", "communication")


def test_two_causes_of_equal_weight_are_not_decided() -> None:
    sequences = longer_sequences(3)

    def factor(step: int, dp_rank: int, stage: int, microbatch: int) -> float:
        slow = 1.2 if (dp_rank, stage) == (0, 0) else 1.0
        return slow * float(sequences(step, dp_rank, stage, microbatch) ** 0.15)

    report = verdict(Job(dp_ranks=4, steps=9, factor=factor))
    assert (report.name, report.cause) == ("undetermined", "undetermined")
    assert {each.name for each in report.explanations[:2]} == {"worker", "sequence_lengths"}
    assert "Cannot tell" in render(report)


def test_the_order_of_the_rows_says_nothing_but_the_lengths_say_all() -> None:
    table = Job(factor=lambda _, d, s, __: 2.0 if (d, s) == (1, 1) else 1.0).table()
    rng = np.random.default_rng(1)
    shuffled = table.take(pa.array(rng.permutation(table.num_rows)))
    assert document(analyse(operations(shuffled))) == document(analyse(operations(table)))
    # The same lengths, given to other operations of the kind, are another job.
    compute = np.isin(table["optype"].to_pylist(), ["forward-compute"])
    lengths = table["duration"].to_numpy().copy()
    lengths[compute] = rng.permutation(lengths[compute])
    other = table.set_column(table.column_names.index("duration"), "duration", pa.array(lengths))
    assert analyse(operations(other)).slowdown != pytest.approx(analyse(operations(table)).slowdown, rel=0.02)


def test_a_uniformly_slower_job_is_as_even_as_before() -> None:
    fast = verdict(Job(factor=lambda _, d, s, __: 2.0 if (d, s) == (1, 1) else 1.0))
    table = Job(factor=lambda _, d, s, __: 2.0 if (d, s) == (1, 1) else 1.0).table()
    for name in ("start_ts", "duration"):
        table = table.set_column(table.column_names.index(name), name, pa.array(table[name].to_numpy() * 3.0))
    slow = analyse(operations(table))
    assert slow.slowdown == pytest.approx(fast.slowdown, rel=1e-6)
    assert slow.step_s == pytest.approx(3 * fast.step_s, rel=1e-6)


def test_a_step_with_a_hole_in_its_record_is_left_out_and_counted() -> None:
    table = Job().table()
    rows = list(range(table.num_rows))
    rows.remove(next(i for i, kind in enumerate(table["optype"].to_pylist()) if kind == "forward-send"))
    report = analyse(operations(table.take(pa.array(rows))))
    assert report.steps == 4
    assert any("1 of 5 steps were left out" in note for note in report.notes)


def test_without_any_whole_step_it_cannot_tell_and_says_why() -> None:
    table = Job(steps=1).table()
    keep = [kind != "forward-recv" for kind in table["optype"].to_pylist()]
    with pytest.raises(TimelineError, match="expected a forward-recv for every forward-send"):
        analyse(operations(table.filter(pa.array(keep))))


def test_an_unknown_kind_of_operation_is_replayed_and_noted() -> None:
    table = Job().table()
    kinds = ["moe-router" if kind == "optimizer" else kind for kind in table["optype"].to_pylist()]
    table = table.set_column(table.column_names.index("optype"), "optype", pa.array(kinds))
    report = analyse(operations(table))
    assert any("moe-router" in note for note in report.notes)
    assert report.name == "none"


@pytest.mark.parametrize(
    ("column", "values", "says"),
    [
        ("duration", -1.0, "came a negative number"),
        ("duration", float("nan"), "missing or not finite"),
        ("stage", None, "expected a whole number for every operation"),
        ("optype", None, "expected the kind of every operation"),
    ],
)
def test_bad_cells_are_refused_with_a_reason(column: str, values: object, says: str) -> None:
    table = Job(steps=1).table()
    cells = table[column].to_pylist()
    cells[3] = values
    table = table.set_column(table.column_names.index(column), column, pa.array(cells))
    with pytest.raises(TimelineError, match=says):
        operations(table)


def test_a_file_without_the_columns_names_those_it_has(tmp_path: Path) -> None:
    path = tmp_path / "metrics.parquet"
    pq.write_table(pa.table({"time": [1.0], "gpu": ["a"]}), path)
    with pytest.raises(TimelineError, match=r"missing: dp_rank, stage, rank.*Columns found: time, gpu"):
        read(path)


def test_csv_and_parquet_are_the_same(tmp_path: Path) -> None:
    table = Job(factor=lambda _, d, s, __: 2.0 if (d, s) == (0, 2) else 1.0).table()
    pq.write_table(table, tmp_path / "job.parquet")
    pa.csv.write_csv(table, tmp_path / "job.csv")
    assert document(analyse(read(tmp_path / "job.csv"))) == document(analyse(read(tmp_path / "job.parquet")))


def test_the_command_prints_one_json_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pq.write_table(
        Job(factor=lambda _, d, s, __: 2.0 if (d, s) == (0, 2) else 1.0).table(), tmp_path / "j.parquet"
    )
    assert main(["diagnose", "--timeline", str(tmp_path / "j.parquet"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["class"], said["worker"]["dp_rank"], said["worker"]["stage"]) == ("worker", 0, 2)
    assert main(["diagnose", "--timeline", str(tmp_path / "j.parquet")]) == 0
    assert "dp_rank 0, stage 2" in capsys.readouterr().out


def test_the_command_needs_something_to_diagnose(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["diagnose"]) == 2
    assert "expected either FILE" in capsys.readouterr().err
    assert main(["diagnose", "--timeline", str(tmp_path / "none.parquet")]) == 2
    assert "expected a Parquet or CSV file" in capsys.readouterr().err


@pytest.mark.skipif(not TRACES.is_dir(), reason=f"the recorded traces are not at {TRACES}")
@pytest.mark.parametrize(
    ("name", "slowdown", "kind", "place"),
    [("AR", 1.973, "worker", (0, 0)), ("SE", 1.537, "sequence_lengths", None), ("ST", 1.179, "stage", 3)],
)
def test_recorded_jobs_are_as_slow_as_published(name: str, slowdown: float, kind: str, place: object) -> None:
    report = analyse(read(TRACES / f"trace-{name}.parquet"))
    assert report.slowdown == pytest.approx(slowdown, rel=0.02)
    assert report.name == kind
    if kind == "worker":
        assert report.worker is not None
        assert (report.worker.dp_rank, report.worker.stage) == place
    if kind == "stage":
        assert report.stage is not None
        assert report.stage.stage == place
