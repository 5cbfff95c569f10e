"""A real Prometheus of a test's own, with a past that the test writes."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

END_S = 1_795_269_600
"""When the past that tests write ends: 2026-11-21 14:00 UTC."""

Value = Callable[[int], float | None]
"""What a series has n scrapes after its beginning; None is no sample."""


@dataclass(frozen=True)
class Line:
    """One series of the past."""

    name: str
    labels: Mapping[str, str]
    value: Value


def needs_prometheus() -> None:
    """Skip the test where there is none."""
    for program in ("prometheus", "promtool"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (Debian package prometheus)")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def samples(line: Line, scrapes: int, interval_s: int, end_s: int) -> Iterator[tuple[str, str, int]]:
    """Each sample of a series: its name with labels, its value, and when it was, s."""
    labels = ",".join(f'{key}="{value}"' for key, value in line.labels.items())
    first_s = end_s - scrapes * interval_s + 4
    for number in range(scrapes):
        if (value := line.value(number)) is not None:
            yield f"{line.name}{{{labels}}}", repr(value), first_s + number * interval_s


def write_past(folder: Path, lines: list[Line], scrapes: int, interval_s: int, end_s: int = END_S) -> None:
    """Blocks in `folder` with `scrapes` samples of each series, the last just before `end_s`."""
    text = folder.with_suffix(".om")
    with text.open("w", encoding="utf-8") as file:
        for name in sorted({line.name for line in lines}):
            file.write(f"# TYPE {name} unknown\n")
            for line in (line for line in lines if line.name == name):
                for sample in samples(line, scrapes, interval_s, end_s):
                    file.write(" ".join(map(str, sample)) + "\n")
        file.write("# EOF\n")
    made = subprocess.run(
        ["promtool", "tsdb", "create-blocks-from", "openmetrics", str(text), str(folder)],
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr


@contextmanager
def prometheus(folder: Path, config: str = "global: {}\n", *flags: str) -> Iterator[str]:
    """The address of a running server whose data lie in `folder`."""
    folder.mkdir(exist_ok=True)
    port = free_port()
    written = folder.parent / "prometheus.yml"
    written.write_text(config, encoding="utf-8")
    with (folder.parent / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={written}",
                f"--storage.tsdb.path={folder}",
                "--storage.tsdb.retention.time=50y",
                f"--web.listen-address=127.0.0.1:{port}",
                *flags,
            ],
            stdout=log,
            stderr=log,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: answers(f"{url}/-/ready"))
        yield url
    finally:
        process.terminate()
        process.wait(timeout=20)


@contextmanager
def victoria_metrics(folder: Path, *flags: str, port: int = 0) -> Iterator[str]:
    """The address of a running VictoriaMetrics that keeps what it has in `folder`; `port` 0: a free one."""
    if shutil.which("victoria-metrics") is None:
        pytest.skip("victoria-metrics is not installed (Debian package victoria-metrics)")
    port = port or free_port()
    process = subprocess.Popen(
        [
            "victoria-metrics",
            f"-storageDataPath={folder}",
            f"-httpListenAddr=127.0.0.1:{port}",
            "-retentionPeriod=50y",
            "-search.latencyOffset=0s",
            *flags,
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: answers(f"{url}/health"))
        yield url
    finally:
        process.terminate()
        process.wait(timeout=20)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def wait_for(what: Callable[[], object], seconds: float = 60) -> None:
    """Until `what` holds; fails after `seconds`, which is no measure of anything."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.1)
