"""Recordings of other people's tools through `unidle diagnose`: the right answer, or why there is none."""

from __future__ import annotations

import bz2
import json
import lzma
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.collector import foreign_recordings as foreign

from unidle_agent.cli import main
from unidle_collector.recorded import RecordingError, jsons, load, terminals
from unidle_collector.recorded.columns import meaning
from unidle_collector.recorded.names import FIELD_IDS
from unidle_collector.replay import GpuResult, Result, replay

START_S = foreign.START_S

ANSWERS: dict[str, str] = {
    "idle_held": "idle.held",
    "offload": "starved.host_to_device",
    "speculative": "starved.small_kernels",
    "small_dp": "productive",
    "tensor_parallel": "starved.communication",
    "compute": "productive",
}
SEES_NO_SM = {"speculative": "productive", "tensor_parallel": "productive", "offload": "starved"}
"""Where only utilization is known, what looks busy is not called starved, and no cause is made up."""


def diagnosed(folder: Path, run: foreign.Run, name: str = "dcgm_wide") -> Result:
    return replay(load(foreign.FORMATS[name](run, folder)))


def mostly(gpu: GpuResult) -> str:
    """What most of a GPU's time was booked as: `state.cause`, or the state where it has no cause."""
    booked = {
        **{state: s for state, s in gpu.states.items() if state in ("productive", "unknown", "unallocated")},
        **gpu.causes,
    }
    return max(booked, key=booked.__getitem__)


def check(result: Result, workload: str, name: str = "") -> None:
    assert len(result.gpus) == 8, [(gpu.node, gpu.gpu) for gpu in result.gpus]
    answers = [mostly(gpu) for gpu in result.gpus]
    if workload == "half_node":
        assert {answer.partition(".")[0] for answer in answers[:4]} <= {"starved", "idle"}
        assert set(answers[4:]) == {"productive"}
        return
    expected = ANSWERS[workload]
    if name in foreign.UTIL_ONLY:
        expected = SEES_NO_SM.get(workload, expected)
    assert all(answer.startswith(expected) for answer in answers), answers
    if expected == "productive":
        assert result.findings == []
    else:
        assert len(result.findings) == 1
        assert len(result.findings[0].gpus) == 8


@pytest.mark.parametrize("name", foreign.FORMATS)
def test_every_format_tells_that_half_of_a_node_does_little(tmp_path: Path, name: str) -> None:
    run = foreign.seen(foreign.run("half_node", 180), 1.0)
    check(diagnosed(tmp_path, run, name), "half_node", name)


@pytest.mark.slow
@pytest.mark.parametrize("name", foreign.FORMATS)
@pytest.mark.parametrize("workload", ANSWERS)
def test_the_answer_does_not_depend_on_the_format(tmp_path: Path, name: str, workload: str) -> None:
    check(diagnosed(tmp_path, foreign.seen(foreign.run(workload, 240), 1.0), name), workload, name)


@pytest.mark.parametrize(("each_s", "mean"), [(0.1, False), (1, True), (15, False), (60, False), (60, True)])
@pytest.mark.parametrize("workload", [*ANSWERS, "half_node"])
def test_five_minutes_tell_at_every_rate_from_10_hz_to_means_of_a_minute(
    tmp_path: Path, workload: str, each_s: float, mean: bool
) -> None:
    run = foreign.seen(foreign.run(workload, 300), each_s, mean)
    check(diagnosed(tmp_path, run), workload)


def test_collectives_are_told_without_the_nvlink_column_as_cannot_tell_not_as_another_cause(
    tmp_path: Path,
) -> None:
    run = foreign.without(foreign.seen(foreign.run("tensor_parallel", 240), 1.0), "nvtx", "nvrx")
    result = diagnosed(tmp_path, run)
    assert {mostly(gpu) for gpu in result.gpus} == {"starved.undetermined"}


# What makes the difference between formats


def only(folder: Path, text: str, name: str = "run.csv", **options: Any) -> dict[str, list[float]]:
    """Field -> values of the only GPU."""
    (folder / name).write_text(text)
    recording = load([folder / name], **options)
    assert len(recording.gpus) == 1
    return {field: column[:, 0].tolist() for field, column in recording.columns.items()}


def test_every_field_id_has_the_unit_of_its_name() -> None:
    for number, name in FIELD_IDS.items():
        by_id, by_name = meaning(str(number)), meaning(f"DCGM_FI_{name}")
        assert by_id is not None
        assert by_name is not None
        assert (by_id.field, by_id.factor) == (by_name.field, by_name.factor)


def test_sm_alone_is_gpu_utilization_and_beside_other_counters_sm_activity(tmp_path: Path) -> None:
    rows = "time,gpu,sm\n1760000000,0,97\n1760000001,0,98\n"
    assert only(tmp_path, rows)["gpu_util_ratio"] == [0.97, 0.98]
    rows = "time,gpu,sm,tensor\n1760000000,0,47,12\n1760000001,0,48,11\n"
    assert only(tmp_path, rows)["sm_active_ratio"] == [0.47, 0.48]


def test_what_nvidia_smi_dmon_calls_sm_is_gpu_utilization(tmp_path: Path) -> None:
    run = foreign.seen(foreign.run("tensor_parallel", 20), 1.0)
    columns = load(foreign.smi_dmon(run, tmp_path)).columns
    assert np.nanmean(columns["gpu_util_ratio"]) == pytest.approx(0.97, abs=0.01)
    assert "sm_active_ratio" not in columns
    assert np.nanmean(columns["pcie_rx_bytes_per_s"]) == pytest.approx(1.8e9, rel=0.05)


def test_samples_within_a_second_whose_times_are_whole_seconds_are_averaged_not_dropped(
    tmp_path: Path,
) -> None:
    rows = [f"{START_S + at // 10},0,{100 if at % 10 < 3 else 0}" for at in range(30)]
    read = only(tmp_path, "time,gpu,gpu_util_pct\n" + "\n".join(rows) + "\n")
    assert read["gpu_util_ratio"] == pytest.approx([0.3, 0.3, 0.3])


def test_dmon_lines_may_begin_with_a_time_of_another_tool(tmp_path: Path) -> None:
    text = (
        "2026-10-09 08:00:00 #Entity   GPUTL   SMACT\n"
        "2026-10-09 08:00:00 ID\n"
        "2026-10-09 08:00:00 GPU 0     98      0.481\n"
        "2026-10-09 08:00:01 GPU 0     N/A     0.482\n"
    )
    read = only(tmp_path, text, "dcgmi.txt")
    assert read["sm_active_ratio"] == [0.481, 0.482]
    assert read["gpu_util_ratio"][0] == 0.98
    assert np.isnan(read["gpu_util_ratio"][1])


def test_dmon_without_times_is_spaced_as_told(tmp_path: Path) -> None:
    lines = "".join(f"GPU 0 {at} 0.5\n" for at in range(4))
    (tmp_path / "dcgmi.txt").write_text("#Entity GPUTL SMACT\nID\n" + lines)
    assert load([tmp_path / "dcgmi.txt"]).period_s == 1.0
    assert load([tmp_path / "dcgmi.txt"], period_s=30.0).period_s == 30.0
    note = load([tmp_path / "dcgmi.txt"]).notes[0]
    assert "no line says a time" in note
    assert "--period" in note


def test_a_share_of_memory_says_that_a_gpu_is_held_though_its_size_is_not_known(tmp_path: Path) -> None:
    run = foreign.without(foreign.seen(foreign.run("idle_held", 240), 1.0), "used")
    path = foreign.dcgm_wide(run, tmp_path)[0]
    lines = path.read_text().splitlines()
    shares = [lines[0] + ",mem_used_percent", *(line + ",20.0" for line in lines[1:])]
    path.write_text("\n".join(shares) + "\n")
    recording = load([path])
    assert {mostly(gpu) for gpu in replay(recording).gpus} == {"idle.held"}
    assert any("share of a size that nothing says" in note for note in recording.notes)


def test_a_share_of_memory_is_bytes_of_the_size_beside_it(tmp_path: Path) -> None:
    text = "time,gpu,DCGM_FI_DEV_FB_USED_PERCENT,memory_total_bytes\n1760000000,0,0.25,1000\n"
    assert only(tmp_path, text)["memory_used_bytes"] == [250.0]


def test_files_of_several_nodes_that_name_none_are_told_apart(tmp_path: Path) -> None:
    for node, util in (("trn-1", 5), ("trn-2", 95)):
        rows = [f"{START_S + at},0,{util}" for at in range(5)]
        (tmp_path / f"{node}.csv").write_text("time,gpu,gpu_util_pct\n" + "\n".join(rows) + "\n")
    recording = load([tmp_path])
    assert [ref.node for ref in recording.gpus] == ["trn-1", "trn-2"]
    assert recording.columns["gpu_util_ratio"].tolist()[0] == [0.05, 0.95]


def test_files_of_one_node_one_after_the_other_stay_one_node(tmp_path: Path) -> None:
    for part in (0, 1):
        rows = [f"{START_S + 5 * part + at},0,50" for at in range(5)]
        (tmp_path / f"part{part}.csv").write_text("time,gpu,gpu_util_pct\n" + "\n".join(rows) + "\n")
    recording = load([tmp_path])
    assert len(recording.gpus) == 1
    assert recording.instants == 10


def test_a_gpu_named_after_its_host_is_of_that_node_and_cuda_is_no_host(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("time,gpu,gpu_util_pct\n1760000000,n1:3,50\n1760000000,n2:3,60\n")
    assert [(ref.node, ref.index) for ref in load([tmp_path / "a.csv"]).gpus] == [("n1", 3), ("n2", 3)]
    (tmp_path / "b.csv").write_text("time,gpu,gpu_util_pct\n1760000000,cuda:0,50\n1760000000,cuda:1,60\n")
    assert [(ref.node, ref.index) for ref in load([tmp_path / "b.csv"]).gpus] == [("node", 0), ("node", 1)]


@pytest.mark.parametrize(
    "text",
    [
        "time,gpu,gpu_util_pct\n1760000000,0,50\ntime,gpu,gpu_util_pct\n1760000001,0,51\n",
        "time;gpu;gpu_util_pct\r\n1760000000;0;50,0\r\n1760000001;0;51,0\r\n",
        "time,gpu,gpu_util_pct\n08:53:20,0,50\n08:53:21,0,51\n",
        "time gpu gpu_util_pct\n1760000000 0 50\n1760000001 0 51\n",
        (
            "#datatype,string,long,dateTime:RFC3339,double,string,string\n#default,_result,,,,,\n"
            ",result,table,_time,_value,_field,index\n"
            ",,0,2026-10-09T08:53:20Z,50,utilization_gpu,0\n,,0,2026-10-09T08:53:21Z,51,utilization_gpu,0\n"
        ),
    ],
    ids=["header again", "decimal comma", "times of the day", "blanks", "InfluxDB's annotated CSV"],
)
def test_other_habits_of_tables_in_text_are_read(tmp_path: Path, text: str) -> None:
    assert only(tmp_path, text)["gpu_util_ratio"] == [0.50, 0.51]


def test_times_that_count_from_0_lose_no_time_and_no_year_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{at * 100},0,0,120,16000" for at in range(2400)]
    text = "elapsed_ms,gpu,gpu_util_pct,power_w,memory_used_mib\n" + "\n".join(rows) + "\n"
    (tmp_path / "run.csv").write_text(text)
    (gpu,) = document(capsys, [tmp_path / "run.csv"])["gpus"]
    assert gpu["states"]["idle"] == 240
    assert main(["diagnose", str(tmp_path / "run.csv")]) == 0
    assert "1 GPU on 1 node over 4 min, sampled every" in " ".join(capsys.readouterr().out.split())


def test_an_arrow_file_is_read(tmp_path: Path) -> None:
    frame = pd.DataFrame({"time": [START_S, START_S + 1], "gpu": [0, 0], "gpu_util_pct": [50.0, None]})
    frame.to_feather(tmp_path / "run.feather")
    column = load([tmp_path / "run.feather"]).columns["gpu_util_ratio"][:, 0]
    assert column[0] == 0.5


def test_utilization_scaled_to_0_to_1_is_not_taken_for_an_idle_fleet(tmp_path: Path) -> None:
    text = "time,gpu,DCGM_FI_DEV_GPU_UTIL\n1760000000,0,0.98\n1760000001,0,0\n"
    assert only(tmp_path, text)["gpu_util_ratio"] == [0.98, 0.0]
    assert "holds ratios 0-1" in load([tmp_path / "run.csv"]).notes[0]
    text = "time,gpu,DCGM_FI_DEV_GPU_UTIL\n1760000000,0,0.08\n1760000001,0,0\n"
    assert only(tmp_path, text)["gpu_util_ratio"] == [0.0008, 0.0]
    text = "time,gpu,DCGM_FI_DEV_GPU_UTIL\n1760000000,0,1\n1760000001,0,0\n"
    assert only(tmp_path, text)["gpu_util_ratio"] == [0.01, 0.0]


@pytest.mark.parametrize("pack", [bz2.compress, lzma.compress])
def test_other_packings_than_gzip_are_unpacked_whatever_the_name(tmp_path: Path, pack: Any) -> None:
    (tmp_path / "run.bin").write_bytes(pack(b"time,gpu,gpu_util_pct\n1760000000,0,50\n"))
    assert load([tmp_path / "run.bin"]).columns["gpu_util_ratio"].tolist() == [[0.5]]
    (tmp_path / "torn.bin").write_bytes(pack(b"time,gpu,gpu_util_pct\n" * 100)[:40])
    with pytest.raises(RecordingError, match="expected a whole"):
        load([tmp_path / "torn.bin"])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("gpu0_util_pct gpu1_util_pct", [0, 1]),
        ("util_pct_gpu0 util_pct_gpu1", [0, 1]),
        ("GPU_3_utilization_[%] GPU_4_utilization_[%]", [3, 4]),
        ("gpu_util[2] gpu_util[5]", [2, 5]),
        ("0/utilization.gpu 1/utilization.gpu", [0, 1]),
        ("cuda:0/gpu_util cuda:1/gpu_util", [0, 1]),
    ],
)
def test_a_column_per_gpu_is_read_however_it_names_the_gpu(
    tmp_path: Path, names: str, expected: list[int]
) -> None:
    first, second = (name.replace("_[", " [") for name in names.split())
    (tmp_path / "run.csv").write_text(f"time;{first};{second}\n{START_S};10;20\n{START_S + 1};11;21\n")
    recording = load([tmp_path / "run.csv"])
    assert [ref.index for ref in recording.gpus] == expected
    assert recording.columns["gpu_util_ratio"].tolist() == [[0.10, 0.20], [0.11, 0.21]]


def test_a_number_in_the_name_of_one_quantity_is_no_gpu(tmp_path: Path) -> None:
    read = only(tmp_path, "time,gpu_util_pct,load_1\n1760000000,50,3\n")
    assert read["gpu_util_ratio"] == [0.5]


def test_an_export_of_victoriametrics_and_a_torn_last_line_are_read(tmp_path: Path) -> None:
    line = {
        "metric": {"__name__": "DCGM_FI_DEV_GPU_UTIL", "gpu": "0", "Hostname": "n1"},
        "values": [50, 51, 52],
        "timestamps": [START_S * 1000, START_S * 1000 + 1000, START_S * 1000 + 2000],
    }
    read = only(tmp_path, json.dumps(line) + '\n{"metric":{"__na', "export.jsonl")
    assert read["gpu_util_ratio"] == [0.50, 0.51, 0.52]


def test_a_series_without_a_name_has_that_of_its_file(tmp_path: Path) -> None:
    answer = {
        "status": "success",
        "data": {
            "resultType": "matrix",
            "result": [{"metric": {"gpu": "0"}, "values": [[START_S, "0.5"], [START_S + 1, "0.25"]]}],
        },
    }
    read = only(tmp_path, json.dumps(answer), "DCGM_FI_PROF_SM_ACTIVE.json")
    assert read["sm_active_ratio"] == [0.5, 0.25]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.csv", "2026/10/09 08:00:00.000, 0, 98 %\n2026/10/09 08:00:01.000, 0, 98 %\n", "without noheader"),
        ("a.json", '{"dashboard": {"title": "GPUs"}}', "expected"),
        ("a.json", '[1, 2, "x"]', "expected JSON with records"),
        ("a.json", '{"gpus": [', "expected whole JSON"),
        ("a.txt", "#Entity GPUTL SMACT\nID\n", "expected lines of samples"),
        ("a.bin", "PK\x03\x04\x00\x00", "expected Parquet, Arrow, CSV, JSON"),
    ],
)
def test_what_is_not_understood_says_what_was_expected_and_exits_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, expected: str
) -> None:
    (tmp_path / name).write_text(text)
    assert main(["diagnose", str(tmp_path / name), "--json"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert expected in printed.err
    assert str(tmp_path / name) in printed.err


TEXTS = st.sampled_from(
    [
        "time",
        "gpu",
        "gpus",
        "DCGM_FI_DEV_GPU_UTIL",
        "metric",
        "values",
        "data",
        "result",
        "processes",
        "columns",
    ]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.text(max_size=5)
JSONS = st.recursive(
    SCALARS,
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(TEXTS, inside, max_size=5),
    max_leaves=20,
)


@settings(max_examples=200)
@given(st.lists(JSONS, min_size=1, max_size=3))
def test_any_json_is_a_recording_or_an_error_that_names_the_file(documents: list[Any]) -> None:
    text = "\n".join(json.dumps(each) for each in documents)
    try:
        rows = jsons.read(text.encode(), "odd.json", "")
    except RecordingError as error:
        said = str(error)
    else:
        assert rows.values
        return
    assert "odd.json" in said


@settings(max_examples=200)
@given(st.text(alphabet="#gpu Entity sm GPUTL Date Time 0123:-./N\n", max_size=120))
def test_any_lines_below_a_header_of_dmon_are_samples_or_an_error_that_names_the_file(below: str) -> None:
    try:
        rows = terminals.read("# gpu sm\n# Idx %\n" + below, "odd.log", "", 10**18, None)
    except RecordingError as error:
        said = str(error)
    else:
        assert len(rows.time_ns) <= below.count("\n") + 1
        return
    assert "odd.log" in said


# What a script finds in the document


def document(capsys: pytest.CaptureFixture[str], paths: list[Path]) -> dict[str, Any]:
    assert main(["diagnose", *map(str, paths), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_time_line_of_a_gpu_adds_up_to_its_states_without_holes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = foreign.run("tensor_parallel", 180), foreign.run("idle_held", 240)
    columns = {name: np.concatenate([first.columns[name], second.columns[name]]) for name in foreign.NAMES}
    both = foreign.Run(np.arange(4200) / foreign.HZ, columns)
    found = document(capsys, foreign.dcgm_wide(foreign.seen(both, 1.0), tmp_path))
    for gpu in found["gpus"]:
        spans = gpu["timeline"]
        assert all(one["end_ns"] == other["begin_ns"] for one, other in pairwise(spans))
        by_state = dict.fromkeys(gpu["states"], 0.0)
        for span in spans:
            by_state[span["state"]] += (span["end_ns"] - span["begin_ns"]) / 1e9
        assert by_state == pytest.approx(gpu["states"])
    named = [(span["state"], span["cause"]) for span in found["gpus"][0]["timeline"]]
    assert named[0] == ("starved", "communication")
    assert named[-1] == ("idle", "held")
    idle = found["gpus"][0]["timeline"][-1]
    assert (idle["end_ns"] - idle["begin_ns"]) / 1e9 == pytest.approx(240, abs=2)
    assert idle["loss_ratio"] == 1.0


def test_what_a_ledger_has_forgotten_is_still_in_the_time_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It remembers 20 minutes to correct them; the recording lasts an hour at 15 s."""
    base = foreign.seen(foreign.run("idle_held", 300), 15.0)
    hour = foreign.Run(np.arange(240) * 15.0, {k: np.tile(v, (12, 1)) for k, v in base.columns.items()})
    found = document(capsys, foreign.dcgm_wide(hour, tmp_path))
    (span,) = found["gpus"][0]["timeline"]
    assert (span["state"], span["cause"]) == ("idle", "held")
    assert (span["end_ns"] - span["begin_ns"]) / 1e9 == 3600


def test_time_without_activity_is_told_apart_from_what_counts_as_idle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = document(capsys, foreign.dcgm_wide(foreign.seen(foreign.run("offload", 300), 1.0), tmp_path))
    gpu = found["gpus"][0]
    assert gpu["states"]["idle"] == 0
    assert 0.7 * 300 < gpu["inactive_held_s"] == gpu["inactive_s"] < 0.95 * 300


def test_the_fields_that_were_read_are_named_with_the_share_of_samples_that_have_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = foreign.seen(foreign.run("compute", 60), 1.0)
    fields = document(capsys, foreign.dcgm_ids_wide(run, tmp_path))["sampling"]["fields"]
    assert fields["power_w"] == 1.0
    assert 0.95 < fields["sm_active_ratio"] < 1.0
    assert "energy_j" not in fields


def test_a_few_samples_at_uneven_power_are_not_enough_to_call_a_gpu_idle(tmp_path: Path) -> None:
    """An offloading job that is looked at between its bursts only."""
    run = foreign.seen(foreign.run("idle_held", 300), 60.0)
    run.columns["power"][:] *= np.linspace(1.0, 1.1, run.time_s.size)[:, None]
    result = diagnosed(tmp_path, run)
    assert {mostly(gpu) for gpu in result.gpus} == {"productive"}
    assert any(each.startswith("Whether 8 GPUs") for each in result.cannot_tell)
