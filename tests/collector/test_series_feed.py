"""The way from the collector's log to a series store: nothing lost, nothing held up, what is refused kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.agent.scripted_server import Reply, Request, in_turn, serving
from tests.collector.prometheus_server import wait_for
from tests.collector.series_fleet import START, accept, drain, hour, opened, settings
from tests.collector.store_fleet import SECOND, batch

from unidle_agent.wire import Batch, Owner
from unidle_collector.series.answers import LinesRefusedError, TryLaterError
from unidle_collector.series.deadletters import DeadLetters
from unidle_collector.series.feed import MOST_TRIES, Feed
from unidle_collector.series.queue import LogQueue
from unidle_collector.store import Store
from unidle_collector.store.log import MAGIC


class FakeWriter:
    """Keeps lines; refuses a request that holds one of `bad`, and every request while `away`."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.requests = 0
        self.away = False
        self.bad: tuple[str, ...] = ()

    def write(self, lines: bytes) -> None:
        self.requests += 1
        if self.away:
            raise TryLaterError("away")
        found = lines.decode().split("\n")
        if any(word in line for line in found for word in self.bad):
            raise LinesRefusedError("400: field type conflict")
        self.lines += found

    def close(self) -> None:
        pass


@contextmanager
def feeding(directory: Path, writer: FakeWriter, most_bytes: int = 10**9) -> Iterator[tuple[Store, Feed]]:
    """A store whose log goes to `writer`, step by step."""
    store = Store(directory, links=directory / "series/queue")
    try:
        queue = LogQueue(directory / "series/queue", store.log_directory, store.durable)
        feed = Feed(directory / "series", queue, writer, store.state.facts, most_bytes=most_bytes)
        feed.learn()
        yield store, feed
    finally:
        store.close()


def rows(first: int, count: int = 5, **of: object) -> Batch:
    """One GPU over `count` seconds from START + first on; the power is the second."""
    seconds = range(first, first + count)
    return batch(
        seq=first,
        times=[START + s * SECOND for s in seconds],
        columns={"power_w": list(seconds)},
        **of,  # type: ignore[arg-type]
    )


def seconds_in(writer: FakeWriter) -> list[int]:
    return [(int(line.rsplit(" ", 1)[1]) - START) // SECOND for line in writer.lines]


def test_what_is_accepted_is_written_once_and_in_order(tmp_path: Path) -> None:
    writer = FakeWriter()
    with feeding(tmp_path, writer) as (store, feed):
        for first in range(0, 60, 5):
            accept(store, rows(first))
            drain(feed)
            drain(feed)
        assert seconds_in(writer) == list(range(60))
        assert feed.counters["lines_written"] == 60


def test_what_is_not_synced_yet_is_not_written(tmp_path: Path) -> None:
    writer = FakeWriter()
    with feeding(tmp_path, writer) as (store, feed):
        accept(store, rows(0))
        path = next((tmp_path / "log").glob("*.log"))
        again = path.read_bytes()[len(MAGIC) :]
        with path.open("ab") as file:
            file.write(again)  # as a sync leaves it that has not come back yet, and may be undone
        drain(feed)
        assert seconds_in(writer) == list(range(5))


def test_what_waits_outlives_the_log_and_a_restart_and_leaves_nothing_behind(tmp_path: Path) -> None:
    writer = FakeWriter()
    with feeding(tmp_path, writer) as (store, feed):
        accept(store, rows(0))
        drain(feed)
        accept(store, rows(5))
        writer.away = True
        with pytest.raises(TryLaterError):
            drain(feed)
        store.convert_all(START)
        assert not list((tmp_path / "log").glob("*.log"))
        accept(store, rows(10))
    writer.away = False
    with feeding(tmp_path, writer) as (store, feed):
        accept(store, rows(15))
        drain(feed)
        store.convert_all(START)
        drain(feed)
        assert seconds_in(writer) == list(range(20))
        assert not list((tmp_path / "series/queue").glob("*.log"))


def test_a_position_that_cannot_be_read_writes_what_waits_once_more(tmp_path: Path) -> None:
    writer = FakeWriter()
    with feeding(tmp_path, writer) as (store, feed):
        accept(store, rows(0))
        drain(feed)
    (tmp_path / "series/queue/position.json").write_text("{", encoding="ascii")
    with feeding(tmp_path, writer) as (_, feed):
        drain(feed)
    assert seconds_in(writer) == [*range(5), *range(5)]


def test_the_job_is_known_after_a_restart_in_the_middle_of_a_file(tmp_path: Path) -> None:
    writer = FakeWriter()
    with feeding(tmp_path, writer) as (store, feed):
        accept(store, rows(0, jobs={"GPU-a": Owner(allocated=True, job="4711")}))
        drain(feed)
    with feeding(tmp_path, writer) as (store, feed):
        accept(store, rows(5))
        drain(feed)
        store.convert_all(START)
    with feeding(tmp_path, writer) as (store, feed):  # now only the state database knows
        accept(store, rows(10))
        drain(feed)
    assert len(writer.lines) == 15
    assert all(",job=4711," in line for line in writer.lines)


def test_lines_at_fault_are_found_and_buried_and_all_others_written(tmp_path: Path) -> None:
    writer = FakeWriter()
    writer.bad = ("power_w=17.", "power_w=61.")
    with feeding(tmp_path, writer) as (store, feed):
        accept(store, *(rows(first) for first in range(0, 100, 5)))
        drain(feed)
        assert sorted(seconds_in(writer)) == [n for n in range(100) if n not in (17, 61)]
        assert feed.counters == {
            "lines_written": 98,
            "lines_dead": 2,
            "writes_retried": 0,
            "queue_dropped_bytes": 0,
        }
    dead = (tmp_path / "series/dead.lines").read_text(encoding="utf-8").splitlines()
    assert [line.startswith("#") for line in dead] == [True, False, True, False]
    assert "field type conflict" in dead[0]
    assert "power_w=17." in dead[1]


def test_a_server_that_refuses_everything_costs_a_bounded_number_of_requests(tmp_path: Path) -> None:
    writer = FakeWriter()
    writer.bad = ("unidle",)
    with feeding(tmp_path, writer) as (store, feed):
        accept(store, *(rows(first) for first in range(0, 2000, 5)))
        drain(feed)
        assert feed.counters["lines_dead"] == 2000
        assert writer.requests < 3 * MOST_TRIES


def test_dead_letters_keep_to_their_bound(tmp_path: Path) -> None:
    dead = DeadLetters(tmp_path, most_bytes=1000)
    for number in range(100):
        dead.bury([f"unidle power_w={number} 1"], "a\nreason", START)
    kept = [tmp_path / "dead.lines", tmp_path / "dead.lines.1"]
    assert all(path.stat().st_size <= 1000 for path in kept)
    assert "power_w=99 " in kept[0].read_text(encoding="utf-8")


def test_over_its_bytes_the_oldest_waiting_go_first_and_are_counted(tmp_path: Path) -> None:
    writer = FakeWriter()
    with feeding(tmp_path, writer, most_bytes=1) as (store, feed):
        for first in (0, 5, 10):
            accept(store, rows(first))
            store.convert_all(START + first)
        accept(store, rows(15))
        drain(feed)
        assert seconds_in(writer) == [15, 16, 17, 18, 19]
        assert feed.counters["queue_dropped_bytes"] > 0


def test_a_busy_server_is_tried_again_when_it_says_and_the_problem_is_told(tmp_path: Path) -> None:
    script = in_turn(Reply(503, b"busy", {"Retry-After": "1"}), Reply(429, b"slow down"), Reply(204))
    with serving(script) as server, opened(settings(tmp_path, "influxdb2", server.url)) as (store, feed):
        accept(store, rows(0))
        feed.start()
        wait_for(lambda: "503" in feed.problem)
        assert "rows wait in the log" in feed.problem
        wait_for(lambda: feed.counters["lines_written"] == 5)
        wait_for(lambda: not feed.problem)
        feed.stop()
        assert feed.counters["writes_retried"] == 2
        assert len({request.body for request in server.requests}) == 1


def test_a_wrong_token_is_no_reason_to_bury_lines_and_is_not_shown(tmp_path: Path) -> None:
    def refuse(_: Request) -> Reply:
        return Reply(401, b'{"code":"unauthorized"}')

    with serving(refuse) as server, opened(settings(tmp_path, "influxdb2", server.url)) as (store, feed):
        accept(store, *hour(5))
        with pytest.raises(TryLaterError, match="check series_token") as error:
            drain(feed)
        assert "token-of-the-test" not in str(error.value)
        assert feed.counters["lines_dead"] == 0
