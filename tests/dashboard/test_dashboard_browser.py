"""The real `unidle dashboard` in a real browser, over a fake collector that speaks HTTP.

The pictures of the documentation come from the demo over a real collector: tests/e2e.
"""

from __future__ import annotations

import http.client
import io
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Route, expect, sync_playwright
from tests.dashboard.fake_api import FakeApi, FakeServer, serving

from unidle_dashboard.view import words

pytestmark = pytest.mark.slow

CHROMIUM = "/usr/bin/chromium"
CHROMIUM_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
TOKEN = "read-token-of-the-test"
PAGES = ("", "fleet", "incidents", "recommendations", "health")
EVIL = '<img src=x onerror="window.pwned=1">[x](javascript:window.pwned=1)**b** $x^2$'
WAIT_MS = 30_000
PAINTED = """() => new Promise(done =>
    requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 300))))"""

PALE = "name => Number(getComputedStyle(document.querySelector(name).closest('.stElementContainer')).opacity)"


@dataclass
class Watched:
    """What a page did that it should not."""

    outside: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def console(self, message: ConsoleMessage) -> None:
        # Opened below the root, Streamlit's own script looks for its server there first (/fleet/_stcore/...).
        probing = "/_stcore/" in message.location.get("url", "")
        if message.type == "error" and not probing:
            self.errors.append(message.text)

    def route(self, route: Route) -> None:
        if route.request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            route.continue_()
        else:
            self.outside.append(route.request.url)
            route.abort()


@dataclass
class Dashboard:
    """A running dashboard and the collector under it."""

    url: str
    collector: FakeServer
    process: subprocess.Popen[bytes]


def start(collector: FakeServer, folder: Path) -> Dashboard:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "unidle_agent.cli", "dashboard", "--port", str(port), "--refresh-s", "1",
         "--collector-url", collector.url],
        env={**os.environ, "UNIDLE_DASHBOARD_COLLECTOR_TOKEN": collector.token, "HOME": str(folder)},
        cwd=folder,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        assert process.poll() is None, "the dashboard ended at once"
        try:
            with urllib.request.urlopen(f"{url}/_stcore/health", timeout=1):
                return Dashboard(url, collector, process)
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    process.kill()
    raise AssertionError("the dashboard did not start within a minute")


def stop(dashboard: Dashboard) -> int:
    dashboard.process.terminate()
    try:
        return dashboard.process.wait(20)
    except subprocess.TimeoutExpired:
        dashboard.process.kill()
        dashboard.process.wait()
        raise


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not Path(CHROMIUM).exists():
        pytest.skip(f"needs {CHROMIUM}: apt-get install chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=list(CHROMIUM_FLAGS))
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    with serving(FakeApi(), TOKEN) as collector:
        started = start(collector, tmp_path_factory.mktemp("dashboard"))
        yield started
        stop(started)


@pytest.fixture
def watched() -> Watched:
    return Watched()


def open_page(
    browser: Browser, watched: Watched, url: str, width: int = 1600, height: int = 1000, scheme: str = "light"
) -> Page:
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    page.set_default_timeout(WAIT_MS)
    page.on("console", watched.console)
    page.on("pageerror", lambda error: watched.errors.append(str(error)))
    page.route("**/*", watched.route)
    page.goto(url)
    finished(page)
    return page


def finished(page: Page) -> None:
    """Wait until the script has run and what it drew is on the screen."""
    page.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]')
    page.wait_for_selector(".u-context, .u-silent")
    page.wait_for_function("() => !document.querySelector('[data-testid=stSkeleton]')")
    page.evaluate(PAINTED)


def colours(shot: bytes) -> int:
    with Image.open(io.BytesIO(shot)) as image:
        return len(image.convert("RGB").getcolors(1 << 24) or [])


def body(page: Page) -> Locator:
    return page.locator(".stMainBlockContainer")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", [*PAGES, "fleet?node=b200-21", "incidents?incident=inc-1002"])
def test_every_page_draws_itself_without_errors_and_asks_nobody_outside(
    browser: Browser, dashboard: Dashboard, watched: Watched, path: str, scheme: str, tmp_path: Path
) -> None:
    page = open_page(browser, watched, f"{dashboard.url}/{path}", scheme=scheme)
    expect(page.locator(".u-simulated")).to_contain_text("SIMULATED")
    expect(page).to_have_title(page.title())
    assert page.title().startswith("SIMULATED")
    if path.startswith("fleet"):
        expect(page.locator(".map")).to_have_attribute("data-drawn", "512")
    shot = page.screenshot(path=tmp_path / f"page-{scheme}.png")
    assert colours(shot) > 40
    page.close()
    assert watched == Watched()


@pytest.mark.parametrize("path", PAGES)
def test_no_page_scrolls_sideways_on_a_phone(
    browser: Browser, dashboard: Dashboard, watched: Watched, path: str
) -> None:
    page = open_page(browser, watched, f"{dashboard.url}/{path}", width=390, height=844)
    for element in ("document.documentElement", "document.querySelector('.stMain')"):
        assert page.evaluate(f"{element}.scrollWidth") <= 390
    page.close()


def test_today_shows_the_numbers_of_the_api_and_follows_the_window(
    browser: Browser, dashboard: Dashboard, watched: Watched
) -> None:
    api = dashboard.collector.api
    page = open_page(browser, watched, dashboard.url)
    states = api.fleet().states
    losing = sum(states[state] for state in ("idle", "throttled", "starved", "failed"))
    expect(page.locator("h1")).to_have_text(f"{losing} of 512 GPUs are paid for and losing time right now")
    for window, window_s in (("24 h", 86_400), ("7 d", 604_800), ("1 h", 3_600)):
        page.get_by_role("radio", name=window).or_(page.get_by_role("button", name=window)).click()
        account = api.fleet(window_s).account
        kpis = page.locator(".u-kpis")
        expect(kpis).to_contain_text(words.amount(account.lost.eur, "EUR"))
        expect(kpis).to_contain_text(words.amount(account.lost.gpu_h, "GPU-h"))
        expect(kpis).to_contain_text(words.percent(account.effective_ratio))
    expect(page).to_have_url(f"{dashboard.url}/?window=1+h")
    first = api.recommendations()[0]
    expect(page.locator(".u-actions li").first).to_contain_text(first.title)
    page.close()
    assert watched == Watched()


def test_a_click_on_the_map_opens_the_node(browser: Browser, dashboard: Dashboard, watched: Watched) -> None:
    page = open_page(browser, watched, f"{dashboard.url}/fleet")
    canvas = page.locator(".map canvas")
    canvas.hover(position={"x": 10, "y": 30})
    expect(page.locator(".map .tip")).to_have_text("b200-00, GPU 0: Productive, job gpt-pretrain-7")
    canvas.click(position={"x": 10, "y": 30})
    expect(page.locator("h2.u-title")).to_have_text("b200-00")
    expect(page).to_have_url(f"{dashboard.url}/fleet?node=b200-00")
    expect(page.locator("[data-testid=stECharts], .stECharts, canvas").last).to_be_visible()
    page.close()
    assert watched == Watched()


def test_the_link_of_an_alert_opens_its_incident_and_lets_go_of_it_again(
    browser: Browser, dashboard: Dashboard, watched: Watched
) -> None:
    incident = dashboard.collector.api.incident("inc-1006")
    page = open_page(browser, watched, f"{dashboard.url}/?incident={incident.id}")
    expect(page).to_have_url(f"{dashboard.url}/incidents?incident={incident.id}")
    expect(page.locator("h2.u-title")).to_have_text(incident.finding.title)
    expect(page.locator("code").first).to_contain_text("scancel")
    page.get_by_role("link", name="Today").click()
    expect(page.locator("h1")).to_contain_text("losing time")
    expect(page).to_have_url(f"{dashboard.url}/")
    page.close()
    assert watched == Watched()


def test_a_click_on_a_row_opens_that_incident(
    browser: Browser, dashboard: Dashboard, watched: Watched
) -> None:
    page = open_page(browser, watched, f"{dashboard.url}/incidents")
    third = dashboard.collector.api.incidents()[2]
    table = page.locator("[data-testid=stDataFrame]").first
    table.click(position={"x": 16, "y": 120})
    expect(page.locator("h2.u-title")).to_have_text(third.finding.title)
    expect(page).to_have_url(f"{dashboard.url}/incidents?incident={third.id}")
    page.close()


def test_the_pages_follow_the_collector_without_a_reload(
    browser: Browser, dashboard: Dashboard, watched: Watched
) -> None:
    page = open_page(browser, watched, dashboard.url)
    try:
        dashboard.collector.api.down = True
        silent = page.locator(".u-silent")
        expect(silent).to_contain_text("has not answered since", timeout=WAIT_MS)
        expect(page.locator("h1")).to_contain_text("of 512 GPUs")
        assert page.evaluate(PALE, "h1") < 1
        dashboard.collector.api.down = False
        expect(silent).to_have_count(0, timeout=WAIT_MS)
        assert page.evaluate(PALE, "h1") == 1
    finally:
        dashboard.collector.api.down = False
        page.close()


def test_names_never_become_markup_in_the_browser(browser: Browser, watched: Watched, tmp_path: Path) -> None:
    with serving(FakeApi(name=EVIL), TOKEN) as collector:
        dashboard = start(collector, tmp_path)
        try:
            for path in (*PAGES, "incidents?incident=inc-1002"):
                page = open_page(browser, watched, f"{dashboard.url}/{path}")
                if path == "fleet":
                    page.locator(".map canvas").click(position={"x": 10, "y": 30})
                    expect(page.locator("h2.u-title")).to_have_text(f"b200-00{EVIL}")
                if path in ("", "recommendations", "incidents?incident=inc-1002"):
                    expect(body(page)).to_contain_text("<img src=x onerror=")
                assert page.evaluate("window.pwned") is None
                assert page.locator("img[src=x], a[href^=javascript], .katex").count() == 0
                page.close()
        finally:
            stop(dashboard)
    assert watched == Watched()


def test_the_token_is_on_no_command_line_and_sigterm_stops_the_server(tmp_path: Path) -> None:
    with serving(FakeApi(), TOKEN) as collector:
        dashboard = start(collector, tmp_path)
        command = Path(f"/proc/{dashboard.process.pid}/cmdline")
        if command.exists():
            assert TOKEN.encode() not in command.read_bytes()
        stop(dashboard)
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(dashboard.url, timeout=2)


@pytest.mark.parametrize(("host", "status"), [("127.0.0.1", 101), ("evil.example", 403)])
def test_only_known_host_names_get_a_session(dashboard: Dashboard, host: str, status: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(dashboard.url).port, timeout=10)
    headers = {
        "Host": host,
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    connection.request("GET", "/_stcore/stream", headers=headers)
    assert connection.getresponse().status == status
    connection.close()
