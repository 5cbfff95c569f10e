"""The parser against pages that real exporters served, against prometheus_client, and against noise."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from unidle_agent.dcgm import Page, parse_page
from unidle_agent.dcgm_values import METRICS
from unidle_agent.fields import FIELDS

FOLDER = Path(__file__).parents[2].parent / "shared" / "data" / "dcgm-pages"
PAGES = sorted(FOLDER.glob("*.prom"))
real_pages = pytest.mark.skipif(not PAGES, reason="needs the saved exporter pages beside the repository")

SAMPLE = re.compile(r'^([A-Za-z_]\w*)\{((?:\w+="[^"]*",?)*)\} (\S+)$', re.MULTILINE)


def written(gpus: int = 3) -> str:
    """A whole page in the shape of exporter 3.x, one family after the other."""
    lines = []
    for spec in FIELDS:
        for name, _ in spec.dcgm[:1]:
            lines.append(f"# HELP DCGM_FI_{name} {spec.doc}")
            lines.append(f"# TYPE DCGM_FI_{name} gauge")
            lines += [
                f'DCGM_FI_{name}{{gpu="{gpu}",UUID="GPU-{gpu}",device="nvidia{gpu}",modelName="NVIDIA H100",'
                f'Hostname="n1",container="c",namespace="ml",pod="train-{gpu}"}} {10 + gpu}'
                for gpu in range(gpus)
            ]
    return "\n".join(lines) + "\n"


def values(page: Page) -> dict[tuple[str, str], float]:
    return {(gpu.facts.uuid, name): value for gpu in page.gpus for name, value in gpu.values.items()}


@real_pages
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_sample_of_a_real_page_is_accounted_for(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    page = parse_page(text)
    samples = SAMPLE.findall(text)
    assert samples
    assert page.samples == len(samples)
    other = [line for line in text.splitlines() if line.strip() and line[0] != "#" and not SAMPLE.match(line)]
    assert page.bad_lines == len(other)
    assert not page.missing
    read = values(page)
    for family, labels, printed in samples:
        named = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        uuid = named["UUID"] + (f"/GI{named['GPU_I_ID']}" if "GPU_I_ID" in named else "")
        metric = METRICS.get(family)
        if metric is None:
            assert family in page.unmapped
            continue
        value = read[uuid, metric.field.name]
        scale = metric.field.resolution if metric.field.kind == "counter" else 1
        assert value * scale == pytest.approx(float(printed) * metric.factor, rel=1e-12), family


@real_pages
def test_the_instance_of_the_real_mig_page_holds_what_its_board_draws() -> None:
    page = parse_page((FOLDER / "A100_MIG_1g5gb_active.prom").read_bytes())
    (gpu,) = page.gpus
    assert gpu.facts.uuid == "GPU-7099682b-a20d-2bcc-74ab-b9060454d81e/GI9"
    assert gpu.facts.mig_profile == "1g.5gb"
    assert gpu.facts.share == pytest.approx(1 / 7)
    assert gpu.values["power_w"] == 115.294
    assert gpu.values["graphics_active_ratio"] == 0.999892
    assert "gpu_util_ratio" not in gpu.values


@real_pages
def test_the_pod_of_the_real_two_gpu_page_is_found() -> None:
    page = parse_page((FOLDER / "2xT4_one_pod.prom").read_bytes())
    owners = [gpu.facts.owner for gpu in page.gpus]
    assert owners[0].job == "runai-reservation/runai-reservation-gpu-qa-mig-worker-gpu-1-kvltw"
    assert [owner.allocated for owner in owners] == [True, False]


def test_a_well_formed_page_reads_as_prometheus_client_reads_it() -> None:
    text = written()
    ours = parse_page(text)
    theirs = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert ours.samples == len(theirs)
    read = values(ours)
    for sample in theirs:
        metric = METRICS[sample.name]
        scale = metric.field.resolution if metric.field.kind == "counter" else 1
        value = read[sample.labels["UUID"], metric.field.name] * scale
        if metric == METRICS[f"DCGM_FI_{metric.field.dcgm[0][0]}"]:
            assert value == pytest.approx(sample.value * metric.factor)


LINES = written().splitlines()
SAMPLES = [at for at, line in enumerate(LINES) if not line.startswith("#")]


@settings(max_examples=200)
@given(at=st.sampled_from(SAMPLES), data=st.data())
def test_a_page_with_one_torn_line_loses_only_that_line(at: int, data: st.DataObject) -> None:
    line = LINES[at]
    # Up to the closing brace and blank: a cut inside the number would leave a shorter number.
    keep = data.draw(st.integers(1, line.rindex("}") + 1))
    check_only_loss(at, line[:keep])


@settings(max_examples=200)
@given(
    at=st.sampled_from(SAMPLES),
    noise=st.text(st.characters(exclude_characters="\n#", codec="utf-8"), min_size=1),
)
def test_a_page_with_one_garbled_line_loses_only_that_line(at: int, noise: str) -> None:
    check_only_loss(at, "?" + noise)


def check_only_loss(at: int, instead: str) -> None:
    whole = values(parse_page("\n".join(LINES) + "\n"))
    page = parse_page("\n".join([*LINES[:at], instead, *LINES[at + 1 :]]) + "\n")
    assert page.bad_lines == 1
    assert page.samples == len(SAMPLES) - 1
    found = values(page)
    lost = whole.keys() - found.keys()
    assert len(lost) <= 1
    assert all(found[key] == whole[key] for key in found if key[1] != "memory_total_bytes")


@settings(max_examples=200)
@given(st.binary(max_size=400))
def test_any_bytes_are_read_without_an_error(data: bytes) -> None:
    page = parse_page(data)
    assert page.samples >= 0
    assert len(page.nodes) == len(page.gpus)


@settings(max_examples=100)
@given(cut=st.integers(0, len(written())))
def test_a_page_cut_anywhere_keeps_every_whole_line(cut: int) -> None:
    text = written()[:cut]
    whole_lines = text[: text.rfind("\n") + 1].splitlines()
    page = parse_page(text, complete=False)
    assert page.samples == sum(not line.startswith("#") for line in whole_lines)
