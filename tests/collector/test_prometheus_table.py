"""Series become a table of GPUs x instants, and a server's moods are borne: no server is needed."""

from __future__ import annotations

import json
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from tests.agent.scripted_server import Reply, Request, serving

from unidle_agent.settings import Secret
from unidle_collector.prometheus import history
from unidle_collector.prometheus.api import Api, PrometheusError, Series
from unidle_collector.prometheus.table import Table
from unidle_collector.recorded.rows import Rows


def table_of(*series: tuple[str, dict[str, str], list[float]], instants: int = 4) -> Rows:
    table = Table(0.0, 10.0, instants)
    for name, labels, values in series:
        table.add(name, Series(labels, np.arange(len(values)) * 10.0 + 5.0, np.array(values, dtype=float)))
    return table.rows()


OWN = {"gpu": "0", "uuid": "GPU-x", "instance": "10.0.0.7:9471", "job": "unidle-agent"}


def test_unidles_own_series_bring_the_host_and_the_job_with_them() -> None:
    rows = table_of(
        ("unidle_gpu_power_watts", OWN, [300, 300, 300, 300]),
        ("unidle_gpu_info", OWN | {"model": "NVIDIA B200"}, [1, 1, 1, 1]),
        ("unidle_gpu_job_info", OWN | {"exported_job": "4711"}, [1, 1]),
        ("unidle_gpu_allocated", OWN, [1, 1, 0, 0]),
        ("unidle_host_cpu_iowait_ratio", {"instance": "10.0.0.7:9471"}, [0.1, 0.2, 0.3, 0.4]),
        ("unidle_simulated", {"instance": "10.0.0.7:9471"}, [1, 1, 1, 1]),
    )
    assert [(ref.node, ref.gpu, ref.model) for ref in rows.gpus] == [("10.0.0.7", "GPU-x", "NVIDIA B200")]
    assert rows.values["power_w"].tolist() == [300.0] * 4
    assert [rows.jobs[number] for number in rows.job] == ["4711", "4711", "", ""]
    assert rows.values["cpu_iowait_ratio"].tolist() == [0.1, 0.2, 0.3, 0.4]
    assert rows.simulated


def test_the_servers_own_job_label_is_nobodys_job() -> None:
    rows = table_of(
        ("unidle_gpu_power_watts", OWN, [300]),
        ("unidle_gpu_job_info", OWN | {"user": "u-1"}, [1]),
        instants=1,
    )
    assert rows.jobs == ("",)


def test_a_gpu_seen_by_unidle_and_by_dcgm_is_one_gpu_and_keeps_its_node_name() -> None:
    dcgm = {"gpu": "0", "UUID": "GPU-x", "Hostname": "gpu-07", "instance": "10.0.0.7:9400"}
    rows = table_of(
        ("DCGM_FI_DEV_POWER_USAGE", dcgm, [290, 290, 290, 290]),
        ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", dcgm, [1e6, 2e6, 3e6, 4e6]),
        ("unidle_gpu_power_watts", OWN, [300, float("nan"), 300, 300]),
        ("unidle_gpu_energy_joules_total", OWN, [5, 6]),
        ("unidle_host_cpu_iowait_ratio", {"instance": "10.0.0.7:9471"}, [0.1, 0.2, 0.3, 0.4]),
    )
    assert [ref.node for ref in rows.gpus] == ["gpu-07"]
    assert rows.values["power_w"].tolist() == [300.0, 290.0, 300.0, 300.0]
    assert rows.values["energy_j"][:2].tolist() == [5.0, 6.0]
    assert np.isnan(rows.values["energy_j"][2:]).all(), "two counters are never mixed"
    assert rows.values["cpu_iowait_ratio"][3] == 0.4, "the host of the agent's target is the GPU's"


def test_mig_instances_share_their_boards_power_and_take_over_what_only_the_board_has() -> None:
    board = {"gpu": "0", "UUID": "GPU-x", "Hostname": "n", "modelName": "NVIDIA H100"}
    rows = table_of(
        ("DCGM_FI_DEV_POWER_USAGE", board, [350]),
        ("DCGM_FI_PROF_SM_ACTIVE", board | {"GPU_I_PROFILE": "3g.40gb", "GPU_I_ID": "1"}, [0.5]),
        ("DCGM_FI_PROF_SM_ACTIVE", board | {"GPU_I_PROFILE": "4g.40gb", "GPU_I_ID": "2"}, [0.25]),
        instants=1,
    )
    assert [ref.gpu for ref in rows.gpus] == ["GPU-x/GI1", "GPU-x/GI2"]
    assert rows.values["power_w"].tolist() == pytest.approx([150.0, 200.0])


@pytest.mark.parametrize(
    ("beside", "value", "ratio"),
    [
        pytest.param("DCGM_FI_DEV_SM_CLOCK", 45, 0.45, id="above one it is the old percentage"),
        pytest.param("DCGM_FI_DEV_SM_CLOCK_HERTZ", 1, 1.0, id="beside a name in hertz it is the new ratio"),
        pytest.param("DCGM_FI_DEV_SM_CLOCK", 1, None, id="alone, one is 1 % or 100 %: unknown"),
        pytest.param("DCGM_FI_DEV_SM_CLOCK", 0, 0.0, id="nothing is nothing in both"),
    ],
)
def test_a_ratio_of_unclear_generation(beside: str, value: float, ratio: float | None) -> None:
    who = {"gpu": "0", "UUID": "GPU-x", "Hostname": "n"}
    rows = table_of((beside, who, [1000]), ("DCGM_FI_DEV_GPU_UTIL_RATIO", who, [value]), instants=1)
    came = rows.values["gpu_util_ratio"][0]
    assert np.isnan(came) if ratio is None else came == ratio


def test_a_job_that_ends_in_the_step_in_which_the_next_begins_leaves_it_the_step() -> None:
    who = {"gpu": "0", "UUID": "GPU-x", "Hostname": "n", "namespace": "ml"}
    nan = float("nan")
    rows = table_of(
        ("DCGM_FI_DEV_GPU_UTIL", who | {"pod": "first"}, [1, 1, nan, nan]),
        ("DCGM_FI_DEV_GPU_UTIL", who | {"pod": "second"}, [nan, 2, 2, 2]),
    )
    assert [rows.jobs[number] for number in rows.job] == ["ml/first", "ml/second", "ml/second", "ml/second"]


def test_jobs_that_share_a_gpu_for_longer_hold_it_together() -> None:
    who = {"gpu": "0", "UUID": "GPU-x", "Hostname": "n", "namespace": "ml"}
    rows = table_of(
        ("DCGM_FI_DEV_GPU_UTIL", who | {"pod": "one"}, [1, 1, 1, 1]),
        ("DCGM_FI_DEV_GPU_UTIL", who | {"pod": "two"}, [float("nan"), 1, 1]),
    )
    assert [rows.jobs[number] for number in rows.job] == [
        "ml/one",
        "ml/one,ml/two",
        "ml/one,ml/two",
        "ml/one",
    ]


# The server


class Past:
    """Answers like a server that has one GPU's utilization each 30 s, with limits of its own."""

    def __init__(self, most_points: int = 11_000, failures: int = 0) -> None:
        self.most_points = most_points
        self.failures = failures
        self.slices: list[tuple[float, float]] = []

    def __call__(self, request: Request) -> Reply:
        if self.failures:
            self.failures -= 1
            return Reply(503)
        url = urlsplit(request.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        labels = {"__name__": "DCGM_FI_DEV_GPU_UTIL", "UUID": "GPU-x", "Hostname": "n", "gpu": "0"}
        if url.path.endswith("/values"):
            return _answer(["DCGM_FI_DEV_GPU_UTIL", "up"])
        if url.path.endswith("/query"):
            at_s = float(query["time"]) // 30 * 30
            points = [[at_s - 30 * back, "7"] for back in range(10, -1, -1)]
            return _answer({"result": [{"metric": labels, "values": points}]})
        start_s, end_s, step_s = (float(query[key]) for key in ("start", "end", "step"))
        if query["query"].startswith("count"):
            return _answer({"result": [{"metric": labels, "values": [[start_s, "1"], [end_s, "1"]]}]})
        count = round((end_s - start_s) / step_s) + 1
        if count > self.most_points:
            body = {"status": "error", "error": "exceeded maximum resolution of points per timeseries"}
            return Reply(400, json.dumps(body).encode())
        self.slices.append((start_s, end_s))
        points = [[start_s + number * step_s, str(number % 100)] for number in range(count)]
        return _answer({"result": [{"metric": labels, "values": points}]})


def _answer(data: object) -> Reply:
    return Reply(200, json.dumps({"status": "success", "data": data}).encode())


def read(past: Past, pauses: list[float] | None = None, hours: float = 10):
    slept = [] if pauses is None else pauses
    with serving(past) as server:
        api = Api(server.url, token=Secret("s3cret"), sleep=slept.append)
        try:
            shares: list[float] = []
            out = history.read(api, 1_795_200_000, 1_795_200_000 + hours * 3600, progress=shares.append)
            assert shares[-1] == 1.0
            return out, server
        finally:
            api.close()


def test_a_question_that_is_too_much_is_asked_in_halves_and_nothing_is_lost() -> None:
    past = Past(most_points=400)
    recording, server = read(past)
    assert recording.instants == 1200
    assert recording.sampled.all()
    assert len(past.slices) >= 3
    assert all(end - start < 400 * 30 for start, end in past.slices)
    assert all(request.headers["authorization"] == "Bearer s3cret" for request in server.requests)


def test_a_server_that_fails_in_passing_is_asked_again() -> None:
    pauses: list[float] = []
    recording, _ = read(Past(failures=2), pauses)
    assert recording.sampled.all()
    assert pauses == [1.0, 4.0]


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(401), "--bearer-token-file"),
        (Reply(404, b"not found"), "base address"),
        (Reply(302, headers={"Location": "https://elsewhere.example/"}), "redirects are not followed"),
        (Reply(200, b"<html>Grafana</html>"), "is this its base address"),
        (Reply(503), "HTTP 503"),
        (Reply(200, b'{"status":"success","data":["up"]}'), "DCGM_FI_*"),
    ],
)
def test_what_is_no_prometheus_is_said_with_what_to_do(reply: Reply, words: str) -> None:
    with serving(lambda _: reply) as server:
        api = Api(server.url, token=Secret("s3cret"), sleep=lambda _: None)
        with pytest.raises(PrometheusError) as failure:
            history.read(api, 1_795_200_000, 1_795_203_600)
        api.close()
    assert words in str(failure.value)
    assert "s3cret" not in str(failure.value)
