"""Saved exporter pages: cut into scrapes, set in time, and never lost for a title line."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from unidle_collector.recorded import RecordingError, load
from unidle_collector.recorded.pages import time_in_name

START_S = 1_760_000_000
START_NS = START_S * 10**9
REAL = Path(__file__).parents[2].parent / "shared" / "data" / "dcgm-pages"


def page(util: int, energy_mj: int = 0, host: str = "n1", pod: str | None = None, stamp: str = "") -> str:
    pods = "" if pod is None else f',container="c",namespace="ml",pod="{pod}"'
    labels = f'gpu="0",UUID="GPU-{host}",modelName="NVIDIA H100",Hostname="{host}"{pods}'
    return (
        "# HELP DCGM_FI_DEV_GPU_UTIL GPU utilization (in %).\n# TYPE DCGM_FI_DEV_GPU_UTIL gauge\n"
        f"DCGM_FI_DEV_GPU_UTIL{{{labels}}} {util}{stamp}\n"
        "# TYPE DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION counter\n"
        f"DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{{{labels}}} {energy_mj}{stamp}\n"
    )


def test_one_page_is_one_instant(tmp_path: Path) -> None:
    path = tmp_path / "metrics"
    path.write_text(page(57))
    os.utime(path, ns=(START_NS, START_NS))
    recording = load([path])
    assert (recording.instants, recording.start_ns) == (1, START_NS)
    assert recording.columns["gpu_util_ratio"].tolist() == [[0.57]]
    assert np.isnan(recording.columns["energy_j"]).all()
    assert [(ref.node, ref.gpu, ref.index, ref.model) for ref in recording.gpus] == [
        ("n1", "GPU-n1", 0, "NVIDIA H100")
    ]
    assert any("modification time" in note for note in recording.notes)


def test_a_folder_of_pages_named_by_time_is_one_recording(tmp_path: Path) -> None:
    for at in range(4):
        (tmp_path / f"scrape-{START_S + 30 * at}.prom").write_text(page(50 + at, 1000 * at))
    recording = load([tmp_path])
    assert (recording.period_s, recording.start_ns) == (30.0, START_NS)
    assert recording.columns["gpu_util_ratio"][:, 0].tolist() == [0.5, 0.51, 0.52, 0.53]
    assert recording.columns["energy_j"][1:, 0].tolist() == [1.0, 1.0, 1.0]
    assert recording.notes == ()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("metrics-1760000000.prom", START_NS),
        ("metrics_1760000000123.txt", START_NS + 123_000_000),
        ("2025-10-09T08:53:20Z.prom", START_NS),
        ("n1/dcgm_20251009-085320.prom", START_NS),
        ("2025-10-09_08-53.prom", START_NS - 20 * 10**9),
        ("1xA100_MIG_off_empty.prom", None),
        ("T4_driver460.prom", None),
    ],
)
def test_the_time_in_a_file_name_is_found(name: str, expected: int | None) -> None:
    assert time_in_name(name) == expected


def test_timestamps_of_samples_win_over_the_name(tmp_path: Path) -> None:
    text = "".join(page(50 + at, stamp=f" {(START_S + 15 * at) * 1000}") for at in range(3))
    (tmp_path / "scrape-1000000000.prom").write_text(text)
    recording = load([tmp_path / "scrape-1000000000.prom"])
    assert (recording.period_s, recording.start_ns, recording.instants) == (15.0, START_NS, 3)


def test_samples_with_timestamps_may_come_one_series_after_the_other(tmp_path: Path) -> None:
    labels = 'gpu="0",UUID="GPU-a",Hostname="n1"'
    lines = [
        f"{name}{{{labels}}} {value + at} {(START_S + 15 * at) * 1000}"
        for name, value in (("DCGM_FI_DEV_GPU_UTIL", 50), ("DCGM_FI_DEV_GPU_TEMP", 40))
        for at in range(3)
    ]
    (tmp_path / "dump.prom").write_text("\n".join(lines))
    recording = load([tmp_path / "dump.prom"])
    assert recording.columns["gpu_util_ratio"][:, 0].tolist() == [0.5, 0.51, 0.52]
    assert recording.columns["temperature_c"][:, 0].tolist() == [40.0, 41.0, 42.0]


@pytest.mark.parametrize(
    "lines",
    [
        ["1760000000", "1760000010"],
        ["# 2025-10-09T08:53:20Z", "# 2025-10-09T08:53:30Z"],
        ["=== 2025-10-09 08:53:20 ===", "=== 2025-10-09 08:53:30 ==="],
        ["Thu Oct  9 08:53:20 UTC 2025", "Thu Oct  9 08:53:30 UTC 2025"],
        ["Thu, 09 Oct 2025 10:53:20 +0200", "Thu, 09 Oct 2025 10:53:30 +0200"],
    ],
)
def test_time_lines_between_joined_pages_are_their_times(tmp_path: Path, lines: list[str]) -> None:
    (tmp_path / "log.txt").write_text(f"{lines[0]}\n{page(50)}{lines[1]}\n{page(60)}")
    recording = load([tmp_path / "log.txt"])
    assert (recording.period_s, recording.start_ns) == (10.0, START_NS)
    assert recording.columns["gpu_util_ratio"][:, 0].tolist() == [0.5, 0.6]
    assert recording.notes == ()


def test_joined_pages_without_times_need_a_period(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text(page(50) + page(60) + page(70))
    os.utime(path, ns=(START_NS, START_NS))
    alone = load([path])
    assert alone.columns["gpu_util_ratio"].tolist() == [[0.7]]
    assert any("--period" in note for note in alone.notes)
    spaced = load([path], period_s=15)
    assert spaced.columns["gpu_util_ratio"][:, 0].tolist() == [0.5, 0.6, 0.7]
    assert spaced.start_ns == START_NS - 30 * 10**9


def test_files_without_times_are_spaced_by_the_period_each_host_by_itself(tmp_path: Path) -> None:
    for at in range(3):
        for host in ("a", "b"):
            path = tmp_path / f"page{at}-{host}"
            path.write_text(page(50 + at, host=host))
            os.utime(path, ns=(START_NS, START_NS))
    assert any("same second" in note for note in load([tmp_path]).notes)
    recording = load([tmp_path], period_s=30)
    assert recording.instants == 3
    assert recording.columns["gpu_util_ratio"].tolist() == [[0.5, 0.5], [0.51, 0.51], [0.52, 0.52]]


def test_pages_of_two_hosts_joined_in_one_file_are_one_instant(tmp_path: Path) -> None:
    (tmp_path / "both.prom").write_text(page(50, host="a") + page(60, host="b"))
    recording = load([tmp_path / "both.prom"])
    assert [ref.node for ref in recording.gpus] == ["a", "b"]
    assert recording.columns["gpu_util_ratio"].tolist() == [[0.5, 0.6]]


def test_a_title_line_and_a_torn_line_lose_only_themselves(tmp_path: Path) -> None:
    (tmp_path / "page-1760000000.prom").write_text(
        "Active 1g.5gb\n\n" + page(50) + 'DCGM_FI_DEV_GPU_TEMP{gpu="0",UU'
    )
    recording = load([tmp_path / "page-1760000000.prom"])
    assert recording.columns["gpu_util_ratio"].tolist() == [[0.5]]
    assert any("2 lines are no samples" in note and "Active 1g.5gb" in note for note in recording.notes)


def test_a_node_that_ever_names_a_pod_is_silent_because_nobody_holds_the_gpu(tmp_path: Path) -> None:
    for at, (pod, other) in enumerate((("train", ""), ("", ""))):
        text = page(50, host="a", pod=pod) + page(50, host="b", pod=other)
        (tmp_path / f"{START_S + 30 * at}.prom").write_text(text)
    recording = load([tmp_path])
    assert recording.jobs == ("", "ml/train")
    assert recording.job.tolist() == [[1, -1], [0, -1]]


def test_the_node_of_a_page_without_host_can_be_given(tmp_path: Path) -> None:
    (tmp_path / "1760000000.prom").write_text('dcgm_gpu_temp{gpu="0",uuid="GPU-a"} 40\n')
    assert load([tmp_path]).gpus[0].node == "node"
    assert load([tmp_path], node="n7").gpus[0].node == "n7"


def test_a_page_without_a_gpu_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "page").write_text("# HELP go_goroutines x\n# TYPE go_goroutines gauge\ngo_goroutines 5\n")
    with pytest.raises(RecordingError, match="no GPU metric"):
        load([tmp_path / "page"])


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the saved exporter pages beside the repository")
def test_the_real_pages_are_one_recording_of_all_their_gpus() -> None:
    recording = load([REAL])
    assert len(recording.gpus) == 5
    assert len({(ref.node, ref.gpu) for ref in recording.gpus}) == 5
    power = {ref.gpu: recording.columns["power_w"][:, at] for at, ref in enumerate(recording.gpus)}
    known = {gpu: column[~np.isnan(column)].tolist() for gpu, column in power.items()}
    assert known["GPU-20c56d28-0da5-6d26-a36a-e7af1ce2586e"] == [8.969]
    assert known["GPU-7099682b-a20d-2bcc-74ab-b9060454d81e/GI9"] == [115.294]
