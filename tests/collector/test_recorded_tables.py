"""Tables that people have, as Parquet or text: what each column means, and what is said about it."""

from __future__ import annotations

import gzip
import math
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unidle_agent.fields import FIELDS, GPU_FIELDS, MIB
from unidle_collector.recorded import RecordingError, load
from unidle_collector.recorded.columns import meaning
from unidle_collector.recorded.names import ALIASES
from unidle_collector.recording import Recording

START_NS = 1_760_000_000_000_000_000
START_S = START_NS // 10**9


def from_text(folder: Path, text: str, name: str = "telemetry.csv", **options: Any) -> Recording:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return load([path], **options)


def from_table(folder: Path, columns: dict[str, Any], name: str = "telemetry.parquet") -> Recording:
    path = folder / name
    pq.write_table(pa.table(columns), path)
    return load([path])


def first(recording: Recording, field: str) -> list[float]:
    """The values of the first GPU."""
    return list(recording.columns[field][:, 0])


# Columns


def test_every_field_is_understood_by_its_own_name_and_by_all_its_dcgm_names() -> None:
    for spec in FIELDS:
        own = meaning(spec.name)
        assert own is not None
        assert (own.field, own.factor) == (spec, 1.0)
        for name, factor in spec.dcgm:
            for written in (f"DCGM_FI_{name}", f"DCGM_FI_{name}".lower(), name):
                means = meaning(written)
                assert means is not None, written
                assert (means.field, means.factor) == (spec, factor)


def test_every_alias_leads_to_a_field() -> None:
    names = {spec.name for spec in FIELDS}
    assert set(ALIASES.values()) <= names
    assert not set(ALIASES) & names


@pytest.mark.parametrize(
    ("name", "field", "factor"),
    [
        ("utilization.gpu [%]", "gpu_util_ratio", 0.01),
        (" memory.used [MiB]", "memory_used_bytes", MIB),
        ("power.draw [W]", "power_w", 1.0),
        ("clocks.current.sm [MHz]", "sm_clock_hz", 1e6),
        ("gpu_util_pct", "gpu_util_ratio", 0.01),
        ("GPU_Utilization (%)", "gpu_util_ratio", 0.01),
        ("power_mw", "power_w", 1e-3),
        ("memory_used_mib", "memory_used_bytes", MIB),
        ("gpu_memory_used_gb", "memory_used_bytes", 1024 * MIB),
        ("pcie_rx_gb_per_s", "pcie_rx_bytes_per_s", 1e9),
        ("energy_wh", "energy_j", 3600.0),
        ("SM_ACTIVE", "sm_active_ratio", 1.0),
    ],
)
def test_a_unit_in_the_name_is_read(name: str, field: str, factor: float) -> None:
    means = meaning(name)
    assert means is not None
    assert (means.field.name, means.factor, means.unit_told) == (field, factor, True)


def test_a_log_of_nvidia_smi_is_read_whole(tmp_path: Path) -> None:
    recording = from_text(
        tmp_path,
        "timestamp, index, uuid, name, utilization.gpu [%], power.draw [W], memory.used [MiB], "
        "memory.total [MiB], clocks.current.sm [MHz], temperature.gpu, clocks_event_reasons.active\n"
        "2026/10/16 12:00:00.123, 0, GPU-a, NVIDIA H100, 45 %, 123.45 W, 10240 MiB, 81559 MiB, 1980 MHz, 45, "
        "0x0000000000000024\n"
        "2026/10/16 12:00:00.130, 1, GPU-b, NVIDIA H100, [Not Supported], [N/A], 0 MiB, 81559 MiB, 345 MHz, "
        "30, 0x0\n"
        "2026/10/16 12:00:05.123, 0, GPU-a, NVIDIA H100, 46 %, 99 W, 10240 MiB, 81559 MiB, 1980 MHz, 46, 0\n"
        "2026/10/16 12:00:05.131, 1, GPU-b, NVIDIA H100, 0 %, 70.00 W, 0 MiB, 81559 MiB, 345 MHz, 30, 0x0\n"
        "2026/10/16 12:00:1",
        node="n1",
    )
    assert recording.period_s == 5.0
    assert [(ref.node, ref.gpu, ref.index, ref.model) for ref in recording.gpus] == [
        ("n1", "GPU-a", 0, "NVIDIA H100"),
        ("n1", "GPU-b", 1, "NVIDIA H100"),
    ]
    assert first(recording, "gpu_util_ratio") == [0.45, 0.46]
    assert first(recording, "memory_used_bytes") == [10240 * MIB] * 2
    assert first(recording, "sm_clock_hz") == [1.98e9] * 2
    assert first(recording, "clock_event_reasons") == [0x24, 0]
    assert np.isnan(recording.columns["power_w"][0, 1])
    assert np.isnan(recording.columns["gpu_util_ratio"][0, 1])
    assert any("1 lines with a wrong number of cells" in note for note in recording.notes)
    assert any("UTC" in note for note in recording.notes)


def test_dcgm_names_are_read_in_the_units_of_each_generation(tmp_path: Path) -> None:
    recording = from_text(
        tmp_path,
        "time,Hostname,gpu,DCGM_FI_DEV_GPU_UTIL,DCGM_FI_DEV_FB_USED,DCGM_FI_DEV_FB_FREE_BYTES,"
        "DCGM_FI_DEV_SM_CLOCK,DCGM_FI_PROF_SM_UTIL_RATIO\n"
        f"{START_S},n1,0,57,100,1024,1410,0.5\n{START_S + 30},n1,0,58,100,1024,1410,0.5\n",
    )
    assert first(recording, "gpu_util_ratio") == [0.57, 0.58]
    assert first(recording, "memory_used_bytes") == [100 * MIB] * 2
    assert first(recording, "memory_free_bytes") == [1024.0] * 2
    assert first(recording, "memory_total_bytes") == [100 * MIB + 1024] * 2
    assert first(recording, "sm_clock_hz") == [1.41e9] * 2
    assert first(recording, "sm_active_ratio") == [0.5] * 2
    assert recording.period_s == 30.0


def test_long_form_is_read_and_the_scrape_is_not_taken_for_a_job(tmp_path: Path) -> None:
    rows = "".join(
        f"{START_S * 1000 + 15_000 * at},n1,0,GPU-a,{metric},{value},dcgm-exporter\n"
        for at in range(4)
        for metric, value in (
            ("DCGM_FI_DEV_GPU_UTIL", 50 + at),
            ("DCGM_FI_DEV_POWER_USAGE", 300.5),
            ("go_gc", 1),
        )
    )
    recording = from_text(tmp_path, "timestamp,Hostname,gpu,UUID,__name__,value,job\n" + rows)
    assert recording.period_s == 15.0
    assert first(recording, "gpu_util_ratio") == [0.5, 0.51, 0.52, 0.53]
    assert first(recording, "power_w") == [300.5] * 4
    assert recording.jobs == ("",)
    assert (recording.job == -1).all()
    assert any("go_gc" in note for note in recording.notes)
    assert any("names the scrape" in note for note in recording.notes)


def test_long_form_rows_may_come_in_any_order_and_for_many_gpus(tmp_path: Path) -> None:
    rows = [
        (START_NS + at * 10**9, f"GPU-{gpu}", metric, 100.0 * gpu + at + add)
        for at in range(5)
        for gpu in range(3)
        for metric, add in (("power_w", 0.0), ("temperature_c", 0.5))
    ]
    np.random.default_rng(0).shuffle(rows)  # type: ignore[arg-type]
    names = ("time_ns", "gpu_uuid", "metric", "value")
    columns = {
        "time_ns": [int(row[0]) for row in rows],
        **{name: [row[at] for row in rows] for at, name in enumerate(names) if at in (1, 2)},
        "value": [float(row[3]) for row in rows],
    }
    recording = from_table(tmp_path, columns)
    for gpu in range(3):
        assert list(recording.columns["power_w"][:, gpu]) == [100.0 * gpu + at for at in range(5)]
        assert list(recording.columns["temperature_c"][:, gpu]) == [100.0 * gpu + at + 0.5 for at in range(5)]


def test_columns_that_are_not_understood_are_named_with_the_nearest_field(tmp_path: Path) -> None:
    recording = from_text(tmp_path, f"time,gpu,power_w,sm_actve_ratio,fan\n{START_S},0,1,2,3\n")
    assert list(recording.columns) == ["power_w"]
    assert (
        "column 'sm_actve_ratio' is no known field: not used (did you mean sm_active_ratio?)"
        in recording.notes
    )
    assert "column 'fan' is no known field: not used" in recording.notes


def test_a_missing_column_is_absent_and_an_empty_cell_unknown(tmp_path: Path) -> None:
    recording = from_text(
        tmp_path,
        f"time,gpu,power_w,temperature_c\n{START_S},0,,40\n{START_S + 1},0,0,N/A\n{START_S + 2},0,7,-\n",
    )
    assert list(recording.columns) == ["power_w", "temperature_c"]
    assert math.isnan(first(recording, "power_w")[0])
    assert first(recording, "power_w")[1:] == [0.0, 7.0]
    assert first(recording, "temperature_c")[0] == 40.0
    assert np.isnan(first(recording, "temperature_c")[1:]).all()


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        ("DCGM_FI_DEV_GPU_TEMP", "2147483632"),
        ("DCGM_FI_DEV_GPU_UTIL", "9223372036854775794"),
        ("DCGM_FI_DEV_POWER_USAGE", "140737488355328.0"),
        ("power_w", "inf"),
        ("power_w", "-1"),
        ("power_w", "ERR!"),
        ("power_w", "<<<NULL>>>"),
    ],
)
def test_a_cell_that_means_no_value_is_unknown(tmp_path: Path, column: str, cell: str) -> None:
    recording = from_text(tmp_path, f"time,gpu,{column}\n{START_S},0,{cell}\n{START_S + 1},0,5\n")
    field = next(iter(recording.columns))
    values = first(recording, field)
    # A row in which nothing is known is no sample.
    assert len(values) == 1
    assert values[0] in (5.0, 0.05)


def test_the_u8_sentinel_of_our_own_files_is_unknown(tmp_path: Path) -> None:
    recording = from_table(
        tmp_path,
        {
            "time_ns": [START_NS, START_NS + 10**9],
            "gpu": ["0", "0"],
            "last_xid": pa.array([2**64 - 1, 79], pa.uint64()),
            "power_w": [1.0, 1.0],
        },
    )
    assert math.isnan(first(recording, "last_xid")[0])
    assert first(recording, "last_xid")[1] == 79.0


# Units that contradict their name


def test_percent_under_a_ratios_name_is_converted_and_said(tmp_path: Path) -> None:
    recording = from_text(
        tmp_path, f"time,gpu,sm_active_ratio\n{START_S},0,98\n{START_S + 1},0,0\n{START_S + 2},0,97.5\n"
    )
    assert first(recording, "sm_active_ratio") == [0.98, 0.0, 0.975]
    assert any("holds percent" in note for note in recording.notes)


def test_a_ratio_beyond_percent_is_an_error_that_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"gpu_util_ratio.*ratio from 0 to 1.*up to 980.*Columns found"):
        from_text(tmp_path, f"time,gpu,gpu_util_ratio\n{START_S},0,980\n{START_S + 1},0,0.5\n")


@pytest.mark.parametrize(
    ("name", "cells", "field", "expected"),
    [
        ("gpu_util", (98.0, 0.0), "gpu_util_ratio", (0.98, 0.0)),
        ("gpu_util", (0.98, 0.0), "gpu_util_ratio", (0.98, 0.0)),
        ("gpu_util", (0.0, 0.0), "gpu_util_ratio", (0.0, 0.0)),
        ("gpu_util", (1.0, 0.0), "gpu_util_ratio", None),
        ("memory_used", (40_000.0, 0.0), "memory_used_bytes", (40_000 * MIB, 0.0)),
        ("memory_used", (40e9, 0.0), "memory_used_bytes", (40e9, 0.0)),
        ("memory_used", (40.5, 0.0), "memory_used_bytes", (40.5 * 1024 * MIB, 0.0)),
        ("power", (650.0, 70.0), "power_w", (650.0, 70.0)),
        ("power", (650_000.0, 70_000.0), "power_w", (650.0, 70.0)),
        ("sm_clock", (1980.0, 345.0), "sm_clock_hz", (1.98e9, 3.45e8)),
        ("energy", (1e6, 2e6), "energy_j", None),
    ],
)
def test_without_a_unit_the_values_decide_or_the_column_is_left_out(
    tmp_path: Path, name: str, cells: tuple[float, ...], field: str, expected: tuple[float, ...] | None
) -> None:
    rows = "".join(f"{START_S + at},0,{cell},5\n" for at, cell in enumerate(cells))
    recording = from_text(tmp_path, f"time,gpu,{name},temperature_c\n{rows}")
    if expected is None:
        assert field not in recording.columns
        assert any(name in note and "left out" in note for note in recording.notes)
    else:
        assert first(recording, field) == pytest.approx(list(expected))


def test_cells_in_two_units_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"one unit, came mw, w"):
        from_text(tmp_path, f"time,gpu,power.draw\n{START_S},0,5 W\n{START_S + 1},0,5000 mW\n")


# Time


TIMES = [START_NS + at * 1_500_000_000 for at in range(3)]
MOMENTS = [datetime(2025, 10, 9, 8, 53, 20, tzinfo=UTC) + timedelta(seconds=1.5 * at) for at in range(3)]
BERLIN = timezone(timedelta(hours=2))


@pytest.mark.parametrize(
    "column",
    [
        {"time_ns": TIMES},
        {"time": TIMES},
        {"ts": [at // 1_000 for at in TIMES]},
        {"timestamp": [at // 1_000_000 for at in TIMES]},
        {"timestamp": [at / 1e9 for at in TIMES]},
        {"datetime": [moment.isoformat() for moment in MOMENTS]},
        {"datetime": [moment.astimezone(BERLIN).isoformat() for moment in MOMENTS]},
        {"datetime": [f"{moment:%Y-%m-%d %H:%M:%S.%f}" for moment in MOMENTS]},
        {"datetime": [f"{moment:%Y/%m/%d %H:%M:%S.%f}" for moment in MOMENTS]},
        {"datetime": [str(at / 1e9) for at in TIMES]},
        {"Time": pa.array([moment.replace(tzinfo=None) for moment in MOMENTS], pa.timestamp("ms"))},
        {"Time": pa.array(MOMENTS, pa.timestamp("us", tz="Europe/Berlin"))},
    ],
    ids=lambda column: f"{next(iter(column))} as {next(iter(column.values()))[0]}",
)
def test_times_are_read_in_every_form(tmp_path: Path, column: dict[str, Any]) -> None:
    recording = from_table(tmp_path, {**column, "gpu": [0, 0, 0], "power_w": [1.0, 2.0, 3.0]})
    assert recording.period_s == pytest.approx(1.5, abs=1e-6)
    assert recording.start_ns == pytest.approx(START_NS, abs=1_000)
    assert first(recording, "power_w") == [1.0, 2.0, 3.0]


def test_rows_without_a_time_are_left_out_and_counted(tmp_path: Path) -> None:
    recording = from_text(tmp_path, f"time,gpu,power_w\n{START_S},0,1\n,0,2\n{START_S + 1},0,3\n")
    assert first(recording, "power_w") == [1.0, 3.0]
    assert any("1 rows without a time" in note for note in recording.notes)


# GPUs, nodes, jobs


def test_a_recording_of_one_gpu_needs_no_gpu_column(tmp_path: Path) -> None:
    recording = from_text(tmp_path, f"time,node,power_w\n{START_S},a,1\n{START_S},b,2\n{START_S + 1},a,3\n")
    assert [(ref.node, ref.gpu) for ref in recording.gpus] == [("a", "0"), ("b", "0")]
    assert any("one GPU per node" in note for note in recording.notes)


def test_several_gpus_without_a_gpu_column_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"names the GPU.*Columns found: time, power_w"):
        from_text(tmp_path, "time,power_w\n" + f"{START_S},1\n{START_S},2\n{START_S},3\n")


def test_the_same_index_on_two_nodes_is_two_gpus(tmp_path: Path) -> None:
    recording = from_text(
        tmp_path, f"time,hostname,device,power_w\n{START_S},a,nvidia3,1\n{START_S},b,nvidia3,2\n"
    )
    assert [(ref.node, ref.gpu, ref.index) for ref in recording.gpus] == [
        ("a", "nvidia3", 3),
        ("b", "nvidia3", 3),
    ]


def test_mig_instances_are_kept_apart(tmp_path: Path) -> None:
    recording = from_text(
        tmp_path,
        f"time,UUID,GPU_I_ID,DCGM_FI_PROF_GR_ENGINE_ACTIVE\n{START_S},GPU-a,1,0.1\n{START_S},GPU-a,2,0.2\n"
        f"{START_S},GPU-b,,0.3\n",
    )
    assert [ref.gpu for ref in recording.gpus] == ["GPU-a/GI1", "GPU-a/GI2", "GPU-b"]


def test_a_column_that_counts_rows_is_not_the_gpu(tmp_path: Path) -> None:
    rows = 3_000
    recording = from_table(
        tmp_path,
        {
            "index": list(range(rows)),
            "gpu_uuid": ["GPU-a"] * rows,
            "time": [START_S + at for at in range(rows)],
            "power_w": [1.0] * rows,
        },
    )
    assert [(ref.gpu, ref.index) for ref in recording.gpus] == [("GPU-a", None)]


def test_a_job_column_says_who_holds_the_gpu_and_empty_means_nobody(tmp_path: Path) -> None:
    recording = from_table(
        tmp_path,
        {
            "time": [START_S, START_S + 1, START_S + 2],
            "gpu": [0] * 3,
            "job_id": [77.0, None, 78.0],
            "power_w": [1.0] * 3,
        },
    )
    assert recording.jobs == ("", "77", "78")
    assert recording.job[:, 0].tolist() == [1, 0, 2]


def test_without_a_job_column_nobody_says_who_holds_the_gpu(tmp_path: Path) -> None:
    recording = from_text(tmp_path, f"time,gpu,power_w\n{START_S},0,1\n")
    assert (recording.jobs, recording.job.tolist()) == (("",), [[-1]])


def test_a_pod_is_named_with_its_namespace(tmp_path: Path) -> None:
    recording = from_text(
        tmp_path,
        f"time,gpu,namespace,pod,power_w\n{START_S},0,ml,train,1\n{START_S},1,,,1\n{START_S},2,x,train,1\n",
    )
    assert recording.jobs == ("", "ml/train", "x/train") or set(recording.jobs) == {"", "ml/train", "x/train"}
    assert [recording.jobs[at] for at in recording.job[0]] == ["ml/train", "", "x/train"]


def test_a_recording_that_says_it_is_simulated_stays_so(tmp_path: Path) -> None:
    real = from_text(tmp_path, f"time,gpu,power_w,simulated\n{START_S},0,1,false\n")
    fake = from_text(tmp_path, f"time,gpu,power_w,simulated\n{START_S},0,1,true\n")
    assert (real.simulated, fake.simulated) == (False, True)


# Files


@pytest.mark.parametrize("between", [",", ";", "\t", "|"])
def test_any_separator_and_a_preamble_are_read(tmp_path: Path, between: str) -> None:
    text = f"\n# recorded by hand\ntime,gpu,power_w\n{START_S},0,5\n".replace(",", between)
    assert first(from_text(tmp_path, text, "log.txt"), "power_w") == [5.0]


def test_gzip_is_told_by_content_and_a_cut_one_is_an_error(tmp_path: Path) -> None:
    packed = gzip.compress(f"time,gpu,power_w\n{START_S},0,5\n".encode())
    (tmp_path / "a.csv").write_bytes(packed)
    assert first(load([tmp_path / "a.csv"]), "power_w") == [5.0]
    (tmp_path / "b.csv.gz").write_bytes(packed[:-9])
    with pytest.raises(RecordingError, match="whole gzip file"):
        load([tmp_path / "b.csv.gz"])


def test_a_late_text_in_a_column_of_numbers_is_unknown_not_an_error(tmp_path: Path) -> None:
    rows = "".join(f"{START_S + at},0,{100 + at % 7}\n" for at in range(150_000))
    recording = from_text(
        tmp_path, "time,gpu,power_w\n" + rows + f"{START_S + 150_000},0,[N/A]\n{START_S + 150_001},0,9\n"
    )
    assert recording.instants == 150_002
    assert not recording.sampled[150_000, 0]
    assert recording.columns["power_w"][150_001, 0] == 9.0


def test_several_files_and_formats_are_one_recording(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        f"time,node,gpu,power_w,job\n{START_S},n1,0,5,x\n{START_S + 1},n1,0,6,x\n"
    )
    pq.write_table(
        pa.table(
            {
                "time": [START_S + 2, START_S + 2],
                "node": ["n1", "n2"],
                "gpu": [0, 0],
                "temperature_c": [40, 41],
            }
        ),
        tmp_path / "b.parquet",
    )
    recording = load([tmp_path])
    assert [ref.node for ref in recording.gpus] == ["n1", "n2"]
    assert first(recording, "power_w")[:2] == [5.0, 6.0]
    assert recording.columns["temperature_c"][2].tolist() == [40.0, 41.0]
    assert recording.job[:, 0].tolist() == [1, 1, -1]


def test_folders_named_key_equals_value_are_columns(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "node=n9"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"time": [START_S], "gpu": [0], "power_w": [1.0]}), folder / "part-0.parquet")
    assert load([tmp_path / "data"]).gpus[0].node == "n9"


def test_what_is_no_telemetry_in_a_folder_is_left_out_and_said(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"time,gpu,power_w\n{START_S},0,5\n")
    (tmp_path / "README").write_text("hello")
    recording = load([tmp_path])
    assert any("README" in note and "left out" in note for note in recording.notes)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "empty file"),
        (b"  \n \n", "empty file"),
        (b"\x00\x01\x02\x03", "another format"),
        (b"PAR1 and then nothing", "whole Parquet file"),
        (b"hello\nworld\n", "header line"),
        (b"time,gpu,power_w\n", "without rows"),
        (b"when,gpu,power_w\n1,0,5\n", r"column with the time.*Columns found: when, gpu, power_w"),
        (b"time,gpu,powr_w\n1,0,5\n", r"known field.*did you mean power_w.*Columns found"),
        (b"time,gpu,power_w\nsoon,0,5\n", r"expected times.*'soon'"),
        (b"time,gpu,power_w\n1,0,\n", "at least one known value"),
    ],
)
def test_a_file_that_cannot_be_read_says_what_was_expected(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    path = tmp_path / "file.csv"
    path.write_bytes(content)
    with pytest.raises(RecordingError, match=expected):
        load([path])


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"nothing\.csv: expected a file or a folder, there is none"):
        load([tmp_path / "nothing.csv"])
    with pytest.raises(RecordingError, match="came none"):
        load([tmp_path])


def test_a_table_of_every_gpu_field_comes_through(tmp_path: Path) -> None:
    columns: dict[str, Any] = {"time": [START_S, START_S + 1], "gpu": [0, 0]}
    columns |= {spec.name: [0.25, 0.5] if spec.unit == "1" else [2.0, 3.0] for spec in GPU_FIELDS}
    recording = from_table(tmp_path, columns)
    assert set(recording.columns) == {spec.name for spec in GPU_FIELDS}
    for spec in GPU_FIELDS:
        assert not math.isnan(first(recording, spec.name)[1]), spec.name
