"""What each generation of dcgm-exporter page says, and what must not be believed."""

from __future__ import annotations

import math

import pytest

from unidle_agent.dcgm import Page, parse_page
from unidle_agent.dcgm_values import METRICS
from unidle_agent.fields import FIELDS
from unidle_agent.sample import GpuReading

UUID = "GPU-7099682b-a20d-2bcc-74ab-b9060454d81e"
MIB = 1_048_576


def sample(family: str, value: object, **labels: object) -> str:
    named = {"gpu": 0, "UUID": UUID, "modelName": "NVIDIA H100", "Hostname": "n1", **labels}
    text = ",".join(f'{name}="{label}"' for name, label in named.items() if label is not None)
    return f"{family}{{{text}}} {value}\n"


def only(page: Page) -> GpuReading:
    assert len(page.gpus) == 1
    return page.gpus[0]


def test_every_dcgm_name_of_the_field_table_arrives_in_base_units() -> None:
    for spec in FIELDS:
        for name, factor in spec.dcgm:
            text = sample("DCGM_FI_DEV_SM_CLOCK_HERTZ", 1e9) + sample(f"DCGM_FI_{name}", 8)
            value = only(parse_page(text)).values[spec.name]
            scale = spec.resolution if spec.kind == "counter" else 1
            assert value * scale == pytest.approx(8 * factor), name


# Generations


def test_exporter_1_names_and_labels_are_read() -> None:
    pod = 'pod_name="p",pod_namespace="ml",container_name="c"'
    text = (
        f'dcgm_gpu_temp{{gpu="3",uuid="{UUID}",{pod}}} 41\n'
        f'dcgm_gpu_utilization{{gpu="3",uuid="{UUID}",{pod}}} 57\n'
        f'dcgm_fb_used{{gpu="3",uuid="{UUID}"}} 100\n'
        f'dcgm_total_energy_consumption{{gpu="3",uuid="{UUID}"}} 123456789\n'
        f'dcgm_fi_prof_sm_active{{gpu="3",uuid="{UUID}"}} 0.25\n'
    )
    gpu = only(parse_page(text))
    assert (gpu.facts.uuid, gpu.facts.index, gpu.facts.owner.job) == (UUID, 3, "ml/p")
    assert gpu.values == {
        "temperature_c": 41.0,
        "gpu_util_ratio": 0.57,
        "memory_used_bytes": 100.0 * MIB,
        "energy_j": 123456789,
        "sm_active_ratio": 0.25,
    }


def test_hostname_is_read_in_both_spellings() -> None:
    for spelling in ("Hostname", "hostname"):
        page = parse_page(sample("DCGM_FI_DEV_GPU_TEMP", 41, **{"Hostname": None, spelling: "n7"}))
        assert (page.host, page.nodes) == ("n7", ("n7",))


def test_exporter_4_9_base_units_equal_the_old_ones() -> None:
    old = parse_page(
        sample("DCGM_FI_DEV_SM_CLOCK", 1980)
        + sample("DCGM_FI_DEV_GPU_UTIL", 57)
        + sample("DCGM_FI_DEV_FB_USED", 1024)
        + sample("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", 1234567)
        + sample("DCGM_FI_DEV_THERMAL_VIOLATION", 1500000000)
        + sample("DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL", 2)
    )
    new = parse_page(
        sample("DCGM_FI_DEV_SM_CLOCK_HERTZ", 1980000000)
        + sample("DCGM_FI_DEV_GPU_UTIL_RATIO", "0.570000")
        + sample("DCGM_FI_DEV_FB_USED_BYTES", 1024 * MIB)
        + sample("DCGM_FI_DEV_GPU_ENERGY_JOULES_TOTAL", "1234.567000")
        + sample("DCGM_FI_DEV_GPU_THERMAL_THROTTLE_SECONDS_TOTAL", "1.500000")
        + sample("DCGM_FI_DEV_NVLINK_THROUGHPUT_BYTES_PER_SECOND", 2_048_000)
    )
    assert only(old).values == only(new).values
    assert only(old).values["thermal_throttle_s"] == 1_500_000_000


@pytest.mark.parametrize(
    ("beside", "printed", "expected"),
    [
        ("DCGM_FI_DEV_SM_CLOCK_HERTZ", "1", 1.0),
        ("DCGM_FI_DEV_FB_USED_BYTES", "1", 1.0),
        ("DCGM_FI_DEV_GPU_ENERGY_JOULES_TOTAL", "0.010000", 0.01),
        ("DCGM_FI_DEV_GPU_TEMP", "57", 0.57),
        ("DCGM_FI_DEV_GPU_TEMP", "0.570000", 0.57),
        ("DCGM_FI_DEV_GPU_TEMP", "0", 0.0),
        ("DCGM_FI_DEV_GPU_TEMP", "1", None),
    ],
)
def test_a_utilization_ratio_is_read_by_what_stands_beside_it(
    beside: str, printed: str, expected: float | None
) -> None:
    page = parse_page(sample("DCGM_FI_DEV_GPU_UTIL_RATIO", printed) + sample(beside, 40))
    assert only(page).values.get("gpu_util_ratio") == expected
    assert ("unit unknown" in page.missing) == (expected is None)
    assert any("UTIL_RATIO" in problem for problem in page.problems) == (expected is None)


def test_a_new_driver_label_makes_a_ratio_of_1_full() -> None:
    text = sample("DCGM_FI_DEV_GPU_UTIL_RATIO", 1, DCGM_FI_SYSTEM_DRIVER_VERSION="580.1")
    gpu = only(parse_page(text))
    assert (gpu.values["gpu_util_ratio"], gpu.facts.driver) == (1.0, "580.1")


def test_another_gpu_above_1_makes_a_ratio_of_1_one_percent() -> None:
    text = sample("DCGM_FI_DEV_GPU_UTIL_RATIO", 1) + sample(
        "DCGM_FI_DEV_GPU_UTIL_RATIO", 99, UUID="GPU-b", gpu=1
    )
    assert [gpu.values["gpu_util_ratio"] for gpu in parse_page(text).gpus] == [0.01, 0.99]


def test_joined_pages_of_an_old_and_a_new_host_are_judged_each_by_itself() -> None:
    text = (
        sample("DCGM_FI_DEV_GPU_UTIL_RATIO", 1, Hostname="old", UUID="GPU-old")
        + sample("DCGM_FI_DEV_GPU_UTIL_RATIO", 50, Hostname="old", UUID="GPU-old2", gpu=1)
        + sample("DCGM_FI_DEV_GPU_UTIL_RATIO", 1, Hostname="new", UUID="GPU-new")
        + sample("DCGM_FI_DEV_SM_CLOCK_HERTZ", 1e9, Hostname="new", UUID="GPU-new")
    )
    page = parse_page(text)
    utils = {gpu.facts.uuid: gpu.values["gpu_util_ratio"] for gpu in page.gpus}
    assert utils == {"GPU-old": 0.01, "GPU-old2": 0.5, "GPU-new": 1.0}
    assert page.nodes == ("new", "old", "old")


# Values that are none


@pytest.mark.parametrize(
    ("family", "printed", "reason"),
    [
        ("DCGM_FI_DEV_GPU_TEMP", "2147483632", "blank"),
        ("DCGM_FI_DEV_GPU_TEMP", "2147483634", "not supported"),
        ("DCGM_FI_DEV_GPU_UTIL", "9223372036854775792", "blank"),
        ("DCGM_FI_DEV_GPU_UTIL", "9223372036854775793", "not found"),
        ("DCGM_FI_DEV_GPU_UTIL", "9223372036854775794", "not supported"),
        ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "9223372036854775795", "no permission"),
        ("DCGM_FI_DEV_GPU_UTIL", "9.223372036854776e+18", "blank"),
        ("DCGM_FI_DEV_POWER_USAGE", "140737488355328.000000", "blank"),
        ("DCGM_FI_PROF_SM_ACTIVE", "140737488355330.000000", "not supported"),
        ("DCGM_FI_DEV_GPU_TEMP", "<<<NULL>>>", "blank"),
        ("DCGM_FI_DEV_POWER_USAGE", "NaN", "nan"),
        ("DCGM_FI_DEV_POWER_USAGE", "+Inf", "inf"),
        ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "-5", "negative"),
    ],
)
def test_a_number_that_means_no_value_is_unknown_and_its_reason_kept(
    family: str, printed: str, reason: str
) -> None:
    page = parse_page(sample(family, printed))
    assert only(page).values == {}
    assert (page.missing, page.samples, page.bad_lines) == ({reason: 1}, 1, 0)


def test_a_large_counter_is_no_sentinel() -> None:
    two_days_ns = 172_800_000_000_000
    page = parse_page(sample("DCGM_FI_DEV_POWER_VIOLATION", two_days_ns))
    assert only(page).values == {"power_cap_s": two_days_ns}


def test_a_negative_thermal_margin_is_a_value() -> None:
    assert only(parse_page(sample("DCGM_FI_DEV_GPU_TEMP_LIMIT", -3))).values == {"thermal_margin_c": -3.0}


def test_counters_stay_exact_beyond_a_double() -> None:
    exact = 2**53 + 1
    page = parse_page(sample("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", exact))
    assert only(page).values["energy_j"] == exact


def test_percent_is_exact_to_the_last_digit() -> None:
    for percent in range(101):
        value = only(parse_page(sample("DCGM_FI_DEV_GPU_UTIL", percent))).values["gpu_util_ratio"]
        assert value == float(f"{percent / 100:.2f}")


# Lines


def test_labels_come_in_any_order_with_blanks_and_escapes() -> None:
    text = f'DCGM_FI_DEV_GPU_TEMP {{ Hostname="a\\"b\\\\n" , UUID = "{UUID}",gpu="2", }} 40\n'
    page = parse_page(text)
    assert (only(page).facts.index, page.host, page.bad_lines) == (2, 'a"b\\n', 0)


def test_braces_commas_and_equals_signs_in_a_label_are_text() -> None:
    page = parse_page(sample("DCGM_FI_DEV_GPU_TEMP", 40, pod='a{b},c="d"'.replace('"', '\\"'), namespace="x"))
    assert only(page).facts.owner.job == 'x/a{b},c="d"'


def test_timestamps_are_kept_in_nanoseconds() -> None:
    text = sample("DCGM_FI_DEV_GPU_TEMP", "40 1760000000123") + sample(
        "DCGM_FI_DEV_SM_CLOCK", "40 1760000001.5"
    )
    assert parse_page(text).times_ns == (1760000000123000000, 1760000001500000000)


@pytest.mark.parametrize(
    "line",
    [
        "Active 1g.5gb",
        "-" * 80,
        'DCGM_FI_DEV_GPU_UTIL{gpu="0",UUID="GPU-',
        'DCGM_FI_DEV_GPU_UTIL{gpu="0",UUID="GPU-a"}',
        'DCGM_FI_DEV_GPU_UTIL{gpu="0",UUID="GPU-a} 5',
        'DCGM_FI_DEV_GPU_UTIL{gpu="0" UUID="GPU-a"} 5',
        "DCGM_FI_DEV_GPU_UTIL{gpu=0} 5",
        'DCGM_FI_DEV_GPU_UTIL{gpu="0"} 5 6 7',
        'DCGM_FI_DEV_GPU_UTIL{gpu="0"} 5 soon',
        'DCGM_FI_DEV_GPU_UTIL{gpu="0"} 1_000',
        'DCGM FI{gpu="0"} 5',
        "<html><body>502 Bad Gateway</body></html>",
        "} 5",
    ],
)
def test_a_line_that_is_no_sample_loses_itself_only_and_is_told(line: str) -> None:
    page = parse_page(sample("DCGM_FI_DEV_GPU_TEMP", 40) + line + "\n" + sample("DCGM_FI_DEV_SM_CLOCK", 1000))
    assert only(page).values == {"temperature_c": 40.0, "sm_clock_hz": 1e9}
    assert (page.samples, page.bad_lines) == (2, 1)
    assert "line 2" in page.problems[0]


def test_a_last_line_without_end_is_kept_unless_the_page_is_known_to_be_cut() -> None:
    text = sample("DCGM_FI_DEV_GPU_TEMP", 40) + sample("DCGM_FI_DEV_SM_CLOCK", 1000).rstrip("\n")
    kept, cut = parse_page(text), parse_page(text, complete=False)
    assert "sm_clock_hz" in only(kept).values
    assert kept.bad_lines == 0
    assert kept.problems
    assert "sm_clock_hz" not in only(cut).values
    assert cut.bad_lines == 1


def test_many_bad_lines_are_counted_and_only_some_described() -> None:
    page = parse_page("?!\n" * 1000)
    assert (page.bad_lines, len(page.problems)) == (1000, 21)
    assert "980 more" in page.problems[-1]


def test_families_that_no_field_carries_are_counted_by_name() -> None:
    text = sample("DCGM_FI_DEV_COUNT", 1) + sample("DCGM_FI_DEV_COUNT", 1) + "go_goroutines 12\n"
    page = parse_page(text)
    assert page.unmapped == {"DCGM_FI_DEV_COUNT": 2, "go_goroutines": 1}
    assert page.samples == 3


def test_rows_of_links_and_switches_are_not_gpu_values() -> None:
    text = sample("DCGM_FI_DEV_GPU_TEMP", 40) + sample("DCGM_FI_DEV_GPU_TEMP", 99, nvswitch="3")
    assert only(parse_page(text)).values == {"temperature_c": 40.0}


def test_bytes_bom_and_crlf_are_read() -> None:
    text = ("\ufeff" + sample("DCGM_FI_DEV_GPU_TEMP", 40) * 2).replace("\n", "\r\n").encode()
    page = parse_page(text)
    assert (page.samples, page.bad_lines) == (2, 0)


def test_nothing_at_all_is_an_empty_page() -> None:
    page = parse_page(b"")
    assert (page.gpus, page.samples, page.bad_lines, page.problems) == ((), 0, 0, ())


# Identity


def test_two_exporters_on_one_node_give_each_gpu_once() -> None:
    text = sample("DCGM_FI_DEV_POWER_USAGE", 100, instance="a") + sample(
        "DCGM_FI_DEV_POWER_USAGE", 101, instance="b"
    )
    assert only(parse_page(text)).values == {"power_w": 101.0}


def test_gpus_without_uuid_are_kept_apart_by_host() -> None:
    text = sample("DCGM_FI_DEV_GPU_TEMP", 40, UUID=None, Hostname="a") + sample(
        "DCGM_FI_DEV_GPU_TEMP", 50, UUID=None, Hostname="b"
    )
    page = parse_page(text)
    assert page.nodes == ("a", "b")
    assert [(gpu.facts.uuid, gpu.values["temperature_c"]) for gpu in page.gpus] == [("0", 40.0), ("0", 50.0)]


def test_mig_instances_are_gpus_with_shares_and_board_values_add_up_to_the_board() -> None:
    text = "".join(
        sample("DCGM_FI_DEV_POWER_USAGE", 300, GPU_I_PROFILE=profile, GPU_I_ID=number)
        + sample("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", 7_000_000, GPU_I_PROFILE=profile, GPU_I_ID=number)
        + sample("DCGM_FI_DEV_GPU_TEMP", 50, GPU_I_PROFILE=profile, GPU_I_ID=number)
        + sample("DCGM_FI_PROF_GR_ENGINE_ACTIVE", 0.5, GPU_I_PROFILE=profile, GPU_I_ID=number)
        for number, profile in ((1, "4g.40gb"), (5, "2g.20gb"), (6, "1g.10gb"))
    )
    page = parse_page(text)
    assert [gpu.facts.uuid for gpu in page.gpus] == [f"{UUID}/GI1", f"{UUID}/GI5", f"{UUID}/GI6"]
    assert [gpu.facts.share for gpu in page.gpus] == [4 / 7, 2 / 7, 1 / 7]
    assert sum(gpu.values["power_w"] for gpu in page.gpus) == pytest.approx(300)
    assert sum(gpu.values["energy_j"] for gpu in page.gpus) == pytest.approx(7_000_000, abs=3)
    assert {gpu.values["temperature_c"] for gpu in page.gpus} == {50.0}
    assert {gpu.values["graphics_active_ratio"] for gpu in page.gpus} == {0.5}


def test_a_gpu_with_instances_is_not_counted_beside_them() -> None:
    text = sample("DCGM_FI_DEV_POWER_USAGE", 300) + sample(
        "DCGM_FI_PROF_GR_ENGINE_ACTIVE", 0.5, GPU_I_PROFILE="7g.80gb", GPU_I_ID=0
    )
    gpu = only(parse_page(text))
    assert gpu.facts.uuid == f"{UUID}/GI0"
    assert gpu.values == {"power_w": 300.0, "graphics_active_ratio": 0.5}


@pytest.mark.parametrize(
    ("profile", "model", "share"),
    [
        ("1g.5gb", "NVIDIA A100-SXM4-40GB", 1 / 7),
        ("3g.40gb", "NVIDIA H100", 3 / 7),
        ("1c.3g.20gb", "NVIDIA A100", 1 / 7),
        ("1g.10gb+me", "NVIDIA A100", 1 / 7),
        ("7g.80gb", "NVIDIA H100", 1.0),
        ("2g.12gb", "NVIDIA A30", 0.5),
        ("4g.96gb", "NVIDIA RTX PRO 6000 Blackwell", 1.0),
    ],
)
def test_the_share_of_an_instance_follows_from_its_profile(profile: str, model: str, share: float) -> None:
    text = sample("DCGM_FI_DEV_GPU_TEMP", 50, GPU_I_PROFILE=profile, GPU_I_ID=2, modelName=model)
    assert only(parse_page(text)).facts.share == pytest.approx(share)


def test_memory_size_is_used_free_and_reserved_where_it_is_not_printed() -> None:
    parts = sample("DCGM_FI_DEV_FB_USED", 100) + sample("DCGM_FI_DEV_FB_FREE", 900)
    reserved = sample("DCGM_FI_DEV_FB_RESERVED", 24)
    assert only(parse_page(parts)).values["memory_total_bytes"] == 1000 * MIB
    assert only(parse_page(parts + reserved)).values["memory_total_bytes"] == 1024 * MIB
    printed = sample("DCGM_FI_DEV_FB_TOTAL", 2048)
    assert only(parse_page(parts + printed)).values["memory_total_bytes"] == 2048 * MIB
    assert "memory_total_bytes" not in only(parse_page(reserved)).values


# Owners


def test_a_gpu_whose_series_come_once_per_job_is_one_row_with_all_jobs() -> None:
    text = sample("DCGM_FI_DEV_GPU_UTIL", 99, hpc_job=11) + sample("DCGM_FI_DEV_GPU_UTIL", 99, hpc_job=12)
    page = parse_page(text)
    gpu = only(page)
    assert (gpu.facts.owner.job, gpu.facts.owner.allocated, page.shared) == ("11,12", True, (UUID,))
    assert gpu.values == {"gpu_util_ratio": 0.99}


def test_an_empty_pod_says_nothing_where_no_gpu_has_one() -> None:
    text = sample("DCGM_FI_DEV_GPU_TEMP", 40, container="", namespace="", pod="")
    assert only(parse_page(text)).facts.owner.allocated is None


def test_an_empty_pod_means_free_where_another_gpu_of_the_host_has_one() -> None:
    text = (
        sample("DCGM_FI_DEV_GPU_TEMP", 40, UUID="GPU-a", gpu=0, namespace="ml", pod="train", container="c")
        + sample("DCGM_FI_DEV_GPU_TEMP", 40, UUID="GPU-b", gpu=1, namespace="", pod="", container="")
        + sample("DCGM_FI_DEV_GPU_TEMP", 40, UUID="GPU-c", gpu=0, namespace="", pod="", Hostname="n2")
    )
    owners = {gpu.facts.uuid: gpu.facts.owner for gpu in parse_page(text).gpus}
    assert {uuid: owner.allocated for uuid, owner in owners.items()} == {
        "GPU-a": True,
        "GPU-b": False,
        "GPU-c": None,
    }
    assert owners["GPU-a"].job == "ml/train"


def test_where_prometheus_moved_the_pod_the_plain_labels_are_the_exporters_own() -> None:
    exporter = {"pod": "nvidia-dcgm-exporter-x", "namespace": "gpu", "container": "nvidia-dcgm-exporter"}
    text = sample(
        "DCGM_FI_DEV_GPU_TEMP", 40, UUID="GPU-a", exported_pod="train", exported_namespace="ml", **exporter
    ) + sample("DCGM_FI_DEV_GPU_TEMP", 40, UUID="GPU-b", gpu=1, **exporter)
    assert [gpu.facts.owner.job for gpu in parse_page(text).gpus] == ["ml/train", ""]
    alone = parse_page(sample("DCGM_FI_DEV_GPU_TEMP", 40, **exporter))
    assert only(alone).facts.owner.job == ""


def test_a_number_of_thousands_of_digits_is_no_value() -> None:
    page = parse_page(sample("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "9" * 5000))
    assert only(page).values == {}


def test_no_value_of_any_page_is_nan_or_infinite() -> None:
    text = "".join(sample(name, value) for name in METRICS for value in ("NaN", "Inf", "1e400", "0"))
    assert all(math.isfinite(value) for value in only(parse_page(text)).values.values())
