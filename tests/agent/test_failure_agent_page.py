"""What goes wrong at an agent is counted on its page; docs/failure-modes.md names these tests."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests import nvml_library
from tests.agent.scripted_server import Reply, dead_url, in_turn, serving
from tests.agent.test_agent_process import agent as running_agent

from unidle_agent.config import AgentSettings
from unidle_agent.runtime import Agent
from unidle_agent.sample import Tick

PATIENCE_S = 30.0
LINE = b'DCGM_FI_DEV_POWER_USAGE{gpu="0",UUID="GPU-0",modelName="H100"} 350.5\n'


@contextlib.contextmanager
def made(folder: Path, **settings: object) -> Iterator[Agent]:
    """An agent whose ticks the test makes itself."""
    known = AgentSettings(nvml="off", port=0, node="n1", state_dir=str(folder), **settings)  # type: ignore[arg-type]
    one = Agent(known)
    try:
        yield one
    finally:
        one._exporter.close()
        one._close()


def until(holds: Callable[[], bool]) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end_s
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("reply", "counted"),
    [
        pytest.param(Reply(500), {"failed_scrapes": 1, "too_big": 0, "torn_pages": 0}, id="no page"),
        pytest.param(Reply(announced=51_000_000), {"failed_scrapes": 1, "too_big": 1}, id="a page of 51 MB"),
        pytest.param(
            Reply(body=LINE + LINE[:40], announced=2 * len(LINE)),
            {"failed_scrapes": 0, "torn_pages": 1, "bad_lines": 1},
            id="a torn page",
        ),
        pytest.param(
            Reply(body=b"Active 1g.5gb\n" + LINE), {"bad_lines": 1, "torn_pages": 0}, id="a title line"
        ),
    ],
)
def test_a_bad_page_of_an_exporter_is_counted(tmp_path: Path, reply: Reply, counted: dict[str, int]) -> None:
    with serving(in_turn(reply)) as exporter, made(tmp_path, dcgm_urls=(exporter.url,)) as one:
        one._sampler.tick(PATIENCE_S)
        page = one.page()
    for event, count in counted.items():
        name = f'unidle_agent_source_events_total{{source="dcgm-exporter",event="{event}"}}'
        assert f"{name} {count}\n" in page
    assert "unidle_host_load_1m" in page, "the host is sampled all the same"
    if not counted.get("failed_scrapes"):
        assert 'unidle_gpu_power_watts{gpu="0",uuid="GPU-0"} 350.5\n' in page


def test_batches_that_a_full_spool_drops_are_counted(tmp_path: Path) -> None:
    with made(tmp_path, push_url=dead_url(), batch_s=0.1, period_s=0.1, spool_max_bytes=65536) as one:
        for number in range(400):
            one._take(Tick(1_700_000_000_000_000_000 + number * 100_000_000, (), {"load_1m": 1.0}, ()))
        dropped = "\nunidle_agent_batches_dropped_total "
        until(lambda: float(one.page().partition(dropped)[2].split()[0]) > 0)
        size = float(one.page().partition("\nunidle_agent_spool_bytes ")[2].split()[0])
    assert size <= 65536


def test_a_disk_that_takes_nothing_is_said_and_batches_wait_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with made(tmp_path / "file" / "spool", push_url=dead_url()) as one:
        one._take(Tick(1_700_000_000_000_000_000, (), {"load_1m": 1.0}, ()))
        until(lambda: "\nunidle_agent_spool_batches 1\n" in one.page())
        assert "\nunidle_agent_spool_up 0\n" in one.page()
        push = one.health().document["push"]
        assert isinstance(push, dict)
        assert push["waiting_batches"] == 1


def test_a_hung_driver_is_a_state_of_the_gpu_and_a_counted_restart(tmp_path: Path) -> None:
    library, answers = nvml_library.build(tmp_path), tmp_path / "answers"
    cards = [nvml_library.gpu(0), nvml_library.gpu(1)]
    nvml_library.write(answers, cards)
    given = nvml_library.environment(library, answers)
    with running_agent(tmp_path / "s", given, nvml="on", nvml_deadline_s=0.4, period_s=0.5) as one:
        until(lambda: f'uuid="{cards[1]["uuid"]}"}} 0\n' in of(one.get("/metrics"), "unidle_gpu_state"))
        nvml_library.write(answers, cards, {(1, "nvmlDeviceGetMemoryInfo_v2"): "hang"})
        until(lambda: f'uuid="{cards[1]["uuid"]}"}} 2\n' in of(one.get("/metrics"), "unidle_gpu_state"))
        page = one.get("/metrics")
        assert json.loads(one.get("/health"))["ok"] is True
    restarts = of(page, 'unidle_agent_source_events_total{source="nvml",event="poller_restarts"}')
    assert int(restarts.split()[-1]) >= 1


def test_an_xid_of_the_kernel_log_is_counted_once_on_the_gpu_at_its_address(tmp_path: Path) -> None:
    library, answers, log = nvml_library.build(tmp_path), tmp_path / "answers", tmp_path / "kmsg"
    cards = [nvml_library.gpu(0), nvml_library.gpu(1)]
    nvml_library.write(answers, cards)
    os.mkfifo(log)
    given = nvml_library.environment(library, answers)
    with running_agent(tmp_path / "s", given, nvml="on", kernel_log=str(log), period_s=0.5) as one:
        until(lambda: cards[1]["uuid"] in one.get("/metrics"))
        with log.open("wb", buffering=0) as end:
            end.write(b"4,7,1000,-;NVRM: Xid (PCI:0000:1c:00): 31, pid=4242, name=python3, MMU Fault\n" * 3)
            until(lambda: "unidle_gpu_xid_errors_total{" in one.get("/metrics"))
        page = one.get("/metrics")
        assert json.loads(one.get("/health"))["kernel_log"] == "read"
    (line,) = of(page, "unidle_gpu_xid_errors_total{").splitlines()
    assert f'uuid="{cards[1]["uuid"]}"' in line
    assert 'xid="31"' in line
    assert line.endswith(" 1")
    assert 'unidle_agent_kernel_log_lines_total{outcome="folded"} 2\n' in page


def of(page: str, name: str) -> str:
    """The lines of one family."""
    return "".join(line for line in page.splitlines(keepends=True) if line.startswith(name))
