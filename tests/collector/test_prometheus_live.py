"""A real Prometheus that scrapes an exporter and sends what it has to a real collector."""

from __future__ import annotations

import json
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from tests.agent.scripted_server import Reply, serving
from tests.collector.prometheus_server import free_port, needs_prometheus, prometheus
from tests.e2e.processes import answers, roles, wait_for

GPUS = 8
POWER_W = 650.5
EACH_S = 5
"""The exporter samples this often: what is scraped in between is its last sample."""


def page(started_s: float) -> bytes:
    """A dcgm-exporter of eight GPUs, one of which does nothing."""
    lines = []
    sample = int((time.time() - started_s) / EACH_S)
    for gpu in range(GPUS):
        labels = (
            f'gpu="{gpu}",UUID="GPU-{gpu}",modelName="NVIDIA H100",Hostname="n1",pod="train",namespace="ml"'
        )
        for name, value in (
            ("DCGM_FI_DEV_GPU_UTIL", 97 if gpu else 0),
            ("DCGM_FI_PROF_SM_ACTIVE", 0.5),
            ("DCGM_FI_DEV_POWER_USAGE", POWER_W + 0.1 * (sample % 2)),
            ("DCGM_FI_DEV_GPU_TEMP", 65),
            ("DCGM_FI_DEV_FB_USED", 70_000),
            ("DCGM_FI_DEV_FB_FREE", 11_000),
            ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", int(1000 * POWER_W * EACH_S * sample)),
            ("DCGM_FI_DEV_XID_ERRORS", 0),
        ):
            lines.append(f"{name}{{{labels}}} {value}")
    return ("\n".join(lines) + "\n").encode()


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as reply:
        return json.load(reply)


@pytest.mark.slow
def test_what_a_prometheus_scrapes_and_sends_is_the_fleet_of_a_collector(tmp_path: Path) -> None:
    needs_prometheus()
    started_s = time.time()
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with roles(tmp_path) as start, serving(lambda _: Reply(200, page(started_s))) as exporter:
        settings = {"port": str(port), "push_token": "t0ken", "data_dir": str(tmp_path / "store")}
        start("collector", {**settings, "remote_write": "true", "privacy": "internal"})
        wait_for(lambda: answers(f"{url}/api/v1/health"), "the collector")
        config = f"""
global: {{scrape_interval: 1s}}
scrape_configs:
  - job_name: dcgm
    static_configs: [{{targets: ["{exporter.url.removeprefix("http://")}"]}}]
remote_write:
  - url: {url}/api/v1/prometheus/write
    authorization: {{credentials: t0ken}}
    write_relabel_configs:
      - {{source_labels: [__name__], regex: "(DCGM_FI|dcgm|unidle)_.*", action: keep}}
"""
        with prometheus(tmp_path / "data", config) as server:
            wait_for(
                lambda: (
                    all(gpu["state"] != "unknown" for gpu in get(f"{url}/api/v1/gpus"))
                    and len(get(f"{url}/api/v1/gpus")) == GPUS
                ),
                "eight GPUs whose state is known",
            )
            gpus = get(f"{url}/api/v1/gpus")
            first = next(gpu for gpu in gpus if gpu["gpu"] == "GPU-0")
            assert (first["node"], first["model"], first["job"]) == ("n1", "NVIDIA H100", "ml/train")
            assert first["values"]["gpu_util_ratio"] == 0.0, "protobuf leaves zeros out: they are values"
            assert first["values"]["sm_active_ratio"] == 0.5

            def drawn() -> list[float]:
                """W, where the energy is known."""
                series = get(f"{url}/api/v1/series?node=n1&gpu=GPU-1&field=energy_j")
                return [value for value in series["values"] if value is not None]

            wait_for(lambda: len(drawn()) > 1, "two increases of energy")
            assert drawn() == pytest.approx([POWER_W] * len(drawn()), rel=0.5), "they come in leaps of 5 s"
            counters = get(f"{url}/api/v1/health")["counters"]
            assert counters["remote_write_samples"] > 0
            assert counters.get("remote_write_refused", 0) == 0
            assert counters["remote_write_samples_ignored"] == 0, "the relabelling of docs/prometheus.md"
            failed = get(f"{server}/api/v1/query?query=prometheus_remote_storage_samples_failed_total")
            assert all(float(each["value"][1]) == 0 for each in failed["data"]["result"])
