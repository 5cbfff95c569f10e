"""A server's past becomes batches of the store: all of it, once, however often it is asked for."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from tests.collector.prometheus_server import END_S, needs_prometheus, prometheus, write_past
from tests.collector.test_prometheus_history import INTERVAL_S, SCRAPES, old_names

from unidle_agent.cli import main
from unidle_agent.fields import UNKNOWN_U8
from unidle_agent.privacy import Pseudonymiser
from unidle_agent.wire import Batch, decode, encode
from unidle_collector.prometheus.api import Api
from unidle_collector.prometheus.backfill import BATCH_S, batches
from unidle_collector.store import Store


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    needs_prometheus()
    folder = tmp_path_factory.mktemp("past") / "data"
    write_past(folder, old_names(), SCRAPES, INTERVAL_S)
    with prometheus(folder) as url:
        yield url


def fill(url: str, start_s: float = END_S - 7200, end_s: float = END_S, **more) -> list[Batch]:
    api = Api(url)
    try:
        return [
            decode(encode(batch))
            for batch in batches(api, start_s, end_s, more.pop("names", Pseudonymiser(None)), **more)
        ]
    finally:
        api.close()


def column(found: list[Batch], name: str, gpu: str) -> list[float]:
    out: list[float] = []
    for batch in found:
        if gpu in batch.gpus and name in batch.columns:
            out += list(batch.columns[name])[batch.gpus.index(gpu) :: len(batch.gpus)]
    return out


@pytest.mark.slow
def test_every_sample_is_in_one_batch_and_counters_stay_counters(server: str) -> None:
    shares: list[float] = []
    found = fill(server, most_values=5_000, progress=shares.append)
    keys = [(batch.node, batch.boot, batch.seq) for batch in found]
    assert len(keys) == len(set(keys))
    assert shares[-1] == 1.0
    assert len(shares) > 1, "in pieces"
    times = [time for batch in found if batch.node == "a" for time in batch.times_ns]
    assert len(times) == len(set(times)) == SCRAPES
    assert np.ptp(np.diff(sorted(times))) == 0
    assert all(
        batch.times_ns[0] // 10**9 // BATCH_S == batch.times_ns[-1] // 10**9 // BATCH_S for batch in found
    )
    assert column(found, "gpu_util_ratio", "GPU-a-0") == pytest.approx([0.97] * SCRAPES)
    energy_mj = column(found, "energy_j", "GPU-a-0")
    assert energy_mj == [600_500 * INTERVAL_S * number for number in range(SCRAPES)]
    assert UNKNOWN_U8 not in energy_mj


@pytest.mark.slow
def test_a_batch_ends_where_a_gpu_changes_hands(server: str) -> None:
    found = [batch for batch in fill(server) if batch.node == "b"]
    owners: dict[str, int] = {}
    for batch in found:
        assert batch.facts is not None
        owner = batch.facts[batch.gpus.index("GPU-b-0")].owner
        owners[owner.job] = owners.get(owner.job, 0) + len(batch.times_ns)
        assert batch.facts[batch.gpus.index("GPU-b-1")].owner.allocated is False
    assert owners == {"ml/notebook": SCRAPES // 2, "ml/eval": SCRAPES // 2}


@pytest.mark.slow
def test_names_of_pods_become_pseudonyms_before_anything_is_stored(server: str) -> None:
    found = fill(server, END_S - 1200, names=Pseudonymiser(b"a key of sixteen or more"))
    jobs = {facts.owner.job for batch in found for facts in batch.facts or ()} - {""}
    assert jobs
    assert all(job.startswith("namespace-") and "/pod-" in job for job in jobs)


@pytest.mark.slow
def test_the_same_time_is_the_same_batch_whenever_it_is_asked_for(server: str) -> None:
    whole = {(batch.node, batch.boot, batch.seq): tuple(batch.times_ns) for batch in fill(server)}
    part = {
        (batch.node, batch.boot, batch.seq): tuple(batch.times_ns)
        for batch in fill(server, END_S - 3601, END_S - 1801)
    }
    assert part
    assert part.items() <= whole.items()


@pytest.mark.slow
def test_the_command_fills_the_store_once_however_often_it_is_run(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start, end = (datetime.fromtimestamp(at_s, UTC).isoformat() for at_s in (END_S - 1200, END_S))
    fill_it = ["store", "backfill", "--prometheus", server, "--from", start, "--to", end]
    said = []
    for _ in range(2):
        assert main([*fill_it, "--data-dir", str(tmp_path)]) == 0
        said.append(capsys.readouterr().out)
    known = len(fill(server, END_S - 1200))
    assert "0 batches were in the store already" in said[0]
    assert said[1].startswith(f"0 rows stored; {known} batches were in the store already\n")
    store = Store(tmp_path)
    window = ((END_S - 1200) * 10**9, END_S * 10**9, INTERVAL_S)
    times_ns, power_w = store.series("a", "GPU-a-0", "power_w", *window)
    assert times_ns[-1] - times_ns[0] >= (1200 - 2 * 20) * 10**9
    assert power_w.tolist() == pytest.approx([600.5] * len(power_w))
    energy_w = store.series("a", "GPU-a-0", "energy_j", *window)[1]
    assert list(energy_w[1:]) == pytest.approx([600.5] * (len(energy_w) - 1))
    store.close()


def test_the_command_wants_either_a_file_or_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "backfill"]) == 2
    assert main(["store", "backfill", "a.parquet", "--prometheus", "http://127.0.0.1:1"]) == 2
    assert capsys.readouterr().err.count("expected either a file or --prometheus URL") == 2
