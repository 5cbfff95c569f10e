"""The driver's ring buffers as the pieces of a row, against the C library of tests/nvml."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from tests.nvml_library import FakeNvml, gpu

from unidle_agent.sample import Value
from unidle_agent.sources.nvml import NvmlSource
from unidle_agent.sources.nvml_samples import DRY_S

UTIL = "gpu_util_ratio"
RATES = "nvmlDeviceGetUtilizationRates"
BUFFERS = "nvmlDeviceGetSamples"
BEGAN_S = time.monotonic() - 1000
"""Where the time of all files begins: far enough in the past for all of their samples."""
Open = Callable[..., NvmlSource]


class Clock:
    """Time that moves when it is told to."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def opened(nvml: FakeNvml, clock: Clock) -> Iterator[Open]:
    sources: list[NvmlSource] = []

    def _open(**options: Any) -> NvmlSource:
        sources.append(NvmlSource("off", **{"monotonic": clock, **options}))
        return sources[-1]

    yield _open
    for source in sources:
        source.close()


def row(source: NvmlSource) -> dict[str, Value]:
    """The values of the first GPU."""
    return source.read().gpus[0].values


def ring(values: Sequence[float], apart_s: float = 0.1, first_s: float = 0.0, kind: str = "u") -> str:
    """A buffer with these samples."""
    return ";".join([kind, *(f"{first_s + apart_s * place:.3f}:{one}" for place, one in enumerate(values))])


def shows(nvml: FakeNvml, **changes: Any) -> None:
    """The GPU is this from now on, and all of its samples lie in the past."""
    nvml.write(gpu(**changes))
    with nvml.answers.open("a") as file:
        file.write(f"begins_s={BEGAN_S:.3f}\n")


def test_a_row_is_made_of_the_samples_since_the_row_before(
    nvml: FakeNvml, opened: Open, clock: Clock
) -> None:
    shows(nvml, samples__1=ring([0] * 10))
    source = opened()
    row(source)
    clock.now_s += 1.0
    shows(nvml, utilization__gpu=7, samples__1=ring([0] * 10 + [100, 100, 0, 0, 40]))
    values = row(source)
    assert values[UTIL] == pytest.approx(0.48, abs=1e-5)
    assert (values[f"{UTIL}.min"], values[f"{UTIL}.max"]) == (0.0, 1.0)
    assert values[f"{UTIL}.zero"] == pytest.approx(0.4, abs=1e-5)
    assert values["gpu_busy_s"] == pytest.approx(240_000, abs=5)


def test_who_records_looks_is_told_of_the_samples_as_looks_of_the_past(
    nvml: FakeNvml, opened: Open, clock: Clock
) -> None:
    heard: list[tuple[float, float | None]] = []
    shows(nvml, utilization__gpu=7, samples__1=ring([0] * 10))
    source = opened(on_look=lambda _gpu, values, ago_s: heard.append((ago_s, values.get(UTIL))))
    row(source)
    clock.now_s += 1.0
    shows(nvml, utilization__gpu=7, samples__1=ring([0] * 10 + [100, 100, 0, 0, 40, 60]))
    heard.clear()
    row(source)
    assert heard == [
        (pytest.approx(0.4), pytest.approx(1.0, abs=1e-5)),
        (pytest.approx(0.2), pytest.approx(0.0, abs=1e-5)),
        (0.0, pytest.approx(0.5, abs=1e-5)),
        (0.0, pytest.approx(0.07)),  # the row itself
    ]


def test_every_buffer_is_in_the_units_of_its_field(nvml: FakeNvml, opened: Open, clock: Clock) -> None:
    rings = {0: ("u", 450_000), 1: ("u", 50), 2: ("ull", 30), 5: ("us", 1410)}
    for last in (5, 8):
        changes = {f"samples__{number}": ring([v] * last, kind=kind) for number, (kind, v) in rings.items()}
        shows(nvml, **changes)
        if last == 5:
            source = opened()
        values = row(source)
        clock.now_s += 1.0
    assert values["power_instant_w"] == pytest.approx(450.0)
    assert (values[UTIL], values["memory_util_ratio"]) == (0.5, 0.3)
    assert values["sm_clock_hz"] == 1410e6


def test_what_a_buffer_gives_is_not_looked_at(nvml: FakeNvml, opened: Open, clock: Clock) -> None:
    rings = {f"samples__{kind}": ring([50] * 8) for kind in (0, 1, 2, 5)}
    shows(nvml, **rings)
    source = opened()
    row(source)
    before = len(nvml.trace.read_text().splitlines())
    source.look()
    calls = {line.split()[1] for line in nvml.trace.read_text().splitlines()[before:]}
    assert calls == {"nvmlEventSetWait_v2", "nvmlDeviceGetCurrentClocksEventReasons"}


def test_between_rows_that_are_far_apart_buffers_are_read_each_second(
    nvml: FakeNvml, opened: Open, clock: Clock
) -> None:
    shows(nvml, samples__1=ring([0] * 8))
    source = opened()
    row(source)
    asked = nvml.calls(BUFFERS)
    clock.now_s += 0.9
    source.look()
    assert nvml.calls(BUFFERS) == asked
    clock.now_s += 0.1
    shows(nvml, samples__1=ring([0] * 8 + [100] * 5))
    source.look()
    shows(nvml, samples__1=ring([0] * 10, first_s=1.3))  # those before have left the ring
    clock.now_s += 0.5
    assert row(source)[UTIL] == pytest.approx(1 / 3, abs=1e-5)


def test_a_buffer_that_runs_dry_is_looked_at_until_it_gives_again(
    nvml: FakeNvml, opened: Open, clock: Clock
) -> None:
    shows(nvml, samples__1=ring([100] * 10))
    source = opened()
    row(source)
    shows(nvml, utilization__gpu=0, samples__1="u")
    clock.now_s += 1.0
    assert row(source)[UTIL] == 0.0
    asked = nvml.calls(RATES)
    source.look()
    assert nvml.calls(RATES) == asked + 1
    busy = row(source)["gpu_busy_s"]
    shows(nvml, utilization__gpu=0, samples__1=ring([100] * 3, first_s=500.0))
    clock.now_s += DRY_S
    # After the drought the first sample speaks for one sample's time, not for all of the drought.
    assert row(source)["gpu_busy_s"] - busy == pytest.approx(300_000, abs=5)


def test_a_buffer_no_denser_than_looks_is_left(nvml: FakeNvml, opened: Open, clock: Clock) -> None:
    shows(nvml, utilization__gpu=93, samples__1=ring([10] * 8, apart_s=0.25))
    source = opened(fast_hz=5.0)
    row(source)
    clock.now_s += 1.0
    shows(nvml, utilization__gpu=93, samples__1=ring([10] * 12, apart_s=0.25))
    assert row(source)[UTIL] == pytest.approx(0.93)
    assert source.take_problems() == ()


def test_more_samples_than_the_driver_said_come_with_the_next_read(
    nvml: FakeNvml, opened: Open, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    shows(nvml, samples__1=ring([0] * 10))
    source = opened()
    row(source)
    (device,) = source._gpus.values()
    assert device.buffers is not None
    buffer = device.buffers[UTIL]
    buffer._room = (type(buffer._room[0]) * 2)()
    shows(nvml, utilization__gpu=0, samples__1=ring([0] * 10 + [100] * 4))
    clock.now_s += 1.0
    row(source)
    clock.now_s += DRY_S
    assert row(source)[UTIL] == 1.0


@pytest.mark.parametrize("code", [3, 13])
def test_buffers_that_a_driver_does_not_have_are_said_once_and_looked_at(
    nvml: FakeNvml, opened: Open, clock: Clock, code: int
) -> None:
    nvml.write(gpu(), faults={(0, BUFFERS): f"error:{code}"})
    source = opened()
    (problem,) = source.read().problems
    assert problem.startswith("sample buffers: unsupported")
    asked = nvml.calls(BUFFERS), nvml.calls(RATES)
    source.look()
    clock.now_s += 2.0
    assert source.read().problems == ()
    assert (nvml.calls(BUFFERS), nvml.calls(RATES)) == (asked[0], asked[1] + 2)


def test_a_gpu_lost_while_its_buffers_are_read_is_lost(nvml: FakeNvml, opened: Open, clock: Clock) -> None:
    source = opened()
    row(source)
    clock.now_s += DRY_S
    nvml.write(gpu(), faults={(0, BUFFERS): "error:15"})
    assert row(source) == {"gpu_state": 1}


def test_under_mig_utilization_has_no_buffer_and_power_has(
    nvml: FakeNvml, opened: Open, clock: Clock
) -> None:
    instance = {"uuid": "MIG-0", "name": "NVIDIA H100 MIG 7g.80gb", "gpu_instance_id": 1}
    sizes = {"gpu_slices": 7, "compute_slices": 7, "memory_mib": 81920}
    mig = {"mig_mode": 1, "mig_max": 7, "mig": [{**instance, **sizes}]}
    shows(nvml, samples__0=ring([100_000] * 5), samples__1=ring([50] * 5), **mig)
    source = opened()
    row(source)
    clock.now_s += 1.0
    shows(nvml, samples__0=ring([100_000] * 5 + [200_000] * 2), samples__1=ring([50] * 8), **mig)
    values = row(source)
    assert values["power_instant_w"] == pytest.approx(200.0)
    assert UTIL not in values


# Who is restless


def test_only_a_gpu_whose_utilization_jumps_is_looked_at_in_between(
    nvml: FakeNvml, opened: Open, clock: Clock
) -> None:
    nvml.write(gpu(0, utilization__gpu=90), gpu(1, utilization__gpu=90))
    source = opened()
    source.read()
    assert not source.restless
    nvml.write(gpu(0, utilization__gpu=10), gpu(1, utilization__gpu=90))
    clock.now_s += 0.2
    source.look()
    assert source.restless
    asked = nvml.calls(RATES, "gpu.0"), nvml.calls(RATES, "gpu.1")
    source.look(restless_only=True)
    assert (nvml.calls(RATES, "gpu.0"), nvml.calls(RATES, "gpu.1")) == (asked[0] + 1, asked[1])
    clock.now_s += 10.0
    assert not source.restless
