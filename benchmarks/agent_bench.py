"""What the measurements of the agent share: eight GPUs whose library answers at once, and an agent that reads
them and pushes to a stand-in for the collector."""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests import nvml_library

from benchmarks.ack_server import AckServer, certificate
from unidle_agent.wire import Batch

GPUS = 8
START_S = 30.0


def say(text: str) -> None:
    """A line for people."""
    print(text, file=sys.stderr, flush=True)


class Bench:
    """What all measurements share: the library, the certificate, a folder each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "library").mkdir()
        self.nvml_folder = nvml_library.build(folder / "library")
        self.pem, self.key = certificate(folder)
        self.answers = folder / "answers.txt"
        nvml_library.write(self.answers, [nvml_library.gpu(number) for number in range(GPUS)])

    def environment(self, answers: Path, **settings: object) -> dict[str, str]:
        """Of a process that finds the library and, as settings of an agent, these."""
        kept = {key: text for key, text in os.environ.items() if not key.startswith("UNIDLE_")}
        named = {f"UNIDLE_AGENT_{name.upper()}": str(value) for name, value in settings.items()}
        return kept | nvml_library.environment(self.nvml_folder, answers) | named

    @contextlib.contextmanager
    def agent(
        self, name: str, answers: Path, take: Callable[[Batch], None], command: tuple[str, ...] = ()
    ) -> Iterator[subprocess.Popen[str]]:
        """`unidle agent`, or another command with its settings, pushing to a stand-in."""
        state = self.folder / name
        state.mkdir()
        server = AckServer(self.pem, self.key, take)
        settings = {"push_url": server.url, "push_ca_file": self.pem, "state_dir": state, "port": 0}
        process = subprocess.Popen(
            [sys.executable, "-m", *(command or ("unidle_agent.cli", "agent"))],
            env=self.environment(answers, **settings),
            stdout=subprocess.PIPE,
            stderr=(state / "log").open("w"),
            text=True,
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(START_S)
            process.kill()
            process.wait()
            server.close()

    def page_url(self, name: str) -> str:
        """Where the agent says that its page is."""
        match = re.search(r"(http://\S+/metrics)", (self.folder / name / "log").read_text())
        assert match, "the agent has not said where its page is"
        return match[1]


class FirstSample:
    """Takes batches and notes when the first came in which every GPU answers."""

    def __init__(self) -> None:
        self.began_s = time.monotonic()
        self.took_s = math.inf
        self._there = threading.Event()

    def __call__(self, batch: Batch) -> None:
        states = batch.columns.get("gpu_state", ())
        if not self._there.is_set() and len(batch.gpus) == GPUS and 0 in states:
            self.took_s = time.monotonic() - self.began_s
            self._there.set()

    def wait(self) -> None:
        if not self._there.wait(START_S):
            raise SystemExit(f"no batch with {GPUS} GPUs within {START_S:g} s: is the agent running?")
