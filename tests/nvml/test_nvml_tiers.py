"""Looks, slow reads, integrals and events of NvmlSource, against the C library of tests/nvml."""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.call_count import calls_of
from tests.nvml_library import FakeNvml, ShiftedClock, gpu

from unidle_agent.flight.ring import Ring
from unidle_agent.recheck import EXTRA_PER_MIN, LOOKS
from unidle_agent.sample import Value
from unidle_agent.sources.nvml import NvmlSource

Open = Callable[..., NvmlSource]
UUID = "GPU-00000000-0000-4000-8000-000000000000"
FIELD_VALUES = "nvmlDeviceGetFieldValues"
WIDTH = "nvmlDeviceGetCurrPcieLinkWidth"


class Clock:
    """Time that moves when it is told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def opened(nvml: FakeNvml, clock: Clock) -> Iterator[Open]:
    sources: list[NvmlSource] = []

    def _open(gpm: str = "off", **options: Any) -> NvmlSource:
        sources.append(NvmlSource(gpm, **{"monotonic": clock, **options}))
        return sources[-1]

    yield _open
    for source in sources:
        source.close()


def row(source: NvmlSource) -> dict[str, Value]:
    """The values of the one GPU."""
    (reading,) = source.read().gpus
    return reading.values


# Looks


def test_a_row_sums_up_the_looks_before_it(nvml: FakeNvml, opened: Open, clock: Clock) -> None:
    source = opened()
    row(source)
    for util, power_mw, reasons in ((100, 700000, 0x44), (0, 100000, 0), (50, 400000, 0x1), (0, 200000, 0)):
        nvml.write(gpu(utilization__gpu=util, field__186=f"u:{power_mw}", event_reasons=reasons))
        clock.now_s += 0.25
        if util == 0 and power_mw == 200000:
            break
        source.look()
    values = row(source)
    assert values["gpu_util_ratio"] == pytest.approx(0.375)
    assert (values["gpu_util_ratio.min"], values["gpu_util_ratio.max"]) == (0.0, 1.0)
    assert values["gpu_util_ratio.zero"] == pytest.approx(0.5)
    assert values["power_instant_w"] == pytest.approx(350.0)
    assert (values["power_instant_w.min"], values["power_instant_w.max"]) == (100.0, 700.0)
    assert values["clock_event_reasons"] == 0x45
    assert "temperature_c.max" not in values


def test_a_look_asks_for_what_moves_within_a_second_only(nvml: FakeNvml, opened: Open) -> None:
    source = opened("on")
    source.read()
    before = nvml.trace.read_text().splitlines()
    source.look()
    calls = {line.split()[1] for line in nvml.trace.read_text().splitlines()[len(before) :]}
    assert calls == {
        "nvmlEventSetWait_v2",
        "nvmlDeviceGetUtilizationRates",
        "nvmlDeviceGetFieldValues",
        "nvmlDeviceGetClockInfo",
        "nvmlDeviceGetCurrentClocksEventReasons",
    }


def test_a_skipped_gpu_is_not_looked_at(nvml: FakeNvml, opened: Open) -> None:
    source = opened()
    source.read()
    asked = nvml.calls("nvmlDeviceGetUtilizationRates")
    announced: list[str | None] = []
    source.look(skip={UUID}, starting=announced.append)
    assert nvml.calls("nvmlDeviceGetUtilizationRates") == asked
    assert announced == [""]


def test_a_gpu_lost_in_a_look_is_told_by_its_row(nvml: FakeNvml, opened: Open) -> None:
    source = opened()
    source.read()
    nvml.write(gpu(lost_from_call=1))
    source.look()
    assert row(source) == {"gpu_state": 1}


def test_the_boards_looks_are_split_among_its_instances(nvml: FakeNvml, opened: Open, clock: Clock) -> None:
    instance = {"uuid": "MIG-0", "name": "NVIDIA H100 MIG 3g.40gb", "gpu_instance_id": 1, "compute_slices": 3}
    sizes = {"gpu_slices": 3, "memory_mib": 40960}
    other = {**instance, "uuid": "MIG-1", "gpu_instance_id": 2}
    nvml.write(gpu(mig_mode=1, mig_max=7, mig=[{**instance, **sizes}, {**other, **sizes}]))
    source = opened()
    source.read()
    for power_mw in (100000, 300000):
        nvml.write({**nvml.gpus[0], "field.186": f"u:{power_mw}"})
        clock.now_s += 0.5
        source.look()
    rows = source.read().gpus
    assert [one.values["power_instant_w.min"] for one in rows[:2]] == [50.0, 50.0]
    assert [one.values["power_instant_w.max"] for one in rows[:2]] == [150.0, 150.0]
    assert [one.values["power_instant_w.zero"] for one in rows[:2]] == [0.0, 0.0]


# Integrals


def test_busy_seconds_count_the_time_between_looks(nvml: FakeNvml, opened: Open, clock: Clock) -> None:
    source = opened()
    assert row(source)["gpu_busy_s"] == 0
    nvml.write(gpu(utilization__gpu=50))
    clock.now_s += 2.0
    source.look()
    nvml.write(gpu(utilization__gpu=100))
    clock.now_s += 0.5
    assert row(source)["gpu_busy_s"] == 1_500_000
    nvml.write(gpu(utilization__gpu=0))
    clock.now_s += 1.0
    assert row(source)["gpu_busy_s"] == 1_500_000


def test_a_gpu_that_was_away_keeps_its_busy_seconds(nvml: FakeNvml, opened: Open, clock: Clock) -> None:
    nvml.write(gpu(utilization__gpu=100))
    source = opened()
    source.read()
    clock.now_s += 1.0
    assert row(source)["gpu_busy_s"] == 1_000_000
    nvml.write(gpu(utilization__gpu=100, lost_from_call=1))
    clock.now_s += 1.0
    source.read()
    nvml.write(gpu(utilization__gpu=100))
    clock.now_s += 100.0
    assert row(source)["gpu_busy_s"] == 1_000_000
    clock.now_s += 1.0
    assert row(source)["gpu_busy_s"] == 2_000_000


def test_gpm_ratios_count_the_time_between_their_samples(nvml: FakeNvml, opened: Open) -> None:
    shifted = ShiftedClock()
    source = opened("on", monotonic=shifted)
    assert "tensor_active_s" not in row(source)
    seen = []
    for _ in range(2):
        before_s = shifted()
        time.sleep(0.12)  # the C library measures this time itself
        seen.append(row(source))
    for counter, ratio in (("sm_active_s", "sm_active_ratio"), ("tensor_active_s", "tensor_active_ratio")):
        grown_s = (seen[1][counter] - seen[0][counter]) * 1e-6
        assert 0.12 * seen[1][ratio] <= grown_s + 2e-6
        assert grown_s <= (shifted() - before_s + 0.01) * seen[1][ratio]


# The slow tier


def test_errors_repairs_and_links_are_asked_every_slow_s_only(
    nvml: FakeNvml, opened: Open, clock: Clock
) -> None:
    nvml.write(gpu(pcie__generation=5))
    source = opened(slow_s=20.0)
    assert row(source)["ecc_uncorrected_volatile"] == 1
    asked = nvml.calls(FIELD_VALUES)
    nvml.write(gpu(**{"field__4": "ull:7", "field__230": "u:2", "pcie__width": 8, "field__165.17": "u:0"}))
    clock.now_s += 19.0
    values = row(source)
    assert (values["ecc_uncorrected_volatile"], values["pcie_width"], values["nvlink_links_up"]) == (
        1,
        16,
        18,
    )
    assert nvml.calls(FIELD_VALUES) == asked + 1
    clock.now_s += 1.0
    values = row(source)
    assert (values["ecc_uncorrected_volatile"], values["pcie_width"], values["nvlink_links_up"]) == (7, 8, 17)
    assert values["recovery_action"] == 2


def asked_in(nvml: FakeNvml, clock: Clock, source: NvmlSource, passes: int, call: str = WIDTH) -> int:
    """How often the driver is asked in so many passes, a second apart."""
    before = nvml.calls(call)
    for _ in range(passes):
        clock.now_s += 1.0
        source.read()
    return nvml.calls(call) - before


@pytest.mark.parametrize(
    ("turned", "name", "bad", "well"),
    [
        ({"pcie__width": 8}, "pcie_width", 8, 16),
        ({"pcie__generation": 3}, "pcie_generation", 3, 5),
        ({"field__165.17": "u:0"}, "nvlink_links_up", 17, 18),
        ({"field__206.3": "ull:9"}, "nvlink_errors", 9, 0),
    ],
)
def test_a_link_that_turned_bad_is_asked_again_at_the_next_pass(
    nvml: FakeNvml, opened: Open, clock: Clock, turned: dict[str, Any], name: str, bad: int, well: int
) -> None:
    nvml.write(gpu(pcie__generation=5))
    source = opened(slow_s=20.0)
    assert row(source)[name] == well
    nvml.write(gpu(**{"pcie__generation": 5, **turned}))
    clock.now_s += 20.0
    assert row(source)[name] == bad
    nvml.write(gpu(pcie__generation=5))
    clock.now_s += 1.0
    assert row(source)[name] == well


def test_a_link_that_stays_bad_is_asked_a_few_times_more_and_then_as_seldom_as_before(
    nvml: FakeNvml, opened: Open, clock: Clock
) -> None:
    nvml.write(gpu(pcie__generation=5))
    source = opened(slow_s=100.0)
    source.read()
    assert asked_in(nvml, clock, source, 99) == 0
    nvml.write(gpu(pcie__generation=5, pcie__width=8))
    assert asked_in(nvml, clock, source, 1 + LOOKS) == 1 + LOOKS
    assert asked_in(nvml, clock, source, 90) == 0


def test_a_link_that_flaps_is_asked_no_oftener_than_its_budget(
    nvml: FakeNvml, opened: Open, clock: Clock
) -> None:
    source = opened(slow_s=15.0)
    asked = 0
    for second in range(120):
        links = {"field__165.17": f"u:{second % 2}", "field__206.0": f"ull:{100 * second}"}
        nvml.write(gpu(pcie__generation=5, pcie__width=8 if second % 2 else 16, **links))
        asked += asked_in(nvml, clock, source, 1)
    usual, in_a_row, two_minutes = 120 / 15 + 1, EXTRA_PER_MIN, 2 * EXTRA_PER_MIN
    assert usual + two_minutes <= asked <= usual + in_a_row + two_minutes
    # Each pass has one call for its fields, each slow read one for errors, and links one of their own.
    assert nvml.calls(FIELD_VALUES) <= 120 + usual + (usual + in_a_row + two_minutes) + 2


def test_a_gpu_at_rest_may_lower_its_generation_and_is_asked_when_it_works(
    nvml: FakeNvml, opened: Open, clock: Clock
) -> None:
    nvml.write(gpu(pcie__generation=5))
    source = opened(slow_s=20.0)
    source.read()
    nvml.write(gpu(pcie__generation=1, utilization__gpu=0))
    clock.now_s += 20.0
    assert row(source)["pcie_generation"] == 1
    assert asked_in(nvml, clock, source, 5) == 0
    nvml.write(gpu(pcie__generation=5, utilization__gpu=90))
    clock.now_s += 1.0
    assert row(source)["pcie_generation"] == 5


def test_the_generation_of_a_gpu_at_rest_is_never_told_of_one_at_work(
    nvml: FakeNvml, opened: Open, clock: Clock
) -> None:
    source = opened(slow_s=15.0)
    for second in range(120):
        works = second % 2 == 1
        nvml.write(gpu(pcie__generation=5 if works else 1, utilization__gpu=90 if works else 0))
        clock.now_s += 1.0
        values = row(source)
        assert not works or values.get("pcie_generation", 5) == 5


def test_slow_reads_of_several_gpus_do_not_come_in_the_same_pass(
    nvml: FakeNvml, opened: Open, clock: Clock
) -> None:
    nvml.write(*(gpu(number) for number in range(4)))
    source = opened(slow_s=16.0)
    source.read()
    asked = "nvmlDeviceGetGpuFabricInfoV"
    per_pass = []
    for _ in range(32):
        before = nvml.calls(asked)
        clock.now_s += 1.0
        source.read()
        per_pass.append(nvml.calls(asked) - before)
    assert max(per_pass) == 1
    assert sum(per_pass) == 8


def test_nvlink_errors_are_summed_over_links_and_kinds(nvml: FakeNvml, opened: Open) -> None:
    errors = {"field.206.3": "ull:2", "field.212": "ull:5", "field.214.1": "ull:1", "field.215.17": "ull:4"}
    nvml.write(gpu() | errors)
    values = row(opened())
    assert (values["nvlink_errors"], values["nvlink_recoveries"]) == (7, 4)
    assert values["nvlink_recoveries_failed"] == 1


def test_a_link_counter_that_no_link_has_is_unknown(nvml: FakeNvml, opened: Open) -> None:
    older = {key: value for key, value in gpu().items() if not key.startswith(("field.21", "field.20"))}
    nvml.write(older)
    values = row(opened())
    assert (values["nvlink_links"], values["nvlink_links_up"]) == (18, 18)
    assert "nvlink_errors" not in values


@pytest.mark.parametrize(
    ("change", "what", "lost"),
    [
        ({"field__91": None}, "NVLink", {"nvlink_links", "nvlink_links_up", "nvlink_errors"}),
        ({"field__91": "u:0"}, "NVLink", {"nvlink_links"}),
        ({"pcie__width_max": None}, "pcie link", {"pcie_width", "pcie_width_max"}),
        ({"fabric__state": None}, "fabric", {"fabric_state", "fabric_health"}),
        ({"sram__threshold_exceeded": None}, "sram errors", {"sram_threshold_exceeded"}),
        (
            {f"field__{number}": None for number in range(303, 308)},
            "bank_remap_pending (field 307)",
            {"bank_remap_pending", "bank_remaps_active", "bank_groups_no_spares"},
        ),
        ({"field__230": None}, "recovery_action (field 230)", {"recovery_action"}),
    ],
)
def test_what_a_gpu_does_not_have_is_said_once(
    nvml: FakeNvml, opened: Open, clock: Clock, change: dict[str, Any], what: str, lost: set[str]
) -> None:
    nvml.write(gpu(**change))
    source = opened()
    first = source.read()
    assert not lost & first.gpus[0].values.keys()
    (problem,) = first.problems
    assert problem.startswith(f"{what}: unsupported on 1 GPU, because")
    clock.now_s += 100.0
    again = source.read()
    assert again.problems == ()
    assert not lost & again.gpus[0].values.keys()


# What it costs


def test_hours_of_passes_leave_memory_as_it_was(nvml: FakeNvml, opened: Open, clock: Clock) -> None:
    source = opened()

    def minutes(number: int) -> int:
        """Bytes that Python holds after so many minutes at a pass and a look per second."""
        for _ in range(60 * number):
            clock.now_s += 0.5
            source.look()
            clock.now_s += 0.5
            source.read()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        settled = minutes(5)
        # A dict or cache with an entry per listing of processes would hold 100 bytes and more for each.
        assert minutes(20) - settled < 4096
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("gpus", "most"), [(1, 90), (8, 560)])
def test_a_look_costs_few_calls_per_gpu(
    nvml: FakeNvml, opened: Open, clock: Clock, gpus: int, most: int
) -> None:
    """Calls of any function, those of the driver's library included."""
    nvml.write(*(gpu(number) for number in range(gpus)))
    ring = Ring.create(11)
    source = opened(on_look=lambda uuid, values, _ago_s: ring.write(uuid, 0, values))
    source.read()
    clock.now_s += 0.2
    source.look()
    clock.now_s += 0.2
    assert calls_of(source.look) <= most
    ring.close()


def test_a_row_costs_few_calls_and_the_same_facts_are_the_same_object(
    nvml: FakeNvml, opened: Open, clock: Clock
) -> None:
    nvml.write(*(gpu(number, pcie__generation=5) for number in range(8)))
    source = opened("on")
    for _ in range(2):
        before = source.read().gpus
        clock.now_s += 0.2
        source.look()
        clock.now_s += 0.8
    assert calls_of(source.read) <= 8 * 190
    assert all(ours.facts is theirs.facts for ours, theirs in zip(source.read().gpus, before, strict=True))


# Events


def test_events_come_once_each_with_kind_and_code(nvml: FakeNvml, opened: Open) -> None:
    nvml.write(gpu(supported_events=0x8 | 0x2 | 0x8000))
    source = opened()
    assert source.read().events == ()
    nvml.write(gpu(supported_events=0x800A, xid__0=79, event__0="0x8000", event__1="0x2:5", event__2="0x200"))
    source.look()
    events = source.read().events
    assert [(event.gpu, event.kind, event.code) for event in events] == [
        (UUID, "xid", 79),
        (UUID, "recovery_action", 0),
        (UUID, "ecc_uncorrected", 5),
    ]
    assert "79" in events[0].text
    assert all(event.time_ns > 0 for event in events)
    assert source.read().events == ()


def test_the_same_xid_twice_is_two_events(nvml: FakeNvml, opened: Open) -> None:
    source = opened()
    source.read()
    nvml.write(gpu(xid__0=31, xid__1=31))
    assert [event.code for event in source.read().events] == [31, 31]


def test_events_that_no_gpu_supports_are_not_listened_for(nvml: FakeNvml, opened: Open) -> None:
    nvml.write(gpu(supported_events=0x4))  # performance state: not ours
    opened().read()
    assert nvml.calls("nvmlDeviceRegisterEvents") == 0
