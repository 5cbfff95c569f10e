"""Child processes: started one after the other, watched, and stopped in reverse order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from unidle_agent.errors import UnidleError

READY_WITHIN_S = 90.0
POLL_S = 0.1
GRACE_S = 10.0
LOG_TAIL_LINES = 12


@dataclass(frozen=True, slots=True)
class Service:
    """One child: what it runs and how one sees that it is ready."""

    name: str
    arguments: tuple[str, ...]
    """Module and its arguments."""
    environment: Mapping[str, str]
    """All of it, secrets included."""
    health_url: str = ""
    """Answers 200 when ready; empty: ready once started."""
    health_token: str = ""
    address: str = ""
    """What a person opens."""


class ChildError(UnidleError):
    """A child ended by itself."""


@dataclass(frozen=True, slots=True)
class Child:
    """A started service."""

    service: Service
    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Raises ChildError with the end of its log if it has ended."""
        code = self.process.poll()
        if code is not None:
            raise ChildError(
                f"{self.service.name} ended with exit code {code}; its log {self.log} ends:\n{self.tail()}"
            )

    def tail(self) -> str:
        """The last lines of its log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:]
        return "\n".join(f"  {line}" for line in lines) or "  (nothing was logged)"


class Supervisor:
    """The children; a context in which they live and after which none does."""

    def __init__(self, log_dir: Path, stop: threading.Event) -> None:
        self._log_dir, self._stop = log_dir, stop
        self._children: list[Child] = []
        self.hurry = threading.Event()
        """Set: kill instead of waiting for a child to finish."""

    def __enter__(self) -> Supervisor:
        self._log_dir.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_all()

    def start(self, service: Service) -> float:
        """Start a service and wait until it is ready; seconds that took. Raises UnidleError."""
        began = time.monotonic()
        log = self._log_dir / f"{service.name}.log"
        command = [sys.executable, "-m", "unidle_collector.up.child", str(os.getpid()), *service.arguments]
        with log.open("wb") as out:
            process = subprocess.Popen(
                command,
                env=dict(service.environment),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                process_group=0,  # Ctrl-C reaches us alone: we decide the order
            )
        child = Child(service, process, log)
        self._children.append(child)
        while not self._stop.is_set():
            child.check()
            if is_ready(service):
                break
            if time.monotonic() - began > READY_WITHIN_S:
                raise UnidleError(
                    f"{service.name} did not answer at {service.health_url} within {READY_WITHIN_S:.0f} s; "
                    f"its log {log} ends:\n{child.tail()}"
                )
            self._stop.wait(POLL_S)
        return time.monotonic() - began

    def check(self) -> None:
        """Raises ChildError if any has ended."""
        for child in self._children:
            child.check()

    def stop_all(self) -> None:
        """Stop all in reverse order: SIGTERM, and SIGKILL to the whole group after GRACE_S."""
        for child in reversed(self._children):
            if child.process.poll() is None:
                child.process.terminate()
            deadline = time.monotonic() + GRACE_S
            while child.process.poll() is None and time.monotonic() < deadline and not self.hurry.is_set():
                self.hurry.wait(0.02)
            _kill_group(child.process.pid)
            child.process.wait()
        self._children.clear()


def is_ready(service: Service) -> bool:
    """Does its health address answer 200."""
    return not service.health_url or http_status(service.health_url, service.health_token) == 200


def http_status(url: str, token: str = "") -> int | None:
    """The status of a GET, None where nobody answers."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310  # our own children
    try:
        with urllib.request.urlopen(request, timeout=5) as reply:  # noqa: S310
            return int(reply.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except (OSError, ValueError):
        return None


def _kill_group(pid: int) -> None:
    """What the child itself started and left behind."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
