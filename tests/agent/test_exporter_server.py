"""The server of /metrics and /health: formats, token, TLS, slow clients."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import pytest

from unidle_agent.config import AgentSettings
from unidle_agent.errors import SettingError, UnidleError
from unidle_agent.exporter import Certificate, Exporter, Health
from unidle_agent.exporter.server import MOST_CONNECTIONS, prefers_openmetrics
from unidle_agent.runtime import Agent
from unidle_agent.settings import Secret

PROMETHEUS = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
PATIENCE_S = 30.0


def page(names: str, openmetrics: bool) -> str:
    return f'x{{a="ü",names="{names}",openmetrics="{openmetrics}"}} 1\n'


@contextlib.contextmanager
def exporting(
    *,
    token: str = "",
    certificate: Certificate | None = None,
    deadline_s: float = PATIENCE_S,
    ok: bool = True,
) -> Iterator[Exporter]:
    exporter = Exporter(
        "127.0.0.1",
        0,
        page,
        lambda: Health(ok, {"node": "n"}),
        token=Secret(token),
        certificate=certificate,
        deadline_s=deadline_s,
    )
    try:
        yield exporter
    finally:
        exporter.close()


def get(url: str, tls: ssl.SSLContext | None = None, **headers: str) -> tuple[int, Message, bytes]:
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    try:
        asked = urllib.request.Request(url, headers=named)
        with urllib.request.urlopen(asked, timeout=PATIENCE_S, context=tls) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def test_without_a_wish_the_page_is_prometheus_text_under_the_names_of_the_settings() -> None:
    with exporting() as exporter:
        status, headers, body = get(f"{exporter.url}/metrics")
    assert (status, body.decode()) == (200, page("", False))
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert headers["Content-Encoding"] is None


def test_prometheus_gets_openmetrics_as_it_asks_for() -> None:
    with exporting() as exporter:
        _, headers, body = get(f"{exporter.url}/metrics", Accept=PROMETHEUS)
    assert body.decode() == page("", True)
    assert headers["Content-Type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        (PROMETHEUS, True),
        ("application/openmetrics-text", True),
        ("text/plain;q=0.5, application/openmetrics-text; version=1.0.0; q=0.4", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=often", False),
        ("text/html, */*", False),
        ("", False),
    ],
)
def test_openmetrics_is_sent_where_it_is_wanted_most(accept: str, openmetrics: bool) -> None:
    assert prefers_openmetrics(accept) is openmetrics


def test_gzip_is_sent_where_it_is_asked_for() -> None:
    with exporting() as exporter:
        _, headers, body = get(f"{exporter.url}/metrics", Accept_Encoding="br, gzip;q=0.8")
        assert headers["Content-Encoding"] == "gzip"
        assert gzip.decompress(body).decode() == page("", False)
        _, headers, body = get(f"{exporter.url}/metrics", Accept_Encoding="gzip;q=0, deflate")
        assert headers["Content-Encoding"] is None
        assert body.decode() == page("", False)


def test_the_names_can_be_asked_for_in_the_query() -> None:
    with exporting() as exporter:
        assert get(f"{exporter.url}/metrics?names=dcgm49")[2].decode() == page("dcgm49", False)
        status, _, body = get(f"{exporter.url}/metrics?names=nvidia")
    assert status == 400
    assert b"own, dcgm, dcgm49" in body


def test_health_and_unknown_paths() -> None:
    with exporting() as exporter:
        status, _, body = get(f"{exporter.url}/health")
        assert (status, json.loads(body)) == (200, {"ok": True, "node": "n"})
        assert get(f"{exporter.url}/secrets")[0] == 404
    with exporting(ok=False) as exporter:
        assert get(f"{exporter.url}/health")[0] == 503


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer wrong", "Basic right", "Bearer righT", "right"])
def test_without_the_token_there_is_no_page_and_health_says_only_whether(header: str) -> None:
    with exporting(token="right") as exporter:
        for path in ("/metrics", "/metrics?names=dcgm", "/metrics?names=nonsense"):
            status, headers, body = get(f"{exporter.url}{path}", Authorization=header)
            assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
            assert b"right" not in body
        assert json.loads(get(f"{exporter.url}/health", Authorization=header)[2]) == {"ok": True}


def test_with_the_token_everything_is_there() -> None:
    with exporting(token="right") as exporter:
        assert get(f"{exporter.url}/metrics", Authorization="Bearer right")[0] == 200
        said = json.loads(get(f"{exporter.url}/health", Authorization="Bearer right")[2])
    assert said == {"ok": True, "node": "n"}


@pytest.mark.parametrize("bind", ["0.0.0.0", "", "::", "10.0.0.5", "node7"])
def test_an_address_that_others_reach_needs_a_token(bind: str) -> None:
    with pytest.raises(SettingError, match=r"metrics_token: expected a token .*--metrics-token-file"):
        Exporter(bind, 0, page, lambda: Health(True, {}))


def test_the_agent_itself_refuses_to_start_open(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="metrics_token"):
        Agent(AgentSettings(nvml="off", bind="0.0.0.0", port=0, state_dir=str(tmp_path)))


@pytest.mark.parametrize("token", ["two\nlines", "schlüssel"])
def test_a_token_that_no_header_carries_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(SettingError, match="printable ASCII") as error:
        Exporter("127.0.0.1", 0, page, lambda: Health(True, {}), token=Secret(token))
    assert token not in str(error.value)


def test_a_port_that_is_taken_is_a_clear_error() -> None:
    with exporting() as exporter, pytest.raises(UnidleError, match=rf"127\.0\.0\.1:{exporter.port}.*--port"):
        Exporter("127.0.0.1", exporter.port, page, lambda: Health(True, {}))


# Slow clients


def connect(exporter: Exporter) -> socket.socket:
    return socket.create_connection(("127.0.0.1", exporter.port), timeout=PATIENCE_S)


def test_silent_clients_keep_nobody_waiting_and_the_oldest_is_cut() -> None:
    with exporting(deadline_s=600) as exporter, contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connect(exporter)) for _ in range(MOST_CONNECTIONS)]
        for _ in range(3):
            assert get(f"{exporter.url}/metrics")[0] == 200
        assert silent[0].recv(1) == b""
        silent[-1].sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert silent[-1].recv(12) == b"HTTP/1.1 200", "the youngest is still served"


def test_a_client_that_drips_is_cut_at_the_deadline() -> None:
    with exporting(deadline_s=0.3) as exporter, connect(exporter) as slow:
        with contextlib.suppress(ConnectionError):
            slow.sendall(b"GET /metrics HTTP/1.1\r\nX-Slow: ")
            slow.settimeout(0.05)
            for _ in range(int(PATIENCE_S / 0.05)):
                slow.sendall(b"x")
                try:
                    if slow.recv(1) == b"":
                        break
                except TimeoutError:
                    continue
            else:
                pytest.fail("nothing cut a client that never ends its request")
        assert get(f"{exporter.url}/metrics")[0] == 200


# TLS


def make_certificate(folder: Path, name: str = "localhost") -> tuple[Path, Path]:
    if shutil.which("openssl") is None:
        pytest.skip("needs the program openssl to make a certificate")
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-nodes", "-keyout", key, "-out", cert, "-days", "2", "-subj", f"/CN={name}"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


def test_the_page_is_served_over_tls(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)
    trusted = ssl.create_default_context(cafile=str(cert))
    with exporting(certificate=Certificate(str(cert), str(key))) as exporter:
        assert exporter.url.startswith("https://")
        assert get(f"{exporter.url}/metrics", trusted)[0] == 200
        with connect(exporter) as silent, contextlib.suppress(ConnectionError):
            assert get(f"{exporter.url}/metrics", trusted)[0] == 200, "a handshake that hangs blocks nobody"
            silent.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert b"x{" not in silent.recv(4096), "nothing in clear text"


def test_a_renewed_certificate_is_taken_up_and_a_broken_one_is_not(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)
    with exporting(certificate=Certificate(str(cert), str(key))) as exporter:
        first = ssl.get_server_certificate(("127.0.0.1", exporter.port))
        make_certificate(tmp_path)
        os.utime(cert, ns=(1, 1))  # two files within one tick of the clock would look the same
        second = ssl.get_server_certificate(("127.0.0.1", exporter.port))
        cert.write_text("torn")
        third = ssl.get_server_certificate(("127.0.0.1", exporter.port))
    assert first != second
    assert second == third


def test_a_certificate_that_does_not_load_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("nothing")
    for file in ("cert.pem", "absent.pem"):
        with pytest.raises(SettingError, match=r"tls_cert_file: expected a PEM file.*" + file):
            Certificate(str(tmp_path / file))


def test_a_key_without_a_certificate_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="tls_cert_file"):
        Agent(AgentSettings(nvml="off", port=0, state_dir=str(tmp_path), tls_key_file="key.pem"))
