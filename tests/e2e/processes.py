"""Real processes of unidle for end-to-end tests, ended by their pids."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(look: Callable[[], T], what: str, seconds: float = 60.0) -> T:
    """The first true answer of `look`; errors count as "not yet"."""
    end = time.monotonic() + seconds
    last: object = None
    while time.monotonic() < end:
        try:
            found = look()
            if found:
                return found
            last = found
        except (OSError, ValueError, RuntimeError) as error:
            last = error
        time.sleep(0.2)
    raise AssertionError(f"waited {seconds:.0f} s for {what}; last seen: {last!r}")


class Role:
    """One running role, its log beside it."""

    def __init__(self, name: str, folder: Path, settings: dict[str, str], environ: dict[str, str]) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        kept = {key: value for key, value in os.environ.items() if not key.startswith("UNIDLE_")}
        own = {f"UNIDLE_{name.upper()}_{key.upper()}": value for key, value in settings.items()}
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "unidle_agent.cli", name],
                cwd=folder,
                env={**kept, **own, **environ},
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def stop(self) -> None:
        """SIGTERM, then SIGKILL after ten seconds."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)


@contextmanager
def roles(folder: Path) -> Iterator[Callable[..., Role]]:
    """`start(name, settings, **environ)`; everything started is stopped at the end, last first."""
    with ExitStack() as stack:

        def start(name: str, settings: dict[str, str], environ: dict[str, str] | None = None) -> Role:
            role = Role(name, folder, settings, environ or {})
            stack.callback(role.stop)
            return role

        yield start


def answers(url: str) -> bool:
    """Does a GET of `url` answer 200."""
    with urllib.request.urlopen(url, timeout=5) as reply:
        return bool(reply.status == 200)
