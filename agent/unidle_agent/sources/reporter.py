"""The agent's end of the in-job reporter: a Unix datagram socket that any job of this node may write to.

Whoever writes is strange: the kernel says which process and user it was (SCM_CREDENTIALS), and a message
that claims another process id counts as forged. A process in a container knows itself by another number;
/proc/PID/status lists those (NSpid). A message is at most 8 KiB, a process may send 5 in a second, all of
them together 1000, and after that the socket is not read until the second is over: what a job then sends
is dropped by its own kernel call, at once. The values only add to GPUs that another source sees, so no
message can invent a GPU. A device that torch cannot name by its UUID (before torch 2.4, unless
CUDA_VISIBLE_DEVICES holds UUIDs) and a MIG instance (its row has another name) are not told.
"""

from __future__ import annotations

import logging
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from unidle_agent.errors import SourceError
from unidle_agent.sample import GpuReading, Reading
from unidle_agent.sources.reporter_ledger import Ledger, Message, parse

log = logging.getLogger("unidle.agent")

MAX_MESSAGE_BYTES = 8192
"""A message of 16 devices is 4 kB."""
MAX_PER_SENDER = 5
MAX_PER_SECOND = 1000
MAX_SENDERS = 256
EVENTS = ("messages", "lost", "malformed", "too_big", "too_fast", "forged", "unseen", "without_gpu", "ooms")
"""What is counted. Lost are those that a process made and this socket had no room for; unseen is a process
in a pid namespace that this one cannot see into (an agent in a container wants hostPID)."""
CREDENTIALS = struct.Struct("iII")
"""struct ucred: pid, uid, gid (unix(7))."""


class ReporterSource:
    """Listens on the socket `path` in a thread of its own; a reading is what was heard lately."""

    name = "reporter"
    precedence = 30

    def __init__(
        self,
        path: Path,
        *,
        proc: Path = Path("/proc"),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Bind the socket; raises SourceError saying why it cannot be bound."""
        self.counts = dict.fromkeys(EVENTS, 0)
        self._path, self._proc, self._monotonic = path, proc, monotonic
        self._ledger = Ledger()
        self._told: tuple[GpuReading, ...] = ()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._second_s = float("-inf")
        self._all = 0
        self._of: dict[int, int] = {}
        self._socket, self._inode = _bind(path)
        self._thread = threading.Thread(target=self._listen, name="reporter-socket", daemon=True)
        self._thread.start()

    def due(self) -> bool:
        """Is there anybody to tell of, now or at the reading before."""
        with self._lock:
            return bool(self._told) or not self._ledger.silent

    def read(self) -> Reading:
        """Every GPU that a job has reported on within the last 5 s."""
        with self._lock:
            self._told = self._ledger.readings(self._monotonic())
            return Reading(gpus=self._told, additional=True)

    def close(self) -> None:
        """Stop listening and remove the socket, unless it is another's by now."""
        self._stop.set()
        self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._thread.join(1.0)
        self._socket.close()
        try:
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()
        except OSError:  # it is gone already
            pass

    def _listen(self) -> None:
        while not self._stop.is_set():
            try:
                data, ancillary, flags, _ = self._socket.recvmsg(
                    MAX_MESSAGE_BYTES, socket.CMSG_SPACE(CREDENTIALS.size)
                )
            except OSError:
                return
            if self._stop.is_set():
                return
            now_s = self._monotonic()
            if now_s - self._second_s >= 1.0:
                self._second_s, self._all = now_s, 0
                self._of.clear()
            self._all += 1
            try:
                self._hear(data, _sender(ancillary), bool(flags & socket.MSG_TRUNC), now_s)
            except Exception:  # one message must not silence all others
                log.exception("a message of an in-job reporter could not be taken")
            if self._all >= MAX_PER_SECOND:
                self._stop.wait(self._second_s + 1.0 - now_s)

    def _hear(self, data: bytes, pid: int, torn: bool, now_s: float) -> None:
        """Judge one datagram of the process `pid` as this process sees it, 0 where it cannot."""
        if pid <= 0:
            self.counts["unseen"] += 1
            return
        if pid not in self._of and len(self._of) >= MAX_SENDERS:
            self.counts["too_fast"] += 1
            return
        self._of[pid] = self._of.get(pid, 0) + 1
        if self._of[pid] > MAX_PER_SENDER:
            self.counts["too_fast"] += 1
            return
        if torn:
            self.counts["too_big"] += 1
            return
        try:
            message = parse(data)
        except ValueError:
            self.counts["malformed"] += 1
            return
        if message.pid != pid and message.pid not in _names(self._proc, pid):
            self.counts["forged"] += 1
            return
        self.counts["messages"] += 1
        self.counts["without_gpu"] += not message.devices
        if message.oom is not None:
            self.counts["ooms"] += 1
            log.warning("process %d: %s", pid, _oom(message.oom, message))
        with self._lock:
            self.counts["lost"] += self._ledger.take(pid, message, now_s)


def _bind(path: Path) -> tuple[socket.socket, int]:
    """A bound socket that anybody may write to, and its inode."""
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _clear(path)
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        receiver.bind(str(path))
        path.chmod(0o666)
        return receiver, path.stat().st_ino
    except OSError as error:
        receiver.close()
        raise SourceError(
            f"the socket for in-job reporters cannot be bound at {path} ({error.strerror or error}): set "
            "reporter_socket to a path that this user may write, or to nothing for none"
        ) from error


def _clear(path: Path) -> None:
    """Remove what a killed agent left behind; raises OSError where it is in use or no socket."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(f"{path} exists and is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise FileExistsError("another agent listens there")


def _sender(ancillary: list[tuple[int, int, bytes]]) -> int:
    """The process that the kernel names, 0 where it is in no namespace that this one sees.

    There is no room for a second control message, so file descriptors that a hostile sender passes are
    closed by the kernel.
    """
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS and len(data) >= CREDENTIALS.size:
            pid: int = CREDENTIALS.unpack_from(data)[0]
            return pid
    return 0


def _names(proc: Path, pid: int) -> frozenset[int]:
    """Every number of a process, from this pid namespace to its own; none where it has ended."""
    try:
        text = (proc / str(pid) / "status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        if line.startswith("NSpid:"):
            return frozenset(int(word) for word in line.split()[1:] if word.isdigit())
    return frozenset()


def _oom(numbers: Mapping[str, float], message: Message) -> str:
    gib = {key: f"{value / 2**30:.2f} GiB" for key, value in numbers.items()}
    where = ", ".join(device.uuid for device in message.devices) or "a GPU without a name"
    return (
        f"out of memory on {where}: asked for {gib.get('asked', '?')}, free {gib.get('free', '?')} "
        f"of {gib.get('limit', '?')}"
    )
