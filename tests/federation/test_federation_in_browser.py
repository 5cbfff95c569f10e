"""The pages of a federation in a real browser, over the federation's own server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect, sync_playwright
from tests.dashboard.test_dashboard_browser import CHROMIUM, CHROMIUM_FLAGS, PAINTED, Watched, start, stop
from tests.federation.fake_federation import serving

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not Path(CHROMIUM).exists():
        pytest.skip(f"needs {CHROMIUM}: apt-get install chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=list(CHROMIUM_FLAGS))
        yield opened
        opened.close()


def test_sites_lead_to_the_day_of_one_site(browser: Browser, tmp_path: Path) -> None:
    watched = Watched()
    with serving(tmp_path, "read-token-of-the-test") as federation:
        dashboard = start(federation, tmp_path)  # type: ignore[arg-type]  # it needs url and token only
        try:
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.on("console", watched.console)
            page.route("**/*", watched.route)
            page.goto(dashboard.url)
            expect(page.locator("h1")).to_have_text("2 of 3 sites answer; unknown: zrh", timeout=30_000)
            expect(page.locator(".u-sites tr")).to_have_count(4)
            expect(page.locator(".u-sites .u-tag.simulated")).to_have_count(1)
            page.evaluate(PAINTED)
            page.screenshot(path=tmp_path / "sites.png")
            page.locator(".u-sites a", has_text="fra").click()
            expect(page.locator("h1")).to_contain_text("1 of 512 GPUs", timeout=30_000)
            page.evaluate(PAINTED)
            page.screenshot(path=tmp_path / "site.png")
            page.close()
        finally:
            stop(dashboard)
    assert watched == Watched()
