"""A Prometheus's past as a recording: `unidle diagnose --prometheus` against the real server."""

from __future__ import annotations

import json
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from tests.collector.prometheus_server import (
    END_S,
    Line,
    needs_prometheus,
    prometheus,
    samples,
    victoria_metrics,
    write_past,
)

from unidle_agent import cli
from unidle_collector.prometheus import history
from unidle_collector.prometheus.api import Api
from unidle_collector.recording import Recording

INTERVAL_S = 15
SCRAPES = 2 * 240  # two hours
GAP = range(100, 110)
"""Scrapes in which the GPU of nobody is not there."""


def labels(node: str, index: int, pod: str = "", **more: str) -> dict[str, str]:
    out = {
        "gpu": str(index),
        "UUID": f"GPU-{node}-{index}",
        "modelName": "NVIDIA H100 80GB HBM3",
        "Hostname": node,
        "instance": f"{node}.example:9400",
        "job": "dcgm",
    }
    return out | ({"namespace": "ml", "pod": pod} if pod else {}) | more


def old_names() -> list[Line]:
    """Two nodes: training on both GPUs of the first; a notebook that does nothing, then a second pod, and a
    GPU of nobody on the other."""
    lines = []
    half = SCRAPES // 2
    for index in (0, 1):
        who = labels("a", index, "train-0")
        lines += [
            Line("DCGM_FI_DEV_GPU_UTIL", who, lambda n: 97),
            Line("DCGM_FI_PROF_SM_ACTIVE", who, lambda n: 0.7),
            Line("DCGM_FI_DEV_POWER_USAGE", who, lambda n: 600.5),
            Line("DCGM_FI_DEV_FB_USED", who, lambda n: 60_000),
            Line("DCGM_FI_DEV_FB_FREE", who, lambda n: 21_000),
            Line("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", who, lambda n: 600_500 * INTERVAL_S * n),
            Line("DCGM_FI_DEV_MEMORY_TEMP", who, lambda n: 9223372036854775794),  # not supported
        ]
    for pod, begin, end, util in (("notebook", 0, half, 0), ("eval", half, SCRAPES, 88)):
        who = labels("b", 0, pod)
        for name, value in (
            ("DCGM_FI_DEV_GPU_UTIL", util),
            ("DCGM_FI_PROF_SM_ACTIVE", util / 100),
            ("DCGM_FI_DEV_POWER_USAGE", 75 + 5 * util),
            ("DCGM_FI_DEV_FB_USED", 2_000),
        ):
            lines.append(Line(name, who, lambda n, v=value, b=begin, e=end: v if b <= n < e else None))
    who = labels("b", 1)
    for name, value in (("DCGM_FI_DEV_GPU_UTIL", 0), ("DCGM_FI_DEV_POWER_USAGE", 70)):
        lines.append(Line(name, who, lambda n, v=value: None if n in GAP else v))
    lines.append(Line("DCGM_FI_DEV_MEM_COPY_UTIL", labels("a", 1, "train-0"), lambda n: 90 * (n % 2)))
    return lines


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    """A Prometheus that has scraped `old_names` for two hours."""
    needs_prometheus()
    folder = tmp_path_factory.mktemp("past") / "data"
    write_past(folder, old_names(), SCRAPES, INTERVAL_S)
    with prometheus(folder) as url:
        yield url


def read(url: str, hours: float = 2.0, **more) -> Recording:
    api = Api(url)
    try:
        return history.read(api, END_S - hours * 3600, END_S, **more)
    finally:
        api.close()


@pytest.mark.slow
def test_every_sample_of_a_server_is_seen_once_at_its_own_interval(server: str) -> None:
    recording = read(server)
    assert recording.period_s == INTERVAL_S
    assert [(gpu.node, gpu.gpu, gpu.index) for gpu in recording.gpus] == [
        ("a", "GPU-a-0", 0),
        ("a", "GPU-a-1", 1),
        ("b", "GPU-b-0", 0),
        ("b", "GPU-b-1", 1),
    ]
    assert recording.instants == SCRAPES
    assert recording.sampled[:, :3].all()
    assert np.flatnonzero(~recording.sampled[:, 3]).tolist() == list(GAP), "nothing is carried on"
    util = recording.columns["gpu_util_ratio"]
    assert np.allclose(util[:, 0], 0.97)
    assert (util[:, 2] == 0).sum() == SCRAPES // 2
    assert np.allclose(recording.columns["power_w"][:, 0], 600.5)
    energy = recording.columns["energy_j"][1:, 0]
    assert np.allclose(energy, 600.5 * INTERVAL_S)
    assert recording.columns["memory_total_bytes"][0, 0] == 81_000 * 2**20
    assert np.isnan(recording.columns["memory_temperature_c"]).all()


@pytest.mark.slow
def test_a_gpu_belongs_to_the_pod_on_its_series_and_to_nobody_without_one(server: str) -> None:
    recording = read(server)
    jobs = [[recording.jobs[number] for number in recording.job[:, gpu] if number >= 0] for gpu in range(4)]
    assert set(jobs[0]) == {"ml/train-0"}
    assert jobs[2] == ["ml/notebook"] * (SCRAPES // 2) + ["ml/eval"] * (SCRAPES // 2)
    assert set(jobs[3]) == {""}


@pytest.mark.slow
def test_a_longer_step_gives_means_and_says_so(server: str) -> None:
    recording = read(server, most_values=2_000)
    assert recording.period_s > INTERVAL_S
    assert recording.period_s % INTERVAL_S == 0
    assert np.nanmean(recording.columns["gpu_util_ratio"][:, 2]) == pytest.approx(0.44, abs=0.03)
    memory = recording.columns["memory_util_ratio"][1:-1, 1]
    assert ((memory > 0.2) & (memory < 0.7)).all(), "a mean of 0 and 0.9, not one of them"
    total_j = np.nansum(recording.columns["energy_j"][:, 0])
    assert total_j == pytest.approx(600.5 * 7200, rel=0.1)
    assert any("means of" in note for note in recording.notes)
    assert any("averaged over" in each for each in recording.cannot_tell)
    jobs = {recording.jobs[number] for number in recording.job[:, 2]}
    assert jobs == {"ml/notebook", "ml/eval"}


@pytest.mark.slow
def test_diagnose_names_the_idle_notebook_and_what_it_cannot_tell(
    server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["diagnose", "--prometheus", server, "--since", "2h", "--until", str(END_S)]
    assert cli.main([*common, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["sampling"]["period_s"] == INTERVAL_S
    idle = [finding for finding in document["findings"] if finding["kind"] == "idle"]
    assert [finding["job"] for finding in idle] == ["ml/notebook"]
    told = " ".join(document["cannot_tell"])
    assert "Why a GPU waited" in told
    assert "Whose a GPU was" not in told
    assert cli.main(common) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "What this source cannot tell" in text
    assert "ml/notebook" in text


@pytest.mark.slow
def test_victoriametrics_gives_the_same(server: str, tmp_path: Path) -> None:
    end_s = int(time.time()) // 60 * 60  # it takes no samples of long ago or of tomorrow
    with victoria_metrics(tmp_path / "vm") as url:
        body = "".join(
            f"{series} {value} {at_s * 1000}\n"
            for line in old_names()
            for series, value, at_s in samples(line, SCRAPES, INTERVAL_S, end_s)
        )
        posted = urllib.request.Request(f"{url}/api/v1/import/prometheus", body.encode(), method="POST")
        urllib.request.urlopen(posted)
        urllib.request.urlopen(f"{url}/internal/force_flush")
        api = Api(url)
        here = history.read(api, end_s - 7200, end_s)
        api.close()
    there = read(server)
    assert (here.period_s, here.instants, here.gpus) == (there.period_s, there.instants, there.gpus)
    assert (here.job == there.job).all()
    assert here.columns.keys() == there.columns.keys()
    for name, column in here.columns.items():
        assert np.allclose(column, there.columns[name], equal_nan=True), name


@pytest.mark.slow
def test_match_narrows_down_and_a_server_without_gpus_says_what_to_do(
    server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recording = read(server, match='Hostname="b"')
    assert {gpu.node for gpu in recording.gpus} == {"b"}
    common = ["diagnose", "--prometheus", server, "--until", str(END_S)]
    assert cli.main([*common, "--since", "2h", "--match", 'Hostname="zz"']) == 2
    assert "check --match" in capsys.readouterr().err
    assert cli.main([*common, "--since", "yesterday"]) == 2
    assert "90m, 24h or 7d" in capsys.readouterr().err
    assert cli.main([*common, "--match", 'Hostname="']) == 2
    assert "parse error" in capsys.readouterr().err
