"""The page of /metrics under unidle's own names, in both formats."""

from __future__ import annotations

import math
import shutil
import subprocess
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from unidle_agent.config import NAMES
from unidle_agent.exporter import Metric, Snapshot, XidCounts, families, health_of, metric_name, render
from unidle_agent.fields import BY_NAME, FIELDS, Field
from unidle_agent.sample import GpuReading, Tick, Value
from unidle_agent.wire import Event, GpuFacts, Owner

OWNER = Owner(True, job="4711", user="u-1", source="slurm")
GPU = GpuFacts("GPU-a", 0, "B200", "0:1", 0, "570.1", owner=OWNER, sources={"power_w": "nvml"})


def tick(second: float = 100, facts: GpuFacts = GPU, **values: Value) -> Tick:
    host: dict[str, Value] = {"load_1m": 0.0, "psi_io_some_s": 2_323_110}
    return Tick(int(second * 1e9), (GpuReading(facts, values),), host, ())


def page_of(*ticks: Tick, keep_s: float = 3.0, names: str = "own", openmetrics: bool = False) -> str:
    snapshot = Snapshot(keep_s)
    for one in ticks:
        snapshot.update(one)
    return render(families(snapshot.reading(), names, "n1"), openmetrics)


def some_value(field: Field) -> Value:
    return 7 if field.dtype == "u8" else 0.5


def full_tick(gpus: int = 8) -> Tick:
    values = {field.name: some_value(field) for field in FIELDS if field.scope == "gpu"}
    host = {field.name: some_value(field) for field in FIELDS if field.scope == "host"}
    uuids = [f"GPU-{number:032x}" for number in range(gpus)]
    readings = [
        GpuReading(GpuFacts(uuid, index, "NVIDIA B200", "0000:1b:00.0", index, "570.86.15"), values)
        for index, uuid in enumerate(uuids)
    ]
    return Tick(10**11, tuple(readings), host, ())


def test_names_are_base_units_and_counters_end_in_total() -> None:
    names = {field.name: metric_name(field) for field in FIELDS}
    assert names["power_w"] == "unidle_gpu_power_watts"
    assert names["energy_j"] == "unidle_gpu_energy_joules_total"
    assert names["gpu_util_ratio"] == "unidle_gpu_util_ratio"
    assert names["sm_clock_hz"] == "unidle_gpu_sm_clock_hertz"
    assert names["temperature_c"] == "unidle_gpu_temperature_celsius"
    assert names["power_cap_s"] == "unidle_gpu_power_cap_seconds_total"
    assert names["pcie_tx_bytes_per_s"] == "unidle_gpu_pcie_tx_bytes_per_second"
    assert names["memory_total_bytes"] == "unidle_gpu_memory_total_bytes"
    assert names["process_count"] == "unidle_gpu_processes"
    assert names["psi_io_some_s"] == "unidle_host_psi_io_some_seconds_total"
    assert names["host_memory_total_bytes"] == "unidle_host_memory_total_bytes"
    assert len(set(names.values())) == len(FIELDS)


def test_xids_are_counted_by_code_and_stay_when_the_gpu_is_gone() -> None:
    def struck(second: int, *codes: int) -> Tick:
        events = tuple(Event(second, "GPU-a", "xid", code) for code in codes)
        other = Event(second, "GPU-a", "recovery_action", 1)
        return replace(tick(power_w=1.0, second=second), events=(*events, other))

    counts = XidCounts()
    for one in (struck(1, 79), struck(2, 31, 79), struck(3), Tick(60 * 10**9, (), {}, ())):
        counts.update(one)
    page = render([counts.metric()])
    assert [line for line in page.splitlines() if not line.startswith("#")] == [
        'unidle_gpu_xid_errors_total{gpu="0",uuid="GPU-a",xid="79"} 2',
        'unidle_gpu_xid_errors_total{gpu="0",uuid="GPU-a",xid="31"} 1',
    ]
    assert render([XidCounts().metric()]) == ""


def test_the_page_of_one_gpu() -> None:
    assert page_of(tick(power_w=512.25, energy_j=123_456, last_xid=0)) == (
        "# HELP unidle_gpu_info what is known about the GPU\n"
        "# TYPE unidle_gpu_info gauge\n"
        'unidle_gpu_info{gpu="0",uuid="GPU-a",model="B200",driver="570.1",pci_bus_id="0:1"} 1\n'
        "# HELP unidle_gpu_allocated 1: somebody holds the GPU, 0: nobody does, absent: nobody says\n"
        "# TYPE unidle_gpu_allocated gauge\n"
        'unidle_gpu_allocated{gpu="0",uuid="GPU-a"} 1\n'
        "# HELP unidle_gpu_job_info the job that holds the GPU; join on uuid\n"
        "# TYPE unidle_gpu_job_info gauge\n"
        'unidle_gpu_job_info{gpu="0",uuid="GPU-a",job="4711",user="u-1",source="slurm"} 1\n'
        "# HELP unidle_gpu_power_watts board power, the driver's average (1 s on Ampere and newer, "
        "instant on GA100)\n"
        "# TYPE unidle_gpu_power_watts gauge\n"
        'unidle_gpu_power_watts{gpu="0",uuid="GPU-a"} 512.25\n'
        "# HELP unidle_gpu_energy_joules_total energy since the driver was loaded\n"
        "# TYPE unidle_gpu_energy_joules_total counter\n"
        'unidle_gpu_energy_joules_total{gpu="0",uuid="GPU-a"} 123.456\n'
        "# HELP unidle_gpu_last_xid the last XID that the driver reported; sticky, 0 is none\n"
        "# TYPE unidle_gpu_last_xid gauge\n"
        'unidle_gpu_last_xid{gpu="0",uuid="GPU-a"} 0\n'
        "# HELP unidle_host_load_1m load average over one minute\n"
        "# TYPE unidle_host_load_1m gauge\n"
        "unidle_host_load_1m 0\n"
        "# HELP unidle_host_psi_io_some_seconds_total time in which some task waited for I/O\n"
        "# TYPE unidle_host_psi_io_some_seconds_total counter\n"
        "unidle_host_psi_io_some_seconds_total 2.32311\n"
    )


def test_the_same_page_in_openmetrics() -> None:
    page = page_of(tick(power_w=512.25, energy_j=123_456), openmetrics=True)
    assert page.startswith("# TYPE unidle_gpu info\n# HELP unidle_gpu what is known about the GPU\n")
    assert (
        "# TYPE unidle_gpu_energy_joules counter\n"
        "# UNIT unidle_gpu_energy_joules joules\n"
        "# HELP unidle_gpu_energy_joules energy since the driver was loaded\n"
        'unidle_gpu_energy_joules_total{gpu="0",uuid="GPU-a"} 123.456\n'
    ) in page
    assert page.endswith("\n# EOF\n")


@pytest.mark.parametrize("names", NAMES)
def test_an_openmetrics_parser_reads_what_a_prometheus_parser_reads(names: str) -> None:
    owned = GpuFacts(
        'GPU-"\\', 9, 'we"ird\\model\n', owner=Owner(True, job="a b"), sources={"x": "simulator"}
    )
    ticks = (full_tick(), tick(100, facts=owned, power_w=1.0))

    def values(openmetrics: bool) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        page = page_of(*ticks, keep_s=100, names=names, openmetrics=openmetrics)
        if not openmetrics:  # this parser would rename DCGM's counters
            page = page.replace(" counter\n", " untyped\n")
        parse = openmetrics_families if openmetrics else text_string_to_metric_families
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in parse(page)
            for sample in family.samples
        }

    assert values(openmetrics=True) == values(openmetrics=False)
    assert len(values(openmetrics=True)) > 8 * 30


def test_the_job_is_on_one_series_of_a_gpu_and_on_no_other() -> None:
    lines = page_of(full_tick(1), tick(100, power_w=1.0), keep_s=99).splitlines()
    assert [line.partition("{")[0] for line in lines if "4711" in line] == ["unidle_gpu_job_info"]


@pytest.mark.parametrize(
    ("owner", "allocated", "has_job"),
    [
        pytest.param(Owner(), "", False, id="nobody says"),
        pytest.param(Owner(False), "0", False, id="nobody holds it"),
        pytest.param(Owner(True), "1", False, id="held, by whom is unknown"),
        pytest.param(Owner(True, job="7"), "1", True, id="held by a job"),
    ],
)
def test_what_is_said_about_the_owner(owner: Owner, allocated: str, has_job: bool) -> None:
    page = page_of(tick(facts=GpuFacts("GPU-a", 0, owner=owner), power_w=1.0))
    line = f'unidle_gpu_allocated{{gpu="0",uuid="GPU-a"}} {allocated}\n'
    assert (line in page) if allocated else ("allocated" not in page)
    assert ("unidle_gpu_job_info" in page) is has_job


@pytest.mark.parametrize("names", NAMES)
def test_a_lost_gpu_keeps_its_state(names: str) -> None:
    page = page_of(tick(100, power_w=1.0, gpu_state=0), tick(104, gpu_state=1), names=names)
    assert 'unidle_gpu_state{gpu="0",uuid="GPU-a"} 1\n' in page
    assert "} 1.0" not in page
    assert "POWER" not in page.upper()


def test_unknown_is_absent_and_never_zero() -> None:
    page = page_of(tick(power_w=math.nan, energy_j=-1, temperature_c=0.0))
    assert "power" not in page
    assert "energy" not in page
    assert 'unidle_gpu_temperature_celsius{gpu="0",uuid="GPU-a"} 0\n' in page


def test_a_value_outlives_the_ticks_between_two_scrapes_and_then_is_absent() -> None:
    ticks = [tick(100, power_w=5.0), *(tick(100 + second) for second in range(1, 4))]
    assert "power_watts" in page_of(*ticks)
    later = page_of(*ticks, tick(104))
    assert "power_watts" not in later
    assert "unidle_gpu_info" in later


def test_a_gpu_that_is_gone_leaves_the_page() -> None:
    others = Tick(110 * 10**9, (), {"load_1m": 1.0}, ())
    assert "GPU-a" not in page_of(tick(100, power_w=5.0), others)


def test_a_clock_set_back_leaves_no_value_from_the_future() -> None:
    page = page_of(tick(100, power_w=5.0), tick(40, temperature_c=50.0))
    assert "power_watts" not in page
    assert "temperature_celsius" in page


def test_simulated_rows_mark_the_page() -> None:
    assert "SIMULATED" not in page_of(tick(power_w=1.0))
    simulated = GpuFacts("GPU-a", 0, sources={"power_w": "simulator"})
    page = page_of(tick(facts=simulated, power_w=1.0))
    assert "SIMULATED" in page
    assert "\nunidle_simulated 1\n" in page


@given(st.dictionaries(st.sampled_from(["job", "model"]), st.text(max_size=30)), st.floats(allow_nan=False))
def test_any_label_and_value_come_back_from_a_prometheus_parser(labels: dict[str, str], value: float) -> None:
    labels = {key: text.replace("\r", "") for key, text in labels.items()}
    if math.isinf(value):
        return
    page = render([Metric("unidle_x", "gauge", 'help with \\ and "quotes"\nand lines', [(labels, value)])])
    (family,) = text_string_to_metric_families(page)
    assert family.samples[0].labels == labels
    assert family.samples[0].value == value


@pytest.mark.slow
def test_promtool_has_no_complaint_about_the_page_of_a_full_node() -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    owned = GpuFacts(
        'GPU-"\\', 9, 'we"ird\\model\n', owner=Owner(True, job="a b"), sources={"x": "simulator"}
    )
    page = page_of(full_tick(), tick(100, facts=owned, power_w=1.0), keep_s=100)
    checked = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, text=True)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_the_page_of_eight_gpus_is_small() -> None:
    assert len(page_of(full_tick(8))) < 80_000


@pytest.mark.parametrize(
    ("age_s", "ok"), [(None, False), (0.0, True), (4.9, True), (5.1, False), (3600.0, False)]
)
def test_healthy_is_a_tick_within_three_periods_and_two_seconds(age_s: float | None, ok: bool) -> None:
    last_s = None if age_s is None else 1000.0 - age_s
    assert health_of(last_s, 1.0, {}, now_s=1000.0).ok is ok


def test_every_field_is_on_the_page_of_a_full_node() -> None:
    page = page_of(full_tick(1))
    assert all(f"\n{metric_name(field)}" in page for field in BY_NAME.values())
