"""`unidle top` on a node with many jobs: their names are cut, and nothing else."""

from __future__ import annotations

from rich.console import Console

from unidle_collector.commands.top import _nodes
from unidle_collector.model import GpuNow


def gpu(index: int, job: str) -> GpuNow:
    values = {"sm_active_ratio": 0.75, "power_w": 600.0, "temperature_c": 59.0}
    return GpuNow("node-000017", str(index), index, "B200", "idle", "held", False, 1, job, "u", values, False)


def test_many_jobs_on_a_node_leave_room_for_its_name_and_numbers() -> None:
    console = Console(width=80)
    with console.capture() as caught:
        console.print(_nodes([gpu(index, f"namespace/pod-of-somebody-{index}") for index in range(8)], 10))
    _, line = caught.get().splitlines()
    assert line.startswith("node-000017  IIIIIIII  75%  4800 W  59 °C  namespace/pod-of-somebody-0, ")
    assert line.rstrip().endswith("…")
