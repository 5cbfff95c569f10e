"""From the collector's log to delivered messages: once each, coalesced, grouped, limited, kept."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.alerts.alerts_bench import RULES, Bench
from tests.fakes import SECOND_NS, START_NS, FakeClock, FakeCollector, FakeNotifier, make_incident, resolve

from unidle_alerts import schema
from unidle_alerts.errors import StoreError
from unidle_alerts.notice import summary
from unidle_alerts.notifiers import Outcome
from unidle_alerts.outbox import KEEP_S, Policy
from unidle_alerts.plan import Channel, Pending, next_batch
from unidle_alerts.schema import open_database

RETRY = Outcome("retry", "HTTP 500")


def after(seconds: float) -> int:
    return START_NS + int(seconds * SECOND_NS)


def test_an_incident_is_told_once_when_it_opens_and_once_when_it_resolves(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    incident = make_incident()
    bench.collector.add(incident)
    bench.run(20)
    assert bench.told() == [("opened", "inc-1")]
    bench.collector.add(resolve(incident, after(420)))
    bench.run(20)
    assert bench.told() == [("opened", "inc-1"), ("resolved", "inc-1")]


def test_updates_of_an_open_incident_send_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.collector.add(make_incident())
    bench.run(10)
    bench.collector.add(*(make_incident(revision=number) for number in range(2, 30)))
    bench.run(60)
    assert bench.told() == [("opened", "inc-1")]


def test_an_update_that_comes_before_the_message_is_what_the_message_says(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.collector.add(make_incident(severity="warning"))
    bench.run(1)
    bench.collector.add(make_incident(revision=2, severity="critical"))
    bench.run(10)
    assert [each.incidents[0].finding.severity for each in bench.notifier.notices] == ["critical"]


def test_fired_and_resolved_while_the_channel_was_down_is_one_message_with_both_times(tmp_path: Path) -> None:
    bench = Bench(tmp_path, notifiers=(FakeNotifier([RETRY] * 3),))
    incident = make_incident()
    bench.collector.add(incident)
    bench.run(5)
    assert bench.notifier.attempts
    bench.collector.add(resolve(incident, after(420)))
    bench.run(600, step_s=5)
    assert bench.told() == [("passed", "inc-1")]
    assert "Fired 14:02, resolved 14:09 UTC" in summary(bench.notifier.notices[0])


def test_an_incident_below_the_least_severity_is_told_when_it_grows(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.collector.add(make_incident(severity="info"))
    bench.run(10)
    assert bench.told() == []
    bench.collector.add(make_incident(revision=2, severity="critical"))
    bench.run(10)
    assert bench.told() == [("opened", "inc-1")]


def test_ten_thousand_incidents_at_once_are_a_handful_of_messages_that_count_them_all(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.collector.add(*(make_incident(f"inc-{number}") for number in range(10_000)))
    bench.run(180)
    assert 1 <= len(bench.notifier.notices) <= 5
    tallies = [each.tally for each in bench.notifier.notices]
    assert sum(tally.incidents if tally else 1 for tally in tallies) == 10_000
    assert "10,000 incidents" in summary(bench.notifier.notices[0])
    assert bench.outbox.states()[0].pending == 0


def test_a_storm_that_lasts_is_one_message_per_window(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for second in range(120):
        bench.collector.add(*(make_incident(f"inc-{second}-{number}") for number in range(20)))
        bench.run(1)
    bench.run(60)
    assert len(bench.notifier.notices) <= 1 + 180 / RULES.group_window_s
    assert sum(each.tally.incidents for each in bench.notifier.notices if each.tally) == 2400


def test_up_to_the_limit_each_incident_has_its_own_message(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.collector.add(*(make_incident(f"inc-{number}") for number in range(5)))
    bench.run(20)
    assert bench.told() == [("opened", f"inc-{number}") for number in range(5)]


def test_a_group_names_the_most_severe_and_costly_and_counts_the_rest(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.collector.add(*(make_incident(f"inc-{number}") for number in range(20)))
    bench.collector.add(make_incident("worst", severity="critical"))
    bench.run(10)
    (notice,) = bench.notifier.notices
    assert notice.incidents[0].id == "worst"
    assert len(notice.incidents) == 5
    assert notice.tally is not None
    assert notice.tally.incidents == 21
    assert notice.tally.eur_per_h == pytest.approx(21 * 24.0)


def test_simulated_and_real_incidents_never_share_a_message(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.collector.add(*(make_incident(f"sim-{number}", simulated=True) for number in range(10)))
    bench.collector.add(*(make_incident(f"real-{number}") for number in range(10)))
    bench.run(120)
    assert [notice.simulated for notice in bench.notifier.notices] == [False, True]
    assert [summary(notice).startswith("SIMULATED") for notice in bench.notifier.notices] == [False, True]


def test_messages_to_one_channel_are_at_least_a_second_apart(tmp_path: Path) -> None:
    clock = FakeClock()
    bench = Bench(tmp_path, clock=clock, rules=replace(RULES, settle_s=0, group_limit=100))
    bench.collector.add(*(make_incident(f"inc-{number}") for number in range(30)))
    bench.intake.poll()
    times = []
    for _ in range(400):
        if bench.worker.step():
            times.append(clock())
        clock.forward(0.1)
    assert len(times) == 30
    gaps = [second - first for first, second in pairwise(times)]
    assert min(gaps) >= SECOND_NS


@pytest.mark.parametrize("restart", [False, True], ids=["same process", "restarted meanwhile"])
def test_a_rate_limit_is_waited_out_as_long_as_it_says(tmp_path: Path, restart: bool) -> None:
    bench = Bench(tmp_path, notifiers=(FakeNotifier([Outcome("retry", "HTTP 429", 30.0)]),))
    bench.collector.add(make_incident())
    bench.run(4)
    refused_ns = bench.clock() - SECOND_NS
    assert len(bench.notifier.attempts) == 1
    if restart:
        bench.restart()
    while len(bench.notifier.attempts) < 2:
        bench.run(0.5, step_s=0.5)
    waited_s = (bench.notifier.attempts[1].now_ns - refused_ns) / SECOND_NS
    assert 30 <= waited_s < 32


def test_failures_are_tried_again_by_a_backoff_that_grows_to_five_minutes(tmp_path: Path) -> None:
    bench = Bench(tmp_path, notifiers=(FakeNotifier([RETRY] * 40),))
    bench.worker._uniform = lambda low, high: high
    bench.collector.add(make_incident())
    bench.run(1200)
    times = [notice.now_ns for notice in bench.notifier.attempts]
    gaps_s = [(second - first) / SECOND_NS for first, second in pairwise(times)]
    assert gaps_s[:4] == [2, 4, 8, 16]
    assert max(gaps_s) == 300


def test_one_message_that_always_fails_does_not_hold_up_the_others(tmp_path: Path) -> None:
    class Picky(FakeNotifier):
        def send(self, notice):  # type: ignore[no-untyped-def]
            self.plan = [RETRY] if notice.incidents[0].id == "inc-0" else []
            return super().send(notice)

    bench = Bench(tmp_path, notifiers=(Picky(),))
    bench.collector.add(*(make_incident(f"inc-{number}") for number in range(4)))
    bench.run(120)
    assert {incident for _, incident in bench.told()} == {"inc-1", "inc-2", "inc-3"}


def test_what_is_refused_for_good_is_given_up_counted_and_can_be_revived(tmp_path: Path) -> None:
    bench = Bench(tmp_path, notifiers=(FakeNotifier([Outcome("dead", "HTTP 404 no_service")]),))
    bench.collector.add(make_incident())
    bench.run(600, step_s=10)
    state = bench.outbox.states()[0]
    assert (state.dead, state.dead_rows, state.pending) == (1, 1, 0)
    assert state.last_reason == "HTTP 404 no_service"
    assert len(bench.notifier.attempts) == 1
    assert bench.outbox.retry_dead() == 1
    bench.run(10)
    assert bench.told() == [("opened", "inc-1")]
    assert bench.outbox.states()[0].dead_rows == 0


def test_what_was_given_up_and_told_by_a_later_message_is_not_revived(tmp_path: Path) -> None:
    bench = Bench(tmp_path, notifiers=(FakeNotifier([Outcome("dead", "HTTP 404 no_service")]),))
    incident = make_incident()
    bench.collector.add(incident)
    bench.run(10)
    assert bench.outbox.states()[0].dead_rows == 1
    bench.collector.add(resolve(incident, after(420)))
    bench.run(10)
    assert bench.told() == [("passed", "inc-1")]
    assert bench.outbox.states()[0].dead_rows == 0
    assert bench.outbox.retry_dead() == 0


def test_a_defect_in_one_message_is_a_dead_letter_and_not_the_end_of_delivery(tmp_path: Path) -> None:
    class Broken(FakeNotifier):
        def send(self, notice):  # type: ignore[no-untyped-def]
            if notice.incidents[0].id == "inc-0":
                raise KeyError("secret detail")
            return super().send(notice)

    bench = Bench(tmp_path, notifiers=(Broken(),))
    bench.collector.add(make_incident("inc-0"), make_incident("inc-1"))
    bench.run(20)
    assert bench.told() == [("opened", "inc-1")]
    assert bench.outbox.states()[0].dead == 1


def test_without_a_destination_changes_are_recorded_and_told_once_there_is_one(tmp_path: Path) -> None:
    bench = Bench(tmp_path, notifiers=())
    over, still_open = make_incident("over"), make_incident("still-open")
    bench.collector.add(over, still_open, resolve(over, after(5)))
    bench.run(30)
    (state,) = bench.outbox.states()
    assert (state.destination, state.untold, state.pending) == ("none", 3, 0)
    bench.restart(notifiers=(FakeNotifier(),))
    bench.run(30)
    assert bench.told() == [("opened", "still-open")]


def test_a_first_start_does_not_tell_what_was_over_before_it(tmp_path: Path) -> None:
    collector = FakeCollector()
    for number in range(1000):
        old = make_incident(f"old-{number}", opened_ns=after(-7200 + number))
        collector.add(old, resolve(old, after(-3600)))
    collector.add(make_incident("now"))
    bench = Bench(tmp_path, collector)
    bench.run(60)
    assert bench.told() == [("opened", "now")]


def test_a_second_destination_hears_of_what_is_open_and_the_first_hears_nothing_twice(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.collector.add(make_incident())
    bench.run(10)
    first, second = bench.notifier, FakeNotifier(name="stdout")
    bench.restart(notifiers=(first, second))
    bench.run(10)
    assert len(first.notices) == 1
    assert [notice.incidents[0].id for notice in second.notices] == ["inc-1"]


def test_a_collector_that_lost_its_log_is_noticed_and_its_new_incidents_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(tmp_path)
    bench.collector.add(make_incident("a"), make_incident("b"), make_incident("c"))
    bench.run(20)
    bench.collector.log.clear()
    bench.run(5)
    bench.collector.add(make_incident("d", opened_ns=after(20)), make_incident("a"))
    bench.run(120)
    assert [incident for _, incident in bench.told()] == ["a", "b", "c", "d"]
    assert caplog.text.count("not the one read before") == 1


def test_all_pages_are_read_in_one_poll(tmp_path: Path) -> None:
    collector = FakeCollector(page=500)
    collector.add(*(make_incident(f"inc-{number}") for number in range(1750)))
    bench = Bench(tmp_path, collector)
    assert bench.intake.poll() == 1750
    assert bench.intake.poll() == 0


def test_a_clock_that_is_set_back_does_not_silence_a_channel(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.collector.add(make_incident("a"))
    bench.run(10)
    bench.clock.forward(-86_400)
    bench.collector.add(make_incident("b"))
    bench.run(10)
    assert [incident for _, incident in bench.told()] == ["a", "b"]


def test_what_is_over_is_forgotten_after_its_time_and_never_told_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    over, still_open = make_incident("over"), make_incident("open")
    bench.collector.add(over, still_open)
    bench.run(10)
    bench.collector.add(resolve(over, after(10)))
    bench.run(10)
    told = bench.told()
    bench.clock.forward(KEEP_S + 60)
    bench.outbox.forget(bench.clock())
    with bench.outbox._engine.begin() as connection:
        left = list(connection.scalars(sa.select(schema.outbox.c.incident_id)))
        assert connection.scalar(sa.select(sa.func.count()).select_from(schema.delivery)) == 0
    assert left == ["open"]
    with bench.outbox._engine.begin() as connection:
        connection.execute(schema.cursor.delete())
    bench.run(90)
    assert bench.told() == told


def test_nothing_of_an_incident_is_kept_once_it_was_delivered(tmp_path: Path) -> None:
    bench = Bench(tmp_path, policy=Policy(content="full"))
    bench.collector.add(make_incident(job="secret-project"))
    bench.run(10)
    bench.outbox.close()
    assert bench.told()
    with bench.outbox._engine.begin() as connection:
        assert list(connection.scalars(sa.select(schema.outbox.c.payload))) == [""]


def test_the_migrations_make_the_tables_that_the_code_reads(tmp_path: Path) -> None:
    with open_database(tmp_path).begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2


def test_a_database_of_a_newer_unidle_is_refused_with_what_to_do(tmp_path: Path) -> None:
    engine = open_database(tmp_path)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    engine.dispose()
    with pytest.raises(StoreError, match="newer unidle"):
        open_database(tmp_path)


def pending(row_id: int, incident: int, state: str, recorded_s: float, attempts: int) -> Pending:
    return Pending(
        row_id=row_id,
        incident_id=f"inc-{incident}",
        state=state,
        revision=row_id,
        recorded_ns=after(recorded_s),
        attempts=attempts,
        kind="idle",
        severity="info",
        eur_per_h=1.0,
        simulated=False,
        told=False,
    )


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 12), st.sampled_from(["open", "resolved"]), st.floats(-100, 0), st.integers(0, 5)
        ),
        max_size=40,
    )
)
def test_whatever_waits_is_settled_within_few_messages_and_nothing_twice(
    rows: list[tuple[int, str, float, int]],
) -> None:
    left = [pending(number, *row) for number, row in enumerate(rows)]
    settled: list[int] = []
    singles, crowded_ns, messages, now_ns = 0, 0, 0, after(0)
    for _ in range(200):
        batch = next_batch(left, Channel(0, singles, crowded_ns), RULES, now_ns)
        now_ns += SECOND_NS
        if batch is None:
            continue
        messages += 1
        settled += batch.row_ids
        left = [row for row in left if row.row_id not in batch.row_ids]
        singles, crowded_ns = (singles, now_ns) if batch.crowded else (singles + 1, crowded_ns)
    assert left == []
    assert sorted(settled) == list(range(len(rows)))
    assert messages <= RULES.group_limit + 1
