"""Names and totals of trackers, exporters and people's own frames: what they mean, and what they do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from unidle_agent.fields import MIB
from unidle_collector.recorded import RecordingError, load
from unidle_collector.recorded.columns import meaning
from unidle_collector.recording import Recording
from unidle_collector.replay import replay

START_S = 1_760_000_000
SAMPLES = 40


def of_text(folder: Path, *lines: str) -> Recording:
    path = folder / "telemetry.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return load([path])


@pytest.mark.parametrize(
    ("name", "field", "factor"),
    [
        ("sm_active_mean", "sm_active_ratio", 1.0),
        ("DCGM_FI_PROF_SM_ACTIVE_avg", "sm_active_ratio", 1.0),
        ("avg_sm_active_pct", "sm_active_ratio", 0.01),
        ("gpu_util_mean_pct", "gpu_util_ratio", 0.01),
        ("power_w_mean", "power_w", 1.0),
        ("gpu_tensor_active", "tensor_active_ratio", 1.0),
        ("gpu_dram_active_pct", "dram_active_ratio", 0.01),
        ("utilization_percentage", "gpu_util_ratio", 0.01),
        ("memory_usage_megabytes", "memory_used_bytes", 1e6),
        ("nvlink_tx_gbs", "nvlink_tx_bytes_per_s", 1e9),
    ],
)
def test_a_mean_and_a_word_for_the_gpu_change_nothing(name: str, field: str, factor: float) -> None:
    means = meaning(name)
    assert means is not None
    assert (means.field.name, means.factor) == (field, factor)


@pytest.mark.parametrize(
    "name", ["gpu_util_max", "power_w_min", "sm_active_std", "gpu_util_p95", "mean", "gpu"]
)
def test_the_least_the_most_and_the_spread_of_a_field_are_not_the_field(name: str) -> None:
    assert meaning(name) is None


def test_the_means_of_nvitops_collector_are_read_and_its_least_and_most_are_not(tmp_path: Path) -> None:
    of = {"metrics-daemon/timestamp": [str(START_S + 5 * at) for at in range(SAMPLES)]}
    for gpu, util in (("cuda:0 (gpu:2)", 0), ("gpu:3", 40)):
        for way, value in (("mean", util), ("min", 0), ("max", 100)):
            of[f"metrics-daemon/{gpu}/gpu_utilization (%)/{way}"] = [str(value)] * SAMPLES
        of[f"metrics-daemon/{gpu}/memory_used (MiB)/mean"] = ["16000"] * SAMPLES
    recording = of_text(tmp_path, ",".join(of), *(",".join(row) for row in zip(*of.values(), strict=True)))
    assert [ref.index for ref in recording.gpus] == [2, 3]
    assert (recording.columns["gpu_util_ratio"] == [0.0, 0.4]).all()
    assert (recording.columns["memory_used_bytes"] == 16_000 * MIB).all()
    assert recording.period_s == 5.0
    assert not any("/max" in note for note in recording.notes)


def test_a_long_table_whose_metric_says_the_gpu_is_read_and_the_rest_named(tmp_path: Path) -> None:
    """As MLflow keeps system metrics; the times are in milliseconds."""
    lines = ["key,value,timestamp,step,run_id"]
    for at in range(SAMPLES):
        for gpu in (0, 1):
            for name, value in (
                ("utilization_percentage", 40 * gpu),
                ("memory_usage_megabytes", 17_000),
                ("power_usage_watts", 120 + gpu),
                ("power_usage_percentage", 17),
            ):
                lines.append(f"system/gpu_{gpu}_{name},{value},{(START_S + 10 * at) * 1000},{at},9f1c")
        lines.append(f"system/disk_usage_percentage,41,{(START_S + 10 * at) * 1000},{at},9f1c")
    recording = of_text(tmp_path, *lines)
    assert [ref.index for ref in recording.gpus] == [0, 1]
    assert (recording.columns["gpu_util_ratio"] == [0.0, 0.4]).all()
    assert (recording.columns["memory_used_bytes"] == 17e9).all()
    assert (recording.columns["power_w"] == [120.0, 121.0]).all()
    for unused in ("system/gpu_0_power_usage_percentage", "system/disk_usage_percentage"):
        assert any(unused in note and "not used" in note for note in recording.notes)


def sent(folder: Path, column: str, values: NDArray[np.float64]) -> Recording:
    """Two GPUs, 5 s between samples, the second GPU's rows first."""
    seconds = np.tile(START_S + 5 * np.arange(SAMPLES), 2)
    gpus = np.repeat([1, 0], SAMPLES)
    pq.write_table(
        pa.table({"timestamp": seconds, "gpu": gpus, "gpu_util_pct": np.full(80, 98), column: values}),
        folder / "telemetry.parquet",
    )
    return load([folder / "telemetry.parquet"])


RATE = np.repeat([3e9, 5e10], SAMPLES)
TOTAL = 8e13 + np.concatenate([rate * 5.0 * np.arange(SAMPLES) for rate in (3e9, 5e10)])


@pytest.mark.parametrize(
    "column", ["nvlink_tx_bytes_total", "DCGM_FI_DEV_NVLINK_COUNT_TX_BYTES", "nvlink_tx_bytes"]
)
def test_a_total_in_the_place_of_a_rate_is_differenced_and_said(tmp_path: Path, column: str) -> None:
    """The last one bears the name of a rate: no link moves as much in a second."""
    recording = sent(tmp_path, column, TOTAL)
    found = recording.columns["nvlink_tx_bytes_per_s"]
    assert np.isnan(found[0]).all()
    assert found[1:] == pytest.approx(np.tile([5e10, 3e9], (SAMPLES - 1, 1)))
    assert any("the column counts bytes" in note for note in recording.notes)


@pytest.mark.parametrize("column", ["nvlink_tx_bytes", "nvlink_tx_bytes_total"])
def test_a_rate_stays_as_it_is_whatever_its_name(tmp_path: Path, column: str) -> None:
    wave = RATE * (1 + 0.1 * np.sin(np.arange(RATE.size)))
    found = sent(tmp_path, column, wave).columns["nvlink_tx_bytes_per_s"]
    assert found == pytest.approx(np.stack([wave[SAMPLES:], wave[:SAMPLES]], axis=1))
    assert found.mean() == pytest.approx(2.65e10, rel=0.02)


def test_a_total_that_begins_anew_is_unknown_there(tmp_path: Path) -> None:
    at = np.arange(400.0)
    again = np.where(at < 200, at, at - 200) * 5 * 5e10
    times = START_S + 5 * at
    pq.write_table(
        pa.table({"timestamp": times, "gpu_util_pct": np.full(400, 98), "nvlink_tx_bytes_total": again}),
        tmp_path / "telemetry.parquet",
    )
    found = load([tmp_path / "telemetry.parquet"]).columns["nvlink_tx_bytes_per_s"][:, 0]
    assert np.flatnonzero(np.isnan(found)).tolist() == [0, 200]
    assert found[~np.isnan(found)] == pytest.approx(5e10)


def of_pods(folder: Path, columns: str, *rows: str) -> Recording:
    return of_text(
        folder, f"timestamp,{columns}", *(f"{START_S + 60 * at},{row}" for at in range(5) for row in rows)
    )


def test_a_trace_of_pods_that_names_no_gpu_has_one_for_each(tmp_path: Path) -> None:
    recording = of_pods(
        tmp_path, "pod_name,gpu_util_pct,memory_used_mib", "chat-1,0,30000", "code-2,40,60000"
    )
    assert [(ref.gpu, ref.index) for ref in recording.gpus] == [("chat-1", None), ("code-2", None)]
    assert (recording.columns["gpu_util_ratio"] == [0.0, 0.4]).all()
    assert [recording.jobs[number] for number in recording.job[0]] == ["chat-1", "code-2"]
    assert "no column names the GPU: each 'pod_name' is taken as one" in recording.notes


def test_the_same_as_a_row_per_value(tmp_path: Path) -> None:
    recording = of_pods(
        tmp_path,
        "pod,metric,value",
        *("chat-1,gpu_util_pct,0", "chat-1,memory_used_mib,30000"),
        *("code-2,gpu_util_pct,40", "code-2,memory_used_mib,60000"),
    )
    assert [ref.gpu for ref in recording.gpus] == ["chat-1", "code-2"]
    assert (recording.columns["gpu_util_ratio"] == [0.0, 0.4]).all()


@pytest.mark.parametrize(
    ("columns", "rows"),
    [
        ("pod,gpu_util_pct", ("chat-1,0", "chat-1,40", "code-2,0")),
        ("pod,metric,value", ("chat-1,gpu_util_pct,0", "chat-1,gpu_util_pct,40")),
        ("metric,value", ("gpu_util_pct,0", "gpu_util_pct,40")),
    ],
    ids=["a pod with two GPUs", "the same as a row per value", "a row per value, and no pod"],
)
def test_rows_that_nothing_tells_apart_are_an_error(
    tmp_path: Path, columns: str, rows: tuple[str, ...]
) -> None:
    with pytest.raises(RecordingError, match="expected a column that names the GPU"):
        of_pods(tmp_path, columns, *rows)


def test_a_file_named_after_a_quantity_has_a_column_for_each_gpu(tmp_path: Path) -> None:
    """Panels of Grafana's dashboard 12239, saved one by one: the unit is in the cells."""
    day = "data-2026-10-09 08_40_00.csv"
    for title, cells in (
        ("GPU Utilization", "0%,98%"),
        ("GPU Power Usage", "120.5 W,655 W"),
        ("GPU Framebuffer Mem Used", "16 GiB,70 GiB"),
        ("Tensor Core Utilization", "0%,52.5%"),
    ):
        lines = [f"2026-10-09 08:0{at}:00,{cells}" for at in range(5)]
        (tmp_path / f"{title}-{day}").write_text("\n".join(["Time,GPU 0,GPU 1", *lines, ""]))
    recording = load([tmp_path])
    assert [ref.index for ref in recording.gpus] == [0, 1]
    assert {name: column[-1].tolist() for name, column in recording.columns.items()} == {
        "gpu_util_ratio": [0.0, 0.98],
        "power_w": [120.5, 655.0],
        "memory_used_bytes": [16 * 2**30, 70 * 2**30],
        "tensor_active_ratio": [0.0, 0.525],
    }
    assert any("each column is taken as 'GPU Utilization' of a GPU" in note for note in recording.notes)


def test_a_file_named_after_nothing_or_with_columns_that_say_more_is_not_taken_apart(tmp_path: Path) -> None:
    for name, header in (("export.csv", "time,svc-1,svc-2"), ("gpu_util_pct.csv", "time,pod,svc-1")):
        (tmp_path / name).write_text(f"{header}\n{START_S},0,98\n{START_S + 60},0,98\n")
        with pytest.raises(RecordingError, match="expected at least one column with a known field"):
            load([tmp_path / name])


def test_a_date_with_dots_has_the_day_first(tmp_path: Path) -> None:
    lines = [f"0{day}.10.2026 08:00:00;37,5" for day in (3, 4)]
    recording = of_text(tmp_path, "timestamp;gpu_util_pct", *lines)
    assert recording.lasts_s == 86_400 + recording.period_s
    assert recording.columns["gpu_util_ratio"][0, 0] == 0.375
    assert recording.start_ns == 1_791_014_400 * 10**9


@pytest.mark.parametrize(
    ("cpu", "iowait", "cause"),
    [(97.0, 0.3, "cpu_preprocessing"), (14.0, 38.0, "storage"), (14.0, 0.3, "undetermined")],
)
def test_what_a_host_did_is_read_by_its_common_names(
    tmp_path: Path, cpu: float, iowait: float, cause: str
) -> None:
    """A loader that feeds its GPU 3 s of 10."""
    lines = [
        f"{START_S + at},0,{90 if at % 10 < 3 else 0},{0.75 if at % 10 < 3 else 0.0},30000,{cpu},{iowait}"
        for at in range(240)
    ]
    columns = "timestamp,gpu,gpu_util_pct,sm_active_ratio,memory_used_mib,host_cpu_util,iowait_pct"
    (gpu,) = replay(of_text(tmp_path, columns, *lines)).gpus
    assert gpu.causes == {f"starved.{cause}": 240.0}


def test_a_wait_for_io_that_may_be_percent_or_a_share_is_left_out(tmp_path: Path) -> None:
    recording = of_text(
        tmp_path, "timestamp,gpu_util_pct,iowait", f"{START_S},50,0.3", f"{START_S + 1},50,0.2"
    )
    assert "cpu_iowait_ratio" not in recording.columns
    assert any("'iowait': left out, its unit cannot be told" in note for note in recording.notes)


def test_a_cpu_column_that_sums_cores_is_left_out(tmp_path: Path) -> None:
    """A process on eight cores of a hundred: nothing of the host."""
    lines = [f"{START_S + at},50,{700 + at}" for at in range(10)]
    recording = of_text(tmp_path, "timestamp,gpu_util_pct,cpu_util_pct", *lines)
    assert "cpu_busy_ratio" not in recording.columns
    assert any("'cpu_util_pct': left out, it sums cores" in note for note in recording.notes)


def runs(folder: Path, begin_s: int, *utils: int) -> list[Path]:
    """A file per run of the same GPU of the same node."""
    paths = [folder / f"run_{number}.csv" for number in range(len(utils))]
    for path, util in zip(paths, utils, strict=True):
        lines = [f"{begin_s + at},n1,0,{util}" for at in range(5)]
        path.write_text("\n".join(["timestamp,node,gpu,gpu_util_pct", *lines, ""]))
    return paths


@pytest.mark.parametrize("node", ["", "n9"])
def test_runs_whose_times_begin_at_0_are_not_mixed(tmp_path: Path, node: str) -> None:
    recording = load(runs(tmp_path, 0, 0, 98), node=node)
    assert [ref.node for ref in recording.gpus] == ["n1/run_0", "n1/run_1"]
    assert (recording.columns["gpu_util_ratio"] == [0.0, 0.98]).all()
    assert sum("a run of its own" in note for note in recording.notes) == 2


def test_files_of_one_gpu_with_dates_or_with_other_fields_stay_together(tmp_path: Path) -> None:
    assert len(load(runs(tmp_path, START_S, 98, 98)).gpus) == 1
    first, second = runs(tmp_path, 0, 98, 98)
    second.write_text(second.read_text().replace("gpu_util_pct", "power_w"))
    recording = load([first, second])
    assert len(recording.gpus) == 1
    assert set(recording.columns) == {"gpu_util_ratio", "power_w"}


@pytest.mark.parametrize("column", ["run_id", "workload"])
def test_runs_in_one_table_whose_times_begin_at_0_are_not_mixed(tmp_path: Path, column: str) -> None:
    lines = [f"{at},0,{run},{util}" for run, util in (("held", 0), ("train", 98)) for at in range(5)]
    recording = of_text(tmp_path, f"time_s,gpu,{column},gpu_util_pct", *lines)
    assert [ref.node for ref in recording.gpus] == ["node/held", "node/train"]
    assert (recording.columns["gpu_util_ratio"] == [0.0, 0.98]).all()
    assert f"the times begin at 0 in each {column!r}: taken as runs of their own" in recording.notes


def test_jobs_that_share_a_gpu_or_follow_each_other_are_no_runs_of_their_own(tmp_path: Path) -> None:
    shared = [f"{START_S + at},0,{pod},98" for at in range(5) for pod in ("a", "b")]
    assert len(of_text(tmp_path, "timestamp,gpu,pod,gpu_util_pct", *shared).gpus) == 1
    after = [f"{at},0,{'a' if at < 5 else 'b'},98" for at in range(10)]
    assert len(of_text(tmp_path, "time_s,gpu,job,gpu_util_pct", *after).gpus) == 1
