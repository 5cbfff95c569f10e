"""Leases and fences, against a real PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from tests.collector.postgres_server import Server, postgres

from unidle_agent.shards import SHARDS
from unidle_collector.shards.leases import Leases, fence
from unidle_collector.store import database, open_state, tables
from unidle_collector.store.errors import FencedError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgres() as running:
        yield running


class Two:
    """Two collectors on one database."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = database.connect(url)
        self.a, self.b = Leases(self.engine, "a", "http://a"), Leases(self.engine, "b", "http://b")
        self.a.prepare()
        self.b.prepare()

    def lapse(self) -> None:
        """Let ten seconds be over."""
        with self.engine.begin() as connection:
            connection.execute(sa.update(tables.leases).values(until_ns=1))


@pytest.fixture
def two(server: Server) -> Two:
    return Two(server.database())


def test_a_shard_has_one_holder_until_its_lease_lapses(two: Two) -> None:
    assert two.a.claim(3) == [(0, 1), (1, 1), (2, 1)]
    assert two.b.claim(SHARDS) == [(shard, 1) for shard in range(3, SHARDS)]
    assert two.a.claim(1) == two.b.claim(1) == []
    two.lapse()
    assert two.b.claim(1) == [(0, 2)]
    assert two.a.renew([(0, 1), (1, 1)]) == {1}
    now = {lease.shard: (lease.holder, lease.url, lease.epoch) for lease in two.b.all()}
    assert now[0] == ("b", "http://b", 2)
    assert now[1] == ("a", "http://a", 1)


def test_what_is_released_is_free_at_once_and_only_by_who_holds_it(two: Two) -> None:
    ((shard, epoch),) = two.a.claim(1)
    two.b.release(shard, epoch + 1)
    assert two.a.renew([(shard, epoch)]) == {shard}
    two.a.release(shard, epoch)
    assert two.b.claim(1) == [(shard, epoch + 1)]


def test_collectors_are_counted_while_they_live(two: Two) -> None:
    assert (two.a.beat(), two.b.beat(), two.a.beat()) == (1, 2, 2)
    with two.engine.begin() as connection:
        table = tables.collectors
        connection.execute(sa.update(table).where(table.c.holder == "b").values(seen_ns=1))
    assert two.a.beat() == 1


def test_many_who_claim_at_once_get_different_shards(two: Two) -> None:
    taken: list[tuple[int, int]] = []
    threads = [threading.Thread(target=lambda: taken.extend(two.a.claim(4))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken += two.b.claim(SHARDS)  # what those skipped who found a row locked
    assert sorted(taken) == [(shard, 1) for shard in range(SHARDS)]


def test_who_lost_a_shard_writes_nothing_into_it(two: Two) -> None:
    ((shard, epoch),) = two.a.claim(1)
    mine = open_state(two.url, "shard_00", fence(shard, epoch))
    mine.set_meta("by", "a")
    two.lapse()
    mine.set_meta("by", "a, late")  # nobody has taken it: there is nobody to contradict
    two.b.claim(1)
    with pytest.raises(FencedError, match="another collector has it"):
        mine.set_meta("by", "a, fenced")
    assert mine.meta("by") == "a, late"
    assert mine.fenced == 1


def test_a_takeover_waits_for_the_write_that_is_under_way(two: Two) -> None:
    """It takes other shards first: whoever skips the row gets it at the next beat."""
    ((shard, epoch),) = two.a.claim(1)
    two.lapse()
    with two.engine.begin() as writing:
        fence(shard, epoch)(writing)
        assert shard not in {taken for taken, _ in two.b.claim(SHARDS)}
    assert two.b.claim(1) == [(shard, epoch + 1)]
