"""The books of a real Slurm on loopback: slurmdbd, and the MariaDB that it keeps them in.

Debian's slurmdbd and mariadb-server. Everything lies in the cluster's folder and is ended by its pid files.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

PROGRAMS = ("slurmdbd", "sacct", "mariadbd", "mariadb", "mariadb-install-db")
PATIENCE_S = 60.0
DATABASE, USER, PASSWORD = "slurm_acct_db", "slurm", "of-a-test"


def missing() -> str:
    """Why no books can be kept here; empty when they can."""
    lacking = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"needs Debian's slurmdbd and mariadb-server: no {', '.join(lacking)}" if lacking else ""


def slurm_settings(port: int) -> dict[str, object]:
    """What a cluster's slurm.conf says of its books."""
    return {
        "AccountingStorageType": "accounting_storage/slurmdbd",
        "AccountingStorageHost": "localhost",
        "AccountingStoragePort": port,
        "AccountingStorageTRES": "gres/gpu,gres/gpu:b200,gres/shard",
        "JobAcctGatherType": "jobacct_gather/linux",
    }


def start(folder: Path, port: int, database_port: int, environ: Mapping[str, str]) -> None:
    """Start both; `folder` holds slurm.conf, and run/ their pid files."""
    _start_database(folder, database_port)
    settings = {
        "AuthType": "auth/none",
        "DbdHost": "localhost",
        "DbdAddr": "127.0.0.1",
        "DbdPort": port,
        "SlurmUser": "root",
        "StorageType": "accounting_storage/mysql",
        "StorageHost": "127.0.0.1",
        "StoragePort": database_port,
        "StorageUser": USER,
        "StoragePass": PASSWORD,
        "StorageLoc": DATABASE,
        "LogFile": folder / "log" / "slurmdbd.log",
        "PidFile": folder / "run" / "slurmdbd.pid",
    }
    conf = folder / "slurmdbd.conf"
    conf.touch(0o600)
    conf.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
    start_books(folder, environ)


def start_books(folder: Path, environ: Mapping[str, str]) -> None:
    """Start slurmdbd alone; returns when it takes connections."""
    subprocess.run(["slurmdbd"], env={**os.environ, **environ}, check=True, timeout=PATIENCE_S)
    conf = (folder / "slurmdbd.conf").read_text().splitlines()
    (port,) = (int(line.partition("=")[2]) for line in conf if line.startswith("DbdPort="))
    deadline = time.monotonic() + PATIENCE_S
    while not _listens(port):
        assert time.monotonic() < deadline, (folder / "log" / "slurmdbd.log").read_text()[-2000:]
        time.sleep(0.1)


def _start_database(folder: Path, port: int) -> None:
    data, log = folder / "books", folder / "log" / "mariadb.log"
    at = ("--no-defaults", "--user=root", f"--datadir={data}")
    make = ["mariadb-install-db", *at, "--auth-root-authentication-method=normal", "--skip-test-db"]
    subprocess.run(make, check=True, timeout=PATIENCE_S, capture_output=True)
    sock = folder / "run" / "mariadb.sock"
    settings = {
        "bind-address": "127.0.0.1",
        "port": port,
        "socket": sock,
        "pid-file": folder / "run" / "mariadb.pid",
        "log-error": log,
        "innodb-buffer-pool-size": "32M",
        "innodb-log-file-size": "16M",
    }
    server = ["mariadbd", *at, *(f"--{key}={value}" for key, value in settings.items())]
    subprocess.Popen(server, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    words = "".join(
        f"GRANT ALL ON {DATABASE}.* TO '{USER}'@'{host}' IDENTIFIED BY '{PASSWORD}';"
        for host in ("localhost", "127.0.0.1")
    )
    ask = ["mariadb", "--no-defaults", f"--socket={sock}", "--user=root", "--execute", words]
    deadline = time.monotonic() + PATIENCE_S
    while subprocess.run(ask, capture_output=True, timeout=PATIENCE_S).returncode != 0:
        assert time.monotonic() < deadline, log.read_text()[-2000:] if log.is_file() else "no log yet"
        time.sleep(0.1)


def _listens(port: int) -> bool:
    with socket.socket() as to:
        return to.connect_ex(("127.0.0.1", port)) == 0
