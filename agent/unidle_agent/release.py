"""Letting go of NVML for a while: an open client stands in the way of a GPU reset, a MIG change or a
driver upgrade.

`Control` listens on a Unix socket in the state folder, which only the agent's user and root may use. One
request is one line of JSON, `{"release_s": 600}` (0: take hold again now), and so is its answer:
`{"ok": true, "text": ...}`. The answer comes when the driver is let go of: whoever waits for it may
reset. A release is of the running agent: one that is started anew takes hold.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from unidle_agent.errors import UnidleError, reason
from unidle_agent.sample import GpuReading, Reading, Source
from unidle_agent.sources import LateSource

log = logging.getLogger("unidle.agent")

SOCKET = "control.sock"
MAX_RELEASE_S = 24 * 3600.0
"""Longer than any repair waits for; a release that is forgotten must end."""
MAX_REQUEST_BYTES = 4096
ASK_S = 120.0
"""How long the command waits for the agent: a sample may be a minute away."""


@runtime_checkable
class Held(Protocol):
    """A source whose processes may be stuck in the driver after it was closed."""

    @property
    def held(self) -> int:
        """How many are."""


class ReleasableSource(LateSource):
    """A source that can be let go of, and that takes hold again by itself."""

    def __init__(
        self,
        name: str,
        precedence: int,
        build: Callable[[], Source],
        *,
        required: bool,
        retry_s: float = 60.0,
        monotonic: Callable[[], float] = time.monotonic,
        time_s: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(name, precedence, build, required=required, retry_s=retry_s, monotonic=monotonic)
        self._time_s = time_s
        self._changed = threading.Condition()
        self._until_s = float("-inf")
        self._why = ""
        self._let_go = False
        self._rows: tuple[GpuReading, ...] = ()

    def due(self) -> bool:
        """Always: a request to let go is carried out by the next read."""
        return True

    def read(self) -> Reading:
        """A reading; while released, the known GPUs with every value unknown, and why until when."""
        with self._changed:
            released, why = self._monotonic() < self._until_s, self._why
        if not released:
            self._note(let_go=False)
            reading = super().read()
            self._rows = tuple(GpuReading(row.facts, {}) for row in reading.gpus)
            return reading
        if not self._let_go:
            # Here, in the thread that reads: nothing else may touch the source.
            self.close()
            self._note(let_go=True)
        return Reading(gpus=self._rows, problems=(why,))

    def release(self, for_s: float, patience_s: float) -> tuple[bool, str]:
        """Let go of the driver for `for_s` seconds; whether it is, and a sentence, once it is known.

        Called by another thread than reads. 0 takes hold again at the next read.
        """
        until = datetime.fromtimestamp(self._time_s() + for_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        with self._changed:
            self._until_s = self._monotonic() + for_s if for_s > 0 else float("-inf")
            self._why = f"released until {until}; `unidle agent release --now` takes hold again at once"
            if for_s <= 0:
                return True, "the agent takes hold of the driver at its next sample"
            if not self._changed.wait_for(lambda: self._let_go, patience_s):
                return False, f"the agent is in the middle of a read for over {patience_s:g} s: try again"
        held = self._source.held if isinstance(self._source, Held) else 0
        if held:
            return (
                False,
                f"{held} processes hang in the driver and cannot be killed: this node wants a reboot",
            )
        return True, f"the agent holds nothing of the driver until {until}"

    def _note(self, *, let_go: bool) -> None:
        with self._changed:
            self._let_go = let_go
            self._changed.notify_all()


class Control:
    """Answers on the socket in `folder` until closed; raises OSError where it cannot listen."""

    def __init__(self, folder: Path, source: ReleasableSource, patience_s: float) -> None:
        self._folder, self._source, self._patience_s = folder, source, patience_s
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._socket = _listen(folder)
        self._thread = threading.Thread(target=self._serve, name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._socket.close()
        self._thread.join(1.0)
        (self._folder / SOCKET).unlink(missing_ok=True)

    def _serve(self) -> None:
        while True:
            try:
                over, _ = self._socket.accept()
            except OSError:
                return  # closed
            with over:
                try:
                    over.settimeout(5.0)
                    ok, text = self._answer(_line(over))
                    over.sendall(json.dumps({"ok": ok, "text": text}).encode() + b"\n")
                except (OSError, ValueError) as error:
                    log.warning("a request on %s could not be answered: %s", SOCKET, error)

    def _answer(self, line: bytes) -> tuple[bool, str]:
        try:
            for_s = float(json.loads(line)["release_s"])
        except (ValueError, TypeError, KeyError):
            return False, f'expected {{"release_s": SECONDS}}, came {line[:80]!r}'
        if not 0 <= for_s <= MAX_RELEASE_S:
            return False, f"expected 0 to {MAX_RELEASE_S:g} seconds, came {for_s:g}"
        ok, text = self._source.release(for_s, self._patience_s)
        log.info("release for %g s asked for: %s", for_s, text)
        return ok, text


def ask(folder: Path, for_s: float) -> str:
    """Ask the agent of `folder` to release for `for_s` seconds; raises UnidleError where it did not."""
    with _at(folder) as address, socket.socket(socket.AF_UNIX) as over:
        over.settimeout(ASK_S)
        try:
            over.connect(address)
            over.sendall(json.dumps({"release_s": for_s}).encode() + b"\n")
            answer: dict[str, Any] = json.loads(_line(over))
        except PermissionError as error:
            raise UnidleError(
                f"{folder / SOCKET} is not yours: run this as the agent's user or root"
            ) from error
        except (OSError, ValueError) as error:
            raise UnidleError(
                f"no agent answers on {folder / SOCKET} ({reason(error)}): is it running, and with this "
                "state_dir?"
            ) from error
    if not answer["ok"]:
        raise UnidleError(str(answer["text"]))
    return str(answer["text"])


def _listen(folder: Path) -> socket.socket:
    with _at(folder) as address:
        over = socket.socket(socket.AF_UNIX)
        try:
            with socket.socket(socket.AF_UNIX) as other:
                other.settimeout(1.0)
                if other.connect_ex(address) == 0:
                    raise OSError("another agent listens there")
            (folder / SOCKET).unlink(missing_ok=True)  # of an agent that was killed
            before = os.umask(0o177)
            try:
                over.bind(address)
            finally:
                os.umask(before)
            over.listen(1)
        except BaseException:
            over.close()
            raise
    return over


@contextlib.contextmanager
def _at(folder: Path) -> Iterator[str]:
    """The socket's address, however deep its folder is: one of over 107 bytes cannot be (unix(7))."""
    try:
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UnidleError(f"{folder}: expected the agent's state_dir ({reason(error)})") from error
    try:
        yield f"/proc/self/fd/{number}/{SOCKET}"
    finally:
        os.close(number)


def _line(over: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\n") and len(data) < MAX_REQUEST_BYTES:
        part = over.recv(MAX_REQUEST_BYTES)
        if not part:
            break
        data += part
    return data
