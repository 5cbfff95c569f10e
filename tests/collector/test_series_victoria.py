"""The series store against a real VictoriaMetrics: written by its v2 write API, read back by its PromQL."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.collector.prometheus_server import free_port, victoria_metrics, wait_for
from tests.collector.pushing import Site, batch
from tests.collector.series_fleet import GPUS, START, accept, drain, hour, opened, settings
from tests.collector.store_fleet import SECOND

from unidle_agent.fields import BY_NAME
from unidle_collector.series import SeriesError, SeriesStore, reader
from unidle_collector.series.answers import TryLaterError
from unidle_collector.store import Store

pytestmark = pytest.mark.slow

WHOLE = (START, START + 3600 * SECOND)
PART = (START, START + 1200 * SECOND)
ONCE = "-dedup.minScrapeInterval=1ms"
FIELDS = ("power_w", "gpu_util_ratio", "clock_event_reasons", "memory_used_bytes", "energy_j")
Pair = tuple[SeriesStore, Store]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """The same hour in VictoriaMetrics, every row of it, and in a store of our own."""
    yield from _written(tmp_path_factory.mktemp("raw"), 0.0, lines=3600 * 2 * 3)


@pytest.fixture(scope="module")
def stepped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """The same with one line per batch: those of 5 s in steps of 10 s."""
    yield from _written(tmp_path_factory.mktemp("stepped"), 10.0, lines=3600 // 5 * 2 * 3)


def _written(folder: Path, step_s: float, lines: int) -> Iterator[Pair]:
    with victoria_metrics(folder / "vm", ONCE) as url:
        asked = settings(folder / "data", "victoriametrics", url, step_s)
        with opened(asked) as (store, feed):
            accept(store, *hour())
            drain(feed)
            assert feed.counters["lines_written"] == lines
            store.convert_all(WHOLE[1])
            far = reader(asked)
            assert far is not None
            wait_readable(url, far, lines // 3 / 2)
            yield far, store


def wait_readable(url: str, far: SeriesStore, rows: float) -> None:
    """Until what VictoriaMetrics took can be read, which by itself takes it 10 s; `rows` of one host are."""
    urllib.request.urlopen(f"{url}/internal/force_flush", timeout=10).close()
    wait_for(lambda: far.steps("node-2", "", "load_1m", *WHOLE, 60).rows.sum() >= rows)


def close(near: np.ndarray, far: np.ndarray, field: str, within: float) -> None:
    """Equal to `within` resolutions of the field, and unknown at the same places."""
    assert np.isfinite(near).any()
    np.testing.assert_allclose(far, near, rtol=1e-6, atol=BY_NAME[field].resolution * within, err_msg=field)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize(("step_s", "window"), [(1.0, PART), (60.0, WHOLE), (3600.0, WHOLE)])
def test_every_row_written_a_gpu_reads_as_from_the_embedded_store(
    raw: Pair, field: str, step_s: float, window: tuple[int, int]
) -> None:
    far, near = raw
    a, b = (store.steps("node-2", GPUS[1], field, *window, step_s) for store in (near, far))
    assert a.times_ns.tolist() == b.times_ns.tolist()
    close(a.values, b.values, field, 0.5)
    close(a.low, b.low, field, 0.5)
    close(a.high, b.high, field, 0.5)


@pytest.mark.parametrize("field", ["load_1m", "net_sent_bytes"])
def test_a_host_reads_as_from_the_embedded_store(raw: Pair, field: str) -> None:
    far, near = raw
    a, b = (store.steps("node-1", "", field, *WHOLE, 60).values for store in (near, far))
    close(a, b, field, 0.5)


def test_a_counter_that_begins_anew_costs_no_more_than_its_step(raw: Pair) -> None:
    far, near = raw
    a, b = (store.steps("node-1", GPUS[0], "energy_j", *WHOLE, 60).values for store in (near, far))
    anew = 1800 // 60
    close(np.delete(a, anew), np.delete(b, anew), "energy_j", 0.5)


@pytest.mark.parametrize("field", ["power_w", "energy_j"])
def test_the_fleets_mean_reads_as_from_the_embedded_store(raw: Pair, field: str) -> None:
    far, near = raw
    window = WHOLE if field == "power_w" else PART  # before the job changes: see the docs on rates of a fleet
    a, b = (store.fleet(field, *window, 60).values for store in (near, far))
    np.testing.assert_allclose(b[1:], a[1:], rtol=1e-3)
    assert np.isnan(far.fleet(field, *window, 60, simulated=True).values).all()


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("field", ["power_w", "gpu_util_ratio"])
def test_a_jobs_quantile_lies_in_the_same_bin(raw: Pair, field: str, share: float) -> None:
    far, near = raw
    a, b = (store.job_quantile("4711", field, share) for store in (near, far))
    assert a is not None
    assert a == b
    assert far.job_quantile("no such job", field, share) is None


def test_a_line_per_step_keeps_means_counters_and_states(stepped: Pair) -> None:
    far, near = stepped
    for field in ("power_w", "memory_used_bytes", "clock_event_reasons"):
        a, b = (store.steps("node-2", GPUS[0], field, *WHOLE, 60).values for store in (near, far))
        close(a, b, field, 0.5)
    a, b = (store.steps("node-2", GPUS[1], "energy_j", *WHOLE, 600).values for store in (near, far))
    np.testing.assert_allclose(b, a, rtol=1e-3)
    assert np.diff(far.steps("node-2", GPUS[0], "power_w", *PART, 1).times_ns).min() == 10 * SECOND


def test_a_server_that_is_away_or_starts_anew_costs_no_row_and_doubles_none(tmp_path: Path) -> None:
    port, batches = free_port(), list(hour(1200))
    asked = settings(tmp_path / "data", "victoriametrics", f"http://127.0.0.1:{port}")
    third = len(batches) // 3
    with victoria_metrics(tmp_path / "vm", ONCE, port=port), opened(asked) as (store, feed):
        accept(store, *batches[:third])
        assert feed.step()
        kept = (tmp_path / "data/series/queue/position.json").read_bytes()
    with opened(asked) as (store, feed):  # the server is away, the collector has started anew
        accept(store, *batches[third : 2 * third])
        store.convert_all(START)  # the log is a segment now, what waits has its own name
        with pytest.raises(TryLaterError, match="does not answer"):
            drain(feed)
        far = reader(asked)
        assert far is not None
        with pytest.raises(SeriesError, match="does not answer"):
            far.steps("node-1", "", "load_1m", *PART, 60)
    (tmp_path / "data/series/queue/position.json").write_bytes(kept)  # as if killed before it was kept
    with victoria_metrics(tmp_path / "vm", ONCE, port=port), opened(asked) as (store, feed):
        accept(store, *batches[2 * third :])
        drain(feed)
        far = reader(asked)
        assert far is not None
        wait_readable(f"http://127.0.0.1:{port}", far, 1200)
        for node in ("node-1", "node-2"):
            rows = far.steps(node, GPUS[0], "gpu_util_ratio", *PART, 60).rows
            assert rows.tolist() == [60.0] * 20


def test_the_collector_writes_what_it_takes_and_its_api_reads_it_back(tmp_path: Path) -> None:
    with victoria_metrics(tmp_path / "vm", ONCE) as url:
        asked = settings(tmp_path / "data", "victoriametrics", url)
        here = Site(tmp_path / "data", settings=asked)
        try:
            for seq in range(12):
                assert here.push(batch(seq, seq * 60, 60, {"power_w": 200.0 + seq}))[0] == 200
                here.settle(seq * 60 + 70)
            assert here.live.feed is not None
            feed = here.live.feed
            wait_for(lambda: feed.counters["lines_written"] >= 12 * 60 * 2)

            urllib.request.urlopen(f"{url}/internal/force_flush", timeout=10).close()

            def old() -> list[float]:
                found = here.get("series", node="n1", gpu="GPU-a", field="power_w", window_s=720)
                assert isinstance(found, dict)
                return [value for value in found["values"] if value is not None]

            wait_for(lambda: min(old(), default=999) == 200.0)  # longer ago than the live window reaches
            assert feed.problem == ""
        finally:
            here.live.stop()
