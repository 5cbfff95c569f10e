"""The pusher against a real HTTP server on loopback. No test waits: `step` returns how long it would."""

from __future__ import annotations

import email.utils
import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.agent.scripted_server import Reply, Request, ScriptedServer, dead_url, in_turn, serving

from unidle_agent.errors import SettingError, UnidleError
from unidle_agent.push import MISCONFIGURED_RETRY_S, Pusher
from unidle_agent.settings import Secret
from unidle_agent.spool import Spool
from unidle_agent.wire import CONTENT_TYPE, Batch, decode, encode

NOW_NS = 1_800_000_000 * 10**9
TOKEN = "s3cret-t0ken"


def batch(seq: int) -> bytes:
    return encode(Batch("n", "boot", seq, 1, 1.0, [seq], (), {}, {}))


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = Spool(tmp_path / "spool", 2**30, 1e6)
    yield spool
    spool.close()


def fill(spool: Spool, count: int) -> None:
    for _ in range(count):
        spool.append(batch(spool.next_seq))


def pusher(spool: Spool, url: str, **more: object) -> Pusher:
    options = {"chance": lambda: 1.0, "now_ns": lambda: NOW_NS, **more}
    return Pusher(url, Secret(TOKEN), spool, **options)


def acknowledge(request: Request) -> Reply:
    return Reply(200, json.dumps({"ack": decode(request.body).seq, "send_facts": False}).encode())


def then_acknowledge(*replies: Reply) -> Callable[[Request], Reply]:
    left = list(replies)
    return lambda request: left.pop(0) if left else acknowledge(request)


def sent(server: ScriptedServer) -> list[int]:
    return [decode(request.body).seq for request in server.requests]


def test_batches_arrive_in_order_with_token_and_type_over_one_connection(spool: Spool) -> None:
    fill(spool, 3)
    with serving(acknowledge) as server:
        push = pusher(spool, f"{server.url}/base/")
        assert [push.step() for _ in range(4)] == [0, 0, 0, None]
        push.close()
    assert sent(server) == [1, 2, 3]
    assert {request.path for request in server.requests} == {"/base/api/v1/push"}
    assert {request.headers["content-type"] for request in server.requests} == {CONTENT_TYPE}
    assert {request.headers["authorization"] for request in server.requests} == {f"Bearer {TOKEN}"}
    assert len({request.connection for request in server.requests}) == 1
    assert (spool.pending, push.counts["acknowledged"], push.problem) == (0, 3, "")


def test_the_time_of_sending_is_that_of_now_and_not_of_the_spooling(spool: Spool) -> None:
    fill(spool, 1)
    with serving(acknowledge) as server:
        push = pusher(spool, server.url)
        push.step()
        push.close()
    assert server.requests[0].headers["x-unidle-clock-ns"] == str(NOW_NS)


def test_facts_are_asked_for_once_per_answer_that_wants_them(spool: Spool) -> None:
    fill(spool, 2)
    asked = []
    with serving(in_turn(Reply(200, b'{"ack":1,"send_facts":true}'), Reply(200, b'{"ack":2}'))) as server:
        push = pusher(spool, server.url, on_send_facts=lambda: asked.append(1))
        assert [push.step(), push.step()] == [0, 0]
        push.close()
    assert len(asked) == 1


def test_windows_of_the_flight_recorder_are_asked_for_by_the_reply(spool: Spool) -> None:
    fill(spool, 2)
    asked: list[tuple[str, str]] = []
    reply = {
        "ack": 1,
        "flight": [{"gpu": "GPU-a", "request": "r1"}, {"gpu": "GPU-b", "request": "r2", "x": 1}],
    }
    with serving(in_turn(Reply(200, json.dumps(reply).encode()), Reply(200, b'{"ack":2}'))) as server:
        push = pusher(spool, server.url, on_flights=asked.extend)
        assert [push.step(), push.step()] == [0, 0]
        push.close()
    assert asked == [("GPU-a", "r1"), ("GPU-b", "r2")]


@pytest.mark.parametrize(
    "odd",
    [7, {"gpu": "GPU-a"}, [7], [{"gpu": "GPU-a"}], [{"gpu": "G" * 300, "request": "r"}]],
    ids=["a number", "a map", "numbers", "no request", "too long"],
)
def test_a_request_that_is_none_costs_no_acknowledgement(spool: Spool, odd: object) -> None:
    fill(spool, 1)
    with serving(in_turn(Reply(200, json.dumps({"ack": 1, "flight": odd}).encode()))) as server:
        push = pusher(spool, server.url, on_flights=lambda _: pytest.fail("nothing was asked for"))
        assert [push.step(), push.step()] == [0, None]
        push.close()


def test_who_reads_of_a_problem_in_the_log_finds_it_said(
    spool: Spool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(spool, 1)
    push = pusher(spool, dead_url())
    seen = []
    monkeypatch.setattr(
        caplog.handler, "emit", lambda record: seen.append((record.getMessage(), push.problem))
    )
    push.step()
    push.close()
    assert len(seen) == 1
    assert seen[0][0] == seen[0][1] != ""


@pytest.mark.parametrize(
    ("status", "header", "wait_s"),
    [
        pytest.param(429, "17", 17.0, id="429 with seconds"),
        pytest.param(503, "0", 0.0, id="503 with no time at all"),
        pytest.param(503, email.utils.formatdate(NOW_NS / 1e9 + 90, usegmt=True), 90.0, id="503 with a date"),
        pytest.param(429, email.utils.formatdate(0, usegmt=True), 0.0, id="a date that is over"),
        pytest.param(429, "99999999", 3600.0, id="a year is cut to an hour"),
        pytest.param(429, "soon", 1.0, id="nonsense is backed off from"),
        pytest.param(503, None, 1.0, id="none is backed off from"),
    ],
)
def test_a_busy_collector_is_left_alone_as_long_as_it_asks(
    spool: Spool, status: int, header: str | None, wait_s: float
) -> None:
    fill(spool, 1)
    headers = {} if header is None else {"Retry-After": header}
    with serving(then_acknowledge(Reply(status, headers=headers))) as server:
        push = pusher(spool, server.url)
        assert push.step() == pytest.approx(wait_s)
        assert push.counts["busy"] == 1
        assert spool.pending == 1
        assert push.step() == 0
        push.close()
    assert sent(server) == [1, 1]


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_is_said_once_never_shown_and_tried_again_slowly(
    spool: Spool, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "unidle.agent")
    fill(spool, 1)
    refuse = Reply(status, b'{"detail":"this token may not push"}')
    with serving(then_acknowledge(refuse, refuse, refuse)) as server:
        push = pusher(spool, server.url)
        assert [push.step() for _ in range(3)] == [MISCONFIGURED_RETRY_S] * 3
        assert spool.pending == 1
        assert push.step() == 0
        push.close()
    warnings, infos = [
        [record.getMessage() for record in caplog.records if record.levelname == level]
        for level in ("WARNING", "INFO")
    ]
    assert len(warnings) == 1
    assert "this token may not push" in warnings[0]
    assert "push_token" in warnings[0]
    assert len(infos) == 1
    assert TOKEN not in caplog.text


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_batch_that_the_collector_calls_bad_is_set_aside_and_blocks_nothing(
    spool: Spool, status: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(spool, 2)
    with serving(then_acknowledge(Reply(status, b'{"detail":"column power_w: too short"}'))) as server:
        push = pusher(spool, server.url)
        assert [push.step() for _ in range(3)] == [0, 0, None]
        push.close()
    assert sent(server) == [1, 2]
    assert (spool.rejected, push.counts["rejected"], push.counts["acknowledged"]) == (1, 1, 1)
    assert (tmp_path / "spool" / "rejected").stat().st_size > 0
    assert "column power_w: too short" in caplog.text


def test_a_400_that_is_not_the_collector_s_sets_nothing_aside(spool: Spool) -> None:
    fill(spool, 1)
    with serving(then_acknowledge(Reply(400, b"Invalid host header"))) as server:
        push = pusher(spool, server.url)
        assert push.step() == MISCONFIGURED_RETRY_S
        assert "Invalid host header; check push_url" in push.problem
        assert (spool.rejected, spool.pending) == (0, 1)
        assert push.step() == 0
        push.close()


def test_a_batch_too_big_for_a_proxy_does_not_block_those_behind_it(spool: Spool) -> None:
    fill(spool, 2)
    with serving(then_acknowledge(Reply(413, b"<html>Request Entity Too Large</html>"))) as server:
        push = pusher(spool, server.url)
        assert [push.step(), push.step()] == [0, 0]
        push.close()
    assert (spool.rejected, sent(server)) == (1, [1, 2])


def test_what_the_collector_cannot_read_is_set_aside_and_the_next_one_goes(spool: Spool) -> None:
    spool.append(b"no batch at all")
    fill(spool, 1)
    refuse = Reply(400, b'{"detail": "expected zlib-compressed MessagePack"}')
    with serving(in_turn(refuse, Reply(200, b'{"ack": 2}'))) as server:
        push = pusher(spool, server.url)
        assert [push.step(), push.step()] == [0, 0]
        push.close()
    assert server.requests[0].body == b"no batch at all"
    assert (spool.rejected, spool.pending) == (1, 0)


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(Reply(500, b"boom"), id="500"),
        pytest.param(Reply(502), id="a proxy without its collector"),
        pytest.param(Reply(200, b"<html>welcome"), id="200 from something else"),
        pytest.param(Reply(200, b'{"ack": 77}'), id="an ack of another batch"),
        pytest.param(Reply(200, b"[]"), id="JSON that is no map"),
        pytest.param(Reply(hang_up=True), id="a connection that is closed"),
        pytest.param(Reply(200, b'{"ack', announced=500), id="an answer that is cut"),
        pytest.param(Reply(200, b"x" * 70_000), id="an answer far too big"),
    ],
)
def test_whatever_is_no_acknowledgement_is_backed_off_from_and_loses_nothing(
    spool: Spool, reply: Reply
) -> None:
    fill(spool, 1)
    with serving(then_acknowledge(reply, reply, reply, reply)) as server:
        push = pusher(spool, server.url)
        waits = [push.step() for _ in range(4)]
        assert waits == [1.0, 2.0, 4.0, 8.0]
        assert spool.pending == 1
        assert push.problem
        assert push.step() == 0
        assert push.problem == ""
        push.close()
    assert spool.pending == 0


def test_back_off_ends_at_a_minute_and_half_of_it_is_chance(spool: Spool) -> None:
    fill(spool, 1)
    push = pusher(spool, dead_url())
    waits = [push.step() for _ in range(40)]
    assert waits[:8] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert max(waits) == 60
    push = pusher(spool, dead_url(), chance=lambda: 0.0)
    assert push.step() == 0.5
    assert push.step() == 1.0


def test_a_dead_collector_is_said_once_with_its_address(
    spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    fill(spool, 1)
    url = dead_url()
    push = pusher(spool, url)
    for _ in range(5):
        push.step()
    assert len(caplog.records) == 1
    assert url in caplog.text
    assert "nothing listens there" in caplog.text
    assert TOKEN not in caplog.text


@pytest.mark.parametrize("drip", [False, True], ids=["silence", "a byte now and then"])
def test_a_collector_that_never_finishes_its_answer_is_given_up_on(spool: Spool, drip: bool) -> None:
    fill(spool, 1)
    release = threading.Event()
    slow = Reply(200, announced=10_000, drip=release) if drip else Reply(200, before=release.wait)
    with serving(then_acknowledge(slow)) as server:
        push = pusher(spool, server.url, timeout_s=0.3)
        assert push.step() == 1.0
        assert "no whole answer within 0.3 s" in push.problem
        assert len(server.requests) == 1, "a slow collector is not asked twice at once"
        release.set()
        push = pusher(spool, server.url)
        assert push.step() == 0
        push.close()


def test_a_connection_that_the_server_closed_while_idle_is_no_failure(spool: Spool) -> None:
    fill(spool, 3)
    with serving(lambda request: Reply(200, acknowledge(request).body, announced=None)) as server:
        push = pusher(spool, server.url)
        assert push.step() == 0
        closing = Reply(hang_up=True)
        replies = [closing]
        server.script = lambda request: replies.pop() if replies else acknowledge(request)
        assert push.step() == 0, "tried again at once on a new connection"
        push.close()
    assert push.counts["failed"] == 0
    assert sent(server) == [1, 2, 2]


def test_a_redirect_is_not_followed_and_the_token_not_taken_along(spool: Spool) -> None:
    fill(spool, 1)
    with (
        serving(acknowledge) as other,
        serving(in_turn(Reply(307, headers={"Location": f"{other.url}/api/v1/push"}))) as server,
    ):
        push = pusher(spool, server.url)
        assert push.step() == MISCONFIGURED_RETRY_S
        assert other.url in push.problem
        assert other.requests == []
        push.close()


def test_a_thread_sends_what_comes_and_leaves_when_told(spool: Spool) -> None:
    arrived = threading.Event()

    def script(request: Request) -> Reply:
        if decode(request.body).seq == 3:
            arrived.set()
        return acknowledge(request)

    with serving(script) as server:
        push = pusher(spool, server.url)
        stop = threading.Event()
        thread = threading.Thread(target=push.run, args=(stop,), daemon=True)
        thread.start()
        for _ in range(3):
            fill(spool, 1)
            push.wake()
        assert arrived.wait(20)
        stop.set()
        push.wake()
        thread.join(20)
        assert not thread.is_alive()
        fill(spool, 2)
        push.drain(10)
        push.close()
    assert sent(server) == [1, 2, 3, 4, 5]


def test_a_batch_that_may_wait_goes_with_an_urgent_one_that_may_not(spool: Spool) -> None:
    arrived, looked = threading.Event(), threading.Event()
    peek = spool.peek

    def script(request: Request) -> Reply:
        if decode(request.body).seq == 2:
            arrived.set()
        return acknowledge(request)

    def peeked() -> object:
        looked.set()
        return peek()

    spool.peek = peeked  # type: ignore[assignment,method-assign]
    with serving(script) as server:
        push = pusher(spool, server.url)
        stop = threading.Event()
        thread = threading.Thread(target=push.run, args=(stop,), daemon=True)
        thread.start()
        assert looked.wait(20), "it looks once at the start"
        fill(spool, 1)
        push.wake(3600)
        fill(spool, 1)
        push.wake()
        assert arrived.wait(20)
        stop.set()
        push.wake()
        thread.join(20)
        push.close()
    assert sent(server) == [1, 2]


def test_a_batch_is_sent_once_its_delay_is_over(spool: Spool) -> None:
    arrived = threading.Event()

    def script(request: Request) -> Reply:
        arrived.set()
        return acknowledge(request)

    with serving(script) as server:
        push = pusher(spool, server.url)
        stop = threading.Event()
        thread = threading.Thread(target=push.run, args=(stop,), daemon=True)
        thread.start()
        fill(spool, 1)
        push.wake(0.02)
        assert arrived.wait(20)
        stop.set()
        push.wake()
        thread.join(20)
        assert not thread.is_alive()
        push.close()


def test_a_password_in_the_address_is_refused_and_not_shown(spool: Spool) -> None:
    with pytest.raises(SettingError, match="push_url") as refused:
        pusher(spool, "http://me:hunter2@host:1")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("url", ["collector:9470", "ftp://host", "http://", "http://host:port"])
def test_an_address_that_is_none_is_refused_by_name(spool: Spool, url: str) -> None:
    with pytest.raises(SettingError, match=r"agent\.push_url"):
        pusher(spool, url)


@pytest.mark.parametrize("token", ["two\nlines", "caf\u00e9", "\u20ac"])
def test_a_token_that_no_header_can_carry_is_refused_and_not_shown(spool: Spool, token: str) -> None:
    with pytest.raises(SettingError, match=r"agent\.push_token") as refused:
        Pusher("http://127.0.0.1:1", Secret(token), spool)
    assert token not in str(refused.value)


def test_a_token_in_clear_text_over_the_network_is_warned_about(
    spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    pusher(spool, "http://127.0.0.1:1")
    assert caplog.text == ""
    pusher(spool, "http://collector.example:9470")
    assert "clear text" in caplog.text
    assert TOKEN not in caplog.text


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    if shutil.which("openssl") is None:
        pytest.skip("needs the program openssl to make a certificate")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-nodes", "-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


def test_tls_is_verified_against_the_given_authority_and_nothing_is_sent_without(
    spool: Spool, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    fill(spool, 1)
    with serving(acknowledge) as server:
        server.use_tls(*certificate)
        url = server.url.replace("http://", "https://")
        stranger = pusher(spool, url)
        assert stranger.step() == 1.0
        assert "CERTIFICATE_VERIFY_FAILED" in stranger.problem
        assert server.requests == []
        trusting = pusher(spool, url, ca_file=str(certificate[0]))
        assert trusting.step() == 0
        trusting.close()
    with pytest.raises(UnidleError, match=r"nowhere\.pem: expected a PEM file"):
        pusher(spool, url, ca_file=str(tmp_path / "nowhere.pem"))
