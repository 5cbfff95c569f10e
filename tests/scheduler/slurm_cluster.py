"""A real Slurm on loopback: slurmctld and one slurmd per node, GPUs that are copies of /dev/null.

Debian's slurmctld, slurmd, slurm-client and slurm-wlm-basic-plugins; root, because of the device files. No
munge, no systemd; a database only where books are kept. Everything lies in one folder and is ended by its own
pid files.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.scheduler import slurm_books

PROGRAMS = ("slurmctld", "slurmd", "squeue", "sinfo", "sbatch", "scancel", "scontrol")
GPUS = 8
SHARDS = 32


def missing() -> str:
    """Why no Slurm can be started here; empty when it can."""
    lacking = [name for name in PROGRAMS if shutil.which(name) is None]
    if lacking:
        return f"needs Debian's slurmctld, slurmd, slurm-client: no {', '.join(lacking)}"
    return "" if os.geteuid() == 0 else "needs root, to make device files"


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running cluster."""

    folder: Path

    @property
    def environ(self) -> dict[str, str]:
        """What makes client commands speak to it."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def call(self, *command: str) -> str:
        """Run a client command and give back what it says."""
        done = subprocess.run(
            command,
            env={**os.environ, **self.environ},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def submit(self, *options: str, runs: str = "sleep 600") -> str:
        """A batch job, one that sleeps where nothing else is asked; returns its id."""
        script = self.folder / "job.sh"
        script.write_text(f"#!/bin/sh\n{runs}\n")
        return self.call("sbatch", "--parsable", "--output=/dev/null", *options, str(script)).strip()

    def wait_for(self, *jobs: str, state: str = "RUNNING") -> None:
        """Until each of these jobs is in `state`."""
        deadline = time.monotonic() + 30
        while True:
            found = {self.call("squeue", "-h", "-j", job, "-o", "%T").strip() for job in jobs}
            if found == {state}:
                return
            assert time.monotonic() < deadline, f"expected {state}, came {found}"
            time.sleep(0.1)

    def cancel_all(self) -> None:
        """End every job: one that outlives its slurmd would outlive the test."""
        deadline = time.monotonic() + 20
        while self.call("squeue", "-h") and time.monotonic() < deadline:
            self.call("scancel", "--user=root")
            time.sleep(0.2)

    def stop_controller(self) -> None:
        """Kill slurmctld."""
        _end(self.folder / "run" / "slurmctld.pid")

    def forget_jobs(self) -> None:
        """A new slurmctld without the state of the old one: jobs are in the books only."""
        self.stop_controller()
        subprocess.run(["slurmctld", "-c"], env={**os.environ, **self.environ}, check=True, timeout=20)
        assert self.call("squeue", "-h") == ""

    def stop_books(self) -> None:
        """Kill slurmdbd."""
        _end(self.folder / "run" / "slurmdbd.pid")


@contextmanager
def cluster(folder: Path, nodes: int = 2, *, books: bool = False) -> Iterator[Cluster]:
    """A cluster of `nodes` nodes gpu1, gpu2, ... and gpushard with shards; idle when given, ended after.

    With `books` a slurmdbd keeps what has ended.
    """
    names = [*(f"gpu{number}" for number in range(1, nodes + 1)), "gpushard"]
    books_port, database_port = _free_ports(2)
    _prepare(folder, names, slurm_books.slurm_settings(books_port) if books else {})
    here = Cluster(folder)
    environ = {**os.environ, **here.environ}
    try:
        if books:
            slurm_books.start(folder, books_port, database_port, here.environ)
        subprocess.run(["slurmctld", "-c"], env=environ, check=True, timeout=20)
        for name in names:
            subprocess.run(["slurmd", "-N", name], env=environ, check=True, timeout=20)
        deadline = time.monotonic() + 30
        while here.call("sinfo", "-h", "-N", "-o", "%T").split() != ["idle"] * len(names):
            assert time.monotonic() < deadline, here.call("sinfo", "-N", "-l")
            time.sleep(0.1)
        yield here
    finally:
        if (folder / "run" / "slurmctld.pid").is_file():  # else scancel would try for its whole deadline
            with suppress(AssertionError, subprocess.TimeoutExpired):
                here.cancel_all()
        for file in sorted((folder / "run").glob("*.pid"), key=_last):
            _end(file)


def _last(file: Path) -> int:
    """Daemons end before what they write to: slurmd, slurmctld, slurmdbd, the database."""
    order = ("slurmd-", "slurmctld", "slurmdbd", "mariadb")
    return next(place for place, name in enumerate(order) if file.name.startswith(name))


def _end(file: Path) -> None:
    if not file.is_file():
        return
    pid = int(file.read_text().split()[0])
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        with suppress(ChildProcessError):  # the database is our own child, and goes when it is waited for
            os.waitpid(pid, os.WNOHANG)
        time.sleep(0.05)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    file.unlink(missing_ok=True)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _prepare(folder: Path, names: list[str], more: dict[str, object]) -> None:
    for name in ("state", "log", "run", "dev", *(f"spool/{name}" for name in names)):
        (folder / name).mkdir(parents=True)
    host = socket.gethostname().split(".")[0]
    controller, *ports = _free_ports(1 + len(names))
    lines = [f"{key}={value}" for key, value in (_settings(folder, host, controller) | more).items()]
    gres = ["AutoDetect=off"]
    for name, port in zip(names, ports, strict=True):
        for number in range(GPUS):
            os.mknod(folder / "dev" / f"{name}g{number}", 0o020666, os.makedev(1, 3))
        gres.append(f"NodeName={name} Name=gpu Type=b200 File={folder}/dev/{name}g[0-{GPUS - 1}]")
        shards = f",shard:{SHARDS}" if name == "gpushard" else ""
        lines.append(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=64 Boards=1 "
            "SocketsPerBoard=2 CoresPerSocket=32 ThreadsPerCore=1 RealMemory=1000000 "
            f"Gres=gpu:b200:{GPUS}{shards} Feature=b200 State=UNKNOWN"
        )
    gres.append(f"NodeName=gpushard Name=shard Count={SHARDS}")
    plain = ",".join(name for name in names if name != "gpushard")
    lines += [
        f"PartitionName=batch Nodes={plain} Default=YES MaxTime=INFINITE State=UP",
        "PartitionName=shared Nodes=gpushard MaxTime=INFINITE State=UP",
    ]
    (folder / "slurm.conf").write_text("\n".join(lines) + "\n")
    (folder / "gres.conf").write_text("\n".join(gres) + "\n")


def _settings(folder: Path, host: str, port: int) -> dict[str, object]:
    return {
        "ClusterName": "ci",
        "SlurmctldHost": f"{host}(127.0.0.1)",
        "SlurmctldPort": port,
        "SlurmUser": "root",
        "SlurmdUser": "root",
        "AuthType": "auth/none",
        "CredType": "cred/none",
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": f"{folder}/spool/%n",
        "SlurmctldLogFile": folder / "log" / "slurmctld.log",
        "SlurmdLogFile": f"{folder}/log/slurmd-%n.log",
        "SlurmctldPidFile": folder / "run" / "slurmctld.pid",
        "SlurmdPidFile": f"{folder}/run/slurmd-%n.pid",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "SwitchType": "switch/none",
        "MpiDefault": "none",
        "MailProg": "/bin/true",
        "ReturnToService": 2,
        "SchedulerParameters": "batch_sched_delay=0,sched_interval=2,bf_interval=2",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core_Memory",
        "SlurmdParameters": "config_overrides",
        "GresTypes": "gpu,shard",
        "KillWait": 5,
        "MessageTimeout": 10,
    }
