"""A TCP proxy on the loopback that remembers every byte, in both directions."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Wiretap:
    """Forwards to `port`; `sent` is what came back from there, `asked` what went to it."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.sent, self.asked = bytearray(), bytearray()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self._to), timeout=5)
                except OSError:
                    near.close()  # nobody there: as if the site itself refused
                    continue
                for source, target, kept in ((near, far, self.asked), (far, near, self.sent)):
                    threading.Thread(target=_pump, args=(source, target, kept), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket, kept: bytearray) -> None:
    with contextlib.suppress(OSError), source:
        while data := source.recv(65536):
            kept.extend(data)
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextmanager
def wiretap(port: int) -> Iterator[Wiretap]:
    """A wiretap for as long as the block runs."""
    tap = Wiretap(port)
    try:
        yield tap
    finally:
        tap.close()
