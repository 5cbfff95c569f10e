"""`unidle diagnose`: one JSON document for machines, a verdict for people, errors that help."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from unidle_agent.cli import main
from unidle_collector.commands import diagnose
from unidle_collector.model import Account, Cost, Evidence, Finding, GpuRef
from unidle_collector.recording import Recording
from unidle_collector.replay import GpuResult, Result

START_S = 1_760_000_000
HOURS = 2


def recorded(folder: Path, period_s: int = 30) -> Path:
    """Two hours of one job on two GPUs, one of which does nothing but holds memory."""
    lines = ["time,node,gpu_uuid,job_id,gpu_util_ratio,sm_active_ratio,power_w,memory_used_bytes"]
    for at in range(0, HOURS * 3600, period_s):
        lines.append(f"{START_S + at},n1,GPU-busy,42,0.98,0.85,600,40e9")
        lines.append(f"{START_S + at},n1,GPU-held,42,0,0,110,20e9")
    path = folder / "telemetry.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["diagnose", *arguments, "--json"]) == 0

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    document = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert isinstance(document, dict)
    return document


def test_the_json_of_a_held_gpu_says_whose_hours_were_lost_and_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = run_json(capsys, str(recorded(tmp_path)))
    busy, held = document["gpus"]
    assert (busy["node"], busy["gpu"]) == ("n1", "GPU-busy")
    for gpu in document["gpus"]:
        assert sum(gpu["states"].values()) == pytest.approx(HOURS * 3600)
    assert busy["states"]["productive"] == pytest.approx(HOURS * 3600)
    assert held["states"]["idle"] == pytest.approx(HOURS * 3600)
    assert [finding["kind"] for finding in held["findings"]] == ["idle"]
    assert busy["findings"] == []
    (finding,) = [each for each in document["findings"] if each["kind"] == "idle"]
    assert held["findings"][0]["id"] == finding["id"]
    assert finding["job"] == "42"
    assert finding["advice"]
    (job,) = document["jobs"]
    assert (job["job"], job["gpus"]) == ("42", 2)
    assert job["lost"]["gpu_h"] == pytest.approx(HOURS, rel=0.01)
    assert document["simulated"] is False
    assert document["recommendations"]


def test_the_sampling_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sampling = run_json(capsys, str(recorded(tmp_path)))["sampling"]
    assert sampling.pop("fields")["power_w"] == 1.0
    assert sampling == {
        "period_s": 30.0,
        "coverage_ratio": 1.0,
        "instants": HOURS * 120,
        "start": "2025-10-09T08:53:20.000Z",
        "end": "2025-10-09T10:52:50.000Z",
    }


def test_people_get_a_verdict_the_evidence_and_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diagnose", str(recorded(tmp_path))]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "2 GPUs on 1 node" in text
    assert "sampled every 30 s" in text
    assert "50.0% was lost to jobs: 2.00 GPU-h" in text
    assert "of 4.00 known GPU-hours" in text
    assert " do Ask the owner" in text
    assert "SIMULATED" not in text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "empty file"),
        ("time,gpu,foo\n1,0,1\n", "known field"),
        ("gpu,power_w\n0,1\n", "column with the time"),
    ],
)
def test_bad_input_is_exit_code_2_with_a_reason_and_nothing_on_stdout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, expected: str
) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(content)
    assert main(["diagnose", str(path), "--json"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("unidle diagnose: ")
    assert expected in printed.err
    assert str(path) in printed.err


def test_a_missing_file_and_a_bad_period_are_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diagnose", str(tmp_path / "none.csv")]) == 2
    assert main(["diagnose", str(recorded(tmp_path)), "--period", "-1"]) == 2
    assert "period above 0" in capsys.readouterr().err


def test_one_page_gives_json_and_says_that_one_instant_tells_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "page-1760000000.prom"
    path.write_text('title\nDCGM_FI_DEV_GPU_UTIL{gpu="0",UUID="GPU-a",Hostname="n1"} 57\n')
    document = run_json(capsys, str(path))
    assert [(gpu["node"], gpu["gpu"]) for gpu in document["gpus"]] == [("n1", "GPU-a")]
    assert any("title" in note for note in document["notes"])
    assert main(["diagnose", str(path)]) == 0
    assert "only one instant" in capsys.readouterr().out


def test_the_node_can_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.csv"
    path.write_text(f"time,gpu,power_w\n{START_S},0,1\n{START_S + 1},0,1\n")
    assert run_json(capsys, str(path), "--node", "n7")["gpus"][0]["node"] == "n7"


# Shaping, on a result with everything in it


NAN = float("nan")
FINDING = Finding(
    id="idle-1",
    kind="idle",
    cause="held",
    severity="warning",
    confidence=0.9,
    subject_kind="gpu",
    subject="n1/0",
    title="GPU 0 idle [100 %]",
    since_ns=START_S * 10**9,
    updated_ns=START_S * 10**9,
    told_ns=None,
    gpus=(GpuRef("n1", "0", 0),),
    evidence=(Evidence("power_w", NAN, "W", float("inf"), 60.0, "draws little"),),
    cost_so_far=Cost(1.0, 2.5, NAN),
)


def result(**changes: Any) -> tuple[Recording, Result]:
    recording = Recording(
        start_ns=START_S * 10**9,
        period_s=1.0,
        gpus=(GpuRef("n1", "0", 0),),
        columns={"power_w": np.full((4, 1), np.nan)},
        sampled=np.array([[True], [True], [False], [True]]),
        jobs=("",),
        job=np.full((4, 1), -1, dtype=np.int32),
        notes=("a note",),
        simulated=changes.pop("simulated", False),
    )
    found = Result(
        gpus=[GpuResult("n1", "0", 0, {"idle": 3.0, "unknown": 1.0}, {"idle.held": 3.0}, ["idle-1", "gone"])],
        jobs=[],
        findings=[FINDING],
        account=Account("all", 0, 4, 1, {"idle": 3.0, "unknown": 1.0}, lost=Cost(3 / 3600, None, None)),
        recommendations=[],
        notes=["a note"],
    )
    return recording, dataclasses.replace(found, **changes)


def test_numbers_that_json_does_not_have_are_null() -> None:
    document = diagnose.document(*result())
    text = json.dumps(document, allow_nan=False)
    (finding,) = json.loads(text)["findings"]
    assert finding["evidence"][0]["value"] is None
    assert finding["evidence"][0]["threshold"] is None
    assert finding["cost_so_far"] == {"gpu_h": 1.0, "eur": 2.5, "kwh": None}
    assert finding["told_ns"] is None


def test_the_document_has_its_parts_and_findings_are_joined_to_gpus() -> None:
    document = diagnose.document(*result())
    assert list(document) == [
        *("schema", "simulated", "sampling", "account", "gpus", "jobs", "findings", "recommendations"),
        *("cannot_tell", "notes"),
    ]
    (gpu,) = document["gpus"]
    assert gpu["states"] == {"idle": 3.0, "unknown": 1.0}
    assert [each["id"] for each in gpu["findings"]] == ["idle-1"]
    assert document["sampling"]["coverage_ratio"] == 0.75
    assert document["notes"] == ["a note"]


def shown(recording: Recording, found: Result) -> str:
    console = Console(width=200, no_color=True)
    with console.capture() as capture:
        console.print(diagnose.report(recording, found))
    return capture.get()


def test_a_simulated_recording_says_so_first() -> None:
    assert shown(*result(simulated=True)).startswith("SIMULATED")
    assert diagnose.document(*result(simulated=True))["simulated"] is True


def test_brackets_in_what_was_recorded_are_shown_as_they_are() -> None:
    assert "GPU 0 idle [100 %]" in shown(*result())


def test_a_finding_that_nobody_was_told_is_called_developing() -> None:
    text = shown(*result())
    assert "still developing" in text
    assert "1 finding, still developing at the end" in text


def test_a_recording_in_which_nothing_is_known_says_that_it_cannot_tell() -> None:
    account = Account("all", 0, 4, 1, {"unknown": 4.0})
    assert "Cannot tell" in shown(*result(account=account))
    assert "Cannot tell" in shown(*result(account=None))


def test_help_has_a_summary_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["diagnose", "--help"])
    text = capsys.readouterr().out
    assert "unidle diagnose telemetry.parquet" in text
    assert "--period" in text


def test_the_flags_have_the_defaults_that_the_help_promises() -> None:
    parser = argparse.ArgumentParser()
    diagnose.arguments(parser)
    args = parser.parse_args(["a.csv"])
    assert (args.files, args.json, args.node, args.period) == ([Path("a.csv")], False, "", None)
