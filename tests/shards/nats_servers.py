"""Real nats-servers with JetStream on free loopback ports, one or a cluster, for tests; ended by pid."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest


def program() -> str:
    """The nats-server; skips the test where there is none. Debian puts it into /usr/sbin."""
    found = shutil.which("nats-server") or shutil.which("nats-server", path="/usr/sbin")
    if found is None:
        pytest.skip("nats-server is not installed: apt-get install nats-server")
    return found


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at this moment."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


class Cluster:
    """`count` servers that form one JetStream cluster (one stands alone)."""

    def __init__(self, folder: Path, count: int = 1, *, extra: tuple[str, ...] = ()) -> None:
        self._folder = folder
        self._program = program()
        ports = free_ports(2 * count)
        self.ports, self._routes = ports[:count], ports[count:]
        self._extra = extra
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            self.start(number)

    @property
    def urls(self) -> str:
        """All servers, split by commas."""
        return ",".join(f"nats://127.0.0.1:{port}" for port in self.ports)

    def start(self, number: int) -> None:
        """Start one server and wait until it listens."""
        command = [
            self._program, "-a", "127.0.0.1", "-p", str(self.ports[number]), "-js",
            "-sd", str(self._folder / f"n{number}"), *self._extra,
        ]  # fmt: skip
        if len(self.ports) > 1:
            routes = ",".join(f"nats://127.0.0.1:{port}" for port in self._routes)
            command += [
                "--cluster_name", "unidle", "--cluster", f"nats://127.0.0.1:{self._routes[number]}",
                "--routes", routes, "--server_name", f"n{number}",
            ]  # fmt: skip
        with (self._folder / f"n{number}.log").open("ab") as log:
            self._running[number] = subprocess.Popen(command, stdout=log, stderr=log)
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.ports[number])) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError(f"nats-server {number} does not listen")

    def kill(self, number: int) -> None:
        """End one server as a crash would."""
        process = self._running.pop(number)
        process.kill()
        process.wait()

    def stop(self) -> None:
        """End all of them."""
        for number in list(self._running):
            self.kill(number)
