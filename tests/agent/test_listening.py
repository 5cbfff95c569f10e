"""A port that is taken is said in a line, before anything is made."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from unidle_agent.cli import main
from unidle_agent.errors import UnidleError
from unidle_agent.listening import check_free


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_free_port_is_left_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    check_free("127.0.0.1", port)
    socket.create_server(("127.0.0.1", port)).close()


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(
        UnidleError, match=r"cannot listen on 203\.0\.113\.1:9470 \(Cannot assign requested address\)"
    ):
        check_free("203.0.113.1", 9470)


@pytest.mark.parametrize("role", ["collector", "federation", "dashboard"])
def test_a_role_whose_port_is_taken_says_so_and_makes_nothing(
    role: str, taken: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sites = tmp_path / "sites.toml"
    (tmp_path / "token").write_text("a token of a site that is long enough")
    sites.write_text(f'[[site]]\nurl = "http://127.0.0.1:{taken}"\ntoken_file = "{tmp_path}/token"\n')
    more = ["--sites-file", str(sites)] if role == "federation" else []
    before = set(tmp_path.iterdir())
    assert main([role, "--port", str(taken), *more]) == 1
    said = capsys.readouterr().err
    assert said == (
        f"unidle {role}: cannot listen on 127.0.0.1:{taken} (Address already in use): stop what listens "
        "there, or choose another with --port and --bind\n"
    )
    assert set(tmp_path.iterdir()) == before
