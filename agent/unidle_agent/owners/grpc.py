"""One unary gRPC call over one kept-open Unix socket: as much of HTTP/2 (RFC 9113) as that takes.

Requests are sent with literal headers (RFC 7541, section 6.2.2), so nothing needs a table. The headers of
an answer are not read: whether a call worked is told by its message. So a refusal has no words here, but
the number of bytes that came instead. Nothing of the grpc package is needed, which weighs 30 MB.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS, PADDED = 0x1, 0x1, 0x4, 0x8
HEADER_TABLE_SIZE, INITIAL_WINDOW_SIZE = 1, 4
WINDOW_BYTES = 16 << 20
"""What may come before we say that we took it."""
MAX_FRAME_BYTES = 1 << 14
"""The largest frame a peer may send to who has not asked for larger ones."""
MAX_MESSAGE_BYTES = 8 << 20
MAX_STREAM = 2**31 - 3


class CallError(Exception):
    """The call gave no answer; says why."""


class UnaryClient:
    """Calls one method at a time on the server behind the Unix socket `path`."""

    def __init__(self, path: Path, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._monotonic = monotonic
        self._socket: socket.socket | None = None
        self._stream = 1
        self._until_s = 0.0

    def call(self, method: str, request: bytes, deadline_s: float) -> bytes:
        """The answer's message; raises CallError, and OSError where the socket does not work."""
        self._until_s = self._monotonic() + deadline_s
        try:
            if self._socket is None or self._stream > MAX_STREAM:
                self._connect()
            return self._call(method, request)
        except BaseException:
            self.close()  # what comes later would belong to this call
            raise

    def close(self) -> None:
        """Hang up; the next call connects anew."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connect(self) -> None:
        self.close()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._patience()
        self._socket.connect(str(self._path))
        self._stream = 1
        settings = struct.pack(">HIHI", HEADER_TABLE_SIZE, 0, INITIAL_WINDOW_SIZE, WINDOW_BYTES)
        self._write(
            PREFACE + _frame(SETTINGS, 0, 0, settings) + _frame(WINDOW_UPDATE, 0, 0, WINDOW_BYTES.to_bytes(4))
        )

    def _call(self, method: str, request: bytes) -> bytes:
        stream, self._stream = self._stream, self._stream + 2
        headers = b"".join(
            _literal(name, value)
            for name, value in (
                (":method", "POST"),
                (":scheme", "http"),
                (":path", method),
                (":authority", "localhost"),
                ("content-type", "application/grpc"),
                ("te", "trailers"),
            )
        )
        message = b"\0" + len(request).to_bytes(4) + request
        self._write(_frame(HEADERS, END_HEADERS, stream, headers) + _frame(DATA, END_STREAM, stream, message))
        answer = bytearray()
        while True:
            kind, flags, at, body = self._read_frame()
            if kind == SETTINGS and not flags & ACK:
                self._write(_frame(SETTINGS, ACK, 0, b""))
            elif kind == PING and not flags & ACK:
                self._write(_frame(PING, ACK, 0, body))
            elif kind == GOAWAY:
                raise CallError("the server hung up")
            elif kind == RESET and at == stream:
                raise CallError(f"the server gave the call up (HTTP/2 error {int.from_bytes(body[:4])})")
            elif kind == DATA and at == stream:
                if body:
                    self._write(_frame(WINDOW_UPDATE, 0, 0, len(body).to_bytes(4)))
                answer += body[1 : len(body) - body[0]] if flags & PADDED else body
                if len(answer) > MAX_MESSAGE_BYTES:
                    raise CallError(f"the answer is over {MAX_MESSAGE_BYTES} bytes")
            if kind in (DATA, HEADERS) and at == stream and flags & END_STREAM:
                return _message(bytes(answer))

    def _read_frame(self) -> tuple[int, int, int, bytes]:
        head = self._read(9)
        size = int.from_bytes(head[:3])
        if size > MAX_FRAME_BYTES:
            raise CallError(f"expected HTTP/2, came a frame of {size} bytes")
        return head[3], head[4], int.from_bytes(head[5:9]) & 0x7FFFFFFF, self._read(size)

    def _read(self, size: int) -> bytes:
        out = bytearray()
        while len(out) < size:
            part = self._patience().recv(size - len(out))
            if not part:
                raise CallError("the server closed the connection")
            out += part
        return bytes(out)

    def _write(self, data: bytes) -> None:
        self._patience().sendall(data)

    def _patience(self) -> socket.socket:
        """The socket, with the time that is left."""
        assert self._socket is not None
        left_s = self._until_s - self._monotonic()
        if left_s <= 0:
            raise TimeoutError("no answer in time")
        self._socket.settimeout(left_s)
        return self._socket


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return len(body).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + body


def _literal(name: str, value: str) -> bytes:
    """A header without index, without Huffman; texts are shorter than 127 bytes."""
    return b"\0" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()


def _message(data: bytes) -> bytes:
    """The one message of a unary answer, out of its 5-byte envelope."""
    if len(data) < 5 or data[0] != 0 or len(data) != 5 + int.from_bytes(data[1:5]):
        raise CallError(f"expected one whole uncompressed message, came {len(data)} bytes")
    return data[5:]
