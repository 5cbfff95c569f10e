"""Which account a tenure counts in is asked once, and again when the answer may have changed."""

from __future__ import annotations

from pathlib import Path

from tests.collector.pushing import batch, site
from tests.collector.test_live import HELD, play

from unidle_agent.wire import Owner
from unidle_collector import reading
from unidle_collector.accounts.grouping import Grouping
from unidle_collector.inventory import Tenure


def test_tenures_that_come_later_join_the_groups_and_none_is_asked_twice() -> None:
    asked: list[int] = []

    def job(tenure: Tenure) -> str | None:
        asked.append(tenure.gpu)
        return tenure.owner.job or None

    tenures = [
        Tenure(number, Owner(job="" if number % 3 == 0 else f"job-{number % 3}")) for number in range(200)
    ]
    grouping = Grouping(job)
    first = grouping.of(tenures[:5]).tolist()
    assert (first, grouping.keys) == ([-1, 0, 1, -1, 0], ["job-1", "job-2"])
    assert grouping.of(tenures).tolist() == [(number % 3) - 1 for number in range(200)]
    assert asked == list(range(200))


def test_a_gpu_whose_model_becomes_known_moves_to_the_account_of_that_model(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        assert here.push(batch(1, 0, 30, HELD, job="4711", facts=False))[0] == 200
        play(here, 30, 90, HELD, seq=2, job="4711", facts=False)
        ask = here.live.ask
        before = ask(lambda: reading.accounts(here.live, "model", 3600)).result(timeout=30)
        play(here, 90, 150, HELD, seq=4, job="4711")
        after = ask(lambda: reading.accounts(here.live, "model", 3600)).result(timeout=30)
        assert [one.key for one in before] == ["unknown"]
        assert [one.key for one in after] == ["NVIDIA H100"]
        hours = ask(lambda: reading.accounts(here.live, "hour", 3600)).result(timeout=30)
        assert sum(sum(one.seconds.values()) for one in hours) == sum(after[0].seconds.values())
