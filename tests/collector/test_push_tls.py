"""A real collector with TLS, a real authority, real agents' pushes."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.collector.pushing import batch
from tests.e2e.processes import free_port, roles, wait_for

from unidle_agent.push import Pusher
from unidle_agent.settings import Secret
from unidle_agent.spool import Spool
from unidle_agent.wire import encode

pytestmark = pytest.mark.slow
BUSY = {"power_w": 600.0}


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def authority(folder: Path, name: str) -> None:
    """A certificate authority: NAME.pem and NAME.key."""
    openssl(
        folder, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
        "-keyout", f"{name}.key", "-out", f"{name}.pem",
    )  # fmt: skip


def signed(folder: Path, name: str, by: str, alt: str = "") -> None:
    """A certificate for `name`, signed by the authority `by`."""
    openssl(
        folder, "req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}",
        "-keyout", f"{name}.key", "-out", f"{name}.csr",
    )  # fmt: skip
    (folder / "ext").write_text(f"subjectAltName={alt or f'DNS:{name}'}\n")
    openssl(
        folder, "x509", "-req", "-in", f"{name}.csr", "-CA", f"{by}.pem", "-CAkey", f"{by}.key",
        "-CAcreateserial", "-days", "2", "-extfile", "ext", "-out", f"{name}.pem",
    )  # fmt: skip


def listens(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), 1):
        return True


@pytest.fixture(scope="module")
def collector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """(Folder with certificates, address) of a running collector."""
    folder = tmp_path_factory.mktemp("tls")
    authority(folder, "ca")
    authority(folder, "other-ca")
    signed(folder, "server", "ca", "IP:127.0.0.1")
    signed(folder, "gpu-001", "ca")
    signed(folder, "gpu-666", "other-ca")
    port = free_port()
    settings = {
        "port": str(port),
        "data_dir": str(folder / "data"),
        "tls_cert_file": "server.pem",
        "tls_key_file": "server.key",
        "tls_client_ca_file": "ca.pem",
    }
    with roles(folder) as start:
        start("collector", settings)
        wait_for(lambda: listens(port), "the collector")
        yield folder, f"https://127.0.0.1:{port}"


def pushed(
    collector: tuple[Path, str], tmp_path: Path, node: str, cert: str = "", token: str = ""
) -> dict[str, int]:
    """What came of one push of a node's rows by the agent's own pusher."""
    folder, url = collector
    spool = Spool(tmp_path / f"spool-{node}-{cert}", max_bytes=2**20, max_age_s=3600)
    first_s = int(time.time()) - 1_700_000_000 - 10
    spool.append(encode(batch(spool.next_seq, first_s, 5, BUSY, node=node)))
    pusher = Pusher(
        url,
        Secret(token),
        spool,
        ca_file=str(folder / "ca.pem"),
        cert_file=str(folder / f"{cert}.pem") if cert else "",
        key_file=str(folder / f"{cert}.key") if cert else "",
    )
    try:
        pusher.step()
    finally:
        pusher.close()
        spool.close()
    return {what: count for what, count in pusher.counts.items() if count}


def test_a_node_with_a_certificate_pushes_its_rows_without_a_token(
    collector: tuple[Path, str], tmp_path: Path
) -> None:
    assert pushed(collector, tmp_path, "gpu-001", cert="gpu-001") == {"acknowledged": 1}


def test_a_node_with_a_certificate_pushes_no_other_nodes_rows(
    collector: tuple[Path, str], tmp_path: Path
) -> None:
    assert pushed(collector, tmp_path, "gpu-002", cert="gpu-001") == {"misconfigured": 1}


def test_a_certificate_of_another_authority_is_no_way_in(collector: tuple[Path, str], tmp_path: Path) -> None:
    assert pushed(collector, tmp_path, "gpu-666", cert="gpu-666") == {"failed": 1}


def test_without_certificate_and_token_nothing_is_taken(collector: tuple[Path, str], tmp_path: Path) -> None:
    assert pushed(collector, tmp_path, "gpu-003") == {"misconfigured": 1}
