"""The dcgm-exporter source over real pages, served over HTTP as an exporter serves them."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from tests.agent.scripted_server import Reply, dead_url, in_turn, serving

from unidle_agent.dcgm import parse_page
from unidle_agent.errors import SettingError, SourceError
from unidle_agent.sample import merge
from unidle_agent.sources.dcgm_exporter import DcgmExporterSource

PAGES = Path(__file__).parents[3] / "shared" / "data" / "dcgm-pages"
LINE = 'DCGM_FI_DEV_{what}{{gpu="{gpu}",UUID="GPU-{gpu}",modelName="H100",Hostname="n"}} {value}\n'


def page(*gpus: int, power_w: float = 100.0) -> bytes:
    lines = [LINE.format(what="POWER_USAGE", gpu=gpu, value=power_w) for gpu in gpus]
    lines += [LINE.format(what="TOTAL_ENERGY_CONSUMPTION", gpu=gpu, value=123456) for gpu in gpus]
    return "".join(lines).encode()


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


def test_values_come_at_the_scrape_and_only_then() -> None:
    clock = Clock()
    with serving(in_turn(Reply(body=page(0, 1)))) as server:
        source = DcgmExporterSource(f"{server.url}/metrics", 5.0, monotonic=clock)
        known = []
        for second in range(11):
            clock.now = 50.0 + second + (0.003 if second % 2 else -0.003) * bool(second)
            reading = source.read()
            assert [gpu.facts.uuid for gpu in reading.gpus] == ["GPU-0", "GPU-1"], "the set stays the same"
            known.append([gpu.values.get("power_w") for gpu in reading.gpus])
    assert [second for second, values in enumerate(known) if values == [100.0, 100.0]] == [0, 5, 10]
    assert all(values == [None, None] for second, values in enumerate(known) if second % 5)
    assert len(server.requests) == 3
    assert source.counts["scrapes"] == 3


def test_energy_arrives_as_exact_millijoules() -> None:
    with serving(in_turn(Reply(body=page(0)))) as server:
        (gpu,) = DcgmExporterSource(server.url).read().gpus
    assert gpu.values["energy_j"] == 123456


def test_a_page_cut_in_a_line_loses_that_line_and_says_so() -> None:
    whole = page(0, 1, 2)
    cut = whole[: whole.rindex(b"DCGM") + 60]
    with serving(in_turn(Reply(body=cut, announced=len(whole)))) as server:
        source = DcgmExporterSource(server.url)
        reading = source.read()
    assert [gpu.values.get("power_w") for gpu in reading.gpus] == [100.0] * 3
    assert ["energy_j" in gpu.values for gpu in reading.gpus] == [True, True, False]
    assert any("ended before" in problem for problem in reading.problems)
    assert any("1 lines could not be read" in problem for problem in reading.problems)
    assert (source.counts["torn_pages"], source.counts["bad_lines"]) == (1, 1)


@pytest.mark.parametrize(
    ("announced", "said"),
    [(None, "expected at most 16777216 bytes, 5[0-9]{7} are announced"), (-1, "16777216 bytes, came more")],
    ids=["announced", "not announced"],
)
def test_a_page_of_50_mb_is_a_clear_error_and_counted(announced: int | None, said: str) -> None:
    line = page(0)
    body = line * (51_000_000 // len(line))
    with serving(in_turn(Reply(body=body, announced=announced))) as server:
        source = DcgmExporterSource(server.url)
        with pytest.raises(SourceError, match=said):
            source.read()
    assert (source.counts["too_big"], source.counts["failed_scrapes"]) == (1, 1)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        pytest.param(Reply(500), "expected HTTP 200, came 500", id="500"),
        pytest.param(
            Reply(302, headers={"Location": "http://elsewhere/"}), "redirects are not followed", id="redirect"
        ),
        pytest.param(Reply(hang_up=True), "is dcgm-exporter running there", id="closed connection"),
    ],
)
def test_no_page_is_an_error_that_names_the_address(reply: Reply, said: str) -> None:
    with serving(in_turn(reply)) as server:
        with pytest.raises(SourceError, match=said) as error:
            DcgmExporterSource(server.url).read()
        assert server.url in str(error.value)
        assert len(server.requests) == 1


def test_nobody_there_is_an_error_and_the_next_scrape_tries_again() -> None:
    clock = Clock()
    source = DcgmExporterSource(dead_url(), 5.0, monotonic=clock)
    for _ in range(2):
        with pytest.raises(SourceError, match="nothing listens there"):
            source.read()
        clock.now += 1
        assert source.read().problems, "the problem stays told between scrapes"
        clock.now += 4


def test_an_exporter_that_never_finishes_is_given_up_on() -> None:
    release = threading.Event()
    with serving(in_turn(Reply(announced=10_000, drip=release))) as server:
        with pytest.raises(SourceError, match="no whole answer within 1 s"):
            DcgmExporterSource(server.url, scrape_s=0.5).read()
        release.set()


def test_gpus_stay_known_through_a_failed_scrape_and_are_forgotten_after_three() -> None:
    clock = Clock()
    with serving(in_turn(Reply(body=page(0)), Reply(500))) as server:
        source = DcgmExporterSource(server.url, 5.0, monotonic=clock)
        source.read()
        for _ in range(3):
            clock.now += 5
            reading = source.read()
            assert [(gpu.facts.uuid, gpu.values) for gpu in reading.gpus] == [("GPU-0", {})]
            assert "came 500" in reading.problems[0]
        clock.now += 5
        with pytest.raises(SourceError, match="came 500"):
            source.read()


def test_a_page_of_something_else_is_no_gpu_and_says_so() -> None:
    with serving(in_turn(Reply(body=b"<html>\nhello\n</html>\n"))) as server:
        reading = DcgmExporterSource(server.url).read()
    assert reading.gpus == ()
    assert any("is it a dcgm-exporter" in problem for problem in reading.problems)


def test_an_address_with_a_password_is_refused_and_not_shown() -> None:
    with pytest.raises(SettingError) as error:
        DcgmExporterSource("http://u:hunter2@127.0.0.1/metrics")
    assert "hunter2" not in str(error.value)


@pytest.mark.skipif(not PAGES.is_dir(), reason="the real pages of ../shared/data/dcgm-pages are not here")
@pytest.mark.parametrize("file", sorted(PAGES.glob("*.prom")) or [Path("none")], ids=lambda path: path.stem)
def test_a_real_page_arrives_whole_as_rows(file: Path) -> None:
    with serving(in_turn(Reply(body=file.read_bytes()))) as server:
        source = DcgmExporterSource(server.url)
        reading = source.read()
    expected = parse_page(file.read_bytes())
    assert reading.gpus == expected.gpus
    assert source.counts["bad_lines"] == expected.bad_lines
    tick = merge(0, [(source.name, source.precedence, reading)])
    assert len(tick.gpus) == len(expected.gpus) > 0
    assert all(set(row.facts.sources.values()) <= {"dcgm-exporter"} for row in tick.gpus)
