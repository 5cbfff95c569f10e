"""A node's connection, byte by byte: what arrives in pieces, together, too large, or is no push at all."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import uvicorn
from tests.collector.pushing import START_S, Site, batch, site
from tests.e2e.processes import wait_for

from unidle_agent.wire import encode
from unidle_collector.ingest.asgi import PushApp
from unidle_collector.ingest.door import MAX_BODY_BYTES
from unidle_collector.ingest.protocol import PushProtocol

BUSY = {"gpu_util_ratio": 0.9, "sm_active_ratio": 0.8, "power_w": 600.0, "memory_used_bytes": 3e10}
FLEET = b"GET /api/v1/fleet HTTP/1.1\r\nHost: testserver\r\n\r\n"


class Wire:
    """A connection to the collector."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 10)
        self.file = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> tuple[int, dict[str, object]]:
        status = int(self.file.readline().split()[1])
        length = 0
        while line := self.file.readline().strip():
            if line.lower().startswith(b"content-length:"):
                length = int(line.split()[1])
        return status, json.loads(self.file.read(length))

    def is_closed(self) -> bool:
        return self.file.read(1) == b""


@pytest.fixture
def here(tmp_path: Path) -> Iterator[tuple[Site, Wire]]:
    """A site with a clock of its own behind a real server, and a connection to it."""
    with site(tmp_path) as running:
        running.clock.at_s = START_S + 60
        app = running.http.app
        assert isinstance(app, PushApp)
        protocol = cast(type[asyncio.Protocol], partial(PushProtocol, app.door))
        server = uvicorn.Server(uvicorn.Config(app, port=0, http=protocol, log_level="critical"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        wait_for(lambda: server.started, "the server")
        wire = Wire(server.servers[0].sockets[0].getsockname()[1])
        yield running, wire
        wire.file.close()
        wire.socket.close()
        server.should_exit = True
        thread.join(30)


def push(seq: int, more: str = "", token: str = Site.token) -> bytes:
    body = encode(batch(seq, 5 * seq, 5, BUSY))
    head = f"POST /api/v1/push HTTP/1.1\r\nAuthorization: Bearer {token}\r\n{more}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def test_a_push_in_pieces_is_one_push(here: tuple[Site, Wire]) -> None:
    running, wire = here
    data = push(1)
    for piece in (data[:3], data[3:30], data[30:200], data[200:]):
        wire.send(piece)
    assert wire.answer() == (200, {"ack": 1, "send_facts": False, "duplicate": False})
    assert running.counter("rows_ingested") == 10


def test_pushes_sent_together_are_answered_in_order(here: tuple[Site, Wire]) -> None:
    running, wire = here
    wire.send(b"".join(push(seq) for seq in range(6)))
    assert [wire.answer()[1]["ack"] for _ in range(6)] == list(range(6))
    assert running.counter("rows_ingested") == 60


def test_a_question_is_answered_on_a_connection_that_pushed(here: tuple[Site, Wire]) -> None:
    _, wire = here
    wire.send(push(1))
    assert wire.answer()[0] == 200
    wire.send(FLEET)
    status, fleet = wire.answer()
    assert (status, fleet["gpus"]) == (200, 2)
    wire.send(push(2))
    assert wire.answer() == (200, {"ack": 2, "send_facts": False, "duplicate": False})


def test_a_body_in_chunks_that_grows_too_large_is_refused_and_the_connection_ends(
    here: tuple[Site, Wire],
) -> None:
    running, wire = here
    head = f"POST /api/v1/push HTTP/1.1\r\nAuthorization: Bearer {Site.token}\r\n"
    wire.send(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
    piece = b"\0" * 2**20
    for _ in range(MAX_BODY_BYTES // len(piece) + 1):
        wire.send(b"%x\r\n%b\r\n" % (len(piece), piece))
    assert wire.answer()[0] == 413
    wire.send(b"0\r\n\r\n")
    assert wire.is_closed()
    assert running.counter("batches_too_large") == 1


def test_who_has_no_token_is_told_before_sending_the_body(here: tuple[Site, Wire]) -> None:
    running, wire = here
    wire.send(b"POST /api/v1/push HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n")
    assert wire.answer()[0] == 401
    assert running.counter("requests_unauthorized") == 1


def test_what_is_no_http_is_refused(here: tuple[Site, Wire]) -> None:
    running, wire = here
    wire.send(b"POST /api/v1/push HTTP/1.1\r\nContent-Length: many\r\n\r\n")
    assert wire.answer()[0] == 400
    assert wire.is_closed()
    assert running.counter("rows_ingested") == 0


def test_a_sender_that_waits_for_100_continue_gets_it(here: tuple[Site, Wire]) -> None:
    _, wire = here
    head, _, body = push(1, "Expect: 100-continue\r\n").partition(b"\r\n\r\n")
    wire.send(head + b"\r\n\r\n")
    assert wire.file.readline() == b"HTTP/1.1 100 Continue\r\n"
    assert wire.file.readline() == b"\r\n"
    wire.send(body)
    assert wire.answer()[0] == 200


def test_a_sender_that_goes_before_its_answer_harms_nobody(here: tuple[Site, Wire]) -> None:
    running, wire = here
    wire.send(push(1))
    wire.socket.close()
    wait_for(lambda: running.counter("rows_ingested") == 10, "the rows")
    assert running.push(push(2)[push(2).index(b"\r\n\r\n") + 4 :])[0] == 200
