"""`unidle agent` as a process of its own: start, page, push, signals, kill -9."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests import nvml_library
from tests.agent.scripted_server import Reply, Request, dead_url, in_turn, serving

from unidle_agent.wire import Batch, decode

PATIENCE_S = 60.0
PAGE = (
    b'DCGM_FI_DEV_POWER_USAGE{gpu="0",UUID="GPU-0",modelName="H100"} 350.5\n'
    b'DCGM_FI_DEV_GPU_UTIL{gpu="0",UUID="GPU-0",modelName="H100"} 97\n'
)


def environment(state: Path, **settings: object) -> dict[str, str]:
    known = {key: text for key, text in os.environ.items() if not key.startswith("UNIDLE_")}
    named = {
        "state_dir": state,
        "port": 0,
        "period_s": 0.1,
        "batch_s": 0.3,
        "nvml": "off",
        "node": "n1",
        **settings,
    }
    return known | {f"UNIDLE_AGENT_{name.upper()}": str(value) for name, value in named.items()}


class Running:
    """An agent process and the lines that it has said."""

    def __init__(self, state: Path, extra: dict[str, str] | None = None, **settings: object) -> None:
        self.lines: list[str] = []
        self._news = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "unidle_agent.cli", "agent"],
            env=environment(state, **settings) | (extra or {}),
            cwd=state,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self.lines.append(line.rstrip())
                self._news.notify_all()

    def said(self, pattern: str) -> re.Match[str]:
        """Wait for a line that matches."""

        def found() -> re.Match[str] | None:
            return next(filter(None, (re.search(pattern, line) for line in self.lines)), None)

        with self._news:
            assert self._news.wait_for(lambda: found() is not None, PATIENCE_S), self.lines
        match = found()
        assert match is not None
        return match

    def get(self, path: str) -> str:
        url = self.said(r"(http://127\.0\.0\.1:\d+)/metrics")[1]
        with urllib.request.urlopen(url + path, timeout=PATIENCE_S) as answer:
            return str(answer.read().decode())

    def end(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        if self.process.stderr is not None:
            self.process.stderr.close()
        return code


@contextlib.contextmanager
def agent(state: Path, extra: dict[str, str] | None = None, **settings: object) -> Iterator[Running]:
    state.mkdir(exist_ok=True)
    running = Running(state, extra, **settings)
    try:
        yield running
    finally:
        running.end(signal.SIGKILL)


class Collector:
    """Acknowledges, keeps every batch, and lets a test wait for what it wants to see."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.refuse = False
        self._news = threading.Condition()

    def __call__(self, request: Request) -> Reply:
        if self.refuse:
            return Reply(503, headers={"Retry-After": "0"})
        batch = decode(request.body)
        with self._news:
            self.batches.append(batch)
            self._news.notify_all()
        return Reply(200, json.dumps({"ack": batch.seq, "send_facts": False}).encode())

    def wait(self, holds: Callable[[list[Batch]], bool]) -> None:
        with self._news:
            assert self._news.wait_for(lambda: holds(self.batches), PATIENCE_S)


def test_once_prints_one_sample_of_host_and_exporter_in_base_units(tmp_path: Path) -> None:
    with serving(in_turn(Reply(body=PAGE))) as exporter:
        done = subprocess.run(
            [sys.executable, "-m", "unidle_agent.cli", "agent", "--once"],
            env=environment(tmp_path, dcgm_urls=exporter.url),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    (gpu,) = document["gpus"]
    assert gpu["values"] == {"power_w": 350.5, "gpu_util_ratio": 0.97}
    assert (gpu["uuid"], gpu["model"], document["node"], document["simulated"]) == (
        "GPU-0",
        "H100",
        "n1",
        False,
    )
    assert 0 <= document["host"]["cpu_busy_ratio"] <= 1
    assert list(tmp_path.iterdir()) == [], "trying the sources leaves nothing behind"


def test_agent_serves_its_page_says_what_it_reads_and_stops_cleanly(tmp_path: Path) -> None:
    with (
        serving(in_turn(Reply(body=PAGE))) as exporter,
        agent(tmp_path / "s", dcgm_urls=exporter.url) as running,
    ):
        running.said(r"source host: \d+ fields")
        running.said(r"source dcgm-exporter: 1 GPUs, 2 fields")
        running.said(r"not pushing \(push_url is not set\)")
        page = running.get("/metrics")
        assert 'unidle_gpu_power_watts{gpu="0",uuid="GPU-0"} 350.5\n' in page
        assert 'unidle_agent_source_gpus{source="dcgm-exporter"} 1\n' in page
        assert "unidle_host_load_1m" in page
        health = json.loads(running.get("/health"))
        assert (health["ok"], health["node"], health["gpus"]) == (True, "n1", 1)
        assert running.end(signal.SIGTERM) == 0
        assert running.lines[-1] == "unidle agent: stopped"


def test_no_gpu_is_one_clear_line_and_the_host_goes_on(tmp_path: Path) -> None:
    with agent(tmp_path / "s") as running:
        running.said("no GPU found: sampling the host alone")
        assert "unidle_host_load_1m" in running.get("/metrics")
        assert running.end(signal.SIGINT) == 0
    assert len([line for line in running.lines if "no GPU" in line]) == 1


def test_every_tick_arrives_at_the_collector_also_those_before_a_stop(tmp_path: Path) -> None:
    collector = Collector()
    with serving(collector) as server, agent(tmp_path / "s", push_url=server.url, batch_s=60) as running:
        running.said("sampling the host alone")
        collector.wait(lambda batches: len(batches) == 1)  # the first tick goes at once, the rest waits
        assert collector.batches[0].facts == ()
        until(lambda: number(running, "unidle_agent_ticks_total") >= 3)
        assert running.end() == 0
    assert [batch.seq for batch in collector.batches] == [1, 2]
    times = [time for batch in collector.batches for time in batch.times_ns]
    assert times == sorted(times)
    assert len(times) >= 2
    assert "load_1m" in collector.batches[1].host
    assert abs(collector.batches[1].sent_ns - time.time_ns()) < PATIENCE_S * 1e9


def test_kill_9_while_the_collector_is_away_loses_no_spooled_batch(tmp_path: Path) -> None:
    collector = Collector()
    collector.refuse = True
    with serving(collector) as server:
        with agent(tmp_path / "s", push_url=server.url) as running:
            running.said("is busy")
            until(lambda: spooled(running) >= 4)
            kept = spooled(running)
            running.end(signal.SIGKILL)
        collector.refuse = False
        with agent(tmp_path / "s", push_url=server.url) as running:
            collector.wait(lambda batches: len({batch.boot for batch in batches}) == 2)
            assert running.end() == 0
    seqs = [batch.seq for batch in collector.batches]
    assert seqs == list(range(1, len(seqs) + 1)), "in order, none lost, none twice, and the sequence goes on"
    first_boot = [batch for batch in collector.batches if batch.boot == collector.batches[0].boot]
    assert len(first_boot) >= kept
    assert len({batch.boot.partition(".")[0] for batch in collector.batches}) == 1


def number(running: Running, name: str) -> float:
    """The value of one of the agent's own metrics."""
    return float(re.search(rf"^{name} (\S+)$", running.get("/metrics"), re.MULTILINE)[1])


def spooled(running: Running) -> float:
    return number(running, "unidle_agent_spool_batches")


def until(holds: Callable[[], bool]) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end_s
        time.sleep(0.05)


def test_a_dead_collector_does_not_stop_the_page_and_is_said(tmp_path: Path) -> None:
    url = dead_url()
    with agent(tmp_path / "s", push_url=url, push_token="s3cret") as running:
        running.said(f"the collector at {url} does not answer")
        assert "\nunidle_agent_push_up 0\n" in running.get("/metrics")
        health = json.loads(running.get("/health"))
        assert health["ok"] is True
        assert "does not answer" in health["push"]["problem"]
        assert running.end() == 0
    assert "s3cret" not in "\n".join(running.lines)


def test_a_second_agent_on_the_same_folder_is_refused_with_what_to_do(tmp_path: Path) -> None:
    url = dead_url()
    with agent(tmp_path / "s", push_url=url) as first:
        first.said("sampling the host alone")
        with agent(tmp_path / "s", push_url=url) as second:
            second.said("another agent uses this folder.*--state-dir")
            assert second.process.wait(PATIENCE_S) == 1


def test_a_bad_setting_ends_it_with_one_line_that_names_the_key(tmp_path: Path) -> None:
    with agent(tmp_path / "s", period_s="often") as running:
        assert running.process.wait(PATIENCE_S) == 2
        assert running.said("agent.period_s: expected a number from 0.1 to 60, came 'often'")
    assert not [line for line in running.lines if "Traceback" in line]


def test_an_exporter_that_hangs_delays_no_host_sample(tmp_path: Path) -> None:
    release = threading.Event()
    collector = Collector()
    with (
        serving(in_turn(Reply(before=lambda: release.wait(PATIENCE_S)))) as exporter,
        serving(collector) as server,
        agent(tmp_path / "s", push_url=server.url, dcgm_urls=exporter.url) as running,
    ):
        running.said("still busy|no whole answer")
        collector.wait(lambda batches: sum(len(batch.times_ns) for batch in batches) >= 5)
        release.set()
        assert running.end() == 0


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a libnvidia-ml.so.1 that the real pynvml loads."""
    return nvml_library.build(tmp_path_factory.mktemp("nvml"))


def test_a_gpu_that_nvml_and_an_exporter_see_is_one_row_with_the_source_of_each_field(
    tmp_path: Path, library: Path
) -> None:
    card = nvml_library.gpu(0)
    nvml_library.write(tmp_path / "answers", [card])
    page = PAGE.replace(b"GPU-0", card["uuid"].encode())
    page = page.replace(b"POWER_USAGE", b"ENC_UTIL").replace(b"350.5", b"12")
    with serving(in_turn(Reply(body=page))) as exporter:
        done = subprocess.run(
            [sys.executable, "-m", "unidle_agent.cli", "agent", "--once"],
            env=environment(tmp_path, nvml="on", period_s=0.3, dcgm_urls=exporter.url)
            | nvml_library.environment(library, tmp_path / "answers"),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
    assert done.returncode == 0, done.stderr
    (gpu,) = json.loads(done.stdout)["gpus"]
    assert gpu["values"]["gpu_util_ratio"] == 0.93, "the driver's own answer, not the page's 0.97"
    assert gpu["values"]["energy_j"] == 987654321.012
    sources = gpu["sources"]
    assert (sources["gpu_util_ratio"], sources["sm_active_ratio"]) == ("nvml", "gpm")
    assert sources["encoder_util_ratio"] == "dcgm-exporter"
    assert gpu["model"] == "NVIDIA H100 80GB HBM3"


def test_a_call_that_hangs_in_the_driver_delays_neither_page_nor_host_nor_push(
    tmp_path: Path, library: Path
) -> None:
    answers = tmp_path / "answers"
    cards = [nvml_library.gpu(0), nvml_library.gpu(1)]
    nvml_library.write(answers, cards)
    collector = Collector()
    with (
        serving(collector) as server,
        agent(
            tmp_path / "s",
            extra=nvml_library.environment(library, answers),
            nvml="on",
            nvml_deadline_s=0.4,
            period_s=0.5,
            push_url=server.url,
        ) as running,
    ):
        collector.wait(lambda batches: any(len(batch.gpus) == 2 for batch in batches))
        nvml_library.write(answers, cards, {(1, "nvmlDeviceGetMemoryInfo_v2"): "hang"})
        collector.wait(lambda batches: any(2 in batch.columns.get("gpu_state", ()) for batch in batches))
        seen = len(collector.batches)
        collector.wait(lambda batches: len(batches) >= seen + 4)
        assert json.loads(running.get("/health"))["ok"] is True
        assert number(running, "unidle_host_load_1m") >= 0
        assert running.end() == 0
    hosts = [len(batch.host["load_1m"]) == len(batch.times_ns) for batch in collector.batches]
    assert all(hosts)
    assert all(len(batch.gpus) in (0, 2) for batch in collector.batches), "a hung GPU keeps its place"


@pytest.mark.slow
def test_memory_and_processor_time_of_an_agent_stay_small(tmp_path: Path) -> None:
    collector = Collector()
    page = b"".join(
        PAGE.replace(b'gpu="0",UUID="GPU-0"', b'gpu="%d",UUID="GPU-%d"' % (n, n)) for n in range(8)
    )
    with (
        serving(in_turn(Reply(body=page))) as exporter,
        serving(collector) as server,
        agent(tmp_path / "s", push_url=server.url, dcgm_urls=exporter.url, dcgm_scrape_s=0.1) as running,
    ):
        collector.wait(lambda batches: sum(len(batch.times_ns) for batch in batches) >= 100)
        resident = number(running, "unidle_agent_resident_memory_bytes")
        cpu_s = number(running, "unidle_agent_cpu_seconds_total")
        ticks = number(running, "unidle_agent_ticks_total")
        assert running.end() == 0
    print(f"resident {resident / 2**20:.1f} MiB, {cpu_s:.2f} s of processor for {ticks:.0f} ticks with start")
    assert resident < 48 * 2**20
