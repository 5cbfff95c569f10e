"""What the reporter costs a job, measured here: `python -m unidle_agent.injob --cost`.

The parts of torch that are read are stood in for, so no CUDA call and no lock of torch's allocator is
included; hooks, message, kernel call and the agent's state (listening, absent, not reading) are real.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median, quantiles
from types import SimpleNamespace
from typing import Any

from unidle_agent.injob.unidle_reporter import _Reporter

ROUNDS = 2000
STATISTICS: dict[str, Any] = {
    **{
        key: {"all": {"current": 51_539_607_552, "peak": 68_719_476_736}}
        for key in ("allocated_bytes", "reserved_bytes", "active_bytes", "inactive_split_bytes")
    },
    "num_alloc_retries": 3,
    "num_ooms": 0,
}
UUID = "5f587dd4-1111-2222-3333-444455556666"


class _Parameter:
    dtype = "torch.bfloat16"
    device = SimpleNamespace(type="cuda", index=0)

    def numel(self) -> int:
        return 1


class _Optimizer:
    def __init__(self) -> None:
        self.param_groups = [{"params": [_Parameter()] * 400}]


def report() -> str:
    """A table: microseconds per call, median and 99th percentile, and the size of a message."""
    with _stand_in(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "socket"
        reporter, optimizer = _Reporter(str(path)), _Optimizer()
        lines = ["in microseconds                      median    p99"]

        def row(name: str, call: Callable[[], object]) -> None:
            times = _times_us(call)
            lines.append(f"{name:<34} {median(times):>8.2f} {quantiles(times, n=100)[98]:>6.2f}")

        def due() -> None:
            reporter._due_s = 0.0
            reporter.stepped(optimizer)

        with _receiver(path, reads=True):
            reporter.stepped(optimizer)
            row("step, no message due", lambda: reporter.stepped(optimizer))
            row("batch, no message due", lambda: reporter.loaded(reporter.asked() or 0.0))
        path.unlink()
        row("message, agent absent", due)
        with _receiver(path, reads=False):
            for _ in range(ROUNDS):
                due()
            row("message, agent not reading", due)
        path.unlink()
        with _receiver(path, reads=True) as read:
            times = []
            for _ in range(ROUNDS):
                began_ns = time.perf_counter_ns()
                due()
                times.append((time.perf_counter_ns() - began_ns) / 1000)
                data = read()
        lines.append(
            f"{'message, agent reading':<34} {median(times):>8.2f} {quantiles(times, n=100)[98]:>6.2f}"
        )
        lines.append(f"bytes of a message about one GPU   {len(data):>8}")
    return "\n".join(lines)


def _times_us(call: Callable[[], object]) -> list[float]:
    times = []
    for _ in range(ROUNDS):
        began_ns = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - began_ns) / 1000)
    return times


@contextlib.contextmanager
def _receiver(path: Path, *, reads: bool) -> Iterator[Callable[[], bytes]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(path))
        receiver.settimeout(5.0 if reads else 0.0)
        yield lambda: receiver.recv(8192)


@contextlib.contextmanager
def _stand_in() -> Iterator[None]:
    """A torch with one GPU, as far as a message reads it."""
    cuda = SimpleNamespace(
        is_initialized=lambda: True,
        get_device_properties=lambda index: SimpleNamespace(uuid=UUID, index=index),
        get_allocator_backend=lambda: "native",
    )
    c = SimpleNamespace(_cuda_memoryStats=lambda _: STATISTICS, _cuda_getDevice=lambda: 0)
    modules: dict[str, Any] = {"torch": SimpleNamespace(_C=c, cuda=cuda), "torch.cuda": cuda}
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
