"""The site's incidents, made of the shards': what is told once, by which number, whoever takes it in."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import sqlalchemy as sa
from tests.collector.postgres_server import Server, postgres

from unidle_collector.model import Cost, Finding, GpuRef, Incident
from unidle_collector.shards.view.findings import Part, merged, of_site
from unidle_collector.shards.view.incidents import AT_ONCE, LOCK, SiteIncidents, fold
from unidle_collector.store import State, database, open_state


def finding(shard: int, *, job: str = "4711", at_ns: int = 100, gpus: int = 2, rate: float = 1.0) -> Finding:
    """One shard's word on an idle job."""
    node = f"n{shard}"
    return Finding(
        id=f"idle-{shard}-{job}",
        kind="idle",
        cause="held",
        severity="warning",
        confidence=0.9,
        subject_kind="job",
        subject=job,
        title=f"{gpus} GPUs idle",
        since_ns=at_ns - 50,
        updated_ns=at_ns,
        told_ns=at_ns,
        job=job,
        nodes=(node,),
        gpus=tuple(GpuRef(node, f"{node}-{number}", number) for number in range(gpus)),
        cost_so_far=Cost(2.0, 3.0, None),
        cost_per_h=Cost(rate, 1.0, None),
    )


def opened(told: Finding) -> Incident:
    return Incident(told.id, "open", 1, told.updated_ns, None, told)


def resolved(incident: Incident, at_ns: int) -> Incident:
    over = replace(incident.finding, ended_ns=at_ns, updated_ns=at_ns, cost_per_h=Cost(0.0, 0.0, 0.0))
    return replace(incident, state="resolved", revision=2, resolved_ns=at_ns, finding=over)


def test_one_job_in_three_shards_is_one_finding_in_the_words_of_the_part_that_loses_most() -> None:
    parts = [finding(1), finding(2, rate=5.0, gpus=8), replace(finding(3), severity="critical", since_ns=7)]
    other = finding(4, job="4712")
    (one, alone) = of_site([*parts, other], [Part("idle-3-4711", "idle-3-4711", None)])
    assert one.id == "idle-3-4711", "that of its incident"
    assert one.title == "8 GPUs idle (and 4 GPUs of the job on 2 other nodes)"
    assert (one.severity, one.since_ns, one.nodes) == ("critical", 7, ("n1", "n2", "n3"))
    assert len(one.gpus) == 12
    assert one.cost_so_far == Cost(6.0, 9.0, None), "what one part does not know, the sum does not"
    assert one.cost_per_h.gpu_h == 7.0
    assert alone == other


def test_findings_of_nodes_are_never_thrown_together() -> None:
    lost = [replace(finding(shard), subject_kind="node", subject=f"n{shard}") for shard in (1, 2)]
    assert of_site(lost, []) == lost


def test_what_is_merged_does_not_depend_on_the_order_of_the_shards() -> None:
    parts = [finding(shard, rate=2.0) for shard in range(5)]
    assert merged("x", parts) == merged("x", parts[::-1])


def test_an_incident_is_over_when_its_last_part_is_and_keeps_the_cost_of_all() -> None:
    a, b = opened(finding(1)), opened(finding(2))
    half = fold(None, a.id, [resolved(a, 200), b])
    assert (half.state, half.resolved_ns, half.finding.nodes) == ("open", None, ("n2",))
    assert half.finding.cost_so_far.gpu_h == 4.0
    assert half.recommendations
    over = fold(half, a.id, [resolved(a, 200), resolved(b, 300)])
    assert (over.state, over.resolved_ns, over.finding.ended_ns) == ("resolved", 300, 300)
    assert over.finding.nodes == ("n1", "n2")
    assert over.recommendations == ()
    assert over.opened_ns == half.opened_ns


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgres() as running:
        yield running


class World:
    """A database with the schemas of shards 3, 4 and 5."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = database.connect(url)
        self.shards: dict[int, State] = {
            number: open_state(url, f"shard_{number:02d}") for number in (3, 4, 5)
        }
        self.site = SiteIncidents(self.engine, 10**18, lambda: 10**18)
        self.state = open_state(url)

    def save(self, shard: int, incident: Incident) -> None:
        self.shards[shard].save_incident(incident, incident.finding.updated_ns)

    def told(self) -> list[tuple[int, str, str, int]]:
        """(seq, id, state, revision) of every event of the site."""
        events = self.state.events()
        return [(one.seq, one.incident.id, one.incident.state, one.incident.revision) for one in events]

    def close(self) -> None:
        for state in (*self.shards.values(), self.state):
            state.close()
        self.engine.dispose()


@pytest.fixture
def world(server: Server) -> Iterator[World]:
    made = World(server.database())
    yield made
    made.close()


@pytest.mark.slow
def test_a_job_in_several_shards_is_told_once_and_over_once(world: World) -> None:
    a, b = opened(finding(3, at_ns=100)), opened(finding(4, at_ns=110))
    world.save(3, a)
    assert world.site.take() == 1
    world.save(4, b)
    world.save(5, opened(finding(5, job="4712", at_ns=120)))
    assert world.site.take() == 2
    assert world.told() == [(1, a.id, "open", 1), (2, "idle-5-4712", "open", 1)]
    kept = world.state.incident(a.id)
    assert kept is not None
    assert kept.finding.nodes == ("n3", "n4"), "whoever joins is in it"
    assert world.site.parts_of(a.id) == [(3, a.id), (4, b.id)]
    world.save(3, resolved(a, 200))
    assert world.site.take() == 1
    assert len(world.told()) == 2, "not over as long as one part is not"
    assert {part.id: part.over is not None for part in world.site.parts()} == {
        a.id: True,
        b.id: False,
        "idle-5-4712": False,
    }
    world.save(4, resolved(b, 210))
    assert world.site.take() == 1
    assert world.told()[2:] == [(3, a.id, "resolved", 2)]
    later = opened(replace(finding(4, at_ns=900), id="idle-again"))
    world.save(4, later)
    world.site.take()
    assert world.told()[3:] == [(4, "idle-again", "open", 1)], "another episode is another incident"
    assert world.state.open_count() == 2


@pytest.mark.slow
def test_another_severity_of_any_part_is_told(world: World) -> None:
    a = opened(finding(3, at_ns=100))
    world.save(3, a)
    world.save(4, opened(finding(4, at_ns=101)))
    world.site.take()
    worse = replace(finding(4, at_ns=150), severity="critical")
    world.save(4, replace(opened(worse), revision=2))
    world.site.take()
    assert world.told() == [(1, a.id, "open", 1), (2, a.id, "open", 2)]
    assert world.state.events()[1].incident.finding.severity == "critical"


@pytest.mark.slow
def test_two_collectors_take_every_event_in_once_and_in_the_order_of_time(world: World) -> None:
    for number in range(AT_ONCE + 100):
        for shard in (3, 4):
            told = finding(shard, job=f"job-{shard}-{number}", at_ns=1_000 + 10 * number + shard)
            world.save(shard, opened(told))
    other = SiteIncidents(world.engine, 10**18, lambda: 10**18)
    taken: list[int] = []

    def work(one: SiteIncidents) -> None:
        for _ in range(40):
            taken.append(one.take())

    threads = [threading.Thread(target=work, args=(one,)) for one in (world.site, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(taken) == 2 * (AT_ONCE + 100)
    times = []
    after = 0
    while events := world.state.events(after):
        times += [event.time_ns for event in events]
        after = events[-1].seq
    assert len(times) == sum(taken)
    assert times == sorted(times)


@pytest.mark.slow
def test_who_finds_another_at_it_leaves_it_and_a_crash_half_way_leaves_nothing(world: World) -> None:
    world.save(3, opened(finding(3)))
    with world.engine.begin() as connection:
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
        assert world.site.take() == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unidle_collector.shards.view.incidents._positions", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            world.site.take()
    assert world.told() == []
    assert world.site.take() == 1
    assert len(world.told()) == 1


@pytest.mark.slow
def test_what_nobody_expected_is_said_and_does_not_end_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unidle_collector.shards.view.incidents.EACH_S", 0.01)
    world.save(3, opened(finding(3)))
    with monkeypatch.context() as broken:
        broken.setattr("unidle_collector.shards.view.incidents._fold", lambda *_: 1 / 0)
        world.site.start()
        until(lambda: "unexpected ZeroDivisionError" in world.site.problem)
    until(lambda: len(world.told()) == 1)
    until(lambda: world.site.problem == "")
    world.site.stop()


def until(done: Callable[[], object]) -> None:
    for _ in range(500):
        if done():
            return
        time.sleep(0.02)
    raise AssertionError("not within 10 s")


@pytest.mark.slow
def test_what_is_over_for_long_is_forgotten_with_its_parts(world: World) -> None:
    a = opened(finding(3, at_ns=100))
    world.save(3, a)
    world.save(3, resolved(a, 200))
    world.save(4, opened(finding(4, job="4712", at_ns=100)))
    world.site.take()
    SiteIncidents(world.engine, 100, lambda: 1_000).take()
    assert world.state.incident(a.id) is None
    assert world.site.parts_of(a.id) == []
    assert world.site.parts_of("idle-4-4712") == [(4, "idle-4-4712")]


@pytest.mark.slow
def test_a_shard_that_nobody_holds_is_known_by_its_last_checkpoint(world: World) -> None:
    assert world.site.kept(9) is None, "it has no schema yet"
    assert world.site.kept(3) is None, "nor a checkpoint"
    with world.engine.begin() as connection:
        connection.execute(
            sa.text(
                "INSERT INTO shard_03.checkpoints (id, epoch, position, held, pace_ns, reached_ns, document,"
                " nodes, gpus) VALUES (1, 1, 1, '[]', 0, 0, '', 5, 40)"
            )
        )
    assert world.site.kept(3) == (5, 40)
