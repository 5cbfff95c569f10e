"""The collector's /metrics: findings, accounts as counters, means of the fleet; bounded, and well formed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.collector.api_server import fill
from tests.collector.pushing import START_S, Site, batch, site
from tests.collector.test_live import COOL, HELD, play

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scraped(here: Site) -> Series:
    text = here.http.get("/metrics").text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def of(page: Series, name: str, **labels: str) -> float | None:
    return page.get((name, frozenset(labels.items())))


def settled(page: Series, name: str = "unidle_account_gpu_seconds_total") -> float:
    return sum(value for (family, _), value in page.items() if family == name)


@pytest.mark.slow
def test_accounts_never_fall_though_states_are_corrected_and_every_second_is_counted(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        before: Series = {}
        seq = 0
        for minute in range(0, 90, 5):
            values = COOL if minute < 20 else HELD
            seq = play(here, 60 * minute, 60 * minute + 300, values, seq=seq, job="4711")
            page = scraped(here)
            for (name, labels), value in before.items():
                if name.startswith("unidle_account_"):
                    assert page[name, labels] >= value
            before = page
        assert settled(before) == pytest.approx(2 * 3900, abs=2 * 300), "all but the last 20 to 25 minutes"
        idle = of(before, "unidle_account_gpu_seconds_total", state="idle", cause="held", simulated="0")
        assert idle == pytest.approx(2 * 2700, abs=2 * 300)
        lost = of(before, "unidle_account_lost_joules_total", state="idle", cause="held", simulated="0")
        assert lost == pytest.approx((idle or 0) * 120.0)
    with site(tmp_path) as here:
        here.clock.at_s = START_S + 5400
        play(here, 5400, 6000, HELD, seq=seq, job="4711")
        assert settled(scraped(here)) == pytest.approx(2 * 600), "it goes on where it stopped"


def test_findings_are_counted_by_kind_and_whether_people_were_told(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        seq = play(here, 0, 1200, HELD, job="4711")
        labels = {"kind": "idle", "simulated": "0"}
        page = scraped(here)
        assert of(page, "unidle_findings", **labels, state="developing") == 1
        assert of(page, "unidle_findings", **labels, state="told") is None
        play(here, 1200, 1860, HELD, seq=seq, job="4711")
        page = scraped(here)
        assert of(page, "unidle_findings", **labels, state="told") == 1
        assert of(page, "unidle_open_findings", kind="idle") == 1


def test_means_keep_real_and_simulated_gpus_apart_and_count_an_idle_one(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        here.clock.at_s = START_S + 5
        here.push(batch(0, 0, 5, COOL, node="n1", gpus=("a",)))
        here.push(batch(0, 0, 5, COOL | {"power_w": 0.0}, node="n2", gpus=("b",)))
        here.push(batch(0, 0, 5, COOL | {"power_w": None}, node="n3", gpus=("c",)))
        here.push(batch(0, 0, 5, COOL | {"power_w": 900.0}, node="n4", gpus=("d",), simulated=True))
        here.settle(8)
        page = scraped(here)
        assert of(page, "unidle_fleet_mean_power_watts", simulated="0") == 300.0
        assert of(page, "unidle_fleet_mean_power_watts", simulated="1") == 900.0
        assert of(page, "unidle_gpus", simulated="0") == 3


def test_a_larger_fleet_has_no_more_series(tmp_path: Path) -> None:
    sizes = []
    for nodes in (14, 140):
        with site(tmp_path / str(nodes)) as here:
            fill(here, nodes, 2)
            sizes.append(len(scraped(here)))
            assert not re.search(r'(gpu|uuid|node|job|user)="', here.http.get("/metrics").text)
    assert sizes[0] == sizes[1]


def test_every_metric_that_the_page_names_is_served(tmp_path: Path) -> None:
    doc = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    named = set(re.findall(r"unidle_\w+", doc.split("## The collector")[1]))
    with site(tmp_path) as here:
        play(here, 0, 60, COOL)
        served = set(re.findall(r"^# TYPE (\S+)", here.http.get("/metrics").text, re.MULTILINE))
    assert len(named) >= 9
    assert named <= served


@pytest.mark.slow
def test_promtool_has_no_complaint(tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    with site(tmp_path) as here:
        seq = play(here, 0, 1860, HELD, job="4711")
        play(here, 1860, 3000, COOL, seq=seq, job="4711", simulated=True)
        page = here.http.get("/metrics").text
    checked = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, text=True)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
