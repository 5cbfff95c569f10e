"""Recordings as other people keep them: few minutes, few columns, names and units of their own tools."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unidle_agent.cli import main
from unidle_collector.recorded import load
from unidle_collector.replay import Result, replay

START_S = 1_760_000_000
GPUS = 2
MIB = 2**20

Sample = dict[str, float]
SPINS: Sample = {
    "util": 98.0, "sm": 0.48, "tensor": 0.13, "dram": 0.34, "power": 450.0, "used": 36_000.0,
    "rx": 1.8e9, "tx": 1.8e9, "nvlink": 5.0e10,
}  # fmt: skip
"""Tensor parallel on two nodes, means measured on 8xH100; %, ratios, W, MiB, bytes per second."""
OFFLOADS: Sample = {
    "util": 13.7, "sm": 0.09, "tensor": 0.057, "dram": 0.039, "power": 186.0, "used": 32_600.0,
    "rx": 1.42e9, "tx": 0.8e9, "nvlink": 5.0e9,
}  # fmt: skip
HELD: Sample = dict.fromkeys(SPINS, 0.0) | {"power": 120.0, "used": 16_300.0, "rx": 1e6, "tx": 1e6}
FULL: Sample = {
    "util": 100.0, "sm": 0.877, "tensor": 0.583, "dram": 0.369, "power": 689.0, "used": 71_000.0,
    "rx": 3e7, "tx": 2e7, "nvlink": 1.5e9,
}  # fmt: skip

Writer = Callable[[Sample, float, int], dict[str, Any]]


def dmon(sample: Sample, at_s: float, gpu: int) -> dict[str, Any]:
    """As dcgmi dmon names its columns, the time in milliseconds."""
    return {
        "Timestamp": round((START_S + at_s) * 1000), "GPU": f"GPU {gpu}",
        "GPUTL": round(sample["util"]), "SMACT": sample["sm"], "TENSO": sample["tensor"],
        "DRAMA": sample["dram"], "POWER": sample["power"], "FBUSD": round(sample["used"]),
        "PCIRX": sample["rx"], "PCITX": sample["tx"], "NVLTX": sample["nvlink"],
    }  # fmt: skip


def notebook(sample: Sample, at_s: float, gpu: int) -> dict[str, Any]:
    """As somebody's own script does: percent, and rates whose names say no unit."""
    return {
        "nvlink_tx": sample["nvlink"], "pcie_tx": sample["tx"], "pcie_rx": sample["rx"],
        "tensor_pct": 100 * sample["tensor"], "dram_pct": 100 * sample["dram"],
        "sm_active": 100 * sample["sm"], "gpu_utilization": sample["util"], "power": sample["power"],
        "mem_used": sample["used"], "gpu_id": gpu, "hostname": "n1",
        "time": f"2026-10-09T08:{at_s // 60:02.0f}:{at_s % 60:04.1f}Z",
    }  # fmt: skip


def dcgm(sample: Sample, at_s: float, gpu: int) -> dict[str, Any]:
    """As dcgm-exporter names them, with seconds since the recording began."""
    names = {
        "util": "DEV_GPU_UTIL", "sm": "PROF_SM_ACTIVE", "tensor": "PROF_PIPE_TENSOR_ACTIVE",
        "dram": "PROF_DRAM_ACTIVE", "power": "DEV_POWER_USAGE", "used": "DEV_FB_USED",
        "rx": "PROF_PCIE_RX_BYTES", "tx": "PROF_PCIE_TX_BYTES", "nvlink": "PROF_NVLINK_TX_BYTES",
    }  # fmt: skip
    values = {f"DCGM_FI_{names[key]}": value for key, value in sample.items()}
    return {"elapsed_s": at_s, "gpu": gpu, **values}


def written(
    folder: Path, sample: Sample, names: Writer = dcgm, *, seconds: float = 240, each_s: float = 1.0,
    without: tuple[str, ...] = (), job: str = "",
) -> Path:  # fmt: skip
    """A CSV of the sample with a little noise, `without` the columns that contain any of these words."""
    rng = np.random.default_rng(7)
    path = folder / "run.csv"
    with path.open("w", newline="") as file:
        out: csv.DictWriter[str] | None = None
        for number in range(round(seconds / each_s)):
            for gpu in range(GPUS):
                noisy = {key: value * (1 + 0.02 * rng.standard_normal()) for key, value in sample.items()}
                noisy["util"] = min(noisy["util"], 100.0)
                row = names(noisy, number * each_s, gpu) | ({"slurm_job_id": job} if job else {})
                row = {key: cell for key, cell in row.items() if not any(word in key for word in without)}
                if out is None:
                    out = csv.DictWriter(file, list(row))
                    out.writeheader()
                out.writerow(row)
    return path


def diagnosed(path: Path) -> Result:
    return replay(load([path]))


def causes(result: Result) -> set[str]:
    return {f"{finding.kind}.{finding.cause}" for finding in result.findings}


@pytest.mark.parametrize("names", [dmon, notebook, dcgm])
@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        (SPINS, {"starvation.communication"}),
        (OFFLOADS, {"starvation.host_to_device"}),
        (HELD, {"idle.held"}),
        (FULL, set()),
    ],
    ids=["collectives", "offloading", "held", "healthy at its power limit"],
)
def test_the_answer_does_not_depend_on_the_names_and_units_of_a_tool(
    tmp_path: Path, names: Writer, sample: Sample, expected: set[str]
) -> None:
    result = diagnosed(written(tmp_path, sample, names))
    assert causes(result) == expected
    assert {tuple(ref.index for ref in finding.gpus) for finding in result.findings} <= {(0, 1)}


def test_ten_samples_a_second_tell_the_same_as_one(tmp_path: Path) -> None:
    assert causes(diagnosed(written(tmp_path, OFFLOADS, seconds=120, each_s=0.1))) == {
        "starvation.host_to_device"
    }


def test_a_rate_without_a_unit_is_left_out_where_it_could_be_kilobytes(tmp_path: Path) -> None:
    recording = load([written(tmp_path, FULL, notebook)])
    assert "pcie_rx_bytes_per_s" not in recording.columns
    assert any("'pcie_rx': left out, its unit cannot be told" in note for note in recording.notes)
    recording = load([written(tmp_path, SPINS, notebook)])
    assert np.nanmean(recording.columns["pcie_rx_bytes_per_s"]) == pytest.approx(1.8e9, rel=0.01)


def test_collectives_without_tensor_counters_are_not_taken_for_something_else(tmp_path: Path) -> None:
    result = diagnosed(written(tmp_path, SPINS, without=("TENSOR", "DRAM")))
    (finding,) = result.findings
    assert finding.cause == "undetermined"
    assert "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE" in finding.advice


def test_utilization_alone_says_what_it_cannot_tell(tmp_path: Path) -> None:
    result = diagnosed(written(tmp_path, SPINS, without=("PROF",)))
    assert result.findings == []
    assert any(each.startswith("How full a busy GPU was") for each in result.cannot_tell)
    assert any(each.startswith("Why a GPU waited") for each in result.cannot_tell)


def test_a_job_in_the_middle_of_which_a_recording_begins_has_no_start_up(tmp_path: Path) -> None:
    """Memory was not recorded; the job's ten minutes to start would hide the whole of it."""
    result = diagnosed(written(tmp_path, HELD, without=("FB_USED",), job="4711"))
    assert causes(result) == {"idle.held"}
    assert result.gpus[0].states["idle"] == pytest.approx(240, abs=1)


def test_without_memory_or_job_it_is_said_that_nobody_may_hold_a_gpu_that_did_nothing(tmp_path: Path) -> None:
    result = diagnosed(written(tmp_path, HELD, without=("FB_USED",)))
    assert result.gpus[0].states["unallocated"] == pytest.approx(240, abs=1)
    assert any(each.startswith("Whether a GPU that did nothing was held") for each in result.cannot_tell)


def test_power_alone_tells_neither_use_nor_its_absence(tmp_path: Path) -> None:
    result = diagnosed(written(tmp_path, FULL, without=("UTIL", "PROF", "FB_USED")))
    assert result.gpus[0].states["unknown"] == pytest.approx(240, abs=1)
    assert any(each.startswith("What GPUs did") for each in result.cannot_tell)


def test_five_samples_a_minute_apart_are_too_few_to_call_a_gpu_idle_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, HELD, seconds=300, each_s=60)
    assert main(["diagnose", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["findings"] == []
    (told,) = (each for each in document["cannot_tell"] if each.startswith("Whether 2 GPUs"))
    assert "idle is what lasts 8 min" in told
    assert "the recording lasts 5 min" in told


def test_a_finding_that_the_recording_is_too_short_for_says_after_how_long_people_are_told(
    tmp_path: Path,
) -> None:
    result = diagnosed(written(tmp_path, OFFLOADS))
    assert any("people are told of starvation after 10 min" in note for note in result.notes)
    assert not any("people are told" in note for note in diagnosed(written(tmp_path, FULL)).notes)


def test_the_table_of_a_terminal_shows_a_finding_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diagnose", str(written(tmp_path, OFFLOADS))]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for piece in (
        "starved by host-to-device copies",
        "subject node node: GPU 0-1 of node",
        "cause host-to-device copies (76% sure); else: cannot tell 11%, storage too slow 6%",
        "cost so far 0.12 GPU-h, EUR unknown (no price)",
        "each hour 1.7",
        "for a fully used GPU (offloading: 6 GB/s or more",
        "do Keep more on the GPU: FSDP CPUOffload(offload_params=False)",
        "confirm by nvidia-smi dmon -s ut -i 0,1",
        "still developing",
    ):
        assert piece in text
