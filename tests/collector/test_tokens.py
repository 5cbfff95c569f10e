"""Who may write which rows, who may read, and the command that says so."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.collector.pushing import START_S, Site, batch, site

from unidle_agent.cli import main
from unidle_agent.wire import encode
from unidle_collector.ingest import door
from unidle_collector.ingest.protocol import certificate_names
from unidle_collector.ingest.tokens import NOBODY, PREFIX, Tokens, make
from unidle_collector.store import open_state

BUSY = {"gpu_util_ratio": 0.9, "sm_active_ratio": 0.8, "power_w": 600.0, "memory_used_bytes": 3e10}
NOW_NS = START_S * 10**9


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as running:
        running.clock.at_s = START_S + 5
        yield running


def given(here: Site, kind: str, name: str, **more: int) -> str:
    """A token that holds in the running site."""
    secret, token = make(kind, name, here.clock(), **more)  # type: ignore[arg-type]
    here.live.store.state.save_tokens([token])
    here.tokens.refresh()
    return secret


def unidle(data_dir: Path, *arguments: str, code: int = 0) -> None:
    assert main(["tokens", *arguments, "--data-dir", str(data_dir)]) == code


def test_a_nodes_token_writes_its_rows_and_no_others(here: Site) -> None:
    token = given(here, "write", "n1")
    assert here.push(batch(1, 0, 5, BUSY, node="n1"), token=token)[0] == 200
    status, reply = here.push(batch(1, 0, 5, BUSY, node="n2"), token=token)
    assert status == 403
    assert "n1" in reply["detail"]
    assert token not in reply["detail"]
    assert [node["node"] for node in here.get("nodes")] == ["n1"]
    assert here.counter("rows_ingested") == 10
    assert here.counter("batches_forbidden") == 1


def test_a_write_token_does_not_read_and_a_read_token_does_not_write(here: Site) -> None:
    writing, reading = given(here, "write", "n1"), given(here, "read", "grafana")
    fleet = {
        token: here.http.get("/api/v1/fleet", headers={"Authorization": f"Bearer {token}"})
        for token in (writing, reading)
    }
    assert [fleet[writing].status_code, fleet[reading].status_code] == [401, 200]
    assert here.push(batch(1, 0, 5, BUSY), token=reading)[0] == 401


def test_the_first_read_token_closes_reading_and_its_end_does_not_open_it(here: Site) -> None:
    assert here.http.get("/api/v1/fleet").status_code == 200
    given(here, "read", "grafana")
    assert here.http.get("/api/v1/fleet").status_code == 401
    state = here.live.store.state
    state.save_tokens([replace(token, revoked_ns=here.clock()) for token in state.tokens()])
    here.tokens.refresh()
    assert here.http.get("/api/v1/fleet").status_code == 401


def test_a_token_that_has_expired_or_was_revoked_is_good_for_nothing(here: Site) -> None:
    token = given(here, "write", "n1", expires_ns=here.clock() + 10**9)
    assert here.push(batch(1, 0, 5, BUSY), token=token)[0] == 200
    here.clock.at_s += 1
    assert here.push(batch(2, 5, 5, BUSY), token=token)[0] == 401
    other = given(here, "write", "n1")
    assert here.push(batch(2, 5, 5, BUSY), token=other)[0] == 200
    state = here.live.store.state
    state.save_tokens([replace(one, revoked_ns=here.clock()) for one in state.tokens()])
    here.tokens.refresh()
    assert here.push(batch(3, 10, 5, BUSY), token=other)[0] == 401


def test_a_push_without_a_token_is_refused_before_its_body_is_read(here: Site) -> None:
    reply = here.http.post("/api/v1/push", content=b"\0" * (door.MAX_BODY_BYTES + 1))
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"] == "Bearer"
    assert here.counter("batches_too_large") == 0


def test_another_method_is_refused(here: Site) -> None:
    reply = here.http.get("/api/v1/push", headers={"Authorization": f"Bearer {here.token}"})
    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")


def test_a_node_with_too_many_pushes_at_once_is_asked_to_come_again(
    here: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "MOST_OF_ONE", 0)
    token = given(here, "write", "n1")
    headers = {"Authorization": f"Bearer {token}"}
    reply = here.http.post("/api/v1/push", content=encode(batch(1, 0, 5, BUSY)), headers=headers)
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "1")
    assert here.push(batch(1, 0, 5, BUSY))[0] == 200  # the shared token is nobody's in particular


def test_the_database_holds_no_token(here: Site, tmp_path: Path) -> None:
    token = given(here, "write", "n1")
    here.push(batch(1, 0, 5, BUSY), token=token)
    with sqlite3.connect(tmp_path / "state.sqlite") as db:
        dump = "\n".join(db.iterdump())
    assert "n1" in dump
    assert token not in dump
    assert token.removeprefix(PREFIX["write"]) not in dump


def test_when_a_token_was_used_is_kept(tmp_path: Path) -> None:
    state = open_state(tmp_path / "state.sqlite")
    secret, token = make("write", "n1", NOW_NS)
    state.save_tokens([token])
    tokens = Tokens(state, lambda: NOW_NS + 7)
    assert tokens.may_write(f"bearer {secret}") == {"n1"}
    assert tokens.may_write(f"Bearer {secret}x") == NOBODY
    tokens.stop()
    assert [kept.used_ns for kept in state.tokens()] == [NOW_NS + 7]
    state.close()


def test_made_listed_rotated_and_revoked_by_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unidle(tmp_path, "create", "--node", "gpu-001")
    name, first_id, first = capsys.readouterr().out.split()
    assert name == "gpu-001"
    state = open_state(tmp_path / "state.sqlite")
    tokens = Tokens(state, lambda: NOW_NS + 10**18)  # a clock beyond all grace, but not beyond `for ever`
    assert tokens.may_write(f"Bearer {first}") == {"gpu-001"}
    unidle(tmp_path, "rotate", first_id)
    _, second_id, second = capsys.readouterr().out.split()
    tokens.refresh()
    assert tokens.may_write(f"Bearer {first}") == NOBODY
    assert tokens.may_write(f"Bearer {second}") == {"gpu-001"}
    unidle(tmp_path, "revoke", second_id)
    capsys.readouterr()
    tokens.refresh()
    assert tokens.may_write(f"Bearer {second}") == NOBODY
    unidle(tmp_path, "list")
    listed = capsys.readouterr().out
    assert first_id in listed
    assert "(over)" in next(line for line in listed.splitlines() if second_id in line)
    assert first not in listed
    unidle(tmp_path, "revoke", second_id, code=1)
    assert "unidle tokens list" in capsys.readouterr().err
    state.close()


def test_tokens_of_many_nodes_are_written_to_files_that_only_their_owner_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "given"
    unidle(tmp_path, "create", "--node", "a", "--node", "b", "--write-to", str(folder))
    secrets = [(folder / f"{name}.token").read_text().strip() for name in "ab"]
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert not any(secret in capsys.readouterr().out for secret in secrets)
    state = open_state(tmp_path / "state.sqlite")
    tokens = Tokens(state, lambda: NOW_NS)
    assert [tokens.may_write(f"Bearer {secret}") for secret in secrets] == [{"a"}, {"b"}]
    state.close()


@pytest.mark.parametrize(
    ("asked", "code", "words"),
    [
        (("create", "--node", "../../etc/cron.d/x", "--write-to", "given"), 1, "expected a name"),
        (("create", "--read", "x", "--expires-days", "-3"), 2, "--expires-days: expected 0 or more, came -3"),
        (("rotate", "nope", "--keep-old-h", "-1"), 2, "--keep-old-h: expected 0 or more"),
        (("rotate", "nope"), 1, "expected the id of a token that holds, came 'nope'"),
    ],
)
def test_what_cannot_be_made_is_refused_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: tuple[str, ...], code: int, words: str
) -> None:
    unidle(tmp_path, *asked, code=code)
    assert words in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if "token" in path.name or path.name == "given"] == []


def test_the_list_for_machines_says_whose_and_until_when_and_has_no_hash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unidle(tmp_path, "create", "--node", "gpu-001")
    secret = capsys.readouterr().out.split()[-1]
    unidle(tmp_path, "list", "--json")
    said = capsys.readouterr().out
    (row,) = json.loads(said)
    assert (row["kind"], row["name"], row["holds"]) == ("write", "gpu-001", True)
    assert (row["expires_ns"], row["used_ns"]) == (None, None)
    assert secret not in said
    assert set(row) == {"id", "kind", "name", "created_ns", "expires_ns", "revoked_ns", "used_ns", "holds"}


def test_the_folder_of_the_store_may_stand_before_the_action_and_behind_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unidle(tmp_path, "list")
    assert capsys.readouterr().out.startswith("no tokens: ")
    assert main(["tokens", "--data-dir", str(tmp_path), "create", "--read", "grafana"]) == 0
    capsys.readouterr()
    unidle(tmp_path, "list")
    assert "grafana" in capsys.readouterr().out


def test_the_names_of_a_certificate_are_its_common_name_and_dns_names() -> None:
    certificate = {
        "subject": ((("countryName", "DE"),), (("commonName", "gpu-001"),)),
        "subjectAltName": (("DNS", "gpu-001.example.org"), ("IP Address", "10.0.0.1")),
    }
    assert certificate_names(certificate) == {"gpu-001", "gpu-001.example.org"}
    assert certificate_names(None) == frozenset()
