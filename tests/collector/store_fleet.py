"""What the tests of the store share: batches, a disk that fills up, the environment of a process."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from unidle_agent.fields import BY_NAME
from unidle_agent.wire import Batch, GpuFacts, Owner, column, encode
from unidle_collector.store.log import Log, OsDisk

SECOND = 1_000_000_000
NOON = 1_750_000_000 * SECOND

Column = Sequence[float | int | None]


def batch(
    node: str = "node-1",
    *,
    seq: int = 0,
    boot: str = "boot-1",
    times: Iterable[int] = (NOON,),
    gpus: Sequence[str] = ("GPU-a",),
    columns: Mapping[str, Column] | None = None,
    host: Mapping[str, Column] | None = None,
    jobs: Mapping[str, Owner] | None = None,
    facts_id: int = 1,
    simulated: bool = False,
) -> Batch:
    """A batch as an agent makes it; by default one row whose power tells its sequence number."""
    instants = list(times)
    rows = len(instants) * len(gpus)
    values = columns if columns is not None else {"power_w": [100 + seq] * rows}
    facts = None if jobs is None else tuple(GpuFacts(uuid, owner=jobs[uuid]) for uuid in gpus if uuid in jobs)
    return Batch(
        node=node,
        boot=boot,
        seq=seq,
        sent_ns=NOON,
        period_s=1.0,
        times_ns=instants,
        gpus=tuple(gpus),
        columns={name: column(BY_NAME[name], column_) for name, column_ in values.items()},
        host={name: column(BY_NAME[name], column_) for name, column_ in (host or {}).items()},
        facts_id=facts_id,
        facts=facts,
        simulated=simulated,
    )


def log_of(directory: Path, *batches: Batch, received_ns: int = NOON) -> Path:
    """A closed log file that holds `batches`."""
    log = Log(directory)
    for item in batches:
        log.append(encode(item), received_ns)
    log.close()
    return log.closed()[-1]


class SmallDisk(OsDisk):
    """A disk with room for `room` more bytes; the calls named in `broken` fail."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.broken: set[str] = set()

    def write(self, fd: int, data: memoryview) -> int:
        if self.room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = super().write(fd, data[: self.room])
        self.room -= written
        return written

    def sync(self, fd: int) -> None:
        if "sync" in self.broken:
            raise OSError(errno.EIO, "Input/output error")
        super().sync(fd)

    def truncate(self, fd: int, size: int) -> None:
        if "truncate" in self.broken:
            raise OSError(errno.EIO, "Input/output error")
        super().truncate(fd, size)


def environment() -> dict[str, str]:
    """The environment of a process that is to import what we can."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
