"""Prometheus and VictoriaMetrics as processes of this program, asked for what the rules find."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from benchmarks.peers_rules import AFTER_S, PROMQL

READY_S = 60.0

Gpus = frozenset[tuple[str, int]]
"""(node, index)"""


@contextlib.contextmanager
def started(command: list[str], log: Path, environ: Mapping[str, str] | None = None) -> Iterator[int]:
    """A process and its id; it is ended as an operator would, and killed where that does not help."""
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environ)
    try:
        yield process.pid
    finally:
        if process.poll() is not None:
            last_words = log.read_text(errors="replace")[-500:]
            print(f"{' '.join(command[:4])} has ended by itself: {last_words}", file=sys.stderr)
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def ask(port: int, path: str, data: bytes | None = None, **query: object) -> str:
    """What a server on this machine answers; raises OSError."""
    url = f"http://127.0.0.1:{port}{path}?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=60) as answer:
        text: str = answer.read().decode()
    return text


def wait_for(what: str, is_so: Callable[[], bool], most_s: float = READY_S) -> None:
    """Look now and then."""
    end_s = time.monotonic() + most_s
    while time.monotonic() < end_s:
        with contextlib.suppress(OSError):
            if is_so():
                return
        time.sleep(0.25)
    raise SystemExit(f"{what}: not within {most_s:g} s")


def size_of(*folders: Path) -> int:
    """Bytes of all files in them."""
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


@dataclass(frozen=True, slots=True)
class Peer(ABC):
    """An engine of somebody else's, with its data in `folder`; what differs between the two."""

    folder: Path
    nodes: int
    port: int
    feed_port: int
    """Of the pages, for an engine that scrapes."""

    way: ClassVar[str]
    """How `benchmarks.peers_feed` feeds it."""

    @abstractmethod
    def command(self) -> list[str]:
        """Starts it."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Does it take rows and questions."""

    @abstractmethod
    def version(self) -> str:
        """Without what Debian adds."""

    @abstractmethod
    def rest(self) -> None:
        """Stop what it does by itself to get rows."""

    @abstractmethod
    def finish(self) -> int:
        """Turn everything into its final form; the bytes that that takes."""


class Prometheus(Peer):
    """Scrapes."""

    way = "pages"

    def command(self) -> list[str]:
        """A target per node."""
        targets = [
            {
                "targets": [f"127.0.0.1:{self.feed_port}"],
                "labels": {"instance": f"node-{n:05d}:9400", "__metrics_path__": f"/node/{n}"},
            }
            for n in range(self.nodes)
        ]
        job = {"job_name": "gpu", "scrape_interval": "1s", "scrape_timeout": "1s", "static_configs": targets}
        self._config().write_text(json.dumps({"scrape_configs": [job]}))  # JSON is YAML
        return [
            "prometheus",
            f"--config.file={self._config()}",
            f"--storage.tsdb.path={self.folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--web.enable-admin-api",
            "--web.enable-lifecycle",
            "--log.level=warn",
        ]

    def is_ready(self) -> bool:
        """By its own word."""
        return "Ready" in ask(self.port, "/-/ready")

    def version(self) -> str:
        """By its own word."""
        text: str = json.loads(ask(self.port, "/api/v1/status/buildinfo"))["data"]["version"]
        return text.partition("+")[0]

    def rest(self) -> None:
        """Scrape nothing any more."""
        self._config().write_text("{}")
        ask(self.port, "/-/reload", b"")

    def finish(self) -> int:
        """Its head as a block, as every two hours."""
        name = json.loads(ask(self.port, "/api/v1/admin/tsdb/snapshot", b""))["data"]["name"]
        return size_of(self.folder / "data" / "snapshots" / name)

    def _config(self) -> Path:
        return self.folder / "prometheus.yml"


class VictoriaMetrics(Peer):
    """Takes lines."""

    way = "lines"

    def command(self) -> list[str]:
        """Showing what is new at once."""
        return [
            "victoria-metrics",
            f"-storageDataPath={self.folder / 'data'}",
            f"-httpListenAddr=127.0.0.1:{self.port}",
            "-http.connTimeout=24h",
            "-search.latencyOffset=0s",
            "-loggerLevel=WARN",
        ]

    def is_ready(self) -> bool:
        """By its own word."""
        return ask(self.port, "/health") == "OK"

    def version(self) -> str:
        """From dpkg: the package does not know."""
        command = ["dpkg-query", "-W", "-f", "${Version}", "victoria-metrics"]
        text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        return text.partition("+")[0] or "unknown"

    def rest(self) -> None:
        """It only takes."""

    def finish(self) -> int:
        """As its own merges end: one part per month."""
        ask(self.port, "/internal/force_flush")
        ask(self.port, "/internal/force_merge")
        time.sleep(1.0)
        wait_for("merge", lambda: self._merges() == 0)
        return size_of(self.folder / "data" / "data", self.folder / "data" / "indexdb")

    def _merges(self) -> int:
        lines = ask(self.port, "/metrics").splitlines()
        return sum(int(line.split()[-1]) for line in lines if line.startswith("vm_active_force_merges"))


def pass_over(port: int, at_s: float) -> dict[str, Gpus]:
    """What the rules say of the window up to `at_s`."""
    found = {}
    for name, expression in PROMQL.items():
        answer = json.loads(ask(port, "/api/v1/query", query=expression, time=f"{at_s + AFTER_S:.1f}"))
        series = [one["metric"] for one in answer["data"]["result"]]
        found[name] = frozenset((labels["Hostname"], int(labels["gpu"])) for labels in series)
    return found
