"""The flight recorder and a sick driver: what the NVML child saw is there without the child."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest
from tests.nvml_library import FakeNvml, gpu

from unidle_agent.flight.ring import Looks, Ring
from unidle_agent.poller import PolledNvml
from unidle_agent.sample import DRIVER_HUNG

FAST_HZ = 20.0
GPU_0 = "GPU-00000000-0000-4000-8000-000000000000"


@pytest.fixture
def ring() -> Iterator[Ring]:
    made = Ring.create(FAST_HZ + 10)
    yield made
    made.close()


@pytest.fixture
def source(nvml: FakeNvml, ring: Ring) -> Iterator[PolledNvml]:
    nvml.write(gpu(0, utilization__gpu=70), gpu(1))
    polled = PolledNvml("on", fast_hz=FAST_HZ, deadline_s=1.0, ring=ring)
    yield polled
    polled.close()


def looks_until(ring: Ring, wanted: Callable[[Looks], bool]) -> Looks:
    for _ in range(300):
        looks = ring.read(GPU_0)
        if wanted(looks):
            return looks
        time.sleep(0.02)
    raise AssertionError(f"no looks were as wanted, the last were {looks}")


def test_the_child_keeps_looking_between_two_reads_and_the_agent_sees_it(
    source: PolledNvml, ring: Ring
) -> None:
    source.read()
    looks = looks_until(ring, lambda looks: len(looks.times_ns) >= 8)
    assert list(looks.times_ns) == sorted(looks.times_ns)
    assert abs(looks.times_ns[-1] - time.time_ns()) < 60e9
    assert list(looks.columns["gpu_util_ratio"]) == pytest.approx([0.7] * len(looks.times_ns))
    assert list(looks.columns["sm_clock_hz"]) == pytest.approx([1755e6] * len(looks.times_ns))
    # Memory and temperature are asked once per row: known there, unknown in the looks between.
    used = list(looks.columns["memory_used_bytes"])
    assert used[0] == pytest.approx(63418925056, rel=1e-6)
    assert used[1] != used[1]


def test_the_window_of_a_gpu_is_there_while_the_driver_hangs_on_it(
    nvml: FakeNvml, source: PolledNvml, ring: Ring
) -> None:
    source.read()
    before = len(looks_until(ring, lambda looks: len(looks.times_ns) >= 5).times_ns)
    nvml.write(gpu(0, utilization__gpu=70), gpu(1), faults={(0, "nvmlDeviceGetUtilizationRates"): "hang"})
    for _ in range(100):
        states = {row.facts.uuid: row.values.get("gpu_state") for row in source.read().gpus}
        if states[GPU_0] == DRIVER_HUNG:
            break
    assert states[GPU_0] == DRIVER_HUNG
    assert len(ring.read(GPU_0).times_ns) >= before


def test_a_killed_child_leaves_its_looks_and_the_next_goes_on_behind_them(
    source: PolledNvml, ring: Ring
) -> None:
    source.read()
    before = looks_until(ring, lambda looks: len(looks.times_ns) >= 5)
    assert source.child_pid is not None
    os.kill(source.child_pid, signal.SIGKILL)
    source.read()  # notices, and starts another
    for _ in range(200):
        if len(source.read().gpus[0].values) > 3:
            break
        time.sleep(0.02)
    after = looks_until(ring, lambda looks: len(looks.times_ns) >= len(before.times_ns) + 4)
    assert list(after.times_ns[: len(before.times_ns)]) == list(before.times_ns)
    assert list(after.times_ns) == sorted(after.times_ns)
