"""Accounts of rows that are filled in from the past: as living it gave them, once, and never over others."""

from __future__ import annotations

import argparse
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tests.collector.pushing import START_S, batch, site
from tests.collector.test_live import COOL, HELD, HOT, play

from unidle_collector.accounts import keeping
from unidle_collector.accounts.backfilled import Booked, PastAccounts
from unidle_collector.accounts.buckets import HOUR_NS
from unidle_collector.commands import store as command

pytestmark = pytest.mark.slow

HOUR_S = 3600
DAYS_NS = 400 * 24 * HOUR_NS
FIRST_WHOLE = (START_S // HOUR_S + 1) * HOUR_S * 10**9
WHOLE_S = FIRST_WHOLE // 10**9 - START_S
"""Begin of the hour that is whole, after the start."""
FROM_TO = ("--from", "2023-11-14T22:00", "--to", "2023-11-15T02:00")


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collector that has lived through a whole hour and parts of two, and its rows in a file beside it."""
    folder = tmp_path_factory.mktemp("lived")
    with site(folder / "site") as here:
        seq = play(here, WHOLE_S - 300, WHOLE_S + 2100, HELD, job="a")
        seq = play(here, WHOLE_S + 2100, WHOLE_S + 2700, HOT, seq=seq, job="b")
        play(here, WHOLE_S + 2700, WHOLE_S + 3900, COOL, seq=seq, job="b")
        here.settle(WHOLE_S + 3 * HOUR_S)
        here.live._write(here.live.ask(here.live._snapshot).result(timeout=60))
        here.live.store.convert_all(here.clock())
    assert called(folder / "site", "export", str(folder / "rows.parquet"), *FROM_TO) == 0
    return folder


@pytest.fixture(autouse=True)
def for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept does not depend on when the tests run."""
    monkeypatch.setenv("UNIDLE_COLLECTOR_KEEP_STATE_DAYS", "36500")


def called(directory: Path, *args: str) -> int:
    parser = argparse.ArgumentParser()
    command.arguments(parser)
    return command.run(parser.parse_args([*args, "--data-dir", str(directory)]))


def by_state(directory: Path, begin_ns: int) -> dict[tuple[str, str, str], float]:
    """(GPU, job, state and cause) -> seconds of an hour."""
    rows = pq.read_table(keeping.hour_file(directory / "accounts", begin_ns)).to_pylist()
    found: dict[tuple[str, str, str], float] = {}
    for row in rows:
        job = row["owner"].partition('"job": "')[2].partition('"')[0]
        found[row["gpu"], job, row["what"]] = row["seconds"]
    return {key: seconds for key, seconds in found.items() if seconds}


def test_rows_that_are_filled_in_give_the_accounts_that_living_them_gave(
    lived: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(tmp_path, "backfill", str(lived / "rows.parquet")) == 0
    assert "accounts of 1 hours booked (hours left as they are: 2 not whole)" in capsys.readouterr().out
    there, here = by_state(lived / "site", FIRST_WHOLE), by_state(tmp_path, FIRST_WHOLE)
    assert there.keys() == here.keys()
    assert {"idle.held", "throttled.hardware_thermal"} <= {what for _, _, what in here}
    for key, seconds in there.items():
        assert here[key] == pytest.approx(seconds, abs=2), key


def test_filling_in_again_books_nothing_and_changes_no_file(
    lived: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    called(tmp_path, "backfill", str(lived / "rows.parquet"))
    file = keeping.hour_file(tmp_path / "accounts", FIRST_WHOLE)
    before = file.stat().st_mtime_ns
    capsys.readouterr()
    assert called(tmp_path, "backfill", str(lived / "rows.parquet")) == 0
    said = capsys.readouterr().out
    assert "accounts of 0 hours booked (hours left as they are: 1 had accounts already, 2 not whole)" in said
    assert file.stat().st_mtime_ns == before


def test_the_hours_of_a_collector_stay_its_own_and_an_open_one_too(
    lived: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with site(tmp_path) as here:
        play(here, WHOLE_S + 60, WHOLE_S + 120, COOL, job="own")
    assert called(tmp_path, "backfill", str(lived / "rows.parquet")) == 0
    assert "accounts of 0 hours booked" in capsys.readouterr().out
    assert not keeping.hour_file(tmp_path / "accounts", FIRST_WHOLE).exists()


def test_a_collector_that_goes_on_later_answers_with_what_was_filled_in(lived: Path, tmp_path: Path) -> None:
    with site(tmp_path) as here:
        seq = play(here, -120, -60, COOL, job="own")
    called(tmp_path, "backfill", str(lived / "rows.parquet"))
    with site(tmp_path) as here:
        here.settle(WHOLE_S + 3 * HOUR_S)
        play(here, WHOLE_S + 3 * HOUR_S, WHOLE_S + 3 * HOUR_S + 60, COOL, seq=seq, job="own")
        jobs = {one["key"]: one for one in here.get("accounts", by="job", window_s=6 * HOUR_S)}
        assert jobs["a"]["seconds"]["idle"] == pytest.approx(2 * 2100, abs=4)
        assert jobs["own"]["seconds"]["productive"] > 0


def test_a_hole_in_an_hour_is_unknown_and_hours_without_rows_are_not_made_up(tmp_path: Path) -> None:
    accounts = PastAccounts(tmp_path, DAYS_NS, (START_S + 10**6) * 10**9)
    for first in (*range(0, 1200, 30), *range(2400, 3600, 30), *range(4 * HOUR_S, 5 * HOUR_S, 30)):
        accounts.take(batch(first, WHOLE_S + first, 30, COOL, job="a"))
    assert accounts.finish() == Booked(hours=2)
    hours = keeping.hours_of(tmp_path, 0, 2**62)
    assert list(hours) == [FIRST_WHOLE, FIRST_WHOLE + 4 * HOUR_NS]
    rows = hours[FIRST_WHOLE]().to_pylist()
    unknown = {row["gpu"]: row["seconds"] for row in rows if row["what"] == "unknown."}
    assert unknown.keys() == {"GPU-a", "GPU-b"}
    assert all(seconds == pytest.approx(1200, abs=4) for seconds in unknown.values())
    states = [row["seconds"] for row in rows if "." in row["what"]]
    assert sum(states) == 2 * 3600


def test_hours_that_are_too_old_to_be_kept_or_not_over_are_not_booked(tmp_path: Path) -> None:
    for now_s, keep_ns in ((WHOLE_S + 3599, DAYS_NS), (WHOLE_S + 10 * HOUR_S, HOUR_NS)):
        accounts = PastAccounts(tmp_path, keep_ns, (START_S + now_s) * 10**9)
        for first in range(0, 3600, 30):
            accounts.take(batch(first, WHOLE_S + first, 30, COOL, job="a"))
        booked = accounts.finish()
        assert (booked.hours, booked.partial + booked.old) == (0, 1)
    assert keeping.hours_of(tmp_path, 0, 2**62) == {}
