"""The demo's dashboard in a real browser: it shows what the API of the real collector says.

With UNIDLE_WRITE_IMAGES=1 the pictures of the README are written to docs/images, else to a temporary
folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright
from tests.dashboard.test_dashboard_browser import CHROMIUM, CHROMIUM_FLAGS, PAINTED, Watched
from tests.e2e.test_up_demo import Up

from unidle_collector.client import Client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
IMAGES = Path(__file__).parents[2] / "docs" / "images"


@dataclass
class Demo:
    """A running demo that has gone live."""

    dashboard: str
    client: Client


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    folder = tmp_path_factory.mktemp("demo")
    up = Up(folder, "--demo")
    try:
        up.wait_until_said("Ctrl-C stops everything", 400)
        dashboard = _said(up, r"dashboard +(http://\S+)")
        collector = _said(up, r"collector +(http://\S+)")
        token = Path(_said(up, r"read token in (\S+)")).read_text().strip()
        yield Demo(dashboard, Client(collector, token))
    finally:
        up.process.terminate()
        up.process.wait(90)


def _said(up: Up, pattern: str) -> str:
    found = re.search(pattern, up.said)
    assert found, up.said
    return found.group(1)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(CHROMIUM_FLAGS))
        opened = browser.new_page(viewport={"width": 1600, "height": 1100})
        watched = Watched()
        opened.on("console", watched.console)
        opened.route("**/*", watched.route)
        yield opened
        browser.close()
        assert watched.outside == []
        assert watched.errors == []


def _picture(page: Page, name: str, folder: Path) -> None:
    page.evaluate(PAINTED)
    target = IMAGES if os.environ.get("UNIDLE_WRITE_IMAGES") == "1" else folder
    page.screenshot(path=target / name, full_page=False)


def test_today_shows_the_numbers_of_the_api(demo: Demo, page: Page, tmp_path: Path) -> None:
    page.goto(demo.dashboard)
    page.get_by_text("Effective utilization", exact=True).wait_for(timeout=60_000)
    page.get_by_text("What to do first").wait_for(timeout=60_000)
    page.get_by_text("Reclaim").first.wait_for(timeout=60_000)
    text = page.inner_text("body")
    window = re.search(r"Lost to jobs, last (\d+) (h|d)", text)
    assert window, text
    fleet = demo.client.fleet(int(window.group(1)) * {"h": 3600, "d": 86_400}[window.group(2)])
    assert "SIMULATED" in text
    assert f"{fleet.gpus} GPUs, {fleet.nodes} nodes" in text
    shown = re.search(r"Effective utilization\s+(\d+) %", text)
    assert shown, text
    assert fleet.account.effective_ratio is not None
    assert int(shown.group(1)) == pytest.approx(fleet.account.effective_ratio * 100, abs=1.5)
    incidents = re.search(r"Open incidents now\s+(\d+)", text)
    assert incidents, text
    assert abs(int(incidents.group(1)) - fleet.open_incidents) <= 2
    _picture(page, "dashboard.png", tmp_path)


def test_an_incident_of_the_api_opens_by_its_link(demo: Demo, page: Page, tmp_path: Path) -> None:
    incident = next(item for item in demo.client.incidents() if item.finding.kind == "starvation")
    page.goto(f"{demo.dashboard}/?incident={incident.id}")
    page.get_by_text(incident.id).first.wait_for(timeout=60_000)
    page.get_by_text(incident.finding.advice[:40]).first.wait_for(timeout=60_000)
    text = page.inner_text("body")
    assert "SIMULATED" in text
    assert incident.finding.subject in text
    _picture(page, "incident.png", tmp_path)


def test_the_fleet_map_draws_every_state(demo: Demo, page: Page, tmp_path: Path) -> None:
    page.goto(f"{demo.dashboard}/fleet")
    page.locator("canvas").first.wait_for(timeout=60_000)
    assert "SIMULATED" in page.inner_text("body")
    _picture(page, "fleet.png", tmp_path)
