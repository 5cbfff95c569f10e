"""/metrics under the names of dcgm-exporter: what existing dashboards ask for, and nothing lost."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unidle_agent.dcgm import SPLIT_BY_SHARE, parse_page
from unidle_agent.exporter import families, render
from unidle_agent.fields import BY_NAME, GPU_FIELDS, Field
from unidle_agent.sample import GpuReading, Reading, Value
from unidle_agent.wire import GpuFacts, Owner

SAVED = Path(__file__).parents[2].parent / "shared" / "data" / "dcgm-pages"
NAMED = tuple(field for field in GPU_FIELDS if field.dcgm)
DIALECTS = ("dcgm", "dcgm49")
B200 = GpuFacts("GPU-a", 3, "NVIDIA B200", "00000000:1B:00.0", 3, "570.86.15")
INSTANCE = GpuFacts("GPU-a/GI9", 3, "NVIDIA A100", "00000000:1B:00.0", 3, "520.56", "1g.5gb", 1 / 7)
FULL: dict[str, Value] = {field.name: 7 if field.dtype == "u8" else 0.5 for field in GPU_FIELDS}


def page(names: str, *gpus: GpuReading) -> str:
    return render(families(Reading(gpus, {}), names, "node-1"))


def values_of(field: Field) -> st.SearchStrategy[Value]:
    """Values that a sound GPU gives; DCGM's own "no value" numbers cannot be told from a value."""
    if field.dtype == "u8":
        most = 2**50 if field.kind == "counter" else 2**20
        return st.integers(0, most).filter(lambda value: not 0x7FFFFFF0 <= value <= 0x7FFFFFFF)
    low, high = {"1": (0.0, 1.0), "Cel": (-40.0, 110.0), "By": (0.0, 3e11), "Hz": (0.0, 3e9)}.get(
        field.unit, (0.0, 1500.0)
    )
    whole = st.integers(0, int(high)).map(float) if field.unit != "1" else st.integers(0, 100).map(percent)
    either = whole | st.floats(low, high).map(lambda value: round(value, 6))
    return either.filter(lambda value: not 0x7FFFFFF0 <= value <= 0x7FFFFFFF)


def percent(value: int) -> float:
    return value / 100


@st.composite
def readings(draw: st.DrawFn) -> tuple[GpuReading, ...]:
    """Whole GPUs and GPUs that MIG cuts into two, with any of the fields that DCGM has a name for."""
    text = st.text('B200 "\\\nü{}#,=', max_size=8).filter(lambda name: name == name.strip())
    out = []
    for index in range(draw(st.integers(1, 3))):
        uuids = [f"GPU-{index}/GI1", f"GPU-{index}/GI2"] if draw(st.booleans()) else [f"GPU-{index}"]
        model, driver = draw(text), draw(text)
        for uuid in uuids:
            cut = "/GI" in uuid
            facts = GpuFacts(
                uuid, index, model, "0:1", index, driver, *(("1g.10gb", 1 / 7) if cut else ("", 1.0))
            )
            wanted = draw(st.lists(st.sampled_from(NAMED), min_size=1, unique_by=lambda field: field.name))
            out.append(GpuReading(facts, {field.name: draw(values_of(field)) for field in wanted}))
    return tuple(out)


@pytest.mark.parametrize("names", DIALECTS)
@given(gpus=readings())
@settings(max_examples=150)
def test_reading_our_page_gives_back_what_went_in(names: str, gpus: tuple[GpuReading, ...]) -> None:
    parsed = parse_page(page(names, *gpus))
    assert parsed.bad_lines == 0
    back = {gpu.facts.uuid: gpu for gpu in parsed.gpus}
    assert back.keys() == {gpu.facts.uuid for gpu in gpus}
    assert set(parsed.nodes) == {"node-1"}
    for gpu in gpus:
        came = back[gpu.facts.uuid]
        assert came.facts == gpu.facts
        assert came.values.keys() - {"memory_total_bytes"} == gpu.values.keys() - {"memory_total_bytes"}
        for name, value in gpu.values.items():
            if "/GI" in gpu.facts.uuid and name in SPLIT_BY_SHARE:  # divided anew among the instances
                assert came.values[name] == pytest.approx(value, rel=1e-9, abs=1.5)
            elif BY_NAME[name].dtype == "u8":
                assert came.values[name] == value, name
            else:
                assert came.values[name] == pytest.approx(value, rel=1e-12, abs=1e-12), name


def test_the_labels_before_4_9() -> None:
    (line,) = samples(page("dcgm", GpuReading(B200, {"gpu_util_ratio": 0.57})), "DCGM_FI_DEV_GPU_UTIL")
    assert line == (
        'DCGM_FI_DEV_GPU_UTIL{gpu="3",UUID="GPU-a",pci_bus_id="00000000:1B:00.0",device="nvidia3",'
        'modelName="NVIDIA B200",Hostname="node-1",DCGM_FI_DRIVER_VERSION="570.86.15"} 57'
    )


def test_the_labels_since_4_9() -> None:
    (line,) = samples(page("dcgm49", GpuReading(B200, {"sm_clock_hz": 1.41e9})), "DCGM_FI_DEV_SM_CLOCK_HERTZ")
    assert line == (
        'DCGM_FI_DEV_SM_CLOCK_HERTZ{gpu="3",UUID="GPU-a",pci_bus_id="00000000:1B:00.0",device="nvidia3",'
        'modelName="NVIDIA B200",hostname="node-1",DCGM_FI_SYSTEM_DRIVER_VERSION="570.86.15"} 1410000000'
    )


def test_a_mig_instance_is_named_by_its_parent_and_its_id_and_shows_the_power_of_the_board() -> None:
    other = GpuFacts("GPU-a/GI2", 3, mig_profile="1g.5gb", share=1 / 7)
    text = page("dcgm", GpuReading(INSTANCE, {"power_w": 100.0}), GpuReading(other, {"power_w": 100.0}))
    for line, instance in zip(samples(text, "DCGM_FI_DEV_POWER_USAGE"), ("9", "2"), strict=True):
        assert 'UUID="GPU-a"' in line
        assert f'GPU_I_ID="{instance}"' in line
        assert 'GPU_I_PROFILE="1g.5gb"' in line
        assert line.endswith("} 200")


@pytest.mark.parametrize(
    ("job", "labels"),
    [
        ("research/train-0", 'namespace="research",pod="train-0"'),
        ("4711", ""),
        ("a/x,b/y", ""),
        ("", ""),
    ],
)
def test_a_pod_is_a_label_as_with_dcgm_exporter_and_other_jobs_are_none(job: str, labels: str) -> None:
    facts = GpuFacts("GPU-a", 0, owner=Owner(bool(job), job=job, source="kubelet"))
    text = page("dcgm", GpuReading(facts, {"power_w": 1.0}))
    (line,) = samples(text, "DCGM_FI_DEV_POWER_USAGE")
    assert labels in line
    assert ("pod=" in line) is bool(labels)
    assert ("unidle_gpu_job_info" in text) is bool(job)


def test_the_job_can_be_joined_on_the_labels_of_either_kind_of_name() -> None:
    facts = GpuFacts("GPU-a/GI9", 3, owner=Owner(True, job="4711"))
    (line,) = samples(page("dcgm", GpuReading(facts, {"power_w": 1.0})), "unidle_gpu_job_info")
    assert line == 'unidle_gpu_job_info{gpu="3",uuid="GPU-a/GI9",UUID="GPU-a",GPU_I_ID="9",job="4711"} 1'


def test_a_lone_ratio_of_one_is_not_read_as_one_percent() -> None:
    unnamed = GpuFacts("GPU-a", 0)
    parsed = parse_page(page("dcgm49", GpuReading(unnamed, {"gpu_util_ratio": 1.0})))
    assert parsed.gpus[0].values == {"gpu_util_ratio": 1.0}


DASHBOARD_12239 = (
    "DCGM_FI_DEV_GPU_TEMP",
    "DCGM_FI_DEV_POWER_USAGE",
    "DCGM_FI_DEV_SM_CLOCK",
    "DCGM_FI_DEV_GPU_UTIL",
    "DCGM_FI_DEV_FB_USED",
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE",
)
"""What Grafana's dashboard 12239 queries, by the labels `gpu` and `instance` (Prometheus's own)."""
SINCE_49 = (
    "DCGM_FI_DEV_GPU_TEMP_CELSIUS",
    "DCGM_FI_DEV_BOARD_POWER_WATTS",
    "DCGM_FI_DEV_SM_CLOCK_HERTZ",
    "DCGM_FI_DEV_GPU_UTIL_RATIO",
    "DCGM_FI_DEV_FB_USED_BYTES",
    "DCGM_FI_PROF_TENSOR_UTIL_RATIO",
    "DCGM_FI_DEV_GPU_ENERGY_JOULES_TOTAL",
)
"""The same quantities under the names of dcgm-exporter 4.9, as newer dashboards ask for them."""


@pytest.mark.parametrize(("names", "queried"), [("dcgm", DASHBOARD_12239), ("dcgm49", SINCE_49)])
def test_what_grafana_dashboards_query_is_there(names: str, queried: tuple[str, ...]) -> None:
    text = page(names, GpuReading(B200, FULL))
    for name in queried:
        (line,) = samples(text, name)
        assert 'gpu="3"' in line
        assert 'instance="' not in line, "Prometheus sets it"


def test_types_are_those_of_saved_pages() -> None:
    if not SAVED.is_dir():
        pytest.skip(f"no saved pages of dcgm-exporter in {SAVED}")
    ours = types(page("dcgm", GpuReading(B200, FULL)))
    theirs: dict[str, str] = {}
    for saved in SAVED.glob("*.prom"):
        theirs |= types(saved.read_text(encoding="utf-8"))
    both = ours.keys() & theirs.keys()
    assert len(both) >= 20
    assert {name: ours[name] for name in both} == {name: theirs[name] for name in both}


@pytest.mark.parametrize("names", DIALECTS)
def test_every_field_is_on_the_page_once_under_some_name(names: str) -> None:
    declared = re.findall(r"^# TYPE (\S+)", page(names, GpuReading(B200, FULL)), re.MULTILINE)
    assert len(declared) == len(set(declared))
    assert len(declared) == len(GPU_FIELDS) + 1, "and unidle_gpu_info"


def samples(text: str, name: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(f"{name}{{")]


def types(text: str) -> dict[str, str]:
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
