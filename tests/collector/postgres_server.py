"""A real PostgreSQL on a free loopback port, for tests; ended by `pg_ctl` on its own folder."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def programs() -> Path:
    """The folder of initdb and pg_ctl; skips the test where there is no PostgreSQL."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    if not found and not on_path:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    return found[-1].parent if found else Path(str(on_path)).parent


def free_port() -> int:
    """One that nobody listens on at this moment."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Server:
    """PostgreSQL in a folder of its own; it refuses to run as root, so it runs as `postgres` there."""

    def __init__(self) -> None:
        self._bin = programs()
        self.folder = Path(tempfile.mkdtemp(prefix="unidle-pg-"))
        self.folder.chmod(0o755)
        self._data = self.folder / "data"
        self.port = free_port()
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres", "postgres")
        self._run(f"{self._bin}/initdb -D {self._data} -A trust -U unidle -E UTF8 --no-sync")
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder}"
        start = f'{self._bin}/pg_ctl -D {self._data} -l {self.folder}/log -o "{options}" -w -t 60 start'
        self._run(f"{start} >/dev/null")

    def stop(self) -> None:
        """Stop it at once, as a power cut would."""
        self._run(f"{self._bin}/pg_ctl -D {self._data} -m immediate -w stop >/dev/null")

    def database(self) -> str:
        """The URL of a new, empty database."""
        name = f"t{uuid.uuid4().hex[:12]}"
        self._run(f"{self._bin}/createdb -h 127.0.0.1 -p {self.port} -U unidle {name}")
        return f"postgresql://unidle:a-password@127.0.0.1:{self.port}/{name}"

    def _run(self, command: str) -> None:
        who = ["su", "postgres", "-s", "/bin/sh", "-c"] if os.geteuid() == 0 else ["/bin/sh", "-c"]
        done = subprocess.run([*who, command], cwd="/", capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{command}: {done.stdout} {done.stderr}"


@contextmanager
def postgres() -> Iterator[Server]:
    """A running server, gone at the end."""
    server = Server()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(server.folder, ignore_errors=True)
