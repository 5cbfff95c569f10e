from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import URL, create_engine
from tests.collector.postgres_server import Server, postgres

from unidle_agent.wire import GpuFacts, Owner
from unidle_collector.model import Cost, Evidence, Finding, Gain, GpuRef, Incident, Recommendation
from unidle_collector.store import tables
from unidle_collector.store.errors import StoreError, StoreFull
from unidle_collector.store.sequences import MOST_RANGES, Sequences
from unidle_collector.store.state import State, open_state

LONG = GpuFacts("GPU-a", model="x" * 4000)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "100% state?x=1#.sqlite"  # a config file or a URL could stumble over it


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgres() as running:
        yield running


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def where(request: pytest.FixtureRequest) -> Path | str:
    """Where the state is; each test that has no word of a file holds on both."""
    if request.param == "sqlite":
        return request.getfixturevalue("path")
    return request.getfixturevalue("server").database()


@pytest.fixture
def state(where: Path | str) -> Iterator[State]:
    opened = open_state(where)
    yield opened
    opened.close()


@pytest.fixture
def in_file(path: Path) -> State:
    return open_state(path)


def incident(number: int = 1, *, opened_ns: int = 1_000, gpu_h: float = 2.5) -> Incident:
    finding = Finding(
        id=f"finding-{number}",
        kind="idle",
        cause="held",
        severity="warning",
        confidence=0.9,
        subject_kind="job",
        subject=f"job-{number}",
        title="2.5 GPU-hours held and unused – “zürich”",
        since_ns=0,
        updated_ns=opened_ns,
        told_ns=opened_ns,
        gpus=(GpuRef("node-1", "GPU-a", 0, "B200"),),
        evidence=(Evidence("gpu_util_ratio", None, "1", 0.01, 60.0, "nothing is known"),),
        cost_so_far=Cost(gpu_h, 7.0, None),
    )
    zero = Cost(0.0, None, None)
    advice = Recommendation(
        id="r",
        kind="reclaim_idle",
        lever="reclaim",
        title="give it back",
        subject="job-1",
        finding_ids=("f",),
        gain=Gain(24.0, zero, Cost(1.0, 2.0, 3.0), zero),
        binding_constraint="",
        risk="",
        assumptions=("a", "b"),
        command="scancel 1",
        undo="",
        notice="",
        measure="",
        created_ns=5,
    )
    return Incident(f"incident-{number}", "open", 1, opened_ns, None, finding, (advice,))


def test_a_new_database_has_exactly_the_tables_of_the_code(in_file: State, path: Path) -> None:
    with create_engine(URL.create("sqlite", database=str(path))).connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []
    again = open_state(path)  # at its version already
    assert again.open_incidents() == []


def test_durability_is_asked_of_sqlite(in_file: State) -> None:
    with in_file._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2


def test_a_database_of_a_newer_unidle_is_left_alone(in_file: State, path: Path) -> None:
    in_file.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match="update unidle"):
        open_state(path)


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    path.write_bytes(b"something else entirely" * 100)
    with pytest.raises(StoreError, match=r"state\.sqlite.*not a database"):
        open_state(path)


def test_an_incident_and_its_events_come_back_as_they_were(state: State, where: Path | str) -> None:
    first = incident()
    resolved = replace(first, state="resolved", revision=2, resolved_ns=2_000)
    assert [state.save_incident(item, 10 + n).seq for n, item in enumerate((first, resolved))] == [1, 2]
    state.close()
    again = open_state(where)
    assert again.incident(first.id) == resolved
    assert again.incident("no such") is None
    assert again.open_incidents() == []
    assert again.incidents("resolved") == again.incidents("all") == [resolved]
    assert [(e.seq, e.time_ns, e.incident) for e in again.events()] == [(1, 10, first), (2, 11, resolved)]
    assert [event.seq for event in again.events(after=1)] == [2]
    assert again.events(after=2**70) == []


def test_incidents_are_newest_first_and_limited(state: State) -> None:
    for number in range(5):
        state.save_incident(incident(number, opened_ns=number), number)
    assert [item.id for item in state.incidents("open", limit=2)] == ["incident-4", "incident-3"]
    assert len(state.open_incidents()) == 5
    assert [event.seq for event in state.events(after=1, limit=2)] == [2, 3]


def test_what_could_not_be_read_again_is_not_written(state: State) -> None:
    state.save_incident(incident(), 1)
    with pytest.raises(ValueError, match="number"):
        state.save_incident(replace(incident(gpu_h=float("nan")), revision=2), 2)
    assert [event.incident.revision for event in state.events()] == [1]


def test_an_incident_is_not_saved_without_its_event(in_file: State, path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON incident_events BEGIN SELECT RAISE(ABORT, 'refused'); END"
        )
    with pytest.raises(Exception, match="refused"):
        in_file.save_incident(incident(), 1)
    assert in_file.incidents("all") == []


def test_a_batch_is_seen_once_acknowledged_in_any_order_and_per_boot(state: State, where: Path | str) -> None:
    state.acknowledge([("n", "b1", 5), ("n", "b1", 7), ("n", "b2", 0)], 1)
    for store in (state, open_state(where)):
        assert [seq for seq in range(10) if store.seen("n", "b1", seq)] == [5, 7]
        assert not store.seen("n", "b2", 5)
        assert not store.seen("other", "b1", 5)
    state.acknowledge([("n", "b1", 6), ("n", "b1", 2), ("n", "b1", 5)], 2)  # late, and one twice
    assert [seq for seq in range(10) if open_state(where).seen("n", "b1", seq)] == [2, 5, 6, 7]
    with state._engine.connect() as connection:
        text = "SELECT highest, ranges FROM sequences WHERE boot = 'b1'"
        stored = connection.exec_driver_sql(text).one()
    assert tuple(stored) == (7, "[[2, 2], [5, 7]]")


def test_what_is_only_remembered_is_seen_but_not_durable(state: State, where: Path | str) -> None:
    state.remember([("n", "b", 1)])
    assert state.seen("n", "b", 1)
    assert not open_state(where).seen("n", "b", 1)
    state.acknowledge([("n", "b", 2)], 1)  # takes along what was remembered
    assert open_state(where).seen("n", "b", 1)


def test_a_sequence_number_beyond_what_a_database_holds_does_no_harm(state: State, where: Path | str) -> None:
    state.acknowledge([("n", "b", 2**64 - 1)], 1)
    assert open_state(where).seen("n", "b", 2**64 - 1)


@given(st.lists(st.integers(0, 30)))
def test_sequences_are_a_set(numbers: list[int]) -> None:
    sequences = Sequences()
    for number in numbers:
        sequences.add(number)
    assert [n for n in range(-1, 32) if n in sequences] == sorted(set(numbers))
    assert sequences.highest == max(numbers, default=-1)
    ranges = sequences.ranges
    assert all(first <= last for first, last in ranges)
    assert all(before[1] + 1 < after[0] for before, after in pairwise(ranges))


def test_a_node_that_leaves_gaps_without_end_keeps_a_bounded_record() -> None:
    sequences = Sequences()
    for number in range(0, 4 * MOST_RANGES, 2):
        sequences.add(number)
    assert len(sequences.ranges) == MOST_RANGES
    assert 1 in sequences  # the oldest gaps were closed
    assert 4 * MOST_RANGES - 3 not in sequences  # the newest are exact


def test_facts_are_kept_by_node_boot_and_id(state: State) -> None:
    gpus = (GpuFacts("GPU-a", 0, "B200", sources={"power_w": "nvml"}, owner=Owner(True, "j", "u")),)
    state.save_facts({("n", "b", 2**64 - 1): gpus, ("n", "b", 2): ()}, 1)
    assert state.facts(("n", "b", 2**64 - 1)) == gpus
    assert state.facts(("n", "b", 2)) == ()
    assert state.facts(("n", "other", 2)) is None


def test_meta_values_are_replaced(state: State) -> None:
    assert state.meta("site") is None
    state.set_meta("site", "a")
    state.set_meta("site", "b")
    assert state.meta("site") == "b"


def test_forgetting_keeps_open_incidents_and_the_newest_of_every_node(
    state: State, where: Path | str
) -> None:
    state.save_incident(incident(1), 10)
    state.save_incident(replace(incident(2), state="resolved", resolved_ns=20), 20)
    state.save_incident(replace(incident(3), state="resolved", resolved_ns=200), 200)
    for boot, time_ns in (("old", 10), ("new", 20)):
        state.acknowledge([("n", boot, 1)], time_ns)
        state.save_facts({("n", boot, 1): (), ("n", boot, 2): ()}, time_ns)
        state.save_facts({("n", boot, 3): ()}, time_ns + 1)
    assert state.forget(100) == 1 + 2 + 1 + 4
    assert {item.id for item in state.incidents("all")} == {"incident-1", "incident-3"}
    assert [event.seq for event in state.events()] == [3]
    again = open_state(where)
    assert (again.seen("n", "old", 1), again.seen("n", "new", 1)) == (False, True)
    assert again.facts(("n", "new", 3)) == ()
    assert again.save_incident(incident(4), 300).seq == 4  # never a number that was given before


def test_one_writes_while_others_read(state: State) -> None:
    problems: list[BaseException] = []

    def reading() -> None:
        try:
            for _ in range(30):
                events = state.events()
                assert [event.seq for event in events] == list(range(1, len(events) + 1))
                state.seen("n", "b", 3)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=reading) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(30):
        state.save_incident(incident(number), number)
        state.acknowledge([("n", "b", number)], number)
    for thread in threads:
        thread.join()
    assert problems == []
    assert len(state.events()) == 30


def test_a_full_disk_is_told_and_passes(in_file: State) -> None:
    with in_file._engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(
            f"PRAGMA max_page_count = {pages}"
        )  # of this connection, which is used again
    with pytest.raises(StoreFull, match="free space"):
        in_file.save_facts({("n", "b", n): (LONG,) for n in range(50)}, 1)
    assert in_file.facts(("n", "b", 0)) is None
    with in_file._engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
    in_file.save_facts({("n", "b", 1): (LONG,)}, 1)
    assert in_file.facts(("n", "b", 1)) == (LONG,)


def test_a_damaged_database_is_found(in_file: State, path: Path) -> None:
    in_file.save_facts({("n", "b", n): (LONG,) for n in range(30)}, 1)
    assert in_file.verify() == ()
    in_file.close()
    content = bytearray(path.read_bytes())
    for offset in range(len(content) - 8 * 4096, len(content), 4096):
        content[offset : offset + 100] = b"\xff" * 100
    path.write_bytes(bytes(content))
    assert open_state(path).verify() != ()


@pytest.mark.slow
def test_a_new_postgresql_has_exactly_the_tables_of_the_code_in_its_schema(server: Server) -> None:
    url = server.database()
    for _ in range(2):  # at its version already the second time
        state = open_state(url, schema="shard_03")
        with state._engine.connect() as connection:
            assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []
        state.close()
    other = open_state(url)
    other.save_incident(incident(), 1)
    assert open_state(url, schema="shard_03").incidents("all") == []


@pytest.mark.slow
def test_many_who_open_an_empty_postgresql_at_once_migrate_it_once(server: Server) -> None:
    url, problems = server.database(), []

    def opening() -> None:
        try:
            open_state(url).close()
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=opening) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


@pytest.mark.slow
def test_a_postgresql_that_went_away_is_told_without_its_password_and_comes_back(server: Server) -> None:
    state = open_state(server.database())
    state.save_incident(incident(1), 1)
    server.stop()
    try:
        for write in (lambda: state.save_incident(incident(2), 2), state.open_incidents):
            with pytest.raises(StoreError, match="expected to") as told:
                write()
            assert "a-password" not in str(told.value)
        assert state.verify() != ()
    finally:
        server.start()
    state.save_incident(incident(3), 3)
    assert next(event.seq for event in state.events()) == 1
    assert {item.id for item in state.open_incidents()} == {"incident-1", "incident-3"}
    assert state.verify() == ()


@pytest.mark.parametrize("url", ["mysql://u:secret@h/d", "no url at all:secret"])
def test_another_database_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(StoreError, match="expected postgresql") as told:
        open_state(url)
    assert "secret" not in str(told.value)
