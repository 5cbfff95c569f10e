"""Running a scheduler's command: a deadline, a bound on what it may say, never a shell."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from unidle_collector.scheduler import SchedulerError

MOST_BYTES = 64 * 1024 * 1024
"""`squeue --json` says 3.8 kB per job: enough for 16,000 jobs."""
MOST_COMPLAINT_BYTES = 4096
_CHUNK = 1 << 16


def run(
    command: Sequence[str],
    deadline_s: float,
    *,
    most_bytes: int = MOST_BYTES,
    environ: Mapping[str, str] | None = None,
) -> bytes:
    """What `command` prints; raises SchedulerError when it is late, too long, failed or not there.

    It runs in a process group of its own, which is killed as a whole: a client of a dead controller retries
    for minutes, and wrappers leave children behind.
    """
    name = Path(command[0]).name
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=None if environ is None else {**os.environ, **environ},
            start_new_session=True,
        )
    except OSError as error:
        raise SchedulerError(
            f"{command[0]}: expected a command to run ({error.strerror}): install Slurm's client commands "
            "here, or set slurm_bin_dir"
        ) from error
    with process:
        try:
            said, complaint = _collect(process, name, time.monotonic() + deadline_s, deadline_s, most_bytes)
        except BaseException:  # it is not waited for yet, so its number is still its own
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode != 0:
        why = complaint.decode(errors="replace").strip().splitlines()
        raise SchedulerError(f"{name} failed ({process.returncode}): {why[-1][:300] if why else 'no reason'}")
    return said


def _collect(
    process: subprocess.Popen[bytes], name: str, end_s: float, deadline_s: float, most_bytes: int
) -> tuple[bytes, bytes]:
    """Output and complaint of a process that has ended; raises SchedulerError before it has."""
    assert process.stdout is not None
    assert process.stderr is not None
    late = SchedulerError(f"{name}: no whole answer within {deadline_s:g} s")
    said: dict[IO[bytes], bytearray] = {process.stdout: bytearray(), process.stderr: bytearray()}
    with selectors.DefaultSelector() as selector:
        for stream in said:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            left_s = end_s - time.monotonic()
            ready = selector.select(left_s) if left_s > 0 else []
            if not ready:
                raise late
            for key, _ in ready:
                stream = process.stdout if key.fileobj is process.stdout else process.stderr
                part = os.read(stream.fileno(), _CHUNK)
                if not part:
                    selector.unregister(stream)
                said[stream] += part
            del said[process.stderr][:-MOST_COMPLAINT_BYTES]
            if len(said[process.stdout]) > most_bytes:
                raise SchedulerError(f"{name}: expected at most {most_bytes} bytes, came more")
    try:
        process.wait(max(0.0, end_s - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise late from None
    return bytes(said[process.stdout]), bytes(said[process.stderr])
