"""Accounts page by page: together they are the whole list, whatever the dimension, window and limit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.collector.pushing import Site, site
from tests.collector.test_keeping import save
from tests.collector.test_live import COOL, HELD, play

DAY_S = 86_400
NOW_S = 20 * DAY_S
DIMENSIONS = (
    "fleet", "gpu", "node", "job", "user", "team", "partition", "model", "site", "hour",
)  # fmt: skip


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Jobs on disk and in memory, with days between them of which there is nothing."""
    with site(tmp_path_factory.mktemp("accounts")) as running:
        seq = 0
        for number, begin_s in enumerate((0, 2 * DAY_S, NOW_S - 3 * DAY_S, NOW_S - 7200, NOW_S - 600)):
            values = HELD if number % 2 else COOL
            running.settle(begin_s)
            seq = play(running, begin_s, begin_s + 300, values, seq=seq, job=f"job-{9 - number}")
        running.settle(NOW_S)
        save(running)
        yield running


def pages(here: Site, by: str, window_s: float, limit: int) -> list[list[dict[str, Any]]]:
    """Each page, as a reader who follows the links gets them."""
    found = []
    query = f"?by={by}&window_s={window_s}&limit={limit}"
    while query:
        reply = here.http.get(f"/api/v1/accounts{query}")
        assert reply.status_code == 200, reply.text
        found.append(reply.json())
        query = reply.links["next"]["url"] if "next" in reply.links else ""
        assert len(found) < 200
    return found


@settings(max_examples=25)
@given(
    st.sampled_from(DIMENSIONS),
    st.sampled_from([3600.0, 6 * 3600.0, 4.0 * DAY_S, 30.0 * DAY_S]),
    st.integers(1, 7),
)
def test_pages_together_are_the_whole_list_and_none_is_empty(
    here: Site, by: str, window_s: float, limit: int
) -> None:
    (whole,) = pages(here, by, window_s, 10_000)
    found = pages(here, by, window_s, limit)
    assert [account for page in found for account in page] == whole
    assert all(len(page) == limit for page in found[:-1]), "only the last one may be short"
    assert found[-1] or not whole
    keys = [account["key"] for account in whole]
    assert keys == sorted(keys)


def test_hours_without_time_leave_no_empty_page(here: Site) -> None:
    (whole,) = pages(here, "hour", 30 * DAY_S, 10_000)
    assert 3 < len(whole) < 90, "there are gaps"
    assert [len(page) for page in pages(here, "hour", 30 * DAY_S, 1)] == [1] * len(whole)


def test_a_page_goes_on_behind_an_account_that_is_not_there_any_more(here: Site) -> None:
    far, near = f"window_s={30 * DAY_S}", "window_s=14400"
    first = here.http.get(f"/api/v1/accounts?by=job&{far}&limit=4")
    assert [one["key"] for one in first.json()] == ["job-5", "job-6", "job-7", "job-8"]
    following = first.links["next"]["url"]
    assert far in following
    assert [one["key"] for one in here.http.get(f"/api/v1/accounts{following}").json()] == ["job-9"]
    assert here.http.get(f"/api/v1/accounts{following.replace(far, near)}").json() == [], "not from the start"
