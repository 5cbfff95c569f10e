"""XIDs on the page of a running agent, from a driver's event to what Prometheus scrapes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.nvml_library import FakeNvml, gpu

PATIENCE_S = 20.0
SERIES = re.compile(r'^unidle_gpu_xid_errors_total\{.*xid="(\d+)"\} (\d+)$', re.MULTILINE)
ANSWERS = re.compile(r"^unidle_gpu_power_watts\{", re.MULTILINE)


@contextmanager
def running_agent(folder: Path) -> Iterator[tuple[int, str]]:
    """An agent's process id and the address of its page."""
    known = {key: text for key, text in os.environ.items() if not key.startswith("UNIDLE_AGENT")}
    process = subprocess.Popen(
        [sys.executable, "-m", "unidle_agent.cli", "agent", "--period-s", "0.1"],
        env=known | {"UNIDLE_AGENT_STATE_DIR": str(folder / "state"), "UNIDLE_AGENT_PORT": "0"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        url = next(match[0] for line in process.stderr if (match := re.search(r"http://\S+/metrics", line)))
        threading.Thread(target=process.stderr.read, daemon=True).start()  # a full pipe would stop it
        yield process.pid, url
    finally:
        process.kill()
        process.wait()


def page(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


def counts(url: str) -> dict[int, int]:
    return {int(code): int(count) for code, count in SERIES.findall(page(url))}


def wait_for(holds: Callable[[], bool], what: str) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < until_s, what
        time.sleep(0.05)


def child_of(pid: int) -> int:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    children = [child for task in tasks for child in (task / "children").read_text().split()]
    return int(children[0]) if children else 0


def test_xids_are_counted_by_code_and_neither_stick_nor_vanish(nvml: FakeNvml, tmp_path: Path) -> None:
    with running_agent(tmp_path) as (pid, url):
        wait_for(lambda: bool(ANSWERS.search(page(url))), "the GPU on the page")
        assert counts(url) == {}
        nvml.write(gpu(xid__0=79))
        wait_for(lambda: counts(url) == {79: 1}, "the first XID")
        nvml.write(gpu(xid__0=79, xid__1=31))
        wait_for(lambda: counts(url) == {79: 1, 31: 1}, "another code beside the first")
        for _ in range(3):
            time.sleep(0.15)
            assert counts(url) == {79: 1, 31: 1}, "scrapes and ticks count nothing again"

        nvml.write(gpu())  # the driver of the next child has told nobody of an XID yet
        before = child_of(pid)
        os.kill(before, signal.SIGKILL)
        wait_for(lambda: child_of(pid) not in (0, before), "another child")
        assert counts(url) == {79: 1, 31: 1}, "what was counted outlives the child that heard it"
        nvml.write(gpu(xid__0=31))
        wait_for(lambda: counts(url) == {79: 1, 31: 2}, "the next XID, by way of the new child")
