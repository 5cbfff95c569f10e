"""Sums over sites: nothing counted twice, nothing dropped in silence, no small group told apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.federation.reports import NOW_NS, account, report, seen

from unidle_collector.federation import merging
from unidle_collector.federation.adding import add_accounts, add_costs
from unidle_collector.federation.groups import merge_small
from unidle_collector.federation.report import OTHERS
from unidle_collector.model import Cost, Fleet

DAY_S = 86_400.0
SECONDS = st.integers(0, 10**6).map(float)
PEOPLE = st.dictionaries(
    st.text("abcdefg", min_size=1, max_size=2), st.sets(st.integers(0, 12).map(str), max_size=8), max_size=8
)


def fleet(*all_seen: merging.Seen, window_s: float = DAY_S) -> Fleet:
    return merging.fleet("all sites", merging.sites(all_seen, NOW_NS, 30.0), window_s, NOW_NS)


@given(PEOPLE, st.integers(2, 6))
def test_no_group_and_no_difference_of_groups_is_fewer_than_k_people(
    people: dict[str, set[str]], k: int
) -> None:
    accounts = [account(key, productive=60.0) for key in people]
    told, merged = merge_small(accounts, people, k)
    apart = {one.key for one in told} - {OTHERS}
    assert all(not people[key] or len(people[key]) >= k for key in apart)
    hidden = set().union(*(people[key] for key in people if key not in apart))
    # What is not told apart is at least k people, or all there are.
    assert not hidden or len(hidden) >= k or not any(people[key] for key in apart)
    assert len(apart) + merged == len(people)
    assert sum(sum(one.seconds.values()) for one in told) == pytest.approx(60.0 * len(people))


def test_a_group_that_nobody_works_in_may_be_told() -> None:
    told, merged = merge_small([account("free", unallocated=60.0)], {}, 5)
    assert ([one.key for one in told], merged) == (["free"], 0)


@given(st.lists(st.tuples(SECONDS, SECONDS, SECONDS), min_size=1, max_size=5))
def test_the_sum_of_accounts_keeps_every_second_and_its_own_ratios(
    parts: list[tuple[float, float, float]],
) -> None:
    accounts = [account(productive=p, idle=i, unallocated=u) for p, i, u in parts]
    whole = add_accounts("fleet", accounts)
    productive, idle, free = (sum(part[n] for part in parts) for n in range(3))
    total = productive + idle + free
    assert sum(whole.seconds.values()) == pytest.approx(total)
    assert whole.lost.gpu_h == pytest.approx(idle / 3600)
    if total > 0:
        assert whole.effective_ratio == pytest.approx(productive / total)
        assert whole.allocated_ratio == pytest.approx((productive + idle) / total)


def test_adding_an_idle_site_never_raises_a_mean() -> None:
    busy, idle = account(productive=3600.0), account(idle=3600.0)
    both = add_accounts("fleet", [busy, idle])
    assert both.effective_ratio == pytest.approx(0.5)
    assert (both.active_ratio or 0) < (busy.active_ratio or 0)


def test_money_that_one_part_does_not_know_is_unknown_in_the_sum() -> None:
    assert add_costs([Cost(1.0, 2.0, 1.0), Cost(1.0, None, 1.0)]) == Cost(2.0, None, 2.0)
    assert add_costs([Cost(1.0, 2.0, 1.0), Cost(0.0, None, None)]) == Cost(1.0, 2.0, 1.0)


def test_two_sites_are_one_fleet() -> None:
    found = fleet(seen(report("fra")), seen(report("zrh", "CH", gpus=16)))
    assert (found.gpus, found.states["idle"], found.open_incidents, found.recommendations) == (24, 2, 6, 4)
    assert found.account.seconds["productive"] == 3600.0 * 24
    assert found.account.lost == Cost(1.0, 40.0, 2.0)
    assert (found.sites, found.gaps) == (("fra", "zrh"), ())


def test_the_same_collector_by_two_paths_counts_once_by_its_newest_report() -> None:
    old, new = seen(report("fra"), 50.0, url="https://a"), seen(report("fra"), 1.0, url="https://b")
    (site,) = merging.sites([old, new], NOW_NS, 30.0)
    assert (site.url, site.also_at) == ("https://b", ("https://a",))
    assert fleet(old, new).gpus == 8


def test_two_sites_of_one_name_are_kept_apart() -> None:
    one, two = report("gpu", site_id="1" * 32), report("gpu", site_id="2" * 32)
    both = merging.sites([seen(one, url="https://a"), seen(two, url="https://b")], NOW_NS, 30.0)
    assert [site.key for site in both] == ["gpu (11111111)", "gpu (22222222)"]


def test_a_site_that_is_away_is_unknown_from_then_on() -> None:
    found = fleet(seen(report("fra")), seen(report("zrh"), age_s=600.0, error="connection refused"))
    assert found.states == {"productive": 7, "idle": 1, "unknown": 8}
    assert found.account.seconds["productive"] == 3600.0 * 16
    assert found.account.seconds["unknown"] == 8 * 600.0
    assert found.gaps == ("zrh: unknown since 2026-11-21 13:52:00 UTC (connection refused)",)


def test_a_site_that_is_away_for_longer_than_the_window_is_nothing_but_unknown() -> None:
    found = fleet(seen(report("zrh"), age_s=7200.0, error="timed out"), window_s=3600.0)
    assert {state: s for state, s in found.account.seconds.items() if s} == {"unknown": 8 * 3600.0}
    assert found.account.lost.gpu_h == 0
    assert found.account.effective_ratio is None
    assert "longer than this window" in found.gaps[0]


def test_a_site_that_never_answered_is_in_the_list_and_said_to_be_missing() -> None:
    found = fleet(seen(report("fra")), seen(None, error="HTTP 401"))
    assert found.sites == ("fra", "https://nowhere.example")
    assert found.gaps == ("https://nowhere.example: never answered, not in the sums (HTTP 401)",)


def test_what_a_site_withholds_is_said_and_its_money_unknown() -> None:
    found = fleet(seen(report("fra")), seen(report("zrh", withheld=("eur", "fleet.now"))))
    assert found.account.lost.eur is None
    assert found.gpus == 8
    assert found.gaps == ("zrh: withheld by policy: GPUs now, money",)


@pytest.mark.parametrize(
    ("by", "keys"),
    [
        ("site", ["fra", "zrh"]),
        ("jurisdiction", ["EU", "not said"]),
        ("model", ["NVIDIA B200", "NVIDIA H100"]),
        ("team", ["fra/vision", "zrh/vision"]),
        ("fleet", ["fleet"]),
        ("user", []),
    ],
)
def test_accounts_by_any_dimension_that_crosses(by: str, keys: list[str]) -> None:
    sites = merging.sites([seen(report("fra")), seen(report("zrh", ""))], NOW_NS, 30.0)
    assert [one.key for one in merging.accounts(sites, by, DAY_S)] == keys


def test_models_of_a_site_that_is_away_keep_their_gpus() -> None:
    sites = merging.sites([seen(report("fra"), age_s=600.0)], NOW_NS, 30.0)
    models = merging.accounts(sites, "model", DAY_S)
    assert [one.seconds["unknown"] for one in models] == [2400.0, 2400.0]
    assert [one.seconds["unknown"] for one in merging.accounts(sites, "team", DAY_S)] == [0.0]


def test_a_wrong_question_says_what_may_be_asked() -> None:
    sites = merging.sites([seen(report("fra"))], NOW_NS, 30.0)
    with pytest.raises(merging.AskedWrongError, match="expected one of 3600, 86400, 604800, came 60"):
        merging.accounts(sites, "fleet", 60.0)
    with pytest.raises(merging.AskedWrongError, match="by: expected fleet"):
        merging.accounts(sites, "gpu", DAY_S)
    with pytest.raises(merging.AskedWrongError, match="site: expected one of fra, came 'par'"):
        merging.chosen(sites, "par")
