"""The kubelet's podresources API: the messages, and the call over a Unix socket."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.agent.owner_world import gpu

from unidle_agent.errors import SourceError
from unidle_agent.owners.grpc import PREFACE, CallError, UnaryClient
from unidle_agent.owners.podresources import PodResources, pods
from unidle_agent.owners.resolve import SHARED
from unidle_agent.wire import Owner

SETTINGS_FRAME = bytes.fromhex("000000040000000000")
PING_FRAME = bytes.fromhex("000008060000000000") + b"pingpong"
PATIENCE_S = 20.0


def number(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes((value & 0x7F | 0x80,))
        value >>= 7
    return out + bytes((value,))


def field(at: int, text: bytes | str) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return number(at << 3 | 2) + number(len(data)) + data


def pod(name: str, space: str, *devices: str, resource: str = "nvidia.com/gpu") -> bytes:
    given_devices = field(1, resource) + b"".join(field(2, device) for device in devices)
    unknown = (
        bytes((9 << 3 | 1,)) + bytes(8) + bytes((10 << 3,)) + number(300) + bytes((11 << 3 | 5,)) + bytes(4)
    )
    cpus = field(1, "main") + b"\x18\x03" + field(2, given_devices) + unknown
    return field(1, field(1, name) + field(2, space) + field(3, cpus) + unknown)


def frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return len(body).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + body


def answer(stream: int, message: bytes, chunk: int = 10_000) -> bytes:
    """Headers, the message in several frames (the first padded), trailers."""
    data = b"\0" + len(message).to_bytes(4) + message
    out = frame(1, 4, stream, b"\x88") + frame(0, 8, stream, b"\x02" + data[:3] + b"\0\0")
    for at in range(3, len(data), chunk):
        out += frame(0, 0, stream, data[at : at + chunk])
    return out + frame(1, 5, stream, b"\x88")


class Kubelet:
    """Speaks HTTP/2 as a gRPC server does: settings, a ping in the way, then `reply(stream)`."""

    def __init__(self, path: Path, reply: Callable[[int], bytes]) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self._reply = reply
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(PATIENCE_S)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            # A client that gives up resets the connection.
            with suppress(ConnectionError), connection, connection.makefile("rb") as file:
                assert file.read(len(PREFACE)) == PREFACE
                connection.sendall(SETTINGS_FRAME)
                while head := file.read(9):
                    body = file.read(int.from_bytes(head[:3]))
                    if head[3] == 1:
                        self.requests.append(body)
                        connection.sendall(PING_FRAME)
                        connection.sendall(self._reply(int.from_bytes(head[5:9])))

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(PATIENCE_S)


@contextmanager
def kubelet(path: Path, reply: Callable[[int], bytes]) -> Iterator[Kubelet]:
    server = Kubelet(path, reply)
    try:
        yield server
    finally:
        server.close()


def test_pods_and_their_gpus_are_read_and_what_is_unknown_is_skipped() -> None:
    message = (
        pod("train-0", "team", "GPU-0", "GPU-1")
        + pod("dns", "kube-system")
        + pod("nic", "team", "x", resource="rdma/hca")
        + pod("small", "team", "MIG-a", resource="nvidia.com/mig-1g.10gb")
    )
    assert pods(message) == [("team/train-0", "GPU-0"), ("team/train-0", "GPU-1"), ("team/small", "MIG-a")]


@given(st.binary())
def test_nonsense_is_read_or_refused_and_ends(data: bytes) -> None:
    try:
        pods(data)
    except ValueError:
        return


def test_every_gpu_has_its_pod_over_one_connection(tmp_path: Path) -> None:
    message = pod("train-0", "team", "GPU-0") + pod("a", "s", "GPU-2::0") + pod("b", "s", "GPU-2::1")
    with kubelet(tmp_path / "sock", lambda stream: answer(stream, message)) as server:
        source = PodResources(tmp_path / "sock", PATIENCE_S)
        gpus = [gpu(0), gpu(1), gpu(2)]
        claims = [source.read(gpus).gpus for _ in range(3)]
        source.close()
    assert claims[0] == claims[1] == claims[2]
    assert claims[0]["GPU-0"] == Owner(True, "team/train-0", source="podresources", confidence="high")
    assert claims[0]["GPU-1"] == Owner(False, source="podresources", confidence="high")
    assert (claims[0]["GPU-2"].job, claims[0]["GPU-2"].note) == ("s/a,s/b", SHARED)
    assert server.connections == 1
    assert b"/v1.PodResourcesLister/List" in server.requests[0]


def test_an_answer_of_many_frames_is_put_together(tmp_path: Path) -> None:
    message = b"".join(pod(f"p{at}", "s", f"GPU-{at}") for at in range(3000))
    with kubelet(tmp_path / "sock", lambda stream: answer(stream, message)):
        client = UnaryClient(tmp_path / "sock")
        assert client.call("/m", b"", PATIENCE_S) == message
        client.close()


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(lambda stream: frame(1, 5, stream, b"\x88"), id="a refusal has no message"),
        pytest.param(lambda stream: frame(7, 0, 0, bytes(8)), id="a server that goes away"),
        pytest.param(lambda stream: frame(3, 0, stream, bytes(4)), id="a call that is given up"),
        pytest.param(lambda stream: b"HTTP/1.1 400 Bad Request\r\n\r\n", id="a server of another kind"),
        pytest.param(lambda stream: frame(0, 1, stream, b"\x01\0\0\0\x01x"), id="a compressed message"),
    ],
)
def test_a_call_that_fails_is_an_error_and_the_next_one_connects_anew(
    tmp_path: Path, reply: Callable[[int], bytes]
) -> None:
    broken = [True]

    def first_broken(stream: int) -> bytes:
        return reply(stream) if broken[0] else answer(stream, b"good")

    with kubelet(tmp_path / "sock", first_broken) as server:
        client = UnaryClient(tmp_path / "sock")
        with pytest.raises(CallError):
            client.call("/m", b"", PATIENCE_S)
        broken[0] = False
        assert client.call("/m", b"", PATIENCE_S) == b"good"
        client.close()
        assert server.connections == 2


def test_a_silent_kubelet_costs_no_more_than_the_deadline(tmp_path: Path) -> None:
    with kubelet(tmp_path / "sock", lambda stream: b""):
        source = PodResources(tmp_path / "sock", deadline_s=0.05)
        with pytest.raises(SourceError, match="no answer"):
            source.read([gpu(0)])


def test_a_node_without_kubelet_knows_of_no_pods(tmp_path: Path) -> None:
    assert PodResources(tmp_path / "none").read([gpu(0)]).gpus == {}
