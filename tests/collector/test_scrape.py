"""The collector scrapes dcgm-exporters itself: targets from three places, real servers that misbehave."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from tests.agent.scripted_server import Reply, Request, dead_url, serving
from tests.collector.pushing import START_S, Site, site

from unidle_agent.settings import Secret
from unidle_collector.api import create_app
from unidle_collector.model import TargetNow
from unidle_collector.prometheus.scraper import Scraper, wanted
from unidle_collector.prometheus.targets import DiscoveryError, from_files, from_groups, named
from unidle_collector.settings import CollectorSettings

HOT = 0x20
"""Software thermal slowdown (nvml.h)."""


def page(host: str = "n1", gpus: int = 2, util: int = 97) -> bytes:
    lines = []
    for gpu in range(gpus):
        labels = f'gpu="{gpu}",UUID="GPU-{host}-{gpu}",modelName="NVIDIA H100",Hostname="{host}"'
        lines += [f"DCGM_FI_DEV_GPU_UTIL{{{labels}}} {util}", f"DCGM_FI_DEV_POWER_USAGE{{{labels}}} 600.5"]
    return ("\n".join(lines) + "\n").encode()


def samples(host: str, shown: int, bits: int) -> bytes:
    """Sample number `shown` of a page, on which the driver gives `bits` for lower clocks."""
    lines = []
    for gpu in range(4):
        labels = f'gpu="{gpu}",UUID="GPU-{host}-{gpu}",modelName="NVIDIA H100",Hostname="{host}"'
        for name, value in (
            ("GPU_UTIL", 100),
            ("POWER_USAGE", 650 + 0.1 * shown),
            ("FB_USED", 70_000),
            ("SM_CLOCK", 1200 if bits else 1980),
            ("CLOCK_THROTTLE_REASONS", bits),
        ):
            lines.append(f"DCGM_FI_DEV_{name}{{{labels}}} {value}")
    return ("\n".join(lines) + "\n").encode()


def shows(body: bytes) -> Callable[[Request], Reply]:
    return lambda _: Reply(200, body)


class Steps:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@contextmanager
def scraping(folder: Path, **settings: object) -> Iterator[tuple[Site, Scraper, Steps, TestClient]]:
    """A scraper that looks when the test says; its targets have no phase."""
    with site(folder) as here:
        steps = Steps()
        wanted_settings = replace(here.live.settings, **settings)
        scraper = Scraper(wanted_settings, here.live, monotonic=steps, spread=lambda: 0.0)
        client = TestClient(create_app(here.live, here.tokens, None, scraper))
        try:
            yield here, scraper, steps, client
        finally:
            scraper._pool.shutdown(wait=True)


def until(what: Callable[[], object], scraper: Scraper) -> None:
    """Look until `what` holds; the clock stands still meanwhile."""
    for _ in range(600):
        scraper.look()
        if what():
            return
        time.sleep(0.02)
    raise AssertionError("it did not come to be")


def states(scraper: Scraper) -> dict[str, TargetNow]:
    return {each.url: each for each in scraper.targets()}


def done(scraper: Scraper, count: int = 1) -> bool:
    return sum(each.state != "waiting" for each in scraper.targets()) == count


def test_a_scraped_page_becomes_rows_by_the_door_of_pushed_ones(tmp_path: Path) -> None:
    with serving(shows(page())) as exporter:
        url = exporter.url + "/metrics"
        with scraping(tmp_path, scrape_targets=(exporter.url,)) as (here, scraper, steps, client):
            for number in range(4):
                steps.now_s = 15.0 * number
                here.clock.at_s = START_S + 15 * number
                until(lambda n=number: here.live.counters["rows_ingested"] == 2 * (n + 1), scraper)
            here.settle(50)
            (first, second) = here.get("gpus")
            assert (first["node"], first["gpu"], second["gpu"]) == ("n1", "GPU-n1-0", "GPU-n1-1")
            assert first["values"]["gpu_util_ratio"] == pytest.approx(0.97)
            assert len(exporter.requests) == 4, "once per interval"
            assert states(scraper)[url].state == "up"
            assert client.get("/api/v1/targets").json()[0]["gpus"] == 2
            text = client.get("/metrics").text
            assert 'unidle_collector_scrape_targets{state="up"} 1' in text
            assert "unidle_collector_scrapes_total 4" in text


def test_a_page_that_shows_its_sample_again_and_again_shows_one(tmp_path: Path) -> None:
    """As of an exporter that samples each 30 s and is scraped each 5 s: one hot sample is none too many."""
    each, hot, now = 6, {10, 15, 16, 17}, 0

    def answer(_: Request) -> Reply:
        return Reply(200, samples("n1", now // each, HOT if now // each in hot else 0))

    with serving(answer) as exporter:
        settings = {"scrape_targets": (exporter.url,), "scrape_interval_s": 5.0}
        with scraping(tmp_path, **settings) as (here, scraper, steps, _):
            told = []
            for now in range(18 * each):
                steps.now_s = 5.0 * now
                here.clock.at_s = START_S + 5 * now
                until(lambda n=now: here.live.counters["rows_ingested"] == 4 * (n + 1), scraper)
                here.settle(5 * now)
                if now % each == each - 1:
                    told.append([(found["kind"], found["cause"]) for found in here.get("findings")])
            assert told[:16] == [[]] * 16
            assert told[17] == [("throttling_thermal", "software_thermal")]


def test_targets_that_fail_are_named_in_health_and_harm_no_other(tmp_path: Path) -> None:
    block = threading.Event()
    moved = Reply(302, headers={"Location": "http://169.254.169.254/"})
    with (
        serving(shows(page())) as good,
        serving(lambda _: Reply(200, b"", before=block.wait)) as hangs,
        serving(lambda _: moved) as moves,
        serving(shows(b"x" * 1000 + b"\n")) as other,
        serving(lambda _: Reply(200, page(), announced=50_000_000)) as huge,
    ):
        urls = (good.url, hangs.url, moves.url, other.url, huge.url, dead_url())
        with scraping(tmp_path, scrape_targets=urls, scrape_interval_s=1.0) as (here, scraper, _, client):
            until(lambda: here.live.counters["rows_ingested"] == 2, scraper)
            until(lambda: done(scraper, 6), scraper)
            block.set()
            scraper.look()
            found = {url: states(scraper)[url + "/metrics"].problem for url in urls}
            assert found[good.url] == ""
            assert "no whole answer within 1 s" in found[hangs.url]
            assert "redirects are not followed" in found[moves.url]
            assert "no GPU on the page" in found[other.url]
            assert "expected at most" in found[huge.url]
            assert "connection refused" in found[urls[-1]]
            (problem,) = client.get("/api/v1/health").json()["problems"]
            assert problem.startswith("5 of 6 scrape targets give no GPU")
            assert here.live.counters["scrapes_failed"] == 5
            assert len(moves.requests) == 1


def test_the_token_is_sent_and_never_shown(tmp_path: Path) -> None:
    with serving(lambda _: Reply(401)) as exporter:
        settings = {"scrape_targets": (exporter.url,), "scrape_token": Secret("s3cret")}
        with scraping(tmp_path, **settings) as (_, scraper, _, client):
            until(lambda: done(scraper), scraper)
            scraper.look()
            assert exporter.requests[0].headers["authorization"] == "Bearer s3cret"
            assert "s3cret" not in client.get("/api/v1/health").text + client.get("/api/v1/targets").text
            assert "expected HTTP 200, came 401" in client.get("/api/v1/health").text


def test_targets_come_and_go_with_their_files_and_lists(tmp_path: Path) -> None:
    listed = [{"targets": ["a.example:9400", "b.example:9400"], "labels": {"cluster": "x"}}]
    groups = tmp_path / "dcgm.yml"
    groups.write_text("- targets: ['c.example:9400']\n  labels: {node: c7}\n", encoding="utf-8")
    with serving(lambda _: Reply(200, json.dumps(listed).encode())) as discovery:
        settings = {"scrape_file_sd": (str(tmp_path / "*.yml"),), "scrape_http_sd": (discovery.url,)}
        with scraping(tmp_path / "store", **settings) as (_, scraper, steps, _):
            scraper._scrape = lambda state: None  # type: ignore[method-assign]  # the names are not real
            until(lambda: len(scraper.targets()) == 3, scraper)
            assert states(scraper)["http://c.example:9400/metrics"].node == "c7"
            groups.write_text("", encoding="utf-8")
            listed[0]["targets"] = ["a.example:9400"]
            steps.now_s += 31
            until(
                lambda: [each.url for each in scraper.targets()] == ["http://a.example:9400/metrics"], scraper
            )


def test_a_list_that_cannot_be_read_keeps_what_it_named_before_and_is_said(tmp_path: Path) -> None:
    groups = tmp_path / "dcgm.json"
    groups.write_text('[{"targets": ["c.example:9400"]}]', encoding="utf-8")
    with scraping(tmp_path / "store", scrape_file_sd=(str(groups),)) as (here, scraper, steps, _):
        scraper._scrape = lambda state: None  # type: ignore[method-assign]
        until(lambda: len(scraper.targets()) == 1, scraper)
        groups.write_text("[{", encoding="utf-8")
        steps.now_s += 31
        until(lambda: "scrape_discovery" in here.live.problems, scraper)
        assert "expected a readable file_sd file" in here.live.problems["scrape_discovery"]
        assert len(scraper.targets()) == 1


def test_what_discovery_calls_the_node_counts_before_the_page_unless_the_page_is_of_several(
    tmp_path: Path,
) -> None:
    with serving(shows(page("pod-x"))) as one, serving(shows(page("n1") + page("n2"))) as federated:
        file = tmp_path / "sd.json"
        targets = [
            {"targets": [exporter.url.removeprefix("http://")], "labels": {"node": f"node-{number}"}}
            for number, exporter in enumerate((one, federated))
        ]
        file.write_text(json.dumps(targets), encoding="utf-8")
        with scraping(tmp_path / "store", scrape_file_sd=(str(file),)) as (here, scraper, _, _):
            until(lambda: here.live.counters["rows_ingested"] == 6, scraper)
            assert {gpu["node"] for gpu in here.get("gpus")} == {"node-0", "n1", "n2"}


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        pytest.param({"targets": []}, "came dict", id="no list"),
        pytest.param([{"targets": "a:1"}], "expected a list of", id="targets are no list"),
        pytest.param([["a:1"]], "expected a list of", id="a group is no map"),
        pytest.param([{"targets": ["ftp://a"]}], "begins with http:// or https://", id="another scheme"),
        pytest.param([{"targets": ["a:99999999"]}], "begins with http:// or https://", id="no port"),
        pytest.param([{"targets": ["user:s3cret@a:1"]}], "without user and password", id="a password"),
    ],
)
def test_what_is_no_list_of_targets_is_said(groups: object, words: str) -> None:
    with pytest.raises(DiscoveryError) as failure:
        from_groups(groups, "sd.json")
    assert words in str(failure.value)
    assert "s3cret" not in str(failure.value)


def test_the_forms_of_a_target() -> None:
    assert named("10.0.0.7:9400", "x").url == "http://10.0.0.7:9400/metrics"
    assert named("https://n1.example/gpu", "x").url == "https://n1.example/gpu"
    labels = {"__scheme__": "https", "__metrics_path__": "/m"}
    assert [each.url for each in from_groups([{"targets": ["a:1"], "labels": labels}], "x")] == [
        "https://a:1/m"
    ]
    assert from_files(()) == []


def test_nothing_is_asked_until_it_is_configured() -> None:
    assert not wanted(CollectorSettings())
    assert wanted(CollectorSettings(scrape_targets=("a:1",)))
