"""NvmlSource against the real pynvml and the C library of tests/nvml."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.nvml_library import FakeNvml, ShiftedClock, gpu

from unidle_agent.errors import SourceError
from unidle_agent.fields import BY_NAME
from unidle_agent.sample import GpuReading, Reading, Value
from unidle_agent.sources.gpm import MIN_PAIR_S
from unidle_agent.sources.nvml import TOPOLOGY_S, NvmlSource
from unidle_agent.sources.nvml_calls import pci_bus_id
from unidle_agent.sources.nvml_device import PROCESSES_S
from unidle_agent.subsecond import INTEGRALS
from unidle_agent.wire import Owner

Open = Callable[..., NvmlSource]

H100 = {
    "gpu_util_ratio": 0.93,
    "memory_util_ratio": 0.41,
    "memory_total_bytes": 85520809984,
    "memory_used_bytes": 63418925056,
    "memory_free_bytes": 21474836480,
    "memory_reserved_bytes": 627048448,
    "process_count": 1,
    "power_w": 612.345,
    "power_instant_w": 598.765,
    "power_limit_w": 700.0,
    "energy_j": 987654321012,  # a counter: whole millijoules
    "sm_clock_hz": 1.755e9,
    "memory_clock_hz": 2.619e9,
    "temperature_c": 64,
    "memory_temperature_c": 71,
    "thermal_margin_c": 23,
    "clock_event_reasons": 0x4,
    "power_cap_s": 1_500_000_000,  # counters: whole nanoseconds
    "thermal_throttle_s": 2_500_000_000,
    "hw_thermal_throttle_s": 3_500_000_000,
    "power_brake_s": 4_500_000_000,
    "pcie_replays": 3,
    "rows_remapped_correctable": 2,
    "rows_remapped_uncorrectable": 1,
    "row_remap_failed": 0,
    "row_remap_pending": 1,
    "bank_remap_pending": 0,
    "bank_remaps_active": 2,
    "bank_remaps_inactive": 1,
    "bank_groups_all_spares": 60,
    "bank_groups_no_spares": 0,
    "sram_threshold_exceeded": 0,
    "ecc_corrected_volatile": 12,
    "ecc_uncorrected_volatile": 1,
    "ecc_corrected_aggregate": 340,
    "ecc_uncorrected_aggregate": 2,
    "recovery_action": 1,
    "pcie_width": 16,
    "pcie_width_max": 16,
    "pcie_generation": 4,
    "pcie_generation_max": 5,
    "nvlink_links": 18,
    "nvlink_links_up": 18,
    "nvlink_errors": 0,
    "nvlink_recoveries": 0,
    "nvlink_recoveries_failed": 0,
    "fabric_state": 3,
    "fabric_health": 0x2A,
    "gpu_state": 0,
}
H100_GPM = {
    "graphics_active_ratio": 0.925,
    "sm_active_ratio": 0.7125,
    "sm_occupancy_ratio": 0.335,
    "tensor_active_ratio": 0.4475,
    "dram_active_ratio": 0.55125,
    "fp64_active_ratio": 0.0,
    "fp32_active_ratio": 0.125,
    "fp16_active_ratio": 0.015,
    "pcie_tx_bytes_per_s": 100 * 2**20,
    "pcie_rx_bytes_per_s": 200 * 2**20,
    "nvlink_rx_bytes_per_s": 300 * 2**20,  # GPM lists NVLink in the other order than PCIe
    "nvlink_tx_bytes_per_s": 400 * 2**20,
}


@pytest.fixture
def clock() -> ShiftedClock:
    return ShiftedClock()


@pytest.fixture
def opened(nvml: FakeNvml, clock: ShiftedClock) -> Iterator[Open]:
    sources: list[NvmlSource] = []

    def _open(gpm: str = "off", **options: Any) -> NvmlSource:
        sources.append(NvmlSource(gpm, monotonic=clock, **options))
        return sources[-1]

    yield _open
    for source in sources:
        source.close()


def uuid(number: int) -> str:
    return f"GPU-00000000-0000-4000-8000-{number:012d}"


def plain(row: GpuReading) -> dict[str, Value]:
    """The values of a row but for those that grow with time."""
    return {name: value for name, value in row.values.items() if name not in INTEGRALS}


def values(reading: Reading) -> dict[str, dict[str, Value]]:
    """UUID -> plain values."""
    return {row.facts.uuid: plain(row) for row in reading.gpus}


def wait_for_pair() -> None:
    """The C library measures the time between the samples of a GPM pair itself."""
    time.sleep(MIN_PAIR_S)


# Values


def test_every_field_arrives_in_base_units(opened: Open) -> None:
    (row,) = opened().read().gpus
    assert plain(row) == H100
    assert row.values.keys() <= BY_NAME.keys()


def test_counters_stay_whole_numbers(opened: Open) -> None:
    (row,) = opened().read().gpus
    counters = [name for name in row.values if BY_NAME[name].kind == "counter"]
    assert len(counters) == 16
    assert all(type(row.values[name]) is int for name in counters)


def test_facts_say_who_the_gpu_is(opened: Open) -> None:
    facts = opened().read().gpus[0].facts
    assert (facts.uuid, facts.index, facts.minor) == (uuid(0), 0, 0)
    assert facts.model == "NVIDIA H100 80GB HBM3"
    assert facts.pci_bus_id == "0000:1b:00.0"
    assert facts.driver == "575.57.08"
    assert (facts.share, facts.mig_profile, facts.owner) == (1.0, "", Owner())


@pytest.mark.parametrize(
    ("nvml_text", "linux_text"),
    [
        ("00000000:9B:00.0", "0000:9b:00.0"),
        ("00010000:01:00.0", "10000:01:00.0"),
        ("0000:9b:00.0", "0000:9b:00.0"),
        ("", ""),
    ],
)
def test_pci_addresses_are_written_as_linux_writes_them(nvml_text: str, linux_text: str) -> None:
    assert pci_bus_id(nvml_text) == linux_text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("d:2.5", 2.5),
        ("u:4294967295", 4294967295),
        ("ul:18446744073709551615", 18446744073709551615),
        ("ull:18446744073709551615", 18446744073709551615),
        ("sll:-9000000000", -9000000000),
        ("i:-7", -7),
        ("us:65535", 65535),
    ],
)
def test_a_field_is_read_as_the_type_that_it_says(
    nvml: FakeNvml, opened: Open, text: str, value: float
) -> None:
    nvml.write(gpu(field__82=text))
    assert opened().read().gpus[0].values["memory_temperature_c"] == value


def test_a_margin_over_the_limit_is_negative(nvml: FakeNvml, opened: Open) -> None:
    nvml.write(gpu(margin_c=-4))
    assert opened().read().gpus[0].values["thermal_margin_c"] == -4


def test_an_energy_counter_that_starts_again_is_passed_on(nvml: FakeNvml, opened: Open) -> None:
    source = opened()
    assert source.read().gpus[0].values["energy_j"] == 987654321012
    nvml.write(gpu(field__83="ull:77"))
    assert source.read().gpus[0].values["energy_j"] == 77


def test_processes_are_listed_every_ten_seconds_only(
    nvml: FakeNvml, opened: Open, clock: ShiftedClock
) -> None:
    source = opened()
    function = "nvmlDeviceGetComputeRunningProcesses_v3"
    assert source.read().gpus[0].values["process_count"] == 1
    asked = nvml.calls(function)
    nvml.write(gpu(processes="11:1024,12,13:2048"))
    assert source.read().gpus[0].values["process_count"] == 1
    assert nvml.calls(function) == asked
    clock.ahead_s += PROCESSES_S
    assert source.read().gpus[0].values["process_count"] == 3


def test_no_process_is_zero_processes(nvml: FakeNvml, opened: Open) -> None:
    nvml.write(gpu(processes=""))
    assert opened().read().gpus[0].values["process_count"] == 0


# What is not offered


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (3, "does not have it"),
        (4, "root"),
        (13, "older"),
        (25, "nvidia-ml-py"),
        (26, "given it up"),
    ],
)
def test_a_refused_call_is_unknown_reported_once_and_not_asked_again(
    nvml: FakeNvml, opened: Open, code: int, why: str
) -> None:
    function = "nvmlDeviceGetMarginTemperature"
    nvml.write(gpu(0), gpu(1), faults={(0, function): f"error:{code}", (1, function): f"error:{code}"})
    source = opened()
    first = source.read()
    assert all("thermal_margin_c" not in row.values for row in first.gpus)
    (problem,) = first.problems
    assert "margin temperature: unsupported on 2 GPUs, because" in problem
    assert why in problem
    assert source.read().problems == ()
    assert nvml.calls(function) == 2


@pytest.mark.parametrize("code", [2, 3])
def test_a_refused_field_is_unknown_reported_once_and_not_asked_again(
    nvml: FakeNvml, opened: Open, code: int
) -> None:
    nvml.write(gpu(field__82=f"error:{code}"))
    source = opened()
    first = source.read()
    assert plain(first.gpus[0]) == {k: v for k, v in H100.items() if k != "memory_temperature_c"}
    (problem,) = first.problems
    assert problem.startswith("memory_temperature_c (field 82): unsupported on 1 GPU, because")
    nvml.write(gpu())
    again = source.read()
    assert "memory_temperature_c" not in again.gpus[0].values
    assert again.problems == ()


@pytest.mark.parametrize("code", [6, 10, 16, 17, 21, 27, 999])
def test_any_other_error_costs_one_call_of_one_pass(nvml: FakeNvml, opened: Open, code: int) -> None:
    nvml.write(gpu(), faults={(0, "nvmlDeviceGetUtilizationRates"): f"error:{code}"})
    source = opened()
    for _ in range(2):
        reading = source.read()
        gone = {"gpu_util_ratio", "memory_util_ratio"}
        assert plain(reading.gpus[0]) == {k: v for k, v in H100.items() if k not in gone}
        (problem,) = reading.problems
        assert problem.startswith(f"{uuid(0)}: utilization rates: ")
        assert f"NVML error {code})" in problem
    nvml.write(gpu())
    assert plain(source.read().gpus[0]) == H100


def test_an_error_in_one_field_costs_that_field(nvml: FakeNvml, opened: Open) -> None:
    nvml.write(gpu(field__185="error:999"))
    reading = opened().read()
    assert plain(reading.gpus[0]) == H100 | {"power_w": 612.001}  # the call beside the fields
    assert "power_w (field 185)" in reading.problems[0]


def test_older_drivers_are_asked_by_their_own_calls(nvml: FakeNvml, opened: Open) -> None:
    nvml.write(
        gpu(field__185="error:2", field__83="error:3", energy_mj=123456),
        faults={
            (0, "nvmlDeviceGetTemperatureV"): "error:13",
            (0, "nvmlDeviceGetCurrentClocksEventReasons"): "error:13",
        },
    )
    source = opened()
    first = source.read()
    assert plain(first.gpus[0]) == H100 | {"power_w": 612.001, "energy_j": 123456}
    assert first.problems == ()
    assert plain(source.read().gpus[0]) == plain(first.gpus[0])
    assert nvml.calls("nvmlDeviceGetTemperatureV") == 1


def test_a_gpu_that_says_nothing_at_all_is_not_called_healthy(nvml: FakeNvml, opened: Open) -> None:
    nvml.write({"uuid": uuid(0)})
    (row,) = opened().read().gpus
    assert row.values == {}


# GPUs that go


def test_a_lost_gpu_keeps_its_row_and_nothing_else(nvml: FakeNvml, opened: Open) -> None:
    nvml.write(gpu(0), gpu(1, lost_from_call=50))
    source = opened()
    readings = [source.read() for _ in range(4)]
    assert values(readings[0]) == {uuid(0): H100, uuid(1): H100}
    assert values(readings[-1]) == {uuid(0): H100, uuid(1): {"gpu_state": 1}}
    (problem,) = readings[-1].problems
    assert problem.startswith(f"{uuid(1)}: the GPU is lost (NVML error 15)")


@pytest.mark.parametrize(
    "change", [{"field__94": "error:15"}, {"temperature_c": "error:15"}, {"processes": "1:1"}]
)
def test_lost_is_lost_wherever_it_is_said(nvml: FakeNvml, opened: Open, change: dict[str, str]) -> None:
    faults = {(0, "nvmlDeviceGetComputeRunningProcesses_v3"): "error:15"} if "processes" in change else None
    nvml.write(gpu(**change), faults=faults)
    assert values(opened().read()) == {uuid(0): {"gpu_state": 1}}


def test_a_lost_gpu_comes_back_after_a_reset(nvml: FakeNvml, opened: Open, clock: ShiftedClock) -> None:
    nvml.write(gpu(0), gpu(1))
    source = opened()
    source.read()
    nvml.write(gpu(0), gpu(1, lost_from_call=1))
    assert values(source.read())[uuid(1)] == {"gpu_state": 1}
    nvml.write(gpu(0), gpu(1))
    clock.ahead_s += TOPOLOGY_S
    assert values(source.read()) == {uuid(0): H100, uuid(1): H100}
    assert nvml.calls("nvmlInitWithFlags") == 2


def test_who_watches_hears_that_the_library_is_opened_anew(
    nvml: FakeNvml, opened: Open, clock: ShiftedClock
) -> None:
    nvml.write(gpu(0), gpu(1, lost_from_call=50))
    source = opened()
    while values(source.read())[uuid(1)] != {"gpu_state": 1}:
        pass
    announced: list[str | None] = []
    clock.ahead_s += TOPOLOGY_S
    list(source.readings(starting=announced.append))
    assert announced == [None, "", uuid(0), uuid(1), "", uuid(0)]


def test_a_gpu_lost_before_it_says_who_it_is_is_a_problem(
    nvml: FakeNvml, opened: Open, clock: ShiftedClock
) -> None:
    nvml.write(gpu(0), gpu(1, lost_from_call=1))
    source = opened()
    reading = source.read()
    assert values(reading) == {uuid(0): H100}
    assert reading.problems == ("GPU at index 1: GPU is lost (NVML error 15)",)
    nvml.write(gpu(0), gpu(1))
    clock.ahead_s += TOPOLOGY_S
    assert values(source.read()) == {uuid(0): H100, uuid(1): H100}
    assert nvml.calls("nvmlInitWithFlags") == 2


def test_a_gpu_that_disappears_is_lost_and_the_others_keep_their_names(
    nvml: FakeNvml, opened: Open, clock: ShiftedClock
) -> None:
    nvml.write(gpu(0, temperature_c=50), gpu(1, temperature_c=51), gpu(2, temperature_c=52))
    source = opened()
    source.read()
    nvml.write(gpu(0, temperature_c=50), gpu(2, temperature_c=52))
    for renumbered in (False, True):
        reading = source.read()
        assert values(reading)[uuid(1)] == {"gpu_state": 1}
        assert values(reading)[uuid(0)]["temperature_c"] == 50
        assert values(reading)[uuid(2)]["temperature_c"] == 52
        index = {row.facts.uuid: row.facts.index for row in reading.gpus}
        assert index == {uuid(0): 0, uuid(1): None if renumbered else 1, uuid(2): 1 if renumbered else 2}
        clock.ahead_s += TOPOLOGY_S


def test_a_gpu_known_from_before_and_not_found_is_lost(nvml: FakeNvml, opened: Open) -> None:
    nvml.write(gpu(0), gpu(1))
    known = [row.facts for row in opened().read().gpus]
    nvml.write(gpu(1))
    reading = opened(known=known).read()
    assert values(reading) == {uuid(0): {"gpu_state": 1}, uuid(1): H100}
    assert reading.problems[0].startswith(f"{uuid(0)}: the driver no longer lists this GPU")


def test_a_skipped_gpu_is_not_touched_not_even_to_find_it(nvml: FakeNvml, opened: Open) -> None:
    nvml.write(gpu(0), gpu(1))
    known = [row.facts for row in opened().read().gpus]
    touched = nvml.calls("nvmlDeviceGetUUID", "gpu.1")
    source = opened(known=known)
    rows = list(source.readings(skip={uuid(1)}))
    assert [row.facts.uuid for row in rows] == [uuid(0)]
    assert nvml.calls("nvmlDeviceGetUUID", "gpu.1") == touched
    assert values(source.read()) == {uuid(0): H100, uuid(1): H100}


def test_a_gpu_to_be_read_last_is_read_last(nvml: FakeNvml, opened: Open) -> None:
    nvml.write(gpu(0), gpu(1), gpu(2))
    announced: list[str | None] = []
    source = opened()
    source.read()
    list(source.readings(last={uuid(0)}, starting=announced.append))
    assert announced == ["", uuid(1), uuid(2), uuid(0)]


@pytest.mark.parametrize(
    ("fault", "advice"),
    [("error:9", "modprobe"), ("error:18", "reboot"), ("error:4", "/dev/nvidia"), ("error:999", "dmesg")],
)
def test_a_driver_that_does_not_open_says_what_to_do(
    nvml: FakeNvml, opened: Open, fault: str, advice: str
) -> None:
    nvml.write(gpu(), faults={("driver", "nvmlInitWithFlags"): fault})
    with pytest.raises(SourceError, match=advice) as caught:
        opened()
    assert "\n" not in str(caught.value)


def test_a_driver_without_a_gpu_says_so(nvml: FakeNvml, opened: Open) -> None:
    nvml.write()
    with pytest.raises(SourceError, match="sees no GPU"):
        opened().read()


# XIDs


def test_an_xid_is_unknown_until_one_comes_and_then_stays(nvml: FakeNvml, opened: Open) -> None:
    nvml.write(gpu(0), gpu(1))
    source = opened()
    assert all("last_xid" not in row for row in values(source.read()).values())
    nvml.write(gpu(0), gpu(1, xid__0=48, xid__1=63))
    for _ in range(2):
        reading = values(source.read())
        assert reading[uuid(1)]["last_xid"] == 63
        assert "last_xid" not in reading[uuid(0)]


def test_xids_are_not_asked_of_gpus_without_them(nvml: FakeNvml, opened: Open) -> None:
    nvml.write(gpu(supported_events=0))
    assert values(opened().read()) == {uuid(0): H100}
    assert nvml.calls("nvmlDeviceRegisterEvents") == 0


# GPM


def test_gpm_values_cover_the_time_between_two_passes(opened: Open) -> None:
    source = opened("on")
    assert plain(source.read().gpus[0]) == H100
    for _ in range(2):
        wait_for_pair()
        (row,) = source.read().gpus
        assert plain(row) == pytest.approx(H100 | H100_GPM)
        assert row.facts.sources == dict.fromkeys(H100_GPM, "gpm")


def test_passes_too_close_for_gpm_do_not_ask_for_it(nvml: FakeNvml, opened: Open) -> None:
    source = opened("on")
    for _ in range(3):
        reading = source.read()
        assert (plain(reading.gpus[0]), reading.problems) == (H100, ())
    assert nvml.calls("nvmlGpmSampleGet") == 1


def test_gpm_samples_are_given_back(nvml: FakeNvml, opened: Open) -> None:
    nvml.write(gpu(0), gpu(1))
    source = opened("on")
    source.read()
    source.close()
    assert nvml.calls("nvmlGpmSampleAlloc") == nvml.calls("nvmlGpmSampleFree") == 4


def test_a_gpm_metric_that_fails_costs_itself(nvml: FakeNvml, opened: Open) -> None:
    nvml.write(gpu(gpm__2="error:3", gpm__5="nan"))
    source = opened("on")
    source.read()
    wait_for_pair()
    reading = source.read()
    assert plain(reading.gpus[0]).keys() == (H100 | H100_GPM).keys() - {
        "sm_active_ratio",
        "tensor_active_ratio",
    }
    assert any(text.startswith("sm_active_ratio (GPM 2): unsupported") for text in reading.problems)


@pytest.mark.parametrize(
    ("change", "fault"),
    [({"gpm_supported": 0}, ""), ({}, "error:4"), ({}, "error:13")],
)
def test_a_gpu_without_gpm_is_asked_once(
    nvml: FakeNvml, opened: Open, change: dict[str, int], fault: str
) -> None:
    faults = {(0, "nvmlGpmQueryDeviceSupport"): fault} if fault else None
    nvml.write(gpu(**change), faults=faults)
    source = opened("on")
    first = source.read()
    assert plain(first.gpus[0]) == H100
    assert first.problems[0].startswith("GPM: unsupported on 1 GPU, because")
    assert source.read().problems == ()
    assert nvml.calls("nvmlGpmQueryDeviceSupport") == 1


def test_auto_leaves_gpm_to_a_dcgm_host_engine(nvml: FakeNvml, opened: Open, clock: ShiftedClock) -> None:
    with socket.create_server(("127.0.0.1", 0)) as engine:
        source = opened("auto", host_engine=engine.getsockname())
        (problem,) = source.read().problems
        assert "DCGM host engine answers on 127.0.0.1:" in problem
        assert "gpm = on" in problem
        clock.ahead_s += TOPOLOGY_S
        assert source.read().problems == ()
        assert nvml.calls("nvmlGpmSampleAlloc") == 0
    clock.ahead_s += TOPOLOGY_S
    source.read()
    assert nvml.calls("nvmlGpmSampleGet") == 1


def test_off_asks_for_no_gpm(nvml: FakeNvml, opened: Open) -> None:
    assert opened("off").read().problems == ()
    assert nvml.calls("nvmlGpmQueryDeviceSupport") == 0


# MIG


def cut_gpu(*profiles: tuple[str, int, int], **changes: Any) -> dict[str, Any]:
    """A GPU in MIG mode, cut into (profile, compute slices, bytes used); GPM 2 is 10 % per slice."""
    instances = [
        {
            "uuid": f"MIG-00000000-0000-5000-8000-{number:012d}",
            "name": f"NVIDIA H100 80GB HBM3 MIG {profile}",
            "gpu_instance_id": number + 1,
            "gpu_slices": slices,
            "compute_slices": slices,
            "memory_mib": slices * 9856,
            "memory.total": slices * 10 << 30,
            "memory.reserved": 0,
            "memory.free": (slices * 10 << 30) - used,
            "memory.used": used,
            "processes": "9:1" if used else "",
            "gpm.2": slices * 10.0,
        }
        for number, (profile, slices, used) in enumerate(profiles)
    ]
    whole = {"utilization__gpu": None, "utilization__memory": None, **changes}
    return gpu(mig_mode=1, mig_max=7, mig=instances, **whole)


def test_a_mig_instance_is_a_row_with_its_own_memory_and_its_share(nvml: FakeNvml, opened: Open) -> None:
    nvml.write(cut_gpu(("3g.40gb", 3, 5 << 30), ("4g.40gb", 4, 0)))
    reading = opened().read()
    assert [(row.facts.uuid, row.facts.mig_profile, row.facts.share) for row in reading.gpus] == [
        (f"{uuid(0)}/GI1", "3g.40gb", 3 / 7),
        (f"{uuid(0)}/GI2", "4g.40gb", 4 / 7),
    ]
    first, second = reading.gpus
    assert first.values["memory_used_bytes"] == 5 << 30
    assert (first.values["process_count"], second.values["process_count"]) == (1, 0)
    assert "gpu_util_ratio" not in first.values
    for row in reading.gpus:
        assert row.values["temperature_c"] == 64
        assert row.values["thermal_throttle_s"] == 2_500_000_000
        assert row.facts.model == "NVIDIA H100 80GB HBM3"


def test_the_boards_power_and_energy_are_counted_once(nvml: FakeNvml, opened: Open) -> None:
    nvml.write(cut_gpu(("1g.10gb", 1, 0), ("2g.20gb", 2, 0)))
    rows = opened().read().gpus
    assert sum(row.values.get("power_w", 0) for row in rows) == pytest.approx(612.345)
    assert sum(row.values.get("energy_j", 0) for row in rows) == pytest.approx(987654321012, abs=2)
    assert rows[1].values["power_w"] == pytest.approx(2 * rows[0].values["power_w"])
    assert type(rows[0].values["energy_j"]) is int


def test_slices_in_no_instance_are_a_row_that_nobody_holds(nvml: FakeNvml, opened: Open) -> None:
    nvml.write(cut_gpu(("1g.10gb", 1, 0), ("2g.20gb", 2, 0)))
    rows = opened().read().gpus
    assert sum(row.facts.share for row in rows) == pytest.approx(1.0)
    assert rows[-1].facts.uuid == uuid(0)
    assert rows[-1].facts.owner.allocated is False
    assert rows[-1].values == {"gpu_state": 0}
    assert rows[0].facts.owner == Owner()


def test_mig_without_an_instance_is_a_gpu_that_nobody_holds(nvml: FakeNvml, opened: Open) -> None:
    nvml.write(cut_gpu())
    (row,) = opened().read().gpus
    assert (row.facts.uuid, row.facts.share, row.facts.owner.allocated) == (uuid(0), 1.0, False)
    assert row.values["power_w"] == 612.345
    assert "memory_used_bytes" not in row.values


def test_gpm_is_read_per_instance(nvml: FakeNvml, opened: Open) -> None:
    nvml.write(cut_gpu(("1g.10gb", 1, 0), ("6g.70gb", 6, 0)))
    source = opened("on")
    source.read()
    wait_for_pair()
    rows = source.read().gpus
    assert [row.values["sm_active_ratio"] for row in rows] == pytest.approx([0.1, 0.6])


def test_rows_follow_when_mig_is_cut_anew(nvml: FakeNvml, opened: Open, clock: ShiftedClock) -> None:
    nvml.write(cut_gpu(("7g.80gb", 7, 0)))
    source = opened("on")
    source.read()
    nvml.write(cut_gpu(("3g.40gb", 3, 0), ("4g.40gb", 4, 0)))
    clock.ahead_s += TOPOLOGY_S
    assert [row.facts.mig_profile for row in source.read().gpus] == ["3g.40gb", "4g.40gb"]
    nvml.write(gpu())
    clock.ahead_s += TOPOLOGY_S
    assert values(source.read()) == {uuid(0): H100}
    source.close()
    assert nvml.calls("nvmlGpmSampleAlloc") == nvml.calls("nvmlGpmSampleFree")


def test_a_lost_gpu_takes_its_instances_along(nvml: FakeNvml, opened: Open) -> None:
    nvml.write(cut_gpu(("3g.40gb", 3, 0), ("4g.40gb", 4, 0), temperature_c="error:15"))
    lost = {"gpu_state": 1}
    assert values(opened().read()) == {f"{uuid(0)}/GI1": lost, f"{uuid(0)}/GI2": lost}


def test_a_row_carries_the_processes_that_hold_it(nvml: FakeNvml, opened: Open, clock: ShiftedClock) -> None:
    nvml.write(gpu(processes="11:1024,12"), gpu(1, processes=""), gpu(2, processes=None))
    source = opened()
    assert [row.pids for row in source.read().gpus] == [(11, 12), (), None]


def test_a_mig_instance_has_its_own_name_and_processes(nvml: FakeNvml, opened: Open) -> None:
    nvml.write(cut_gpu(("3g.40gb", 3, 5 << 30), ("4g.40gb", 4, 0)))
    first, second = opened().read().gpus
    assert (first.pids, second.pids) == ((9,), ())
    assert first.facts.mig_uuid == "MIG-00000000-0000-5000-8000-000000000000"
