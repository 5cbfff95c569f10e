"""`unidle store`: what it says, takes out and puts in."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import duckdb
import numpy as np
import pytest
from tests.collector.store_fleet import NOON, SECOND, batch
from tests.collector.test_store import instants, take
from tests.collector.test_store_rollups import fill

from unidle_agent.errors import UnidleError
from unidle_agent.wire import Owner
from unidle_collector.commands import store as command
from unidle_collector.store import Store
from unidle_collector.store.backfill import backfill, batches_of_export
from unidle_collector.store.compaction import HOUR_NS

FROM_TO = ("--from", "2025-06-15T00:00", "--to", "2025-06-16T00:00+00:00")


def called(capsys: pytest.CaptureFixture[str], directory: Path, *args: str | Path) -> tuple[int, str, str]:
    parser = argparse.ArgumentParser()
    command.arguments(parser)
    capsys.readouterr()
    try:
        code = command.run(parser.parse_args([*map(str, args), "--data-dir", str(directory)]))
    except UnidleError as error:
        return 2, "", str(error)
    return code, *capsys.readouterr()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A running collector's store: ten minutes of one GPU, and one row of another node with host fields."""
    store = Store(tmp_path / "store")
    fill(store, 10)
    other = batch(
        "node-2",
        seq=1,
        gpus=("GPU-b",),
        columns={"energy_j": [1_234_567], "sm_clock_hz": [None]},
        host={"load_1m": [2]},
        jobs={"GPU-b": Owner(False)},
    )
    take(store, other, received_ns=NOON + 600 * SECOND)
    store.upkeep(NOON + 700 * SECOND)
    store.upkeep(NOON + HOUR_NS)
    return store


def test_sizes_and_ranges_of_a_running_collectors_store(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = called(capsys, tmp_path / "store", "sizes")
    assert code == 0
    assert re.search(r"raw +2 +0\.\d +2025-06-15 15:06:40 +2025-06-15 15:16:39", out)
    _, out, _ = called(capsys, tmp_path / "store", "sizes", "--json")
    levels = {level["name"]: level for level in json.loads(out)}
    assert levels.keys() == {"raw", "10s", "1m", "1h", "jobs", "log", "state", "accounts"}
    assert sum(levels[name]["size_bytes"] for name in ("10s", "1m", "1h", "jobs")) == store.sizes()["rollups"]
    assert all(levels[name]["files"] for name in ("raw", "10s", "1m", "1h", "jobs", "state"))
    store.close()


def test_verify_names_every_damaged_file_and_leaves_it(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = called(capsys, tmp_path / "store", "verify")
    assert (code, "nothing wrong" in out) == (0, True)
    (minutes,) = (tmp_path / "store" / "segments").glob("gpu_1m-*")
    content = minutes.read_bytes()
    minutes.write_bytes(content[:4] + b"\xff" * 8 + content[12:])
    code, out, _ = called(capsys, tmp_path / "store", "verify", "--json")
    assert code == 1
    assert [minutes.name in text for text in json.loads(out)["problems"]] == [True]
    assert minutes.exists()
    store.close()


def test_an_export_takes_only_what_is_asked_for(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.parquet"
    only = ("--gpu", "GPU-a", "--field", "power_w", "--node", "node-1")
    code, out, _ = called(capsys, tmp_path / "store", "export", path, *FROM_TO, *only)
    assert (code, "600 rows written" in out) == (0, True)
    found = duckdb.sql(f"SELECT * FROM '{path}'")
    assert found.columns == ["time_ns", "node", "gpu", "job", "simulated", "power_w"]
    assert {row[2] for row in found.fetchall()} == {"GPU-a"}
    store.close()


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_an_export_filled_into_another_store_is_the_same_there_and_only_once(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    path = tmp_path / f"out.{suffix}"
    assert called(capsys, tmp_path / "store", "export", path, *FROM_TO)[0] == 0
    for times in ("601 rows stored; 0 batches", "0 rows stored; 2 batches"):
        code, out, _ = called(capsys, tmp_path / "new", "backfill", path)
        assert (code, times in out) == (0, True), out
    copy = Store(tmp_path / "new")
    assert instants(tmp_path / "new") == instants(tmp_path / "store")
    window = (NOON // (60 * SECOND) * 60 * SECOND, NOON + 700 * SECOND)
    for field in ("power_w", "energy_j"):
        for step in (1, 10, 60):
            asked = ("node-1", "GPU-a", field, *window, step)
            np.testing.assert_allclose(store.series(*asked)[1], copy.series(*asked)[1], err_msg=field)
    assert copy.series("node-2", "", "load_1m", NOON, NOON + SECOND, 1)[1].tolist() == [2.0]
    assert copy.job_quantile("job-1", "power_w", 0.5) == store.job_quantile("job-1", "power_w", 0.5)
    second = tmp_path / f"again.{suffix}"
    copy.close()
    assert called(capsys, tmp_path / "new", "export", second, *FROM_TO)[0] == 0
    order = "SELECT * FROM '{}' ORDER BY node, gpu, time_ns"
    first, again = (duckdb.sql(order.format(file)) for file in (path, second))
    assert first.columns == again.columns
    assert first.fetchall() == again.fetchall()
    store.close()


def test_rows_of_any_source_are_filled_in_beside_what_is_there(tmp_path: Path) -> None:
    store = Store(tmp_path)
    fill(store, 3)
    past = [batch(boot="prometheus", seq=n, times=[NOON - (60 - n) * SECOND]) for n in range(60)]
    told: list[int] = []
    done = backfill(store, [*past, past[0]], clock_ns=lambda: NOON + 500 * SECOND, progress=told.append)
    assert (done.batches, done.rows, done.known, told[-1]) == (60, 60, 1, 60)
    rows = store.steps("node-1", "GPU-a", "power_w", NOON - 60 * SECOND, NOON + 180 * SECOND, 1).rows
    assert rows.tolist() == [1.0] * 240
    assert store.sizes()["log"] == 0
    store.close()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("export",), "expected a file"),
        (("export", "out.xlsx"), "ends in .parquet or .csv"),
        (("export", "out.csv", "--from", "yesterday"), "such as 2026-03-01T08:00 or 24h"),
        (("export", "out.csv", "--field", "watts"), "a field of docs/telemetry.md"),
        (("export", "out.csv", "--from", "1h"), "the store has none"),
        (("export", "out.csv", "--from", "1h", "--to", "2h"), "expected --from before --to"),
        (("export", "nowhere/out.csv", *FROM_TO), "expected a folder to write the file into"),
        (("sizes", "out.csv"), "sizes takes no file"),
        (("backfill", "nothing.parquet"), "there is none"),
    ],
)
def test_what_cannot_be_done_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], args: tuple[str, ...], message: str
) -> None:
    Store(tmp_path).close()
    code, _, err = called(capsys, tmp_path, *args)
    assert code != 0
    assert message in err


def test_an_export_of_nothing_says_so_and_leaves_no_file(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.csv"
    code, _, err = called(capsys, tmp_path / "store", "export", path, *FROM_TO, "--gpu", "GPU-x")
    assert code != 0
    assert "expected rows of GPU-x from 2025-06-15 00:00:00 to 2025-06-16 00:00:00 UTC, there are none" in err
    assert not path.exists()
    store.close()


def test_verify_names_accounts_that_cannot_be_read(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hours = tmp_path / "store" / "accounts" / "hours"
    hours.mkdir(parents=True)
    (hours / "2025-06-15T15.parquet").write_bytes(b"torn")
    (hours.parent / "checkpoint").write_bytes(b"torn")
    code, out, _ = called(capsys, tmp_path / "store", "verify", "--json")
    assert code == 1
    problems = json.loads(out)["problems"]
    assert ["checkpoint" in text for text in problems] == [True, False]
    assert ["2025-06-15T15.parquet: expected the accounts of an hour" in text for text in problems] == [
        False,
        True,
    ]
    _, out, _ = called(capsys, tmp_path / "store", "sizes")
    assert re.search(r"accounts +2 +0\.0 +2025-06-15 15:00:00 +2025-06-15 16:00:00", out)
    store.close()


def test_filling_in_needs_the_collector_to_be_stopped(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.parquet"
    called(capsys, tmp_path / "store", "export", path, *FROM_TO)
    code, _, err = called(capsys, tmp_path / "store", "backfill", path)
    assert (code != 0, "another collector is using it" in err) == (True, True)
    store.close()
    code, _, err = called(capsys, tmp_path / "nowhere", "sizes")
    assert (code != 0, "expected the folder of a store" in err) == (True, True)


def test_a_file_of_somebody_else_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("time_ns,power\n5,1\n")
    with pytest.raises(Exception, match=r"other\.csv: expected"):
        list(batches_of_export(path))
